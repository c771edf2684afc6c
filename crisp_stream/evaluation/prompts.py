"""What lm-eval asks: functions of the task files (tasks/*.yaml), of a record in any schema that questions.py reads.

The prompts are made in questions.py alone, so that a histogram is counted of the very text that is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crisp_stream.questions import question_of

REASONING = frozenset(("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"))
"""Subsets of RewardBench that are its Reasoning category."""

_PLACE = "a question"


def context(record: Mapping[str, Any]) -> str:
    """The prompt up to the answer."""
    return question_of(record, _PLACE).context


def choices(record: Mapping[str, Any]) -> list[str]:
    """The answers to choose from."""
    return list(question_of(record, _PLACE).choices)


def answer(record: Mapping[str, Any]) -> int:
    """Index of the right answer."""
    return question_of(record, _PLACE).answer


def reasoning(records: Any) -> Any:
    """The Reasoning category of RewardBench, from a dataset of all of it."""
    return records.filter(lambda record: record["subset"] in REASONING)
