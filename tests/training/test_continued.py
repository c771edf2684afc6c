"""Runs that start from another run's checkpoint: what goes on, what starts afresh, and that it is exact."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from crisp_stream.errors import CrispError, RecipeError, ResumeError
from crisp_stream.models import gpt as model
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.training.train import train
from tests.support.small_runs import SmallRun, account_of, copy_until, losses_of, small_run, windows_of, write_dataset

FROM_CHECKPOINT = "mixture.phases=[{{histogram: checkpoint}}, {{histogram: {task}}}]"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def generic(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the corpus alone, of the length of the run that switches, saved every 4 batches."""
    folder = tmp_path_factory.mktemp("generic") / "run"
    train(done.recipe(f"save_folder={folder}", "mixture.phases=[{histogram: base}]"))
    return folder


def rates_of(folder: Path) -> list[float]:
    with (folder / "losses.csv").open() as file:
        return [float(row["learning_rate"]) for row in csv.DictReader(file)]


def batches_of(folder: Path) -> list[int]:
    with (folder / "losses.csv").open() as file:
        return [int(row["batch"]) for row in csv.DictReader(file)]


def continued(done: SmallRun, generic: Path, folder: Path, *overrides: str, batch: int = 8) -> list[str]:
    """Overrides of a run that goes on from the generic one with the task."""
    return [
        f"save_folder={folder}",
        f"load_path={generic}/ep0-ba{batch}-rank0.pt",
        FROM_CHECKPOINT.format(task=done.histogram),
        *overrides,
    ]


def test_a_switch_within_one_run_and_a_run_from_a_generic_checkpoint_are_the_same(
    done: SmallRun, generic: Path, tmp_path: Path
) -> None:
    """The one run (`done`) switches after 8 of its 12 batches; the generic one never meant to."""
    report = train(done.recipe(*continued(done, generic, tmp_path / "run")))
    assert windows_of(generic)[:8] == windows_of(done.save_folder)[:8]
    assert windows_of(tmp_path / "run") == windows_of(done.save_folder)
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    assert rates_of(tmp_path / "run") == rates_of(done.save_folder)
    ours, theirs = read_checkpoint(tmp_path / "run" / "ep0-ba12-rank0.pt"), read_checkpoint(done.checkpoint(12))
    for name, weights in theirs["state"]["model"].items():
        assert torch.equal(ours["state"]["model"][name], weights)
    whole = account_of(done.save_folder)
    assert report.mixture_error == whole["mixture_error"]
    assert [phase["samples"] for phase in report.phases] == [64, 32]
    assert [phase["first_batch"] for phase in report.phases] == [1, 9]
    assert report.phases[0]["histogram"] == "checkpoint"


def test_the_recipe_of_the_one_run_also_goes_on_from_a_generic_checkpoint(
    done: SmallRun, generic: Path, tmp_path: Path
) -> None:
    train(done.recipe(f"save_folder={tmp_path}/run", f"load_path={generic}/ep0-ba4-rank0.pt"))
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    assert windows_of(tmp_path / "run") == windows_of(done.save_folder)


def test_a_schedule_that_restarts_keeps_the_optimiser_and_the_place_in_the_data(
    done: SmallRun, generic: Path, tmp_path: Path
) -> None:
    restart = ("load_restart=[schedule]", "max_duration=6ba", "save_interval=2ba", "scheduler.t_warmup=1ba")
    report = train(done.recipe(*continued(done, generic, tmp_path / "run", *restart, "optimizer.lr=0.004")))
    assert batches_of(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert windows_of(tmp_path / "run")[:4] == windows_of(done.save_folder)[8:]
    rates = rates_of(tmp_path / "run")
    assert max(rates) == pytest.approx(0.004)
    assert rates[0] == 0.0
    assert (report.samples, report.batches, report.resumed_at) == (48, 6, None)
    assert [phase["samples"] for phase in report.phases] == [0, 48]
    assert report.mixture_error < 0.1  # of its own phase alone
    before = read_checkpoint(generic / "ep0-ba8-rank0.pt")["state"]["optimizers"]["AdamW"]["state"]
    after = read_checkpoint(tmp_path / "run" / "ep0-ba2-rank0.pt")["state"]["optimizers"]["AdamW"]["state"]
    name = next(iter(before))
    assert int(before[name]["step"]) == 8
    assert int(after[name]["step"]) == 10
    restart_all = (*restart[1:], "load_restart=[schedule, optimizer]")
    train(done.recipe(*continued(done, generic, tmp_path / "fresh", *restart_all)))
    fresh = read_checkpoint(tmp_path / "fresh" / "ep0-ba2-rank0.pt")["state"]["optimizers"]["AdamW"]["state"]
    assert int(fresh[name]["step"]) == 2
    assert windows_of(tmp_path / "fresh") == windows_of(tmp_path / "run")


@pytest.mark.parametrize(
    "overrides",
    [
        ["load_restart=[schedule]", "max_duration=6ba", "save_interval=2ba"],
        ["load_restart=[]", "max_duration=14ba", "save_interval=2ba"],
        ["load_restart=[data]", "mixture.phases=[{histogram: base}]", "data.remote={other}", "save_interval=2ba"],
        [
            "load_restart=[data, schedule]",
            "mixture.phases=[{histogram: base}]",
            "data.remote={other}",
            "save_interval=2ba",
        ],
    ],
)
def test_a_run_from_a_checkpoint_is_itself_resumed_bit_for_bit(
    done: SmallRun, generic: Path, tmp_path: Path, overrides: list[str]
) -> None:
    other = write_dataset(tmp_path / "other", seed=9).root
    filled = [override.replace("{other}", other) for override in overrides]
    train(done.recipe(*continued(done, generic, tmp_path / "whole", *filled)))
    saved = sorted(int(path.name.split("-")[1][2:]) for path in (tmp_path / "whole").glob("ep0-ba*"))
    copy_until(tmp_path / "whole", saved[-2], tmp_path / "run", first=saved[0], every=saved[1] - saved[0])
    report = train(done.recipe(*continued(done, generic, tmp_path / "run", *filled, "autoresume=true")))
    assert report.resumed_at == saved[-2]
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert windows_of(tmp_path / "run") == windows_of(tmp_path / "whole")
    assert rates_of(tmp_path / "run") == rates_of(tmp_path / "whole")
    assert batches_of(tmp_path / "run") == batches_of(tmp_path / "whole")
    assert account_of(tmp_path / "run")["mixture_error"] == account_of(tmp_path / "whole")["mixture_error"]


def test_fine_tuning_ends_the_schedule_of_the_run_on_another_dataset(
    done: SmallRun, generic: Path, tmp_path: Path
) -> None:
    specialist = write_dataset(tmp_path / "specialist", seed=9)
    overrides = [
        f"save_folder={tmp_path}/run",
        f"load_path={generic}/ep0-ba8-rank0.pt",
        "load_restart=[data]",
        f"data.remote={specialist.root}",
        "mixture.phases=[{histogram: base}]",
    ]
    report = train(done.recipe(*overrides))
    assert batches_of(tmp_path / "run") == [9, 10, 11, 12]
    assert rates_of(tmp_path / "run") == rates_of(generic)[8:]
    assert (report.batches, report.samples) == (4, 32)
    assert report.dataset_fingerprint == specialist.manifest.fingerprint
    whole = train(done.recipe(*overrides[3:], f"save_folder={tmp_path}/alone"))
    assert windows_of(tmp_path / "run") == windows_of(tmp_path / "alone")[:4]
    assert report.losses != whole.losses[:4]


def test_the_learning_rate_of_the_recipe_holds_after_a_checkpoint_with_another(
    done: SmallRun, generic: Path, tmp_path: Path
) -> None:
    train(done.recipe(*continued(done, generic, tmp_path / "run", "optimizer.lr=0.001", "optimizer.weight_decay=0.3")))
    np.testing.assert_allclose(np.array(rates_of(tmp_path / "run"))[8:] * 10, rates_of(generic)[8:])
    saved = read_checkpoint(tmp_path / "run" / "ep0-ba12-rank0.pt")["state"]["optimizers"]["AdamW"]["param_groups"]
    assert [group["weight_decay"] for group in saved] == [0.3, 0.0]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["max_duration=8ba"], RecipeError, r"stands at batch 8 and the run ends at 8, so nothing is left to train"),
        (["seed=6"], ResumeError, "seed was 5, is 6"),
        (["data.remote={other}"], ResumeError, "cannot continue: dataset was"),
        (["mixture.draw=multinomial"], ResumeError, "phase 1 had systematic draws, now multinomial"),
        (["load_restart=[data]"], RecipeError, "but the order of samples is to start afresh"),
        (["load_weights_only=true"], RecipeError, "but the order of samples is to start afresh"),
        (
            ["load_weights_only=true", "load_restart=[data]", "mixture.phases=[{{histogram: base}}]"],
            RecipeError,
            "`load_weights_only` restarts all of `load_restart`",
        ),
        (
            ["load_restart=[schedule]", "mixture.phases=[{{histogram: base}}]"],
            RecipeError,
            "the first of `mixture.phases` must be `histogram: checkpoint`",
        ),
        (
            ["mixture.phases=[{{histogram: checkpoint}}, {{histogram: base, until: 7ba}}, {{histogram: base}}]"],
            RecipeError,
            "it must lie after batch 8, where the phase starts",
        ),
        (
            ["load_restart=[data]", "mixture.phases=[{{histogram: base, until: 7ba}}, {{histogram: base}}]"],
            RecipeError,
            "it must lie after batch 8, where the phase starts",
        ),
    ],
)
def test_what_cannot_be_continued_fails_before_a_model_is_built(
    done: SmallRun,
    generic: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    error: type[CrispError],
    message: str,
) -> None:
    other = write_dataset(tmp_path / "other", seed=9).root
    monkeypatch.setattr(model, "build_gpt", None)
    filled = [override.format(other=other) for override in overrides]
    with pytest.raises(error, match=message):
        train(done.recipe(*continued(done, generic, tmp_path / "run", *filled)))
