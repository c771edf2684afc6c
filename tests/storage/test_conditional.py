"""Writes that happen only where the object is as it was read: roots are claimed, and manifests exchanged, by them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crisp_stream.errors import ConflictError, MissingObjectError, StorageError
from crisp_stream.storage.store import Store, open_store
from tests.support.azurite import azurite
from tests.support.seaweed import S3Server


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with azurite(tmp_path_factory.mktemp("azure")) as server, pytest.MonkeyPatch.context() as environment:
        for name, text in server.environment().items():
            environment.setenv(name, text)
        yield f"az://{server.container}"


@pytest.fixture(params=["folder", "s3", "azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "root"))
    if request.param == "azure":
        return open_store(f"{request.getfixturevalue('azure')}/{tmp_path.name}")
    server: S3Server = request.getfixturevalue("s3")
    return open_store(server.fresh_prefix())


def test_only_the_version_that_was_read_is_replaced_or_deleted(store: Store) -> None:
    store.put("a/b", b"one", create=True)
    with pytest.raises(ConflictError, match="already exists and is not overwritten"):
        store.put("a/b", b"two", create=True)
    content, version = store.get_versioned("a/b")
    assert content == b"one"
    store.replace("a/b", b"two", version)
    for refused in (lambda: store.replace("a/b", b"three", version), lambda: store.delete_version("a/b", version)):
        with pytest.raises(ConflictError, match="was changed by another process meanwhile"):
            refused()
    assert store.get("a/b") == b"two"
    store.delete_version("a/b", store.get_versioned("a/b")[1])
    with pytest.raises(ConflictError):
        store.delete_version("a/b", version)
    with pytest.raises(StorageError):
        store.replace("a/b", b"three", version)
    assert store.list() == []
    with pytest.raises(MissingObjectError):
        store.get_versioned("a/b")


def test_of_many_that_replace_one_version_one_wins_each_time(store: Store) -> None:
    store.put("counter", b"0")
    rounds, threads = 5, 6

    def count() -> None:
        for _ in range(rounds):
            while True:
                content, version = store.get_versioned("counter")
                try:
                    store.replace("counter", str(int(content) + 1).encode(), version)
                    break
                except ConflictError:
                    continue

    running = [threading.Thread(target=count) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert store.get("counter") == str(rounds * threads).encode()
    assert [path for path, _ in store.list()] == ["counter"]
