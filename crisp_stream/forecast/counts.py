"""Counts of how often the windows of a run are served: those of the sample order, summed over slices of the leaves.

A leaf is read cyclically, so of its n windows, drawn d times, d mod n are served once more than the others. Values of
"served so often" are few: k different ones need 0 + 1 + … windows, so there are at most sqrt(2 samples) of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.blocks import BLOCK_SAMPLES, FIRST_BLOCK_SAMPLES, NUM_LANES, OrderPhase
from crisp_stream.order.draws import Int64s, Rows, block_offsets
from crisp_stream.order.order import SampleOrder

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.sources import Sources

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
class SourceCounts:
    """Leaves, clusters and windows of one source that the order serves before a position."""

    level: int
    """Level of the clusters."""
    samples: int = 0
    most_draws: int = 0
    """Times that its window served most often is served."""
    leaves_reachable: int = 0
    leaves_hit: int = 0
    windows_reachable: int = 0
    windows_served: int = 0
    clusters: int = 0
    clusters_reachable: int = 0
    clusters_hit: int = 0


@dataclass(kw_only=True)
class Counts:
    """What the order serves before a position."""

    phases: list[PhaseCounts]
    sources: list[SourceCounts]
    misplaced: float = 0.0
    """Half the sum of |draws - share|, in samples."""
    spread: float = 0.0
    """Sum over the leaves of the standard deviation of multinomial draws, in samples."""
    occurrences: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    """[num_values], times that a window is served, increasing; 0 stands for reachable windows that are not."""
    windows_per_occurrence: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    top: Int64s = field(default_factory=lambda: np.empty((0, 4), np.int64))
    """[num_top, 4], source, cluster, windows, draws of the most repeated ones, most first."""


def slices(first: int, stop: int, size: int = SLICE) -> Iterator[Rows]:
    """Yield rows of the table, so many at a time that arrays over them cost little."""
    for start in range(first, stop, size):
        yield np.arange(start, min(start + size, stop), dtype=np.uint32)  # as in plans, or these would be copied


def phases_before(order: SampleOrder, samples: int) -> list[tuple[OrderPhase, int]]:
    """List the phases of the first `samples` samples, and how many of them each has."""
    phases = []
    for phase in order.phases:
        left = samples - phase.first_sample
        served = left if phase.num_samples is None else min(left, phase.num_samples)
        if served > 0:
            phases.append((phase, served))
    return phases


def count(sources: Sources, order: SampleOrder, samples: int, *, draw: str, levels: Sequence[int], top: int) -> Counts:
    """Count the first `samples` samples (at least 1) of an order, whose caches are used.

    `levels` are those of the clusters that are counted, of each source; `top` how many of the most repeated ones are
    named.
    """
    phases, table = phases_before(order, samples), order.table
    counts = Counts(
        phases=[PhaseCounts(samples=served) for _, served in phases],
        sources=[SourceCounts(level=level) for level in levels],
    )
    strays = [Stray(served) for _, served in phases]
    for source, (dataset, of_source) in enumerate(zip(sources.datasets, counts.sources, strict=True)):
        clusters = Clusters(dataset, source, of_source.level, top)
        for rows in slices(*table.first_rows[source : source + 2].tolist()):
            windows = table.windows_per_row[rows]
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
            of_source.samples += int(draws.sum())
            of_source.most_draws = max(of_source.most_draws, int((-(-draws // windows)).max()))
            of_source.leaves_reachable += int(reachable.sum())
            of_source.leaves_hit += int((draws > 0).sum())
            of_source.windows_reachable += int(windows.sum(where=reachable))
            of_source.windows_served += int(np.minimum(draws, windows).sum())
            add_occurrences(counts, draws[reachable], windows[reachable])
            clusters.add(windows, draws, reachable)
        clusters.finish(counts)
    finish(counts, strays, draw, samples)
    return counts


def finish(counts: Counts, strays: Sequence[Stray], draw: str, samples: int) -> None:
    """Fill in the bounds of the phases."""
    for phase, stray in zip(counts.phases, strays, strict=True):
        phase.error_bound = stray.bound()
    if draw == "multinomial":
        bound_multinomial(counts, samples)


def shares_of(phase: OrderPhase, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Look up the proportion of each row in a phase, [num_rows], and whether it has any, [num_rows]."""
    shares = phase.shares()
    entries, has_mass = shares.entries_of(rows)
    before = np.where(entries > 0, shares.cdf[entries - 1], 0.0)
    return np.where(has_mass, shares.cdf[entries] - before, 0.0), has_mass


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


class Stray:
    """Bound of how far the systematic draws of a phase can miss their shares, whatever the seed.

    In a block a leaf gets the draws whose offset lies in an arc of the length of its fractional part, so over B blocks
    it misses its share by no more than the discrepancy of the offsets over arcs, which the start of their sequence does
    not change. Of what all leaves have too much, the others have too little, so the smaller of both bounds holds.
    """

    def __init__(self, served: int) -> None:
        """Begin with no leaves; `served` are the samples of the phase that are served."""
        # The first small blocks together are one large block: their offsets are evenly spaced.
        large, small_samples = divmod(served, BLOCK_SAMPLES)
        small, rest = divmod(small_samples, FIRST_BLOCK_SAMPLES) if not large else (0, small_samples)
        num_first = BLOCK_SAMPLES // FIRST_BLOCK_SAMPLES
        of_large = block_offsets(0, 0, num_first, num_first + large, num_first=num_first)
        of_small = block_offsets(0, 0, 0, small, num_first=num_first)
        self._groups = [
            (BLOCK_SAMPLES, large, _arc_discrepancy(of_large)),
            (FIRST_BLOCK_SAMPLES, small, _arc_discrepancy(of_small)),
        ]
        self._rest, self._rest_block = rest, BLOCK_SAMPLES if large else FIRST_BLOCK_SAMPLES
        self._leaves = 0
        self._over, self._under = np.zeros(3), np.zeros(3)

    def add(self, shares: NDArray[np.float64]) -> None:
        """Take in some leaves with mass: [num_leaves]."""
        self._leaves += len(shares)
        for at, (size, blocks, arcs) in enumerate(self._groups):
            fraction = (shares * size) % 1.0
            self._over[at] += np.minimum(arcs, blocks * (1 - fraction)).sum()
            self._under[at] += np.minimum(arcs, blocks * fraction).sum()
        fraction = (shares * self._rest_block) % 1.0
        self._over[2] += (1 - fraction).sum()
        self._under[2] += fraction.sum()

    def bound(self) -> float:
        """Compute the bound, in samples."""
        of_blocks, of_rest = np.split(np.minimum(self._over, self._under), [2])
        # Spread over its lane, a leaf is within one draw of its share of any prefix, and so is the lane as a whole;
        # lane borders cut at most NUM_LANES - 1 leaves, and lanes may be ahead of others by one draw.
        of_rest = float(of_rest[0]) * self._rest / self._rest_block + self._leaves + 1.5 * NUM_LANES
        num_blocks = sum(blocks for _, blocks, _ in self._groups)
        return float(of_blocks.sum()) + min(of_rest, self._rest) + _ROUNDING * (num_blocks + 1) * self._leaves


def _arc_discrepancy(offsets: Int64s) -> float:
    """Find the most by which the number of offsets in any arc of the circle differs from their number x length."""
    blocks = len(offsets)
    if not blocks:
        return 0.0
    above = np.arange(1, blocks + 1) - blocks * (np.sort(offsets) / 2.0**44)
    return float(above.max() - above.min() + _ONE_BLOCK)


class Clusters:
    """Sums over the leaves of each cluster of a source, slice by slice; a cluster may go on in the next slice."""

    def __init__(self, dataset: Dataset, source: int, level: int, top: int) -> None:
        manifest = dataset.manifest
        self._leaves, self._source, self._top, self._next = dataset.leaves, source, top, 0
        self._leaves_per_cluster = np.uint32(manifest.arity ** (manifest.depth - level))
        self._open = np.empty((0, 4), np.int64)
        self._most_repeated = np.empty((0, 4), np.int64)
        self._numbers = np.zeros(3, np.int64)

    def add(self, windows: Int64s, draws: Int64s, reachable: NDArray[np.bool_]) -> None:
        """Take in the next leaves."""
        leaves = self._leaves[self._next : self._next + len(windows)]
        self._next += len(windows)
        clusters = (leaves // self._leaves_per_cluster).astype(np.int64)
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
        """Write the sums into the counts, beside those of other sources."""
        self._close(self._open)
        counts.top = _most_repeated(np.concatenate([counts.top, self._most_repeated]), self._top)
        of_source = counts.sources[self._source]
        of_source.clusters, of_source.clusters_reachable, of_source.clusters_hit = map(int, self._numbers)

    def _close(self, table: Int64s) -> None:
        self._numbers += [len(table), int((table[:, 3] > 0).sum()), int((table[:, 2] > 0).sum())]
        drawn = np.insert(table[table[:, 2] > 0][:, :3], 0, self._source, axis=1)
        self._most_repeated = _most_repeated(np.concatenate([self._most_repeated, drawn]), self._top)


def _most_repeated(clusters: Int64s, top: int) -> Int64s:
    """Those with most draws per window, most first."""
    return clusters[np.argsort(-(clusters[:, 3] / clusters[:, 2]), kind="stable")[:top]]
