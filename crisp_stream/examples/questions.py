"""Multiple-choice questions: their files, and the text that one is (paper, Table 7).

Files are JSON lines or Parquet, in our schema or as the hub has ARC, MMLU and RewardBench. The text of a question
is made here alone, for counting histograms and for lm-eval.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

from crisp_stream.errors import CrispError, InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.ignorable import without_ignorable
from crisp_stream.storage.inputs import open_input
from crisp_stream.typed import plain

Prompt = Literal["question", "instructions"]
"""`question`: ARC's and MMLU's; `instructions`: RewardBench's."""

Half = Literal["specialist", "test"]
"""Half of a set cut by `crisp-stream split`: one may be learnt from, the other is kept to judge by."""

_SCHEMAS = (
    "a question needs the keys question, choices and answer; or those of the hub's ARC (question, choices, answerKey), "
    "MMLU (question, subject, choices, answer) or RewardBench (prompt, chosen, rejected)"
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its choices."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    topic: str | None = None
    prompt: Prompt = "question"
    half: Half | None = None
    """None: the set was not cut."""

    @property
    def context(self) -> str:
        """The prompt of Table 7 up to the answer: ARC's, MMLU's where there is a topic, or RewardBench's."""
        if self.prompt == "instructions":
            return f"Follow the instructions below.\nInstructions: {self.question}\nAnswer:"
        about = (
            f"The following are multiple choice questions (with answers) about {self.topic}.\n" if self.topic else ""
        )
        return f"{about}Question: {self.question}\nAnswer:"

    def text(self, choice: int) -> str:
        """The prompt, and a choice as the answer."""
        return f"{self.context} {self.choices[choice]}"

    @property
    def equal_to_right(self) -> int:
        """Number of other choices that read as the right one does."""
        return self.choices.count(self.choices[self.answer]) - 1

    def to_json(self) -> dict[str, object]:
        """A JSON object, as a line of the file holds it."""
        row = plain(self)
        if self.prompt == "question":
            del row["prompt"]
        return {key: value for key, value in row.items() if value is not None}


def question_hash(question: Question) -> int:
    """Hash a question to 64 bits: its text, and its choices in any order.

    Case, white space, Unicode composition (NFKC) and characters that are not seen do not count; which choice is right
    and the topic neither. So copies of a question in two files have one hash, also where the choices were shuffled.
    """
    choices = sorted(_normalised(choice) for choice in question.choices)
    return example_hash(json.dumps([_normalised(question.question), choices], ensure_ascii=False))


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", without_ignorable(text)).casefold().split())


class PlacedQuestion(NamedTuple):
    """A question and where it stands."""

    place: str
    """`file:line`; of Parquet the row, from 1."""
    question: Question


def read_questions(path: str | Path, *, limit: int | None = None) -> list[Question]:
    """Read questions from JSON lines or Parquet.

    Ours: `{"question": text, "choices": [text, text, …], "answer": index, "topic": text}` a line; the topic, which may
    be missing, stands in the prompt of MMLU. Or the hub's schemas: ARC, MMLU, RewardBench.

    Args:
        path: a local file or an object URL; `.gz` and `.zst` are decompressed.
        limit: most questions to read. None: all.

    Raises:
        InputError: no questions, or a bad one, named as file:line.
        StorageError: no such file.
    """
    return [question for _, question in place_questions(path, limit=limit)]


def place_questions(
    path: str | Path, *, limit: int | None = None, subsets: frozenset[str] | None = None
) -> list[PlacedQuestion]:
    """Read questions as `read_questions` does, with places; of records with a `subset` only those of `subsets`."""
    placed: list[PlacedQuestion] = []
    with open_input(str(path)) as raw:
        for place, record in _records(str(path), raw):
            if limit is not None and len(placed) >= limit:
                break
            if subsets is None or record.get("subset", next(iter(subsets))) in subsets:
                placed.append(PlacedQuestion(place, question_of(record, place)))
    if not placed:
        raise InputError(f"{path} holds no questions. Each line is a JSON object with question, choices and answer.")
    return placed


def learnable_questions(path: str | Path) -> list[Question]:
    """Read questions that a histogram may be counted of.

    Raises:
        InputError: as `read_questions`, or a question is of the test half of a set.
    """
    placed = place_questions(path)
    for place, question in placed:
        if question.half == "test":
            raise InputError(
                f"{place}: the question is of a test half, which is kept to judge by. Count the specialist half, which "
                "`crisp-stream split` wrote beside it."
            )
    return [question for _, question in placed]


def question_of(record: Mapping[str, Any], place: str) -> Question:
    """Make a question of a record of one of the schemas; `place` names it in errors. Raises InputError."""
    if record.keys() >= {"prompt", "chosen", "rejected"}:
        return _of_pair(record, place)
    if "answerKey" in record and "answer" not in record:
        record = _of_labels(record, place)
    if not {"question", "choices", "answer"} <= record.keys():
        raise InputError(f"{place}: {_SCHEMAS}.")
    question, choices, answer = record["question"], record["choices"], record["answer"]
    _check_text(question, "question", place)
    if not isinstance(choices, list | tuple) or not all(_is_text(choice) for choice in choices):
        raise InputError(f"{place}: choices must be a list of texts, got {choices!r}.")
    if len(choices) < 2:
        raise InputError(f"{place}: a question needs at least two choices, got {len(choices)}.")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(f"{place}: answer must be the index of a choice, 0 to {len(choices) - 1}; got {answer!r}.")
    topic, prompt, half = record.get("topic"), record.get("prompt"), record.get("half")
    if topic is None and isinstance(record.get("subject"), str):
        topic = record["subject"].replace("_", " ")
    if topic is not None:
        _check_text(topic, "topic", place)
    for name, value, kind in (("prompt", prompt, Prompt), ("half", half, Half)):
        if value is not None and value not in get_args(kind):
            raise InputError(
                f"{place}: {name} must be {' or '.join(get_args(kind))} where there is one; got {value!r}."
            )
    return Question(
        question=question,
        choices=tuple(choices),
        answer=answer,
        topic=topic,
        prompt=prompt or "question",
        half=half,
    )


def _of_labels(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """ARC: choices have labels, letters or digits, and the right one is named by its label."""
    choices, key = record.get("choices"), record["answerKey"]
    texts, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, Mapping) else (None, None)
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise InputError(f"{place}: choices must hold as many labels as texts, {{text, label}}; got {choices!r}.")
    if labels.count(key) != 1:
        raise InputError(f"{place}: answerKey must be the label of one choice, of {labels}; got {key!r}.")
    return {"question": record.get("question"), "choices": texts, "answer": labels.index(key)}


def _of_pair(record: Mapping[str, Any], place: str) -> Question:
    """RewardBench: the chosen answer stands first or second as the content's hash has it, so that ties favour none."""
    for name in ("prompt", "chosen", "rejected"):
        _check_text(record[name], name, place)
    instructions, chosen, rejected = record["prompt"], record["chosen"], record["rejected"]
    content = "\0".join([instructions, *sorted([chosen, rejected])])
    answer = example_hash(content) & 1
    choices = (rejected, chosen) if answer else (chosen, rejected)
    return Question(question=instructions, choices=choices, answer=answer, prompt="instructions")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_text(value: object, name: str, place: str) -> None:
    if not _is_text(value):
        raise InputError(f"{place}: {name} must be text, got {value!r}.")


def _records(path: str, raw: IO[bytes]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Records of a file with their places."""
    import pyarrow as pa

    suffix = Path(path).suffix.lower()
    compression = {".gz": "gzip", ".zst": "zstd"}.get(suffix)
    try:
        if suffix == ".parquet":
            yield from _rows(path, raw)
            return
        content = raw.read() if compression is None else pa.CompressedInputStream(raw, compression).read()
        lines = content.decode("utf-8-sig").split("\n")
    except CrispError:
        raise
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        kind = "Parquet" if suffix == ".parquet" else compression or "UTF-8 text"
        raise InputError(f"{path} is not {kind}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", _record(line, f"{path}:{number}")


def _rows(path: str, raw: IO[bytes]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(raw, pre_buffer=False).iter_batches(batch_size=1024, use_threads=False)
    for row, record in enumerate((record for batch in batches for record in batch.to_pylist()), start=1):
        yield f"{path}:{row}", record


def _record(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: {_SCHEMAS}.")
    return record
