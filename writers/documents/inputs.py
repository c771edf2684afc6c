"""Settings by which documents are read, and one input file as tasks on other machines get it.

Both are plain values: they can be pickled, and `dataclasses.asdict` of them is JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from crisp_stream.errors import InputError
from crisp_stream.writers.documents.filters import Filter, parse_filter

Kind = Literal["lines", "text", "parquet", "arrow", "redpajama-v2", "hub"]
Layout = Literal["files", "redpajama-v2"]
Missing = Literal["error", "drop"]
LAYOUTS: tuple[Layout, ...] = ("files", "redpajama-v2")
MISSING_RULES: tuple[Missing, ...] = ("error", "drop")

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES_TEXT = ".jsonl, .ndjson, .json (one object per line), .txt (each also .gz or .zst), .parquet, .arrow"
HUB_SCHEME = "hf://"

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(LINE_SUFFIXES, "lines"),
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
DEFAULT_TEXT_FIELD = "text"
_REDPAJAMA_TEXT_FIELD = "raw_content"


@dataclass(frozen=True, kw_only=True)
class DocumentSettings:
    """Settings by which a document is taken out of a record."""

    text_field: str = DEFAULT_TEXT_FIELD
    """Dotted path of the text; a key that itself contains dots wins. Not used for .txt."""
    id_field: str | None = None
    """Dotted path of the document's id, a text or a whole number; None: documents have none (but in the layout of
    RedPajama-v2, where the id of the quality signals is taken)."""
    filters: tuple[str, ...] = ()
    """Documents are kept where all of them hold: `FIELD OPERATOR VALUE`, see filters.py."""
    layout: Layout = "files"
    """`redpajama-v2`: documents/ and quality_signals/ beside one another, of which the English head and middle are
    read."""
    missing: Missing = "error"
    """What a record is that lacks a named field, that is the text, the id, or the field of a filter: `error` a bad
    record, `drop` a dropped document."""
    skip_corrupt: bool = False
    """Leave out files and folders that cannot be read, and files that cannot be read to their end."""

    def __post_init__(self) -> None:
        if not self.text_field or self.id_field == "":
            raise InputError("the text field and the id field: must be names, got an empty one. Name the field.")
        if self.layout not in LAYOUTS:
            raise InputError(f"layout: must be one of {', '.join(LAYOUTS)}, got {self.layout!r}. Choose one of these.")
        self.parsed_filters()  # they check themselves

    @property
    def text_path(self) -> str:
        """Field of the text: `raw_content` in the layout of RedPajama-v2 unless another field is named."""
        plain = self.layout == "files" or self.text_field != DEFAULT_TEXT_FIELD
        return self.text_field if plain else _REDPAJAMA_TEXT_FIELD

    def parsed_filters(self) -> tuple[Filter, ...]:
        """The filters, taken apart. Raises InputError."""
        return tuple(map(parse_filter, self.filters))

    def paths(self) -> tuple[str, ...]:
        """Every field that is needed, each once."""
        named = (self.text_path, *([self.id_field] if self.id_field else []))
        return tuple(dict.fromkeys((*named, *(each.field for each in self.parsed_filters()))))


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file (or one shard of a dataset by name) that can be read alone."""

    url: str
    """Path or URL; absolute when local."""
    name: str
    """Unique among the inputs and free of the machine's paths: this is what the dataset's provenance holds."""
    kind: Kind
    num_bytes: int
    """Stored size, compressed or not; 0 when it is not known (shards of a dataset by name)."""
    version: str
    """Differs when the content was replaced."""
    signals_url: str | None = None
    """RedPajama-v2: the file of quality signals beside it, when filters need it."""
    signals_version: str | None = None
    """`version` of that file."""
    tag: str | None = None
    """RedPajama-v2: what the ids of its documents begin with, as `2023-06/0000/en_head.json.gz`."""
    shard: int = 0
    """Number of the shard, from 0, for a dataset by name."""
    num_shards: int = 1


def file_kind(path: str) -> Kind | None:
    """Kind of a file by its suffix; None where it holds no documents."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    if suffix not in COMPRESSIONS:
        return _KINDS.get(suffix)
    kind = _KINDS.get(PurePosixPath(name.stem).suffix.lower())
    return kind if kind in ("lines", "text") else None
