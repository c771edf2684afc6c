"""Whether the paper's claims hold in a study: which method is better on which specialist, by how much, how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.cells import Cell, StudyTable, figure_line, seed_notes
from crisp_stream.study.tables.comparisons import STAGES, Column, Figure, Stage, against, own_columns, question_columns
from crisp_stream.study.tables.methods import TITLES, has_stage
from crisp_stream.table import NONE

Answer = Literal["yes", "no", "not distinguishable"]
_ANSWERS: dict[str, Answer] = {"better": "yes", "worse": "no", "open": "not distinguishable"}

_OTHERS: tuple[tuple[Answer, str], ...] = (("no", "worse"), ("not distinguishable", "not distinguishable"))

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
    found: Figure

    @property
    def answer(self) -> Answer:
        """Whether it is."""
        return _ANSWERS[self.found.against]


def verdicts(study: StudyResults) -> list[Verdict]:
    """All claims that the study has methods for, by claim, stage and specialist."""
    methods = {own.kind: own.name for own in reversed(study.methods)}  # the first of each kind
    if study.crisp is not None:
        methods["crisp"] = study.crisp
    found = []
    for first, second in _CLAIMS:
        if first not in methods or second not in methods:
            continue
        for stage in STAGES:
            for column in _columns(study, stage):
                compared = against(study, methods[first], methods[second], column)
                if compared is not None:
                    found.append(Verdict(better=methods[first], than=methods[second], column=column, found=compared))
    return found


def _columns(study: StudyResults, stage: Stage) -> list[Column]:
    questions = [
        Column(title=f"{own.title}, accuracy", places=own.places, stage=stage, questions=True)
        for own in question_columns(study, stage)
    ]
    return [*own_columns(study, stage), *questions] if has_stage(study, stage) else []


def verdict_tables(study: StudyResults) -> list[StudyTable]:
    """Claims as rows, specialists as columns; none where the study has no two methods of a claim."""
    found = verdicts(study)
    if not found:
        return []
    titles = [column.title for column in _columns(study, "pretrained")]
    rows = []
    for own in _by_claim(found):
        of_column = {each.column.title: _cell(each) for each in own}
        cells = [of_column.get(title, NONE) for title in titles]
        first = own[0]
        rows.append(
            [Cell(f"{first.better} better than {first.than}"), Cell(TITLES[first.column.stage]), *map(Cell, cells)]
        )
    lines = [figure_line(own.found, own.column, method=own.better, than=own.than, answer=own.answer) for own in found]
    by_pair: dict[str, list[Figure | None]] = {}
    for own in found:
        by_pair.setdefault(f"{own.better} and {own.than}", []).append(own.found)
    table = StudyTable(
        name="verdicts",
        title="Claims",
        caption="yes, no, or not distinguishable (n.d.: the 95 % interval includes no difference); with the ratio of "
        "perplexities, below 1 is better, or the difference of accuracies in points",
        head=("claim", "stage", *titles),
        rows=rows,
        notes=seed_notes(by_pair),
        lines=lines,
        left=2,
    )
    return [table]


def _cell(verdict: Verdict) -> str:
    estimate = verdict.found.estimate
    shown = estimate.cell(1, scale=100, signed=True) if verdict.found.questions else estimate.cell(3)
    return f"{'n.d.' if verdict.answer == 'not distinguishable' else verdict.answer} {shown}"


def verdict_lines(study: StudyResults) -> list[str]:
    """What the study says, in sentences: for each claim and stage, on how many of the specialists it holds."""
    lines = []
    for claim in _by_claim([own for own in verdicts(study) if not own.column.is_mean]):
        for questions in (False, True):
            own = [each for each in claim if each.column.questions == questions]
            if own:
                lines.append(_sentence(own))
    return lines


def _sentence(own: Sequence[Verdict]) -> str:
    first = own[0]
    what = "accuracy" if first.column.questions else "perplexity"
    named = {
        answer: ", ".join(each.column.title for each in own if each.answer == answer) for answer in _ANSWERS.values()
    }
    holds = sum(each.answer == "yes" for each in own)
    others = [f"{said}: {named[answer]}" for answer, said in _OTHERS if named[answer]]
    line = f"{first.better} better than {first.than} in {what}, {TITLES[first.column.stage]}: on {holds} of {len(own)}"
    return line + (f" ({'; '.join(others)})" if others else "")


def _by_claim(found: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts of one claim and stage together, in order."""
    groups: dict[tuple[str, str, Stage], list[Verdict]] = {}
    for own in found:
        groups.setdefault((own.better, own.than, own.column.stage), []).append(own)
    return list(groups.values())
