"""Object stores through obstore, the Rust `object_store` client: S3, GCS, Azure and HTTPS behind one interface.

It retries with back-off and puts atomically. Its one flaw is settled here: its threads do not survive a fork, so a
forked DataLoader worker would wait for ever on a client that its parent had used. In such a process the requests go
through a helper process (a fresh interpreter behind a pipe, see object_helper.py).

access.py says where credentials come from; docs/train/faults.md lists the variables of every provider and how failures
end.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from crisp_stream.errors import ConflictError, MissingObjectError, StorageError
from crisp_stream.storage.file_sizes import FileSizes
from crisp_stream.storage.hub import is_hub
from crisp_stream.storage.object_client import ObjectClient, action_of, explain, forked_after_use
from crisp_stream.storage.waiting import waiting_to

READ_AHEAD_BYTES = 8 << 20


class ObjectStore:
    """An object-store prefix as a `Store`, which describes the methods.

    Opened on first use, so that it can be pickled and sent to other processes.
    """

    is_local = False

    def __init__(self, url: str, *, timeout: float) -> None:
        self.url = url
        self._timeout = timeout
        self._client = ObjectClient(url, timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ObjectStore, self.url, timeout=self._timeout), ()

    def get(self, path: str) -> bytes:
        return self.call("get", path)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        return self.call("get_range", path, start, length)

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        self.call("put", path, content, create)

    def get_versioned(self, path: str) -> tuple[bytes, Any]:
        return self.call("get_versioned", path)

    def replace(self, path: str, content: bytes, version: Any) -> None:
        self.call("replace", path, content, version)

    def delete_version(self, path: str, version: Any) -> None:
        """Compare the version, then delete."""
        try:
            same = self.get_versioned(path)[1] == version
        except MissingObjectError:
            same = False
        if not same:
            raise ConflictError(f"{self.url}/{path} was changed by another process meanwhile. Run the command again.")
        self.delete(path)

    def put_file(self, path: str, source: Path) -> None:
        """Upload a local file, in parts when it is large."""
        self.call("put_file", path, source)

    def object_bytes(self, path: str) -> int:
        return self.describe(path)[1]

    def exists(self, path: str) -> bool:
        try:
            self.object_bytes(path)
        except MissingObjectError:
            return False
        return True

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        return [(path, num_bytes) for path, num_bytes, _ in self.call("list", prefix)]

    def sizes(self, prefix: str = "") -> FileSizes:
        return self.call("sizes", prefix)

    def describe(self, path: str) -> tuple[str, int, str]:
        """(path, bytes, version) of one object. Raises MissingObjectError when it is not there."""
        return self.call("describe", path)

    def describe_all(self) -> list[tuple[str, int, str]]:
        """(path, bytes, version) of every object, sorted by path, from the listing alone.

        The version is the entity tag, or the time of the last change where the store has no tags.
        """
        return self.call("list", "")

    def delete(self, path: str) -> None:
        self.call("delete", path)

    def open(self, path: str) -> IO[bytes]:
        """The object as a seekable file. Raises StorageError, also in a process forked from one that used a client."""
        import obstore

        url = f"{self.url}/{path}"
        if is_hub(self.url):  # obstore would ask for the size where only reading is allowed
            return io.BufferedReader(_RangedFile(self, path), READ_AHEAD_BYTES)
        if forked_after_use():
            raise StorageError(f"{url}: cannot be streamed in a forked process. Start it with spawn or forkserver.")
        try:
            with waiting_to(f"open {url}", timeout=self._timeout):
                opened = obstore.open_reader(self._client.opened(writing=False), path, buffer_size=READ_AHEAD_BYTES)
        except Exception as error:
            raise explain(error, url, "open") from error
        return io.BufferedReader(_ObjectFile(opened, url, self._timeout), READ_AHEAD_BYTES)

    def call(self, operation: str, path: str, *arguments: Any) -> Any:
        """Carry out one operation. Raises StorageError, about `timeout` seconds after the start at the latest."""
        what = f"{action_of(operation, *arguments)} {self.url}/{path}"
        upload_bytes = arguments[0].stat().st_size if operation == "put_file" else 0
        with waiting_to(what, timeout=self._timeout, upload_bytes=upload_bytes):
            if forked_after_use():
                from crisp_stream.storage.object_helper import helper

                return helper(self.url, self._timeout).call(operation, path, *arguments)
            if threading.current_thread() is threading.main_thread():
                return _interruptible(self._client.call, operation, path, *arguments)
            return self._client.call(operation, path, *arguments)


def _interruptible(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in another thread: obstore does not look at signals while it waits, so the main one would hold up Ctrl-C."""
    future: Future[Any] = Future()

    def carry_out() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=carry_out, name="crisp-stream-request", daemon=True).start()
    return future.result()


class _ObjectFile(io.RawIOBase):
    """obstore's reader as a raw file."""

    def __init__(self, opened: Any, url: str, timeout: float) -> None:
        self._opened, self._url, self._timeout = opened, url, timeout

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            with waiting_to(f"read {self._url}", timeout=self._timeout):
                content = bytes(self._opened.read(len(buffer)))
        except Exception as error:
            raise explain(error, self._url, "read") from error
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._opened.seek(offset, whence)

    def tell(self) -> int:
        return self._opened.tell()


class _RangedFile(io.RawIOBase):
    """An object as a raw file, each read of which is a request for a range."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store, self._path = store, path
        self._at, self._num_bytes = 0, store.object_bytes(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._num_bytes - self._at)
        if length <= 0:
            return 0
        content = self._store.get_range(self._path, self._at, length)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._num_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at
