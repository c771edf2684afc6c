"""The figures of a study: methods against base (CRISP, Figures 2 to 4), curves (5, 11, 12), weights (13).

Methods stand on the vertical axis, so that names of any number and length can be read. What lies far off, as a model of
the specialist text alone does, is written at the edge instead of stretching the axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.errors import import_extra
from crisp_stream.figure import blank_figure, save_figure
from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyCurve
from crisp_stream.study.tables.comparisons import STAGES, Column, Figure, Stage, against, task_columns
from crisp_stream.study.tables.curves import AXES, CurvePoint, curve_points
from crisp_stream.study.tables.methods import TITLES, has_stage
from crisp_stream.study.tables.weights import ComparedWeights, compared_weights

_FAR = 1.3
"""Ratio beyond which a method is written at the edge."""
_FILLS: dict[Stage, str] = {"pretrained": "full", "finetuned": "none"}
_STYLES: dict[Stage, str] = {"pretrained": "-", "finetuned": "--"}
_SHIFTS: dict[Stage, float] = {"pretrained": -0.16, "finetuned": 0.16}
_MARKER: dict[str, Any] = {"markersize": 4.5, "capsize": 2, "linewidth": 1}
_TERM_CHARACTERS = 26
_LEAST_RANGE = 0.02
_TICK_RATIO = 1.8
"""Places on a logarithmic axis that are nearer than this share a tick."""


def study_figures(study: StudyResults) -> dict[str, Any]:
    """Draw all figures that the study has something for, by the name of their files. Raises MissingExtraError."""
    figures = {"main": main_figure(study)} if len(study.methods) > 1 and _panels(study) else {}
    for curve in study.curves:
        if any(curve_points(study, curve, stage) for stage in STAGES):
            figures[f"curve-{curve.name}"] = curve_figure(study, curve)
    weights = compared_weights(study)
    return {**figures, "weights": weights_figure(weights)} if weights else figures


def save_study_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure; with the same matplotlib, equal figures are equal SVG files."""
    matplotlib = import_extra("matplotlib", extra="eval", purpose="drawing figures")
    with matplotlib.rc_context({"svg.hashsalt": "crisp-stream"}):
        return save_figure(figure, path)


def main_figure(study: StudyResults) -> Any:
    """Draw each method against base with its interval, a panel per specialist: pretrained filled, fine-tuned open."""
    panels = _panels(study)
    methods = [method.name for method in study.methods if method.name != study.base]
    stages: list[Stage] = [stage for stage in STAGES if has_stage(study, stage)]
    figure, axes = _grid(len(panels), width=(1.8, 2.3), height=(0, 1.2 + 0.3 * len(methods)), sharey=True)
    for axis, panel in zip(axes, panels, strict=False):
        shown: list[float] = []
        for stage in stages:
            column = dataclasses.replace(panel, stage=stage)
            compared = {method: against(study, method, study.base, column) for method in methods}
            shown += _dots(axis, compared, stage, far=math.inf if panel.questions else _FAR)
        none = 0 if panel.questions else 1
        axis.axvline(none, color="gray", linewidth=0.8)
        axis.set_xlim(_limits(axis.dataLim.intervalx, shown, none=none))
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(_difference(study, questions=panel.questions), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=5)
        axis.grid(axis="y", linewidth=0.3)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    _legend(figure, _stage_marks(stages))
    return figure


def _grid(
    count: int, *, width: tuple[float, float], height: tuple[float, float], most: int = 4, sharey: bool = False
) -> tuple[Any, Any]:
    """Make a figure of panels, at most `most` beside one another. Sizes: inches around the panels and of each."""
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure = blank_figure(width[0] + width[1] * columns, height[0] + height[1] * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def _difference(study: StudyResults, *, questions: bool) -> str:
    """Label the axis of differences to base."""
    return f"accuracy - {study.base}, points" if questions else f"perplexity / {study.base}"


def _panels(study: StudyResults) -> list[Column]:
    columns = [*task_columns(study, questions=False), *task_columns(study, questions=True)]
    return [column for column in columns if not column.is_mean]


def _limits(drawn: Sequence[float], values: Sequence[float], *, none: float) -> tuple[float, float]:
    """Fit an axis to all values and no difference, and to as much of the intervals as leaves differences to be seen."""
    low, high = min([*values, none]), max([*values, none])
    margin = 0.06 * max(high - low, _LEAST_RANGE)
    room = high - low + margin
    return max(drawn[0], low - room) - margin, min(drawn[1], high + room) + margin


def _dots(axis: Any, compared: Mapping[str, Figure | None], stage: Stage, *, far: float) -> list[float]:
    """Draw one stage of all methods on a panel, or write it at the edge if beyond `far`. Returns the values drawn."""
    shown = []
    for number, figure in enumerate(compared.values()):
        if figure is None:
            continue
        scale = 100 if figure.questions else 1
        value, (low, high) = figure.estimate.value, figure.estimate.interval
        place = number + _SHIFTS[stage]
        if value > far:
            text = f"{value:.2f} →"
            axis.text(0.98, place, text, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=7)
            continue
        errors = None if math.isnan(low) else np.array([[value - low], [high - value]]) * scale
        shown.append(value * scale)
        axis.errorbar(
            *([value * scale], [place]),
            xerr=errors,
            fmt="o",
            fillstyle=_FILLS[stage],
            color=f"C{number % 10}",
            **_MARKER,
        )
    return shown


def _stage_marks(stages: Sequence[Stage], *, lines: bool = False) -> list[Any]:
    from matplotlib.lines import Line2D

    marks = []
    for stage in stages:
        drawn: dict[str, Any] = {"linestyle": _STYLES[stage] if lines else "", "fillstyle": _FILLS[stage]}
        marks.append(Line2D([], [], color="black", marker="o", label=TITLES[stage], **drawn))
    return marks


def _legend(figure: Any, marks: Sequence[Any]) -> None:
    figure.legend(handles=marks, fontsize=8, loc="outside upper center", ncols=min(5, len(marks)), frameon=False)


def curve_figure(study: StudyResults, curve: StudyCurve) -> Any:
    """Draw methods against base along what they differ in, a panel per specialist."""
    from matplotlib.lines import Line2D

    points: dict[Stage, list[CurvePoint]] = {stage: curve_points(study, curve, stage) for stage in STAGES}
    columns_drawn = [point.column for point in points["pretrained"]]
    panels = list(dict.fromkeys((column.places, column.questions, column.title) for column in columns_drawn))
    lines = list(dict.fromkeys(point.line for of_stage in points.values() for point in of_stage))
    figure, axes = _grid(len(panels), width=(0.8, 2.6), height=(0.6, 2.7))
    for axis, (places, questions, title) in zip(axes, panels, strict=False):
        drawn: list[float] = []
        for stage, of_stage in points.items():
            panel = [one for one in of_stage if (one.column.places, one.column.questions) == (places, questions)]
            for number, line in enumerate(lines):
                on_line = [point for point in panel if point.line == line]
                drawn += _line(axis, on_line, f"C{number}", stage, questions=questions)
        none = 0 if questions else 1
        axis.axhline(none, color="gray", linewidth=0.8)
        axis.set_ylim(_limits(axis.dataLim.intervaly, drawn, none=none))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(AXES[curve.along], fontsize=9)
        axis.set_ylabel(_difference(study, questions=questions), fontsize=9)
        axis.tick_params(labelsize=8)
        if curve.along != "generic_share":
            _logarithmic(axis, [point.place for of_stage in points.values() for point in of_stage])
    colors = [Line2D([], [], color=f"C{number}", label=line) for number, line in enumerate(lines)]
    _legend(figure, [*colors, *_stage_marks([stage for stage in STAGES if points[stage]], lines=True)])
    return figure


def _line(axis: Any, points: Sequence[CurvePoint], color: str, stage: Stage, *, questions: bool) -> list[float]:
    """Draw one line of one stage on a panel. Returns the values drawn."""
    if not points:
        return []
    scale, none = (100, 0.0) if questions else (1, 1.0)
    values = [none if point.compared is None else point.compared.estimate.value for point in points]
    bounds = [(none, none) if point.compared is None else point.compared.estimate.interval for point in points]
    errors = np.abs(np.transpose(bounds) - np.array(values))
    axis.errorbar(
        [point.place for point in points],
        scale * np.array(values),
        yerr=scale * np.nan_to_num(errors),
        fmt=f"o{_STYLES[stage]}",
        color=color,
        fillstyle=_FILLS[stage],
        **_MARKER,
    )
    return [scale * value for value in values]


def _logarithmic(axis: Any, places: Sequence[float]) -> None:
    """Make an axis logarithmic with the places themselves as its ticks, but for those too near to one another."""
    ticks: list[float] = []
    for place in sorted(set(places)):
        if not ticks or place >= _TICK_RATIO * ticks[-1]:
            ticks.append(place)
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.margins(x=0.12)


def weights_figure(compared: Sequence[ComparedWeights]) -> Any:
    """Draw the heaviest clusters by each method, and their share of the corpus as a line; a panel per specialist."""
    tallest = max(len(weights.top) for weights in compared)
    figure, axes = _grid(len(compared), width=(0.4, 4.6), height=(0.6, 0.9 + 0.24 * tallest), most=2)
    for axis, weights in zip(axes, compared, strict=False):
        places = np.arange(len(weights.top))
        height = 0.8 / len(weights.methods)
        for number, method in enumerate(weights.methods):
            shares = [100 * cluster.proportions[method] for cluster in weights.top]
            axis.barh(places + (number - (len(weights.methods) - 1) / 2) * height, shares, height, label=method)
        corpus = [100 * cluster.corpus for cluster in weights.top]
        axis.plot(corpus, places, "|", color="black", markersize=11, label="corpus")
        axis.set_yticks(places, [_label(cluster.node, cluster.term) for cluster in weights.top])
        axis.set_ylim(len(weights.top) - 0.5, -0.5)
        apart = "" if weights.total_variation is None else f", total variation {weights.total_variation:.2f}"
        axis.set_title(f"{weights.specialist or 'all'}{apart}", fontsize=10)
        axis.set_xlabel("% of the mixture", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=8, loc="lower right")
    return figure


def _label(node: int, term: str) -> str:
    cut = term if len(term) <= _TERM_CHARACTERS else f"{term[: _TERM_CHARACTERS - 1]}…"
    return f"{cut}  {node}" if cut else str(node)
