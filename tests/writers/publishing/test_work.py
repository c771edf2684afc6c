"""The work place of a write."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from crisp_stream.storage.store import FolderStore
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing import work
from crisp_stream.writers.publishing.work import work_folder


class _RemoteFolder(FolderStore):
    """A folder that counts how many deletions are under way at once."""

    is_local = False
    under_way = 0
    most = 0
    deleted: list[str] = []  # noqa: RUF012 (of all instances)
    _lock = Lock()

    def __init__(self, folder: Path, url: str, *, timeout: float) -> None:
        super().__init__(folder / url.rpartition("/")[2])

    def delete(self, path: str) -> None:
        kind = type(self)
        with kind._lock:
            kind.under_way += 1
            kind.most = max(kind.most, kind.under_way)
        time.sleep(0.01)
        super().delete(path)
        with kind._lock:
            kind.under_way -= 1
            kind.deleted.append(path)


def test_objects_of_a_remote_work_place_are_deleted_many_at_once_and_its_mark_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = partial(_RemoteFolder, tmp_path)
    monkeypatch.setattr("crisp_stream.storage.object_store.ObjectStore", store)
    options = WriteOptions(inputs=["in"], out=str(tmp_path / "out"), work="s3://bucket/work")
    with work_folder(options, lambda line: None) as workspace:
        for number in range(100):
            workspace.write(f"windows/{number:06d}.json", b"{}")
        work.mark_publishing(options, workspace, "request")
    assert not workspace.store.list()
    assert len(_RemoteFolder.deleted) == 101
    assert _RemoteFolder.deleted[-1] == "publishing.json"
    assert _RemoteFolder.most > 8
