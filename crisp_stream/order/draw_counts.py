"""Counts of the draws before a block or a phase.

Systematic draws are counted for just the rows of interest (draws.py). Multinomial draws can only be counted by making
them, so the last count is kept, and going on from it is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crisp_stream.order.block_plan import BlockPlan
from crisp_stream.order.draws import Int64s, PhasePlan, Rows

COUNTED_PHASES = 8
"""Phases behind the current one whose draws are counted when needed; earlier ones are summed up in one array."""

_SLICE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DrawHistory:
    """Draws of the phases before some phase."""

    first_phase: int
    """Number of the first phase that is not in it."""
    drawn: Int64s
    """[num_leaves], draws of each leaf in earlier phases."""


@dataclass(kw_only=True)
class _Walk:
    """Multinomial draws counted up to a block."""

    phase: int
    block: int
    drawn: Int64s


class DrawCounts:
    """Draws in the phases of one stream. All that it keeps between calls saves time and changes no answer."""

    def __init__(
        self, blocks: BlockPlan, phases: Sequence[PhasePlan], num_rows: int, history: DrawHistory | None
    ) -> None:
        """Args:
        blocks: the draws of blocks.
        phases: the list of the stream's phases, to which its owner may append.
        num_rows: rows of the table that is drawn from.
        history: draws of phases before the first of these.
        """
        self._blocks, self._phases, self._num_rows = blocks, phases, num_rows
        self.history = self._summed_up = history
        self._walk: _Walk | None = None
        self._before_part: dict[int, Int64s] = {}

    def before_block(self, plan: PhasePlan, block: int, rows: Rows) -> Int64s:
        """[len(rows)]: draws of some rows before a block of a phase."""
        if self._blocks.draw == "multinomial":
            return self._walked_to(plan, block)[rows]
        phase = plan.number - self._phases[0].number
        counted_from = self._sum_up_far_phases(phase)
        counts = np.zeros(len(rows), np.int64) if self._summed_up is None else self._summed_up.drawn[rows]
        for earlier in self._phases[counted_from:phase]:
            counts = counts + self._blocks.drawn_in_phase(earlier, rows)
        return counts + self._blocks.drawn_before_block(plan, block, rows)

    def before_part(self, part: int, rows: Rows) -> Int64s:
        """[len(rows)]: draws of some leaves before the first phase that draws from a selection."""
        phase = next(at for at, plan in enumerate(self._phases) if plan.part == part)
        if self._blocks.draw == "multinomial":
            number = self._phases[phase].number
            if number not in self._before_part:
                self._before_part[number] = self._walked_to(self._phases[phase], 0).copy()
            return self._before_part[number][rows]
        counts = np.zeros(len(rows), np.int64)
        for plan in self._phases[:phase]:
            if plan.part == 0:
                counts += self._blocks.drawn_in_phase(plan, rows)
        return counts

    def before_phase(self, phase: int) -> DrawHistory | None:
        """Sum up the draws of all phases before one, by its index; of the first: the history given at the start."""
        if phase == 0:
            return self.history
        return DrawHistory(first_phase=self._phases[phase].number, drawn=self._sum(phase))

    def forget_from(self, phase: int, served: int) -> None:
        """Forget draws that are no more: the stream now ends in a phase, after `served` of its samples."""
        if self._summed_up is not None and self._summed_up.first_phase > self._phases[phase].number:
            self._summed_up = self.history
        walk = self._walk
        if walk is not None and (walk.phase, walk.block * self._blocks.block_samples) > (phase, served):
            self._walk = None
        self._before_part.clear()

    def _sum_up_far_phases(self, phase: int) -> int:
        """Have a sum that ends at most COUNTED_PHASES before a phase; returns the phase where it ends."""
        first = self._phases[0].number
        end = 0 if self._summed_up is None else self._summed_up.first_phase - first
        if end > phase:
            self._summed_up, end = self.history, 0
        if phase - end > COUNTED_PHASES:
            self._summed_up = DrawHistory(first_phase=phase + first, drawn=self._sum(phase))
            end = phase
        return end

    def _sum(self, phase: int) -> Int64s:
        """[num_rows]: draws of all phases before one."""
        if self._blocks.draw == "multinomial":
            return self._walked_to(self._phases[phase], 0).copy()
        first, known = self._phases[0].number, self._summed_up
        if known is None or known.first_phase - first > phase:
            known = self.history
        totals = np.zeros(self._num_rows, np.int64) if known is None else known.drawn.copy()
        for plan in self._phases[0 if known is None else known.first_phase - first : phase]:
            for start in range(0, len(plan.rows), _SLICE):
                rows = plan.rows[start : start + _SLICE]
                totals[rows] += self._blocks.drawn_in_phase(plan, rows)
        return totals

    def _walked_to(self, plan: PhasePlan, block: int) -> Int64s:
        """[num_rows]: multinomial draws before a block; the array is that of the walk."""
        target, walk = (plan.number - self._phases[0].number, block), self._walk
        if walk is None or (walk.phase, walk.block) > target:
            drawn = np.zeros(self._num_rows, np.int64) if self.history is None else self.history.drawn.copy()
            walk = self._walk = _Walk(phase=0, block=0, drawn=drawn)
        while (walk.phase, walk.block) < target:
            current = self._phases[walk.phase]
            left = None if current.served is None else current.served - walk.block * self._blocks.block_samples
            if left is not None and left <= 0:
                walk.phase, walk.block = walk.phase + 1, 0
                continue
            served, times = np.unique(self._blocks.rows_of_places(current, walk.block)[:left], return_counts=True)
            walk.drawn[served] += times
            walk.block += 1
        return walk.drawn
