"""Large tables in one mapped file: whole or made again, one copy for all processes."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import StorageError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.storage.shared_arrays import keep_newest, shared_arrays
from tests.support.synthetic import write_synthetic_dataset


def arrays() -> dict[str, np.ndarray]:
    return {"leaf": np.arange(1000, dtype=np.uint32), "cdf": np.linspace(0, 1, 333), "none": np.empty(0, np.int64)}


def test_arrays_come_back_read_only_and_are_made_once(tmp_path: Path) -> None:
    made = shared_arrays(tmp_path / "a" / "table", arrays)
    for name, expected in arrays().items():
        assert made[name].dtype == expected.dtype
        assert (made[name] == expected).all()
        assert not made[name].flags.writeable
    again = shared_arrays(tmp_path / "a" / "table", lambda: pytest.fail("made twice"))
    assert (pickle.loads(pickle.dumps(again))["cdf"] == arrays()["cdf"]).all()
    assert len(pickle.dumps(again)) < 1000  # the path, not the arrays


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table"
    shared_arrays(path, arrays)
    content = bytearray(path.read_bytes())
    content[4096 + 100] ^= 1
    path.write_bytes({"flip": bytes(content), "truncate": content[:-9], "empty": b"", "text": b"x" * 9000}[damage])
    assert (shared_arrays(path, arrays)["leaf"] == arrays()["leaf"]).all()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"(?s)cannot keep the tables of a large dataset.*local="):
        shared_arrays(tmp_path / "file" / "table", arrays)


def test_only_the_newest_plans_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        shared_arrays(tmp_path / f"plan-{number}", arrays)
    keep_newest(tmp_path, "plan-*", 2)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_large_dataset_shares_its_cluster_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_synthetic_dataset(tmp_path / "data", {0: 30, 3: 5, 15: 20})
    monkeypatch.setattr("crisp_stream.format.dataset.SHARED_ROWS", 2)
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        dataset = open_dataset(plain.root)
        for name in ("leaves", "windows_per_leaf", "first_window_per_leaf"):
            assert (getattr(dataset, name) == getattr(plain, name)).all()
        assert [path.name[:9] for path in dataset.table_folder.iterdir()] == ["clusters-"]
    assert (pickle.loads(pickle.dumps(open_dataset(plain.root))).leaves == plain.leaves).all()
    shutil.rmtree(tmp_path / "cache")
    assert (open_dataset(plain.root).leaves == plain.leaves).all()
