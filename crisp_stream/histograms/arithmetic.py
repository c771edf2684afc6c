"""Arithmetic of histograms: the generalist one, interpolation with it, importance weights, coarser levels, comparison.

Averages stand in histogram.py, smoothing in smoothing.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.errors import InputError
from crisp_stream.histograms.chance import Chance, by_chance, distance_by_chance
from crisp_stream.histograms.component import check_tree, windows_per_node
from crisp_stream.histograms.histogram import Histogram

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset


def generalist_histogram(dataset: Dataset, level: int) -> Histogram:
    """Count P(c | D^g) of a level by the cluster table: windows per node over all windows.

    Raises:
        InputError: a level the tree does not have; level 0 is its root, which holds everything.
    """
    manifest = dataset.manifest
    if not 0 <= level <= manifest.depth:
        raise InputError(
            f"level: must be 0 to {manifest.depth}, the depth of the tree, got {level}. Choose one of these."
        )
    nodes_of_leaves = dataset.leaves // np.uint32(manifest.arity ** (manifest.depth - level))
    first = np.flatnonzero(np.append(True, nodes_of_leaves[1:] != nodes_of_leaves[:-1]))
    counts = np.add.reduceat(dataset.windows_per_leaf, first)
    return dataclasses.replace(
        Histogram.base(manifest),
        level=level,
        nodes=nodes_of_leaves[first],
        proportions=counts / counts.sum(),
        counts=counts,
        provenance={"name": "generalist"},
    )


def interpolate(histogram: Histogram, dataset: Dataset, base_share: float) -> Histogram:
    """Mix a task's histogram with the corpus's: λ P(c | D^g) + (1 - λ) P(c | D^s).

    Args:
        histogram: of the dataset's tree.
        dataset: whose windows are counted for P(c | D^g).
        base_share: λ, 0 for the histogram itself to 1 for the base mixture.

    Raises:
        InputError: a histogram of another tree, a share outside 0 to 1.
    """
    check_tree(histogram, dataset, what="interpolate")
    if not 0 <= base_share <= 1:
        raise InputError(f"base share: must be 0 to 1, got {base_share}.")
    base = generalist_histogram(dataset, histogram.level)
    mixed = Histogram.average([histogram, base], [1 - base_share, base_share])
    return dataclasses.replace(mixed, provenance={"interpolate": histogram.provenance, "base_share": float(base_share)})


def importance_weights(histogram: Histogram, dataset: Dataset) -> NDArray[np.float64]:
    """Weigh each node of a histogram by w(c) = P(c | D^s) / P(c | D^g) (paper, Equation 3).

    Returns:
        [num_nodes]; inf for nodes without windows in the dataset.

    Raises:
        InputError: a histogram of another tree.
    """
    check_tree(histogram, dataset, what="importance weights")
    shares = windows_per_node(histogram, dataset) / dataset.manifest.num_windows
    return np.divide(histogram.proportions, shares, out=np.full(len(shares), np.inf), where=shares > 0)


def cut(histogram: Histogram, level: int) -> Histogram:
    """Move the mass to the nodes of a coarser level: counts, proportions and examples add up.

    Raises:
        InputError: a finer level than the histogram's, or none of the tree.
    """
    if not 0 <= level <= histogram.level:
        raise InputError(
            f"level: must be 0 to {histogram.level}, that of the histogram, got {level}. "
            "For a finer one count the examples at that level."
        )
    above = histogram.nodes // np.uint32(histogram.arity ** (histogram.level - level))
    first = np.flatnonzero(np.append(True, above[1:] != above[:-1]))
    proportions = np.add.reduceat(histogram.proportions, first)
    return dataclasses.replace(
        histogram,
        level=level,
        nodes=above[first],
        proportions=proportions / proportions.sum(),
        counts=None if histogram.counts is None else np.add.reduceat(histogram.counts, first),
        provenance={**histogram.provenance, "cut_from_level": histogram.level},
    )


def effective_clusters(histogram: Histogram) -> float:
    """Number of equally heavy clusters that would be as spread out: exp of the entropy."""
    return float(np.exp(-(histogram.proportions * np.log(histogram.proportions)).sum()))


def chance_of(histogram: Histogram, dataset: Dataset) -> Chance | None:
    """Figures of as many random windows of the corpus as were counted; None where none were, or of level 0."""
    if histogram.counts is None or not histogram.level:
        return None
    return by_chance(generalist_histogram(dataset, histogram.level).proportions, int(histogram.counts.sum()))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One cluster of two histograms."""

    node: int
    first: float
    """Proportion in the first."""
    second: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two histograms of one level."""

    level: int
    total_variation: float
    """Half the sum of absolute differences, 0 to 1; 1 - it is what they share."""
    total_variation_by_chance: float | None
    """What sampling alone would give: its mean if all windows were of one mixture; None where they were not counted."""
    first_from_second: float
    """KL(first || second) in nats; inf where the second lacks a cluster of the first."""
    second_from_first: float
    """KL(second || first) in nats."""
    jensen_shannon: float
    """Divergence in nats, 0 to log 2."""
    differences: tuple[Difference, ...]
    """The clusters that differ most, largest difference first."""

    def to_json(self) -> dict[str, Any]:
        """Make a JSON object; infinite divergences are null."""
        content = dataclasses.asdict(self)
        for name in ("first_from_second", "second_from_first"):
            content[name] = content[name] if np.isfinite(content[name]) else None
        return content

    def _by_chance(self) -> str:
        if self.total_variation_by_chance is None:
            return "not known: one of them was computed, not counted"
        return f"{digits.part(self.total_variation_by_chance)} (as many windows each, all of one mixture)"

    def table(self) -> str:
        """Format as lines of text."""
        lines = [
            f"level                    {self.level}",
            f"total variation          {digits.part(self.total_variation)} (0%: equal, 100%: disjoint)",
            f"  by sampling alone      {self._by_chance()}",
            f"KL(first || second)      {self.first_from_second:.4f} nats",
            f"KL(second || first)      {self.second_from_first:.4f} nats",
            f"Jensen-Shannon           {self.jensen_shannon:.4f} nats of at most {np.log(2):.4f}",
            "",
            f"{'cluster':>9} {'first':>8} {'second':>8} {'difference':>10}",
        ]
        lines += [
            f"{row.node:>9} {row.first:>8.2%} {row.second:>8.2%} {row.first - row.second:>+10.2%}"
            for row in self.differences
        ]
        return "\n".join(lines)


def compare(first: Histogram, second: Histogram, *, limit: int = 10) -> Comparison:
    """Compare two histograms of one tree; the finer one is cut to the level of the other.

    At most `limit` differences are named.

    Raises:
        InputError: histograms of different trees, or one of them of level 0.
    """
    first.check_same_tree(second)
    level = min(first.level, second.level)
    if level == 0:
        raise InputError("compare: the base mixture has no level. Use the generalist histogram of a level.")
    first, second = cut(first, level), cut(second, level)
    nodes = np.union1d(first.nodes, second.nodes)
    shares = np.zeros((2, len(nodes)))
    for row, histogram in zip(shares, (first, second), strict=True):
        row[np.searchsorted(nodes, histogram.nodes)] = histogram.proportions
    chance = None
    if first.counts is not None and second.counts is not None:
        counts = np.zeros((2, len(nodes)), np.int64)
        counts[0, np.searchsorted(nodes, first.nodes)] = first.counts
        counts[1, np.searchsorted(nodes, second.nodes)] = second.counts
        chance = distance_by_chance(counts[0], counts[1])
    middle = shares.mean(axis=0)
    order = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")[:limit]
    return Comparison(
        level=level,
        total_variation=float(np.abs(shares[0] - shares[1]).sum() / 2),
        total_variation_by_chance=chance,
        first_from_second=_kl(shares[0], shares[1]),
        second_from_first=_kl(shares[1], shares[0]),
        jensen_shannon=(_kl(shares[0], middle) + _kl(shares[1], middle)) / 2,
        differences=tuple(
            Difference(node=int(nodes[at]), first=float(shares[0, at]), second=float(shares[1, at])) for at in order
        ),
    )


def total_variation(first: Histogram, second: Histogram) -> float:
    """Half the sum of absolute differences of two histograms of one tree and level, 0 to 1. Raises InputError."""
    first.check_same_tree(second)
    if first.level != second.level:
        raise InputError(f"histograms must have one level, got {first.level} and {second.level}. Cut the finer one.")
    shared, of_first, of_second = np.intersect1d(first.nodes, second.nodes, assume_unique=True, return_indices=True)
    return (
        1.0 - float(np.minimum(first.proportions[of_first], second.proportions[of_second]).sum())
        if len(shared)
        else 1.0
    )


def _kl(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    present = first > 0
    if (second[present] == 0).any():
        return float("inf")
    return float((first[present] * np.log(first[present] / second[present])).sum())
