"""Question sets in the schemas of four published ones, each in five layouts, and what the commands say of them.

The schemas are those that the sets' public descriptions give (ARC, MMLU, MedMCQA, OpenBookQA); the questions are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.cli.main import main
from crisp_stream.evaluation.contamination import Contamination
from crisp_stream.examples.sketch import PROVENANCE_KEY
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.results.results import QuestionResults, load_results
from tests.support.question_layouts import LETTERS, Row, write_lines

Layout = Callable[[Row], Row]


def _labels(row: Row) -> list[str]:
    return list("12345" if row.get("numbered") else LETTERS)[: len(row["choices"])]


def _arc(row: Row) -> Row:
    """ARC: some of its questions have the labels 1 to 4, and 3 to 5 choices."""
    labels = _labels(row)
    return {
        "id": "Mercury_7",
        "question": row["question"],
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["answer"]],
    }


def _openbookqa(row: Row) -> Row:
    labels = [*LETTERS[: len(row["choices"])]]
    choices = {"text": row["choices"], "label": labels}
    return {"id": "7-9", "question_stem": row["question"], "choices": choices, "answerKey": labels[row["answer"]]}


def _medmcqa(row: Row) -> Row:
    """MedMCQA, whose answers count from 1 in the files that its authors publish."""
    options = {f"op{letter.lower()}": choice for letter, choice in zip(LETTERS, row["choices"], strict=False)}
    unused = {"choice_type": "single", "exp": None, "subject_name": "Anatomy", "topic_name": None}
    return {"id": "e1", "question": row["question"], **options, "cop": row["answer"] + 1, **unused}


def _mmlu(row: Row) -> Row:
    return {key: row[key] for key in ("question", "subject", "choices", "answer") if key in row}


def _medqa(row: Row) -> Row:
    options = dict(zip(LETTERS, row["choices"], strict=False))
    answer = {"answer": row["choices"][row["answer"]], "answer_idx": LETTERS[row["answer"]]}
    return {"question": row["question"], "options": options, **answer, "meta_info": "step1"}


def _agieval(row: Row) -> Row:
    return {"query": row["question"], "choices": row["choices"], "gold": [row["answer"]]}


def _stem(row: Row) -> Row:
    labels = _labels(row)
    choices = [{"text": text, "label": label} for label, text in zip(labels, row["choices"], strict=True)]
    return {"question": {"stem": row["question"], "choices": choices}, "answerKey": labels[row["answer"]]}


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "arc": (_arc, _medqa, _medmcqa, _agieval, _stem),
    "mmlu": (_mmlu, _arc, _medqa, _medmcqa, _agieval),
    "medmcqa": (_medmcqa, _arc, _medqa, _agieval, _openbookqa),
    "openbookqa": (_openbookqa, _stem, _mmlu, _medqa, _medmcqa),
}
"""Five layouts of each set, its own first."""

SETS: dict[str, list[Row]] = {
    "arc": [
        {
            "question": "Which of these objects is drawn to a magnet?",
            "choices": ["a cork", "a leaf", "a nail"],
            "answer": 2,
        },
        {
            "question": "What do the roots of a plant take up from the soil?",
            "choices": ["light", "sugar", "water", "seeds", "wind"],
            "answer": 2,
            "numbered": True,
        },
        {
            "question": "Which change turns ice into water on a warm day?",
            "choices": ["melting", "freezing", "burning", "rusting"],
            "answer": 0,
        },
        {
            "question": "Why does the moon seem to shine at night above the hills?",
            "choices": ["It burns.", "It reflects sunlight.", "It is hot.", "It is made of glass."],
            "answer": 1,
        },
        {
            "question": "Which animal breathes by gills for the whole of its life?",
            "choices": ["a trout", "a frog", "a whale", "a duck"],
            "answer": 0,
            "numbered": True,
        },
        {
            "question": "What should a student measure to learn how fast a cart rolls?",
            "choices": ["mass and colour", "distance and time", "heat and light", "volume and mass"],
            "answer": 1,
        },
    ],
    "mmlu": [
        {
            "question": "A tax that takes a larger share of larger incomes is called",
            "choices": ["progressive", "regressive", "flat", "hidden"],
            "answer": 0,
            "subject": "high_school_macroeconomics",
        },
        {
            "question": "If every member of a set maps to exactly one other, the map is called",
            "choices": ["a relation", "a function", "a graph", "a ring"],
            "answer": 1,
            "subject": "abstract_algebra",
        },
        {
            "question": "The right to be told of a charge before a trial is part of",
            "choices": ["due process", "eminent domain", "common stock", "trade law"],
            "answer": 0,
            "subject": "jurisprudence",
        },
        {
            "question": "Which part of a cell holds most of what it inherits?",
            "choices": ["the wall", "the membrane", "the sap", "the nucleus"],
            "answer": 3,
            "subject": "high_school_biology",
        },
    ],
    "medmcqa": [
        {
            "question": "Which nerve supplies the muscle that lifts the upper eyelid?",
            "choices": ["facial", "oculomotor", "optic", "trochlear"],
            "answer": 1,
        },
        {
            "question": "A child with a barking cough and noisy breathing most likely has",
            "choices": ["asthma", "pneumonia", "bronchiolitis", "croup"],
            "answer": 3,
        },
        {
            "question": "Lack of which vitamin makes the gums bleed on long voyages?",
            "choices": ["vitamin C", "vitamin K", "vitamin A", "vitamin D"],
            "answer": 0,
        },
        {
            "question": "The bone that carries the teeth of the lower row is the",
            "choices": ["maxilla", "zygoma", "mandible", "hyoid"],
            "answer": 2,
        },
    ],
    "openbookqa": [
        {
            "question": "A deer that changes the colour of its coat in autumn is more likely to",
            "choices": ["be seen", "stay hidden", "sleep less", "swim far"],
            "answer": 1,
        },
        {
            "question": "Wearing a dark coat on a sunny winter day makes a person",
            "choices": ["warmer", "colder", "taller", "lighter"],
            "answer": 0,
        },
        {
            "question": "A lamp works only when the path of the current is",
            "choices": ["long", "open", "wet", "closed"],
            "answer": 3,
        },
        {
            "question": "Stones in a quick river become round because they",
            "choices": ["melt", "grow", "rub against each other", "are young"],
            "answer": 2,
        },
    ],
}
"""A few questions in the schema of each set."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What the four commands say of one file."""

    halves: tuple[str, str]
    """The two files that split writes."""
    histogram: str
    counts: tuple[int, ...]
    examples: str
    """Hashes of the examples that were counted."""
    contaminated: tuple[bool, ...]
    overlap: tuple[float, ...]
    log_probs: tuple[tuple[float, ...], ...]
    answers: tuple[int, ...]
    set_fingerprint: str


def in_every_layout(folder: Path, name: str, rows: Sequence[Row]) -> list[str]:
    """Write a set in its five layouts; a subject goes along in each."""
    files = []
    for number, layout in enumerate(LAYOUTS[name]):
        topic = [{"subject": row["subject"]} if "subject" in row else {} for row in rows]
        records = [{**layout(row), **more} for row, more in zip(rows, topic, strict=True)]
        files.append(write_lines(folder / f"{name}{number}{layout.__name__}.jsonl", records))
    return files


def numbers_of(files: Sequence[str], root: str, model: str, folder: Path) -> list[Numbers]:
    """Run `split`, `histogram`, `contamination` and `eval` on each file."""
    judged, out = folder / "judged", []
    run("eval", model, "--mcq", *files, "--out", str(judged))
    for file in files:
        stem = Path(file).stem
        prefix, counted, found = (str(folder / f"{stem}{end}") for end in ("", ".histogram.parquet", ".found.parquet"))
        run("split", file, "--out", prefix)
        run("histogram", file, "--questions", "all", "--data", root, "--out", counted, "--processes", "1")
        run("contamination", root, file, "--out", found, "--ngram", "6", "--processes", "1")
        [judgement] = judged.glob(f"*.{stem}.results.parquet")
        out.append(_collected(prefix, Histogram.load(counted), Contamination.load(found), load_results(judgement)))
    return out


def run(*arguments: str) -> None:
    """Run a command, which must end well."""
    assert main([*arguments]) == 0, arguments


def _collected(prefix: str, histogram: Histogram, contamination: Contamination, results: Any) -> Numbers:
    assert isinstance(results, QuestionResults)
    assert histogram.counts is not None
    return Numbers(
        halves=(Path(f"{prefix}.specialist.jsonl").read_text(), Path(f"{prefix}.test.jsonl").read_text()),
        histogram=histogram.fingerprint,
        counts=tuple(histogram.counts.tolist()),
        examples=json.dumps(histogram.provenance[PROVENANCE_KEY], sort_keys=True),
        contaminated=tuple(np.asarray(contamination.contaminated).tolist()),
        overlap=tuple(np.asarray(contamination.shares).tolist()),
        log_probs=tuple(tuple(row) for row in results.log_probs),
        answers=tuple(results.answers.tolist()),
        set_fingerprint=results.fingerprint,
    )
