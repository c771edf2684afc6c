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

from crisp_stream.results.contaminated import WITHOUT, contaminated_examples, contaminated_record
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, judged_sets, model_names
from crisp_stream.results.tables import (
    BITS_PER_BYTE,
    clean_figure_of,
    figure_cell,
    figure_of,
    measure_of,
    set_notes,
)
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
    clean: dict[str, Estimate]
    """Figure of each model without contaminated examples; of models for which nobody looked there is none."""
    num_contaminated: int | None
    """Examples that stand in the training data, in part; None: nobody looked."""

    @property
    def shows_clean(self) -> bool:
        """Whether there are contaminated examples, so that a column without them stands beside it."""
        return bool(self.num_contaminated)

    @property
    def higher_is_better(self) -> bool:
        return bool(self.judged.questions)

    @property
    def best(self) -> float:
        """Figure of the best model; NaN where a single one was judged."""
        return self._best_of(self.estimates)

    @property
    def best_clean(self) -> float:
        """The same without contaminated examples."""
        return self._best_of(self.clean)

    def _best_of(self, estimates: dict[str, Estimate]) -> float:
        values = [estimate.value for estimate in estimates.values() if not math.isnan(estimate.value)]
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
    clean_multi: dict[str, float]
    """The same without contaminated examples, where a set has some; empty where none has."""


def transfer(results: Sequence[AnyResults]) -> Transfer:
    """Arrange the figures that count. Raises InputError: no results, or two models of one name."""
    models = model_names(results)
    columns = []
    for judged in judged_sets(results):
        estimates = {one.model_name: figure_of(judged, one)[1] for one in judged.results}
        measure = measure_of(judged, judged.results[0])
        clean = {one.model_name: figure for one in judged.results if (figure := clean_figure_of(judged, one))}
        seen = contaminated_examples(*judged.results)
        columns.append(
            TransferColumn(
                judged=judged,
                measure=measure,
                estimates=estimates,
                clean=clean,
                num_contaminated=None if seen is None else int(seen.sum()),
            )
        )
    columns.sort(key=lambda column: not column.higher_is_better)  # questions first
    tasks = [column for column in columns if column.higher_is_better]
    multi = _multi(models, {column.judged.name: column.estimates for column in tasks})
    clean_multi: dict[str, float] = {}
    if any(column.shows_clean for column in tasks):
        without = {column.judged.name: column.clean if column.shows_clean else column.estimates for column in tasks}
        clean_multi = _multi(models, without)
    return Transfer(models=models, columns=columns, multi=multi, clean_multi=clean_multi)


def _multi(models: Sequence[str], tasks: dict[str, dict[str, Estimate]]) -> dict[str, float]:
    """Mean over tasks of the models that were judged on all of them; `tasks`: name of a set to figures by model."""
    multi = {}
    for model in models:
        accuracies = {name: estimates[model].value for name, estimates in tasks.items() if model in estimates}
        if len(accuracies) == len(tasks) and len({_task(name) for name in tasks}) > 1:
            multi[model] = mean_over_tasks(accuracies)
    return multi


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
        *([_table("accuracy, %", compared, questions, multi=True)] if questions else []),
        *([_table("perplexity", compared, texts, multi=False)] if texts else []),
    ]
    notes = set_notes([column.judged for column in compared.columns])
    if compared.multi:
        notes.append("Multi: mean over tasks; the sets of ARC are averaged first")
    if any(column.shows_clean for column in compared.columns):
        notes.append(f"{WITHOUT}: the column before it without the contaminated examples")
    return TableGroup(tables=tables, notes=notes, records=_records(compared))


def _table(title: str, compared: Transfer, columns: Sequence[TransferColumn], *, multi: bool) -> Table:
    shown: list[tuple[str, list[str]]] = []
    for column in columns:
        name = column.judged.name + " (bits/byte)" * (column.measure == BITS_PER_BYTE)
        shown.append((name, _cells(compared, column.measure, column.estimates, column.best)))
        if column.shows_clean:
            shown.append((WITHOUT, _cells(compared, column.measure, column.clean, column.best_clean)))
    for name, means in (("Multi", compared.multi), (WITHOUT, compared.clean_multi)) if multi else ():
        if means:
            estimates = {model: Estimate(value) for model, value in means.items()}
            shown.append((name, _cells(compared, "acc", estimates, _largest(means))))
    rows = [[model, *(cells[at] for _, cells in shown)] for at, model in enumerate(compared.models)]
    kept = [row for row in rows if any(cell != NONE for cell in row[1:])]
    return Table(title=title, head=["model", *(name for name, _ in shown)], rows=kept)


def _cells(compared: Transfer, measure: str, estimates: dict[str, Estimate], best: float) -> list[str]:
    return [_cell(measure, estimates.get(model), best) for model in compared.models]


def _largest(means: dict[str, float]) -> float:
    return max(means.values()) if len(means) > 1 else math.nan


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
            **contaminated_record(column.num_contaminated, column.clean.get(model)),
        }
        for column in compared.columns
        for model in compared.models
        if model in column.estimates
    ]
    best = _largest(compared.multi)
    return rows + [
        {"model": model, "set": "Multi", "measure": "acc", "value": value, "low": None, "high": None}
        | {"best": value == best}
        | contaminated_record(None, Estimate(compared.clean_multi.get(model, math.nan)))
        for model, value in compared.multi.items()
    ]
