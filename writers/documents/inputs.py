"""Settings by which documents are read, and one input file as tasks on other machines get it.

Both are plain values: they can be pickled, and `dataclasses.asdict` of them is JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from crisp_stream.errors import InputError
from crisp_stream.records.compression import COMPRESSIONS
from crisp_stream.records.readers import TXT_DOCUMENTS, TxtDocuments
from crisp_stream.writers.documents.filters import Filter, parse_filter
from crisp_stream.writers.documents.text_templates import TextTemplate, parse_template

Kind = Literal["lines", "csv", "text", "warc", "parquet", "arrow", "redpajama-v2", "hub"]
Layout = Literal["files", "redpajama-v2"]
Missing = Literal["error", "drop"]
LAYOUTS: tuple[Layout, ...] = ("files", "redpajama-v2")
MISSING_RULES: tuple[Missing, ...] = ("error", "drop")

_KINDS: dict[str, Kind] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "lines"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".txt": "text",
    **dict.fromkeys((".wet", ".warc"), "warc"),
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSED: tuple[Kind, ...] = ("lines", "csv", "text", "warc")
SUFFIXES_TEXT = (
    ".jsonl, .ndjson, .json (one object per line, or an array of objects), .csv, .tsv, .txt, .wet (each also .gz, "
    ".bz2, .xz or .zst), .parquet, .arrow"
)
HUB_SCHEME = "hf://"

DEFAULT_TEXT_FIELD = "text"
_REDPAJAMA_TEXT_FIELD = "raw_content"


@dataclass(frozen=True, kw_only=True)
class DocumentSettings:
    """Settings by which a document is taken out of a record."""

    text_field: str = DEFAULT_TEXT_FIELD
    """Dotted path of the text; a key that itself contains dots wins. Not used for .txt and .wet."""
    text_template: str | None = None
    """Make the text of several fields instead: a text with `{FIELD}`s, or `chat`, see text_templates.py."""
    txt_documents: TxtDocuments = "file"
    """Documents of a .txt file: all of it, each line, or each block between blank lines."""
    id_field: str | None = None
    """Dotted path of the document's id, a text or a whole number; None: documents have none (but in the layout of
    RedPajama-v2, where the id of the quality signals is taken, and in .wet files, where that of the record is)."""
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
        if self.txt_documents not in TXT_DOCUMENTS:
            raise InputError(
                f"txt_documents: must be one of {', '.join(TXT_DOCUMENTS)}, got {self.txt_documents!r}. Choose one."
            )
        if self.text_template is not None and self.text_field != DEFAULT_TEXT_FIELD:
            raise InputError(
                f"text_template: must be left out where a text column is named, got both ({self.text_field!r}). "
                "Drop one of the two."
            )
        _ = self.parsed_filters(), self.template  # they check themselves

    @property
    def text_path(self) -> str:
        """Field of the text: `raw_content` in the layout of RedPajama-v2 unless another field is named."""
        plain = self.layout == "files" or self.text_field != DEFAULT_TEXT_FIELD
        return self.text_field if plain else _REDPAJAMA_TEXT_FIELD

    @property
    def template(self) -> TextTemplate | None:
        """The template, taken apart; None where one field holds the text. Raises InputError."""
        return None if self.text_template is None else parse_template(self.text_template)

    def parsed_filters(self) -> tuple[Filter, ...]:
        """The filters, taken apart. Raises InputError."""
        return tuple(map(parse_filter, self.filters))

    def paths(self) -> tuple[str, ...]:
        """Every field that is needed, each once."""
        texts = (self.text_path,) if self.template is None else self.template.fields
        named = (*texts, *([self.id_field] if self.id_field else []))
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
    """Kind of a file by its suffix; None where it holds no documents.

    A name without a suffix but that of its compression holds lines of JSON, as Pushshift's `RC_2023-01.zst` does.
    """
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    if suffix not in COMPRESSIONS:
        return _KINDS.get(suffix)
    inner = PurePosixPath(name.stem).suffix.lower()
    kind = _KINDS.get(inner) if inner else "lines"
    return kind if kind in _COMPRESSED else None
