"""Which run each window belongs to: what to fetch so that what is fetched gets used.

A run is up to 64 windows of one leaf. The order reads a leaf front to back from its start, so runs are counted from
that start, and end where the order stops drawing from the leaf: then every byte of every run is used. Runs aligned to
the stored leaf, the plain choice, read two runs for a leaf of 64 draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from crisp_stream.draws import Int64s
    from crisp_stream.format import Dataset
    from crisp_stream.order import SampleOrder

MAX_RUN_WINDOWS = 64
MAX_RUN_BYTES = 1 << 20


class RunsOfWindows(NamedTuple):
    """The run of each window; arrays of [num_windows]."""

    shard: Int64s
    first: Int64s
    num_windows: Int64s


class RunPlan:
    """Finds the runs of windows of one dataset."""

    def __init__(self, dataset: Dataset, order: SampleOrder | None = None, stop: int | None = None) -> None:
        """Args:
        dataset: the opened dataset.
        order: the order in which windows will be asked for; None: no particular one.
        stop: position after the last sample that will be asked for, when known. For this instance alone: asking for
            the draws before `stop` and for windows in turn would open blocks again and again.
        """
        self._dataset, self._order, self._stop = dataset, order, stop
        self.run_windows = max(1, min(MAX_RUN_WINDOWS, MAX_RUN_BYTES // dataset.manifest.sample_bytes))

    def forget_stop(self) -> None:
        """The order changed, and with it what will be asked for."""
        self._stop = None

    def runs(self, window_ids: Int64s, rows: Int64s) -> RunsOfWindows:
        """The run of each window.

        Args:
            window_ids: [num_windows].
            rows: [num_windows], the row of each one's leaf in the cluster table.
        """
        dataset = self._dataset
        leaf_first, leaf_windows = dataset.first_window_per_leaf[rows], dataset.windows_per_leaf[rows]
        start = np.zeros(len(rows), np.int64) if self._order is None else self._order.starts(rows)
        drawn = None if self._order is None or self._stop is None else self._order.drawn_before(rows, self._stop)
        # A leaf that is no longer than a run, and used up, is one run, wherever the order begins in it.
        whole = (leaf_windows <= self.run_windows) & (True if drawn is None else drawn >= leaf_windows)
        start[whole] = 0
        place = window_ids - leaf_first
        turn = (place - start) % leaf_windows  # how many windows of the leaf come before it, from the start
        begin = turn - turn % self.run_windows
        end = np.minimum(begin + self.run_windows, leaf_windows)
        if drawn is not None:
            known = turn < drawn  # before `stop`; what is asked beyond it gets runs of its own
            end, begin = np.where(known, np.minimum(end, drawn), end), np.where(known, begin, np.maximum(begin, drawn))
        wrapped = place < start
        first = leaf_first + np.maximum(place - (turn - begin), np.where(wrapped, 0, start))
        stop = leaf_first + np.minimum(place + (end - turn), np.where(wrapped, start, leaf_windows))
        shard = np.searchsorted(dataset.first_window_per_shard, window_ids, side="right") - 1
        shard_first = dataset.first_window_per_shard[shard]
        shard_stop = np.append(dataset.first_window_per_shard[1:], dataset.manifest.num_windows)[shard]
        first, stop = np.maximum(first, shard_first), np.minimum(stop, shard_stop)
        return RunsOfWindows(shard, first, stop - first)
