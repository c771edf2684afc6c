"""Splitting a question set: halves of equal size, alike questions together, whole files or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.cli.main import main
from crisp_stream.counting.embedded_examples import ExampleSources
from crisp_stream.errors import InputError, StorageError
from crisp_stream.evaluation.halves import _draw, cut_in_halves, draw_part, like_groups
from crisp_stream.evaluation.question_sets import open_question_set
from crisp_stream.examples.question_files import read_questions
from crisp_stream.examples.questions import Question
from crisp_stream.examples.sketch import SketchBuilder
from crisp_stream.storage.store import FolderStore
from crisp_stream.writers.documents.drops import DropCounts

VOCABULARY = [f"{first}{second}" for first in ("bar", "kel", "mun", "tor", "vix") for second in "aeiou"]


def made_questions(number: int, *, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)

    def words(count: int) -> str:
        return " ".join(rng.choice(VOCABULARY, count))

    return [
        Question(question=f"{words(9)} {index}?", choices=tuple(words(4) for _ in range(4)), answer=1)
        for index in range(number)
    ]


def write(path: Path, questions: list[Question]) -> str:
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in questions), encoding="utf-8")
    return str(path)


def test_halves_are_equal_random_and_in_the_order_of_the_set() -> None:
    questions = made_questions(101)
    halves = cut_in_halves(questions, seed=4)
    texts = {half: [row.question for row in getattr(halves, half)] for half in ("specialist", "test")}
    assert (len(texts["specialist"]), len(texts["test"])) == (50, 51)
    every = [row.question for row in questions]
    assert sorted(texts["specialist"] + texts["test"]) == sorted(every)
    assert all(half == [text for text in every if text in set(half)] for half in texts.values())
    assert {row.half for row in halves.test} == {"test"}
    assert halves == cut_in_halves(questions, seed=4)
    assert 10 < len(set(texts["test"]) & {row.question for row in cut_in_halves(questions, seed=5).test}) < 41


def test_alike_questions_fall_into_one_half() -> None:
    questions = made_questions(60)
    first, second, third = questions[0], questions[1], questions[2]
    shouted = Question(question=first.question.upper() + "!!", choices=first.choices[::-1], answer=0)
    nearly = Question(question=second.question.replace("?", " exactly?"), choices=second.choices, answer=1)
    same_text = Question(question=third.question, choices=made_questions(1, seed=9)[0].choices, answer=1)
    signs = [Question(question="∑?", choices=("+", "-"), answer=answer) for answer in (0, 0)]
    other_signs = Question(question="∏?", choices=("+", "-"), answer=0)
    mixed = [*questions, shouted, nearly, same_text, *signs, other_signs]
    groups = [group for group in like_groups(mixed) if len(group) > 1]
    assert groups == [[0, 60], [1, 61], [63, 64]]
    for seed in range(8):
        halves = cut_in_halves(mixed, seed=seed)
        in_test = {row.question for row in halves.test}
        assert (first.question in in_test) == (shouted.question in in_test)
        assert (second.question in in_test) == (nearly.question in in_test)
        assert len(halves.specialist) == len(halves.test) == 33
    assert cut_in_halves(mixed).group_sizes == [2, 2, 2]


def test_a_part_is_drawn_with_all_that_is_like_it() -> None:
    questions = made_questions(40)
    twins = [Question(question=row.question.upper(), choices=row.choices[::-1], answer=0) for row in questions[:20]]
    for seed in range(5):
        part, others = draw_part([*questions, *twins], 0.2, seed=seed)
        assert len(part) + len(others) == 60
        assert 11 <= len(part) <= 12
        assert not {row.question.lower() for row in part} & {row.question.lower() for row in others}
    with pytest.raises(InputError, match="at least two questions must not be alike, got 1 of 2"):
        draw_part([questions[0], twins[0]], 0.2)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=14), st.integers(0, 9))
def test_the_halves_are_as_equal_as_the_groups_allow(sizes: list[int], seed: int) -> None:
    drawn = _draw(sizes, np.random.default_rng(seed))
    sums = {0}
    for size in sizes:
        sums |= {size + other for other in sums}
    best = max(value for value in sums if value <= sum(sizes) // 2)
    assert sum(size for size, is_drawn in zip(sizes, drawn, strict=True) if is_drawn) == best > 0


def test_split_writes_both_halves_and_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "set.jsonl", made_questions(20))
    assert main(["split", source, "--out", str(tmp_path / "halves" / "set"), "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "specialist        10" in printed
    record = json.loads((tmp_path / "halves/set.split.json").read_text())
    assert (record["seed"], record["source"], record["questions"]) == (7, "set.jsonl", 20)
    for half in ("specialist", "test"):
        path = tmp_path / "halves" / f"set.{half}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert {line["half"] for line in lines} == {half}
        about = record["halves"][half]
        assert (about["file"], about["questions"]) == (path.name, len(lines))
        assert about["fingerprint"] == open_question_set(str(path)).fingerprint
    whole = read_questions(tmp_path / "halves/set.specialist.jsonl") + read_questions(
        tmp_path / "halves/set.test.jsonl"
    )
    assert sorted(row.question for row in whole) == sorted(row.question for row in read_questions(source))


def test_the_same_split_twice_is_the_same_and_another_one_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", made_questions(20))
    command = ["split", source, "--out", str(tmp_path / "set.cut")]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_split_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = FolderStore.put

    def full(store: FolderStore, path: str, content: bytes, **rest: Any) -> None:
        if path.endswith("split.json"):
            raise StorageError("no space left")
        put(store, path, content, **rest)

    monkeypatch.setattr(FolderStore, "put", full)
    source = write(tmp_path / "set.jsonl", made_questions(20))
    assert main(["split", source, "--out", str(tmp_path / "out/set")]) == 2
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "folder/"], "--out: must be the beginning of file names"),
        (["--out", "x", "--seed", "-1"], "--seed: must be 0 or more, got -1"),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    source = write(tmp_path / "set.jsonl", made_questions(4))
    assert main(["split", source, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_halves_and_single_groups_cannot_be_cut() -> None:
    questions = made_questions(6)
    with pytest.raises(InputError, match="the questions must be a whole set, got a half of one"):
        cut_in_halves(cut_in_halves(questions).test)
    with pytest.raises(InputError, match="at least two questions must not be alike, got 1 of 2"):
        cut_in_halves([questions[0]] * 2)


def test_a_histogram_is_counted_of_the_specialist_half_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", made_questions(20))
    assert main(["split", source, "--out", str(tmp_path / "set")]) == 0

    def texts(name: str) -> list[str]:
        sources = ExampleSources((str(tmp_path / name),), "text", None, "right", (), "files")
        return [text for _, text in sources.read(DropCounts(), SketchBuilder())]

    assert len(texts("set.specialist.jsonl")) == 10
    with pytest.raises(InputError, match=r"set\.test\.jsonl:1: the question is of a test half.*specialist half"):
        texts("set.test.jsonl")


def test_a_histogram_can_be_counted_of_the_hubs_files(tmp_path: Path) -> None:
    pair = {"prompt": "Add.", "chosen": "a + b", "rejected": "a - b", "subset": "hep-go"}
    (tmp_path / "rewards.jsonl").write_text(json.dumps(pair) + "\n")
    sources = ExampleSources((str(tmp_path / "rewards.jsonl"),), "text", None, "right", (), "files")
    assert list(sources.read(DropCounts(), SketchBuilder())) == [
        (0, "Follow the instructions below.\nInstructions: Add.\nAnswer: a + b")
    ]


def test_judging_a_specialist_half_is_warned_of(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", made_questions(8))
    assert main(["split", f"arc_easy={source}", "--out", str(tmp_path / "easy")]) == 0
    specialist = open_question_set(f"arc_easy={tmp_path}/easy.specialist.jsonl")
    assert specialist.warnings == ["arc_easy has questions of a specialist half, which models may have learnt from."]
    test = open_question_set(f"arc_easy={tmp_path}/easy.test.jsonl")
    assert (test.warnings, test.metric) == ([], "acc")
