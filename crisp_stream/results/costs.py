"""Quality against the cost of training, per method, over checkpoints of all sizes (CRISP, Figure 10).

Checkpoints are sorted by cost; a line through those that beat all cheaper ones is what one gets for the cost, and dots
mark where the size of the best model changes. What a model was continued or fine-tuned from is part of its cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from crisp_stream.errors import InputError
from crisp_stream.figure import blank_figure, save_figure
from crisp_stream.models.training_cost import TrainingCost, training_cost
from crisp_stream.models.training_record import components_of, datasets_of, phases_as_written
from crisp_stream.results.contaminated import contaminated_columns, contaminated_record, names_in_figures
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, judged_sets
from crisp_stream.results.tables import (
    INTERVALS,
    WRITTEN,
    clean_figure_cell,
    clean_figure_of,
    figure_cell,
    figure_of,
    set_notes,
)
from crisp_stream.table import Table, TableGroup

CostAxis = Literal["device-hours", "flops", "tokens"]

_NAMED = 3
"""Models named in an error."""


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """One checkpoint on one set."""

    set_name: str
    method: str
    model: str
    num_parameters: int
    cost: float
    """Device-hours, FLOPs or tokens."""
    measure: str
    estimate: Estimate
    best_so_far: bool
    """Whether it is better than all cheaper ones of its method."""
    size_changes: bool
    """Whether it is the first of the best so far to be of its size."""
    num_contaminated: int | None = None
    """Examples that stand in the training data, in part; None: nobody looked."""
    clean: Estimate | None = None
    """`estimate` without these."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """All checkpoints, by set, method and cost."""

    axis: CostAxis
    device: str | None
    """Device that device-hours are counted on; None for another axis."""
    points: Sequence[CostPoint]
    sets: Sequence[JudgedSet]


def costs(results: Sequence[AnyResults], *, axis: CostAxis, methods: Mapping[str, str] | None = None) -> Costs:
    """Order checkpoints by what they cost.

    Args:
        results: checkpoints, of any number and sizes.
        axis: unit that costs are counted in.
        methods: pattern of model names, such as `gpt-*-base-*`, to the name of the method; others are named after their
            histograms.

    Raises:
        InputError: a cost is not known, or device-hours are of different devices.
    """
    sets = judged_sets(results)
    cost_of = {checkpoint.model_name: _cost_of(checkpoint) for checkpoint in results}
    device = _one_device(cost_of) if axis == "device-hours" else None
    points: list[CostPoint] = []
    for judged in sets:
        by_method: dict[str, list[AnyResults]] = {}
        for checkpoint in judged.results:
            by_method.setdefault(method_of(checkpoint, methods or {}), []).append(checkpoint)
        for method, checkpoints in by_method.items():
            costs_of_method = [(one, _along(cost_of[one.model_name], axis)) for one in checkpoints]
            points += _method_points(judged, method, sorted(costs_of_method, key=lambda pair: pair[1]))
    return Costs(axis=axis, device=device, points=points, sets=sets)


def method_of(results: AnyResults, methods: Mapping[str, str]) -> str:
    """Name the method by the first pattern that the model's name matches, else by its histograms and its parents'."""
    named = next((name for pattern, name in methods.items() if fnmatchcase(results.model_name, pattern)), None)
    return named or _histograms(results.model.get("training") or {}) or results.model.get("run_name") or "?"


def _histograms(record: dict[str, Any]) -> str:
    """Name `base`, or `base, then mmlu` for phases; `base > specialist data: base` for another order of samples."""
    mixture, parent = record.get("mixture") or {}, record.get("parent")
    histograms = ", then ".join(_stems(steps) for steps in phases_as_written(mixture.get("phases") or []))
    restarted = record.get("restarted")
    if not parent or (restarted is not None and "data" not in restarted):  # its phases say what came before
        return histograms
    datasets = [{each.get("fingerprint") for each in datasets_of(one)} for one in (record, parent)]
    other = "" if datasets[0] == datasets[1] else "other data: "
    return f"{_histograms(parent)} > {other}{histograms}"


def _stems(steps: Sequence[dict[str, Any]]) -> str:
    """Name a phase by the stems of its histograms; `0.95 corpus: task + 0.05 task: base` where it has components."""

    def named(phase: dict[str, Any]) -> str:
        parts = components_of(phase)
        stems = [Path(str(part.get("histogram"))).stem for part in parts]
        names = [
            f"{part['source']}: {stem}" if part.get("source") else stem for part, stem in zip(parts, stems, strict=True)
        ]
        if len(parts) == 1:
            return names[0]
        return " + ".join(f"{part['share']:.3g} {name}" for part, name in zip(parts, names, strict=True))

    return named(steps[0]) if len(steps) == 1 else f"{named(steps[0])} to {named(steps[-1])}"


def _cost_of(results: AnyResults) -> TrainingCost:
    try:
        return training_cost(results.model.get("training") or {})
    except InputError as error:
        raise InputError(f"{results.model_name}: {error}") from error


def _one_device(cost_of: Mapping[str, TrainingCost]) -> str:
    """Name the device of all models. Raises InputError: device time is not known of a model, or devices differ."""
    unknown = [name for name, cost in cost_of.items() if cost.device_seconds is None]
    if unknown:
        more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
        raise InputError(
            f"the device time of {', '.join(unknown[:_NAMED])}{more} is not known: a checkpoint in its line was "
            "saved before it was counted. Use --cost flops or --cost tokens."
        )
    devices = {device: name for name, cost in cost_of.items() for device in cost.device_seconds or {}}
    if len(devices) > 1:
        shown = " and ".join(f"{device} ({name})" for device, name in devices.items())
        raise InputError(f"device-hours of different devices cannot be compared: {shown}. Use --cost flops.")
    return next(iter(devices), "?")


def _along(cost: TrainingCost, axis: CostAxis) -> float:
    if axis == "device-hours":
        return sum((cost.device_seconds or {}).values()) / 3600
    return cost.flops if axis == "flops" else float(cost.tokens)


def _method_points(judged: JudgedSet, method: str, by_cost: Sequence[tuple[AnyResults, float]]) -> list[CostPoint]:
    points: list[CostPoint] = []
    best: float | None = None
    best_size: int | None = None
    for results, cost in by_cost:
        measure, estimate = figure_of(judged, results)
        score = estimate.value if judged.questions else -estimate.value
        better = best is None or score > best
        size = results.model["num_parameters"]
        points.append(
            CostPoint(
                set_name=judged.name,
                method=method,
                model=results.model_name,
                num_parameters=size,
                cost=cost,
                measure=measure,
                estimate=estimate,
                best_so_far=better,
                size_changes=better and best_size is not None and size != best_size,
                num_contaminated=None if results.contaminated is None else int(results.contaminated.sum()),
                clean=clean_figure_of(judged, results),
            )
        )
        if better:
            best, best_size = score, size
    return points


def costs_table(compared: Costs) -> TableGroup:
    """Tabulate checkpoints, one line per set, method and checkpoint, by cost."""
    return TableGroup(
        tables=[_table(compared)],
        notes=[
            *([f"device: {compared.device}"] if compared.device else []),
            "costs include those of the checkpoints that a run began from",
            INTERVALS,
            *set_notes(compared.sets),
        ],
        records=[
            {
                "set": point.set_name,
                "method": point.method,
                compared.axis.replace("-", "_"): point.cost,
                "parameters": point.num_parameters,
                "measure": point.measure,
                **point.estimate.columns(),
                **contaminated_record(point.num_contaminated, point.clean),
                "best_so_far": point.best_so_far,
                "size_changes": point.size_changes,
                "device": compared.device,
                "model": point.model,
            }
            for point in compared.points
        ],
    )


def _table(compared: Costs) -> Table:
    points = compared.points
    write = "{:.4g}" if compared.axis == "device-hours" else "{:.3e}"
    columns = {
        "set": [point.set_name for point in points],
        "method": [point.method for point in points],
        "model": [point.model for point in points],
        compared.axis: [write.format(point.cost) for point in points],
        "parameters": [f"{point.num_parameters:,}" for point in points],
        "figure": [figure_cell(point.measure, point.estimate) for point in points],
        **contaminated_columns(
            [point.num_contaminated for point in points],
            [clean_figure_cell(point.measure, point.clean) for point in points],
        ),
        "": [WRITTEN[point.measure] for point in points],
        " ": list(map(_place, points)),
    }
    return Table(head=list(columns), rows=list(zip(*columns.values(), strict=True)), words=(0, 1, 2))


def _place(point: CostPoint) -> str:
    if point.size_changes:
        return "best so far, another size"
    return "best so far" if point.best_so_far else ""


def plot_costs(compared: Costs, path: str | Path) -> Path:
    """Draw a panel per set, a colour per method: checkpoints faint, the best so far as a line, dots at another size.

    Raises:
        InputError: not .svg, .png or .pdf. MissingExtraError: matplotlib is not installed.
    """
    sets = list(dict.fromkeys(point.set_name for point in compared.points))
    methods = list(dict.fromkeys(point.method for point in compared.points))
    names = names_in_figures(compared.sets)
    figure = blank_figure(4.4 * len(sets), 3.6)
    from matplotlib.ticker import LogLocator, NullFormatter  # after blank_figure, which names the missing extra

    for axis, set_name in zip(figure.subplots(1, len(sets), squeeze=False).flat, sets, strict=True):
        measure = next(point.measure for point in compared.points if point.set_name == set_name)
        scale = 100 if measure.startswith("acc") else 1
        for number, method in enumerate(methods):
            checkpoints = [point for point in compared.points if (point.set_name, point.method) == (set_name, method)]
            best = [point for point in checkpoints if point.best_so_far]
            changes = [point for point in checkpoints if point.size_changes]
            colour = f"C{number}"
            for points, marker, width, opacity in (
                (checkpoints, ".", 0, 0.35),
                (best, ".", 1.5, 1),
                (changes, "o", 0, 1),
            ):
                across, up = [point.cost for point in points], [scale * point.estimate.value for point in points]
                label = method if points is best else None
                axis.plot(across, up, marker=marker, linewidth=width, color=colour, alpha=opacity, label=label)
        axis.set_xscale("log", subs=(2, 5))
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel=f"{compared.device} hours" if compared.device else compared.axis, ylabel=WRITTEN[measure])
        axis.set_title(names[set_name], fontsize=10)
        axis.legend(fontsize=8)
    return save_figure(figure, path)
