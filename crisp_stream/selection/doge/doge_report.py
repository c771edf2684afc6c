"""What DoGE found, as a table: the heaviest clusters beside their share of the corpus and their CRISP weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import compare, cut, effective_clusters, generalist_histogram
from crisp_stream.histograms.histogram import Histogram

_TOP = 16


@dataclass(frozen=True, kw_only=True)
class ComparedCluster:
    """A cluster as Figure 13 of the CRISP paper shows it."""

    node: int
    weight: float
    """Proportion by DoGE."""
    corpus_share: float
    other: float | None
    """Proportion in the compared histogram; None without one."""


def compared_clusters(
    histogram: Histogram, dataset: Dataset, other: Histogram | None = None, *, limit: int = _TOP
) -> list[ComparedCluster]:
    """List the heaviest clusters by the mean of both weights, heaviest first (CRISP, Figure 13: the top 16).

    Args:
        histogram: result of DoGE.
        dataset: dataset whose windows are counted for the share of the corpus.
        other: histogram of the same tree; a finer one is cut to the level.
        limit: most clusters.

    Raises:
        InputError: the other histogram is of another tree, or of a coarser level.
    """
    corpus = generalist_histogram(dataset, histogram.level)
    if other is not None:
        other = comparable(other, histogram.level, histogram.tree_fingerprint)
    sources = [source for source in (histogram, other) if source is not None]
    nodes = np.unique(np.concatenate([source.nodes for source in sources]))
    shares = np.array([_shares_of(source, nodes) for source in sources])
    corpus_shares = _shares_of(corpus, nodes)
    order = np.argsort(-shares.mean(axis=0), kind="stable")[:limit]
    return [
        ComparedCluster(
            node=int(nodes[at]),
            weight=float(shares[0, at]),
            corpus_share=float(corpus_shares[at]),
            other=float(shares[1, at]) if len(sources) > 1 else None,
        )
        for at in order
    ]


def doge_table(histogram: Histogram, dataset: Dataset, other: Histogram | None = None, *, limit: int = _TOP) -> str:
    """The heaviest clusters, how far the histograms are apart, and what it cost, as lines of text."""
    rows = compared_clusters(histogram, dataset, other, limit=limit)
    lines = [f"{'cluster':>9} {'DoGE':>8} {'corpus':>8} {'ratio':>7}" + ("" if other is None else f" {'compared':>8}")]
    for row in rows:
        ratio = f"{row.weight / row.corpus_share:>7.2f}" if row.corpus_share else f"{'-':>7}"
        compared = "" if row.other is None else f" {row.other:>8.2%}"
        lines.append(f"{row.node:>9} {row.weight:>8.2%} {row.corpus_share:>8.2%} {ratio}{compared}")
    corpus = generalist_histogram(dataset, histogram.level)
    lines += ["", f"effective clusters       {effective_clusters(histogram):.1f} of {len(corpus.nodes)}"]
    lines.append(f"from the corpus          {compare(histogram, corpus).total_variation:.4f} total variation")
    if other is not None:
        distance = compare(histogram, comparable(other, histogram.level, histogram.tree_fingerprint))
        lines.append(f"from the compared        {distance.total_variation:.4f} total variation")
        lines.append(f"Jensen-Shannon           {distance.jensen_shannon:.4f} nats")
    cost = histogram.provenance.get("cost")
    if isinstance(cost, dict):
        lines.append(
            f"cost                     {cost['seconds']:,.0f} s on {cost['device']}, {cost['corpus_tokens']:,} tokens "
            f"of the corpus and {cost['specialist_tokens']:,} of the text, {cost['flops']:.3g} FLOPs"
        )
    return "\n".join(lines)


def comparable(other: Histogram, level: int, tree_fingerprint: str) -> Histogram:
    """Cut a histogram to a level of a tree.

    Raises:
        InputError: the histogram is of another tree, or of a coarser level.
    """
    if other.tree_fingerprint != tree_fingerprint:
        raise InputError(
            f"the compared histogram must come from tree {tree_fingerprint[:12]}, got one of "
            f"{other.tree_fingerprint[:12]}. Count it again with the same --data."
        )
    if other.level < level:
        raise InputError(
            f"the compared histogram must be of level {level} or deeper, got {other.level}. "
            f"Count it again with --level {level}."
        )
    return cut(other, level)


def _shares_of(histogram: Histogram, nodes: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Look up the proportion of each node, [num_nodes], 0 where the histogram has none."""
    at = np.searchsorted(histogram.nodes, nodes)
    at[at == len(histogram.nodes)] = 0
    return np.where(histogram.nodes[at] == nodes, histogram.proportions[at], 0.0)
