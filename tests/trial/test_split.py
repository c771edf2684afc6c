"""Texts of a trial: chosen and held out by their hashes, in any order of documents and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.corpora.files import Corpora
from crisp_stream.errors import InputError
from crisp_stream.trial import split
from crisp_stream.trial.split import TrialInputs, split_texts

CORPUS = [f"document {number}: " + f"word{number} and so on " * 60 for number in range(400)]
TASK = [f"example {number} of the task" for number in range(60)]


def lines(path: Path, texts: Sequence[str], **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))
    return path


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def chosen(folder: Path, corpus: Path, task: Path, **changes: Any) -> tuple[Corpora, str]:
    said: list[str] = []
    asked: dict[str, Any] = {"characters": 300_000, "seconds": 100.0, **changes}
    found = split_texts(
        TrialInputs(corpus=str(corpus), task=str(task)),
        folder,
        log=said.append,
        **asked,
    )
    return found, "\n".join(said)


def test_no_text_stands_in_two_files_and_each_comes_from_its_source(tmp_path: Path) -> None:
    corpus = lines(tmp_path / "corpus.jsonl", [*CORPUS, *CORPUS[:50]])
    found, said = chosen(tmp_path / "out", corpus, lines(tmp_path / "task.jsonl", [*TASK, TASK[0]]))
    sample, held_out, learnt, tested = (texts_of(path) for path in found.paths)
    assert len({*sample, *held_out, *learnt, *tested}) == len(sample) + len(held_out) + len(learnt) + len(tested)
    assert {*sample, *held_out} <= {*CORPUS}
    assert {*learnt, *tested} == {*TASK}
    assert len(tested) == 20
    assert 10 <= len(held_out) <= 50
    assert 280_000 < sum(map(len, sample)) <= 300_000
    assert "a sample of 450 documents of all 1 files" in said


def test_the_order_of_documents_and_files_decides_nothing(tmp_path: Path) -> None:
    task = lines(tmp_path / "task.jsonl", TASK)
    one, _ = chosen(tmp_path / "one", lines(tmp_path / "a" / "corpus.jsonl", CORPUS), task)
    lines(tmp_path / "b" / "x.jsonl", CORPUS[200:][::-1])
    lines(tmp_path / "b" / "y.jsonl", CORPUS[:200])
    other, _ = chosen(tmp_path / "other", tmp_path / "b", lines(tmp_path / "turned.jsonl", TASK[::-1]))
    assert [path.name for path in one.paths[:2]] == [path.name for path in other.paths[:2]]
    for first, second in zip(one.paths, other.paths, strict=True):
        assert sorted(texts_of(first)) == sorted(texts_of(second))


def test_reading_ends_in_time_and_says_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100_000))
    monkeypatch.setattr(split.time, "monotonic", lambda: float(next(clock)))
    for number in range(4):
        lines(tmp_path / "in" / f"{number}.jsonl", CORPUS[number::4])
    _, said = chosen(tmp_path / "out", tmp_path / "in", lines(tmp_path / "task.jsonl", TASK), seconds=250.0)
    assert "a sample of 250 documents of the first 3 of 4 files" in said


def test_bad_records_of_the_corpus_are_left_out_and_said(tmp_path: Path) -> None:
    corpus = lines(tmp_path / "corpus.jsonl", CORPUS)
    corpus.write_text(corpus.read_text() + '{"no": "text"}\n{broken\n')
    _, said = chosen(tmp_path / "out", corpus, lines(tmp_path / "task.jsonl", TASK))
    assert "warning: 2 bad records were left out, such as" in said
    assert "corpus.jsonl:401" in said


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    corpus, task = lines(tmp_path / "corpus.jsonl", CORPUS), lines(tmp_path / "task.jsonl", TASK)
    with pytest.raises(InputError, match=r"must hold 24 different documents of the task at least, .* got 23"):
        chosen(tmp_path / "out", corpus, lines(tmp_path / "few.jsonl", [*TASK[:23], TASK[0]]))
    with pytest.raises(InputError, match="must hold 200,000 characters of text at least"):
        chosen(tmp_path / "out", lines(tmp_path / "small.jsonl", CORPUS[:20]), task)
    assert not (tmp_path / "out").exists()


def test_questions_keep_their_choices_and_are_held_out_by_their_text(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "choices": ["a", f"b{n}"], "answer": n % 2} for n in range(40)]
    task = tmp_path / "exam.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3]]))
    corpus = lines(tmp_path / "corpus.jsonl", CORPUS)
    inputs = TrialInputs(corpus=str(corpus), task=str(task), questions=True)
    found = split_texts(inputs, tmp_path / "out", characters=300_000, seconds=100, log=lambda line: None)
    learnt, tested = ([json.loads(line) for line in path.read_text().splitlines()] for path in found.paths[2:])
    assert len(tested) == 13
    assert sorted([*learnt, *tested], key=lambda row: row["question"]) == sorted(rows, key=lambda row: row["question"])
