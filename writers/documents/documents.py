"""Documents out of files: read piece by piece in a fixed order, each with its place and id.

Order: the inputs as given, the files of a folder by name, the lines or rows of a file as they stand. Everything
downstream (tokenizer, parts, windows) is a function of this order, so a run that is started again sees the same
documents. A file can be read alone, in any process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.records.bad_record import LEAST_BYTES_PER_BYTE, BadReason, BadRecord, LargeRecordError
from crisp_stream.records.delimited import read_delimited
from crisp_stream.records.readers import TXT_FIELD, Record, TxtDocuments, read_arrow, read_lines, read_parquet, read_txt
from crisp_stream.records.warc import WARC_ID_FIELD, WARC_TEXT_FIELD, read_warc
from crisp_stream.storage.inputs import require_unchanged
from crisp_stream.writers.documents.bad_records import BadRecordError, BadRecords
from crisp_stream.writers.documents.drops import BROKEN_UNICODE, EMPTY_TEXT, NULL_TEXT, DropCounts
from crisp_stream.writers.documents.fields import MISSING, find_field, listed_fields
from crisp_stream.writers.documents.hub import read_hub
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile, Layout
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.documents.redpajama import read_redpajama

_PATHS: dict[str, tuple[str, str | None]] = {"text": (TXT_FIELD, None), "warc": (WARC_TEXT_FIELD, WARC_ID_FIELD)}
"""Fields of text and id of the kinds that have their own."""

_MISSING_FIELDS: tuple[BadReason, ...] = ("no text field", "no id field", "no field for a filter")
_SHOWN_CHARACTERS = 60
_CHARACTERS_AT_ONCE = 1 << 20
_SMALL_BYTES = 16 << 20
"""A text that takes less has room anywhere."""


class LargeDocumentError(Exception):
    """A document takes more memory than there is for it."""

    def __init__(self, place: str, num_bytes: int, needed_bytes: int) -> None:
        """Where it stands, its bytes, and the memory that it takes at least."""
        super().__init__(place, num_bytes, needed_bytes)
        self.place, self.num_bytes, self.needed_bytes = place, num_bytes, needed_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One document that is kept."""

    text: str
    """Text of the document: not empty, and valid Unicode."""
    row: int
    """Its number within its file, from 0, the dropped ones counted."""
    id: str | None
    """The document's id, where an id field is named."""


def read_input(
    file: InputFile,
    settings: DocumentSettings,
    counts: DropCounts,
    bad: BadRecords | None = None,
    *,
    number: int = 0,
    room_bytes: int | None = None,
) -> Iterator[Document]:
    """Stream the documents of one file.

    Args:
        file: as list_input_files gave it.
        settings: which fields, filters and layout; the same as for the listing.
        counts: receives what was dropped and why: empty, null or undecodable texts, and each filter.
        bad: receives the bad records; None: the first one is an error.
        number: number of the file, for `bad`.
        room_bytes: memory that a document may take; None where there is no limit.

    Raises:
        LargeDocumentError: a document takes more.
        InputError: too many bad records, such as without JSON, a field, or a value that a filter can compare.
        CorruptInputError: the file is damaged. StorageError: the storage refused or failed.
    """
    bad = BadRecords() if bad is None else bad
    for line, document in _read(file, settings, room_bytes):
        if isinstance(document, Document):
            yield document
            del document  # it may be large
        elif isinstance(document, BadRecord):
            try:
                bad.add(number, line, document, _place(file, line, settings))
            except InputError:
                check_unchanged(file)  # which says more
                raise
        else:
            counts.add(document)


def read_documents(
    inputs: Sequence[str],
    *,
    text_column: str = "text",
    limit: int | None = None,
    filters: Sequence[str] = (),
    text_template: str | None = None,
    txt_documents: TxtDocuments = "file",
    layout: Layout = "files",
    counts: DropCounts,
) -> Iterator[str]:
    """Stream the texts of all documents in a fixed order.

    Args:
        inputs: files, folders, prefixes or globs, local or on an object store; datasets by name.
        text_column: dotted path of the key (JSONL) or column (Parquet, Arrow) that holds the text; not used for .txt.
        limit: read at most this many documents, dropped ones included.
        filters: of DocumentSettings.
        text_template: of DocumentSettings.
        txt_documents: of DocumentSettings.
        layout: of DocumentSettings.
        counts: receives what was dropped and why: empty, null or undecodable texts, and each filter.

    Raises:
        InputError: nothing to read, a broken line, a missing column, a text that is not a string, or no document at
        all. StorageError: the storage refused or failed.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: must be at least 1 document, got {limit}. Leave it out to read all.")
    settings = DocumentSettings(
        text_field=text_column,
        text_template=text_template,
        txt_documents=txt_documents,
        filters=tuple(filters),
        layout=layout,
    )
    files = list_input_files(inputs, settings)
    num_read = num_kept = 0
    documents = ((file, line, document) for file in files for line, document in _read(file, settings))
    for file, line, document in islice(documents, limit):
        num_read += 1
        if isinstance(document, Document):
            num_kept += 1
            yield document.text
        elif isinstance(document, BadRecord):
            check_unchanged(file)
            raise document.error(_place(file, line, settings))
        else:
            counts.add(document)
    if num_kept == 0:
        raise InputError(
            f"{', '.join(inputs)}: at least one document with text is needed, got {num_read} documents without any. "
            "Check the files and the text column."
        )


def _read(
    file: InputFile, settings: DocumentSettings, room_bytes: int | None = None
) -> Iterator[tuple[int, Document | str | BadRecord]]:
    """Every record of the file with the number of its line: a document, or the reason for which it is dropped.

    Raises:
        InputError: the file is not the one that was listed. CorruptInputError: it is damaged.
    """
    try:
        yield from _taken(file, settings, room_bytes)
    except LargeRecordError as error:
        raise LargeDocumentError(_place(file, error.number, settings), error.num_bytes, error.needed_bytes) from error
    except CorruptInputError:
        check_unchanged(file)  # which says more
        raise
    check_unchanged(file)


def read_field(file: InputFile, settings: DocumentSettings) -> Iterator[Any]:
    """The value of the text field in every record of a file, whatever it is, in the order that documents are numbered
    in; MISSING where it is not there, or the record is a bad one.

    Raises:
        InputError: a .txt file has no fields; the file is not the one that was listed. CorruptInputError: it is
        damaged. StorageError.
    """
    if file.kind == "text":
        raise InputError(
            f"{file.url}: a column needs fields, and .txt files have none. Give the documents with their fields."
        )
    for _, record in _records(file, settings, None):
        yield MISSING if isinstance(record, BadRecord) else find_field(record, settings.text_path)
    check_unchanged(file)


def check_unchanged(file: InputFile) -> None:
    """Look whether a file, and its signals, are still those that were listed. Raises InputError, StorageError."""
    if file.kind == "hub":  # its reader compares revisions
        return
    require_unchanged(file.url, file.num_bytes, file.version)
    if file.signals_url is not None and file.signals_version is not None:
        require_unchanged(file.signals_url, None, file.signals_version)


def _taken(
    file: InputFile, settings: DocumentSettings, room_bytes: int | None
) -> Iterator[tuple[int, Document | str | BadRecord]]:
    filters, template = settings.parsed_filters(), settings.template
    text_path, id_path = _PATHS.get(file.kind, (settings.text_path, None))
    id_path = settings.id_field or id_path
    if file.kind == "text":
        _require_no_fields(file, settings)
        id_path = None
    is_text_only = file.kind in ("csv", "warc")
    for row, (number, record) in enumerate(_records(file, settings, room_bytes)):
        if isinstance(record, BadRecord):
            yield number, record
            continue
        try:
            if template is None:
                text = _text(find_field(record, text_path), text_path, record)
            else:
                text = template.text(record)
            refused = (each.reason for each in filters if not each.keeps(record, from_texts=is_text_only))
            if room_bytes is not None and text is not None:
                _require_room(number, text, room_bytes)
            reason = _reason_to_drop(text) or next(refused, None)
            if reason is not None or text is None:
                yield number, reason or NULL_TEXT
                continue
            name = f"{file.tag}/{row}" if file.tag else None
            if id_path is not None:
                name = _id(find_field(record, id_path), id_path, record)
        except BadRecordError as error:
            dropped = settings.missing == "drop" and error.record.reason in _MISSING_FIELDS
            yield number, error.record.reason if dropped else error.record
            continue
        yield number, Document(text=text, row=row, id=name)


def _require_room(number: int, text: str, room_bytes: int) -> None:
    """Raises LargeRecordError; what the text takes is what `LEAST_BYTES_PER_BYTE` says, in wider characters."""
    needed = len(text) + (LEAST_BYTES_PER_BYTE - 1) * sys.getsizeof(text)
    if needed > max(room_bytes, _SMALL_BYTES):
        raise LargeRecordError(number, len(text), needed)


def _require_no_fields(file: InputFile, settings: DocumentSettings) -> None:
    """Raises InputError: something that needs fields is asked of a .txt file."""
    subject = None
    if settings.filters:
        subject = f"the filter {settings.filters[0]!r}"
    elif settings.text_template is not None:
        subject = f"the text template {settings.text_template!r}"
    if subject is not None:
        raise InputError(
            f"{file.url}: {subject} needs fields, and .txt files have none. "
            "Leave it out, or give documents with fields."
        )


def _records(file: InputFile, settings: DocumentSettings, room_bytes: int | None) -> Iterator[Record]:
    match file.kind:
        case "lines":
            return read_lines(file.url, room_bytes=room_bytes)
        case "csv":
            return read_delimited(file.url)
        case "text":
            return read_txt(file.url, settings.txt_documents)
        case "warc":
            return read_warc(file.url)
        case "parquet":
            return read_parquet(file.url, settings.paths())
        case "arrow":
            return read_arrow(file.url, settings.paths())
        case "redpajama-v2":
            return read_redpajama(file, room_bytes=room_bytes)
        case "hub":
            return read_hub(file, settings.paths())


def _place(file: InputFile, number: int, settings: DocumentSettings) -> str:
    if file.kind == "text" and settings.txt_documents == "file":
        return file.url
    if file.kind in ("lines", "csv", "text", "redpajama-v2"):
        return f"{file.url}:{number}"
    if file.kind == "warc":
        return f"{file.url}: record {number}"
    shard = f", shard {file.shard}" if file.kind == "hub" else ""
    return f"{file.url}{shard}: row {number}"


def _reason_to_drop(text: str | None) -> str | None:
    if text is None:
        return NULL_TEXT
    if not text or text.isspace():
        return EMPTY_TEXT
    return None if _is_unicode(text) else BROKEN_UNICODE


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: JSON can hold halves of surrogate pairs, UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        for start in range(0, len(text), _CHARACTERS_AT_ONCE):
            text[start : start + _CHARACTERS_AT_ONCE].encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any, path: str, record: dict[str, Any]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if value is MISSING:
        raise BadRecordError(
            "no text field",
            f"the text column {path!r} must exist, got: {listed_fields(record)}",
            "Name the right one with --text-column.",
        )
    raise BadRecordError(
        "text that is not a string",
        f"the text column {path!r} must hold strings, got {type(value).__name__}",
        "Name another column with --text-column, or convert the values.",
    )


def _id(value: Any, path: str, record: dict[str, Any]) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and _is_unicode(value):
        return value
    got = "null" if value is None else type(value).__name__
    if isinstance(value, str):
        got = f"an unpaired surrogate: {value[:_SHOWN_CHARACTERS]!a}"
    if value is MISSING:
        got = f"only: {listed_fields(record)}"
    raise BadRecordError(
        "no id field" if value is MISSING else "id that is no id",
        f"the id column {path!r} must hold a text or a whole number, got {got}",
        "Name the right one with --id-column, or leave it out.",
    )
