"""Training loops of others: the examples, on one and on two ranks, train on the windows of the pure order and on no
others; and what would deal a stream to the ranks once more is refused."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from tests.support.ranks import run_ranks
from tests.support.synthetic import write_synthetic_dataset

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 96
BATCH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("loops"), {0: 100, 3: 50, 5: 70, 15: 40})


@pytest.fixture(scope="module")
def task(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("task") / "task.parquet"
    Histogram.from_leaves([0, 0, 3, 15], dataset.tree, 2).save(path)
    return str(path)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded_windows() -> list[list[int]]:
    """Have every batch that a model is trained on recorded from now on: the windows, which their first tokens name."""
    from transformers import GPT2LMHeadModel

    seen: list[list[int]] = []
    forward = GPT2LMHeadModel.forward

    @functools.wraps(forward)
    def recording(self: GPT2LMHeadModel, *args: Any, **inputs: Any) -> Any:
        seen.append((inputs["input_ids"][:, :4].cpu() * 256 ** np.arange(4)).sum(axis=1).tolist())
        return forward(self, *args, **inputs)

    GPT2LMHeadModel.forward = recording  # pyright: ignore[reportAttributeAccessIssue]
    return seen


def train_as_rank(name: str, options: list[str], folder: Path) -> None:
    """Run an example as one rank; what it was trained on stands in a file of the rank."""
    seen = recorded_windows()
    example(name).main(options)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


def trained_on(name: str, num_ranks: int, options: list[str], folder: Path) -> list[list[int]]:
    """Windows of each batch that the ranks of an example were trained on together, sorted."""
    folder.mkdir(parents=True)
    run_ranks(num_ranks, functools.partial(train_as_rank, name, options, folder), folder)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    return [sorted(window for part in parts for window in part) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("name", ["plain_torch", "composer_loop", "accelerate_loop", "lightning_loop", "hf_trainer"])
def test_an_example_goes_on_with_other_ranks_and_workers_and_uses_every_window(
    dataset: Dataset, task: str, name: str, tmp_path: Path
) -> None:
    place = f"--checkpoint={tmp_path}/run.pt" if name == "plain_torch" else f"--save-folder={tmp_path}/run"
    accumulates = name in ("accelerate_loop", "lightning_loop", "hf_trainer")
    options = [dataset.root, task, place, f"--global-batch={BATCH}", "--width=16", "--save-every=2"]
    in_halves = ["--accumulate=2"] if accumulates else []
    first = trained_on(name, 1, [*options, "--steps=2", "--workers=0"], tmp_path / "first")
    second = trained_on(name, 2, [*options, "--steps=4", "--workers=1", *in_halves], tmp_path / "second")
    third = trained_on(name, 1, [*options, "--steps=6", "--workers=2"], tmp_path / "third")
    if accumulates:
        second = [sorted(one + other) for one, other in zip(second[::2], second[1::2], strict=True)]
    mixture = Mixture.from_histogram(Histogram.load(task))
    order = MixtureDataset(dataset, mixture, batch_size=BATCH, seed=17).order()
    expected = [sorted(order.window_ids(np.arange(step * BATCH, (step + 1) * BATCH)).tolist()) for step in range(6)]
    assert [*first, *second, *third] == expected
