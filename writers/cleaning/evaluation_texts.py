"""Evaluation files as texts: documents, or questions with their choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.question_files import question_records, unanswered_question
from crisp_stream.examples.question_layouts import KEYS_OPTION, QuestionKeys
from crisp_stream.examples.questions import Question, question_hash
from crisp_stream.records.bad_record import BadRecord
from crisp_stream.records.readers import TXT_FIELD, read_txt
from crisp_stream.writers.documents.inputs import file_kind


class EvaluationText(NamedTuple):
    """A text of which no document may hold a part."""

    source: str
    """Name of the evaluation file."""
    row: int
    """Line of a JSONL or .csv file, record of a JSON array, row of a Parquet file, from 1; 1 for a .txt file."""
    text: str


class EvaluationExample(NamedTuple):
    """A document, or a question with its choices."""

    source: str
    """Name of the evaluation file."""
    row: int
    """See `EvaluationText`."""
    texts: list[str]
    """The document; or the question, then the question with each choice."""
    question: Question | None
    """None for a document. Which choice is right is not read."""

    @classmethod
    def of_question(cls, source: str, row: int, question: Question) -> EvaluationExample:
        """A question that was read elsewhere."""
        prompt = question.question
        return cls(source, row, [prompt, *(f"{prompt} {choice}" for choice in question.choices)], question)

    @property
    def example_id(self) -> int:
        """`example_hash` of the document, or `question_hash`."""
        return example_hash(self.texts[0]) if self.question is None else question_hash(self.question)


def read_evaluation_texts(
    file: str, *, text_column: str = "text", keys: QuestionKeys | None = None
) -> Iterator[EvaluationText]:
    """The texts of the examples of a file; see `read_evaluation_examples`."""
    for example in read_evaluation_examples(file, text_column=text_column, keys=keys):
        for text in example.texts:
            yield EvaluationText(example.source, example.row, text)


def read_evaluation_examples(
    file: str, *, text_column: str = "text", keys: QuestionKeys | None = None
) -> Iterator[EvaluationExample]:
    """Read an evaluation file: .jsonl, .json or .ndjson (objects), .csv, .tsv, .txt, or .parquet.

    A record with `text_column` is a document. Else it is a question of any layout (`question_layouts`), with each of
    its choices; or `question` alone, with `answer` where that is a text.

    Args:
        file: a local path or a url; also .gz, .bz2, .xz or .zst.
        text_column: key or column of documents.
        keys: keys of questions in a layout that is not known.

    Raises:
        InputError: a file of another kind, a broken line, a record of another shape. StorageError: the storage failed.
    """
    match file_kind(file):
        case "lines" | "csv" | "parquet":
            records = question_records(file)
        case "text":
            records = iter([(1, {text_column: _text_of(file)})])
        case _:
            raise InputError(
                f"{file}: an evaluation file is .jsonl, .json or .ndjson (objects), .csv, .tsv, .txt or .parquet, also "
                ".gz, .bz2, .xz or .zst. Convert it."
            )
    for row, record in records:
        place = f"{file}:{row}"
        yield _example(record, text_column, PurePosixPath(file).name, row, place, keys or QuestionKeys())


def _text_of(file: str) -> str:
    pieces: list[str] = []
    for number, record in read_txt(file):
        if isinstance(record, BadRecord):
            raise record.error(f"{file}:{number}")
        pieces.append(record[TXT_FIELD])
    return "".join(pieces)


def _example(
    record: Mapping[str, Any], text_column: str, source: str, row: int, place: str, keys: QuestionKeys
) -> EvaluationExample:
    if isinstance(text := record.get(text_column), str):
        return EvaluationExample(source, row, [text], None)
    if (question := unanswered_question(record, place, keys)) is not None:
        return EvaluationExample.of_question(source, row, question)
    text, answer = record.get("question"), record.get("answer")
    if not isinstance(text, str):
        raise InputError(
            f"{place}: must hold a text in {text_column!r}, or a question in a known layout, got the keys "
            f"{', '.join(map(str, record)) or 'none'}. Name the column of the text, or the keys of the question: "
            f"{KEYS_OPTION}."
        )
    choices = (answer,) if isinstance(answer, str) else ()
    return EvaluationExample.of_question(source, row, Question(question=text, choices=choices, answer=0))
