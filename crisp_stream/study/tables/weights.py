"""Weights of clusters by two methods beside one another (CRISP, Figure 13)."""

from __future__ import annotations

from dataclasses import dataclass

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyWeights
from crisp_stream.table import Table

TOP = 16
"""Clusters shown, by mean weight, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class WeighedCluster:
    """A cluster and its weight by each method."""

    node: int
    term: str
    proportions: dict[str, float]
    """Share of the mixture, by method."""
    corpus: float
    """Share of the corpus's windows."""


@dataclass(frozen=True, kw_only=True)
class ComparedWeights:
    """Weights of one level's clusters by several methods, for one specialist."""

    specialist: str
    level: int
    methods: tuple[str, ...]
    top: tuple[WeighedCluster, ...]
    """The heaviest by the mean over methods, heaviest first."""
    num_clusters: int
    """Clusters that any of the methods draws from."""
    total_variation: float | None
    """Distance between two methods, in [0, 1]; None of more or fewer."""


def compared_weights(study: StudyResults) -> list[ComparedWeights]:
    """Compare the methods for each specialist and level of which weights of two or more are known."""
    groups: dict[tuple[str, int], list[StudyWeights]] = {}
    for weights in study.weights:
        groups.setdefault((weights.specialist, weights.level), []).append(weights)
    return [_compared(weights) for weights in groups.values() if len({one.method for one in weights}) > 1]


def _compared(weights: list[StudyWeights]) -> ComparedWeights:
    by_method = {one.method: dict(zip(one.nodes, one.proportions, strict=True)) for one in weights}
    corpus = {node: share for one in weights for node, share in zip(one.nodes, one.corpus, strict=True)}
    terms = {node: term for one in weights for node, term in zip(one.nodes, one.terms, strict=False)}
    clusters = [
        WeighedCluster(
            node=node,
            term=terms.get(node, ""),
            proportions={method: proportions.get(node, 0.0) for method, proportions in by_method.items()},
            corpus=share,
        )
        for node, share in sorted(corpus.items())
    ]
    clusters.sort(key=lambda cluster: -sum(cluster.proportions.values()))
    distance = None
    if len(by_method) == 2:
        first, second = by_method
        distance = sum(abs(cluster.proportions[first] - cluster.proportions[second]) for cluster in clusters) / 2
    return ComparedWeights(
        specialist=weights[0].specialist,
        level=weights[0].level,
        methods=tuple(by_method),
        top=tuple(clusters[:TOP]),
        num_clusters=len(clusters),
        total_variation=distance,
    )


def weight_tables(study: StudyResults) -> list[Table]:
    """Make a table for each comparison."""
    return [_table(compared) for compared in compared_weights(study)]


def _table(compared: ComparedWeights) -> Table:
    whom = compared.specialist or "all"
    notes = []
    if compared.total_variation is not None:
        notes.append(
            f"total variation between {compared.methods[0]} and {compared.methods[1]}: "
            f"{compared.total_variation:.3f} over {compared.num_clusters:,} clusters"
        )
    return Table(
        name=f"weights-{whom}",
        title=f"Weights of the clusters of level {compared.level} for {whom}",
        caption=f"% of the mixture by each method and of the corpus; the {len(compared.top)} heaviest by mean",
        head=("cluster", "about", *compared.methods, "corpus"),
        rows=[
            [
                str(cluster.node),
                cluster.term,
                *(f"{100 * share:.1f}" for share in (*cluster.proportions.values(), cluster.corpus)),
            ]
            for cluster in compared.top
        ],
        notes=notes,
        records=[
            {"specialist": compared.specialist, "level": compared.level, "cluster": cluster.node, "about": cluster.term}
            | cluster.proportions
            | {"corpus": cluster.corpus}
            for cluster in compared.top
        ],
        words=(0, 1),
    )
