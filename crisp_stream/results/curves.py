"""Figures over the course of a training, from results of several checkpoints of each run (CRISP, Figure 8).

Beside it stands the perplexity of the loss that was optimised, on the run's own mixture: what the paper's Figure 8a
shows. It is a mean over the last tenth of the batches so far, on other text and with other windows than the sets are
judged on, so the two have different axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from crisp_stream.errors import InputError
from crisp_stream.figure import blank_figure, save_figure
from crisp_stream.results.contaminated import contaminated_columns, contaminated_record, names_in_figures
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, judged_sets
from crisp_stream.results.tables import (
    INTERVALS,
    PERPLEXITY,
    WRITTEN,
    clean_figure_cell,
    clean_figure_of,
    figure_cell,
    figure_of,
    set_notes,
)
from crisp_stream.table import NONE, Table, TableGroup

Axis = Literal["batch", "tokens"]
RunIdentity = tuple[str, int, str | None, int | None]
"""Facts that all checkpoints of a run share: name, parameters, mixture, seed."""

_STYLES = ("-", ":", "--", "-.")
TRAINING_LOSS = "training loss"
"""Name that stands for a set where the perplexity of the loss that was optimised is meant."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One checkpoint on one set."""

    run: str
    set_name: str
    measure: str
    """`perplexity`, `bits_per_byte`, `acc` or `acc_norm`."""
    batch: int
    tokens: int | None
    model: str
    estimate: Estimate
    num_contaminated: int | None = None
    """Examples that stand in the training data, in part; None: nobody looked."""
    clean: Estimate | None = None
    """`estimate` without these."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """All points, by run, set and batch."""

    points: Sequence[CurvePoint]
    sets: Sequence[JudgedSet]
    left_out: Sequence[str]
    """Models whose run and batch are not known."""

    def lines(self) -> dict[tuple[str, str], list[CurvePoint]]:
        """Group the points by run and set, in the order of batches."""
        lines: dict[tuple[str, str], list[CurvePoint]] = {}
        for point in self.points:
            lines.setdefault((point.run, point.set_name), []).append(point)
        return {key: sorted(points, key=lambda point: point.batch) for key, points in lines.items()}


def curves(results: Sequence[AnyResults]) -> Curves:
    """Order results by run and batch.

    Raises:
        InputError: none says of which run and batch it is, or one batch of a run was judged twice.
    """
    sets = judged_sets(results)
    placed = list(filter(_is_placed, results))
    left_out = list(dict.fromkeys(one.model_name for one in results if not _is_placed(one)))
    if not placed:
        raise InputError(
            f"{', '.join(left_out)}: a curve needs results of checkpoints of a run, and these do not say of which run "
            "and batch they are. Judge checkpoints of crisp-stream train."
        )
    names = _run_names(placed)
    points = _training_losses(placed, names)
    for judged in sets:
        for one in filter(_is_placed, judged.results):
            point = _point(names[run_identity(one)], judged.name, one, *figure_of(judged, one))
            seen = None if one.contaminated is None else int(one.contaminated.sum())
            points.append(replace(point, num_contaminated=seen, clean=clean_figure_of(judged, one)))
    _check_batches(points)
    order = list(dict.fromkeys((point.run, point.set_name) for point in points))
    points.sort(key=lambda point: (order.index((point.run, point.set_name)), point.batch))
    return Curves(points=points, sets=sets, left_out=left_out)


def _is_placed(results: AnyResults) -> bool:
    return results.model.get("run_name") is not None and results.model.get("batch") is not None


def _run_names(results: Sequence[AnyResults]) -> dict[RunIdentity, str]:
    """Name each run; different runs of one name are told apart by what they differ in."""
    runs = list(dict.fromkeys(map(run_identity, results)))
    names = {}
    for run in runs:
        name, parameters, mixture, seed = run
        others = [other for other in runs if other[0] == name and other != run]
        parts = [
            *([f"{parameters:,} parameters"] if any(other[1] != parameters for other in others) else []),
            *([f"mixture {str(mixture)[:8]}"] if any(other[2] != mixture for other in others) else []),
            *([f"seed {seed}"] if any(other[3] != seed for other in others) else []),
        ]
        names[run] = f"{name} ({', '.join(parts)})" if parts else name
    return names


def run_identity(results: AnyResults) -> RunIdentity:
    """Identify the run that a checkpoint is of. A model of no known run is alone, under its name."""
    model = results.model
    seed = (model.get("training") or {}).get("seed")
    name = model["run_name"] if _is_placed(results) else results.model_name
    return name, model["num_parameters"], model.get("mixture_fingerprint"), seed


def _point(run: str, set_name: str, results: AnyResults, measure: str, estimate: Estimate) -> CurvePoint:
    return CurvePoint(
        run=run,
        set_name=set_name,
        measure=measure,
        batch=results.model["batch"],
        tokens=results.model.get("tokens"),
        model=results.model_name,
        estimate=estimate,
    )


def _training_losses(results: Sequence[AnyResults], names: dict[RunIdentity, str]) -> list[CurvePoint]:
    """Place the perplexity of the loss that each checkpoint's run optimised."""
    points: dict[tuple[str, int], CurvePoint] = {}
    for checkpoint in results:
        loss = ((checkpoint.model.get("training") or {}).get("loss") or {}).get("final")
        if loss is not None:
            run = names[run_identity(checkpoint)]
            point = _point(run, TRAINING_LOSS, checkpoint, PERPLEXITY, Estimate(math.exp(loss)))
            points[run, point.batch] = point
    return list(points.values())


def _check_batches(points: Sequence[CurvePoint]) -> None:
    seen: dict[tuple[str, str, int], str] = {}
    for point in points:
        key = point.run, point.set_name, point.batch
        if seen.setdefault(key, point.model) != point.model:
            raise InputError(
                f"{seen[key]} and {point.model} are both of batch {point.batch:,} of run {point.run}. Leave one out."
            )


def curves_table(drawn: Curves) -> TableGroup:
    """Tabulate checkpoints, one line per run, set and checkpoint."""
    points = drawn.points
    columns = {
        "run": [point.run for point in points],
        "set": [point.set_name for point in points],
        "batch": [f"{point.batch:,}" for point in points],
        "tokens": [NONE if point.tokens is None else f"{point.tokens:,}" for point in points],
        "figure": [figure_cell(point.measure, point.estimate) for point in points],
        **contaminated_columns(
            [point.num_contaminated for point in points],
            [clean_figure_cell(point.measure, point.clean) for point in points],
        ),
        "": [WRITTEN[point.measure] for point in points],
    }
    table = Table(head=list(columns), rows=list(zip(*columns.values(), strict=True)), words=(0, 1))
    return TableGroup(
        tables=[table],
        notes=[
            f"{TRAINING_LOSS}: exp of the last loss, which is the mean of the last tenth of the batches so far, on the "
            "run's own mixture and in the precision of the training; no held-out text",
            INTERVALS,
            *set_notes(drawn.sets),
            *([f"left out, of no known run: {', '.join(drawn.left_out)}"] if drawn.left_out else []),
        ],
        records=[
            {
                "run": point.run,
                "set": point.set_name,
                "measure": point.measure,
                "batch": point.batch,
                "tokens": point.tokens,
                **point.estimate.columns(),
                **contaminated_record(point.num_contaminated, point.clean),
                "model": point.model,
            }
            for point in drawn.points
        ],
    )


def plot_curves(drawn: Curves, path: str | Path, *, x: Axis = "batch") -> Path:
    """Draw a panel for the loss that was optimised, and one for each measure; a colour per run, a line style per set.

    Raises:
        InputError: not .svg, .png or .pdf, or tokens are not known. MissingExtraError: matplotlib is not installed.
    """
    if x == "tokens" and any(point.tokens is None for point in drawn.points):
        raise InputError("--x tokens: some checkpoints do not say how many they were trained on. Use --x batch.")
    runs = list(dict.fromkeys(point.run for point in drawn.points))
    panels = list(dict.fromkeys((point.set_name == TRAINING_LOSS, point.measure) for point in drawn.points))
    shown_names = names_in_figures(drawn.sets)
    figure = blank_figure(4.8 * len(panels), 3.8)
    for axis, (of_training, measure) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        lines = {
            key: line
            for key, line in drawn.lines().items()
            if (key[1] == TRAINING_LOSS) == of_training and line[0].measure == measure
        }
        sets = list(dict.fromkeys(set_name for _, set_name in lines))
        for (run, set_name), line in lines.items():
            style = _STYLES[sets.index(set_name) % len(_STYLES)]
            label = run if of_training else f"{run}, {shown_names[set_name]}"
            _draw(axis, line, x, measure, color=f"C{runs.index(run)}", style=style, label=label)
        what = "perplexity of the training loss" if of_training else WRITTEN[measure]
        axis.set(xlabel=x, ylabel=what)
        axis.legend(fontsize=7)
    return save_figure(figure, path)


def _draw(axis: Any, line: Sequence[CurvePoint], x: Axis, measure: str, *, color: str, style: str, label: str) -> None:
    scale = 100 if measure.startswith("acc") else 1
    across = [point.batch if x == "batch" else point.tokens for point in line]
    axis.plot(across, [scale * point.estimate.value for point in line], style, color=color, marker=".", label=label)
    low, high = ([scale * point.estimate.interval[bound] for point in line] for bound in (0, 1))
    axis.fill_between(across, low, high, color=color, alpha=0.15, linewidth=0)
