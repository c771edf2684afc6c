"""Functions that the task files (tasks/*.yaml) name: parts of a record in any schema that questions.py reads.

The prompts are made in questions.py alone, so that a histogram is counted from the very text that is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crisp_stream.examples.question_files import question_of
from crisp_stream.examples.questions import Question

REASONING = frozenset(("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"))
"""Subsets of RewardBench that are its Reasoning category."""


class ReadRecord(dict[str, Any]):
    """A record with its parsed question: lm-eval reads its parts seven times."""

    def __init__(self, question: Question) -> None:
        super().__init__(question.to_json())
        self.question = question


def _question(record: Mapping[str, Any]) -> Question:
    return record.question if isinstance(record, ReadRecord) else question_of(record, "a question")


def context(record: Mapping[str, Any]) -> str:
    """The prompt up to the answer."""
    return _question(record).context


def choices(record: Mapping[str, Any]) -> list[str]:
    """The answers to choose from."""
    return list(_question(record).choices)


def answer(record: Mapping[str, Any]) -> int:
    """Index of the right answer."""
    return _question(record).answer


def reasoning(records: Any) -> Any:
    """Select the Reasoning category from a dataset of all of RewardBench."""
    return records.filter(lambda record: record["subset"] in REASONING)
