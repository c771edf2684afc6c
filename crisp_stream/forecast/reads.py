"""Reads of the nodes of a run from an object store: the runs of windows that they fetch, and in how many requests.

Each node fetches each run that it needs once, into a cache that its processes share. Which windows form a run is the
plan of the reader (runs.py). Runs that lie side by side are joined into one request when a process needs them for the
same group of batches, so requests are found by walking the order as its processes do, in step with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from crisp_stream.forecast.result import Loader
from crisp_stream.loading.reader import REQUEST_BYTES
from crisp_stream.loading.runs import RunPlan, RunsOfWindows
from crisp_stream.order.blocks import BLOCK_SAMPLES
from crisp_stream.order.draws import Int64s, Rows
from crisp_stream.order.order import SampleOrder

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.mixture import Draw


class Fetched(NamedTuple):
    """Runs that are fetched, each by one node; arrays of [num_fetched]."""

    fetch: Int64s
    """Number of the group of batches that needs it, see `Loader.fetches`."""
    reader: Int64s
    shard: Int64s
    first: Int64s
    num_windows: Int64s


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Windows and requests of each reader."""

    windows_per_reader: Int64s
    """[num_readers], windows in the runs fetched."""
    requests_per_reader: Int64s
    """[num_readers]"""
    blocks: int
    """Blocks that were walked."""
    walked: bool
    """Whether the whole order was walked."""
    windows_exact: bool


class Plans:
    """The order of a run, and its plan of runs of windows of one source."""

    def __init__(
        self,
        dataset: Dataset,
        copied: Callable[[], SampleOrder],
        samples: int,
        *,
        stop: int | None,
        draw: Draw,
        loader: Loader,
        source: int = 0,
    ) -> None:
        """Plan the reads of the first `samples` samples.

        `copied` gives a copy of the order, one for each place that is read from, or blocks would be opened again and
        again. From position `stop` on the loader knows that nothing more is needed; None: it does not know. `source` is
        the index of the dataset among the sources of the order.
        """
        self.dataset, self.order, self.samples, self.stop, self.loader = dataset, copied(), samples, stop, loader
        self.draw: Draw = draw
        table = self.order.table
        self.first_row, self.stop_row = table.first_rows[source : source + 2].tolist()
        self._first_window, self._stop_window = table.first_windows[source : source + 2].tolist()
        self.runs = RunPlan(dataset, copied(), stop, source=source)
        self._copied = copied
        self._orders: dict[int, SampleOrder] = {}

    def drawn_before(self, rows: Rows, position: int) -> Int64s:
        """Count the draws of some leaves before a position, [num_rows]."""
        if self.draw == "multinomial":
            return self.order.drawn_before(rows, position)
        if position not in self._orders:
            self._orders[position] = self._copied()
        return self._orders[position].drawn_before(rows, position)

    def walked(self, start: int, stop: int) -> Fetched:
        """Find the runs that positions need, each once for each reader, with the first fetch that asks for it."""
        positions, windows, rows = self._draws(start, stop)
        shard, first, num_windows = self.runs.runs(windows, rows)
        fetch, reader = self.loader.fetches(positions), self.loader.readers(positions)
        return _earliest(Fetched(fetch, reader, shard, first, num_windows))

    def begun(self, start: int, stop: int) -> Fetched:
        """Find the runs whose first window in the order is drawn at these positions, within one block."""
        positions, windows, rows = self._draws(start, stop)
        runs = self.runs.runs(windows, rows)
        by_row = np.argsort(rows, kind="stable")
        drawn, first, times = np.unique(rows[by_row], return_index=True, return_counts=True)
        nth = np.empty(len(rows), np.int64)
        before = self.order.drawn_before(drawn, start)
        nth[by_row] = np.arange(len(rows)) - np.repeat(first, times) + np.repeat(before, times)
        leaf = rows - self.first_row
        leaf_first, leaf_windows = self.dataset.first_window_per_leaf[leaf], self.dataset.windows_per_leaf[leaf]
        place, leaf_start = runs.first - leaf_first, self.order.starts(rows)
        holds_start = (place <= leaf_start) & (leaf_start < place + runs.num_windows)
        new = nth == np.where(holds_start, 0, (place - leaf_start) % leaf_windows)
        begun = positions[new]
        fetched = Fetched(self.loader.fetches(begun), self.loader.readers(begun), *(values[new] for values in runs))
        return _earliest(fetched)

    def _draws(self, start: int, stop: int) -> tuple[Int64s, Int64s, Int64s]:
        """Positions that draw from the source, their window ids there and rows; each [num_positions]."""
        positions = np.arange(start, stop)
        numbers, rows = self.order.draws(positions)
        own = np.flatnonzero((numbers >= self._first_window) & (numbers < self._stop_window))
        return positions[own], numbers[own] - self._first_window, rows[own]


def _earliest(fetched: Fetched) -> Fetched:
    """Keep each run of each reader once, where it is fetched first."""
    runs = RunsOfWindows(fetched.shard, fetched.first, fetched.num_windows)
    key = runs.keys * (int(fetched.reader.max(initial=0)) + 1) + fetched.reader
    in_time = np.argsort(fetched.fetch, kind="stable")
    at = in_time[np.unique(key[in_time], return_index=True)[1]]
    return Fetched(*(values[at] for values in fetched))


def requests(fetched: Fetched, sample_bytes: int, num_readers: int) -> Int64s:
    """Count the requests of each reader, [num_readers]; each fetch joins what lies side by side (reader.py)."""
    order = np.lexsort((fetched.first, fetched.fetch))
    fetch, reader, shard, first, num_windows = (values[order] for values in fetched)
    if not len(fetch):
        return np.zeros(num_readers, np.int64)
    joins = (fetch[1:] == fetch[:-1]) & (shard[1:] == shard[:-1]) & (first[:-1] + num_windows[:-1] == first[1:])
    begins = np.append(True, ~joins)
    starts = np.flatnonzero(begins)
    chain_windows = np.add.reduceat(num_windows, starts)
    limit = max(1, REQUEST_BYTES // sample_bytes)
    ends = np.append(starts[1:], len(begins))
    for chain in np.flatnonzero(chain_windows > limit):
        windows = 0
        for run in range(starts[chain], ends[chain]):
            windows += int(num_windows[run])
            if windows > limit and run > starts[chain]:
                begins[run], windows = True, int(num_windows[run])
    return np.bincount(reader[begins], minlength=num_readers).astype(np.int64)


def walk_all(plans: Plans) -> Reading:
    """Walk the whole order, as one process per node will do."""
    loader, blocks = plans.loader, range(0, plans.samples, BLOCK_SAMPLES)
    fetched, waiting = plans.walked(0, min(BLOCK_SAMPLES, plans.samples)), []
    for start in blocks[1:]:
        waiting.append(plans.walked(start, min(start + BLOCK_SAMPLES, plans.samples)))
        if start == blocks[-1] or sum(len(block.fetch) for block in waiting) > len(fetched.fetch):
            parts, waiting = (fetched, *waiting), []
            fetched = _earliest(Fetched(*(np.concatenate(values) for values in zip(*parts, strict=True))))
    windows = np.zeros(loader.num_readers, np.int64)
    np.add.at(windows, fetched.reader, fetched.num_windows)
    return Reading(
        windows_per_reader=windows,
        requests_per_reader=requests(fetched, plans.dataset.manifest.sample_bytes, loader.num_readers),
        blocks=len(blocks),
        walked=True,
        windows_exact=True,
    )
