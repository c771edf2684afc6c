"""Figures over a training, from checkpoints of its runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.results.curves import TRAINING_LOSS, curves, curves_table, plot_curves
from tests.support.made_results import answered, text_results


def checkpoint(run: str, batch: int, **more: Any) -> dict[str, Any]:
    """The record of a checkpoint, whose training loss is the run's length over its batch."""
    training = {"loss": {"final": 10 / batch}, "seed": more.pop("seed", 1)}
    return {"run_name": run, "batch": batch, "tokens": 100 * batch, "training": training, **more}


def judged(run: str, batch: int, losses: list[float], **more: Any) -> Any:
    return text_results(f"{run}-ba{batch}", losses, **checkpoint(run, batch), mixture_fingerprint=run, **more)


def test_points_stand_by_batch_whatever_the_order_of_the_files() -> None:
    found = curves([judged("a", 10, [1.0]), judged("a", 9, [2.0]), judged("b", 100, [0.0])])
    assert {key: [(point.batch, point.estimate.value) for point in line] for key, line in found.lines().items()} == {
        ("a", TRAINING_LOSS): [(9, math.exp(10 / 9)), (10, math.e)],
        ("b", TRAINING_LOSS): [(100, math.exp(0.1))],
        ("a", "news"): [(9, pytest.approx(math.e**2)), (10, pytest.approx(math.e))],
        ("b", "news"): [(100, 1.0)],
    }


def test_each_set_has_its_own_line_and_questions_their_accuracy() -> None:
    quiz = [
        answered(f"a-ba{batch}", batch, 10, set_name="quiz", **checkpoint("a", batch), mixture_fingerprint="a")
        for batch in (4, 8)
    ]
    found = curves([judged("a", 4, [1.0]), judged("a", 8, [1.0], set_name="law", ids=[5]), *quiz])
    lines = found.lines()
    assert [point.estimate.value for point in lines["a", "quiz"]] == [0.4, 0.8]
    assert lines["a", "quiz"][0].measure == "acc"
    assert [point.batch for point in lines["a", TRAINING_LOSS]] == [4, 8]  # once per checkpoint, not per set
    assert set(lines) == {("a", name) for name in ("news", "law", "quiz", TRAINING_LOSS)}


def test_runs_of_one_name_are_told_apart_by_what_they_differ_in() -> None:
    small = text_results("small", [1.0], **checkpoint("a", 4), mixture_fingerprint="m")
    large = text_results("large", [1.0], **checkpoint("a", 4, num_parameters=2000), mixture_fingerprint="m")
    again = text_results("again", [1.0], **checkpoint("a", 4, seed=2), mixture_fingerprint="m")
    assert {point.run for point in curves([small, large]).points} == {"a (10 parameters)", "a (2,000 parameters)"}
    assert {point.run for point in curves([small, again]).points} == {"a (seed 1)", "a (seed 2)"}


def test_one_batch_of_a_run_twice_is_refused() -> None:
    twice = text_results("other-name", [2.0], **checkpoint("a", 4), mixture_fingerprint="a")
    with pytest.raises(InputError, match="a-ba4 and other-name are both of batch 4 of run a"):
        curves([judged("a", 4, [1.0]), twice])


def test_models_of_no_run_are_left_out_and_named() -> None:
    folder = text_results("folder", [1.0], run_name=None, batch=None)
    assert "left out, of no known run: folder" in curves_table(curves([folder, judged("a", 4, [1.0])])).text()
    with pytest.raises(InputError, match="folder: a curve needs results of checkpoints of a run"):
        curves([folder])


def test_a_set_judged_by_models_of_other_tokenizers_is_in_bits_per_byte() -> None:
    other = judged("b", 4, [math.log(2)], num_tokens=[8], num_bytes=[4], tokenizer_fingerprint="u" * 64)
    line = curves([judged("a", 4, [1.0]), other]).lines()["b", "news"]
    assert (line[0].measure, line[0].estimate.value) == ("bits_per_byte", 2.0)


def test_the_command_prints_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for batch in (4, 8):
        judged("a", batch, [1.0, 2.0]).save(tmp_path)
    csv, plot = tmp_path / "c.csv", tmp_path / "c.svg"
    assert main(["results", "curve", str(tmp_path), "--csv", str(csv), "--plot", str(plot), "--x", "tokens"]) == 0
    assert "training loss" in capsys.readouterr().out
    assert len(csv.read_text().splitlines()) == 1 + 4
    assert plot.read_bytes().endswith(b"</svg>\n")
    unknown = judged("a", 12, [1.0])
    unknown.model["tokens"] = None
    with pytest.raises(InputError, match="--x tokens: some checkpoints do not say"):
        plot_curves(curves([unknown]), tmp_path / "d.svg", x="tokens")
