"""The table that the sample order draws from: the leaves of one or several sources, then those of window selections.

A row is a leaf of a source. A selection of a source's windows is a further stretch of rows: one for each leaf that has
selected windows, with as many windows as are selected. So draws, cursors, passes and resume are the same for all rows,
and only the window that a draw stands for is looked up in the bits of the selection. The alternative, windows per leaf
that change with the phase, would break the counting of draws through phases.

Numbers stand for windows. Those of the sources come first, one source after the other; so the window ids of a single
source are its numbers. Behind them each selection counts its selected windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.draws import Int64s, Rows
from crisp_stream.order.packed_bits import PackedBits
from crisp_stream.storage.shared_arrays import SharedArrays

_SOURCE_BITS = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedPart:
    """The rows of one selection of windows."""

    bits: PackedBits
    source: int
    """Index of the source whose windows they are."""
    first_row: int
    stop_row: int
    first_number: int
    """Number of its first selected window."""


class DrawTable:
    """The rows of a mixture. Part 0 are the leaves of all sources; part k those of the k-th selection."""

    def __init__(
        self,
        columns: Mapping[str, NDArray[Any]] | SharedArrays,
        *,
        rows_per_source: Sequence[int],
        windows_per_source: Sequence[int],
        parts: Sequence[SelectedPart] = (),
    ) -> None:
        """Args:
        columns: `leaf` u32, `num_windows` i64 and `first_window` i64 (a number) of each row.
        rows_per_source: [num_sources], leaves of each source.
        windows_per_source: [num_sources], windows of each source.
        parts: part 1 and the following, in the order of their rows.
        """
        self._columns, self.parts = columns, tuple(parts)
        self.first_rows = np.cumsum([0, *rows_per_source])
        """[num_sources + 1], where the rows of each source begin; the last entry is the number of rows in part 0."""
        self.first_windows = np.cumsum([0, *windows_per_source])
        """[num_sources + 1], the number of each source's first window."""
        self._first_rows_of_parts = np.array([part.first_row for part in self.parts], np.int64)
        self._first_numbers_of_parts = np.array([part.first_number for part in self.parts], np.int64)

    @classmethod
    def of_leaves(cls, leaves: Rows, windows_per_leaf: Int64s) -> DrawTable:
        """The table of one source. Both [num_leaves]; leaves increase, and hold at least 1 window each."""
        first = np.cumsum(windows_per_leaf) - windows_per_leaf
        columns = {"leaf": np.asarray(leaves), "num_windows": windows_per_leaf, "first_window": first}
        return cls(columns, rows_per_source=[len(leaves)], windows_per_source=[int(windows_per_leaf.sum())])

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return len(self.windows_per_row)

    @property
    def leaves(self) -> NDArray[np.uint32]:
        """[num_rows], the leaf of each row."""
        return self._columns["leaf"]

    @property
    def windows_per_row(self) -> Int64s:
        """[num_rows], at least 1 each."""
        return self._columns["num_windows"]

    @property
    def first_per_row(self) -> Int64s:
        """[num_rows], the first number of each row."""
        return self._columns["first_window"]

    def part_of(self, rows: Rows) -> Int64s:
        """The part of each row."""
        return np.searchsorted(self._first_rows_of_parts, rows, side="right")

    def start_keys(self, leaf_rows: Int64s) -> NDArray[np.uint64]:
        """What the start of a row in part 0 depends on beside the seed: leaf id + 2^32 · index of its source."""
        keys = self.leaves[leaf_rows].astype(np.uint64)
        if len(self.first_rows) > 2:
            source = np.searchsorted(self.first_rows, leaf_rows, side="right") - 1
            keys += source.astype(np.uint64) << np.uint64(_SOURCE_BITS)
        return keys

    def leaf_rows(self, rows: Rows) -> Int64s:
        """The row in part 0 of each row's leaf."""
        leaf_rows = np.array(rows, np.int64)
        if not self.parts or not (leaf_rows >= self.parts[0].first_row).any():
            return leaf_rows
        part_of = self.part_of(leaf_rows)
        for number, part in enumerate(self.parts, 1):
            at = np.flatnonzero(part_of == number)
            first, stop = self.first_rows[part.source : part.source + 2]
            leaf_rows[at] = first + np.searchsorted(self.leaves[first:stop], self.leaves[leaf_rows[at]])
        return leaf_rows

    def nth_of_row(self, part: int, rows: Rows, numbers: Int64s) -> Int64s:
        """Count the selected windows of each row's leaf before a window of it (a number), cyclically: never all."""
        selected = self.parts[part - 1]
        rank = selected.bits.rank(numbers - self.first_windows[selected.source])
        return (rank + selected.first_number - self.first_per_row[rows]) % self.windows_per_row[rows]

    def window_numbers(self, numbers: Int64s) -> Int64s:
        """The number in part 0 of the window that each number stands for."""
        if not self.parts:
            return numbers
        windows, part_of = numbers.copy(), np.searchsorted(self._first_numbers_of_parts, numbers, side="right")
        for number, part in enumerate(self.parts, 1):
            at = np.flatnonzero(part_of == number)
            windows[at] = self.first_windows[part.source] + part.bits.select(numbers[at] - part.first_number)
        return windows
