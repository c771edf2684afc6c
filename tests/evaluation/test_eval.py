"""The command `eval`: what it prints and saves, against an independent computation; alone and in two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.question_files import read_questions
from crisp_stream.models.export import export
from crisp_stream.results.results import QuestionResults, TextResults, load_all
from tests.evaluation.test_contamination import files, planted
from tests.support.independent import Independent, perplexities
from tests.support.ranks import Command, start_ranks
from tests.support.small_runs import SmallRun, small_run

TEXTS = ["a short one", "b", "longer than the context of thirty-two tokens, and then some", "q" * 33]
QUESTIONS = [
    {"question": "what is b", "choices": ["a letter", "a number", "none of them"], "answer": 0},
    {"question": "what is 7", "choices": ["odd", "even"], "answer": 1, "topic": "numbers"},
    {"question": "and longer than the whole context of the model is", "choices": ["yes", "no"], "answer": 1},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """held.jsonl, other.jsonl and mine.jsonl."""
    path = tmp_path_factory.mktemp("sets")
    write_lines(path / "held.jsonl", [{"text": text} for text in (*TEXTS, "", None)])
    write_lines(path / "other.jsonl", [{"text": text[::-1]} for text in TEXTS])
    write_lines(path / "mine.jsonl", QUESTIONS)
    return path


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*arguments: str | Path) -> int:
    return main(["eval", *map(str, arguments)])


def test_two_models_on_three_sets_equal_an_independent_computation(
    done: SmallRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [done.checkpoint(4), done.checkpoint(12)]
    sets = ["--text", folder / "held.jsonl", "--text", folder / "other.jsonl", "--mcq", folder / "mine.jsonl"]
    assert run(*models, *sets, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "held: 2 documents were left out: empty text 1, null text 1." in printed
    assert len(list((tmp_path / "out").iterdir())) == 6
    for results in load_all([tmp_path / "out"]):
        batch = results.model["batch"]
        other = Independent(export(str(done.checkpoint(batch)), tmp_path / f"{batch}-{results.set_name}"))
        if isinstance(results, TextResults):
            texts = TEXTS if results.set_name == "held" else [text[::-1] for text in TEXTS]
            expected = [other.text(text) for text in texts]
            np.testing.assert_allclose(results.loss_sums, [text["loss"] for text in expected], rtol=1e-5)
            assert f"{perplexities(expected)['perplexity']:.2f} [" in printed
        else:
            answers = [other.question(row) for row in QUESTIONS]
            for found, answer in zip(results.log_probs, answers, strict=True):
                np.testing.assert_allclose(found, answer["log_probs"], atol=1e-4)
            assert results.right.tolist() == [answer["right"] for answer in answers]
            assert results.right_normalised.tolist() == [answer["right_normalised"] for answer in answers]
    assert "than small-ba4" in printed


def test_two_processes_save_what_one_saves(done: SmallRun, folder: Path, tmp_path: Path) -> None:
    asked = [done.checkpoint(12), "--text", folder / "held.jsonl", "--mcq", folder / "mine.jsonl", "--batch-size", "1"]
    assert run(*asked, "--out", tmp_path / "one") == 0
    first, second = start_ranks(2, Command("eval", *asked, "--out", tmp_path / "two"), tmp_path)
    assert (first.end(), second.end()) == (0, 0), first.text + second.text
    assert (first.text.count("small-ba12  "), second.text) == (2, "")
    for alone, other in zip(load_all([tmp_path / "one"]), load_all([tmp_path / "two"]), strict=True):
        assert alone.fingerprint == other.fingerprint
        if isinstance(alone, TextResults):
            assert isinstance(other, TextResults)
            np.testing.assert_allclose(alone.loss_sums, other.loss_sums, rtol=1e-6)
        else:
            assert isinstance(other, QuestionResults)
            for one, two in zip(alone.log_probs, other.log_probs, strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-6)


def test_every_checkpoint_of_a_run_is_judged(done: SmallRun, folder: Path, tmp_path: Path) -> None:
    assert run(done.save_folder, "--every", "--text", folder / "held.jsonl", "--out", tmp_path) == 0
    assert [results.model["batch"] for results in load_all([tmp_path])] == [12, 4, 8]


def test_contaminated_examples_are_flagged_and_warned_of(
    done: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = planted(tmp_path / "data").root
    texts, questions = files(tmp_path)
    asked = [done.checkpoint(12), "--text", texts, "--mcq", questions, "--mcq-text", questions]
    asked += ["--out", tmp_path / "out"]
    check = ["--contamination", tmp_path / "c.parquet"]
    assert main(["contamination", root, texts, questions, "--out", str(tmp_path / "c.parquet")]) == 0
    assert run(*asked, *check) == 0
    printed = capsys.readouterr().out
    assert "texts: 33.3% of the examples stand in the training data" in printed
    assert "small-ba12: warning: contamination was measured in data" in printed  # the model was trained on another
    flags = {results.set_name: results.contaminated for results in load_all([tmp_path / "out"])}
    assert {name: own.tolist() for name, own in flags.items() if own is not None} == {
        "texts": [True, False, False, True, False, False],
        "questions": [True, False],
        "questions.text": [True, False],
    }
    (as_texts,) = (results for results in load_all([tmp_path / "out"]) if results.set_name == "questions.text")
    assert as_texts.example_ids[1] == example_hash(read_questions(questions)[1].text(1))
    Path(texts).write_text('{"text": "another"}\n')
    assert run(*asked, *check) == 2
    assert "every judged example must have been searched for" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_a_model_is_judged(
    done: SmallRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = done.checkpoint(12)
    write_lines(tmp_path / "bad.jsonl", [QUESTIONS[0], {**QUESTIONS[0], "answer": 3}])
    for arguments, message in (
        ([model], "eval needs --text INPUT…, --mcq FILE… or --task TASK…"),
        ([model, "--text", folder / "absent.jsonl"], "absent.jsonl"),
        ([model, "--mcq", tmp_path / "bad.jsonl"], r"bad.jsonl:2: answer must be the index of a choice, 0 to 2; got 3"),
        ([model, model, "--text", folder / "held.jsonl"], "must be there once, got it twice"),
        ([model, "--text", folder / "held.jsonl", "--name", "a", "b"], "must be as many as checkpoints, 1, got 2"),
        ([folder, "--text", folder / "held.jsonl"], "is not an exported model"),
        ([folder, "--every", "--text", folder / "held.jsonl"], "must hold checkpoints (ep…-ba…-rank0.pt), got none"),
        ([model, "--text", folder / "held.jsonl", "--batch-size", "0"], "batch size: must be 1 or more"),
    ):
        assert run(*arguments, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
