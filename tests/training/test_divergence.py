"""A run whose loss or weights are not finite ends with an error, and its good checkpoints stay."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from crisp_stream.cli.main import main
from crisp_stream.errors import DivergedError
from crisp_stream.training import train as training
from crisp_stream.training.train import train
from tests.support.ranks import run_ranks
from tests.support.small_runs import SmallRun, small_run

WILD = ("save_interval=1ba", "save_num_checkpoints_to_keep=1", "optimizer.lr=1e20")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("ep*"))


def spoil_weights(monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Have the optimiser make a weight of a model NaN in its n-th step."""

    def spoiled(*arguments: Any, make: Any = training._optimizer) -> torch.optim.Optimizer:
        optimizer, steps = make(*arguments), iter(range(1, step + 1))

        def spoil(*_: Any) -> None:
            if next(steps, None) == step:
                optimizer.param_groups[0]["params"][0].detach()[0, 0] = torch.nan

        optimizer.register_step_post_hook(spoil)
        return optimizer

    monkeypatch.setattr(training, "_optimizer", spoiled)


def fails_in_order(command: list[str]) -> None:
    assert main(command) == 2


def test_a_loss_that_is_not_finite_ends_all_ranks_and_names_the_last_good_checkpoint(
    done: SmallRun, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ["train", str(done.recipe_file), f"save_folder={folder}", f"load_path={done.checkpoint(8)}", *WILD]
    run_ranks(2, functools.partial(fails_in_order, command), tmp_path)
    assert checkpoints(folder) == ["ep0-ba9-rank0.pt"]
    logs = [(tmp_path / f"rank-{rank}-of-2.log").read_text() for rank in range(2)]
    for log in logs:
        assert "error: the loss of batch 10 is " in log
        assert "at learning rate 4.1" in log
        assert f"Last good checkpoint: {folder}/ep0-ba9-rank0.pt. Start another run with load_path={folder}/ep0" in log
        assert "Traceback" not in log


def test_without_a_checkpoint_there_is_none_to_name(done: SmallRun) -> None:
    with pytest.raises(DivergedError, match=r"loss of batch 2 is nan, .*checkpoint: none\. Start again with a lower"):
        train(done.recipe("optimizer.lr=1e20", "scheduler.t_warmup=0ba", "save_folder=null", "log_windows=false"))


def test_weights_that_are_not_finite_are_not_saved(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_weights(monkeypatch, step=8)
    options = [f"save_folder={tmp_path}/run", "save_num_checkpoints_to_keep=1"]
    with pytest.raises(DivergedError, match=r"weights that are not finite after batch 8, at .*ep0-ba4-rank0.pt"):
        train(done.recipe(*options))
    assert checkpoints(tmp_path / "run") == ["ep0-ba4-rank0.pt"]


def test_a_checkpoint_whose_weights_are_not_finite_is_not_continued(done: SmallRun, tmp_path: Path) -> None:
    checkpoint = torch.load(done.checkpoint(8), weights_only=False)
    next(iter(checkpoint["state"]["model"].values()))[0, 0] = torch.inf
    torch.save(checkpoint, tmp_path / "ep0-ba8-rank0.pt")
    with pytest.raises(DivergedError, match=r"ep0-ba8-rank0.pt holds weights that are not finite"):
        train(done.recipe(f"save_folder={tmp_path}/run", f"load_path={tmp_path}/ep0-ba8-rank0.pt"))
