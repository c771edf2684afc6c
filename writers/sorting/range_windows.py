"""The windows of a range of keys in their order, from all sources: what a task that writes shards or embeddings reads.

The keys of the range, and those of the next one where the last shard reaches into it, are read and sorted (28 bytes a
window meanwhile, 8 afterwards, and 8 for places), earlier sources first among equal keys. From then on every stretch of
the order is known to be a stretch of each source, and is read from them into its place. Where many sources have a row
or two of a shard each, opening them is what it costs; so small columns are read once for the range and held. From an
object store, large ones are first brought to local disk, in one request per source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.engine.workspace import Workspace, scratch_folder
from crisp_stream.writers.sorting.key_sources import Read, Sources, leaves_of, read_rows
from crisp_stream.writers.sorting.ranges import KeyRange

_THREADS = 8
_REQUEST_BYTES = 16 << 20
"""Read from an object store at once, by each thread."""


class Column(Protocol):
    """Something that every window of the range has."""

    def rows(self, source: Any, row: int, line: int, count: int) -> NDArray[Any]:
        """Rows of a source from `row` on, which stand in the line of all of them from `line` on."""
        ...


class InPlace:
    """A column that is read from its sources."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def rows(self, source: Any, row: int, line: int, count: int) -> NDArray[Any]:
        """See Column."""
        return self._read(source, row, row + count)


class _Held:
    """A column in memory, in the order of the line."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def rows(self, source: Any, row: int, line: int, count: int) -> NDArray[Any]:
        """See Column."""
        return self._array[line : line + count]


class _Brought:
    """A column that was brought to one local file, in the order of the line."""

    def __init__(self, descriptor: int, dtype: Any, row_shape: tuple[int, ...]) -> None:
        self._descriptor, self._dtype, self._row_shape = descriptor, np.dtype(dtype), row_shape
        self._row_bytes = _row_bytes(dtype, row_shape)

    def rows(self, source: Any, row: int, line: int, count: int) -> NDArray[Any]:
        """See Column."""
        content = os.pread(self._descriptor, count * self._row_bytes, line * self._row_bytes)
        return np.frombuffer(content, self._dtype).reshape(count, *self._row_shape)


def _row_bytes(dtype: Any, row_shape: tuple[int, ...]) -> int:
    return int(np.prod(row_shape, dtype=np.int64)) * np.dtype(dtype).itemsize


class RangeWindows:
    """The windows of a range in their order."""

    def __init__(self, sources: Sources, part: KeyRange) -> None:
        """Read and sort the keys. Raises CorruptDataError, StorageError."""
        found, first, end, following = _stretches(sources.workspace, part)
        own, behind = _read_keys(sources, found, first, end, following if part.extra else end)
        own_starts, behind_starts = _starts(end - first), _starts(following - end)
        skipped = _of_smallest(own, own_starts, part.skip)
        more = _of_smallest(behind, behind_starts, part.extra)
        wanted = (end - first) - skipped + more
        line_starts = _starts(wanted)
        keys = np.empty(int(line_starts[-1]), np.uint64)
        for at in range(len(found)):
            middle = line_starts[at] + wanted[at] - more[at]
            keys[line_starts[at] : middle] = own[own_starts[at] + skipped[at] : own_starts[at + 1]]
            keys[middle : line_starts[at + 1]] = behind[behind_starts[at] : behind_starts[at] + more[at]]
        del own, behind
        if len(keys) != part.num_windows:
            raise AssertionError(f"{len(keys)} windows were found in a range of {part.num_windows}")
        self._order = np.argsort(keys, kind="stable").astype(np.uint32)
        self.leaves: NDArray[np.uint32] = leaves_of(keys)[self._order]
        """[num_windows], sorted."""
        present = wanted > 0
        self._sources, self._first_rows = found[present], (first + skipped)[present]
        self._line_starts = np.append(line_starts[:-1][present], line_starts[-1])

    def __len__(self) -> int:
        return len(self._order)

    def fill(self, start: int, stop: int, columns: Sequence[tuple[NDArray[Any], Column]]) -> None:
        """Fill arrays, [stop - start] each, with windows start … stop - 1 of the order."""
        places = np.argsort(self._order[start:stop])
        lines = self._order[start:stop][places]
        owners = np.searchsorted(self._line_starts, lines, side="right") - 1
        borders = np.flatnonzero(np.diff(owners, prepend=-1))
        of_borders = owners[borders]
        rows = self._first_rows[of_borders] + lines[borders] - self._line_starts[of_borders]
        found = zip(of_borders.tolist(), rows.tolist(), lines[borders].tolist(), strict=True)
        for (owner, row, line), (low, high) in zip(found, pairwise([*borders.tolist(), len(lines)]), strict=True):
            for array, column in columns:
                array[places[low:high]] = column.rows(self._sources[owner], row, line, high - low)

    def held(self, read: Read, dtype: Any, row_shape: tuple[int, ...], *, alone: bool) -> Column:
        """A column whose rows are read from all sources now, with threads unless `alone`."""
        array = np.empty((len(self), *row_shape), dtype)

        def bring(at: int) -> None:
            first, line, end = int(self._first_rows[at]), int(self._line_starts[at]), int(self._line_starts[at + 1])
            array[line:end] = read(self._sources[at], first, first + end - line)

        _in_threads(bring, len(self._sources), alone=alone)
        return _Held(array)

    @contextmanager
    def brought(self, read: Read, dtype: Any, row_shape: tuple[int, ...]) -> Iterator[Column]:
        """A column whose rows are brought from all sources to local disk, for as long as the block."""
        row_bytes = _row_bytes(dtype, row_shape)
        rows_at_once = max(1, _REQUEST_BYTES // row_bytes)
        with scratch_folder() as folder, (folder / "rows").open("w+b", buffering=0) as file:
            descriptor = file.fileno()

            def bring(at: int) -> None:
                first, line, end = int(self._first_rows[at]), int(self._line_starts[at]), int(self._line_starts[at + 1])
                for start in range(line, end, rows_at_once):
                    stop = min(end, start + rows_at_once)
                    rows = read(self._sources[at], first + start - line, first + stop - line)
                    _write(descriptor, np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data, start * row_bytes)

            _in_threads(bring, len(self._sources))
            yield _Brought(descriptor, dtype, row_shape)


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _read_keys(
    sources: Sources, found: NDArray[Any], first: NDArray[Any], end: NDArray[Any], following: NDArray[Any]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Keys between first and end of all sources, and those between end and following, one source after the other."""
    own_starts, behind_starts = _starts(end - first), _starts(following - end)
    own, behind = (np.empty(int(starts[-1]), np.uint64) for starts in (own_starts, behind_starts))

    def read(at: int) -> None:
        keys = sources.keys(found[at], int(first[at]), int(following[at]))
        middle = int(end[at] - first[at])
        own[own_starts[at] : own_starts[at + 1]] = keys[:middle]
        behind[behind_starts[at] : behind_starts[at + 1]] = keys[middle:]

    _in_threads(read, len(found), alone=sources.are_local)
    return own, behind


def _in_threads(work: Callable[[int], object], count: int, *, alone: bool = False) -> None:
    """Call `work` with 0 … count - 1, in threads unless it is done faster alone."""
    if alone:
        for number in range(count):
            work(number)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(work, range(count)):
            pass


def _starts(lengths: NDArray[Any]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(lengths, dtype=np.int64))


def _of_smallest(keys: NDArray[np.uint64], starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """How many of the first keys of each sorted stretch are among the `count` smallest of all.

    Args:
        keys: of all stretches; of equal ones those of earlier stretches are smaller.
        starts: [num_stretches + 1] in `keys`.
        count: at most len(keys).
    """
    lengths = np.diff(starts)
    if count == 0:
        return np.zeros(len(lengths), np.int64)
    limit = np.partition(keys, count - 1)[count - 1]
    stretches = [keys[start:stop] for start, stop in pairwise(starts.tolist())]
    less = np.array([np.searchsorted(one, limit) for one in stretches], np.int64)
    equal = np.array([np.searchsorted(one, limit, side="right") for one in stretches], np.int64) - less
    before = np.cumsum(equal) - equal
    return less + np.clip(count - less.sum() - before, 0, equal)


def _stretches(workspace: Workspace, part: KeyRange) -> tuple[NDArray[Any], ...]:
    """Sources that have windows of the range or the next one, and where each stands at its three cuts."""
    bundles: list[str] = json.loads(workspace.read(f"{part.ranges}/bundles.json"))

    def read(at: int) -> None:
        sources = workspace.load_array(f"{bundles[at]}.sources.npy")
        name, shape = f"{bundles[at]}.positions.npy", (len(sources),)
        rows = [read_rows(workspace.store, name, np.uint32, shape, cut, cut + 1)[0] for cut in part.cuts]
        stop = rows[2] if part.extra else rows[1]
        present = stop > rows[0]
        found[at] = (sources[present], *(row[present].astype(np.int64) for row in rows))

    found: dict[int, tuple[NDArray[Any], ...]] = {}
    _in_threads(read, len(bundles), alone=workspace.folder is not None)
    return tuple(np.concatenate([found[at][kind] for at in range(len(bundles))]) for kind in range(4))
