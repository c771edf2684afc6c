"""The deep part of a verification: keys, places and documents of all windows against each other.

The documents of a part determine which windows it gives. So a sum of hashes over a part's windows, once as its
documents want them and once as the shards have them, shows in 16 bytes per part that none is missing, twice there or
wrong (but for a chance of 2^-64); only where the sums differ are places gathered, to name the one that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import CrispError, FormatError, MissingObjectError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.keys import window_keys
from crisp_stream.format.manifest import DROPPED, TABLES, places_path
from crisp_stream.format.parquet import DAMAGE
from crisp_stream.format.provenance import (
    PLACE,
    PLACES_HEADER_BYTES,
    DocumentsTable,
    PartSpans,
    documents_tables,
    has_provenance,
    read_places,
    source_names,
)
from crisp_stream.hashing import splitmix64_finalise

SHOWN_PARTS = 4
"""Wrong parts whose places are gathered and named."""
_MAX_TOKENS = 1 << 40


class PlacesCheck:
    """Check of the order and the provenance of windows, fed shard by shard."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._tables: list[DocumentsTable] = []
        self._expected = _PartSums(np.zeros(0, np.int64))
        self._read = _PartSums(np.zeros(0, np.int64))
        self._with_tables = False
        self._with_places = True
        self._left_out: set[int] = set()
        self._out_of_order: dict[int, int] = {}
        """Shard to the first of its windows that is out of order."""
        self._last: tuple[int, int, int] | None = None
        """Key, part and place of the last window."""
        self._windows_per_leaf = np.zeros(len(dataset.leaves), np.int64)
        self._unknown_leaf: int | None = None

    def read_tables(self) -> list[str]:
        """Read all of provenance but the places. Returns its problems."""
        if not has_provenance(self._dataset):
            self._with_places = False
            return ["provenance: missing, because the dataset was written without it: its order cannot be compared"]
        problems: list[str] = []
        try:
            num_sources = len(source_names(self._dataset))
            self._tables = documents_tables(self._dataset)
        except CrispError as error:
            return [str(error)]
        parts: list[int] = []
        sums: list[NDArray[np.uint64]] = []
        if not self._tables:
            return [f"{self._dataset.own_path(TABLES)}: lists no table of documents, of which every window is"]
        ends = [table.first_part for table in self._tables[1:]] + [1 << 32]
        for table, end in zip(self._tables, ends, strict=True):
            try:
                for spans in table.parts():
                    _check_spans(self._dataset, table, spans, (parts or [-1])[-1], end, num_sources)
                    parts.append(spans.part)
                    sums.append(_set_sum(spans.part, _expected_places(self._dataset, spans)))
            except CrispError as error:
                problems.append(str(error))
            finally:
                table.close()
        self._expected, self._read = _PartSums(np.array(parts, np.int64)), _PartSums(np.array(parts, np.int64))
        if sums:
            self._expected.sums[:] = np.stack(sums)
        self._with_tables = not problems
        return problems + self._dropped_problem()

    def _dropped_problem(self) -> list[str]:
        path = self._dataset.own_path(DROPPED)
        try:
            file = pq.ParquetFile(pa.BufferReader(self._dataset.store.get(path)), pre_buffer=False)
            for number in range(file.num_row_groups):
                file.read_row_group(number, use_threads=False)
        except MissingObjectError:
            return []
        except DAMAGE as error:
            return [f"{path}: not a readable table ({error})"]
        return []

    def begin(self, shard: int) -> str | None:
        """Check the form of the file of places of a shard, before its windows are added. Returns a problem."""
        if not self._with_places:
            return None
        row = self._dataset.shards[shard]
        path, store = places_path(row.path), self._dataset.store
        expected = PLACES_HEADER_BYTES + row.num_windows * PLACE.itemsize
        size = store.object_bytes(path)
        if size != expected:
            return f"{path}: has {size} bytes, the places of {row.num_windows} windows need {expected}"
        if store.get_range(path, 0, PLACES_HEADER_BYTES) != _places_header(row.num_windows):
            return f"{path}: is not a .npy file of u32[{row.num_windows}, 2]"
        return None

    def add(self, shard: int, start: int, samples: NDArray[Any]) -> str | None:
        """Add the next windows of a shard, whose checksums match. Returns a problem where a place cannot be."""
        self._count_leaves(samples["cluster"])
        if not self._with_places:
            return None
        places = read_places(self._dataset, shard, start, len(samples))
        pairs = places.view(np.uint32).reshape(-1, 2)
        keys = window_keys(samples["cluster"], pairs, self._dataset.manifest.sort_seed)
        at = _first_not_above(self._last, keys, places)
        if at is not None:
            first = int(self._dataset.first_window_per_shard[shard])
            self._out_of_order.setdefault(shard, first + start + at)
        self._last = (int(keys[-1]), int(places["part"][-1]), int(places["place"][-1]))
        unknown = self._read.add(pairs) if self._with_tables else None
        if unknown is not None:
            window = int(self._dataset.first_window_per_shard[shard]) + start + unknown
            return (
                f"{places_path(self._dataset.shards[shard].path)}: window {window} is said to be of part "
                f"{places['part'][unknown]}, which no table of documents has"
            )
        return None

    def _count_leaves(self, clusters: NDArray[np.uint32]) -> None:
        leaves, counts = np.unique(clusters, return_counts=True)
        at = np.minimum(np.searchsorted(self._dataset.leaves, leaves), len(self._dataset.leaves) - 1)
        known = self._dataset.leaves[at] == leaves
        self._windows_per_leaf[at[known]] += counts[known]
        if not known.all() and self._unknown_leaf is None:
            self._unknown_leaf = int(leaves[~known][0])

    def leave_out(self, shard: int) -> None:
        """Leave out a shard that has another problem: neither its order nor sums over all windows say anything."""
        self._left_out.add(shard)
        self._out_of_order.pop(shard, None)
        self._last = None

    def finish(self) -> list[str]:
        """List the problems that show only when all windows were added."""
        comparable = not self._left_out
        wrong = self._expected.differing(self._read) if comparable and self._with_tables else None
        problems = list(self._order_problems(wrong))
        if wrong is not None and len(wrong) and not problems:
            problems += _name_wrong(self._dataset, self._tables, wrong)
        if comparable and not problems:
            problems += self._leaf_problems()
        return problems

    def _order_problems(self, wrong: NDArray[np.int64] | None) -> Iterator[str]:
        for shard, window in self._out_of_order.items():
            path = self._dataset.shards[shard].path
            if wrong is None:
                yield (
                    f"{path}: window {window} stands out of order, or its place in {places_path(path)} is damaged; "
                    "verify again when the other problems are mended"
                )
            elif len(wrong):
                yield (
                    f"{places_path(path)}: damaged at window {window} or the one before: its place is not that of a "
                    "window there"
                )
            else:
                yield f"{path}: window {window} stands out of order: windows of a leaf are sorted by their hash"

    def _leaf_problems(self) -> Iterator[str]:
        dataset = self._dataset
        table = dataset.own_path("clusters.parquet")
        if self._unknown_leaf is not None:
            yield f"{table}: lacks leaf {self._unknown_leaf}, of which the shards hold windows"
            return
        differing = np.flatnonzero(self._windows_per_leaf != dataset.windows_per_leaf)
        if len(differing):
            at = int(differing[0])
            yield (
                f"{table}: says {dataset.windows_per_leaf[at]} windows of leaf {dataset.leaves[at]}, the shards hold "
                f"{self._windows_per_leaf[at]} ({len(differing)} such leaves)"
            )


class _PartSums:
    """Number of windows and sum of their hashes, by part."""

    def __init__(self, parts: NDArray[np.int64]) -> None:
        self.parts = parts
        self.sums = np.zeros((len(parts), 2), np.uint64)

    def add(self, pairs: NDArray[np.uint32]) -> int | None:
        """Add windows, [num_windows, 2]. Returns the first of an unknown part, if there is one."""
        parts = pairs[:, 0].astype(np.int64)
        at = np.searchsorted(self.parts, parts)
        unknown = at == len(self.parts)
        unknown[~unknown] = self.parts[at[~unknown]] != parts[~unknown]
        if unknown.any():
            return int(np.flatnonzero(unknown)[0])
        np.add.at(self.sums[:, 0], at, np.uint64(1))
        np.add.at(self.sums[:, 1], at, _hashes(pairs))
        return None

    def differing(self, other: _PartSums) -> NDArray[np.int64]:
        """List the parts in which the two differ."""
        return self.parts[(self.sums != other.sums).any(axis=1)]


def _hashes(pairs: NDArray[np.uint32]) -> NDArray[np.uint64]:
    identity = pairs[:, 0].astype(np.uint64) << np.uint64(32) | pairs[:, 1].astype(np.uint64)
    return splitmix64_finalise(identity ^ np.uint64(0x5851F42D4C957F2D))


def _set_sum(part: int, places: NDArray[np.int64]) -> NDArray[np.uint64]:
    pairs = np.stack([np.full(len(places), part, np.uint32), places.astype(np.uint32)], axis=1)
    return np.array([len(places), _hashes(pairs).sum(dtype=np.uint64)], np.uint64)


def _places_header(num_windows: int) -> bytes:
    """Make the header of a .npy file of u32[num_windows, 2], as numpy writes it."""
    described = f"{{'descr': '<u4', 'fortran_order': False, 'shape': ({num_windows}, 2), }}"
    return b"\x93NUMPY\x01\x00\x76\x00" + described.encode().ljust(PLACES_HEADER_BYTES - 11) + b"\n"


def _first_not_above(last: tuple[int, int, int] | None, keys: NDArray[np.uint64], places: NDArray[Any]) -> int | None:
    """Find the first window that does not stand after the one before it in the order (key, part, place)."""
    before = np.empty(len(keys), np.bool_)
    part, place = places["part"], places["place"]
    later = (part[1:] > part[:-1]) | ((part[1:] == part[:-1]) & (place[1:] > place[:-1]))
    before[1:] = (keys[1:] > keys[:-1]) | ((keys[1:] == keys[:-1]) & later)
    before[0] = last is None or (int(keys[0]), int(part[0]), int(place[0])) > last
    return None if before.all() else int(np.argmin(before))


def _check_spans(
    dataset: Dataset, table: DocumentsTable, spans: PartSpans, last_part: int, end_part: int, num_sources: int
) -> None:
    """Check that a part's documents follow one another. Raises FormatError."""
    path, window_tokens = table.path, dataset.manifest.window_tokens
    if not max(last_part + 1, table.first_part) <= spans.part < end_part:
        raise FormatError(f"{path}: part {spans.part} does not belong there. Restore it.")
    if (spans.files >= num_sources).any():
        raise FormatError(f"{path}: part {spans.part} is of a file that the list of sources lacks. Restore it.")
    if (spans.num_tokens < 0).any() or (spans.num_tokens > _MAX_TOKENS).any():
        raise FormatError(f"{path}: part {spans.part} has a document of impossible length. Restore it.")
    room = _room(dataset, spans)
    if (spans.first_tokens != np.cumsum(room) - room).any():
        raise FormatError(f"{path}: the documents of part {spans.part} do not follow one another. Restore it.")
    if int(room.sum()) // window_tokens > dataset.manifest.num_windows + len(room):
        raise FormatError(f"{path}: part {spans.part} has more windows than the dataset. Restore it.")


def _room(dataset: Dataset, spans: PartSpans) -> NDArray[np.int64]:
    """Count the tokens that each document takes in the part's line, end-of-text and padding included."""
    if dataset.manifest.packing == "joined":
        return spans.num_tokens + 1
    window_tokens = dataset.manifest.window_tokens
    return -(-(spans.num_tokens + 1) // window_tokens) * window_tokens


def _expected_places(dataset: Dataset, spans: PartSpans) -> NDArray[np.int64]:
    """List the windows that a part gives: all that are full of tokens and hold one of a document."""
    window_tokens = dataset.manifest.window_tokens
    num_windows = int(_room(dataset, spans).sum()) // window_tokens
    filled = spans.num_tokens > 0
    first = spans.first_tokens[filled] // window_tokens
    last = (spans.first_tokens[filled] + spans.num_tokens[filled] - 1) // window_tokens
    edges = np.zeros(num_windows + 2, np.int64)
    np.add.at(edges, np.minimum(first, num_windows), 1)
    np.add.at(edges, np.minimum(last + 1, num_windows + 1), -1)
    return np.flatnonzero(np.cumsum(edges)[:num_windows] > 0)


def _name_wrong(dataset: Dataset, tables: list[DocumentsTable], wrong: NDArray[np.int64]) -> list[str]:
    """Name the wrong places of the wrong parts."""
    shown = wrong[:SHOWN_PARTS]
    window_of: dict[tuple[int, int], tuple[int, int]] = {}
    lines: list[str] = []
    expected = {int(part): _places_of_part(dataset, tables, int(part)) for part in shown}
    for shard in range(len(dataset.shards)):
        places = read_places(dataset, shard, 0, dataset.shards[shard].num_windows)
        path, first = places_path(dataset.shards[shard].path), int(dataset.first_window_per_shard[shard])
        for row in np.flatnonzero(np.isin(places["part"], shown)):
            part, place = int(places["part"][row]), int(places["place"][row])
            if place not in expected[part]:
                lines.append(f"{path}: window {first + row} is said to be place {place} of part {part}, which has none")
            elif (part, place) in window_of:
                other = window_of[part, place]
                lines.append(
                    f"{path}: window {first + row} is said to be place {place} of part {part}, as is window {other[1]} "
                    f"in {places_path(dataset.shards[other[0]].path)}; one of the two files is damaged"
                )
            window_of[part, place] = (shard, first + int(row))
    if lines:
        return lines
    table = max((one for one in tables if one.first_part <= int(wrong[0])), key=lambda one: one.first_part)
    return [f"{table.path}: part {wrong[0]} gives windows that the shards do not hold ({len(wrong)} such parts)"]


def _places_of_part(dataset: Dataset, tables: list[DocumentsTable], part: int) -> set[int]:
    table = max((one for one in tables if one.first_part <= part), key=lambda one: one.first_part)
    try:
        spans = table.part(part)
        return set() if spans is None else set(_expected_places(dataset, spans).tolist())
    finally:
        table.close()
