"""How often each row was drawn before: in finished phases, and in the blocks of a phase before one of them.

Systematic draws of whole blocks are counted for just the rows of interest (draws.py), so nothing here is as long as
the table of leaves while a stream has few phases. Where there are more, the oldest are summed up, each once. The block
in which a phase ended is drawn, and kept. Multinomial draws can only be counted by making them, so the last count is
kept, and going on from it is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crisp_stream.order.blocks import Blocks, OrderPhase
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.draws import Int64s, Rows

COUNTED_PHASES = 8
"""Phases behind the current one whose draws are counted when needed; earlier ones are summed up in one array."""

_SLICE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DrawHistory:
    """Draws before some phase."""

    first_sample: int
    """Position of the first sample that is not in it."""
    drawn: Int64s
    """[num_rows], draws of each row before that."""
    before_part: dict[int, Int64s] = field(default_factory=dict)
    """For each selection that was drawn from before: [rows of the selection], draws of their leaves by components
    without selections before its first phase."""


@dataclass(kw_only=True)
class _Walk:
    """Multinomial draws counted up to a block."""

    phase: int
    block: int
    drawn: Int64s


class DrawCounts:
    """Draws in the phases of one stream. All that it keeps between calls saves time and changes no answer."""

    def __init__(
        self,
        blocks: Blocks,
        phases: Sequence[OrderPhase],
        table: DrawTable,
        *,
        history: DrawHistory | None,
    ) -> None:
        """Args:
        blocks: the draws of blocks.
        phases: the stream's phases.
        table: the rows that are drawn from.
        history: draws before the first of these phases.
        """
        self._blocks, self._phases, self._table = blocks, phases, table
        self.history = history
        self._sum = (0, history)  # of the phases before one, by its index
        self._ends: dict[int, tuple[Rows, Int64s]] = {}
        self._before_part: dict[int, Int64s] = {}
        self._walk: _Walk | None = None
        self._drawn: tuple[int, int, Rows] | None = None

    def before_block(self, phase: int, block: int, rows: Rows) -> Int64s:
        """[len(rows)]: draws of some rows before a block of a phase, by its index."""
        if self._blocks.draw == "multinomial":
            return self._walked_to(phase, block)[rows]
        start, known = self._sum
        if not 0 <= phase - start <= COUNTED_PHASES:
            start, known = self._sum = (phase, self.before_phase(phase))
        counts = np.zeros(len(rows), np.int64) if known is None else known.drawn[rows]
        for index in range(start, phase):
            counts = counts + self._in_phase(index, rows)
        return counts + self._blocks.drawn(self._phases[phase], block, rows)

    def before_phase(self, phase: int) -> DrawHistory | None:
        """Sum up the draws of all phases before one, by its index; of the first: the history given at the start."""
        if phase == 0:
            return self.history
        parts = set[int]().union(*(self._phases[index].parts for index in range(phase)))
        before_part = {part: self._of_part(part) for part in parts}
        if self.history is not None:
            before_part |= self.history.before_part
        return DrawHistory(
            first_sample=self._phases[phase].first_sample, drawn=self._summed(phase), before_part=before_part
        )

    def before_part(self, part: int, rows: Rows) -> Int64s:
        """[len(rows)]: draws of the leaves of some rows of a selection before the first phase that draws from it."""
        return self._of_part(part)[rows - self._table.parts[part - 1].first_row]

    def remember(self, phase: OrderPhase, block: int, rows: Rows) -> None:
        """Take note of the rows of a block, which need not be drawn again if its phase ends there."""
        self._drawn = (phase.first_sample, block, rows)

    def drop(self, phase: int) -> None:
        """Sum up all phases before one, by its index, as the owner of the list is about to remove them."""
        self.history = self.before_phase(phase)
        self._sum = (0, self.history)
        self._before_part.clear()
        if self._walk is not None:
            walk = self._walk
            self._walk = None if walk.phase < phase else replace(walk, phase=walk.phase - phase)

    def forget_from(self, sample: int) -> None:
        """Forget what was counted of phases that end or begin after a sample: they have changed."""
        kept = sum(phase.first_sample < sample for phase in self._phases) - 1  # its end has changed
        if self._sum[0] > kept:
            self._sum = (0, self.history)
        changed = self._phases[max(kept, 0)].first_sample
        self._ends = {first: end for first, end in self._ends.items() if first < changed}
        self._before_part.clear()
        if self._drawn is not None and self._drawn[0] >= sample:
            self._drawn = None
        if self._walk is not None and self._walk.phase >= kept:
            self._walk = None

    def _of_part(self, part: int) -> Int64s:
        if self.history is not None and part in self.history.before_part:
            return self.history.before_part[part]
        if part not in self._before_part:
            selected = self._table.parts[part - 1]
            leaves = self._table.leaf_rows(np.arange(selected.first_row, selected.stop_row))
            phase = next(index for index, each in enumerate(self._phases) if part in each.parts)
            self._before_part[part] = self.before_block(phase, 0, leaves)
        return self._before_part[part]

    def _summed(self, phase: int) -> Int64s:
        """[num_rows]: draws of all phases before one."""
        if self._blocks.draw == "multinomial":
            return self._walked_to(phase, 0).copy()
        start, known = self._sum if self._sum[0] <= phase else (0, self.history)
        totals = np.zeros(self._table.num_rows, np.int64) if known is None else known.drawn.copy()
        for index in range(start, phase):
            each = self._phases[index]
            assert each.num_samples is not None
            block = self._blocks.holding(each.num_samples)[0]
            for rows in _slices(each.shares().rows) if block else ():
                totals[rows] += self._blocks.drawn(each, block, rows)
            drawn, times = self._end(index)
            totals[drawn] += times
        return totals

    def _in_phase(self, index: int, rows: Rows) -> Int64s:
        """[len(rows)]: systematic draws of some rows over a whole phase."""
        each = self._phases[index]
        assert each.num_samples is not None
        counts = self._blocks.drawn(each, self._blocks.holding(each.num_samples)[0], rows)
        drawn, times = self._end(index)
        if len(drawn):
            at = np.minimum(np.searchsorted(drawn, rows), len(drawn) - 1)
            counts += np.where(drawn[at] == rows, times[at], 0)
        return counts

    def _end(self, index: int) -> tuple[Rows, Int64s]:
        """The rows that a phase drew in the block in which it ended, increasing, and how often each."""
        each = self._phases[index]
        assert each.num_samples is not None
        if each.first_sample not in self._ends:
            block, rest = self._blocks.holding(each.num_samples)
            if not rest:
                drawn: Rows = np.empty(0, np.uint32)
            elif self._drawn is not None and self._drawn[:2] == (each.first_sample, block):
                drawn = self._drawn[2][:rest]
            else:
                drawn = self._blocks.rows_of_places(each, block)[:rest]
            self._ends[each.first_sample] = np.unique(drawn, return_counts=True)
            while len(self._ends) > 4 * COUNTED_PHASES:
                del self._ends[next(iter(self._ends))]
        return self._ends[each.first_sample]

    def _walked_to(self, phase: int, block: int) -> Int64s:
        """[num_rows]: multinomial draws before a block; the array is that of the walk."""
        walk = self._walk
        if walk is None or (walk.phase, walk.block) > (phase, block):
            drawn = np.zeros(self._table.num_rows, np.int64) if self.history is None else self.history.drawn.copy()
            walk = self._walk = _Walk(phase=0, block=0, drawn=drawn)
        while (walk.phase, walk.block) < (phase, block):
            current = self._phases[walk.phase]
            left = self._blocks.num_draws(walk.block)
            if current.num_samples is not None:
                left = min(left, current.num_samples - self._blocks.first_sample(walk.block))
            if left <= 0:
                walk.phase, walk.block = walk.phase + 1, 0
                continue
            drawn, times = np.unique(self._blocks.rows_of_places(current, walk.block)[:left], return_counts=True)
            walk.drawn[drawn] += times
            walk.block += 1
        return walk.drawn


def _slices(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), _SLICE):
        yield rows[start : start + _SLICE]
