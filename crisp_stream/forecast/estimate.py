"""Reads of long runs: counted over the leaves where that can be done, scaled up from some blocks where not.

How many runs of windows a single node begins between two positions follows from how often each leaf is drawn before
them. How many of these join into one request is found in a block from each stretch of the run; stretches double in
length, because reading is densest at the beginning of a phase. With several nodes, a leaf belongs to the node that has
its lane; leaves that several nodes draw from are read by each with the probability that it draws from the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.forecast.counts import SLICE, phases_before, slices
from crisp_stream.forecast.reads import Plans, Reading, requests
from crisp_stream.order.blocks import BLOCK_SAMPLES, OrderPhase
from crisp_stream.order.draws import Int64s, Rows

_MOMENTS = 4
"""Evenly spaced moments at which the working set is counted, besides the stretches' borders."""


@dataclass(kw_only=True)
class LeafReads:
    """Sums over all leaves."""

    positions: Int64s
    """[num_moments], increasing."""
    runs_begun: Int64s
    """[num_moments], runs that one node has begun to read before them."""
    windows_kept: Int64s
    """[num_moments], windows that one node has read and will need again."""
    windows_per_reader: NDArray[np.float64]
    """[num_readers], windows in the runs that each node is expected to read."""
    windows: int = 0
    """Windows in the runs that one node reads, all in all."""


def stretches(plans: Plans, max_blocks: int) -> Int64s:
    """Divide the run into stretches: [num_stretches + 1] borders; each begins with a block, the last one ends the run.

    There are at most `max_blocks`; at least one for each phase, where there are not more phases.
    """
    phases = phases_before(plans.order, plans.samples)
    factor = 2
    while True:
        borders = [plan.first_sample + at for plan, served in phases for at in _doubling(served, factor)]
        if len(borders) <= max(max_blocks, 1) or factor > plans.samples:
            break
        factor *= 2
    if len(borders) > max_blocks:
        borders = [borders[at] for at in np.linspace(0, len(borders) - 1, max(max_blocks, 1)).astype(int)]
    return np.array([*borders, plans.samples], np.int64)


def _doubling(served: int, factor: int) -> list[int]:
    borders, blocks = [0], 1
    while blocks * BLOCK_SAMPLES < served:
        borders.append(blocks * BLOCK_SAMPLES)
        blocks *= factor
    return borders


def moments(plans: Plans) -> Int64s:
    """Choose positions spread over the run, at borders of blocks where there are enough of them."""
    even = np.arange(1, _MOMENTS) * plans.samples // _MOMENTS
    if plans.samples < _MOMENTS * BLOCK_SAMPLES:
        return even
    starts = np.array([plan.first_sample for plan, _ in phases_before(plans.order, plans.samples)])
    start = starts[np.searchsorted(starts, even, side="right") - 1]
    return start + (even - start) // BLOCK_SAMPLES * BLOCK_SAMPLES


def estimate(plans: Plans, reads: LeafReads, borders: Int64s) -> Reading:
    """Estimate requests from a block of each stretch; bytes from sums counted at positions that hold all `borders`."""
    readers, sample_bytes = plans.loader.num_readers, plans.dataset.manifest.sample_bytes
    begun = np.diff(reads.runs_begun[np.searchsorted(reads.positions, borders)])
    num_requests, windows, runs_unseen = np.zeros(readers), np.zeros(readers), 0
    for runs, start, end in zip(begun.tolist(), borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        fetched = plans.begun(start, min(start + BLOCK_SAMPLES, end))
        if not len(fetched.fetch):
            runs_unseen += runs
            continue
        weight = runs / len(fetched.fetch)
        num_requests += weight * requests(fetched, sample_bytes, readers)
        windows += weight * np.bincount(fetched.reader, fetched.num_windows, readers)
    num_requests *= 1 + runs_unseen / max(int(begun.sum()) - runs_unseen, 1)
    if readers > 1:
        num_requests *= reads.windows_per_reader / np.maximum(windows, 1)
    return Reading(
        windows_per_reader=np.rint(reads.windows_per_reader).astype(np.int64),
        requests_per_reader=np.rint(num_requests).astype(np.int64),
        blocks=len(begun),
        walked=False,
        windows_exact=readers == 1 and plans.stop is not None,
    )


def count_reads(plans: Plans, positions: Int64s) -> LeafReads:
    """Sum what is read over the leaves. `positions`: [num_moments], increasing, ending at the end of the run."""
    reads = LeafReads(
        positions=positions,
        runs_begun=np.zeros(len(positions), np.int64),
        windows_kept=np.zeros(len(positions), np.int64),
        windows_per_reader=np.zeros(plans.loader.num_readers),
    )
    phases = [(plan, plan.first_sample + served) for plan, served in phases_before(plans.order, plans.samples)]
    cuts = _ShardCuts(plans)
    first, stop = plans.first_row, plans.stop_row
    # Multinomial draws are counted by making all, so all leaves are taken at once.
    size = stop - first if plans.draw == "multinomial" else max(1, SLICE // plans.loader.num_readers)
    for rows in slices(first, stop, size):
        windows = plans.order.table.windows_per_row[rows]
        needed = sorted({*positions.tolist(), *(end for _, end in phases), plans.samples, plans.stop or 0})
        drawn_at = {position: plans.drawn_before(rows, position) for position in needed}  # ascending is fastest
        leaves = _Leaves.of(plans, rows, windows, drawn_at)
        for moment, position in enumerate(positions.tolist()):
            drawn = drawn_at[position]
            reads.runs_begun[moment] += int(leaves.runs_begun(drawn).sum()) + cuts.begun(leaves, drawn)
            reads.windows_kept[moment] += int(leaves.windows_kept(drawn).sum())
        reads.windows += int(leaves.windows_read(leaves.total).sum())
        if plans.loader.num_readers > 1:
            reads.windows_per_reader += _read_by_each(plans, leaves, [(plan, drawn_at[end]) for plan, end in phases])
    if plans.loader.num_readers == 1:
        reads.windows_per_reader[0] = reads.windows
    return reads


@dataclass(kw_only=True, eq=False)
class _Leaves:
    """A slice of the leaves and their runs; arrays over them."""

    rows: Rows
    windows: Int64s
    starts: Int64s
    total: Int64s
    """Draws in the whole run."""
    planned: Int64s
    """Draws that the loader knows of."""
    whole: NDArray[np.bool_]
    """Whether a leaf is one run (runs.py)."""
    width: int
    """Windows of a run."""

    @classmethod
    def of(cls, plans: Plans, rows: Rows, windows: Int64s, drawn_at: dict[int, Int64s]) -> _Leaves:
        planned = windows if plans.stop is None else drawn_at[plans.stop]
        width = plans.runs.run_windows
        return cls(
            rows=rows,
            windows=windows,
            starts=plans.order.starts(rows),
            total=drawn_at[plans.samples],
            planned=planned,
            whole=(windows <= width) & (planned >= windows),
            width=width,
        )

    def runs_begun(self, drawn: Int64s) -> Int64s:
        """Count the runs read from, [num_leaves], without those that borders of shards cut off."""
        first_pass = np.minimum(drawn, self.windows)
        wrap = self.windows - self.starts  # how many windows stand before the end of the leaf
        cut = (wrap < first_pass) & (wrap % self.width > 0)
        return np.where(self.whole, drawn > 0, -(-first_pass // self.width) + cut)

    def windows_read(self, drawn: Int64s) -> Int64s:
        """Count the windows in the runs read from, [num_leaves]."""
        known = np.minimum(self.planned, self.windows)
        read = np.minimum(self._run_end(np.minimum(drawn, self.windows)), known)
        return np.where(self.whole & (drawn > 0), self.windows, read)

    def windows_kept(self, drawn: Int64s) -> Int64s:
        """Count the windows in runs that were read from and will be read from again, [num_leaves]."""
        return self.windows_between(drawn, self.total, self.windows_read(drawn))

    def windows_between(self, drawn: Int64s, until: Int64s, read: Int64s) -> Int64s:
        """Count the windows, of the first `read`, in the runs that draws `drawn` … `until` - 1 fall in."""
        left = until - drawn
        place = drawn % self.windows
        begin, end = self._run_begin(place), place + left
        ahead = np.minimum(self._run_end(np.minimum(end, self.windows)), read) - begin
        again = np.minimum(self._run_end(np.maximum(end - self.windows, 0)), np.minimum(begin, read))
        return np.where(left > 0, np.where(self.whole, read, np.maximum(ahead, 0) + again), 0)

    def windows_begun(self, drawn: Int64s) -> Int64s:
        """Count the windows drawn before of the run that the next draw falls in, [num_leaves]."""
        place = drawn % self.windows
        return np.where(self.whole, np.minimum(drawn, self.windows), place - self._run_begin(place))

    def _run_begin(self, turn: Int64s) -> Int64s:
        """Find the turn at which the run of a turn begins; where the leaf ends, it is cut."""
        begin, wrap = turn // self.width * self.width, self.windows - self.starts
        return np.where((wrap <= turn) & (wrap > begin), wrap, begin)

    def _run_end(self, turn: Int64s) -> Int64s:
        """Find the end of the run of the turn before, likewise."""
        end, wrap = -(-turn // self.width) * self.width, self.windows - self.starts
        return np.where((turn <= wrap) & (wrap < end), wrap, end)


class _ShardCuts:
    """Borders of shards inside a leaf, which cut its runs."""

    def __init__(self, plans: Plans) -> None:
        dataset = plans.dataset
        rows = dataset.row_of_windows(dataset.first_window_per_shard)
        places = dataset.first_window_per_shard - dataset.first_window_per_leaf[rows]
        self._rows, self._places = plans.first_row + rows[places > 0], places[places > 0]

    def begun(self, leaves: _Leaves, drawn: Int64s) -> int:
        """Count the runs read from beyond those that `_Leaves.runs_begun` counts."""
        lowest, beyond = np.searchsorted(self._rows, [int(leaves.rows[0]), int(leaves.rows[-1]) + 1])
        rows, places = self._rows[lowest:beyond], self._places[lowest:beyond]
        if not len(rows):
            return 0
        at = rows - int(leaves.rows[0])
        windows, starts, whole = leaves.windows[at], leaves.starts[at], leaves.whole[at]
        first_pass = np.minimum(drawn[at], windows)
        turn = (places - starts) % windows
        entered = (turn > 0) & (turn < first_pass)
        extra = int((entered & ~whole & (turn % leaves.width > 0)).sum())
        # A leaf that would be one run is one for each of its shards; the one that holds the start is counted already.
        same_as_next = np.append(rows[1:] == rows[:-1], False)
        ends = np.where(same_as_next, np.append(places[1:], 0), windows)
        holds_start = (places <= starts) & (starts < ends)
        extra += int((entered & whole & ~holds_start).sum())
        first_of_leaf = np.append(True, rows[1:] != rows[:-1])
        back = (windows - starts < first_pass) & (starts >= places)
        return extra + int((back & whole & first_of_leaf).sum())


def _read_by_each(
    plans: Plans, leaves: _Leaves, drawn_after_phase: list[tuple[OrderPhase, Int64s]]
) -> NDArray[np.float64]:
    """Estimate the windows of a slice of the leaves in the runs that each reader reads, [num_readers].

    Of a run that a phase left half drawn, the reader that draws the rest has to read all, unless it drew before.
    """
    readers, read = plans.loader.num_readers, leaves.windows_read(leaves.total)
    held, likely = np.zeros((len(read), readers)), np.zeros((len(read), readers))
    before = np.zeros(len(read), np.int64)
    for plan, drawn in drawn_after_phase:
        shares = _reader_shares(plans, plan, leaves.rows)
        distinct = np.minimum(drawn - before, leaves.windows)
        draws_of_run = np.minimum(leaves.width, distinct) * (drawn - before) / np.maximum(distinct, 1)
        held_before = np.minimum(leaves.windows_begun(before), read)[:, None] * likely
        likely = 1 - (1 - shares) ** draws_of_run[:, None]
        touched = leaves.windows_between(before, drawn, read)[:, None]
        held = np.minimum(held + likely * np.maximum(touched - held_before, 0), read[:, None])
        before = drawn
    return held.sum(axis=0)


def _reader_shares(plans: Plans, plan: OrderPhase, rows: Rows) -> NDArray[np.float64]:
    """Compute the part of each leaf's draws that a reader has, by the lanes of the leaf, [num_leaves, num_readers].

    Position i belongs to reader i mod readers and lane i mod lanes, so a lane's positions go to the readers that are
    congruent to it modulo the greatest common divisor.
    """
    readers, lane_of_interval = plans.loader.num_readers, np.argsort(plans.order.blocks.interval_of_lane)
    if plans.draw == "multinomial":
        lane_of_interval = lane_of_interval[:1]  # draws are not shared among lanes
    lanes = len(lane_of_interval)
    classes = math.gcd(readers, lanes)
    class_of_interval = (lane_of_interval + plan.first_sample) % classes
    entries, has_mass = plan.shares().entries_of(rows)
    cdf = plan.shares().cdf
    begin = np.where(entries > 0, cdf[entries - 1], 0.0) * lanes
    end = np.maximum(cdf[entries] * lanes, begin + 1e-12)
    shares = np.zeros((len(rows), classes))
    lowest = np.minimum(begin.astype(np.int64), lanes - 1)
    highest = np.minimum(np.ceil(end).astype(np.int64) - 1, lanes - 1)
    alone = has_mass & (lowest >= highest)
    shares[alone, class_of_interval[lowest[alone]]] = 1.0
    for leaf in np.flatnonzero(has_mass & ~alone):
        intervals = np.arange(lowest[leaf], highest[leaf] + 1)
        parts = np.minimum(intervals + 1, end[leaf]) - np.maximum(intervals, begin[leaf])
        np.add.at(shares[leaf], class_of_interval[intervals], parts / (end[leaf] - begin[leaf]))
    return np.tile(np.minimum(shares, 1.0) * (classes / readers), (1, readers // classes))
