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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.draws import (
    BLOCK_SAMPLES,
    Int64s,
    LeafShares,
    PhasePlan,
    Rows,
    block_offsets,
    leaf_starts,
    random_bits,
    uniforms,
)

ORDER_VERSION = 2
NUM_LANES = 64
COUNTED_PHASES = 8
"""Phases behind the current one whose draws are counted when needed; earlier ones are summed up in one array."""

_SLICE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DrawHistory:
    """What the phases before some phase have drawn."""

    first_phase: int
    """Number of the first phase that is not in it."""
    drawn: Int64s
    """[num_leaves], draws of each leaf in earlier phases."""


class SampleOrder:
    """Window ids by position. Any order of asking gives the same answers; ascending is fastest."""

    def __init__(
        self,
        leaves: Rows,
        windows_per_leaf: Int64s,
        phases: Sequence[tuple[NDArray[np.float64], int | None]] | Sequence[PhasePlan],
        *,
        seed: int,
        draw: Literal["systematic", "multinomial"] = "systematic",
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
        history: draws of phases before the first given one.
        first_window_per_leaf: [num_leaves]; computed when None.
        table: in the place of these three columns, for phases that draw from window selections.
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
        self.plans = _placed(phases)
        self._phase_starts = np.array([plan.first_sample for plan in self.plans], np.int64)
        self._interval_of_lane = np.argsort(random_bits(seed, "lanes", count=self._num_lanes), kind="stable")
        self.given_history = self._history = history
        self._walk: _Walk | None = None
        self._walked_before_part: dict[int, Int64s] = {}
        self._block: _Block | None = None

    @property
    def num_samples(self) -> int | None:
        """Position after the last sample; None when the last phase is open-ended."""
        last = self.plans[-1]
        return None if last.served is None else last.first_sample + last.served

    @property
    def lane_of_interval(self) -> Int64s:
        """[num_lanes], the lane that has each of the equal intervals of the CDF, in leaf order."""
        return np.argsort(self._interval_of_lane)

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
        if self._history is not None and self._history.first_phase > last.number:
            self._history = self.given_history
        if self._walk is not None and (self._walk.phase, self._walk.block * self._block_samples) > (kept - 1, served):
            self._walk = None  # it has counted draws that are no more
        self._walked_before_part.clear()

    def forget_before(self, position: int) -> None:
        """Sum up the phases before the one that holds a position, and drop them: they can no longer be asked for.

        Does nothing where phases draw from selections, which begin where leaves stood when they were first used.
        """
        if self.table is not None:
            return
        phase = int(np.searchsorted(self._phase_starts, position, side="right")) - 1
        if phase > COUNTED_PHASES:
            self.given_history = self._history = self.history_before(position)
            self.plans, self._phase_starts = self.plans[phase:], self._phase_starts[phase:]
            self._walk = None

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
        """Which of its windows each leaf (a row of the cluster table, or of `table`) begins with."""
        if self.table is None:
            return leaf_starts(self._seed, self._leaves[rows], self._windows_per_leaf[rows])
        own, part = self.table.leaf_rows(rows), self.table.part_of(rows)
        starts = leaf_starts(self._seed, self._leaves[own], self._windows_per_leaf[own])
        for number in np.unique(part[part > 0]).tolist():
            at = np.flatnonzero(part == number)
            place = (starts[at] + self._drawn_before_part(number, own[at])) % self._windows_per_leaf[own[at]]
            starts[at] = self.table.nth_of_row(number, rows[at], self._first_window[own[at]] + place)
        return starts

    def _drawn_before_part(self, part: int, rows: Rows) -> Int64s:
        """[len(rows)]: draws of some leaves before the first phase that draws from a selection."""
        phase = next(at for at, plan in enumerate(self.plans) if plan.part == part)
        if self._draw == "multinomial":
            number = self.plans[phase].number
            if number not in self._walked_before_part:
                self._walked_before_part[number] = self._walked_to(self.plans[phase], 0).drawn.copy()
            return self._walked_before_part[number][rows]
        counts = np.zeros(len(rows), np.int64)
        for plan in self.plans[:phase]:
            if plan.part == 0:
                counts += self._drawn_in_phase(plan, rows)
        return counts

    def drawn_before(self, rows: Rows, position: int) -> Int64s:
        """How often each of some leaves is drawn before a position.

        Args:
            rows: [num_rows], of the cluster table.
            position: 0 to `num_samples`.
        """
        phase = max(0, int(np.searchsorted(self._phase_starts, position, side="left")) - 1)
        plan = self.plans[phase]
        block, rest = divmod(position - plan.first_sample, self._block_samples)
        counts = self._drawn_before_block(plan, block, rows)
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
        phase = self.phase_at(position) - self.plans[0].number
        if phase == 0:
            return self.given_history
        return DrawHistory(first_phase=self.plans[phase].number, drawn=self._summed(phase))

    def _drawn_before_block(self, plan: PhasePlan, block: int, rows: Rows) -> Int64s:
        """[len(rows)]: draws of some rows of the cluster table before a block."""
        if self._draw == "multinomial":
            return self._walked_to(plan, block).drawn[rows]
        phase = plan.number - self.plans[0].number
        counted_from = self._history_for(phase)
        counts = np.zeros(len(rows), np.int64) if self._history is None else self._history.drawn[rows]
        for earlier in self.plans[counted_from:phase]:
            counts = counts + self._drawn_in_phase(earlier, rows)
        entries, drawn = plan.entries_of(rows)
        counts[drawn] += self._drawn_in_blocks(plan, entries[drawn], block)
        return counts

    def _history_for(self, phase: int) -> int:
        """Have a history that ends at most COUNTED_PHASES before a phase; returns the phase where it ends."""
        first = self.plans[0].number
        ends = 0 if self._history is None else self._history.first_phase - first
        if ends > phase:
            self._history, ends = self.given_history, 0
        if phase - ends > COUNTED_PHASES:
            self._history = DrawHistory(first_phase=phase + first, drawn=self._summed(phase))
            ends = phase
        return ends

    def _summed(self, phase: int) -> Int64s:
        """[num_leaves]: draws of all phases before one."""
        if self._draw == "multinomial":
            return self._walked_to(self.plans[phase], 0).drawn.copy()
        first = self.plans[0].number
        known = self._history if self._history and self._history.first_phase - first <= phase else self.given_history
        totals = np.zeros(len(self._windows_per_leaf), np.int64) if known is None else known.drawn.copy()
        for plan in self.plans[0 if known is None else known.first_phase - first : phase]:
            for start in range(0, len(plan.rows), _SLICE):
                rows = plan.rows[start : start + _SLICE]
                totals[rows] += self._drawn_in_phase(plan, rows)
        return totals

    def _drawn_in_phase(self, plan: PhasePlan, rows: Rows) -> Int64s:
        """[len(rows)]: draws of some rows over a whole phase."""
        assert plan.served is not None
        blocks, rest = divmod(plan.served, self._block_samples)
        entries, drawn = plan.entries_of(rows)
        counts = np.zeros(len(rows), np.int64)
        counts[drawn] = self._drawn_in_blocks(plan, entries[drawn], blocks)
        if rest == plan.draws_of_block(blocks, self._block_samples):
            offset = block_offsets(self._seed, plan.number, blocks, blocks + 1)
            counts[drawn] += plan.draws_in_blocks(entries[drawn], rest, offset)
        elif rest:  # cut short while running
            served, times = np.unique(self._rows_of_places(plan, blocks)[:rest], return_counts=True)
            at = np.minimum(np.searchsorted(served, rows), len(served) - 1)
            counts += np.where(served[at] == rows, times[at], 0)
        return counts

    def _drawn_in_blocks(self, plan: PhasePlan, entries: Int64s, blocks: int) -> Int64s:
        offsets = np.sort(block_offsets(self._seed, plan.number, 0, blocks))
        return plan.draws_in_blocks(entries, self._block_samples, offsets)

    def _walked_to(self, plan: PhasePlan, block: int) -> _Walk:
        """Multinomial draws can only be counted by making them."""
        target, walk = (plan.number - self.plans[0].number, block), self._walk
        if walk is None or (walk.phase, walk.block) > target:
            given = self.given_history
            drawn = np.zeros(len(self._windows_per_leaf), np.int64) if given is None else given.drawn.copy()
            walk = self._walk = _Walk(phase=0, block=0, drawn=drawn)
        while (walk.phase, walk.block) < target:
            current = self.plans[walk.phase]
            left = None if current.served is None else current.served - walk.block * self._block_samples
            if left is not None and left <= 0:
                walk.phase, walk.block = walk.phase + 1, 0
                continue
            served, times = np.unique(self._rows_of_places(current, walk.block)[:left], return_counts=True)
            walk.drawn[served] += times
            walk.block += 1
        return walk

    def _open_block(self, plan: PhasePlan, number: int) -> _Block:
        block = self._block
        if block is None or block.plan is not plan or block.number != number:
            rows = self._rows_of_places(plan, number)
            # Number the draws of each leaf by position: a stable sort groups them by leaf and keeps their order.
            by_leaf = np.argsort(rows, kind="stable")
            drawn, first, times = np.unique(rows[by_leaf], return_index=True, return_counts=True)
            nth = np.arange(len(rows)) - np.repeat(first, times)
            windows = self._windows_per_leaf[drawn]
            begin = self.starts(drawn) + self._drawn_before_block(plan, number, drawn)
            of_leaf = (np.repeat(begin, times) + nth) % np.repeat(windows, times)
            ids = np.empty(len(rows), np.int64)
            ids[by_leaf] = np.repeat(self._first_window[drawn], times) + of_leaf
            block = self._block = _Block(plan=plan, number=number, row_of_place=rows, window_of_place=ids)
        return block

    def _rows_of_places(self, plan: PhasePlan, number: int) -> Rows:
        """[draws of the block]: the row of the cluster table drawn at each place of a block."""
        draws = plan.draws_of_block(number, self._block_samples)
        if self._draw == "multinomial":
            bits = random_bits(self._seed, "multinomial", phase=plan.number, block=number, count=draws)
            return plan.rows[np.searchsorted(plan.cdf, uniforms(bits), side="right")]
        offset = int(block_offsets(self._seed, plan.number, number, number + 1)[0])
        entries = plan.entries_of_draws(draws, offset)
        entry_of_place = np.empty(draws, np.int64)
        start = 0
        for lane in self.lane_of_interval:
            own = entries[start : start + (draws - int(lane) + self._num_lanes - 1) // self._num_lanes]
            bits = random_bits(self._seed, "spread", phase=plan.number, block=number, lane=int(lane), count=len(own))
            entry_of_place[lane :: self._num_lanes] = own[_spread(own, uniforms(bits))]
            start += len(own)
        return plan.rows[entry_of_place]


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


def _spread(entries: Int64s, noise: NDArray[np.float64]) -> Int64s:
    """The order of a lane's draws: the j-th of an entry's n draws has the key (j + noise) / n."""
    if not len(entries):
        return np.empty(0, np.int64)
    first = np.flatnonzero(np.diff(entries, prepend=entries[0] - 1))
    times = np.diff(first, append=len(entries))
    nth = np.arange(len(entries)) - np.repeat(first, times)
    return np.argsort((nth + noise) / np.repeat(times, times), kind="stable")


@dataclass(kw_only=True)
class _Block:
    """The block last asked for: the row of the cluster table and the window of each of its places."""

    plan: PhasePlan
    number: int
    row_of_place: Rows
    window_of_place: Int64s


@dataclass(kw_only=True)
class _Walk:
    """Multinomial draws counted up to a block."""

    phase: int
    block: int
    drawn: Int64s
