"""Multiple-choice questions: their file, and the text that one is (paper, Table 7)."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from crisp_stream.errors import InputError
from crisp_stream.example_hashes import example_hash
from crisp_stream.storage import open_input


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its choices."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    topic: str | None = None

    def text(self, choice: int) -> str:
        """The prompt of Table 7 (ARC; MMLU where there is a topic), and a choice as the answer."""
        about = (
            f"The following are multiple choice questions (with answers) about {self.topic}.\n" if self.topic else ""
        )
        return f"{about}Question: {self.question}\nAnswer: {self.choices[choice]}"

    def to_json(self) -> dict[str, object]:
        """A JSON object, as a line of the file holds it."""
        return {"question": self.question, "choices": list(self.choices), "answer": self.answer}


def question_hash(question: Question) -> int:
    """64 bits that stand for a question: its text, and its choices in any order.

    Case, white space and Unicode composition (NFKC) do not count; which choice is right and the topic neither. So
    copies of a question in two files have one hash, also where the choices were shuffled.
    """
    choices = sorted(_normalised(choice) for choice in question.choices)
    return example_hash(json.dumps([_normalised(question.question), choices], ensure_ascii=False))


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_questions(path: str | Path, *, limit: int | None = None) -> list[Question]:
    """Questions from JSONL: `{"question": text, "choices": [text, text, …], "answer": index, "topic": text}` a line.

    The topic, which may be missing, stands in the prompt of MMLU.

    Args:
        path: a local file or an object URL; `.gz` and `.zst` are decompressed.
        limit: most questions to read. None: all.

    Raises:
        InputError: no questions, or a bad line, named as file:line.
        StorageError: no such file.
    """
    import pyarrow as pa

    compression = {".gz": "gzip", ".zst": "zstd"}.get(Path(path).suffix.lower())
    with open_input(str(path)) as raw:
        try:
            content = raw.read() if compression is None else pa.CompressedInputStream(raw, compression).read()
            lines = content.decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not {compression or 'UTF-8 text'}: {error}") from error
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and (limit is None or len(questions) < limit):
            questions.append(_question(line, f"{path}:{number}"))
    if not questions:
        raise InputError(f"{path} holds no questions. Each line is a JSON object with question, choices and answer.")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error
    if not isinstance(row, dict) or not {"question", "choices", "answer"} <= row.keys():
        raise InputError(f"{where}: a question needs the keys question, choices and answer.")
    question, choices, answer = row["question"], row["choices"], row["answer"]
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: question must be text, got {question!r}.")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise InputError(f"{where}: choices must be a list of texts, got {choices!r}.")
    if len(choices) < 2:
        raise InputError(f"{where}: a question needs at least two choices, got {len(choices)}.")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(f"{where}: answer must be the index of a choice, 0 to {len(choices) - 1}; got {answer!r}.")
    topic = row.get("topic")
    if topic is not None and (not isinstance(topic, str) or not topic.strip()):
        raise InputError(f"{where}: topic must be text where there is one, got {topic!r}.")
    return Question(question=question, choices=tuple(choices), answer=answer, topic=topic)
