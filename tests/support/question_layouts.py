"""A few questions of our own, written in every layout that is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

QUESTIONS: list[Row] = [
    {
        "question": "Which tool measures the pressure of the air around a house in winter and in summer?",
        "choices": ["a barometer", "a ruler", "a clock", "a sieve"],
        "answer": 0,
    },
    {
        "question": "What do bakers add to dough, so that it rises before it goes into the oven?",
        "choices": ["sand", "yeast", "glass", 'iron, in "small" pieces'],
        "answer": 1,
    },
    {
        "question": "Where does the water of a river end after it has run past the last town?",
        "choices": ["in a cloud", "on a roof", "in the sea", "in a lamp"],
        "answer": 2,
    },
    {
        "question": "Who keeps bees on the hill above the village and sells what they make?",
        "choices": ["a sailor", "a smith", "a tailor", "a beekeeper"],
        "answer": 3,
    },
    {
        "question": "How many legs has the spider that sits in the corner of the old barn?",
        "choices": ["six of them", "eight of them", "ten of them", "two of them"],
        "answer": 1,
    },
    {
        "question": "Which of these burns when a match is held to it on a dry and windy day?",
        "choices": ["wet clay", "granite", "straw", "snow"],
        "answer": 2,
    },
]

LETTERS = "ABCDEFGHIJ"


def _others(row: Row) -> list[str]:
    return [choice for number, choice in enumerate(row["choices"]) if number != row["answer"]]


LAYOUTS: dict[str, Callable[[Row], Row]] = {
    "own": lambda row: row,
    "arc": lambda row: {
        "id": "x",
        "question": row["question"],
        "choices": {"text": row["choices"], "label": [*LETTERS[: len(row["choices"])]]},
        "answerKey": LETTERS[row["answer"]],
    },
    "options_list": lambda row: {
        "question": row["question"],
        "options": row["choices"],
        "answer_idx": row["answer"],
    },
    "options_object": lambda row: {
        "question": row["question"],
        "answer": row["choices"][row["answer"]],
        "options": dict(zip(LETTERS, row["choices"], strict=False)),
        "answer_idx": LETTERS[row["answer"]],
    },
    "options_letters": lambda row: {
        "question": row["question"],
        "options": row["choices"],
        "answer": LETTERS[row["answer"]],
    },
    "cop_from_0": lambda row: {
        "question": row["question"],
        **{f"op{letter.lower()}": choice for letter, choice in zip(LETTERS, row["choices"], strict=False)},
        "cop": row["answer"],
        "exp": None,
    },
    "cop_from_1": lambda row: {**LAYOUTS["cop_from_0"](row), "cop": row["answer"] + 1},
    "stem": lambda row: {
        "question": {
            "stem": row["question"],
            "choices": [{"text": text, "label": label} for label, text in zip(LETTERS, row["choices"], strict=False)],
        },
        "answerKey": LETTERS[row["answer"]],
    },
    "stem_beside_choices": lambda row: {
        "question_stem": row["question"],
        "choices": {"text": row["choices"], "label": [*LETTERS[: len(row["choices"])]]},
        "answerKey": LETTERS[row["answer"]],
    },
    "gold": lambda row: {"query": row["question"], "choices": row["choices"], "gold": [row["answer"]]},
    "endings": lambda row: {
        "ctx": row["question"],
        "endings": row["choices"],
        "label": str(row["answer"]),
        "ind": 4,
    },
    "named": lambda row: {"q": {"text": row["question"]}, "alternatives": row["choices"], "key": row["answer"] + 1},
}
"""Records by layout, each with the choices in their order."""

NAMED_KEYS = "question=q.text,choices=alternatives,answer=key,base=1"
"""--question-keys of the layout `named`."""

UNORDERED: dict[str, Callable[[Row], Row]] = {
    "distractors": lambda row: {
        "question": row["question"],
        **{f"distractor{number}": other for number, other in enumerate(_others(row), start=1)},
        "correct_answer": row["choices"][row["answer"]],
        "support": "",
    },
}
"""Records of layouts that do not say in which order the choices stand."""


def write_lines(path: Path, records: Sequence[Row]) -> str:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def write_array(path: Path, records: Sequence[Row]) -> str:
    """Write a JSON array over many lines."""
    path.write_text("\ufeff" + json.dumps(list(records), indent=2), encoding="utf-8")
    return str(path)


def write_rows(path: Path, rows: Sequence[Row], *, header: bool) -> str:
    """Write the rows of a .csv as MMLU has them, and with a header."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    if header:
        table.writerow(["question", *LETTERS[: len(rows[0]["choices"])], "answer"])
    table.writerows([row["question"], *row["choices"], LETTERS[row["answer"]]] for row in rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return str(path)


def write_every_layout(folder: Path, rows: Sequence[Row] = QUESTIONS) -> dict[str, str]:
    """Write the questions in every layout that keeps their order; returns the files by layout."""
    files = {
        name: write_lines(folder / f"{name}.jsonl", [record(row) for row in rows]) for name, record in LAYOUTS.items()
    }
    arrays = {
        f"{name}_array": write_array(folder / f"{name}_array.json", [LAYOUTS[name](row) for row in rows])
        for name in ("own", "stem")
    }
    tables = {
        f"mmlu_{name}": write_rows(folder / f"mmlu_{name}.csv", rows, header=name == "header")
        for name in ("header", "bare")
    }
    return {**files, **arrays, **tables}
