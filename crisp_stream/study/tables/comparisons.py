"""Which models of a study are set against one another: same set, same seed, same stage."""

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

Stage = Literal["pretrained", "finetuned"]
STAGES: tuple[Stage, ...] = ("pretrained", "finetuned")
Mark = Literal["", "best", "close"]


class Place(NamedTuple):
    """For which specialist a model is, and the set that it is judged on."""

    specialist: str
    set_name: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column of a table is of: one place, or the mean over several."""

    title: str
    places: tuple[Place, ...]
    stage: Stage = "pretrained"
    questions: bool = False
    """Accuracies, and not perplexities."""

    @property
    def is_mean(self) -> bool:
        """Whether it is of several places."""
        return len(self.places) > 1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with what it is made of."""

    estimate: Estimate
    """A perplexity or a ratio of perplexities; accuracies and their differences as shares."""
    seeds: tuple[int, ...]
    left_out: tuple[int, ...] = ()
    """Seeds that only one of two methods was run with."""
    num_examples: int
    questions: bool = False

    @property
    def against(self) -> Literal["better", "worse", "open"]:
        """Of a comparison: what its interval says of the first method; open where it includes no difference."""
        low, high = self.estimate.interval
        none = 0.0 if self.questions else 1.0
        if not (high < none or low > none):
            return "open"
        return "better" if (low > none) == self.questions else "worse"


def own_columns(study: StudyResults, stage: Stage = "pretrained") -> list[Column]:
    """A column for each specialist with a set of texts, and one for all of them if there are several.

    Questions count as texts, too, where they were judged with their right answers.
    """
    columns = [
        Column(
            title=name if own.kind == "text" else f"{name}, text",
            places=(Place(name, own.perplexity_set),),
            stage=stage,
        )
        for name, own in study.specialists.items()
        if own.perplexity_set
    ]
    return _with_mean(columns, "geo. mean")


def question_columns(study: StudyResults, stage: Stage = "pretrained") -> list[Column]:
    """A column for each specialist with questions, and one for all of them if there are several."""
    places = [Place(name, own.own_set) for name, own in study.specialists.items() if own.kind == "questions"]
    columns = [Column(title=place.specialist, places=(place,), stage=stage, questions=True) for place in places]
    return _with_mean(columns, "mean")


def generalist_columns(study: StudyResults) -> list[Column]:
    """A column for each specialist's models on the generalist set, and one for all of them if there are several."""
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
    """What a method has at a stage. After fine-tuning that is the pretrained model where validation found no better."""
    tuned = stage == "finetuned" and not is_unhelped(study, method, place.specialist)
    return study.judged(method, place.specialist, place.set_name, finetuned=tuned)


def is_unhelped(study: StudyResults, method: str, specialist: str) -> bool:
    """Whether fine-tuning was tried, and no fraction of it was better by validation."""
    tried = [own for own in study.models if own.method == method and own.specialist == specialist and own.fraction]
    return bool(tried) and not any(own.chosen for own in tried)


def figure(study: StudyResults, method: str, column: Column) -> Figure | None:
    """A method's perplexity or accuracy; None where it was not judged."""
    found = [models_at(study, method, place, column.stage) for place in column.places]
    return _figure([_seeded(own) for own in found] if all(found) else None, column, left_out=())


def against(study: StudyResults, method: str, other: str, column: Column) -> Figure | None:
    """Ratio of perplexities or difference of accuracies, paired by seed and example; None where there is no pair."""
    return _paired(study, method, other, column, lambda found, base: found - base)


def share_better(study: StudyResults, method: str, other: str, column: Column) -> Figure | None:
    """On which share of examples a method has the lower perplexity; a tie counts as half."""
    return _paired(study, method, other, column, _is_better, exponent=False)


def _is_better(found: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(found == base, 0.5, found < base)


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
        found = _seeded(models_at(study, method, place, column.stage))
        base = _seeded(models_at(study, other, place, column.stage))
        if found is None or base is None:
            return None
        seeds = _shared([found, base])
        left_out |= {*found.seeds, *base.seeds} - set(seeds)
        values = compare(_of_seeds(found, seeds).values, _of_seeds(base, seeds).values)
        pairs.append(SeededValues(seeds=seeds, values=values, set_name=place.set_name))
    return _figure(pairs, column, left_out=tuple(sorted(left_out)), exponent=exponent)


def _figure(
    sets: Sequence[SeededValues | None] | None, column: Column, *, left_out: tuple[int, ...], exponent: bool = True
) -> Figure | None:
    whole = [own for own in sets or () if own is not None]
    seeds = _shared(whole)
    if not seeds:
        return None
    estimate = mean_over_sets([_of_seeds(own, seeds) for own in whole])
    return Figure(
        estimate=exponential(estimate) if exponent and not column.questions else estimate,
        seeds=seeds,
        left_out=left_out,
        num_examples=sum(own.values.shape[1] for own in whole),
        questions=column.questions,
    )


def _seeded(judgements: Sequence[Judgement]) -> SeededValues | None:
    if not judgements:
        return None
    return SeededValues(
        seeds=tuple(own.seed for own in judgements),
        values=np.array([own.values for own in judgements], dtype=np.float64),
        set_name=judgements[0].set_name,
    )


def _shared(sets: Sequence[SeededValues]) -> tuple[int, ...]:
    """The seeds that all have, in the order of the first."""
    return tuple(seed for seed in sets[0].seeds if all(seed in own.seeds for own in sets)) if sets else ()


def _of_seeds(own: SeededValues, seeds: Sequence[int]) -> SeededValues:
    rows = [own.seeds.index(seed) for seed in seeds]
    return SeededValues(seeds=tuple(seeds), values=own.values[rows], set_name=own.set_name)


def marks(study: StudyResults, methods: Iterable[str], column: Column) -> dict[str, Mark]:
    """The best of the methods in a column, and those that cannot be told from it: the paired interval includes none."""
    figures = {method: figure(study, method, column) for method in methods}
    values = {method: own.estimate.value for method, own in figures.items() if own is not None}
    if len(values) < 2:
        return {}
    best = (max if column.questions else min)(values, key=lambda method: values[method])
    found: dict[str, Mark] = {best: "best"}
    for method in values:
        compared = None if method == best else against(study, method, best, column)
        if compared is not None and compared.against == "open":
            found[method] = "close"
    return found
