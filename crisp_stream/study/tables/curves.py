"""How far a method is better than base along what methods differ in: clusters, examples, corpus, generic share.

(CRISP, Figures 5, 11 and 12.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyCurve, StudyMethod
from crisp_stream.study.tables.cells import Cell, StudyTable, figure_line, ratio_cell
from crisp_stream.study.tables.comparisons import STAGES, Column, Figure, Stage, against, own_columns, question_columns
from crisp_stream.study.tables.methods import TITLES, has_stage

AXES = {
    "clusters": "clusters",
    "examples": "specialist examples",
    "corpus_windows": "windows of the corpus",
    "generic_share": "share of the run on base",
}
"""What each axis is called."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A method at its place along a curve, on one column."""

    line: str
    """What the line through it is called: the kind of method, and the encoder where there are several."""
    method: str
    place: float
    column: Column
    found: Figure | None
    """Against base; None for base itself, which lies at no difference."""


def curve_points(study: StudyResults, curve: StudyCurve, stage: Stage) -> list[CurvePoint]:
    """All points of a stage, by line and place. Methods of which the place is not known are left out; base belongs to
    every line."""
    columns = [own for own in (*own_columns(study, stage), *question_columns(study, stage)) if not own.is_mean]
    methods = [study.method(name) for name in curve.methods]
    others = [method for method in methods if method.kind != "base"]
    encoders = {study.datasets[method.dataset].encoder for method in others}
    lines = {method.name: _line(study, method, with_encoder=len(encoders) > 1) for method in others}
    points = []
    for method, column in itertools.product(methods, columns if has_stage(study, stage) else []):
        place = _place(study, method, curve, column)
        if place is None:
            continue
        found = None if method.kind == "base" else against(study, method.name, study.base, column)
        own = list(dict.fromkeys(lines.values())) if method.kind == "base" else [lines[method.name]] if found else []
        points += [CurvePoint(line=line, method=method.name, place=place, column=column, found=found) for line in own]
    return sorted(points, key=lambda point: (point.line, point.place))


def _line(study: StudyResults, method: StudyMethod, *, with_encoder: bool) -> str:
    return f"{method.kind}, {study.datasets[method.dataset].encoder}" if with_encoder else method.kind


def _place(study: StudyResults, method: StudyMethod, curve: StudyCurve, column: Column) -> float | None:
    """Where a method stands along a curve. Base is one cluster, and all generic; it has no place elsewhere."""
    if curve.along == "generic_share":
        return 1.0 if method.kind == "base" else method.generic_share
    if method.kind == "base":
        return 1.0 if curve.along == "clusters" else None
    if curve.along == "examples" and method.examples is None:
        return float(study.specialists[column.places[0].specialist].documents)
    value = getattr(method, curve.along)
    return None if value is None else float(value)


def curve_tables(study: StudyResults) -> list[StudyTable]:
    """A table for each curve and stage."""
    found = [_table(study, curve, stage) for curve in study.curves for stage in STAGES]
    return [table for table in found if table.rows]


def _table(study: StudyResults, curve: StudyCurve, stage: Stage) -> StudyTable:
    points = [point for point in curve_points(study, curve, stage) if point.found is not None]
    columns = list(dict.fromkeys(point.column for point in points))
    rows = []
    for line, method in dict.fromkeys((point.line, point.method) for point in points):
        own = {point.column: point for point in points if (point.line, point.method) == (line, method)}
        found = [own[column].found if column in own else None for column in columns]
        rows.append(
            [Cell(line), Cell(method), Cell(_places(point.place for point in own.values())), *map(ratio_cell, found)]
        )
    return StudyTable(
        name=f"curve-{curve.name}-{stage}",
        title=f"Along {AXES[curve.along]}, {TITLES[stage]}",
        caption=f"ratio of perplexities to {study.base}, below 1 is better, or difference of accuracies in points, "
        "[95 % interval]",
        head=("line", "method", AXES[curve.along], *(column.title for column in columns)),
        rows=rows,
        lines=[
            figure_line(point.found, point.column, curve=curve.name, line=point.line, method=point.method)
            | {"along": curve.along, "place": point.place}
            for point in points
            if point.found is not None
        ],
        left=2,
    )


def _places(places: Iterable[float]) -> str:
    """A place, or the lowest and the highest where specialists differ."""
    known = sorted(set(places))
    shown = [f"{place:g}" if place < 1 else f"{place:,.0f}" for place in (known[0], known[-1])]
    return shown[0] if len(known) == 1 else f"{shown[0]} to {shown[1]}"
