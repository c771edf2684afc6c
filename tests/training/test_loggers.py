"""Loggers of a recipe: what they write is read back and holds the numbers of the run, in a folder and in S3."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

from crisp_stream.errors import MissingExtraError, RecipeError
from crisp_stream.models import gpt as model
from crisp_stream.training.train import train
from tests.support.seaweed import S3Server
from tests.support.small_runs import SmallRun, losses_of, small_run

ALL = ("loggers.file=true", "loggers.tensorboard=true", "loggers.wandb={mode: offline, tags: [toy]}", "log_interval=2")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def logged(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save folder of a run with all loggers."""
    folder = tmp_path_factory.mktemp("logged") / "run"
    train(done.recipe(*ALL, f"save_folder={folder}"))
    return folder


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """A series of TensorBoard: batch -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {event.step: event.value for event in read.Scalars(tag)}


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """What a run of Weights & Biases keeps offline."""
    import json

    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    messages: Any = wandb_internal_pb2
    store, rows = DataStore(), []
    store.open_for_scan(str(file))
    try:
        while (content := store.scan_data()) is not None:
            record = messages.Record()
            record.ParseFromString(content)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    finally:
        store.close()
    return rows


def test_tensorboard_holds_the_losses_and_the_mixture_of_the_run(logged: Path) -> None:
    folder = logged / "logs" / "tensorboard" / "small"
    losses = scalars(folder, "loss/train/total")
    assert list(losses) == list(range(12))  # Composer logs the loss before it counts the batch
    np.testing.assert_allclose(list(losses.values()), np.array(losses_of(logged), float), rtol=1e-6)
    assert list(scalars(folder, "mixture/error")) == [2, 4, 6, 8, 10, 12]
    assert len(list(folder.iterdir())) <= 2, "one file per part of a run, not one per flush"


def test_the_file_log_holds_the_losses_and_what_was_printed(logged: Path) -> None:
    (log,) = (logged / "logs").glob("*-rank0.txt")
    text = log.read_text()
    found = [float(value) for value in re.findall(r"loss/train/total: (\S+)", text)]
    np.testing.assert_allclose(found, np.array(losses_of(logged), float), atol=1e-4)
    assert "[stderr]: batch 12/12" in text


def test_weights_and_biases_offline_holds_the_losses(logged: Path) -> None:
    rows = wandb_history(logged / "logs")
    found = {row["_step"]: row["loss/train/total"] for row in rows if "loss/train/total" in row}
    np.testing.assert_allclose([found[batch] for batch in range(12)], np.array(losses_of(logged), float), rtol=1e-6)


def test_loggers_change_no_loss(done: SmallRun, logged: Path) -> None:
    assert losses_of(logged) == losses_of(done.save_folder)


def test_a_resumed_run_adds_to_the_logs_and_writes_over_none(done: SmallRun, logged: Path, tmp_path: Path) -> None:
    from tests.support.small_runs import copy_until

    copy_until(logged, 8, tmp_path / "run")
    old = tmp_path / "run" / "logs" / "20200101T000000Z-rank0.txt"
    old.parent.mkdir()
    old.write_text("before")
    train(done.recipe(*ALL[:2], f"save_folder={tmp_path}/run", "autoresume=true"))
    assert old.read_text() == "before"
    assert len(list(old.parent.glob("*-rank0.txt"))) == 2
    assert list(scalars(old.parent / "tensorboard" / "small", "loss/train/total")) == [8, 9, 10, 11]


def test_logs_go_to_object_storage_and_are_complete(done: SmallRun, s3: S3Server, tmp_path: Path) -> None:
    prefix = s3.fresh_prefix("logs")
    report = train(done.recipe(*ALL, f"save_folder={prefix}"))
    store = s3.store(prefix.removeprefix(f"s3://{s3.bucket}/"))
    names = [meta["path"] for batch in obstore.list(store) for meta in batch]
    assert {"run.json", "losses.csv", "cluster_losses.csv", "latest-rank0.pt.symlink"} <= set(names)
    for name in names:
        if name.startswith("logs/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(bytes(obstore.get(store, name).bytes()))
    found = scalars(tmp_path / "logs" / "tensorboard" / "small", "loss/train/total")
    np.testing.assert_allclose(list(found.values()), report.losses, rtol=1e-6)
    assert len(wandb_history(tmp_path / "logs")) >= 12
    (log,) = (tmp_path / "logs").glob("*-rank0.txt")
    assert log.read_text().count("loss/train/total") == 12


def test_what_was_logged_before_a_failure_is_in_object_storage(
    done: SmallRun, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crisp_stream.training.callbacks.progress import Progress

    def fail(self: Progress, state: Any, logger: Any) -> None:
        if int(state.timestamp.batch) == 6:
            raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(Progress, "batch_end", fail)
    prefix = s3.fresh_prefix("failed")
    with pytest.raises(RuntimeError, match="on fire"):
        train(done.recipe("loggers.file=true", f"save_folder={prefix}"))
    store = s3.store(prefix.removeprefix(f"s3://{s3.bucket}/"))
    names = [meta["path"] for batch in obstore.list(store, "logs") for meta in batch]
    assert len(names) == 1
    assert bytes(obstore.get(store, names[0]).bytes()).decode().count("loss/train/total") == 6


@pytest.mark.parametrize(
    ("override", "package"),
    [("loggers.tensorboard=true", "tensorboard"), ("loggers.wandb={}", "wandb")],
)
def test_a_missing_package_of_a_logger_fails_before_a_model_is_built(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(model, "build_gpt", None)
    with pytest.raises(MissingExtraError, match=rf"needs {package}.*pip install 'crisp-stream\[loggers\]'"):
        train(done.recipe(override, f"save_folder={tmp_path}/run"))


def test_loggers_need_a_folder_and_known_keys(done: SmallRun) -> None:
    with pytest.raises(RecipeError, match="`loggers` needs `save_folder`"):
        done.recipe("loggers.file=true", "save_folder=null", "log_windows=false")
    with pytest.raises(
        RecipeError, match=r"`loggers.tensorbord` is not a recipe key; did you mean `loggers.tensorboard`"
    ):
        done.recipe("loggers.tensorbord=true")
    with pytest.raises(RecipeError, match=r"`loggers.wandb.mode` must be one of online, offline"):
        done.recipe("loggers.wandb={mode: dryrun}")
    assert not done.recipe().loggers
