"""Rows that the tasks of one stage leave for numbered tasks of a later one: a shuffle by files.

Each source writes one file with the rows of all destinations, one after another, and where those of each begin. So a
destination reads its stretch of every file, with two reads of a range per source, from a folder or an object store;
nothing is read twice, and no process holds more than a piece. Within a destination rows keep the order of the sources,
and of each source's rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError
from crisp_stream.writers.engine.workspace import Workspace

PIECE_BYTES = 4 << 20
"""Rows that are read at once, about."""
_THREADS = 16
"""Requests to an object store at once."""
_BORDER = np.dtype("<u8")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ExchangeWriter:
    """Takes the rows of a source, destination by destination."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], num_destinations: int) -> None:
        self._file, self._dtype = file, dtype
        self._counts = np.zeros(num_destinations, np.int64)
        self._last = 0
        self.num_rows = 0

    def add(self, rows: NDArray[np.void], destinations: NDArray[np.int64]) -> None:
        """Write rows; `destinations` never go down, neither here nor from one call to the next."""
        if not len(rows):
            return
        assert rows.dtype == self._dtype
        assert destinations[0] >= self._last
        assert (np.diff(destinations) >= 0).all()
        self._last = int(destinations[-1])
        self._counts += np.bincount(destinations, minlength=len(self._counts))
        self._file.write(np.ascontiguousarray(rows).data)
        self.num_rows += len(rows)

    def add_unsorted(self, rows: NDArray[np.void], destinations: NDArray[np.int64]) -> None:
        """Write rows in the order of their destinations; those of each keep their order."""
        order = np.argsort(destinations, kind="stable")
        self.add(rows[order], destinations[order])

    def borders(self) -> NDArray[np.uint64]:
        """[num_destinations + 1], first row of each."""
        return np.concatenate([[0], np.cumsum(self._counts)]).astype(_BORDER)


class _Stretch(NamedTuple):
    name: str
    start: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The files of a stage. Their names follow from few values, so that no task has to list them."""

    stage: str
    fingerprint: str
    num_sources: int
    num_destinations: int
    dtype: np.dtype[Any]

    def names(self, source: int) -> tuple[str, str]:
        """The files of a source: rows and borders."""
        stem = f"{self.stage}/{source:06d}-{self.fingerprint}"
        return f"{stem}.rows", f"{stem}.borders"

    @contextlib.contextmanager
    def created(self, workspace: Workspace, source: int) -> Iterator[ExchangeWriter]:
        """Take the rows of a source; its files are there when the block ends."""
        rows, borders = self.names(source)
        with workspace.created(rows) as path, path.open("wb") as file:
            writer = ExchangeWriter(file, self.dtype, self.num_destinations)
            yield writer
        workspace.write(borders, writer.borders().tobytes())

    def pieces(
        self, workspace: Workspace, destination: int, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[NDArray[np.void]]:
        """The rows of a destination, in pieces of about `piece_bytes` that are never empty."""
        yield from self._joined(workspace, self._stretches(workspace, destination), piece_bytes)

    def rows(self, workspace: Workspace, destination: int) -> NDArray[np.void]:
        """All rows of a destination."""
        return np.concatenate([np.empty(0, self.dtype), *self.pieces(workspace, destination)])

    def pieces_of_source(self, workspace: Workspace, source: int) -> Iterator[NDArray[np.void]]:
        """The rows of a source for all destinations, in pieces."""
        name = self.names(source)[0]
        num_rows = workspace.store.object_bytes(name) // self.dtype.itemsize
        yield from self._joined(workspace, iter([_Stretch(name, 0, num_rows)]), PIECE_BYTES)

    def rows_of(self, workspace: Workspace, source: int, destination: int) -> NDArray[np.void]:
        """The rows of one source for one destination."""
        stretch = self._stretch(workspace, source, destination)
        return self._read(workspace, stretch) if stretch.num_rows else np.empty(0, self.dtype)

    def _stretches(self, workspace: Workspace, destination: int) -> Iterator[_Stretch]:
        yield from _in_order(
            workspace, lambda source: self._stretch(workspace, source, destination), iter(range(self.num_sources))
        )

    def _stretch(self, workspace: Workspace, source: int, destination: int) -> _Stretch:
        rows, borders = self.names(source)
        content = workspace.store.get_range(borders, destination * _BORDER.itemsize, 2 * _BORDER.itemsize)
        if len(content) != 2 * _BORDER.itemsize:
            raise FormatError(f"{workspace.url}/{borders}: is cut short. Remove it, so that it is made again.")
        start, stop = np.frombuffer(content, _BORDER).tolist()
        return _Stretch(rows, start, stop - start)

    def _joined(
        self, workspace: Workspace, stretches: Iterator[_Stretch], piece_bytes: int
    ) -> Iterator[NDArray[np.void]]:
        rows_per_piece = max(piece_bytes // self.dtype.itemsize, 1)
        cut = (
            _Stretch(one.name, start, min(rows_per_piece, one.start + one.num_rows - start))
            for one in stretches
            for start in range(one.start, one.start + one.num_rows, rows_per_piece)
        )
        held: list[NDArray[np.void]] = []
        num_held = 0
        for rows in _in_order(workspace, lambda stretch: self._read(workspace, stretch), cut):
            held.append(rows)
            num_held += len(rows)
            if num_held >= rows_per_piece:
                yield np.concatenate(held)
                held, num_held = [], 0
        if held:
            yield np.concatenate(held)

    def _read(self, workspace: Workspace, stretch: _Stretch) -> NDArray[np.void]:
        row_bytes = self.dtype.itemsize
        content = workspace.store.get_range(stretch.name, stretch.start * row_bytes, stretch.num_rows * row_bytes)
        if len(content) != stretch.num_rows * row_bytes:
            raise FormatError(f"{workspace.url}/{stretch.name}: is cut short. Remove it, so that it is made again.")
        return np.frombuffer(content, self.dtype)


def _in_order(workspace: Workspace, function: Callable[[Item], Result], items: Iterator[Item]) -> Iterator[Result]:
    """`map`; where each call is a request to an object store, some at once."""
    if workspace.store.is_local:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        running = []
        for item in items:
            running.append(threads.submit(function, item))
            if len(running) == _THREADS:
                yield running.pop(0).result()
        yield from (future.result() for future in running)
