"""What is left of a run in its process."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from crisp_stream.models.composer_gpt import TrainedGPT
from crisp_stream.training.train import train
from tests.support.small_runs import SmallRun, small_run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def models_in_memory() -> int:
    gc.collect()
    return sum(type(each) is TrainedGPT for each in gc.get_objects())


def test_the_memory_of_a_model_is_free_after_its_run(done: SmallRun, tmp_path: Path) -> None:
    before = models_in_memory()
    train(done.recipe(f"save_folder={tmp_path}/run"))
    assert (tmp_path / "run" / "ep0-ba12-rank0.pt").exists()
    assert models_in_memory() == before
