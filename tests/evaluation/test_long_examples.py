"""Examples longer than the model's context: counted, and cut, dropped or refused, as an independent script has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.evaluation.harness import HarnessLM
from crisp_stream.evaluation.models import open_model
from crisp_stream.evaluation.packed_rows import pack_rows
from crisp_stream.models.export import export
from crisp_stream.results.results import QuestionResults, TextResults, load_all
from crisp_stream.results.tables import result_rows, result_tables
from tests.evaluation.test_harness import requests_of
from tests.support.independent import Independent, kept, perplexities
from tests.support.small_runs import SmallRun, small_run

CONTEXT = 32

SETS: dict[str, list[dict[str, Any]]] = {
    "short": [{"question": f"is {n} odd", "choices": ["no", "yes"], "answer": n % 2} for n in range(6)],
    "mixed": [
        {"question": "b is", "choices": ["a", "no", "none"], "answer": 0},
        {"question": "which of all these words is the longest one here", "choices": ["word", "longest"], "answer": 1},
        {"question": "is it", "choices": ["so", "an answer that is longer than the context of the model"], "answer": 0},
        {"question": "what is 7", "choices": ["odd", "even"], "answer": 1, "topic": "numbers and what they are"},
        {"question": "how", "choices": ["so", "not so"], "answer": 1},
    ],
    "edge": [
        # "Question: " and "\nAnswer:" are 18 letters; with 12 of the question and 3 of " ab" the tokens are 33.
        {"question": "q" * 12, "choices": ["ab", "cd"], "answer": 0},
        {"question": "q" * 13, "choices": ["ab", "cd"], "answer": 1},
        {"question": "q" * 12, "choices": ["ab", "cde"], "answer": 1},
        {"question": "r", "choices": ["ab", "cde"], "answer": 0},
    ],
}
LONG = {"short": [False] * 6, "mixed": [False, True, True, True, False], "edge": [False, True, True, False]}
TEXTS = ["a short one", "longer than the context of thirty-two tokens, and then some", "q" * 32, "q" * 33]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each set, and held.jsonl."""
    path = tmp_path_factory.mktemp("sets")
    for name, rows in {**SETS, "held": [{"text": text} for text in TEXTS]}.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: str | Path) -> int:
    return main(["eval", *map(str, arguments)])


@pytest.mark.parametrize("long", ["cut", "drop"])
def test_two_models_on_three_sets_equal_an_independent_script(
    done: SmallRun, folder: Path, tmp_path: Path, long: str
) -> None:
    files = [folder / f"{name}.jsonl" for name in SETS]
    models = [done.checkpoint(4), done.checkpoint(12)]
    assert run(*models, "--text", folder / "held.jsonl", "--mcq", *files, "--long", long, "--out", tmp_path / "o") == 0
    others = {batch: Independent(export(str(done.checkpoint(batch)), tmp_path / str(batch))) for batch in (4, 12)}
    judged = load_all([tmp_path / "o"])
    assert len(judged) == 8
    for results in judged:
        other = others[results.model["batch"]]
        if isinstance(results, TextResults):
            texts = kept([other.text(text) for text in TEXTS], long)
            np.testing.assert_allclose(results.loss_sums, [text["loss"] for text in texts], rtol=1e-6)
            assert results.perplexity == pytest.approx(perplexities(texts)["perplexity"], rel=1e-6)
            assert (results.num_long, results.num_long_dropped) == ((2, 0) if long == "cut" else (0, 2))
            continue
        answers = kept([other.question(row) for row in SETS[results.set_name]], long)
        expected = LONG[results.set_name]
        assert isinstance(results, QuestionResults)
        assert len(results.log_probs) == len(answers) == (len(expected) if long == "cut" else expected.count(False))
        for found, answer in zip(results.log_probs, answers, strict=True):
            np.testing.assert_allclose(found, answer["log_probs"], atol=1e-5)
        assert results.right.mean() == pytest.approx(np.mean([answer["right"] for answer in answers]), abs=1e-12)
        assert results.right_normalised.tolist() == [answer["right_normalised"] for answer in answers]
        assert results.long is not None
        assert results.long.tolist() == (expected if long == "cut" else [False] * len(answers))
        assert results.num_long_dropped == (0 if long == "cut" else expected.count(True))


def test_long_examples_are_counted_per_set_and_model_in_the_table(
    done: SmallRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--text", folder / "held.jsonl", "--mcq", folder / "mixed.jsonl", folder / "short.jsonl"]
    assert run(done.checkpoint(12), *sets, "--out", tmp_path / "cut") == 0
    printed = capsys.readouterr().out
    assert "too long" in printed
    assert "WARNING: mixed, small-ba12: 3 of 5 questions are longer than its context of 32 tokens" in printed
    assert "held, small-ba12: 2 texts longer than its context of 32 tokens were read in windows" in printed
    assert "short, small-ba12:" not in printed
    assert run(done.checkpoint(12), *sets, "--long", "drop", "--out", tmp_path / "drop") == 0
    printed = capsys.readouterr().out
    assert "mixed, small-ba12: 3 examples longer than its context of 32 tokens were left out (--long drop)" in printed
    assert "3 dropped" in printed
    records = result_tables(result_rows(load_all([tmp_path / "drop"]))).records
    assert {(row["set"], row["long_dropped"]) for row in records} == {("held", 2), ("mixed", 3), ("short", 0)}


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--mcq", "mixed", "mixed: every question must fit into the model's context of 32 tokens, but 3 of 5 do not"),
        ("--text", "held", "every text must fit into the model's context of 32 tokens, but 2 of 4 do not"),
        ("--mcq-text", "mixed", "every text must fit into the model's context of 32 tokens"),
    ],
)
def test_long_examples_are_refused_where_that_is_wanted(
    done: SmallRun, folder: Path, option: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(done.checkpoint(12), option, folder / f"{name}.jsonl", "--long", "error") == 2
    assert message in capsys.readouterr().err


def test_sets_of_long_examples_alone_cannot_be_dropped(
    done: SmallRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps(SETS["mixed"][1]) + "\n")
    assert run(done.checkpoint(12), "--mcq", tmp_path / "long.jsonl", "--long", "drop") == 2
    assert "1 of 1 do not. Give --long cut" in capsys.readouterr().err
    assert run(done.checkpoint(12), "--mcq", folder / "short.jsonl", "--long", "error") == 0


def test_a_continuation_without_a_token_is_an_error(done: SmallRun) -> None:
    model = open_model(str(done.checkpoint(12)))
    with pytest.raises(InputError, match="must have a token of its own after the prompt, but '' has none after 'abc'"):
        HarnessLM(model.loaded).loglikelihood(requests_of([("abc", "d"), ("abc", "")]))
    with pytest.raises(InputError, match="continuation 1: must have at least one token to score, got none"):
        pack_rows([([1, 2], [3]), ([1, 2], [])], 4)
