"""The weights of DoGE as a table: the heaviest clusters beside their share of the corpus and their CRISP weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import compare, cut, effective_clusters, generalist_histogram
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.table import NONE, Table, TableGroup, aligned

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
    histogram: Histogram, corpus: Histogram, other: Histogram | None = None, *, limit: int = _TOP
) -> list[ComparedCluster]:
    """List the heaviest clusters by the mean of both weights, heaviest first (CRISP, Figure 13: the top 16).

    All histograms are of one level of one tree (`comparable`).
    """
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


def doge_table(
    histogram: Histogram, dataset: Dataset, other: Histogram | None = None, *, limit: int = _TOP
) -> TableGroup:
    """Tabulate the heaviest clusters; the notes say how far the histograms are apart, and what DoGE cost.

    `other` is of the same level (`comparable`).
    """
    corpus = generalist_histogram(dataset, histogram.level)
    head = ("cluster", "DoGE", "corpus", "ratio", *(() if other is None else ("compared",)))
    rows = [
        [
            str(row.node),
            f"{row.weight:.2%}",
            f"{row.corpus_share:.2%}",
            f"{row.weight / row.corpus_share:.2f}" if row.corpus_share else NONE,
            *(() if row.other is None else (f"{row.other:.2%}",)),
        ]
        for row in compared_clusters(histogram, corpus, other, limit=limit)
    ]
    facts = [
        ("effective clusters", f"{effective_clusters(histogram):.1f} of {len(corpus.nodes)}"),
        ("from the corpus", f"{compare(histogram, corpus).total_variation:.4f} total variation"),
    ]
    if other is not None:
        distance = compare(histogram, other)
        facts.append(("from the compared", f"{distance.total_variation:.4f} total variation"))
        facts.append(("Jensen-Shannon", f"{distance.jensen_shannon:.4f} nats"))
    cost = histogram.provenance.get("cost")
    if isinstance(cost, dict):
        tokens = f"{cost['corpus_tokens']:,} tokens of the corpus and {cost['specialist_tokens']:,} of the text"
        facts.append(("cost", f"{cost['seconds']:,.0f} s on {cost['device']}, {tokens}, {cost['flops']:.3g} FLOPs"))
    return TableGroup(tables=[Table(head=head, rows=rows, words=())], notes=[aligned(facts)])


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
