"""Methods against base along clusters, examples, corpus or generic share (CRISP, Figures 5, 11 and 12)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyCurve, StudyMethod
from crisp_stream.study.tables.cells import figure_record, ratio_cell
from crisp_stream.study.tables.comparisons import STAGES, Column, Figure, Stage, against, task_columns
from crisp_stream.study.tables.methods import TITLES, has_stage
from crisp_stream.table import Table

AXES = {
    "clusters": "clusters",
    "examples": "specialist examples",
    "corpus_windows": "windows of the corpus",
    "generic_share": "share of the run on base",
}
"""Title of each axis."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A method at its place along a curve, on one column."""

    line: str
    """Name of the line through it: the kind of method, and the encoder where there are several."""
    method: str
    place: float
    column: Column
    compared: Figure | None
    """Figure against base; None for base itself, which lies at no difference."""


def curve_points(study: StudyResults, curve: StudyCurve, stage: Stage) -> list[CurvePoint]:
    """Place the methods of a stage, by line and place, where it is known; base belongs to every line."""
    columns = [column for questions in (False, True) for column in task_columns(study, stage, questions=questions)]
    methods = [study.method(name) for name in curve.methods]
    others = [method for method in methods if method.kind != "base"]
    encoders = {study.datasets[method.dataset].encoder for method in others}
    line_of = {
        method.name: f"{method.kind}, {study.datasets[method.dataset].encoder}" if len(encoders) > 1 else method.kind
        for method in others
    }
    points = []
    for method, column in itertools.product(methods, columns if has_stage(study, stage) else []):
        place = None if column.is_mean else _place(study, method, curve, column)
        if place is None:
            continue
        compared, lines = None, list(dict.fromkeys(line_of.values()))
        if method.kind != "base":
            compared = against(study, method.name, study.base, column)
            lines = [line_of[method.name]] if compared else []
        points += [
            CurvePoint(line=line, method=method.name, place=place, column=column, compared=compared) for line in lines
        ]
    return sorted(points, key=lambda point: (point.line, point.place))


def _place(study: StudyResults, method: StudyMethod, curve: StudyCurve, column: Column) -> float | None:
    """Find where a method stands along a curve. Base is one cluster, and all generic; it has no place elsewhere."""
    if curve.along == "generic_share":
        return 1.0 if method.kind == "base" else method.generic_share
    if method.kind == "base":
        return 1.0 if curve.along == "clusters" else None
    if curve.along == "examples" and method.examples is None:
        return float(study.specialists[column.places[0].specialist].documents)
    value = getattr(method, curve.along)
    return None if value is None else float(value)


def curve_tables(study: StudyResults) -> list[Table]:
    """Make a table for each curve and stage."""
    tables = [_table(study, curve, stage) for curve in study.curves for stage in STAGES]
    return [table for table in tables if table.rows]


def _table(study: StudyResults, curve: StudyCurve, stage: Stage) -> Table:
    points = [point for point in curve_points(study, curve, stage) if point.compared is not None]
    columns = list(dict.fromkeys(point.column for point in points))
    rows = []
    for line, method in dict.fromkeys((point.line, point.method) for point in points):
        by_column = {point.column: point for point in points if (point.line, point.method) == (line, method)}
        cells = [ratio_cell(by_column[column].compared if column in by_column else None) for column in columns]
        rows.append([line, method, _places(point.place for point in by_column.values()), *cells])
    return Table(
        name=f"curve-{curve.name}-{stage}",
        title=f"Along {AXES[curve.along]}, {TITLES[stage]}",
        caption=f"ratio of perplexities to {study.base}, below 1 is better, or difference of accuracies in points, "
        "[95 % interval]",
        head=("line", "method", AXES[curve.along], *(column.title for column in columns)),
        rows=rows,
        records=[
            figure_record(point.compared, point.column, curve=curve.name, line=point.line, method=point.method)
            | {"along": curve.along, "place": point.place}
            for point in points
            if point.compared is not None
        ],
        words=(0, 1),
    )


def _places(places: Iterable[float]) -> str:
    """Show a place, or the lowest and the highest where specialists differ."""
    known = sorted(set(places))
    shown = [f"{place:g}" if place < 1 else f"{place:,.0f}" for place in (known[0], known[-1])]
    return shown[0] if len(known) == 1 else f"{shown[0]} to {shown[1]}"
