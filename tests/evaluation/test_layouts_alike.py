"""A set in every layout gives the same halves, the same histogram, the same contamination and the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.counting.embedded_examples import ExampleSources
from crisp_stream.evaluation.contamination import check_contamination
from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.examples.sketch import SketchBuilder
from crisp_stream.results.results import QuestionResults, load_results
from crisp_stream.writers.cleaning.evaluation_texts import read_evaluation_texts
from crisp_stream.writers.documents.drops import DropCounts
from tests.evaluation.test_contamination import dataset_of
from tests.support.published_sets import LAYOUTS, SETS, in_every_layout, numbers_of
from tests.support.question_layouts import NAMED_KEYS, QUESTIONS, UNORDERED, write_every_layout, write_lines
from tests.support.small_runs import SmallRun, small_run
from tests.support.written_dataset import TOPICS


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The questions in every layout: files by layout, the first in ours."""
    return write_every_layout(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def keys_of(layout: str) -> QuestionKeys | None:
    return QuestionKeys.parse(NAMED_KEYS) if layout == "named" else None


def named(layout: str) -> list[str]:
    return ["--question-keys", NAMED_KEYS] if layout == "named" else []


def test_split_cuts_the_same_halves_of_every_layout(layouts: dict[str, str], tmp_path: Path) -> None:
    for layout, file in layouts.items():
        assert main(["split", file, "--out", str(tmp_path / layout), *named(layout)]) == 0
    for half in ("specialist", "test"):
        written = {(tmp_path / f"{layout}.{half}.jsonl").read_text() for layout in layouts}
        assert len(written) == 1
        assert written.pop().count("\n") == len(QUESTIONS) // 2


@pytest.mark.parametrize("answers", ["right", "all"])
def test_histograms_count_the_same_texts_of_every_layout(layouts: dict[str, str], answers: str) -> None:
    read = {}
    for layout, file in layouts.items():
        sources = ExampleSources((file,), "text", None, answers, (), "files", question_keys=keys_of(layout))  # pyright: ignore[reportArgumentType]
        sketch = SketchBuilder()
        texts = tuple(sources.read(DropCounts(), sketch))
        read[layout] = texts, tuple(sketch.finish().hashes.tolist())
    assert len({*read.values()}) == 1
    assert len(read["own"][0]) == len(QUESTIONS) * (4 if answers == "all" else 1)
    assert (
        "counts choices from 1: told by 4"
        in ExampleSources((layouts["cop_from_1"],), "text", None, "right", (), "files").read_as()[0]
    )


def test_contamination_finds_the_same_examples_in_every_layout(layouts: dict[str, str], tmp_path: Path) -> None:
    row = QUESTIONS[1]
    root = dataset_of(
        tmp_path / "data", {7: f"{row['question']} {row['choices'][1]}", 30: QUESTIONS[4]["question"].upper()}
    ).root
    layouts = {**layouts, "distractors": str(tmp_path / "distractors.jsonl")}
    write_lines(tmp_path / "distractors.jsonl", [UNORDERED["distractors"](row) for row in QUESTIONS])
    found = {
        layout: check_contamination(root, [file], keys=keys_of(layout), processes=1, log=lambda line: None)
        for layout, file in layouts.items()
    }
    assert found["own"].contaminated.tolist() == [False, True, False, False, True, False]
    for layout, contamination in found.items():
        for name in ("example_ids", "checked", "contaminated", "shares", "windows"):
            np.testing.assert_array_equal(getattr(contamination, name), getattr(found["own"], name), layout)
        assert contamination.words == found["own"].words, layout


def test_decontamination_looks_for_the_same_texts_of_every_layout(layouts: dict[str, str]) -> None:
    texts = {
        tuple(found.text for found in read_evaluation_texts(file, keys=keys_of(layout)))
        for layout, file in layouts.items()
    }
    assert len(texts) == 1
    assert len(texts.pop()) == 5 * len(QUESTIONS)


def test_eval_gives_the_same_results_of_every_layout(
    layouts: dict[str, str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: SmallRun = small_run(tmp_path_factory)
    model, out = str(done.checkpoint(12)), str(tmp_path)
    known = [file for layout, file in layouts.items() if layout != "named"]
    assert main(["eval", model, "--mcq", *known, "--out", out]) == 0
    assert (
        "question, opa …, cop: cop counts choices from 1: told by 4 of 4 choices in row 4." in capsys.readouterr().out
    )
    assert main(["eval", model, "--mcq", layouts["named"], "--question-keys", NAMED_KEYS, "--out", out]) == 0
    first = load_results(tmp_path / "small-ba12.own.results.parquet")
    assert isinstance(first, QuestionResults)
    for layout in layouts:
        results = load_results(tmp_path / f"small-ba12.{layout}.results.parquet")
        assert isinstance(results, QuestionResults)
        assert results.fingerprint == first.fingerprint
        assert results.log_probs == first.log_probs
        assert results.answers.tolist() == first.answers.tolist()
        assert results.num_long == first.num_long == len(QUESTIONS)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of documentation, with one question of each set in it."""
    folder = tmp_path_factory.mktemp("searched")
    quoted = [f"{rows[1]['question']} {rows[1]['choices'][rows[1]['answer']]}" for rows in SETS.values()]
    write_lines(folder / "text.jsonl", [{"text": text} for text in [*quoted, *(text[:900] for text in TOPICS)]])
    options = ["--window-tokens", "64", "--vocab-size", "600", "--arity", "4", "--depth", "2", "--encoder", "lsi"]
    out = ["--out", str(folder / "data"), "--packing", "document", "--processes", "1"]
    assert main(["write", str(folder / "text.jsonl"), *options, *out]) == 0
    return str(folder / "data")


@pytest.mark.parametrize("name", SETS)
def test_the_commands_give_the_same_numbers_of_a_published_set_in_five_layouts(
    name: str, searched: str, done: SmallRun, tmp_path: Path
) -> None:
    rows = SETS[name]
    files = in_every_layout(tmp_path, name, rows)
    found = numbers_of(files, searched, str(done.checkpoint(12)), tmp_path)
    assert len(found) == len(LAYOUTS[name]) == 5
    assert all(other == found[0] for other in found[1:])
    first = found[0]
    assert sum(half.count("\n") for half in first.halves) == len(rows)
    assert sum(first.counts) >= sum(len(row["choices"]) for row in rows)
    assert [at for at, one in enumerate(first.contaminated) if one] == [1]
    assert list(first.answers) == [row["answer"] for row in rows]
    assert [len(row) for row in first.log_probs] == [len(row["choices"]) for row in rows]
