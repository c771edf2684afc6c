"""Models as rows and tasks as columns: what a model made for one task is worth on the others (CRISP, Tables 1 and 12).

Multi is the mean over tasks; ARC is one task whose two sets are averaged first, as in the paper, where the four columns
58.4, 27.5, 30.1, 62.2 of its base model make 45.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, judged_sets, model_names
from crisp_stream.results.tables import BITS_PER_BYTE, comparability_notes, figure_cell, figure_of, measure_of
from crisp_stream.table import NONE, Marked, Table, TableGroup

_ARC = re.compile(r"(^|_)arc_(e|c|easy|challenge)(_|$)")


@dataclass(frozen=True, kw_only=True)
class TransferColumn:
    """All models on one set."""

    judged: JudgedSet
    measure: str
    """`acc` or `acc_norm` as the paper reports the set, `perplexity`, or `bits_per_byte` where tokens differ."""
    estimates: dict[str, Estimate]
    """Figure of each model; accuracies as shares."""

    @property
    def higher_is_better(self) -> bool:
        return bool(self.judged.questions)

    @property
    def best(self) -> float:
        """Figure of the best model; NaN where a single one was judged."""
        values = [estimate.value for estimate in self.estimates.values()]
        if len(values) < 2:
            return math.nan
        return max(values) if self.higher_is_better else min(values)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Models on tasks."""

    models: Sequence[str]
    columns: Sequence[TransferColumn]
    multi: dict[str, float]
    """Mean accuracy over tasks, by model, ARC as one task; only for models judged on all question sets, of two tasks or
    more."""


def transfer(results: Sequence[AnyResults]) -> Transfer:
    """Arrange the figures that count. Raises InputError: no results, or two models of one name."""
    models = model_names(results)
    columns = []
    for judged in judged_sets(results):
        estimates = {one.model_name: figure_of(judged, one)[1] for one in judged.results}
        measure = measure_of(judged, judged.results[0])
        columns.append(TransferColumn(judged=judged, measure=measure, estimates=estimates))
    columns.sort(key=lambda column: not column.higher_is_better)  # questions first
    tasks = {column.judged.name: column.estimates for column in columns if column.higher_is_better}
    multi = {}
    for model in models:
        accuracies = {name: estimates[model].value for name, estimates in tasks.items() if model in estimates}
        if len(accuracies) == len(tasks) and len({_task(name) for name in tasks}) > 1:
            multi[model] = mean_over_tasks(accuracies)
    return Transfer(models=models, columns=columns, multi=multi)


def mean_over_tasks(accuracies: dict[str, float]) -> float:
    """Average the means of each task's sets.

    Args:
        accuracies: accuracy by name of the set; sets of ARC, such as `arc_easy` and `arc_challenge`, are one task.
    """
    by_task: dict[str, list[float]] = {}
    for name, accuracy in accuracies.items():
        by_task.setdefault(_task(name), []).append(accuracy)
    means = [sum(task) / len(task) for task in by_task.values()]
    return sum(means) / len(means)


def _task(set_name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", set_name.lower())
    return "arc" if _ARC.search(plain) else set_name


def transfer_table(compared: Transfer) -> TableGroup:
    """Tabulate accuracies and perplexities, each apart; the best of each column is marked."""
    questions = [column for column in compared.columns if column.higher_is_better]
    texts = [column for column in compared.columns if not column.higher_is_better]
    tables = [
        *([_table("accuracy, %", compared, questions, multi=compared.multi)] if questions else []),
        *([_table("perplexity", compared, texts, multi={})] if texts else []),
    ]
    notes = comparability_notes([column.judged for column in compared.columns])
    if compared.multi:
        notes.append("Multi: mean over tasks; the sets of ARC are averaged first")
    return TableGroup(tables=tables, notes=notes, records=_records(compared))


def _table(title: str, compared: Transfer, columns: Sequence[TransferColumn], *, multi: dict[str, float]) -> Table:
    best = max(multi.values()) if len(multi) > 1 else math.nan
    rows = []
    for model in compared.models:
        cells = [_cell(column.measure, column.estimates.get(model), column.best) for column in columns]
        if any(cell != NONE for cell in cells):
            mean = [_cell("acc", Estimate(multi[model]) if model in multi else None, best)] if multi else []
            rows.append([model, *cells, *mean])
    names = [column.judged.name + " (bits/byte)" * (column.measure == BITS_PER_BYTE) for column in columns]
    return Table(title=title, head=["model", *names, *(["Multi"] if multi else [])], rows=rows)


def _cell(measure: str, estimate: Estimate | None, best: float) -> str:
    if estimate is None:
        return NONE
    text = figure_cell(measure, Estimate(estimate.value))
    return Marked(text, "best") if estimate.value == best else text


def _records(compared: Transfer) -> list[dict[str, Any]]:
    """Make a line per model and set, then one per model for Multi."""
    rows = [
        {
            "model": model,
            "set": column.judged.name,
            "measure": column.measure,
            **column.estimates[model].columns(),
            "best": column.estimates[model].value == column.best,
        }
        for column in compared.columns
        for model in compared.models
        if model in column.estimates
    ]
    best = max(compared.multi.values(), default=math.nan) if len(compared.multi) > 1 else math.nan
    return rows + [
        {"model": model, "set": "Multi", "measure": "acc", "value": value, "low": None, "high": None}
        | {"best": value == best}
        for model, value in compared.multi.items()
    ]
