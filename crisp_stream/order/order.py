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
    """Window ids by position. Positions may come in any order and give the same windows; ascending is fastest."""

    def __init__(
        self,
        leaves: Rows,
        windows_per_leaf: Int64s,
        phases: Sequence[OrderPhase],
        blocks: Blocks,
        *,
        history: DrawHistory | None = None,
        first_window_per_leaf: Int64s | None = None,
        table: DrawTable | None = None,
    ) -> None:
        """Args:
        leaves: [num_leaves], sorted ids of the non-empty leaves.
        windows_per_leaf: [num_leaves], at least 1 each.
        phases: in order, without gaps; only the last may be open-ended (see `phases_in_turn`).
        blocks: seed of the order (another one gives another order with the same guarantees), and how a block's draws
            are shared among the leaves. Its sizes are part of the contract; others only in tests.
        history: draws before the first of `phases`.
        first_window_per_leaf: [num_leaves]; computed when None.
        table: takes the place of these three columns, for phases that draw from window selections.
        """
        self._leaves, self._windows_per_leaf, self.table = leaves, windows_per_leaf, table
        if table is not None:
            self._leaves, self._windows_per_leaf = table.leaves, table.windows_per_row
            first_window_per_leaf = table.first_per_row
        if first_window_per_leaf is None:
            first_window_per_leaf = np.cumsum(windows_per_leaf) - windows_per_leaf
        self._first_window, self.blocks = first_window_per_leaf, blocks
        self._set_phases(list(phases), history)

    def _set_phases(self, phases: list[OrderPhase], history: DrawHistory | None) -> None:
        self.phases = phases
        self._starts = np.array([phase.first_sample for phase in phases], np.int64)
        self._counts = DrawCounts(self.blocks, phases, len(self._windows_per_leaf), history=history, table=self.table)
        self._block: _Block | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the table that is drawn from."""
        return len(self._windows_per_leaf)

    @property
    def history(self) -> DrawHistory | None:
        """Draws before the first phase that is still known."""
        return self._counts.history

    @property
    def num_samples(self) -> int | None:
        """Position after the last sample; None when the last phase is open-ended."""
        last = self.phases[-1]
        return None if last.num_samples is None else last.first_sample + last.num_samples

    def append(self, shares: Callable[[], LeafShares], num_samples: int | None, *, part: int = 0) -> None:
        """Let the stream, which must have an end, go on with another phase."""
        first = self.num_samples
        assert first is not None
        self.phases.append(OrderPhase(shares=shares, first_sample=first, num_samples=num_samples, part=part))
        self._starts = np.append(self._starts, first)

    def change(self, position: int, shares: Callable[[], LeafShares], num_samples: int | None) -> None:
        """Follow other proportions from a position on, in place of all phases there and after it."""
        self._counts.forget_from(position)
        if self._block is not None and self._block.phase.first_sample >= position:
            self._block = None
        kept = int(np.searchsorted(self._starts, position, side="left"))
        if kept:
            last = self.phases[kept - 1]
            self.phases[kept - 1] = replace(last, num_samples=position - last.first_sample)
        self.phases[kept:] = [OrderPhase(shares=shares, first_sample=position, num_samples=num_samples)]
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
        """The windows at some positions.

        Args:
            positions: [num_positions], any order, each below `num_samples`.
        """
        return self.draws(positions)[0]

    def draws(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """The windows at some positions, and their leaves as rows of the cluster table, or what was drawn from as rows
        of `table`; each [num_positions].

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
        return (ids if self.table is None else self.table.window_ids(ids)), rows

    def starts(self, rows: Rows) -> Int64s:
        """The window with which each leaf (a row of the cluster table, or of `table`) begins, counted in the leaf."""
        if self.table is None:
            return leaf_starts(self.blocks.seed, self._leaves[rows], self._windows_per_leaf[rows])
        leaf_rows, part = self.table.leaf_rows(rows), self.table.part_of(rows)
        windows = self._windows_per_leaf[leaf_rows]
        starts = leaf_starts(self.blocks.seed, self._leaves[leaf_rows], windows)
        for number in np.unique(part[part > 0]).tolist():
            at = np.flatnonzero(part == number)
            place = (starts[at] + self._counts.before_part(number, rows[at])) % windows[at]
            starts[at] = self.table.nth_of_row(number, rows[at], self._first_window[leaf_rows[at]] + place)
        return starts

    def drawn_before(self, rows: Rows, position: int) -> Int64s:
        """Count the draws of some leaves before a position.

        Args:
            rows: [num_rows], of the cluster table.
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
            # Number the draws of each leaf by position: a stable sort groups them by leaf and keeps their order.
            by_leaf = np.argsort(rows, kind="stable")
            grouped = rows[by_leaf]
            first = np.flatnonzero(np.append(True, grouped[1:] != grouped[:-1]))
            drawn, times = grouped[first], np.diff(first, append=len(rows))
            nth = np.arange(len(rows)) - np.repeat(first, times)
            windows = self._windows_per_leaf[drawn]
            begin = self.starts(drawn) + self._counts.before_block(phase, number, drawn)
            of_leaf = (np.repeat(begin, times) + nth) % np.repeat(windows, times)
            ids = np.empty(len(rows), np.int64)
            ids[by_leaf] = np.repeat(self._first_window[drawn], times) + of_leaf
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
    """The block opened last: the row of the cluster table and the window of each of its places."""

    phase: OrderPhase
    number: int
    row_of_place: Rows
    window_of_place: Int64s
