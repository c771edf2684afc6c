from __future__ import annotations

import json
from pathlib import Path

import pytest

from crisp_stream.config.load import load_recipe
from crisp_stream.errors import RecipeError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import MANIFEST
from crisp_stream.storage.store import FolderStore
from crisp_stream.training.prepare import prepare
from crisp_stream.training.start import StartingPoint
from tests.support.small_runs import leaf_histogram, write_dataset

FROM_RANDOM_WEIGHTS = StartingPoint(url=None, path=None, resumes=False)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def recipe_file(dataset: Dataset, tmp_path: Path) -> Path:
    leaf_histogram(dataset, [0, 1]).save(tmp_path / "task.parquet")
    recipe = {
        "run_name": "small",
        "max_duration": "4ba",
        "global_train_batch_size": 8,
        "data": {"remote": dataset.root},
        "mixture": {"phases": [{"histogram": "base", "until": "2ba"}, {"histogram": str(tmp_path / "task.parquet")}]},
        "model": {"n_embd": 32, "n_layer": 1, "n_head": 2},
        "optimizer": {"lr": 0.01},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return tmp_path / "recipe.yaml"


def test_preparing_a_run_opens_its_dataset_once(
    dataset: Dataset, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[str] = []
    get = FolderStore.get

    def counted(store: FolderStore, path: str) -> bytes:
        requested.append(path)
        return get(store, path)

    monkeypatch.setattr(FolderStore, "get", counted)
    run = prepare(load_recipe(recipe_file), FROM_RANDOM_WEIGHTS)
    assert run.stream.dataset is run.dataset
    assert requested.count(MANIFEST) == 1
    open_dataset(dataset.root)
    assert requested.count(MANIFEST) == 2  # the counter sees what it should


@pytest.mark.parametrize(("degree", "world_size"), [(3, 4), (8, 4), (2, 1)])
def test_copies_of_a_model_must_take_all_ranks(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, degree: int, world_size: int
) -> None:
    monkeypatch.setattr("composer.utils.dist.get_world_size", lambda: world_size)
    message = rf"`fsdp.data_parallel_shard_degree` must divide the number of processes, {world_size}; got {degree}"
    with pytest.raises(RecipeError, match=message):
        prepare(load_recipe(recipe_file, [f"fsdp.data_parallel_shard_degree={degree}"]), FROM_RANDOM_WEIGHTS)


@pytest.mark.parametrize("degree", [1, 0, -1])
def test_a_copy_takes_two_ranks_or_more(recipe_file: Path, degree: int) -> None:
    with pytest.raises(RecipeError, match=rf"`fsdp.data_parallel_shard_degree` must be 2 or more; got {degree}"):
        load_recipe(recipe_file, [f"fsdp.data_parallel_shard_degree={degree}"])
