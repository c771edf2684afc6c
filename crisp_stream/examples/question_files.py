"""Files of multiple-choice questions: JSON lines, JSON arrays, .csv and .tsv, Parquet; in any layout.

All commands read questions here, so that a set is the same questions to all of them (question_layouts.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.examples.question_answers import answer_indices
from crisp_stream.examples.question_layouts import QuestionKeys, RawQuestion, no_layout, raw_question
from crisp_stream.examples.questions import PlacedQuestion, Question
from crisp_stream.records.bad_record import BadRecord
from crisp_stream.records.delimited import read_delimited
from crisp_stream.records.readers import read_lines, read_parquet

Record = tuple[int, Mapping[str, Any]]
"""Line on which it begins, element of an array or row of Parquet, from 1; the fields."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """The questions of a file, and how its answers were understood."""

    placed: list[PlacedQuestion]
    notes: list[str]
    """Which way of naming the right choice was taken where it had to be told, and what told it; a sentence each."""


def read_questions(path: str | Path, *, limit: int | None = None, keys: QuestionKeys | None = None) -> list[Question]:
    """Read questions of any layout: see question_layouts.py.

    Ours is a line of `{"question": text, "choices": [text, text, …], "answer": index, "topic": text}`; the topic, which
    may be missing, stands in the prompt of MMLU.

    Args:
        path: a local file or an object URL: .jsonl, .json, .ndjson, .csv, .tsv or .parquet; also .gz, .bz2, .xz, .zst.
        limit: most questions to give. None: all.
        keys: keys of a layout that is not known.

    Raises:
        InputError: no questions, or a bad one, named as file:line.
        StorageError: no such file.
    """
    return [question for _, question in open_questions(path, keys=keys).placed[:limit]]


def open_questions(
    path: str | Path, *, keys: QuestionKeys | None = None, subsets: frozenset[str] | None = None
) -> QuestionFile:
    """Read questions as `read_questions` does, with places; of records with a `subset` only those of `subsets`."""
    records = ((f"{path}:{row}", record) for row, record in question_records(str(path)))
    return _of_records(records, str(path), keys, subsets)


def _of_records(
    records: Iterator[tuple[str, Mapping[str, Any]]],
    path: str,
    keys: QuestionKeys | None,
    subsets: frozenset[str] | None,
) -> QuestionFile:
    raws: list[tuple[str, RawQuestion]] = []
    for place, record in records:
        if subsets is not None and record.get("subset") not in (None, *subsets):
            continue
        raws.append((place, _checked(raw_question(record, place, keys), record, place)))
    if not raws:
        raise InputError(f"{path}: must hold questions, got none. Each is a record such as question, choices, answer.")
    answers, notes = answer_indices(raws, keys)
    placed = [PlacedQuestion(place, _question(raw, answer)) for (place, raw), answer in zip(raws, answers, strict=True)]
    name = PurePosixPath(path).name
    return QuestionFile(placed=placed, notes=[f"{name}: {note.replace(f'at {path}:', 'in row ')}." for note in notes])


def question_of(record: Mapping[str, Any], place: str, keys: QuestionKeys | None = None) -> Question:
    """Make a question of a single record of a layout; `place` names it in errors. Raises InputError."""
    raw = _checked(raw_question(record, place, keys), record, place)
    return _question(raw, answer_indices([(place, raw)], keys)[0][0])


def unanswered_question(record: Mapping[str, Any], place: str, keys: QuestionKeys | None = None) -> Question | None:
    """Make a question of a record whose answer is not needed, and may be missing; its `answer` says nothing.

    Returns:
        None where the record is of no layout.
    """
    raw = raw_question(record, place, keys)
    return None if raw is None else _question(raw, 0)


def learnable_questions(path: str | Path, *, keys: QuestionKeys | None = None) -> list[Question]:
    """Read questions that a histogram may be counted of.

    Raises:
        InputError: as `read_questions`, or a question is of the test half of a set.
    """
    placed = open_questions(path, keys=keys).placed
    for place, question in placed:
        if question.half == "test":
            raise InputError(
                f"{place}: the question is of a test half, which is kept to judge by. Count the specialist half, which "
                "`crisp-stream split` wrote beside it."
            )
    return [question for _, question in placed]


def _checked(raw: RawQuestion | None, record: Mapping[str, Any], place: str) -> RawQuestion:
    if raw is None:
        raise no_layout(record, place)
    if len(raw.choices) < 2:
        raise InputError(f"{place}: a question needs at least two choices, got {len(raw.choices)}.")
    return raw


def _question(raw: RawQuestion, answer: int) -> Question:
    return Question(
        question=raw.question,
        choices=raw.choices,
        answer=answer,
        topic=raw.topic,
        prompt=raw.prompt,
        half=raw.half,
    )


def question_records(path: str) -> Iterator[Record]:
    """Records of a file, of any kind that holds questions.

    Raises:
        InputError: a file that cannot be read as its name says, or a record that is bad. StorageError: no such file, or
        the storage failed.
    """
    suffixes = {suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]}
    records = _table(path) if suffixes & {".csv", ".tsv"} else _parquet_or_lines(path, suffixes)
    for number, record in records:
        if isinstance(record, BadRecord):
            raise record.error(f"{path}:{number}")
        yield number, record


def _parquet_or_lines(path: str, suffixes: set[str]) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    return read_parquet(path) if ".parquet" in suffixes else read_lines(path)


def _table(path: str) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Rows by the header, or as MMLU has them. A question with fewer choices than others leaves columns empty."""
    for line, row in read_delimited(path, names_without_header=_mmlu_names):
        is_bad = isinstance(row, BadRecord)
        yield line, row if is_bad else {key: field for key, field in row.items() if field or key not in _LETTERS}


def _mmlu_names(row: list[str]) -> list[str] | None:
    """Columns of a file whose first row is no header: question, choices, letter of the right one. None: it is one."""
    choices = [*_LETTERS[: max(len(row) - 2, 0)]]
    is_question = len(choices) >= 2 and row[-1].strip() in choices and row[0] != "question"
    return ["question", *choices, "answer"] if is_question else None
