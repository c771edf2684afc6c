"""Evaluation files as texts: documents, or questions with their choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.questions import Question, question_hash
from crisp_stream.writers.documents.bad_records import BadRecord
from crisp_stream.writers.documents.delimited import read_delimited
from crisp_stream.writers.documents.inputs import file_kind
from crisp_stream.writers.documents.readers import TXT_FIELD, Record, read_lines, read_parquet, read_txt


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


def read_evaluation_texts(file: str, *, text_column: str = "text") -> Iterator[EvaluationText]:
    """The texts of the examples of a file; see `read_evaluation_examples`."""
    for example in read_evaluation_examples(file, text_column=text_column):
        for text in example.texts:
            yield EvaluationText(example.source, example.row, text)


def read_evaluation_examples(file: str, *, text_column: str = "text") -> Iterator[EvaluationExample]:
    """Read an evaluation file: .jsonl, .json or .ndjson (objects), .csv, .tsv, .txt, or .parquet.

    A record with `text_column` is a document. Else it is a question: `question` alone, and `question` with each of
    `choices` (a list, or an object with the list `text`, as ARC has it), or with `answer` where that is a text; or, as
    RewardBench has it, `prompt` with `chosen` and with `rejected`.

    Args:
        file: a local path or a url; also .gz, .bz2, .xz or .zst.
        text_column: key or column of documents.

    Raises:
        InputError: a file of another kind, a broken line, a record of another shape. StorageError: the storage failed.
    """
    records: Iterator[Record]
    match file_kind(file):
        case "lines":
            records = read_lines(file)
        case "csv":
            records = read_delimited(file)
        case "text":
            pieces = (_whole(record, file)[TXT_FIELD] for _, record in read_txt(file))
            records = iter([(1, {text_column: "".join(pieces)})])
        case "parquet":
            records = read_parquet(file, (text_column, "question", "choices", "answer", "prompt", "chosen", "rejected"))
        case _:
            raise InputError(
                f"{file}: an evaluation file is .jsonl, .json or .ndjson (objects), .csv, .tsv, .txt or .parquet, also "
                ".gz, .bz2, .xz or .zst. Convert it."
            )
    for row, record in records:
        place = f"{file}:{row}"
        yield _example(_whole(record, place), text_column, PurePosixPath(file).name, row, place)


def _whole(record: dict[str, Any] | BadRecord, place: str) -> dict[str, Any]:
    """The fields of a record. Raises InputError: a bad one; of evaluation files every record counts."""
    if isinstance(record, BadRecord):
        raise record.error(place)
    return record


def _example(record: Mapping[str, Any], text_column: str, source: str, row: int, place: str) -> EvaluationExample:
    text, question = record.get(text_column), record.get("question")
    if isinstance(text, str):
        return EvaluationExample(source, row, [text], None)
    if question is None and all(isinstance(record.get(key), str) for key in ("prompt", "chosen", "rejected")):
        pair = Question(question=record["prompt"], choices=(record["chosen"], record["rejected"]), answer=0)
        return EvaluationExample.of_question(source, row, pair)
    if not isinstance(question, str):
        raise InputError(
            f"{place}: must hold a text in {text_column!r} or in 'question', got the keys "
            f"{', '.join(map(str, record)) or 'none'}. Rename the column of the text."
        )
    choices = record.get("choices", [])
    if isinstance(choices, Mapping):
        choices = choices.get("text")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"{place}: 'choices' must be a list of texts, got {type(choices).__name__}. Convert the file.")
    answer = record.get("answer")
    if not choices and isinstance(answer, str):
        choices = [answer]
    return EvaluationExample.of_question(source, row, Question(question=question, choices=tuple(choices), answer=0))
