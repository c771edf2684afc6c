"""The sample order, version 3: position in the training stream -> window id.

A pure function of (windows per leaf, leaf proportions of each phase, seed, position); no I/O, no shared state, no
array as long as an epoch. Any process computes any positions by itself. FORMAT.md, "Sample order", is the contract.

Nothing but the phases' CDFs is as long as the table of leaves: a block is opened from its 2^18 draws, and how often
their leaves were drawn before is counted for those leaves alone (draw_counts.py). So walking, resuming and jumping
cost the same at 64 leaves and at 16.7 million. The alternative, a cursor per leaf carried from block to block, cost
134 MB for each process and a pass over all leaves for each block and each resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.blocks import Blocks, OrderPhase
from crisp_stream.order.draw_counts import COUNTED_PHASES, DrawCounts, DrawHistory
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.draws import Int64s, LeafShares, Rows, leaf_starts

ORDER_VERSION = 3


class SampleOrder:
    """Windows by position. Positions may come in any order and give the same windows; ascending is fastest."""

    def __init__(
        self, table: DrawTable, phases: Sequence[OrderPhase], blocks: Blocks, *, history: DrawHistory | None = None
    ) -> None:
        """Args:
        table: the rows that are drawn from.
        phases: in order, without gaps; only the last may be open-ended (see `phases_in_turn`).
        blocks: seed of the order (another one gives another order with the same guarantees), and how a block's draws
            are shared among the rows. Its sizes are part of the contract; others only in tests.
        history: draws before the first of `phases`.
        """
        self.table, self.blocks, self.phases = table, blocks, list(phases)
        self._starts = np.array([phase.first_sample for phase in self.phases], np.int64)
        self._counts = DrawCounts(blocks, self.phases, table, history=history)
        self._block: _Block | None = None

    @property
    def history(self) -> DrawHistory | None:
        """Draws before the first phase that is still known."""
        return self._counts.history

    @property
    def num_samples(self) -> int | None:
        """Position after the last sample; None when the last phase is open-ended."""
        last = self.phases[-1]
        return None if last.num_samples is None else last.first_sample + last.num_samples

    def append(
        self, shares: Callable[[], LeafShares], num_samples: int | None, *, parts: frozenset[int] = frozenset()
    ) -> None:
        """Let the stream, which must have an end, go on with another phase."""
        first = self.num_samples
        assert first is not None
        self.phases.append(OrderPhase(shares=shares, first_sample=first, num_samples=num_samples, parts=parts))
        self._starts = np.append(self._starts, first)

    def change(
        self,
        position: int,
        shares: Callable[[], LeafShares],
        num_samples: int | None,
        *,
        parts: frozenset[int] = frozenset(),
    ) -> None:
        """Follow other proportions from a position on, in place of all phases there and after it."""
        self._counts.forget_from(position)
        if self._block is not None and self._block.phase.first_sample >= position:
            self._block = None
        kept = int(np.searchsorted(self._starts, position, side="left"))
        if kept:
            last = self.phases[kept - 1]
            self.phases[kept - 1] = replace(last, num_samples=position - last.first_sample)
        self.phases[kept:] = [OrderPhase(shares=shares, first_sample=position, num_samples=num_samples, parts=parts)]
        self._starts = np.append(self._starts[:kept], position)

    def forget_before(self, position: int) -> None:
        """Sum up the phases well before the one that holds a position, and drop them: they cannot be drawn from any
        more."""
        kept = self._holding(position) - COUNTED_PHASES
        if kept > 0:
            self._counts.drop(kept)
            del self.phases[:kept]
            self._starts = self._starts[kept:]

    def window_ids(self, positions: Int64s) -> Int64s:
        """The windows at some positions, as numbers of part 0 of the table: of one source, its window ids.

        Args:
            positions: [num_positions], any order, each below `num_samples`.
        """
        return self.draws(positions)[0]

    def draws(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """The windows at some positions, as of `window_ids`, and the rows of the table that they were drawn from; each
        [num_positions].

        Raises:
            IndexError: a position that was forgotten, or behind the end.
        """
        ids, rows = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        if not len(positions):
            return ids, rows
        first, last, end = int(positions.min()), int(positions.max()), self.num_samples
        if first < self._starts[0] or (end is not None and last >= end):
            raise IndexError(f"positions {first:,} to {last:,} of an order that knows {self._starts[0]:,} to {end}")
        phase_of = np.searchsorted(self._starts, positions, side="right") - 1
        within = positions - self._starts[phase_of]
        small, large = self.blocks.first_block_samples, self.blocks.block_samples
        block_of = np.where(within < large, within // small, within // large - 1 + self.blocks.num_first)
        keys = phase_of * (1 << 40) + block_of
        for key in np.unique(keys):
            here = np.flatnonzero(keys == key)
            number = int(key & ((1 << 40) - 1))
            block = self._open_block(int(key >> 40), number)
            places = within[here] - self.blocks.first_sample(number)
            ids[here], rows[here] = block.window_of_place[places], block.row_of_place[places]
        return self.table.window_numbers(ids), rows

    def starts(self, rows: Rows) -> Int64s:
        """The window with which each row of the table begins, counted in the row."""
        table = self.table
        leaf_rows = table.leaf_rows(rows)
        windows = table.windows_per_row[leaf_rows]
        starts = leaf_starts(self.blocks.seed, table.start_keys(leaf_rows), windows)
        part_of = table.part_of(rows)
        for part in np.unique(part_of[part_of > 0]).tolist():
            at = np.flatnonzero(part_of == part)
            place = (starts[at] + self._counts.before_part(part, rows[at])) % windows[at]
            starts[at] = table.nth_of_row(part, rows[at], table.first_per_row[leaf_rows[at]] + place)
        return starts

    def drawn_before(self, rows: Rows, position: int) -> Int64s:
        """Count the draws of some rows of the table before a position.

        Args:
            rows: [num_rows].
            position: 0 to `num_samples`.
        """
        phase = max(0, int(np.searchsorted(self._starts, position, side="left")) - 1)
        block, rest = self.blocks.holding(position - self.phases[phase].first_sample)
        counts = self._counts.before_block(phase, block, rows)
        if rest:
            served = np.sort(self._open_block(phase, block).row_of_place[:rest])
            counts = counts + np.searchsorted(served, rows, side="right") - np.searchsorted(served, rows, side="left")
        return counts

    def history_at(self, position: int) -> DrawHistory | None:
        """The draws of all phases before the one that holds a position; None before the second.

        Raises:
            IndexError: that phase was forgotten.
        """
        return self._counts.before_phase(self._holding(position))

    def _holding(self, position: int) -> int:
        """Index of the phase that holds a position."""
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        if index < 0:
            raise IndexError(f"position {position:,} of an order that knows {self._starts[0]:,} and later")
        return index

    def _open_block(self, phase: int, number: int) -> _Block:
        block, plan = self._block, self.phases[phase]
        if block is None or block.phase.first_sample != plan.first_sample or block.number != number:
            drawn_rows = rows = self.blocks.rows_of_places(plan, number)
            if plan.num_samples is not None:  # a phase can end earlier than it says, but not later
                rows = rows[: plan.num_samples - self.blocks.first_sample(number)]
            # Number the draws of each row by position: a stable sort groups them by row and keeps their order.
            by_row = np.argsort(rows, kind="stable")
            grouped = rows[by_row]
            first = np.flatnonzero(np.append(True, grouped[1:] != grouped[:-1]))
            drawn, times = grouped[first], np.diff(first, append=len(rows))
            nth = np.arange(len(rows)) - np.repeat(first, times)
            windows = self.table.windows_per_row[drawn]
            begin = self.starts(drawn) + self._counts.before_block(phase, number, drawn)
            of_row = (np.repeat(begin, times) + nth) % np.repeat(windows, times)
            ids = np.empty(len(rows), np.int64)
            ids[by_row] = np.repeat(self.table.first_per_row[drawn], times) + of_row
            self._counts.remember(plan, number, drawn_rows)  # `before_block` has made use of the block before
            block = self._block = _Block(phase=plan, number=number, row_of_place=rows, window_of_place=ids)
        return block


def phases_in_turn(phases: Sequence[tuple[NDArray[np.float64], int | None]]) -> list[OrderPhase]:
    """Make phases of (proportions [num_leaves], samples or None) from position 0 on."""
    made, first_sample = [], 0
    for proportions, samples in phases:
        shares = LeafShares.of(proportions)
        made.append(OrderPhase(shares=lambda shares=shares: shares, first_sample=first_sample, num_samples=samples))
        first_sample += samples or 0
    return made


@dataclass(kw_only=True)
class _Block:
    """The block opened last: the row of the table and the number of the window of each of its places."""

    phase: OrderPhase
    number: int
    row_of_place: Rows
    window_of_place: Int64s
