"""Weights of clusters by two methods beside one another (CRISP, Figure 13)."""

from __future__ import annotations

from dataclasses import dataclass

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyWeights
from crisp_stream.study.tables.cells import Cell, StudyTable

TOP = 16
"""Clusters shown, by mean weight, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class WeighedCluster:
    """A cluster and what each method makes of it."""

    node: int
    term: str
    proportions: dict[str, float]
    """By method."""
    corpus: float


@dataclass(frozen=True, kw_only=True)
class ComparedWeights:
    """What methods make of one level's clusters for one specialist."""

    specialist: str
    level: int
    methods: tuple[str, ...]
    top: tuple[WeighedCluster, ...]
    """The heaviest by the mean over methods, heaviest first."""
    num_clusters: int
    """That any of them draws from."""
    total_variation: float | None
    """Between two methods, in [0, 1]; None of more or fewer."""


def compared_weights(study: StudyResults, *, top: int = TOP) -> list[ComparedWeights]:
    """A comparison for each specialist and level of which weights are known."""
    groups: dict[tuple[str, int], list[StudyWeights]] = {}
    for own in study.weights:
        groups.setdefault((own.specialist, own.level), []).append(own)
    return [_compared(specialist, level, own, top) for (specialist, level), own in groups.items()]


def _compared(specialist: str, level: int, weights: list[StudyWeights], top: int) -> ComparedWeights:
    by_method = {own.method: dict(zip(own.nodes, own.proportions, strict=True)) for own in weights}
    corpus = {node: share for own in weights for node, share in zip(own.nodes, own.corpus, strict=True)}
    terms = {node: term for own in weights for node, term in zip(own.nodes, own.terms, strict=False)}
    clusters = [
        WeighedCluster(
            node=node,
            term=terms.get(node, ""),
            proportions={method: own.get(node, 0.0) for method, own in by_method.items()},
            corpus=share,
        )
        for node, share in sorted(corpus.items())
    ]
    clusters.sort(key=lambda own: -sum(own.proportions.values()))
    distance = None
    if len(by_method) == 2:
        first, second = by_method
        distance = sum(abs(own.proportions[first] - own.proportions[second]) for own in clusters) / 2
    return ComparedWeights(
        specialist=specialist,
        level=level,
        methods=tuple(by_method),
        top=tuple(clusters[:top]),
        num_clusters=len(clusters),
        total_variation=distance,
    )


def weight_tables(study: StudyResults) -> list[StudyTable]:
    """A table for each comparison of two methods or more."""
    return [_table(found) for found in compared_weights(study) if len(found.methods) > 1]


def _table(found: ComparedWeights) -> StudyTable:
    whom = found.specialist or "all"
    notes = []
    if found.total_variation is not None:
        notes.append(
            f"total variation between {found.methods[0]} and {found.methods[1]}: {found.total_variation:.3f} "
            f"over {found.num_clusters:,} clusters"
        )
    return StudyTable(
        name=f"weights-{whom}",
        title=f"Weights of the clusters of level {found.level} for {whom}",
        caption=f"% of the mixture by each method and of the corpus; the {len(found.top)} heaviest by mean",
        head=("cluster", "about", *found.methods, "corpus"),
        rows=[
            [
                Cell(str(own.node)),
                Cell(own.term),
                *(Cell(f"{100 * share:.1f}") for share in (*own.proportions.values(), own.corpus)),
            ]
            for own in found.top
        ],
        notes=notes,
        lines=[
            {"specialist": found.specialist, "level": found.level, "cluster": own.node, "about": own.term}
            | own.proportions
            | {"corpus": own.corpus}
            for own in found.top
        ],
        left=2,
    )
