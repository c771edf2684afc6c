"""The paper's claims, judged in a study: which method is better on which specialist, by how much, how surely."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.cells import figure_record, ratio_cell, seed_notes
from crisp_stream.study.tables.comparisons import STAGES, Column, Figure, Stage, against, task_columns
from crisp_stream.study.tables.methods import TITLES, has_stage
from crisp_stream.table import NONE, Table

Answer = Literal["yes", "no", "not distinguishable"]
_ANSWERS: dict[str, Answer] = {"better": "yes", "worse": "no", "open": "not distinguishable"}
_CLAIMS = (
    ("crisp", "classifier"),
    ("crisp", "doge"),
    ("crisp", "base"),
    ("doge", "base"),
    ("classifier", "base"),
    ("multitask", "base"),
    ("multitask", "crisp"),
)
"""Kinds of methods, the first of which should be better. The last is how much one model for all gives away."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One claim on one specialist, or on the mean of all."""

    better: str
    """The method that should be better."""
    than: str
    column: Column
    compared: Figure

    @property
    def answer(self) -> Answer:
        """Whether the method is better."""
        return _ANSWERS[self.compared.against]


def verdicts(study: StudyResults) -> list[Verdict]:
    """Judge all claims that the study has methods for, by claim, stage and specialist."""
    methods = {method.kind: method.name for method in reversed(study.methods)}  # the first of each kind
    if study.crisp is not None:
        methods["crisp"] = study.crisp
    judged = []
    for first, second in _CLAIMS:
        if first not in methods or second not in methods:
            continue
        for stage in STAGES:
            for column in _columns(study, stage):
                compared = against(study, methods[first], methods[second], column)
                if compared is not None:
                    judged.append(
                        Verdict(better=methods[first], than=methods[second], column=column, compared=compared)
                    )
    return judged


def _columns(study: StudyResults, stage: Stage) -> list[Column]:
    if not has_stage(study, stage):
        return []
    asked = task_columns(study, stage, questions=True)
    named = [dataclasses.replace(column, title=f"{column.title}, accuracy") for column in asked]
    return [*task_columns(study, stage, questions=False), *named]


def verdict_tables(study: StudyResults) -> list[Table]:
    """Set claims as rows, specialists as columns; nothing where the study has no two methods of a claim."""
    judged = verdicts(study)
    if not judged:
        return []
    titles = [column.title for column in _columns(study, "pretrained")]
    rows = []
    for (better, than, stage), claim in itertools.groupby(judged, lambda one: (one.better, one.than, one.column.stage)):
        cells = {verdict.column.title: _cell(verdict) for verdict in claim}
        rows.append([f"{better} better than {than}", TITLES[stage], *(cells.get(title, NONE) for title in titles)])
    by_pair = itertools.groupby(judged, lambda verdict: f"{verdict.better} and {verdict.than}")
    table = Table(
        name="verdicts",
        title="Claims",
        caption="yes, no, or not distinguishable (n.d.: the 95 % interval includes no difference); with the ratio of "
        "perplexities, below 1 is better, or the difference of accuracies in points",
        head=("claim", "stage", *titles),
        rows=rows,
        notes=seed_notes({pair: [verdict.compared for verdict in claims] for pair, claims in by_pair}),
        records=[
            figure_record(
                verdict.compared, verdict.column, method=verdict.better, than=verdict.than, answer=verdict.answer
            )
            for verdict in judged
        ],
        words=(0, 1),
    )
    return [table]


def _cell(verdict: Verdict) -> str:
    answer = "n.d." if verdict.answer == "not distinguishable" else verdict.answer
    return f"{answer} {ratio_cell(verdict.compared)}"


def verdict_lines(study: StudyResults) -> list[str]:
    """Say in sentences what the study finds: for each claim and stage, on how many of the specialists it holds."""
    judged = [verdict for verdict in verdicts(study) if not verdict.column.is_mean]
    claims = itertools.groupby(judged, lambda one: (one.better, one.than, one.column.stage, one.column.questions))
    return [_sentence(list(claim)) for _, claim in claims]


def _sentence(claim: Sequence[Verdict]) -> str:
    first = claim[0]
    what = "accuracy" if first.column.questions else "perplexity"
    holds = sum(verdict.answer == "yes" for verdict in claim)
    others = []
    for answer, said in (("worse", "worse"), ("open", "not distinguishable")):
        titles = ", ".join(verdict.column.title for verdict in claim if verdict.compared.against == answer)
        others += [f"{said}: {titles}"] if titles else []
    line = (
        f"{first.better} better than {first.than} in {what}, {TITLES[first.column.stage]}: on {holds} of {len(claim)}"
    )
    return line + (f" ({'; '.join(others)})" if others else "")
