"""Comparisons of the models of a study: of the same set, seed and stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.results.estimates import Estimate
from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import Judgement
from crisp_stream.study.tables.intervals import SeededValues, exponential, mean_over_sets
from crisp_stream.table import Mark

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


def text_columns(study: StudyResults, stage: Stage = "pretrained") -> list[Column]:
    """Make a column for each specialist with a set of texts, and one for all of them if there are several.

    Questions count as texts, too, where they were judged with their right answers.
    """
    columns = [
        Column(
            title=name if specialist.kind == "text" else f"{name}, text",
            places=(Place(name, specialist.perplexity_set),),
            stage=stage,
        )
        for name, specialist in study.specialists.items()
        if specialist.perplexity_set
    ]
    return _with_mean(columns, "geo. mean")


def question_columns(study: StudyResults, stage: Stage = "pretrained") -> list[Column]:
    """Make a column for each specialist with questions, and one for all of them if there are several."""
    places = [
        Place(name, specialist.own_set)
        for name, specialist in study.specialists.items()
        if specialist.kind == "questions"
    ]
    columns = [Column(title=place.specialist, places=(place,), stage=stage, questions=True) for place in places]
    return _with_mean(columns, "mean")


def generalist_columns(study: StudyResults) -> list[Column]:
    """Make a column for each specialist's models on the generalist set, and one for all if there are several."""
    if study.generalist_set is None:
        return []
    places = [Place(name, study.generalist_set) for name in study.specialists]
    return _with_mean([Column(title=place.specialist, places=(place,)) for place in places], "geo. mean")


def _with_mean(columns: list[Column], title: str) -> list[Column]:
    if len(columns) < 2:
        return columns
    places = tuple(place for column in columns for place in column.places)
    return [*columns, Column(title=title, places=places, stage=columns[0].stage, questions=columns[0].questions)]


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
    judgements = [models_at(study, method, place, column.stage) for place in column.places]
    return _figure([_seeded(row) for row in judgements] if all(judgements) else None, column, left_out=())


def against(study: StudyResults, method: str, other: str, column: Column) -> Figure | None:
    """Estimate a ratio of perplexities or difference of accuracies, paired by seed and example; None without a pair."""
    return _paired(study, method, other, column, lambda values, base: values - base)


def share_better(study: StudyResults, method: str, other: str, column: Column) -> Figure | None:
    """Estimate the share of examples on which a method has the lower perplexity; a tie counts as half."""
    return _paired(study, method, other, column, _is_better, exponent=False)


def _is_better(values: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values == base, 0.5, values < base)


def _paired(
    study: StudyResults,
    method: str,
    other: str,
    column: Column,
    compare: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    *,
    exponent: bool = True,
) -> Figure | None:
    pairs: list[SeededValues] = []
    left_out: set[int] = set()
    for place in column.places:
        ours = _seeded(models_at(study, method, place, column.stage))
        base = _seeded(models_at(study, other, place, column.stage))
        if ours is None or base is None:
            return None
        seeds = _shared([ours, base])
        left_out |= {*ours.seeds, *base.seeds} - set(seeds)
        values = compare(_of_seeds(ours, seeds).values, _of_seeds(base, seeds).values)
        pairs.append(SeededValues(seeds=seeds, values=values, set_name=place.set_name))
    return _figure(pairs, column, left_out=tuple(sorted(left_out)), exponent=exponent)


def _figure(
    sets: Sequence[SeededValues | None] | None, column: Column, *, left_out: tuple[int, ...], exponent: bool = True
) -> Figure | None:
    judged = [values for values in sets or () if values is not None]
    seeds = _shared(judged)
    if not seeds:
        return None
    estimate = mean_over_sets([_of_seeds(values, seeds) for values in judged])
    return Figure(
        estimate=exponential(estimate) if exponent and not column.questions else estimate,
        seeds=seeds,
        left_out=left_out,
        num_examples=sum(values.values.shape[1] for values in judged),
        questions=column.questions,
    )


def _seeded(judgements: Sequence[Judgement]) -> SeededValues | None:
    if not judgements:
        return None
    return SeededValues(
        seeds=tuple(judgement.seed for judgement in judgements),
        values=np.array([judgement.values for judgement in judgements], dtype=np.float64),
        set_name=judgements[0].set_name,
    )


def _shared(sets: Sequence[SeededValues]) -> tuple[int, ...]:
    """Keep the seeds that all have, in the order of the first."""
    return tuple(seed for seed in sets[0].seeds if all(seed in values.seeds for values in sets)) if sets else ()


def _of_seeds(judged: SeededValues, seeds: Sequence[int]) -> SeededValues:
    rows = [judged.seeds.index(seed) for seed in seeds]
    return SeededValues(seeds=tuple(seeds), values=judged.values[rows], set_name=judged.set_name)


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
