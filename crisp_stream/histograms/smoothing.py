"""Smoothing for tiny example sets: back-off along the tree.

With few examples most of a fine level's clusters are never hit, and the hit ones by chance. But the tree says which
clusters are alike, and the corpus how its windows spread below each node. So the children of a node get a Dirichlet
posterior whose prior is the corpus: with n_c of their windows in child c of node p,

    P(c | p) = (n_c + strength · P(c | p, D^g)) / (n_p + strength)

with a strength for each level, and P(c) is the product from the root down to `level`, below which windows are drawn
uniformly, as for any histogram. A strength counts as so many windows distributed like the corpus: 0 gives the raw
counts, infinity the base mixture. Nodes without examples pass what they have on as the corpus spreads below them.
Windows in clusters of which the corpus has no window count for the nodes above. All windows of the examples count
alike: the short last window of an example as much as a full one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histograms.arithmetic import generalist_histogram
from crisp_stream.histograms.component import check_tree
from crisp_stream.histograms.histogram import Histogram

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class LevelNodes:
    """The nodes of a level that have windows."""

    nodes: NDArray[np.uint32]
    """[num_nodes], sorted."""
    parents: NDArray[np.int64]
    """[num_nodes], rows of the level above."""
    share_of_parent: NDArray[np.float64]
    """[num_nodes], P(c | p, D^g): windows of the node over those of its parent."""


def levels_of(dataset: Dataset, level: int) -> list[LevelNodes]:
    """Make levels 1 to `level` of a dataset's tree, with the share of windows below each node."""
    levels = []
    above = generalist_histogram(dataset, 0)
    for number in range(1, level + 1):
        histogram = generalist_histogram(dataset, number)
        parents = np.searchsorted(above.nodes, histogram.nodes // np.uint32(histogram.arity))
        share = histogram.proportions / above.proportions[parents]
        levels.append(LevelNodes(nodes=histogram.nodes, parents=parents, share_of_parent=share))
        above = histogram
    return levels


def smooth(
    histogram: Histogram, dataset: Dataset, *, strength: float | Sequence[float], level: int | None = None
) -> Histogram:
    """Back a counted histogram off towards the corpus, level by level.

    Args:
        histogram: with counts, of the dataset's tree.
        dataset: the corpus.
        strength: windows that the prior counts as, 0 or more: for all levels, or one for each from 1 on;
            `tuning.tune` finds them.
        level: of the result, at most the histogram's; the histogram's when None.

    Returns:
        A histogram over all nodes of the level that have windows (with strength 0: those with examples).

    Raises:
        InputError: a histogram without counts or of another tree, a level that is finer or none, a bad strength.
    """
    check_tree(histogram, dataset, what="smooth")
    level = histogram.level if level is None else level
    if histogram.counts is None:
        raise InputError("smooth: the histogram must have counts; it was computed from others. Smooth those first.")
    if not 1 <= level <= histogram.level:
        raise InputError(f"smooth: level must be 1 to {histogram.level}, that of the histogram, got {level}.")
    strengths = [strength] * level if isinstance(strength, int | float) else list(strength)
    if len(strengths) != level or not all(np.isfinite(one) and one >= 0 for one in strengths):
        raise InputError(
            f"smooth: strength must be a finite number >= 0, or one for each of the levels 1 to {level}, "
            f"got {strength}."
        )
    mass = np.ones(1)
    levels = levels_of(dataset, level)
    for number, (level_nodes, prior) in enumerate(zip(levels, strengths, strict=True), start=1):
        counts = _counts_at(histogram, level_nodes.nodes, number)
        of_parents = np.bincount(level_nodes.parents, weights=counts, minlength=len(mass))
        totals = of_parents[level_nodes.parents] + prior
        posterior = (counts + prior * level_nodes.share_of_parent) / np.where(totals > 0, totals, 1.0)
        posterior = np.where(totals > 0, posterior, level_nodes.share_of_parent)  # no examples, and no prior
        mass = mass[level_nodes.parents] * posterior
    return dataclasses.replace(
        histogram,
        level=level,
        nodes=levels[-1].nodes,
        proportions=mass / mass.sum(),
        counts=None,
        provenance={"smooth": histogram.provenance, "strength": [float(one) for one in strengths], "level": level},
    )


def _counts_at(histogram: Histogram, nodes: NDArray[np.uint32], level: int) -> NDArray[np.float64]:
    """Count the examples below each node, [num_nodes]; those in nodes without windows are left out."""
    assert histogram.counts is not None
    above = histogram.nodes // np.uint32(histogram.arity ** (histogram.level - level))
    at = np.minimum(np.searchsorted(nodes, above), len(nodes) - 1)
    hit = nodes[at] == above
    return np.bincount(at[hit], weights=histogram.counts[hit], minlength=len(nodes)).astype(np.float64)
