"""What the sample order draws from where a phase has a window selection: leaves, and behind them parts of leaves.

To the order a selection is a further stretch of its table of leaves: a row for each leaf that has selected windows,
with as many windows as are selected. So draws, cursors, passes and resume are what they are for leaves, and only the
window that a draw stands for is looked up in the bits of the selection. The alternative, windows per leaf that change
with the phase, would break the counting of draws through phases.

Numbers stand for windows: those below the dataset's `num_windows` are window ids, the others count the selected windows
of one selection after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.draws import Int64s, LeafShares, Rows
from crisp_stream.order.packed_bits import PackedBits
from crisp_stream.storage.shared_arrays import SHARED_ROWS, SharedArrays, keep_newest, shared_arrays

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.mixture import Phase

_KEPT_TABLES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedPart:
    """The rows of one selection."""

    bits: PackedBits
    first_row: int
    stop_row: int
    first_number: int
    """Of its selected windows."""


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

    @classmethod
    def of(cls, dataset: Dataset, phases: Sequence[Phase]) -> tuple[DrawTable | None, list[int]]:
        """The table of a mixture's phases, None where none has a selection; and the part that each phase draws from.

        Raises:
            InputError: a selection of another dataset.
        """
        numbers: dict[str, int] = {}
        parts: list[SelectedPart] = []
        rows, number, selected = dataset.manifest.num_leaves, dataset.manifest.num_windows, []
        part_of_phase = []
        for index, phase in enumerate(phases, 1):
            if phase.windows is None:
                part_of_phase.append(0)
                continue
            phase.windows.check_dataset(dataset, what=f"phase {index}: the window selection")
            if phase.windows.fingerprint not in numbers:
                stop = rows + len(phase.histogram.nodes)
                parts.append(SelectedPart(bits=phase.windows.bits, first_row=rows, stop_row=stop, first_number=number))
                rows, number = stop, number + phase.windows.num_selected
                selected.append(phase.histogram)
                numbers[phase.windows.fingerprint] = len(parts)
            part_of_phase.append(numbers[phase.windows.fingerprint])
        if not parts:
            return None, part_of_phase

        def make() -> dict[str, NDArray[Any]]:
            leaves = np.concatenate([dataset.leaves, *(histogram.nodes for histogram in selected)])
            counts = np.concatenate([dataset.windows_per_leaf, *(histogram.counts for histogram in selected)])
            return {"leaf": leaves, "num_windows": counts, "first_window": np.cumsum(counts) - counts}

        if rows < SHARED_ROWS:
            return cls(make(), parts), part_of_phase
        name = hashlib.sha256("".join(numbers).encode()).hexdigest()[:16]
        arrays = shared_arrays(dataset.table_folder / f"draw-{name}.arrays", make)
        keep_newest(dataset.table_folder, "draw-*.arrays", _KEPT_TABLES)
        return cls(arrays, parts), part_of_phase

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
        """Every window of a selection equally often; `part` counts from 1."""
        own = self.parts[part - 1]
        ends = np.cumsum(self.windows_per_row[own.first_row : own.stop_row])
        return LeafShares(rows=np.arange(own.first_row, own.stop_row, dtype=np.uint32), cdf=ends / ends[-1])

    def part_of(self, rows: Rows) -> Int64s:
        """Which part each row is of."""
        return np.searchsorted(self._first_rows, rows, side="right")

    def leaf_rows(self, rows: Rows) -> Int64s:
        """The row of each row's leaf in the cluster table."""
        found = np.array(rows, np.int64)
        behind = found >= self.num_leaves
        if behind.any():
            found[behind] = np.searchsorted(self.leaves[: self.num_leaves], self.leaves[found[behind]])
        return found

    def nth_of_row(self, part: int, rows: Rows, windows: Int64s) -> Int64s:
        """How many selected windows of each row's leaf stand before a window of it, cyclically: never all."""
        own = self.parts[part - 1]
        before = own.bits.rank(windows) + own.first_number - self.first_per_row[rows]
        return before % self.windows_per_row[rows]

    def window_ids(self, numbers: Int64s) -> Int64s:
        """The window that each number stands for."""
        found, part = numbers.copy(), np.searchsorted(self._first_numbers, numbers, side="right")
        for number, own in enumerate(self.parts, 1):
            at = np.flatnonzero(part == number)
            found[at] = own.bits.select(numbers[at] - own.first_number)
        return found
