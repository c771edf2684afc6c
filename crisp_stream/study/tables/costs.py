"""What each method cost, and what was tried to choose its candidates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyModel, StudySelection
from crisp_stream.study.tables.cells import Cell, StudyTable
from crisp_stream.table import NONE

_FRACTION = "fine-tuning"


def cost_tables(study: StudyResults) -> list[StudyTable]:
    """Selection and training, per method."""
    rows, lines = [], []
    for method in (own.name for own in study.methods):
        models = [own for own in study.models if own.method == method]
        chosen = [own for own in models if own.chosen and own.fraction == 0]
        selections = _chosen_selections(study, method)
        shared = {what: seconds for own in selections for what, seconds in own.shared.items()}
        own: dict[str, Any] = {
            "selection_cpu_seconds": _mean(own.cpu_seconds for own in selections),
            "shared_cpu_seconds": sum(shared.values()),
            "proxy_tokens": _mean(own.tokens for own in selections),
            "training_wall_seconds": _mean(own.wall_seconds for own in chosen),
            "training_cpu_seconds": _mean(own.cpu_seconds for own in chosen),
            "models": len(models),
            "all_models_cpu_seconds": sum(own.cpu_seconds for own in models),
            "repeated_share": _mean(own.repeated_share for own in chosen),
        }
        repeated = own["repeated_share"]
        own["mean_occurrences"] = math.nan if math.isnan(repeated) or repeated >= 1 else 1 / (1 - repeated)
        lines.append({"method": method, **own, "shared": "; ".join(shared)})
        rows.append([Cell(method), *map(Cell, _cost_cells(own, has_selection=bool(selections)))])
    shared_names = dict.fromkeys(line["shared"] for line in lines if line["shared"])
    return [
        StudyTable(
            name="cost",
            title="Cost",
            caption=f"CPU seconds on {study.device}: selection per specialist, what is done once for all, training per "
            "pretrained model, and all models that were trained, candidates and fine-tuning included",
            head=(
                *(
                    "method",
                    "selection",
                    "once for all",
                    "proxy tokens",
                    "training",
                    "wall s",
                    "models",
                    "all training",
                ),
                *("repeated", "occurrences"),
            ),
            rows=rows,
            notes=[
                "repeated: share of the windows served that had been served before; occurrences: mean per window",
                *(f"once for all: {names}" for names in shared_names),
            ],
            lines=lines,
        )
    ]


def _cost_cells(own: dict[str, Any], *, has_selection: bool) -> list[str]:
    return [
        _seconds(own["selection_cpu_seconds"]) if has_selection else NONE,
        _seconds(own["shared_cpu_seconds"]) if own["shared_cpu_seconds"] else NONE,
        f"{own['proxy_tokens']:,.0f}" if has_selection and own["proxy_tokens"] else NONE,
        _seconds(own["training_cpu_seconds"]),
        _seconds(own["training_wall_seconds"]),
        f"{own['models']:,}",
        _seconds(own["all_models_cpu_seconds"]),
        NONE if math.isnan(own["repeated_share"]) else f"{own['repeated_share']:.1%}",
        NONE if math.isnan(own["mean_occurrences"]) else f"{own['mean_occurrences']:.2f}",
    ]


def _seconds(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _mean(values: Iterable[float | None]) -> float:
    """Of those that are known; NaN of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _chosen_selections(study: StudyResults, method: str) -> list[StudySelection]:
    """One for each specialist: of the candidate that its models were trained on."""
    chosen = {
        own.specialist: own.candidate
        for own in study.models
        if own.method == method and own.chosen and own.fraction == 0
    }
    found: dict[str, StudySelection] = {}
    for own in study.selections:
        if own.method == method and own.candidate in (chosen.get(own.specialist), {}):
            found.setdefault(own.specialist, own)
    return list(found.values())


def candidate_tables(study: StudyResults) -> list[StudyTable]:
    """What was tried and what validation chose: shares of windows, of base, of fine-tuning."""
    rows, lines = [], []
    for method in (own.name for own in study.methods):
        for specialist in study.specialists:
            for what, tried in _choices(study, method, specialist):
                known = [(_tried(model), _validated(model, specialist), model.chosen) for model in tried]
                cells = [f"{name}: {NONE if math.isnan(value) else f'{value:.2f}'}" for name, value, _ in known]
                chosen = _chosen_of(tried)
                rows.append([*map(Cell, (method, specialist, what, _tried(chosen))), Cell(" · ".join(cells))])
                lines += [
                    {"method": method, "specialist": specialist, "of": what, "candidate": name}
                    | {"validation_perplexity": value, "chosen": model is chosen}
                    for (name, value, _), model in zip(known, tried, strict=True)
                ]
    if not rows:
        return []
    return [
        StudyTable(
            name="candidates",
            title="Candidates",
            caption=f"validation perplexity of what was tried with seed {study.seeds[0]}; the lowest is used for all",
            head=("method", "specialist", "of", "chosen", "tried"),
            rows=rows,
            lines=lines,
            left=5,
        )
    ]


def _choices(study: StudyResults, method: str, specialist: str) -> list[tuple[str, list[StudyModel]]]:
    """The choices that were made: by key of the candidates, and the fraction of fine-tuning."""
    own = [each for each in study.models if each.method == method and each.seed == study.seeds[0]]
    pretrained = [each for each in own if each.fraction == 0 and each.specialist in ("", specialist)]
    tuned = [each for each in own if each.fraction > 0 and each.specialist == specialist]
    keys = ", ".join(dict.fromkeys(key for each in pretrained for key in each.candidate))
    found = [(keys, pretrained)] if len(pretrained) > 1 else []
    started = [each for each in pretrained if each.chosen]
    return [*found, (_FRACTION, [*started, *sorted(tuned, key=lambda each: each.fraction)])] if tuned else found


def _chosen_of(tried: Sequence[StudyModel]) -> StudyModel:
    """Of fractions: the pretrained model is always among the chosen, and counts where none of the others does."""
    chosen = [each for each in tried if each.chosen]
    return max(chosen, key=lambda each: each.fraction) if chosen else tried[0]


def _tried(model: StudyModel) -> str:
    if model.fraction or not model.candidate:
        return f"{model.fraction:g}" if model.fraction else "none"
    return ", ".join(f"{value:g}" for value in model.candidate.values())


def _validated(model: StudyModel, specialist: str) -> float:
    return model.validation_of.get(specialist, math.nan)
