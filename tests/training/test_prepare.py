from __future__ import annotations

import json
from pathlib import Path

import pytest

from crisp_stream.config.load import load_recipe
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.manifest import MANIFEST
from crisp_stream.storage.store import FolderStore
from crisp_stream.training.prepare import prepare
from crisp_stream.training.start import StartingPoint
from tests.support.small_runs import leaf_histogram, write_dataset


def test_preparing_a_run_opens_its_dataset_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "dataset")
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
    requested: list[str] = []
    get = FolderStore.get

    def counted(store: FolderStore, path: str) -> bytes:
        requested.append(path)
        return get(store, path)

    monkeypatch.setattr(FolderStore, "get", counted)
    run = prepare(load_recipe(tmp_path / "recipe.yaml"), StartingPoint(url=None, path=None, resumes=False))
    assert run.stream.dataset is run.dataset
    assert requested.count(MANIFEST) == 1
    open_dataset(dataset.root)
    assert requested.count(MANIFEST) == 2  # the counter sees what it should
