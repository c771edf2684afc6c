"""Tiny trainings that several test files look at: two blocks of width 32 on 32-token windows, seconds each."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from crisp_stream.cli.main import main
from crisp_stream.config.load import load_recipe
from crisp_stream.config.recipe import Recipe
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.training.train import train
from tests.support.ranks import run_ranks
from tests.support.synthetic import write_synthetic_dataset

BATCHES = 12
LEAVES = {leaf: 24 + leaf for leaf in range(16)}


@dataclass(frozen=True)
class SmallRun:
    """A finished run and what it was made of."""

    folder: Path
    dataset: Dataset
    histogram: Path
    recipe_file: Path

    @property
    def save_folder(self) -> Path:
        return self.folder / "run"

    def recipe(self, *overrides: str) -> Recipe:
        """Its recipe, changed."""
        return load_recipe(self.recipe_file, overrides)

    def checkpoint(self, batch: int) -> Path:
        """The checkpoint after a batch."""
        return self.save_folder / f"ep0-ba{batch}-rank0.pt"


def leaf_histogram(dataset: Dataset, leaves: list[int]) -> Histogram:
    """Equal mass on some leaves."""
    manifest = dataset.manifest
    return Histogram(
        level=manifest.depth,
        nodes=torch.tensor(leaves).numpy(),
        proportions=torch.full((len(leaves),), 1 / len(leaves), dtype=torch.float64).numpy(),
        arity=manifest.arity,
        depth=manifest.depth,
        tree_fingerprint=manifest.tree_fingerprint,
    )


def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The shared run of 12 batches, base then a histogram from batch 8, saved every 4; trained once per session."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.getbasetemp() / "small-run"
    run = SmallRun(
        folder=folder,
        dataset=open_dataset(folder / "dataset") if folder.exists() else write_dataset(folder / "dataset"),
        histogram=folder / "task.histogram",
        recipe_file=folder / "small.yaml",
    )
    if run.recipe_file.exists():
        return run
    leaf_histogram(run.dataset, [0, 1, 2]).save(run.histogram)
    recipe = {
        "run_name": "small",
        "seed": 5,
        "max_duration": f"{BATCHES}ba",
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 4,
        "data": {"remote": str(folder / "dataset")},
        "mixture": {"phases": [{"histogram": "base", "until": "8ba"}, {"histogram": str(run.histogram)}]},
        "model": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "optimizer": {"lr": 0.01},
        "scheduler": {"t_warmup": "2ba"},
        "save_folder": str(run.save_folder),
        "save_interval": "4ba",
        "log_windows": True,
    }
    run.recipe_file.write_text(yaml.safe_dump(recipe))
    train(run.recipe())
    return run


def launch(done: SmallRun, processes: int, runs: list[list[str]], folder: Path, *, before: str = "") -> None:
    """Train several variants of the recipe, one after the other, in `processes` ranks.

    Args:
        folder: gets what the ranks print.
        before: Python that each rank runs first.
    """
    commands = [["train", str(done.recipe_file), *run] for run in runs]
    run_ranks(processes, functools.partial(_run_commands, commands, before), folder)


def _run_commands(commands: list[list[str]], before: str) -> None:
    exec(before, {})
    for command in commands:
        if main(command):
            sys.exit(1)


def copy_until(run: Path, batch: int, folder: Path, *, first: int = 4, every: int = 4) -> None:
    """A save folder as an interruption right after `batch` leaves it: the run's checkpoints from `first` on."""
    folder.mkdir()
    for saved in range(first, batch + 1, every):
        shutil.copy(run / f"ep0-ba{saved}-rank0.pt", folder)
    (folder / "latest-rank0.pt").symlink_to(f"ep0-ba{batch}-rank0.pt")


def write_dataset(path: Path, **changes: object) -> Dataset:
    """16 leaves of 24 to 39 windows."""
    return write_synthetic_dataset(path, LEAVES, **changes)  # pyright: ignore[reportArgumentType]


def losses_of(folder: Path) -> list[str]:
    """losses.csv as text, so that equality is bitwise."""
    with (folder / "losses.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def windows_of(folder: Path) -> list[list[int]]:
    """Window ids of every batch."""
    with (folder / "windows.csv").open() as file:
        return [[int(window) for window in row["windows"].split()] for row in csv.DictReader(file)]


def account_of(folder: Path) -> dict[str, Any]:
    """run.json."""
    return json.loads((folder / "run.json").read_text())
