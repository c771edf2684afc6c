"""Provenance of windows: input file, document, tokens of it.

A shard has a file of places beside it, (part, place in the part) of every window in its order; tables of documents
hold the line of tokens of every part. So one window costs 8 bytes of the one and a row group of the other, wherever
the dataset is, and nothing is kept per window but these 8 bytes.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import CrispError, FormatError, InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import DOCUMENTS, SOURCES, TABLES, places_path
from crisp_stream.format.parquet import DAMAGE, numbers
from crisp_stream.storage.inputs import open_input
from crisp_stream.storage.store import local_path

PLACES_HEADER_BYTES = 128
"""Bytes before the places in their file; each window takes 8 bytes."""
PLACE = np.dtype([("part", "<u4"), ("place", "<u4")])

_TABLE_PATH = re.compile(re.escape(DOCUMENTS) + r"/[0-9]{6,9}(\.[0-9a-f]{8})?\.parquet")
_SPANS = {"file": pa.uint32(), "row": pa.int64(), "first_token": pa.int64(), "num_tokens": pa.int64()}
_COLUMNS = {"part": pa.uint32(), **_SPANS}


@dataclass(frozen=True, kw_only=True)
class DocumentSpan:
    """The part of a document that is in a window."""

    source: str
    """Name of the input file."""
    row: int
    """Number of the document in its file."""
    id: str | None
    """Id of the document in its file, where the write named an id column."""
    first_token: int
    """First token of the document that is in the window."""
    num_tokens: int
    """Tokens of the document in the window, without end-of-text."""
    at: int
    """Token of the window where the document's begin."""


@dataclass(frozen=True, kw_only=True)
class WindowSource:
    """Part and documents that a window came from."""

    window: int
    part: int
    place: int
    """Number of the window in the part: its first token is place · window_tokens of the part."""
    documents: list[DocumentSpan]
    """Documents in the order of the window."""


@dataclass(frozen=True, kw_only=True)
class PartSpans:
    """The documents of a part as columns, [num_documents] each."""

    part: int
    files: NDArray[np.uint32]
    rows: NDArray[np.int64]
    ids: list[str | None]
    first_tokens: NDArray[np.int64]
    """Positions in the part's line of tokens, which end-of-text and padding belong to."""
    num_tokens: NDArray[np.int64]


class DocumentsTable:
    """One table of documents: the parts of a group of input files."""

    def __init__(self, dataset: Dataset, path: str, first_part: int) -> None:
        """`first_part`: first part of the table, as the list of tables says; `path`: below the root of the dataset."""
        self.path, self.first_part = path, first_part
        self._dataset = dataset

    @cached_property
    def _file(self) -> pq.ParquetFile:
        try:
            source = _open(self._dataset, self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        try:
            file = pq.ParquetFile(pa.PythonFile(source, "r"), pre_buffer=False, page_checksum_verification=True)
            missing = [name for name in (*_COLUMNS, "id") if name not in file.schema_arrow.names]
        except DAMAGE as error:
            source.close()
            raise _unreadable(self.path, error) from error
        if missing:
            raise FormatError(f"{self.path}: column {missing[0]} is missing, it has {file.schema_arrow.names}.")
        return file

    def parts(self) -> Iterator[PartSpans]:
        """Read all parts with documents, in order; one is in memory at a time. Raises FormatError."""
        groups = map(self._row_group, range(self._file.metadata.num_row_groups))
        for part, same in groupby(chain.from_iterable(map(_by_part, groups)), key=itemgetter(0)):
            yield _spans(part, [rows for _, rows in same])

    def part(self, part: int) -> PartSpans | None:
        """Read the row groups of one part; None where it has no documents. Raises FormatError."""
        pieces: list[pa.Table] = []
        column = self._file.schema_arrow.names.index("part")
        for number in range(self._file.metadata.num_row_groups):
            known = self._file.metadata.row_group(number).column(column).statistics
            if known is None or not known.has_min_max or known.min <= part <= known.max:
                pieces += [rows for other, rows in _by_part(self._row_group(number)) if other == part]
        return _spans(part, pieces) if pieces else None

    def _row_group(self, number: int) -> pa.Table:
        try:
            return self._file.read_row_group(number, columns=[*_COLUMNS, "id"], use_threads=False)
        except DAMAGE as error:
            raise _unreadable(self.path, error) from error

    def close(self) -> None:
        """Close the file, if it is open."""
        if file := self.__dict__.pop("_file", None):
            file.close(force=True)


def has_provenance(dataset: Dataset) -> bool:
    """Whether the dataset says where its windows came from; it can be read without. Raises StorageError."""
    return dataset.store.exists(dataset.own_path(TABLES))


def documents_tables(dataset: Dataset) -> list[DocumentsTable]:
    """The tables of documents in the order of their parts.

    Raises:
        InputError: the dataset was written without provenance.
        FormatError: the list of tables is damaged. StorageError.
    """
    path = dataset.own_path(TABLES)
    if not has_provenance(dataset):
        raise InputError(
            f"{dataset.root}: where windows came from is not known, because {path} is missing: the dataset was written "
            "without provenance. Write it again with this version of crisp-stream."
        )
    table = _small_table(dataset, path, {"table": pa.string(), "first_part": pa.uint32()})
    names, first_parts = table["table"].to_pylist(), numbers(table["first_part"], pa.uint32()).astype(np.int64)
    for name in names:
        if not isinstance(name, str) or not _TABLE_PATH.fullmatch(name):
            raise FormatError(f"{path}: table must look like {DOCUMENTS}/000000.parquet, got {name!r}. Restore it.")
    if (np.diff(first_parts) <= 0).any():
        raise FormatError(f"{path}: first_part must be strictly increasing. Restore it.")
    return [DocumentsTable(dataset, name, first) for name, first in zip(names, first_parts.tolist(), strict=True)]


def source_names(dataset: Dataset) -> list[str]:
    """The names of the input files, by their number in the tables of documents. Raises FormatError, StorageError."""
    path = dataset.own_path(SOURCES)
    table = _small_table(dataset, path, {"file": pa.uint32(), "name": pa.string()})
    if not np.array_equal(numbers(table["file"], pa.uint32()), np.arange(len(table))):
        raise FormatError(f"{path}: file must count from 0. Restore it.")
    return [str(name) for name in table["name"].to_pylist()]


def source_listings(dataset: Dataset) -> list[tuple[str, int]]:
    """Names of the input files, and a number that differs when the content of a file was replaced; empty where the
    dataset does not say. Raises FormatError, StorageError."""
    names = source_names(dataset)
    table = pq.read_table(io.BytesIO(dataset.store.get(dataset.own_path(SOURCES))))
    if "listed" not in table.column_names or table["listed"].null_count:
        return []
    return list(zip(names, table["listed"].to_pylist(), strict=True))


def read_places(dataset: Dataset, shard: int, start: int, count: int) -> NDArray[Any]:
    """Read the places of some windows of a shard, [count] of PLACE, in one range request.

    Raises:
        FormatError: the file is cut short. StorageError: it is missing, or the storage failed.
    """
    path = places_path(dataset.shards[shard].path)
    content = dataset.store.get_range(path, PLACES_HEADER_BYTES + start * PLACE.itemsize, count * PLACE.itemsize)
    if len(content) != count * PLACE.itemsize:
        raise FormatError(f"{path}: ends before the places of all windows of its shard. Restore it.")
    return np.frombuffer(content, PLACE)


def document_spans(dataset: Dataset, window_ids: NDArray[np.int64]) -> list[WindowSource]:
    """Find the documents in some windows.

    Args:
        dataset: written with provenance.
        window_ids: [num_windows].

    Returns:
        One per window, in the order of `window_ids`.

    Raises:
        InputError: an id outside the dataset, or a dataset without provenance.
        FormatError: provenance is damaged. StorageError.
    """
    ids = np.asarray(window_ids, np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < dataset.manifest.num_windows:
        raise InputError(f"{dataset.root}: window ids must be 0 to {dataset.manifest.num_windows - 1}.")
    tables, names = documents_tables(dataset), source_names(dataset)
    first_parts = np.array([table.first_part for table in tables])
    shards = np.searchsorted(dataset.first_window_per_shard, ids, side="right") - 1
    places = [
        read_places(dataset, int(shard), int(window - dataset.first_window_per_shard[shard]), 1)[0]
        for shard, window in zip(shards, ids, strict=True)
    ]
    sources: dict[int, WindowSource] = {}
    parts = [int(place["part"]) for place in places]
    for part, group in groupby(sorted(range(len(ids)), key=parts.__getitem__), key=parts.__getitem__):
        table = tables[max(0, int(np.searchsorted(first_parts, part, side="right")) - 1)]
        with contextlib.closing(table):
            spans = table.part(part)
        for at in group:
            window, place = int(ids[at]), int(places[at]["place"])
            if spans is None:
                raise FormatError(f"{dataset.root}: part {part}, of window {window}, is in no table of documents.")
            documents = _spans_of_place(dataset, spans, place, names)
            sources[at] = WindowSource(window=window, part=part, place=place, documents=documents)
    return [sources[at] for at in range(len(ids))]


def _spans_of_place(dataset: Dataset, spans: PartSpans, place: int, names: list[str]) -> list[DocumentSpan]:
    start = place * dataset.manifest.window_tokens
    stop = start + dataset.manifest.window_tokens
    ends = spans.first_tokens + spans.num_tokens
    inside = np.flatnonzero((spans.first_tokens < stop) & (ends > start))
    return [
        DocumentSpan(
            source=names[file] if (file := int(spans.files[row])) < len(names) else f"file {file}",
            row=int(spans.rows[row]),
            id=spans.ids[row],
            first_token=max(0, start - int(spans.first_tokens[row])),
            num_tokens=min(stop, int(ends[row])) - max(start, int(spans.first_tokens[row])),
            at=max(0, int(spans.first_tokens[row]) - start),
        )
        for row in inside
    ]


def _by_part(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Consecutive rows of one part each."""
    if any(table[name].null_count for name in _COLUMNS):
        raise FormatError(f"{DOCUMENTS}: only ids may be null. Restore the table.")
    parts = numbers(table["part"], pa.uint32()).astype(np.int64)
    borders = np.flatnonzero(np.diff(parts, prepend=-1, append=-1)).tolist()
    for start, stop in pairwise(borders):
        yield int(parts[start]), table.slice(start, stop - start)


def _spans(part: int, pieces: list[pa.Table]) -> PartSpans:
    table = pa.concat_tables(pieces)
    files, rows, first_tokens, num_tokens = (numbers(table[name], kind) for name, kind in _SPANS.items())
    ids = table["id"].to_pylist()
    return PartSpans(part=part, files=files, rows=rows, ids=ids, first_tokens=first_tokens, num_tokens=num_tokens)


def _small_table(dataset: Dataset, path: str, columns: dict[str, pa.DataType]) -> pa.Table:
    try:
        with _open(dataset, path) as source:
            file = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
            table = file.read(columns=list(columns), use_threads=False)
            return pa.table([table[name].cast(kind) for name, kind in columns.items()], names=list(columns))
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def _open(dataset: Dataset, path: str) -> IO[bytes]:
    """A file of the dataset for reading by range."""
    root = local_path(dataset.root) if dataset.store.is_local else dataset.root
    return open_input(f"{root}/{path}")


def _unreadable(path: str, error: Exception) -> Exception:
    if isinstance(error, CrispError):
        return error
    return FormatError(f"{path}: not a readable table ({' '.join(str(error).split())}). Restore it.")
