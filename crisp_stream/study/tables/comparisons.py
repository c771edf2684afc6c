"""Comparisons of the models of a study: of the same set, seed and stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.results.estimates import Estimate
from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import Judgement
from crisp_stream.study.tables.intervals import difference_over_sets, exponential, mean_over_sets, share_over_sets
from crisp_stream.table import Mark

_Estimator = Callable[[Sequence[tuple[str, NDArray[np.float64]]]], Estimate]
Stage = Literal["pretrained", "finetuned"]
STAGES: tuple[Stage, ...] = ("pretrained", "finetuned")


class Place(NamedTuple):
    """The specialist that a model is made for, and the set that it is judged on."""

    specialist: str
    set_name: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: one place, or the mean over several."""

    title: str
    places: tuple[Place, ...]
    stage: Stage = "pretrained"
    questions: bool = False
    """Whether figures are accuracies, not perplexities."""

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean over several places."""
        return len(self.places) > 1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, and the seeds and examples that it is made of."""

    estimate: Estimate
    """A perplexity or a ratio of perplexities; accuracies and their differences as shares."""
    seeds: tuple[int, ...]
    left_out: tuple[int, ...] = ()
    """Seeds that only one of two methods was run with."""
    num_examples: int
    questions: bool = False

    @property
    def against(self) -> Literal["better", "worse", "open"]:
        """Verdict of a comparison on its first method; open where the interval includes no difference."""
        low, high = self.estimate.interval
        none = 0.0 if self.questions else 1.0
        if not (high < none or low > none):
            return "open"
        return "better" if (low > none) == self.questions else "worse"


def task_columns(study: StudyResults, stage: Stage = "pretrained", *, questions: bool) -> list[Column]:
    """Make a column for each specialist with texts, or with questions, and one for all of them if there are several.

    Questions count as texts, too, where they were judged with their right answers.
    """
    columns = []
    for name, task in study.specialists.items():
        of_questions = task.kind == "questions"
        set_name = task.perplexity_set if not questions else task.own_set if of_questions else None
        title = f"{name}, text" if of_questions and not questions else name
        if set_name:
            columns.append(Column(title=title, places=(Place(name, set_name),), stage=stage, questions=questions))
    return _with_mean(columns)


def generalist_columns(study: StudyResults) -> list[Column]:
    """Make a column for each specialist's models on the generalist set, and one for all if there are several."""
    if study.generalist_set is None:
        return []
    return _with_mean([Column(title=name, places=(Place(name, study.generalist_set),)) for name in study.specialists])


def _with_mean(columns: list[Column]) -> list[Column]:
    if len(columns) < 2:
        return columns
    places = tuple(place for column in columns for place in column.places)
    title = "mean" if columns[0].questions else "geo. mean"
    return [*columns, dataclasses.replace(columns[0], title=title, places=places)]


def models_at(study: StudyResults, method: str, place: Place, stage: Stage) -> Sequence[Judgement]:
    """Select a method's models of a stage. After fine-tuning, the pretrained model where validation found no better."""
    tuned = stage == "finetuned" and not is_unhelped(study, method, place.specialist)
    return study.judged(method, place.specialist, place.set_name, finetuned=tuned)


def is_unhelped(study: StudyResults, method: str, specialist: str) -> bool:
    """Tell whether fine-tuning was tried, and no fraction of it was better by validation."""
    tried = [model for model in study.models if (model.method, model.specialist) == (method, specialist)]
    tuned = [model for model in tried if model.fraction]
    return bool(tuned) and not any(model.chosen for model in tuned)


def figure(study: StudyResults, method: str, column: Column) -> Figure | None:
    """Estimate a method's perplexity or accuracy; None where it was not judged."""
    by_seed = [_by_seed(study, method, place, column.stage) for place in column.places]
    return _figure(by_seed, column, share_over_sets if column.questions else _perplexity)


def against(study: StudyResults, method: str, other: str, column: Column) -> Figure | None:
    """Estimate a ratio of perplexities or difference of accuracies, paired by seed and example; None without a pair."""
    estimate = difference_over_sets if column.questions else _perplexity
    return _paired(study, method, other, column, lambda values, base: values - base, estimate)


def share_better(study: StudyResults, method: str, other: str, column: Column) -> Figure | None:
    """Estimate the share of examples on which a method has the lower perplexity; a tie counts as half."""
    return _paired(
        study, method, other, column, lambda values, base: np.where(values == base, 0.5, values < base), share_over_sets
    )


def _paired(
    study: StudyResults,
    method: str,
    other: str,
    column: Column,
    compare: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    estimate: _Estimator,
) -> Figure | None:
    sets: list[dict[int, NDArray[np.float64]]] = []
    left_out: set[int] = set()
    for place in column.places:
        values, base = (_by_seed(study, name, place, column.stage) for name in (method, other))
        sets.append({seed: compare(values[seed], base[seed]) for seed in values if seed in base})
        left_out |= values.keys() ^ base.keys()
    return _figure(sets, column, estimate, left_out=tuple(sorted(left_out)))


def _perplexity(sets: Sequence[tuple[str, NDArray[np.float64]]]) -> Estimate:
    return exponential(mean_over_sets(sets))


def _by_seed(study: StudyResults, method: str, place: Place, stage: Stage) -> dict[int, NDArray[np.float64]]:
    """Values of the examples by seed; empty where the method was not judged."""
    return {judgement.seed: judgement.values.astype(np.float64) for judgement in models_at(study, method, place, stage)}


def _figure(
    sets: Sequence[dict[int, NDArray[np.float64]]],
    column: Column,
    estimate: _Estimator,
    *,
    left_out: tuple[int, ...] = (),
) -> Figure | None:
    """Estimate a figure of the seeds that all sets have; None where they share none."""
    seeds = tuple(seed for seed in sets[0] if all(seed in by_seed for by_seed in sets))
    if not seeds:
        return None
    values = [np.array([by_seed[seed] for seed in seeds]) for by_seed in sets]
    names = [place.set_name for place in column.places]
    return Figure(
        estimate=estimate(list(zip(names, values, strict=True))),
        seeds=seeds,
        left_out=left_out,
        num_examples=sum(of_set.shape[1] for of_set in values),
        questions=column.questions,
    )


def marks(study: StudyResults, methods: Iterable[str], column: Column) -> dict[str, Mark]:
    """Mark the best method of a column, and those that cannot be told from it: the paired interval includes none."""
    figures = {method: figure(study, method, column) for method in methods}
    values = {method: value.estimate.value for method, value in figures.items() if value is not None}
    if len(values) < 2:
        return {}
    best = (max if column.questions else min)(values, key=lambda method: values[method])
    marked: dict[str, Mark] = {best: "best"}
    for method in values:
        compared = None if method == best else against(study, method, best, column)
        if compared is not None and compared.against == "open":
            marked[method] = "close"
    return marked
