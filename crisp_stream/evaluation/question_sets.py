"""Question sets that models are judged on: the tasks of the paper, from the hub or files, and a user's questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from crisp_stream.errors import CrispError, InputError
from crisp_stream.evaluation.prompts import REASONING
from crisp_stream.examples.question_files import QuestionFile, open_questions, question_of
from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.examples.questions import PlacedQuestion, Question, question_hash
from crisp_stream.results.results import set_fingerprint

Metric = Literal["acc", "acc_norm"]

TASKS = ("arc_easy", "arc_challenge", "mmlu", "rewardbench_reasoning")
"""The tasks of the paper; each has a file in tasks/."""

USER_TASK = "questions"
"""The task of a user's questions."""

TASK_FOLDER = Path(__file__).with_name("tasks")

_SUFFIXES = re.compile(r"(\.(jsonl|json|ndjson|csv|tsv|parquet))?(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions of a set, and the task and metric by which they are judged."""

    name: str
    """Name of the set in tables: `arc_easy`, `medicine.test`."""
    task: str
    """Name of a file in tasks/."""
    metric: Metric
    """Metric to report (CRISP, App. D)."""
    questions: list[Question]
    num_repeated: int = 0
    """Questions that stand in the set already: the same question, choices and right answer."""
    num_contradicting: int = 0
    """Questions of a paper's task that stand in the set already, with another right answer."""
    num_expected: int | None = None
    """Questions that the task has in the paper; None for a user's questions."""
    num_asked_of: int | None = None
    """Questions of the whole set, where these are a sample."""
    read_as: tuple[str, ...] = ()
    """How the answers of the file were understood, where that had to be told; a sentence each."""

    @property
    def num_equal_choices(self) -> int:
        """Number of questions with a wrong choice that reads as the right one does; a model cannot tell them apart."""
        return sum(question.equal_to_right > 0 for question in self.questions)

    @property
    def example_ids(self) -> NDArray[np.uint64]:
        """[num_questions], `question_hash` of each."""
        return np.array([question_hash(question) for question in self.questions], np.uint64)

    @property
    def fingerprint(self) -> str:
        """Hash of the questions in their order; see `question_hash`."""
        return set_fingerprint(self.example_ids)

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt figures of this set, a sentence each."""
        reasons = []
        total = len(self.questions) if self.num_asked_of is None else self.num_asked_of
        if self.num_expected not in (None, total):
            reasons.append(f"{self.name} has {total:,} questions, in the paper {self.num_expected:,}.")
        if any(question.half == "specialist" for question in self.questions):
            reasons.append(f"{self.name} has questions of a specialist half, which models may have learnt from.")
        if self.num_repeated:
            reasons.append(f"{self.name}: {self.num_repeated:,} questions are repeated; each counts again.")
        if self.num_contradicting:
            reasons.append(f"{self.name}: {self.num_contradicting:,} questions are repeated with another right answer.")
        if self.num_equal_choices:
            reasons.append(
                f"{self.name}: {self.num_equal_choices:,} questions have a wrong choice equal to the right one."
            )
        return reasons

    def notes(self) -> dict[str, Any]:
        """Describe the set, as results keep it."""
        return {
            "task": self.task,
            "repeated": self.num_repeated,
            "contradicting": self.num_contradicting,
            "equal_choices": self.num_equal_choices,
            "asked_of": self.num_asked_of,
            "read_as": list(self.read_as),
        }

    def without(self, left_out: NDArray[np.bool_]) -> QuestionSet:
        """Leave questions out, by flags of all of them."""
        kept = [row for row, is_out in zip(self.questions, left_out.tolist(), strict=True) if not is_out]
        return replace(self, questions=kept)

    def sample(self, limit: int | None, *, seed: int = 0) -> QuestionSet:
        """Choose at most `limit` of the questions at random by seed, in their order.

        Raises:
            InputError: limit is not positive.
        """
        if limit is not None and limit < 1:
            raise InputError(f"questions: the limit must be 1 or more, got {limit}. Leave it out for all.")
        if limit is None or limit >= len(self.questions):
            return self
        kept = np.sort(np.random.default_rng(seed).choice(len(self.questions), limit, replace=False))
        questions = [self.questions[index] for index in kept.tolist()]
        repeated, contradicting = _count_repeats([PlacedQuestion("", question) for question in questions], lenient=True)
        return replace(
            self,
            questions=questions,
            num_repeated=repeated,
            num_contradicting=contradicting,
            num_asked_of=len(self.questions),
        )


def open_question_set(source: str, *, metric: Metric | None = None, keys: QuestionKeys | None = None) -> QuestionSet:
    """Read a set of questions.

    Args:
        source: a file of questions; the name of a task of the paper, which is fetched from the hub; or TASK=FILE, a
            task whose questions are in a file of the hub's schema, or of any other layout.
        keys: keys of a layout that is not known.
        metric: metric to report; that of the task when None, acc_norm for a user's questions.

    Raises:
        InputError: no questions, a bad one, or one that stands there twice with different right answers.
        StorageError: no such file, or the hub cannot be reached.
    """
    task, separator, file = source.partition("=")
    if source in TASKS and not Path(source).exists():
        read, task = QuestionFile(placed=_from_hub(source), notes=[]), source
    elif separator and task in TASKS:
        read = open_questions(file, keys=keys, subsets=REASONING if task == "rewardbench_reasoning" else None)
    else:
        read, task = open_questions(source, keys=keys), USER_TASK
    placed = read.placed
    repeated, contradicting = _count_repeats(placed, lenient=task != USER_TASK)
    about = read_task(task)["metadata"]
    return QuestionSet(
        name=_SUFFIXES.sub("", Path(source).name) if task == USER_TASK else task,
        task=task,
        metric=metric or about["reported"],
        questions=[question for _, question in placed],
        num_repeated=repeated,
        num_contradicting=contradicting,
        num_expected=None if any(question.half for _, question in placed) else about.get("num_questions"),
        read_as=tuple(read.notes),
    )


@lru_cache(maxsize=len(TASKS) + 1)
def read_task(name: str) -> dict[str, Any]:
    """Read a task file as plain data; functions as their dotted names."""

    class Loader(yaml.SafeLoader):
        """Reads `!function` as text."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load((TASK_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=Loader)


def hub_source(task: str) -> str:
    """Name the hub dataset of a task's questions, as `write` names datasets: hf://NAME:CONFIG@SPLIT."""
    config = read_task(task)
    part = f":{config['dataset_name']}" if config.get("dataset_name") else ""
    return f"hf://{config['dataset_path']}{part}@{config['test_split']}"


def _from_hub(task: str) -> list[PlacedQuestion]:
    from crisp_stream.records.bad_record import BadRecord
    from crisp_stream.writers.documents.hub import list_hub_shards, read_hub

    source, columns = hub_source(task), read_task(task)["metadata"]["columns"]
    placed = []
    try:
        records = (record for shard in list_hub_shards(source) for _, record in read_hub(shard, columns))
        for number, record in enumerate(records, start=1):
            place = f"{source}:{number}"
            if isinstance(record, BadRecord):
                raise record.error(place)
            if task != "rewardbench_reasoning" or record["subset"] in REASONING:
                placed.append(PlacedQuestion(place, question_of(record, place)))
    except CrispError as error:
        raise type(error)(
            f"{error} Questions in a local file are named {task}=FILE, in the schema of the hub."
        ) from error
    return placed


def _count_repeats(placed: Sequence[PlacedQuestion], *, lenient: bool) -> tuple[int, int]:
    """Count questions that are repeated with the same right answer, and with another, which benchmarks have.

    Raises:
        InputError: not lenient, and a question has two right answers; names both places.
    """
    seen: dict[tuple[str, frozenset[str]], tuple[str, str]] = {}
    repeated, contradicting = 0, 0
    for place, question in placed:
        key, right = (question.context, frozenset(question.choices)), question.choices[question.answer]
        if key not in seen:
            seen[key] = (place, right)
        elif seen[key][1] == right:
            repeated += 1
        elif lenient:
            contradicting += 1
        else:
            raise InputError(
                f"{place}: the question stands at {seen[key][0]} already, with the same choices and another right "
                f"answer: {seen[key][1]!r} there, {right!r} here. Remove one of them."
            )
    return repeated, contradicting
