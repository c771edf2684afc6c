"""A large object is fetched by ranges at the same time, whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import MissingObjectError, StorageError
from crisp_stream.models.checkpoint import local_copy
from crisp_stream.storage import download as downloads
from crisp_stream.storage.download import RANGE_BYTES, RANGES_AT_ONCE, download
from crisp_stream.storage.object_store import ObjectStore
from tests.support.fault_proxy import FaultProxy, Request, fault_proxy
from tests.support.seaweed import S3Server

SMALL_RANGE = 50_000
CONTENT = np.random.default_rng(0).bytes(20 * SMALL_RANGE + 123)


class WatchedStore(ObjectStore):
    """Counts its ranges, and the most that were read at the same time."""

    def __init__(self, url: str, *, timeout: float = 20.0) -> None:
        super().__init__(url, timeout=timeout)
        self.ranges: list[tuple[int, int]] = []
        self.reading = self.most_reading = 0
        self._lock = threading.Lock()

    def get_range(self, path: str, start: int, length: int) -> bytes:
        with self._lock:
            self.ranges.append((start, length))
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
        try:
            return super().get_range(path, start, length)
        finally:
            with self._lock:
                self.reading -= 1


def one_range(request: Request) -> bool:
    return request.headers.get("range", "").startswith(f"bytes={7 * SMALL_RANGE}-")


def any_range(request: Request) -> bool:
    return request.method == "GET" and request.is_range


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(downloads, "RANGE_BYTES", SMALL_RANGE)
    with fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def url(s3: S3Server) -> str:
    url = s3.fresh_prefix("large")
    ObjectStore(url, timeout=20.0).put("a.pt", CONTENT)
    return url


def test_eight_ranges_are_read_at_the_same_time_and_each_once(url: str, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.start("delay", where=any_range, seconds=0.1)
    store = WatchedStore(url)
    download(store, "a.pt", tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == CONTENT
    assert sorted(store.ranges) == [
        (start, min(SMALL_RANGE, len(CONTENT) - start)) for start in range(0, len(CONTENT), SMALL_RANGE)
    ]
    assert proxy.requests == len(store.ranges) + 2  # and what the object is, before and after
    assert store.most_reading == RANGES_AT_ONCE
    assert RANGES_AT_ONCE * RANGE_BYTES == 128 << 20


@pytest.mark.parametrize("fault", ["503", "reset", "truncated"])
def test_a_range_that_breaks_once_is_read_again(url: str, proxy: FaultProxy, tmp_path: Path, fault: str) -> None:
    proxy.start(fault, where=one_range, times=1)  # pyright: ignore[reportArgumentType]
    download(ObjectStore(url, timeout=20.0), "a.pt", tmp_path / "a.pt")
    assert proxy.injected == 1
    assert (tmp_path / "a.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_range_that_stays_broken_is_an_error_and_leaves_no_file(
    url: str, proxy: FaultProxy, tmp_path: Path, fault: str
) -> None:
    proxy.start(fault, where=one_range)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        StorageError, match=rf"cannot read bytes {7 * SMALL_RANGE}-{8 * SMALL_RANGE - 1} of {url}/a\.pt"
    ):
        download(ObjectStore(url, timeout=1.0), "a.pt", tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_replaced_meanwhile_is_an_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(url, timeout=20.0)
    pwrite = os.pwrite

    def replace_first(*arguments: object) -> int:
        store.put("a.pt", bytes(len(CONTENT)))
        return pwrite(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "pwrite", replace_first)
    with pytest.raises(StorageError, match=r"a\.pt was replaced while it was read"):
        download(store, "a.pt", tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_how_much_is_needed_and_where(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"needs 1,000,123 bytes in .*: No space left on device. .* TMPDIR"):
        download(ObjectStore(url, timeout=20.0), "a.pt", tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_fetched_in_ranges_and_its_copy_removed(url: str, proxy: FaultProxy) -> None:
    with local_copy(f"{url}/a.pt") as path:
        assert path.read_bytes() == CONTENT
    assert not path.exists()
    assert proxy.requests == 21 + 2
    with pytest.raises(MissingObjectError, match=r"b\.pt does not exist"), local_copy(f"{url}/b.pt"):
        pass
