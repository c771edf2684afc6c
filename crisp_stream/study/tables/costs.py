"""The cost of each method, and the candidates that were tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyModel, StudySelection
from crisp_stream.table import NONE, Table


def cost_tables(study: StudyResults) -> list[Table]:
    """Tabulate the cost of selection and training, per method."""
    records = [_costs(study, method.name) for method in study.methods]
    shared_names = dict.fromkeys(record["shared"] for record in records if record["shared"])
    return [
        Table(
            name="cost",
            title="Cost",
            caption=f"CPU seconds on {study.device}: selection per specialist, what is done once for all, training per "
            "pretrained model, and all models that were trained, candidates and fine-tuning included",
            head=(
                *("method", "selection", "once for all", "proxy tokens"),
                *("training", "wall s", "models", "all training", "repeated", "occurrences"),
            ),
            rows=[_cost_cells(costs) for costs in records],
            notes=[
                "repeated: share of the windows served that had been served before; occurrences: mean per window",
                *(f"once for all: {names}" for names in shared_names),
            ],
            records=records,
        )
    ]


def _costs(study: StudyResults, method: str) -> dict[str, Any]:
    selections = _chosen_selections(study, method)
    models = [model for model in study.models if model.method == method]
    chosen = [model for model in models if model.chosen and model.fraction == 0]
    shared = {what: seconds for selection in selections for what, seconds in selection.shared.items()}
    repeated = _mean(model.repeated_share for model in chosen)
    return {
        "method": method,
        "selection_cpu_seconds": _mean(selection.cpu_seconds for selection in selections),
        "shared_cpu_seconds": sum(shared.values()),
        "proxy_tokens": _mean(selection.tokens for selection in selections),
        "training_wall_seconds": _mean(model.wall_seconds for model in chosen),
        "training_cpu_seconds": _mean(model.cpu_seconds for model in chosen),
        "models": len(models),
        "all_models_cpu_seconds": sum(model.cpu_seconds for model in models),
        "repeated_share": repeated,
        "mean_occurrences": math.nan if math.isnan(repeated) or repeated >= 1 else 1 / (1 - repeated),
        "shared": "; ".join(shared),
    }


def _cost_cells(costs: dict[str, Any]) -> list[str]:
    return [
        costs["method"],
        _seconds(costs["selection_cpu_seconds"]),
        _seconds(costs["shared_cpu_seconds"]) if costs["shared_cpu_seconds"] else NONE,
        _shown(costs["proxy_tokens"] or math.nan, ",.0f"),
        _seconds(costs["training_cpu_seconds"]),
        _seconds(costs["training_wall_seconds"]),
        f"{costs['models']:,}",
        _seconds(costs["all_models_cpu_seconds"]),
        _shown(costs["repeated_share"], ".1%"),
        _shown(costs["mean_occurrences"], ".2f"),
    ]


def _seconds(value: float) -> str:
    return _shown(value, ",.1f" if value < 100 else ",.0f")


def _shown(value: float, form: str) -> str:
    return NONE if math.isnan(value) else format(value, form)


def _mean(values: Iterable[float | None]) -> float:
    """Average the values that are known; NaN of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _chosen_selections(study: StudyResults, method: str) -> list[StudySelection]:
    """Take one selection for each specialist: that of the candidate that its models were trained on."""
    chosen = {
        model.specialist: model.candidate
        for model in study.models
        if model.method == method and model.chosen and model.fraction == 0
    }
    selections: dict[str, StudySelection] = {}
    for selection in study.selections:
        if selection.method == method and selection.candidate in (chosen.get(selection.specialist), {}):
            selections.setdefault(selection.specialist, selection)
    return list(selections.values())


def candidate_tables(study: StudyResults) -> list[Table]:
    """Show what was tried and what validation chose: shares of windows, of base, of fine-tuning."""
    rows, records = [], []
    for method in (method.name for method in study.methods):
        for specialist in study.specialists:
            for what, tried in _choices(study, method, specialist):
                chosen = _chosen_of(tried)
                values = [(_tried(model), model.validation_of.get(specialist, math.nan)) for model in tried]
                cells = [f"{name}: {_shown(value, '.2f')}" for name, value in values]
                rows.append([method, specialist, what, _tried(chosen), " · ".join(cells)])
                records += [
                    {"method": method, "specialist": specialist, "of": what, "candidate": name}
                    | {"validation_perplexity": value, "chosen": model is chosen}
                    for (name, value), model in zip(values, tried, strict=True)
                ]
    if not rows:
        return []
    return [
        Table(
            name="candidates",
            title="Candidates",
            caption=f"validation perplexity of what was tried with seed {study.seeds[0]}; the lowest is used for all",
            head=("method", "specialist", "of", "chosen", "tried"),
            rows=rows,
            records=records,
            words=range(5),
        )
    ]


def _choices(study: StudyResults, method: str, specialist: str) -> list[tuple[str, list[StudyModel]]]:
    """List the choices that were made: by key of the candidates, and the fraction of fine-tuning."""
    models = [model for model in study.models if model.method == method and model.seed == study.seeds[0]]
    pretrained = [model for model in models if model.fraction == 0 and model.specialist in ("", specialist)]
    tuned = [model for model in models if model.fraction > 0 and model.specialist == specialist]
    keys = ", ".join(dict.fromkeys(key for model in pretrained for key in model.candidate))
    choices = [(keys, pretrained)] if len(pretrained) > 1 else []
    started = [model for model in pretrained if model.chosen]
    if tuned:
        choices.append(("fine-tuning", [*started, *sorted(tuned, key=lambda model: model.fraction)]))
    return choices


def _chosen_of(tried: Sequence[StudyModel]) -> StudyModel:
    """Pick the chosen model. Of fractions, the pretrained one is always among the chosen and counts if it is alone."""
    chosen = [model for model in tried if model.chosen]
    return max(chosen, key=lambda model: model.fraction) if chosen else tried[0]


def _tried(model: StudyModel) -> str:
    values = [model.fraction] if model.fraction else model.candidate.values()
    return ", ".join(f"{value:g}" for value in values) or "none"
