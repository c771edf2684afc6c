"""Multiple-choice questions, and the text that one is (paper, Table 7).

The text of a question is made here alone, for counting histograms and for lm-eval. question_files.py reads them.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Literal, NamedTuple

from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.ignorable import without_ignorable
from crisp_stream.typed import plain

Prompt = Literal["question", "instructions"]
"""`question`: ARC's and MMLU's; `instructions`: RewardBench's."""

Half = Literal["specialist", "test"]
"""Half of a set cut by `crisp-stream split`: one may be learnt from, the other is kept to judge by."""


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
