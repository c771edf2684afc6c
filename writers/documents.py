"""Documents out of files: a stream of texts in a fixed order, read piece by piece.

Order: the inputs as given, the files of a folder by name, the lines or rows of a file as they stand. Everything
downstream (tokenizer, parts, windows) is a function of this order, so a run that is started again sees the same
documents.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any

from crisp_stream.errors import CrispError, InputError
from crisp_stream.storage import list_inputs, open_input

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES_TEXT = ".jsonl, .ndjson, .json (one object per line), .txt (each also .gz or .zst), .parquet"

EMPTY_TEXT = "empty text"
NULL_TEXT = "null text"
BROKEN_UNICODE = "text with an unpaired surrogate"
OTHER_FILE = "file of another kind in a folder"
NOT_SAMPLED = "not in the sample"
_WORD = (1 << 64) - 1

TXT_PIECE_CHARACTERS = 16 << 20
"""A .txt file is one document; a larger one is cut behind a line end into documents of about this length."""
_PARQUET_ROWS = 1024
_UTF8_BOM = b"\xef\xbb\xbf"


class DropCounts:
    """How many were dropped, by reason."""

    def __init__(self, by_reason: dict[str, int] | None = None) -> None:
        self.by_reason: dict[str, int] = dict(by_reason or {})

    def add(self, reason: str, count: int = 1) -> None:
        """Count `count` more under `reason`."""
        if count:
            self.by_reason[reason] = self.by_reason.get(reason, 0) + int(count)

    def merge(self, other: dict[str, int]) -> None:
        """Add the counts of another stage or part."""
        for reason, count in other.items():
            self.add(reason, count)

    def as_dict(self) -> dict[str, int]:
        """The counts, sorted by reason."""
        return dict(sorted(self.by_reason.items()))

    @property
    def total(self) -> int:
        """Sum over the reasons."""
        return sum(self.by_reason.values())


def list_document_files(inputs: Sequence[str], *, counts: DropCounts | None = None) -> list[str]:
    """The files behind `inputs` that hold documents, in reading order.

    A file that is named must be of a known kind; files of another kind inside a folder or glob are passed over and
    counted.

    Raises:
        InputError: no inputs; an input that matches nothing, or nothing of a known kind.
        StorageError: the storage cannot be listed.
    """
    if not inputs:
        raise InputError("inputs: at least one file, folder, prefix or glob is needed, got none. Name your documents.")
    files: list[str] = []
    for source in inputs:
        listed = list_inputs(source)
        known = [file for file in listed if _kind(file) is not None]
        if not known:
            raise InputError(
                f"{source}: documents come from {SUFFIXES_TEXT}; got {PurePosixPath(listed[0]).name}. "
                "Rename or convert the file, or name another input."
            )
        if counts is not None:
            counts.add(OTHER_FILE, len(listed) - len(known))
        files.extend(known)
    return files


def read_documents(
    inputs: Sequence[str],
    *,
    text_column: str = "text",
    limit: int | None = None,
    sample: float | None = None,
    counts: DropCounts,
) -> Iterator[str]:
    """Stream the texts of all documents in a fixed order.

    Args:
        inputs: files, folders, prefixes or globs, local or on an object store.
        text_column: key (JSONL) or column (Parquet) that holds the text; not used for .txt.
        limit: read at most this many documents, dropped ones included.
        sample: keep about this share of the documents, above 0 and at most 1, chosen by a hash of their number.
        counts: receives what was dropped and why: empty, null or undecodable texts.

    Raises:
        InputError: nothing to read, a broken line, a missing column, a text that is not a string, or no document at
        all. StorageError: the storage refused or failed.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: must be at least 1 document, got {limit}. Leave it out to read all.")
    if sample is not None and not 0 < sample <= 1:
        raise InputError(f"sample: must be above 0 and at most 1, got {sample}. Leave it out to read all.")
    files = list_document_files(inputs, counts=counts)
    num_read = num_kept = 0
    for file in files:
        for text in _read_file(file, text_column):
            num_read += 1
            chosen = sample is None or _uniform(num_read) < sample
            reason = _reason_to_drop(text) if chosen else NOT_SAMPLED
            if reason is not None:
                counts.add(reason)
            elif text is not None:
                num_kept += 1
                yield text
            if num_read == limit:
                break
        if num_read == limit:
            break
    if num_kept == 0:
        raise InputError(
            f"{', '.join(inputs)}: at least one document with text is needed, got {num_read} documents without any. "
            "Check the files and the text column."
        )


def _uniform(number: int) -> float:
    """A hash of a document's number, uniform in [0, 1): the SplitMix64 finaliser."""
    mixed = number * 0x9E3779B97F4A7C15 & _WORD
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
    return (mixed ^ mixed >> 31) / 2**64


def _reason_to_drop(text: str | None) -> str | None:
    if text is None:
        return NULL_TEXT
    if not text or text.isspace():
        return EMPTY_TEXT
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return BROKEN_UNICODE
    return None


def _kind(file: str) -> str | None:
    name = PurePosixPath(file)
    suffix = name.suffix.lower()
    if suffix in COMPRESSIONS:
        suffix = PurePosixPath(name.stem).suffix.lower()
        return suffix if suffix in (*LINE_SUFFIXES, ".txt") else None
    return suffix if suffix in (*LINE_SUFFIXES, ".txt", ".parquet") else None


def _read_file(file: str, text_column: str) -> Iterator[str | None]:
    kind = _kind(file)
    try:
        with open_input(file) as raw:
            if kind == ".parquet":
                yield from _read_parquet(file, raw, text_column)
                return
            with _decompressed(file, raw) as stream:
                yield from _read_txt(file, stream) if kind == ".txt" else _read_lines(file, stream, text_column)
    except CrispError:
        raise
    except (OSError, EOFError) as error:
        raise InputError(
            f"{file}: must be readable to its end, got: {error}. Restore the file, or leave it out."
        ) from error


def _decompressed(file: str, raw: IO[bytes]) -> IO[bytes]:
    compression = COMPRESSIONS.get(PurePosixPath(file).suffix.lower())
    if compression is None:
        return raw
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(raw, compression), 1 << 20)


def _read_lines(file: str, stream: IO[bytes], text_column: str) -> Iterator[str | None]:
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(_UTF8_BOM) if number == 1 else line
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{file}:{number}: every line must be a JSON object, got: {error}. Mend or remove the line."
            ) from error
        if not isinstance(record, dict):
            raise InputError(
                f"{file}:{number}: every line must be a JSON object, got {type(record).__name__}. "
                "Write one object per line."
            )
        if text_column not in record:
            raise InputError(_missing_column(f"{file}:{number}", text_column, list(record)))
        yield _text(record[text_column], f"{file}:{number}", text_column)


def _read_parquet(file: str, raw: IO[bytes], text_column: str) -> Iterator[str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(raw, pre_buffer=False)
        columns = parquet.schema_arrow.names
        if text_column not in columns:
            raise InputError(_missing_column(f"{file}: row 1", text_column, columns))
        number = 0
        for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_column], use_threads=False):
            for value in batch.column(0).to_pylist():
                number += 1
                yield _text(value, f"{file}: row {number}", text_column)
    except pa.ArrowException as error:
        raise InputError(
            f"{file}: must be a readable Parquet file, got: {error}. Restore the file, or leave it out."
        ) from error


def _read_txt(file: str, stream: IO[bytes]) -> Iterator[str]:
    # newline="" keeps the text as it is; utf-8-sig takes a byte order mark away.
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        try:
            piece = text.read(TXT_PIECE_CHARACTERS)
            while piece:
                if len(piece) == TXT_PIECE_CHARACTERS:
                    piece += text.readline(TXT_PIECE_CHARACTERS)
                following = text.read(TXT_PIECE_CHARACTERS)
                yield piece
                piece = following
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: text files must be UTF-8, got: {error}. Convert the file to UTF-8.") from error


def _missing_column(place: str, text_column: str, columns: list[str]) -> str:
    return (
        f"{place}: the text column {text_column!r} must exist, got: {', '.join(map(str, columns)) or 'none'}. "
        "Name the right one with --text-column."
    )


def _text(value: Any, place: str, text_column: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(
        f"{place}: the text column {text_column!r} must hold strings, got {type(value).__name__}. "
        "Name another column with --text-column, or convert the values."
    )
