"""The sample order, version 2: position in the training stream -> window id.

A pure function of (windows per leaf, leaf proportions of each phase, seed, position); no I/O, no shared state, no
array as long as an epoch. Any process computes any positions by itself. FORMAT.md, "Sample order", is the contract.

Nothing but the phases' CDFs is as long as the table of leaves: a block is opened from its 2^18 draws, and how often
their leaves were drawn before is counted for those leaves alone (draws.py). So walking, resuming and jumping cost
the same at 64 leaves and at 16.7 million. The alternative, a cursor per leaf carried from block to block, cost 134 MB
for each process and a pass over all leaves for each block and each resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.block_plan import BlockPlan, Draw
from crisp_stream.order.draw_counts import COUNTED_PHASES, DrawCounts, DrawHistory
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.draws import BLOCK_SAMPLES, Int64s, LeafShares, PhasePlan, Rows, leaf_starts

ORDER_VERSION = 2
NUM_LANES = 64


class SampleOrder:
    """Window ids by position. Positions may come in any order and give the same windows; ascending is fastest."""

    def __init__(
        self,
        leaves: Rows,
        windows_per_leaf: Int64s,
        phases: Sequence[tuple[NDArray[np.float64], int | None]] | Sequence[PhasePlan],
        *,
        seed: int,
        draw: Draw = "systematic",
        history: DrawHistory | None = None,
        first_window_per_leaf: Int64s | None = None,
        table: DrawTable | None = None,
        block_samples: int = BLOCK_SAMPLES,
        num_lanes: int = NUM_LANES,
    ) -> None:
        """Args:
        leaves: [num_leaves], sorted ids of the non-empty leaves.
        windows_per_leaf: [num_leaves], at least 1 each.
        phases: (proportions [num_leaves], samples or None) in order, only the last may have None; or their plans.
        seed: of the order; another seed gives another order with the same guarantees.
        draw: how a block's draws are shared among the leaves.
        history: draws of phases before the first of `phases`.
        first_window_per_leaf: [num_leaves]; computed when None.
        table: takes the place of these three columns, for phases that draw from window selections.
        block_samples: draws per block, at most 2^18. Part of the contract; smaller only in tests.
        num_lanes: lanes per block. Part of the contract.
        """
        if not 1 <= block_samples <= BLOCK_SAMPLES:
            raise ValueError(f"block_samples must be 1 to {BLOCK_SAMPLES}, got {block_samples}")
        self._leaves, self._windows_per_leaf, self.table = leaves, windows_per_leaf, table
        if table is not None:
            self._leaves, self._windows_per_leaf = table.leaves, table.windows_per_row
            first_window_per_leaf = table.first_per_row
        if first_window_per_leaf is None:
            first_window_per_leaf = np.cumsum(windows_per_leaf) - windows_per_leaf
        self._first_window = first_window_per_leaf
        self._seed, self._draw, self._block_samples = seed, draw, block_samples
        self._num_lanes = 1 if draw == "multinomial" else num_lanes
        self._blocks = BlockPlan(seed=seed, draw=draw, block_samples=block_samples, num_lanes=self._num_lanes)
        self.plans = _placed(phases)
        self._phase_starts = np.array([plan.first_sample for plan in self.plans], np.int64)
        self._counts = DrawCounts(self._blocks, self.plans, len(self._windows_per_leaf), history)
        self._block: _Block | None = None

    @property
    def given_history(self) -> DrawHistory | None:
        """Draws of the phases before the first that is still known."""
        return self._counts.history

    @property
    def num_samples(self) -> int | None:
        """Position after the last sample; None when the last phase is open-ended."""
        last = self.plans[-1]
        return None if last.served is None else last.first_sample + last.served

    @property
    def lane_of_interval(self) -> Int64s:
        """[num_lanes], the lane that has each of the equal intervals of the CDF, in leaf order."""
        return self._blocks.lane_of_interval

    def append(
        self, shares: Callable[[], LeafShares], num_samples: int | None, *, whole_blocks: bool = False, part: int = 0
    ) -> None:
        """Let the stream, which must have an end, go on with another phase; `whole_blocks` as of a Phase."""
        last, first_sample = self.plans[-1], self.num_samples
        assert first_sample is not None
        self.plans.append(
            PhasePlan(
                shares=shares,
                number=last.number + 1,
                first_sample=first_sample,
                num_samples=None if whole_blocks else num_samples,
                served=num_samples,
                part=part,
            )
        )
        self._phase_starts = np.append(self._phase_starts, first_sample)

    def cut(self, position: int, *, planned: bool = True) -> None:
        """End the stream at a position, in whatever phase that is; what comes before it stays as it is.

        Args:
            position: the new end.
            planned: that phase may have been served in part. Otherwise its blocks become as large as it is now.
        """
        kept = int(np.searchsorted(self._phase_starts, position, side="left"))
        kept = max(1, kept)
        last = self.plans[kept - 1]
        served = position - last.first_sample
        self.plans[kept - 1 :] = [replace(last, served=served, num_samples=last.num_samples if planned else served)]
        self._phase_starts = self._phase_starts[:kept]
        self._block = None
        self._counts.forget_from(kept - 1, served)

    def forget_before(self, position: int) -> None:
        """Sum up the phases before the one that holds a position, and drop them: they can no longer be drawn from.

        Does nothing where phases draw from selections, which begin where leaves stood when they were first used.
        """
        if self.table is not None:
            return
        phase = int(np.searchsorted(self._phase_starts, position, side="right")) - 1
        if phase > COUNTED_PHASES:
            history = self._counts.before_phase(phase)
            self.plans, self._phase_starts = self.plans[phase:], self._phase_starts[phase:]
            self._counts = DrawCounts(self._blocks, self.plans, len(self._windows_per_leaf), history)

    def window_ids(self, positions: Int64s) -> Int64s:
        """The windows at some positions.

        Args:
            positions: [num_positions], any order, each below `num_samples`.
        """
        return self.draws(positions)[0]

    def draws(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """The windows at some positions, and their leaves as rows of the cluster table, or what was drawn from as rows
        of `table`; each [num_positions]."""
        ids, rows = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        phase_of = np.searchsorted(self._phase_starts, positions, side="right") - 1
        within = positions - self._phase_starts[phase_of]
        blocks = phase_of * (1 << 40) + within // self._block_samples
        for key in np.unique(blocks):
            here = np.flatnonzero(blocks == key)
            block = self._open_block(self.plans[int(key >> 40)], int(key & ((1 << 40) - 1)))
            places = within[here] - block.number * self._block_samples
            ids[here], rows[here] = block.window_of_place[places], block.row_of_place[places]
        return (ids if self.table is None else self.table.window_ids(ids)), rows

    def starts(self, rows: Rows) -> Int64s:
        """The window with which each leaf (a row of the cluster table, or of `table`) begins, counted in the leaf."""
        if self.table is None:
            return leaf_starts(self._seed, self._leaves[rows], self._windows_per_leaf[rows])
        leaf_rows, part = self.table.leaf_rows(rows), self.table.part_of(rows)
        windows = self._windows_per_leaf[leaf_rows]
        starts = leaf_starts(self._seed, self._leaves[leaf_rows], windows)
        for number in np.unique(part[part > 0]).tolist():
            at = np.flatnonzero(part == number)
            place = (starts[at] + self._counts.before_part(number, leaf_rows[at])) % windows[at]
            starts[at] = self.table.nth_of_row(number, rows[at], self._first_window[leaf_rows[at]] + place)
        return starts

    def drawn_before(self, rows: Rows, position: int) -> Int64s:
        """Count the draws of some leaves before a position.

        Args:
            rows: [num_rows], of the cluster table.
            position: 0 to `num_samples`.
        """
        phase = max(0, int(np.searchsorted(self._phase_starts, position, side="left")) - 1)
        plan = self.plans[phase]
        block, rest = divmod(position - plan.first_sample, self._block_samples)
        counts = self._counts.before_block(plan, block, rows)
        if rest:
            served = np.sort(self._open_block(plan, block).row_of_place[:rest])
            counts = counts + np.searchsorted(served, rows, side="right") - np.searchsorted(served, rows, side="left")
        return counts

    def phase_at(self, position: int) -> int:
        """Number of the phase that holds a position."""
        return self.plans[int(np.searchsorted(self._phase_starts, position, side="right")) - 1].number

    def phase_start(self, position: int) -> int:
        """First position of the phase that would end if the stream were cut at a position."""
        return int(self._phase_starts[max(0, int(np.searchsorted(self._phase_starts, position, side="left")) - 1)])

    def history_before(self, position: int) -> DrawHistory | None:
        """The draws of all phases before the one that holds a position; None before the second."""
        return self._counts.before_phase(self.phase_at(position) - self.plans[0].number)

    def _open_block(self, plan: PhasePlan, number: int) -> _Block:
        block = self._block
        if block is None or block.plan is not plan or block.number != number:
            rows = self._blocks.rows_of_places(plan, number)
            # Number the draws of each leaf by position: a stable sort groups them by leaf and keeps their order.
            by_leaf = np.argsort(rows, kind="stable")
            drawn, first, times = np.unique(rows[by_leaf], return_index=True, return_counts=True)
            nth = np.arange(len(rows)) - np.repeat(first, times)
            windows = self._windows_per_leaf[drawn]
            begin = self.starts(drawn) + self._counts.before_block(plan, number, drawn)
            of_leaf = (np.repeat(begin, times) + nth) % np.repeat(windows, times)
            ids = np.empty(len(rows), np.int64)
            ids[by_leaf] = np.repeat(self._first_window[drawn], times) + of_leaf
            block = self._block = _Block(plan=plan, number=number, row_of_place=rows, window_of_place=ids)
        return block


def _placed(phases: Sequence[tuple[NDArray[np.float64], int | None]] | Sequence[PhasePlan]) -> list[PhasePlan]:
    plans: list[PhasePlan] = []
    first_sample = 0
    for phase in phases:
        if isinstance(phase, PhasePlan):
            plans.append(phase)
        else:
            shares, samples = LeafShares.of(phase[0]), phase[1]
            plans.append(
                PhasePlan(
                    shares=lambda shares=shares: shares,
                    number=len(plans),
                    first_sample=first_sample,
                    num_samples=samples,
                    served=samples,
                )
            )
            first_sample += samples or 0
    return plans


@dataclass(kw_only=True)
class _Block:
    """The block opened last: the row of the cluster table and the window of each of its places."""

    plan: PhasePlan
    number: int
    row_of_place: Rows
    window_of_place: Int64s
