"""Counts of how often the windows of a run are served: those of the sample order, summed over slices of the leaves.

A leaf is read cyclically, so of its n windows, drawn d times, d mod n are served once more than the others. Values of
"served so often" are few: k different ones need 0 + 1 + … windows, so there are at most sqrt(2 samples) of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.draws import BLOCK_SAMPLES, Int64s, PhasePlan, Rows, block_offsets
from crisp_stream.order.order import NUM_LANES, SampleOrder

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

SLICE = 1 << 18
_SURE = 0.001
"""Share of seeds whose multinomial draws may exceed the bound."""
_ONE_BLOCK = 1.0
_ROUNDING = 1e-9


@dataclass(kw_only=True)
class PhaseCounts:
    """Leaves and windows that a phase can reach, and how far its draws can stray."""

    samples: int
    """Samples of the phase that are served in the run."""
    leaves: int = 0
    windows: int = 0
    error_bound: float = 0.0
    """Samples by which the draws can miss their shares: half the sum of absolute differences."""


@dataclass(kw_only=True)
class Counts:
    """Leaves, clusters and windows that the order serves before a position."""

    phases: list[PhaseCounts]
    leaves_reachable: int = 0
    leaves_hit: int = 0
    windows_reachable: int = 0
    windows_served: int = 0
    clusters: int = 0
    clusters_reachable: int = 0
    clusters_hit: int = 0
    misplaced: float = 0.0
    """Half the sum of |draws - share|, in samples."""
    spread: float = 0.0
    """Sum over the leaves of the standard deviation of multinomial draws, in samples."""
    occurrences: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    """[num_values], times that a window is served, increasing; 0 stands for reachable windows that are not."""
    windows_per_occurrence: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    top: Int64s = field(default_factory=lambda: np.empty((0, 3), np.int64))
    """[num_top, 3], cluster, windows, draws of the most repeated ones, most first."""


def slices(length: int, size: int = SLICE) -> Iterator[Rows]:
    """Yield rows of the cluster table, so many at a time that arrays over them cost little."""
    for start in range(0, length, size):
        yield np.arange(start, min(start + size, length), dtype=np.uint32)  # as in plans, or these would be copied


def phases_before(order: SampleOrder, samples: int) -> list[tuple[PhasePlan, int]]:
    """List the phases of the first `samples` samples, and how many of them each has."""
    phases = []
    for plan in order.plans:
        left = samples - plan.first_sample
        served = left if plan.served is None else min(left, plan.served)
        if served > 0:
            phases.append((plan, served))
    return phases


def count(dataset: Dataset, order: SampleOrder, samples: int, *, draw: str, level: int, top: int) -> Counts:
    """Count the first `samples` samples (at least 1) of an order, whose caches are used.

    `level` is that of the clusters that are counted, `top` how many of the most repeated ones are named.
    """
    phases = phases_before(order, samples)
    counts = Counts(phases=[PhaseCounts(samples=served) for _, served in phases])
    strays = [Stray.of(plan, served) for plan, served in phases]
    clusters = Clusters(dataset, level, top)
    for rows in slices(len(dataset.leaves)):
        windows = dataset.windows_per_leaf[rows]
        draws = order.drawn_before(rows, samples)
        expected, variance, reachable = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows), bool)
        for (plan, served), phase, stray in zip(phases, counts.phases, strays, strict=True):
            shares, has_mass = shares_of(plan, rows)
            expected += served * shares
            variance += served * shares * (1 - shares)
            reachable |= has_mass
            phase.leaves += int(has_mass.sum())
            phase.windows += int(windows.sum(where=has_mass))
            stray.add(shares[has_mass])
        counts.misplaced += float(np.abs(draws - expected).sum()) / 2
        counts.spread += float(np.sqrt(variance).sum())
        counts.leaves_reachable += int(reachable.sum())
        counts.leaves_hit += int((draws > 0).sum())
        counts.windows_reachable += int(windows.sum(where=reachable))
        counts.windows_served += int(np.minimum(draws, windows).sum())
        add_occurrences(counts, draws[reachable], windows[reachable])
        clusters.add(rows, windows, draws, reachable)
    for phase, stray in zip(counts.phases, strays, strict=True):
        phase.error_bound = stray.bound()
    clusters.finish(counts)
    if draw == "multinomial":
        bound_multinomial(counts, samples)
    return counts


def shares_of(plan: PhasePlan, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Look up the proportion of each row in a phase, [num_rows], and whether it has any, [num_rows]."""
    entries, has_mass = plan.entries_of(rows)
    cdf = plan.cdf
    before = np.where(entries > 0, cdf[entries - 1], 0.0)
    return np.where(has_mass, cdf[entries] - before, 0.0), has_mass


def add_occurrences(counts: Counts, draws: Int64s, windows: Int64s) -> None:
    """Take in some rows: [num_rows] draws and windows, which share them as evenly as can be."""
    each, more = np.divmod(draws, windows)
    values = np.concatenate([counts.occurrences, each, each + 1])
    weights = np.concatenate([counts.windows_per_occurrence, windows - more, more])
    kept = weights > 0
    counts.occurrences, at = np.unique(values[kept], return_inverse=True)
    order = np.argsort(at, kind="stable")
    first = np.searchsorted(at[order], np.arange(len(counts.occurrences)))
    counts.windows_per_occurrence = np.add.reduceat(weights[kept][order], first) if len(order) else weights[:0]


def bound_multinomial(counts: Counts, samples: int) -> None:
    """Bound the error of multinomial draws.

    The mean of |draws - share| is at most the standard deviation; McDiarmid's inequality bounds what is above.
    """
    above = math.sqrt(samples * math.log(1 / _SURE) / 2)
    for phase in counts.phases:
        phase.error_bound = (counts.spread / 2 + above) * phase.samples / samples


@dataclass(kw_only=True)
class Stray:
    """Bound of how far the systematic draws of a phase can miss their shares, whatever the seed.

    In a block a leaf gets the draws whose offset lies in an arc of the length of its fractional part, so over B blocks
    it misses its share by no more than the discrepancy of the offsets over arcs, which the start of their sequence does
    not change. Of what all leaves have too much, the others have too little, so the smaller of both bounds holds.
    """

    blocks: int
    rest: int
    """Samples served of the block after them."""
    closed: bool
    """Whether the rest is a whole block, not the beginning of a larger one."""
    arcs: float
    leaves: int = 0
    over: float = 0.0
    under: float = 0.0
    over_in_rest: float = 0.0
    under_in_rest: float = 0.0

    @classmethod
    def of(cls, plan: PhasePlan, served: int) -> Stray:
        blocks, rest = divmod(served, BLOCK_SAMPLES)
        closed = rest == plan.draws_of_block(blocks, BLOCK_SAMPLES)
        return cls(blocks=blocks, rest=rest, closed=closed, arcs=_arc_discrepancy(blocks))

    def add(self, shares: NDArray[np.float64]) -> None:
        """Take in some leaves with mass: [num_leaves]."""
        self.leaves += len(shares)
        fraction = (shares * BLOCK_SAMPLES) % 1.0
        self.over += float(np.minimum(self.arcs, self.blocks * (1 - fraction)).sum())
        self.under += float(np.minimum(self.arcs, self.blocks * fraction).sum())
        fraction = (shares * (self.rest if self.closed else BLOCK_SAMPLES)) % 1.0
        self.over_in_rest += float((1 - fraction).sum())
        self.under_in_rest += float(fraction.sum())

    def bound(self) -> float:
        """Compute the bound, in samples."""
        of_rest = min(self.over_in_rest, self.under_in_rest)
        if not self.closed:
            # Spread over its lane, a leaf is within one draw of its share of any prefix, and so is the lane as a whole;
            # lane borders cut at most NUM_LANES - 1 leaves, and lanes may be ahead of others by one draw.
            of_rest = of_rest * self.rest / BLOCK_SAMPLES + self.leaves + 1.5 * NUM_LANES
        return min(self.over, self.under) + min(of_rest, self.rest) + _ROUNDING * (self.blocks + 1) * self.leaves


def _arc_discrepancy(blocks: int) -> float:
    """Find the most by which the number of offsets in any arc of the circle differs from blocks x length."""
    if not blocks:
        return 0.0
    offsets = np.sort(block_offsets(0, 0, 0, blocks)) / 2.0**44
    above = np.arange(1, blocks + 1) - blocks * offsets
    return float(above.max() - above.min() + _ONE_BLOCK)


class Clusters:
    """Sums over the leaves of each cluster, slice by slice; a cluster may go on in the next slice."""

    def __init__(self, dataset: Dataset, level: int, top: int) -> None:
        manifest = dataset.manifest
        self._leaves, self._top = dataset.leaves, top
        self._leaves_per_cluster = np.uint32(manifest.arity ** (manifest.depth - level))
        self._open = np.empty((0, 4), np.int64)
        self._most_repeated = np.empty((0, 3), np.int64)
        self._numbers = np.zeros(3, np.int64)

    def add(self, rows: Rows, windows: Int64s, draws: Int64s, reachable: NDArray[np.bool_]) -> None:
        """Take in the next leaves."""
        clusters = (self._leaves[rows] // self._leaves_per_cluster).astype(np.int64)
        first = np.flatnonzero(np.append(True, clusters[1:] != clusters[:-1]))
        sums = [np.add.reduceat(values, first) for values in (windows, draws, reachable.astype(np.int64))]
        table = np.stack([clusters[first], *sums], axis=1)
        if len(self._open) and self._open[0, 0] == table[0, 0]:
            table[0, 1:] += self._open[0, 1:]
        else:
            table = np.concatenate([self._open, table])
        self._open = table[-1:]
        self._close(table[:-1])

    def finish(self, counts: Counts) -> None:
        """Write the sums into the counts."""
        self._close(self._open)
        counts.top = self._most_repeated
        counts.clusters, counts.clusters_reachable, counts.clusters_hit = map(int, self._numbers)

    def _close(self, table: Int64s) -> None:
        self._numbers += [len(table), int((table[:, 3] > 0).sum()), int((table[:, 2] > 0).sum())]
        drawn = np.concatenate([self._most_repeated, table[table[:, 2] > 0][:, :3]])
        self._most_repeated = drawn[np.argsort(-(drawn[:, 2] / drawn[:, 1]), kind="stable")[: self._top]]
