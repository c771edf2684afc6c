"""The layout of RedPajama-v2: documents/SNAPSHOT/SHARD/en_head.json.gz and, line by line beside it,
quality_signals/SNAPSHOT/SHARD/en_head.signals.json.gz.

Read are the English head and middle, the part that has quality signals and that the paper trains on. The minhash/ and
duplicates/ folders beside them are passed over. The signals are opened only when a filter names a field that documents
do not have: they are about as large as the documents.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.format.ledger import Ledger
from crisp_stream.records.bad_record import BadRecord
from crisp_stream.records.readers import Record, read_lines
from crisp_stream.storage.inputs import ListedFile, describe_inputs
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile

DOCUMENT_FIELDS = frozenset(
    (
        *("url", "date_download", "digest", "length", "nlines", "source_domain", "title", "raw_content", "cc_segment"),
        *("original_nlines", "original_length", "line_ids", "language", "language_score", "perplexity", "bucket"),
    )
)
"""Fields of a document, as CCNet writes it. Filters on anything else are about the quality signals."""
OTHER_BUCKET = "RedPajama-v2 file of another language or bucket"
NO_DOCUMENTS = "RedPajama-v2 file beside documents/"
_DOCUMENTS, _SIGNALS = "documents", "quality_signals"
_READ = re.compile(r"en_(head|middle)\.jsonl?(\.gz|\.bz2|\.xz|\.zst)?")


def needs_signals(settings: DocumentSettings) -> bool:
    """Say whether a filter, or the column that is read, is about a quality signal."""
    fields = (settings.text_path, *(each.field for each in settings.parsed_filters()))
    return any(field.partition(".")[0] not in DOCUMENT_FIELDS for field in fields)


def list_redpajama_files(
    source: str, listed: list[ListedFile], settings: DocumentSettings, ledger: Ledger
) -> list[InputFile]:
    """The English head and middle among the listed files, each with its file of signals when filters need it.

    Raises:
        InputError: none of them, or one without its signals.
    """
    with_signals = needs_signals(settings)
    known = {file.url: file for file in listed} if with_signals else {}
    looked_up: set[str] = set()
    files: list[InputFile] = []
    beside: list[ListedFile] = []
    for file in listed:
        root, tag = _root_and_tag(file.url)
        if tag is None:
            beside.append(file)
            continue
        if not _READ.fullmatch(PurePosixPath(tag).name):
            ledger.skip(OTHER_BUCKET, file.path)
            continue
        signals = _signals_of(root, tag, known, looked_up) if with_signals else None
        files.append(
            InputFile(
                url=file.url,
                name=f"{_DOCUMENTS}/{tag}",
                kind="redpajama-v2",
                num_bytes=file.num_bytes,
                version=file.version,
                signals_url=signals.url if signals else None,
                signals_version=signals.version if signals else None,
                tag=tag,
            )
        )
    signals_read = {file.signals_url for file in files}
    for file in beside:
        if file.url not in signals_read:
            ledger.skip(NO_DOCUMENTS, file.path)
    if not files:
        raise InputError(
            f"{source}: RedPajama-v2 is read from documents/SNAPSHOT/SHARD/en_head.json.gz and en_middle.json.gz, got "
            f"{listed[0].path}. Name the folder that holds documents/, or leave the layout out."
        )
    return files


def _root_and_tag(url: str) -> tuple[str, str | None]:
    """Split a path at documents/: the part before it, and the part behind it or None."""
    root, separator, tag = url.rpartition(f"/{_DOCUMENTS}/")
    return root, tag if separator else None


def _signals_of(root: str, tag: str, known: dict[str, ListedFile], looked_up: set[str]) -> ListedFile:
    folder, _, name = tag.rpartition("/")
    stem, dot, suffixes = name.partition(".")
    url = "/".join(part for part in (root, _SIGNALS, folder, f"{stem}.signals{dot}{suffixes}") if part)
    snapshot = "/".join((root, _SIGNALS, *folder.split("/")[:1]))
    if url not in known and snapshot not in looked_up:  # one listing per snapshot
        looked_up.add(snapshot)
        with contextlib.suppress(InputError):  # said below, with the name of the file
            known.update((file.url, file) for file in describe_inputs(snapshot))
    if url not in known:
        raise InputError(
            f"{root}/{_DOCUMENTS}/{tag}: filters need its quality signals in {url}, which does not exist. "
            "Copy quality_signals/ beside documents/, or leave out the filters on signals."
        )
    return known[url]


def read_redpajama(file: InputFile, *, room_bytes: int | None = None) -> Iterator[Record]:
    """The documents of one file; with a file of signals, each joined with its signals.

    A joined record has the document's fields, the signals by their names, and the whole `quality_signals` and
    `metadata`.

    Args:
        file: as the listing gave it.
        room_bytes: of `read_lines`.

    Raises:
        CorruptInputError: the two files differ in length, or a line of signals belongs to another document.
    """
    if file.signals_url is None:
        yield from read_lines(file.url, room_bytes=room_bytes)
        return
    pairs = zip_longest(read_lines(file.url, room_bytes=room_bytes), read_lines(file.signals_url))
    for row, (document, signals) in enumerate(pairs):
        if document is None or signals is None:
            number = (document or signals or (0,))[0]
            longer, shorter = (file.url, file.signals_url) if signals is None else (file.signals_url, file.url)
            raise CorruptInputError(
                f"{longer}:{number}: every document must have its line of signals, {shorter} ended before. "
                "Fetch both files again."
            )
        (number, fields), (line, quality) = document, signals
        if isinstance(fields, BadRecord):
            yield number, fields
            continue
        if isinstance(quality, BadRecord):
            yield number, replace(quality, text=f"in its quality signals, {quality.text}")
            continue
        expected, got = f"{file.tag}/{row}", quality.get("id")
        if got != expected:
            raise CorruptInputError(
                f"{file.signals_url}:{line}: the signals must be those of {file.url}:{number}, {expected}, "
                f"got the id {got!r}. Fetch both files again."
            )
        yield number, _joined(fields, quality)


def _joined(document: dict[str, Any], signals: dict[str, Any]) -> dict[str, Any]:
    quality = signals.get(_SIGNALS)
    named = quality if isinstance(quality, dict) else {}
    return {**named, **{key: signals[key] for key in (_SIGNALS, "metadata") if key in signals}, **document}
