"""Lines about storage that is waited for."""

from __future__ import annotations

import logging
import re
import time

import pytest

from crisp_stream.errors import StorageError
from crisp_stream.storage import waiting
from crisp_stream.storage.object_store import ObjectStore
from crisp_stream.storage.waiting import WaitingRequests
from tests.support.ports import free_port


def test_a_line_says_what_is_waited_for_how_long_already_and_how_long_at_most() -> None:
    requests = WaitingRequests()
    with requests.add("read s3://b/first", timeout=120):
        began = time.monotonic()
        assert requests.line(began + 9) is None
        assert requests.line(began + 20) == "storage: waiting for 20 s to read s3://b/first; for up to 100 s more"
        with requests.add("read s3://b/second", timeout=120):
            assert (requests.line(began + 30) or "").endswith("up to 90 s more (other requests that wait: 1)")
        assert (requests.line(began + 125) or "").endswith("for up to 0 s more")
    assert requests.line(began + 30) is None


def test_an_upload_is_spoken_of_once_it_is_slow() -> None:
    requests = WaitingRequests()
    with requests.add("write s3://b/ep0-ba8-rank0.pt", timeout=120, upload_bytes=500 << 20):
        began = time.monotonic()
        assert requests.line(began + 100) is None
        assert (requests.line(began + 120) or "").endswith("write s3://b/ep0-ba8-rank0.pt; each part for up to 120 s")


@pytest.mark.parametrize(("operation", "action"), [("get", "read"), ("open", "open")])
def test_storage_that_is_down_is_spoken_of_until_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, operation: str, action: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(waiting, "LINE_SECONDS", 0.3)
    monkeypatch.setattr(waiting, "_waiting", WaitingRequests())
    with caplog.at_level(logging.WARNING), pytest.raises(StorageError, match="connection was refused"):
        getattr(ObjectStore("s3://b", timeout=2.0), operation)("manifest.json")
    line = rf"storage: waiting for \d s to {action} s3://b/manifest\.json; for up to \d s more"
    assert len(caplog.messages) >= 3
    assert all(re.fullmatch(line, message) for message in caplog.messages)
