"""Records out of one file, streamed: lines of JSON, texts, Parquet, Arrow. No reader holds a whole file.

Every reader gives numbers and fields, and raises errors that name the place; delimited.py, json_arrays.py and warc.py
hold further ones. Bounds: a line is a document and at most MAX_LINE_BYTES long; tables come in batches of about
BATCH_BYTES, so that a huge row group is never decoded at once; only the columns that are needed are read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import IO, Any, Literal

from crisp_stream.errors import InputError
from crisp_stream.records.bad_record import LEAST_BYTES_PER_BYTE, BadRecord, LargeRecordError, not_utf8
from crisp_stream.records.compression import Damage, opened
from crisp_stream.records.json_arrays import read_array
from crisp_stream.storage.inputs import open_input
from crisp_stream.storage.store import is_remote

TxtDocuments = Literal["file", "line", "block"]
TXT_DOCUMENTS: tuple[TxtDocuments, ...] = ("file", "line", "block")
Record = tuple[int, dict[str, Any] | BadRecord]
"""Number of the line, row or record in its file, from 1; the fields, or why there are none."""

TXT_PIECE_CHARACTERS = 16 << 20
"""A .txt file is one document; a larger one is cut behind a line end into documents of about this length."""
TXT_FIELD = "text"
"""The only field of a .txt file."""
MAX_LINE_BYTES = 256 << 20
_PASSED_BYTES = 1 << 20
_MOST_BYTES_PER_BYTE = 13
_WIDE, _WIDE_ESCAPE = re.compile(rb"[\xf0-\xff]"), re.compile(rb"\\u[dD][89abAB]")
"""What takes 4 bytes per character."""
_FIRST_BYTES = 1 << 16
"""Of the first line, read to see whether the file is an array, which may stand on one line."""
BATCH_BYTES = 4 << 20
_MAX_BATCH_ROWS = 1024
_LOCAL_BUFFER, _REMOTE_BUFFER = 1 << 20, 8 << 20
_UTF8_BOM = b"\xef\xbb\xbf"
_ARROW_FILE_MAGIC = b"ARROW1"


def _bytes_to_parse(line: bytes) -> int:
    """Memory that a line of JSON takes at most until its text is written: the line decoded, its texts taken apart and
    joined, all in the 1, 2 or 4 bytes per character that Python needs for the widest of them; and the line."""
    literal = 1 if line.isascii() else 4 if _WIDE.search(line) else 2
    escaped = 1 if b"\\u" not in line else 4 if _WIDE_ESCAPE.search(line) else 2
    return len(line) * (1 + 2 * literal + max(literal, escaped))


def read_lines(url: str, *, room_bytes: int | None = None) -> Iterator[Record]:
    """The objects of a file with one JSON object per line; blank lines are passed over. A file that begins with `[` is
    a JSON array instead, and its records are numbered. While a record is used, its line is not held any more.

    Args:
        url: the file.
        room_bytes: memory that a record may take while it is read and used; None where there is no limit.

    Raises:
        LargeRecordError: a record takes more, which does not make it a bad one.
        CorruptInputError: the file cannot be read to its end. InputError: an array of something else than objects.
        StorageError: the storage refused or failed.
    """
    with opened(url) as stream:
        longest = MAX_LINE_BYTES
        if room_bytes is not None:
            longest = min(longest, max(room_bytes // LEAST_BYTES_PER_BYTE, 2 * _FIRST_BYTES))
        number, has_begun = 0, False
        while line := stream.readline(longest if has_begun else _FIRST_BYTES):
            number += 1
            if number == 1:
                line = line.removeprefix(_UTF8_BOM)
            if not has_begun:
                if line.lstrip().startswith(b"["):
                    yield from read_array(url, line.lstrip(), stream, room_bytes=room_bytes)
                    return
                if not line.endswith(b"\n"):
                    line += stream.readline(longest - len(line))
            if line.isspace():
                continue
            has_begun = True
            if len(line) == longest and not line.endswith(b"\n"):
                num_bytes = longest + _pass_rest_of_line(stream)
                if longest < MAX_LINE_BYTES and num_bytes < MAX_LINE_BYTES:
                    raise LargeRecordError(number, num_bytes, num_bytes * LEAST_BYTES_PER_BYTE)
                yield number, _too_long()
                continue
            if room_bytes is not None and len(line) * _MOST_BYTES_PER_BYTE > room_bytes:
                needed = _bytes_to_parse(line)
                if needed > room_bytes:
                    raise LargeRecordError(number, len(line), needed)
            held = [line]
            del line
            yield number, _json_object(held)


def _pass_rest_of_line(stream: IO[bytes]) -> int:
    """Bytes of the rest."""
    num_bytes = 0
    while rest := stream.readline(_PASSED_BYTES):
        num_bytes += len(rest)
        if rest.endswith(b"\n"):
            break
    return num_bytes


def _json_object(held: list[bytes]) -> dict[str, Any] | BadRecord:
    """The object of the one line that is held, which is let go of on the way: it may be large."""
    line = held.pop()
    is_opened = line.strip() == b"{" if len(line) < _FIRST_BYTES else False
    try:
        text = line.decode(json.detect_encoding(line), "surrogatepass")  # as json.loads does
        del line
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        if is_opened:
            return BadRecord(
                reason="not a JSON object",
                text="every line must be a JSON object, got one over several lines",
                remedy="Write each object on a line, as `jq -c .` does, or all of them in an array.",
            )
        return BadRecord(
            reason="not a JSON object",
            text=f"every line must be a JSON object, got: {error}",
            remedy="Mend or remove the line.",
        )
    if isinstance(record, dict):
        return record
    return BadRecord(
        reason="not a JSON object",
        text=f"every line must be a JSON object, got {type(record).__name__}",
        remedy="Write one object per line.",
    )


def _too_long() -> BadRecord:
    return BadRecord(
        reason="line that is too long",
        text=f"a line must be shorter than {MAX_LINE_BYTES:,} bytes, got a longer one",
        remedy="Write one document per line.",
    )


def read_txt(url: str, documents: TxtDocuments = "file") -> Iterator[Record]:
    """The texts of a .txt file: all of it, in pieces of about TXT_PIECE_CHARACTERS; or its lines; or its blocks, which
    blank lines part. Lines and blocks come without the line end behind them, with the number of their first line. What
    is not UTF-8 is a bad record, which ends the file where all of it is one document.

    Raises:
        CorruptInputError: it cannot be read to its end. StorageError: the storage refused or failed.
    """
    match documents:
        case "file":
            texts = _whole_text(url)
        case "line":
            texts = _text_lines(url)
        case "block":
            texts = _text_blocks(url)
    return ((number, text if isinstance(text, BadRecord) else {TXT_FIELD: text}) for number, text in texts)


def _whole_text(url: str) -> Iterator[tuple[int, str | BadRecord]]:
    with (
        opened(url) as stream,
        # newline="" keeps the text as it is; utf-8-sig takes a byte order mark away.
        io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text,
    ):
        number = 0
        try:
            for number, piece in enumerate(_text_pieces(text), start=1):
                yield number, piece
        except UnicodeDecodeError as error:
            yield number + 1, not_utf8("text files", error)


def _text_pieces(text: io.TextIOWrapper) -> Iterator[str]:
    piece = text.read(TXT_PIECE_CHARACTERS)
    while piece:
        if len(piece) == TXT_PIECE_CHARACTERS:
            piece += text.readline(TXT_PIECE_CHARACTERS)
        following = text.read(TXT_PIECE_CHARACTERS)
        yield piece
        piece = following


def _text_lines(url: str) -> Iterator[tuple[int, str | BadRecord]]:
    """Number and text of the lines that are not blank."""
    for number, line in _all_lines(url):
        if isinstance(line, BadRecord):
            yield number, line
        elif line.strip():
            yield number, line.rstrip("\r\n")


def _text_blocks(url: str) -> Iterator[tuple[int, str | BadRecord]]:
    """First line and text of the stretches between blank lines; of one with a bad line, that line."""
    block: list[str] = []
    bad: tuple[int, BadRecord] | None = None
    first = num_characters = 0
    for number, line in chain(_all_lines(url), [(0, "")]):
        if isinstance(line, BadRecord) or line.strip():
            first = first or number
            if isinstance(line, BadRecord):
                bad = bad or (number, line)
                continue
            block.append(line)
            num_characters += len(line)
            if num_characters > MAX_LINE_BYTES:
                raise InputError(
                    f"{url}:{first}: a block must be shorter than {MAX_LINE_BYTES:,} characters, got a longer one. "
                    "Part it by blank lines."
                )
        elif first:
            yield bad or (first, "".join(block).rstrip("\r\n"))
            block, bad, first, num_characters = [], None, 0, 0


def _all_lines(url: str) -> Iterator[tuple[int, str | BadRecord]]:
    with opened(url) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                _pass_rest_of_line(stream)
                yield number, _too_long()
                continue
            try:
                yield number, (line.removeprefix(_UTF8_BOM) if number == 1 else line).decode()
            except UnicodeDecodeError as error:
                yield number, not_utf8("text files", error)


def read_parquet(url: str, paths: Sequence[str] | None = None) -> Iterator[Record]:
    """The rows of a Parquet file with the columns at `paths`; with all of them where one of the paths is not there.
    None: all.

    Raises:
        CorruptInputError: the file is damaged. StorageError: the storage refused or failed.
    """
    import pyarrow.parquet as pq

    buffer_bytes = _REMOTE_BUFFER if is_remote(url) else _LOCAL_BUFFER
    with Damage(url, "a readable Parquet file"), open_input(url) as raw:
        parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=buffer_bytes, page_checksum_verification=True)
        columns = None if paths is None else _column_paths(parquet.schema_arrow, paths)
        number = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.iter_batches(
                batch_size=_rows_per_batch(parquet.metadata.row_group(group), columns),
                row_groups=[group],
                columns=columns,
                use_threads=False,
            )
            for batch in rows:
                for record in batch.to_pylist():
                    number += 1
                    yield number, record


def _rows_per_batch(group: Any, columns: list[str] | None) -> int:
    """Number of rows that make about BATCH_BYTES in this row group."""
    chunks = (group.column(index) for index in range(group.num_columns))
    chosen = tuple(f"{column}." for column in columns) if columns is not None else ("",)
    num_bytes = sum(each.total_uncompressed_size for each in chunks if f"{each.path_in_schema}.".startswith(chosen))
    bytes_per_row = num_bytes / max(group.num_rows, 1)
    return int(min(max(BATCH_BYTES / max(bytes_per_row, 1.0), 1), _MAX_BATCH_ROWS))


def read_arrow(url: str, paths: Sequence[str]) -> Iterator[Record]:
    """The rows of an Arrow file, of either IPC form (`datasets` writes streams), with the top columns of `paths`.

    Raises:
        CorruptInputError: the file is damaged. StorageError: the storage refused or failed.
    """
    import pyarrow as pa

    with Damage(url, "a readable Arrow file"), open_input(url) as raw:
        as_file = raw.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        raw.seek(0)
        opened = pa.ipc.open_file(raw) if as_file else pa.ipc.open_stream(raw)
        columns = _column_paths(opened.schema, paths)
        if columns is not None:
            chosen = sorted({opened.schema.get_field_index(_top_column(opened.schema, path)) for path in columns})
            raw.seek(0)
            options = pa.ipc.IpcReadOptions(included_fields=chosen)
            opened = pa.ipc.open_file(raw, options=options) if as_file else pa.ipc.open_stream(raw, options=options)
        batches = (opened.get_batch(index) for index in range(opened.num_record_batches)) if as_file else opened
        number = 0
        for batch in batches:
            rows = int(min(max(BATCH_BYTES * batch.num_rows / max(batch.nbytes, 1), 1), _MAX_BATCH_ROWS))
            for start in range(0, batch.num_rows, rows):
                for record in batch.slice(start, rows).to_pylist():
                    number += 1
                    yield number, record


def _column_paths(schema: Any, paths: Sequence[str]) -> list[str] | None:
    """Columns to read for `paths`: each as far as the structs go. None when one of them is not there."""
    columns = [_column_path(schema, path) for path in paths]
    present = [column for column in columns if column is not None]
    return present if len(present) == len(columns) else None


def _column_path(fields: Any, path: str) -> str | None:
    import pyarrow.types as types

    if path in fields.names:
        return path
    cut = path.rfind(".")
    while cut > 0:
        head, rest = path[:cut], path[cut + 1 :]
        if head in fields.names:
            inner = fields.field(head).type
            if types.is_struct(inner):
                below = _column_path(inner, rest)
                return None if below is None else f"{head}.{below}"
            return head if types.is_string(inner) or types.is_large_string(inner) else None
        cut = path.rfind(".", 0, cut)
    return None


def _top_column(schema: Any, path: str) -> str:
    while path not in schema.names:
        path = path.rpartition(".")[0]
    return path
