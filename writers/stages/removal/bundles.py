"""Bundles: consecutive documents of some groups, of which a task of the search for duplicates reads what it needs.

Groups follow files and hold any number of documents; bundles hold about equally many. A bundle is some whole groups,
or a part of a large one that begins and ends with a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.array_files import ArrayFile
from crisp_stream.writers.cleaning.duplicates import packed_places
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.batches import PLACE

_LOCAL_GAP_BYTES, _REMOTE_GAP_BYTES = 1 << 12, 1 << 16
"""Rows that are not wanted are read, too, where they take no more than this between two that are."""
_SPAN_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive documents of a group."""

    group: int
    """Number of its `DocumentsTask`."""
    key: str
    """That task's key."""
    start: int
    stop: int
    first_place: int
    """No document of the stretch has a lower place, and none before it as high a one."""


Bundle = tuple[Stretch, ...]


def bundles_of(units: Iterator[Stretch], bundle_documents: int) -> Iterator[Bundle]:
    """Join consecutive stretches while they hold at most so many documents; a larger one stays alone."""
    held: list[Stretch] = []
    num_held = 0
    for unit in units:
        count = unit.stop - unit.start
        if held and num_held + count > bundle_documents:
            yield tuple(held)
            held, num_held = [], 0
        held.append(unit)
        num_held += count
    if held:
        yield tuple(held)


def stretches_of_group(documents_per_batch: Sequence[int], bundle_documents: int) -> list[tuple[int, int]]:
    """Cut a group into stretches (start, stop) of at most so many documents, where batches end; a larger batch stays
    whole."""
    ends = list(itertools.accumulate(documents_per_batch))
    cuts = [0]
    for end, following in itertools.pairwise([*ends, 0]):
        if following - cuts[-1] > bundle_documents:
            cuts.append(end)
    return list(itertools.pairwise([*cuts, ends[-1]])) if ends else []


class BundleArrays:
    """The arrays of a bundle's documents, each read when it is asked for."""

    def __init__(self, workspace: Workspace, bundle: Bundle) -> None:
        self._workspace, self._bundle = workspace, bundle

    def places(self) -> NDArray[np.uint64]:
        """The places of the documents."""
        files = [
            ArrayFile(self._workspace.store, f"{one.key}.places.npy", PLACE, shape=(None,)).read(
                one.start, one.stop - one.start
            )
            for one in self._bundle
        ]
        places = np.concatenate([np.empty(0, PLACE), *files])
        return packed_places(places["file"], places["row"])

    def digests(self) -> NDArray[np.uint64]:
        """[num_documents, 2]."""
        read = [
            ArrayFile(self._workspace.store, f"{one.key}.digests.npy", np.uint64, shape=(None, 2)).read(
                2 * one.start, 2 * (one.stop - one.start)
            )
            for one in self._bundle
        ]
        return np.concatenate(read).reshape(-1, 2)

    def keys(self, num_bands: int) -> Iterator[NDArray[np.uint64]]:
        """The keys of all documents, band by band."""
        files = [
            ArrayFile(self._workspace.store, f"{one.key}.bands.npy", np.uint64, shape=(num_bands, None))
            for one in self._bundle
        ]
        for band in range(num_bands):
            yield np.concatenate(
                [
                    file.read(band * file.shape[1] + one.start, one.stop - one.start)
                    for file, one in zip(files, self._bundle, strict=True)
                ]
            )

    def minima(self, positions: NDArray[np.int64], num_minima: int) -> NDArray[np.uint8]:
        """[num_positions, num_minima] of the documents at these positions, which ascend; near ones are read at once."""
        taken = np.empty((len(positions), num_minima), np.uint8)
        gap_bytes = _LOCAL_GAP_BYTES if self._workspace.store.is_local else _REMOTE_GAP_BYTES
        counts = [one.stop - one.start for one in self._bundle]
        firsts = np.cumsum([0, *counts])
        borders = np.searchsorted(positions, firsts).tolist()
        for number, (begin, end) in enumerate(itertools.pairwise(borders)):
            if begin == end:
                continue
            one = self._bundle[number]
            file = ArrayFile(self._workspace.store, f"{one.key}.minima.npy", np.uint8, shape=(None, num_minima))
            rows = positions[begin:end] - firsts[number] + one.start
            for first, stop in _spans(rows, num_minima, gap_bytes):
                low, count = int(rows[first]), int(rows[stop - 1] - rows[first]) + 1
                span = file.read(low * num_minima, count * num_minima).reshape(count, num_minima)
                taken[begin + first : begin + stop] = span[rows[first:stop] - low]
        return taken


def _spans(rows: NDArray[np.int64], row_bytes: int, gap_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of `rows` that are read at once."""
    is_far = np.diff(rows) * row_bytes > gap_bytes
    for start, stop in itertools.pairwise([0, *(np.flatnonzero(is_far) + 1).tolist(), len(rows)]):
        while start < stop:
            end = int(np.searchsorted(rows[start:stop], rows[start] + max(_SPAN_BYTES // row_bytes, 1))) + start
            yield start, end
            start = end
