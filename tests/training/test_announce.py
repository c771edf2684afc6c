"""What a run says before its first batch, and how long it expects to take after the first few."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crisp_stream.forecast.forecast import forecast
from crisp_stream.models.gpt import build_gpt
from crisp_stream.order.order import SampleOrder
from crisp_stream.training import announce as announcing
from crisp_stream.training.announce import announce
from crisp_stream.training.callbacks.progress import Progress
from crisp_stream.training.prepare import PreparedRun, prepare
from crisp_stream.training.start import StartingPoint
from crisp_stream.training.train import train
from tests.support.small_runs import SmallRun, small_run

NOTHING_SAVED = StartingPoint(url=None, path=None, resumes=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def prepared(done: SmallRun, *overrides: str, start: StartingPoint = NOTHING_SAVED) -> PreparedRun:
    return prepare(done.recipe(*overrides), start)


def test_a_run_says_which_model_the_datasets_vocabulary_makes(
    done: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared(done)
    announce(run)
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().err.splitlines()[:5])
    num_parameters = sum(parameter.numel() for parameter in build_gpt(run.config, seed=0).parameters())
    assert said["parameters"] == (
        f"{num_parameters:,}: 2 blocks of width 32, a vocabulary of {run.dataset.manifest.tokenizer.vocab_size:,}"
    )
    assert said["windows"] == "32 tokens, 8 of them in a batch"
    assert said["batches"] == "12, 3,072 tokens"
    assert said["memory"].startswith("about ")
    assert said["memory"].endswith("B at 4 windows per forward pass, computed, per process")


def test_a_resumed_run_says_what_is_left(done: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = done.checkpoint(8)
    announce(prepared(done, start=StartingPoint(url=str(checkpoint), path=checkpoint, resumes=True)))
    assert "12, 3,072 tokens; goes on after batch 8, 4 batches and 1,024 tokens are left" in capsys.readouterr().err


def test_the_warnings_are_those_of_a_forecast_and_no_sample_is_looked_at(
    done: SmallRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(done, "max_duration=400ba")
    expected = forecast(run.dataset, run.mixture, samples=3200, seed=run.recipe.seed).warnings
    monkeypatch.setattr(SampleOrder, "draws", lambda *_: pytest.fail("the order was walked"))
    announce(run)
    said = capsys.readouterr().err
    assert said.count("warning: ") == len(expected) > 0
    assert all(f"warning: {advice.finding}\n  {advice.remedy}\n" in said for advice in expected)
    assert "windows that are served more than 4 times" in said


def test_many_multinomial_draws_are_not_made_before_the_run(
    done: SmallRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(done, "max_duration=400ba", "mixture.draw=multinomial")
    announce(run)
    assert "windows that are served more than 4 times" in capsys.readouterr().err
    monkeypatch.setattr(announcing, "MOST_DRAWS", 3199)
    announce(run)
    said = capsys.readouterr().err
    assert "3,200 multinomial draws are too many to be counted first" in said
    assert "warning: " not in said


def test_training_says_it_before_the_first_batch(
    done: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(done.recipe(f"save_folder={tmp_path}/run", "log_interval=1"))
    said = capsys.readouterr().err
    assert 0 <= said.index("parameters ") < said.index("batch 1/12") < said.index("estimated time: 0:00:")


def test_the_time_of_a_run_is_estimated_once_without_its_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), 0.0
    progress, no_logger = Progress(num_batches=36_000, log_interval=10**9, stream=stream), cast(Any, None)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress.fit_start(cast(Any, SimpleNamespace(timestamp=SimpleNamespace(batch=0, token=0))), no_logger)
    for batch in range(1, 20):
        now += 60.0 if batch <= 3 else 0.5
        progress.batch_end(cast(Any, SimpleNamespace(timestamp=SimpleNamespace(batch=batch, token=batch))), no_logger)
    assert stream.getvalue() == (
        "estimated time: 5:00:00 for 36,000 batches of 0.5 s, saving and measuring not counted\n"
    )
