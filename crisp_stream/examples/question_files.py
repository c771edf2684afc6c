"""Files of multiple-choice questions: JSON lines, JSON arrays, .csv and .tsv, Parquet; in any layout.

All commands read questions here, so that a set is the same questions to all of them (question_layouts.py).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from crisp_stream.errors import CrispError, InputError
from crisp_stream.examples.question_answers import answer_indices
from crisp_stream.examples.question_layouts import QuestionKeys, RawQuestion, no_layout, raw_question
from crisp_stream.examples.questions import PlacedQuestion, Question
from crisp_stream.storage.inputs import open_input

Record = tuple[int, Mapping[str, Any]]
"""Line on which it begins, element of an array or row of Parquet, from 1; the fields."""

_MAX_FIELD_CHARACTERS = 256 << 20
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLANK = b" \t\r\n\xef\xbb\xbf"
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


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
        InputError: a file that cannot be read as its name says. StorageError: no such file, or the storage failed.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    with open_input(path) as raw:
        if suffixes[-1:] == [".parquet"]:
            yield from _rows(path, raw)
            return
        yield from _records_of(path, _decompressed(path, raw), suffixes)


def array_or_table_records(path: str) -> Iterator[Record] | None:
    """Records of a JSON array, a .csv or a .tsv; None for any other file, which is not read.

    Raises:
        as `question_records`.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]]
    if {".csv", ".tsv"} & {*suffixes}:
        return question_records(path)
    if not {".json", ".jsonl", ".ndjson"} & {*suffixes}:
        return None
    with open_input(path) as raw:
        try:
            begin = _open(path, raw).read(64)
        except (OSError, EOFError, lzma.LZMAError):
            return None  # it is damaged: who reads it as lines says so
    return question_records(path) if begin.lstrip(_BLANK).startswith(b"[") else None


def _records_of(path: str, content: bytes, suffixes: Sequence[str]) -> Iterator[Record]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}. Convert it.") from error
    if {".csv", ".tsv"} & {*suffixes}:
        yield from _table(path, text, "\t" if ".tsv" in suffixes else ",")
    elif content.lstrip(_BLANK).startswith(b"["):
        yield from _array(path, text)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _object(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _array(path: str, text: str) -> Iterator[Record]:
    records = _parsed(text, path)
    for number, record in enumerate(records, start=1):
        yield number, _object(record, f"{path}:{number}")


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}). Mend or convert the file.") from error


def _object(record: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{place}: a question must be a JSON object, got {type(record).__name__}. Convert the file.")
    return record


def _table(path: str, text: str, delimiter: str) -> Iterator[Record]:
    """Rows by the header; or, of a file without one, as MMLU has them: question, choices, letter of the right one."""
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)  # of the process; Python's own limit is 131,072
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    next_line = 1
    try:
        for row in rows:
            line, next_line = next_line, rows.line_num + 1
            if not row:
                continue
            if names is None:
                names = _names(row)
                if names is row:
                    continue
            if len(row) != len(names):
                raise InputError(f"{path}:{line}: every row must have {len(names)} fields, got {len(row)}. Mend it.")
            yield line, {name: field for name, field in zip(names, row, strict=True) if field or name not in _LETTERS}
    except csv.Error as error:
        raise InputError(f"{path}:{next_line}: the row is not as RFC 4180 says ({error}). Mend it.") from error


def _names(row: list[str]) -> list[str]:
    """The first row itself where it is a header; else the names of columns in a file without one."""
    choices = [*_LETTERS[: max(len(row) - 2, 0)]]
    if len(choices) >= 2 and row[-1].strip() in choices and row[0] != "question":
        return ["question", *choices, "answer"]
    return row


def _open(path: str, raw: IO[bytes]) -> Any:
    import pyarrow as pa

    suffix = PurePosixPath(path).suffix.lower()
    if suffix == ".zst":
        return pa.CompressedInputStream(raw, "zstd")
    return _OPENERS[suffix](raw) if suffix in _OPENERS else raw


def _decompressed(path: str, raw: IO[bytes]) -> bytes:
    try:
        return _open(path, raw).read()
    except CrispError:
        raise
    except (OSError, EOFError, lzma.LZMAError) as error:
        kind = PurePosixPath(path).suffix.removeprefix(".")
        raise InputError(f"{path} is not {kind}, or cut off: {error}. Restore the file.") from error


def _rows(path: str, raw: IO[bytes]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(raw, pre_buffer=False).iter_batches(batch_size=1024, use_threads=False)
        records = [record for batch in batches for record in batch.to_pylist()]
    except CrispError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not Parquet: {error}. Restore the file.") from error
    yield from enumerate(records, start=1)
