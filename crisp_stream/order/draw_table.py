"""The table that the sample order draws from where a phase has a window selection: leaves, then parts of leaves.

To the order a selection is a further stretch of its table of leaves: a row for each leaf that has selected windows,
with as many windows as are selected. So draws, cursors, passes and resume are what they are for leaves, and only the
window that a draw stands for is looked up in the bits of the selection. The alternative, windows per leaf that change
with the phase, would break the counting of draws through phases.

Numbers stand for windows: those below the dataset's `num_windows` are window ids, the others count the selected windows
of one selection after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.draws import Int64s, LeafShares, Rows
from crisp_stream.order.packed_bits import PackedBits
from crisp_stream.storage.shared_arrays import SharedArrays


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedPart:
    """The rows of one selection."""

    bits: PackedBits
    first_row: int
    stop_row: int
    first_number: int
    """Number of its first selected window."""


class DrawTable:
    """The rows of a mixture with selections. Part 0 are the leaves, in their rows of the cluster table."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]] | SharedArrays, parts: Sequence[SelectedPart]) -> None:
        """Args:
        arrays: `leaf` u32, `num_windows` i64 and `first_window` i64 (a number) of each row.
        parts: part 1 and the following, in the order of their rows.
        """
        self._arrays, self.parts = arrays, tuple(parts)
        self.num_leaves = self.parts[0].first_row
        self._first_rows = np.array([part.first_row for part in self.parts])
        self._first_numbers = np.array([part.first_number for part in self.parts])

    @property
    def leaves(self) -> NDArray[np.uint32]:
        """[num_rows], the leaf of each row."""
        return self._arrays["leaf"]

    @property
    def windows_per_row(self) -> Int64s:
        """[num_rows], at least 1 each."""
        return self._arrays["num_windows"]

    @property
    def first_per_row(self) -> Int64s:
        """[num_rows], the first number of each row."""
        return self._arrays["first_window"]

    def shares(self, part: int) -> LeafShares:
        """Give every window of a selection the same share; `part` counts from 1."""
        selected = self.parts[part - 1]
        ends = np.cumsum(self.windows_per_row[selected.first_row : selected.stop_row])
        rows = np.arange(selected.first_row, selected.stop_row, dtype=np.uint32)
        return LeafShares(rows=rows, cdf=ends / ends[-1])

    def part_of(self, rows: Rows) -> Int64s:
        """The part of each row."""
        return np.searchsorted(self._first_rows, rows, side="right")

    def leaf_rows(self, rows: Rows) -> Int64s:
        """The row of each row's leaf in the cluster table."""
        leaf_rows = np.array(rows, np.int64)
        behind = leaf_rows >= self.num_leaves
        if behind.any():
            leaf_rows[behind] = np.searchsorted(self.leaves[: self.num_leaves], self.leaves[leaf_rows[behind]])
        return leaf_rows

    def nth_of_row(self, part: int, rows: Rows, windows: Int64s) -> Int64s:
        """Count the selected windows of each row's leaf before a window of it, cyclically: never all."""
        selected = self.parts[part - 1]
        before = selected.bits.rank(windows) + selected.first_number - self.first_per_row[rows]
        return before % self.windows_per_row[rows]

    def window_ids(self, numbers: Int64s) -> Int64s:
        """The window that each number stands for."""
        window_ids, part = numbers.copy(), np.searchsorted(self._first_numbers, numbers, side="right")
        for number, selected in enumerate(self.parts, 1):
            at = np.flatnonzero(part == number)
            window_ids[at] = selected.bits.select(numbers[at] - selected.first_number)
        return window_ids
