"""The texts of a WET file, as Common Crawl extracts them: the conversion records of a WARC file, by warcio.

Records of pages themselves (`response`, `resource`) hold HTML and more. To take text out of it is a choice of its own
with many right answers, so it is not made here: they are refused. warcio and not fastwarc: it is plain Python, so it
installs wherever Python does, and it has been the field's reader for ten years; fastwarc's present version was written
anew this year. The price: 37 MB/s, which is still more than embedding takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crisp_stream.errors import CorruptInputError, InputError, import_extra
from crisp_stream.records.bad_record import BadRecord, not_utf8
from crisp_stream.records.compression import opened

WARC_TEXT_FIELD = "text"
"""Name of a conversion record's content, beside the fields of its header (`WARC-Target-URI` and others)."""
WARC_ID_FIELD = "WARC-Record-ID"
"""The ids of documents, where no other field is named."""
MAX_RECORD_BYTES = 256 << 20
_PAGES = ("response", "resource")


def read_warc(url: str) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Number from 1 and fields of each conversion record; records about the file and its making are passed over.

    Raises:
        CorruptInputError: no WARC, or a record that is cut off. InputError: records of pages.
        MissingExtraError: warcio is not installed. StorageError: the storage refused or failed.
    """
    loader = import_extra("warcio.archiveiterator", extra="warc", purpose="a .wet or .warc file")
    failed = import_extra("warcio.exceptions", extra="warc", purpose="a .wet or .warc file").ArchiveLoadFailed
    with opened(url) as stream:
        number = 0
        try:
            records = loader.ArchiveIterator(stream, no_record_parse=True)
            for record in records:
                if records.err_count:
                    raise _damage(f"{url}: record {number}", "a Content-Length that is not that of its content")
                number += 1
                if record.rec_type in _PAGES:
                    raise InputError(
                        f"{url}: record {number}: documents are the texts of a WET file (`conversion` records), got a "
                        f"`{record.rec_type}` record, which holds a page as it was fetched. Name the .wet files of the "
                        "crawl, or take the text out of the pages first."
                    )
                content = _content(record, f"{url}: record {number}")
                if record.rec_type == "conversion":
                    yield number, _fields(record, content)
            if records.err_count:
                raise _damage(f"{url}: record {number}", "a Content-Length that is not that of its content")
        except failed as error:
            raise _damage(f"{url}: record {number + 1}", error) from error


def _content(record: Any, place: str) -> bytes:
    declared = record.rec_headers.get_header("Content-Length")
    if not (declared or "").isdecimal():
        raise _damage(place, f"the Content-Length {declared!r}")
    if record.length > MAX_RECORD_BYTES:
        raise InputError(
            f"{place}: a record must be shorter than {MAX_RECORD_BYTES:,} bytes, got {record.length:,}. Leave it out."
        )
    content = record.raw_stream.read()
    if len(content) != record.length:
        raise _damage(place, f"{len(content):,} of its {record.length:,} bytes")
    return content


def _fields(record: Any, content: bytes) -> dict[str, Any] | BadRecord:
    try:
        return {**dict(record.rec_headers.headers), WARC_TEXT_FIELD: content.decode()}
    except UnicodeDecodeError as error:
        return not_utf8("the text of a record", error)


def _damage(place: str, got: object) -> CorruptInputError:
    return CorruptInputError(f"{place} must be a whole WARC record, got: {got}. Fetch the file again, or leave it out.")
