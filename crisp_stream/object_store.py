"""Object stores through obstore, the Rust `object_store` client: S3, GCS, Azure and HTTPS behind one interface.

It retries with back-off and puts atomically. Its one flaw is settled here: its threads do not survive a fork, so a
forked DataLoader worker would wait for ever on a client that its parent had used. In such a process the requests go
through a helper process of their own (a fresh interpreter behind a pipe).

Credentials come from the environment, as every S3 tool has them: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL (S3_ENDPOINT_URL, which mosaicml-streaming reads, is taken when it is not set).
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from crisp_stream.errors import StorageError
from crisp_stream.storage import MissingObjectError

UPLOAD_PART_BYTES = 16 << 20
READ_AHEAD_BYTES = 8 << 20
HELPER_THREADS = 32
_LENGTH = struct.Struct("<Q")

_client_used = False
_forked_after_use = False


def _mark_child() -> None:
    global _forked_after_use, _helpers, _helpers_lock
    _forked_after_use = _forked_after_use or _client_used
    _helpers = {}
    _helpers_lock = threading.Lock()


os.register_at_fork(after_in_child=_mark_child)


class ObjectStore:
    """An object-store prefix as a Store. Opened on first use, so that it can be pickled and sent to other processes."""

    is_local = False

    def __init__(self, url: str, *, timeout: float) -> None:
        self.url = url
        self._timeout = timeout
        self._opened: Any = None
        self._opened_in_pid = -1

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.url, self._timeout))

    def get(self, path: str) -> bytes:
        """The whole object."""
        return self.call("get", path)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`."""
        return self.call("get_range", path, start, length)

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write atomically; with `create`, only if nothing is there."""
        self.call("put", path, content, create)

    def put_file(self, path: str, source: Path) -> None:
        """Upload a local file, in parts when it is large."""
        self.call("put_file", path, source)

    def object_bytes(self, path: str) -> int:
        """Size of the object in bytes."""
        return self.call("object_bytes", path)

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self.object_bytes(path)
        except MissingObjectError:
            return False
        return True

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """(path, bytes) of every object under `prefix`, sorted by path."""
        return self.call("list", prefix)

    def delete(self, path: str) -> None:
        """Delete one object."""
        self.call("delete", path)

    def open(self, path: str) -> IO[bytes]:
        """The object as a seekable file. Raises StorageError, also in a process forked from one that used a client."""
        import obstore

        url = f"{self.url}/{path}"
        if _forked_after_use:
            raise StorageError(f"{url}: cannot be streamed in a forked process. Start it with spawn or forkserver.")
        try:
            opened = obstore.open_reader(self._client(), path, buffer_size=READ_AHEAD_BYTES)
        except Exception as error:
            raise _explain(error, url, "open") from error
        return io.BufferedReader(_ObjectFile(opened, url), READ_AHEAD_BYTES)

    def call(self, operation: str, path: str, *arguments: Any) -> Any:
        """Carry out one of _OPERATIONS. Raises StorageError."""
        if _forked_after_use:
            return _helper(self.url, self._timeout).call(operation, path, *arguments)
        try:
            return _OPERATIONS[operation](self._client(), path, *arguments)
        except Exception as error:
            raise _explain(error, f"{self.url}/{path}", operation.replace("_", " ")) from error

    def _client(self) -> Any:
        global _client_used
        if self._opened_in_pid != os.getpid():
            self._opened, self._opened_in_pid = _connect(self.url, self._timeout), os.getpid()
            _client_used = True
        return self._opened


class _ObjectFile(io.RawIOBase):
    """obstore's reader as a raw file."""

    def __init__(self, opened: Any, url: str) -> None:
        self._opened, self._url = opened, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = bytes(self._opened.read(len(buffer)))
        except Exception as error:
            raise _explain(error, self._url, "read") from error
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._opened.seek(offset, whence)

    def tell(self) -> int:
        return self._opened.tell()


def _reopen(url: str, timeout: float) -> ObjectStore:
    return ObjectStore(url, timeout=timeout)


def _connect(url: str, timeout: float) -> Any:
    from obstore.store import from_url

    options: dict[str, Any] = {
        "retry_config": {"max_retries": 10, "retry_timeout": timedelta(seconds=timeout)},
        "client_options": {
            "timeout": timedelta(seconds=min(timeout, 60.0)),
            "connect_timeout": timedelta(seconds=min(timeout, 10.0)),
            "allow_http": url.startswith("http://"),
        },
    }
    if url.startswith(("s3://", "s3a://")):
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL")
        if endpoint:
            options["config"] = {"endpoint": endpoint}
            options["client_options"]["allow_http"] = endpoint.startswith("http://")
    return from_url(url, **options)


def _get(client: Any, path: str) -> bytes:
    import obstore

    return bytes(obstore.get(client, path).bytes())


def _get_range(client: Any, path: str, start: int, length: int) -> bytes:
    import obstore

    return bytes(obstore.get_range(client, path, start=start, length=length))


def _put(client: Any, path: str, content: bytes, create: bool) -> None:
    import obstore

    obstore.put(client, path, content, mode="create" if create else "overwrite")


def _put_file(client: Any, path: str, source: Path) -> None:
    import obstore

    obstore.put(client, path, source, chunk_size=UPLOAD_PART_BYTES)


def _object_bytes(client: Any, path: str) -> int:
    import obstore

    return int(obstore.head(client, path)["size"])


def _list(client: Any, prefix: str) -> list[tuple[str, int]]:
    import obstore

    listed: Any = obstore.list(client, prefix or None)
    return sorted((meta["path"], int(meta["size"])) for batch in listed for meta in batch)


def _delete(client: Any, path: str) -> None:
    import obstore

    obstore.delete(client, path)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "get": _get,
    "get_range": _get_range,
    "put": _put,
    "put_file": _put_file,
    "object_bytes": _object_bytes,
    "list": _list,
    "delete": _delete,
}


def _explain(error: Exception, url: str, action: str) -> StorageError:
    from obstore import exceptions as refused

    if isinstance(error, StorageError):
        return error
    text = " ".join(str(error).split())
    if "NoSuchBucket" in text:
        container = "/".join(url.split("/")[:3])
        return StorageError(f"{container} does not exist (cannot {action} {url}). Create it, or check the name.")
    if isinstance(error, refused.NotFoundError | FileNotFoundError):
        return MissingObjectError(f"{url} does not exist (cannot {action} it). Check the path.")
    if isinstance(error, refused.AlreadyExistsError):
        return StorageError(f"{url} already exists and is not overwritten. Choose another root, or delete it first.")
    denied = isinstance(error, refused.PermissionDeniedError | refused.UnauthenticatedError)
    if denied or any(sign in text for sign in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")):
        return StorageError(
            f"cannot {action} {url}: the credentials were refused. "
            "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or your provider's variables) and the permissions. "
            f"The storage said: {text[:300]}"
        )
    return StorageError(f"cannot {action} {url}: {text[:600]}. Check the network, the endpoint and the path.")


class _HelperProcess:
    """Requests of a forked process, carried out by a fresh interpreter. Messages are length-prefixed pickles between
    the two processes; the helper ends when its input closes, that is when this process ends in whatever way."""

    def __init__(self, url: str, timeout: float) -> None:
        command = [sys.executable, "-m", "crisp_stream.object_store", url, str(timeout)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._url = url
        self._waiting: dict[int, Future[Any]] = {}
        self._next_id = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()

    def call(self, operation: str, *arguments: Any) -> Any:
        """Run one operation in the helper; raises what it raised."""
        future: Future[Any] = Future()
        with self._lock:
            if self._process.poll() is not None:
                raise StorageError(f"the helper process reading {self._url} ended with {self._process.returncode}.")
            self._next_id += 1
            self._waiting[self._next_id] = future
            assert self._process.stdin is not None
            _send(self._process.stdin, (self._next_id, operation, arguments))
        return future.result()

    def _receive(self) -> None:
        assert self._process.stdout is not None
        while (message := _receive(self._process.stdout)) is not None:
            identifier, result, error = message
            future = self._waiting.pop(identifier)
            future.set_exception(error) if error is not None else future.set_result(result)
        with self._lock:
            self._process.wait()
            for future in self._waiting.values():
                future.set_exception(StorageError(f"the helper process reading {self._url} ended unexpectedly."))
            self._waiting.clear()


_helpers: dict[tuple[str, float], _HelperProcess] = {}
_helpers_lock = threading.Lock()


def _helper(url: str, timeout: float) -> _HelperProcess:
    with _helpers_lock:
        if (url, timeout) not in _helpers:
            _helpers[url, timeout] = _HelperProcess(url, timeout)
        return _helpers[url, timeout]


def _send(pipe: IO[bytes], message: Any) -> None:
    content = pickle.dumps(message, protocol=5)
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    prefix = pipe.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    content = pipe.read(_LENGTH.unpack(prefix)[0])
    return pickle.loads(content)


def serve(url: str, timeout: float) -> None:
    """Carry out requests from standard input until it closes: the main loop of a helper process."""
    store = ObjectStore(url, timeout=timeout)
    answer_lock = threading.Lock()

    def carry_out(identifier: int, operation: str, arguments: tuple[Any, ...]) -> None:
        result, failure = None, None
        try:
            result = store.call(operation, *arguments)
        except StorageError as error:
            failure = error.with_traceback(None)
            failure.__cause__ = failure.__context__ = None
        with answer_lock:
            _send(sys.stdout.buffer, (identifier, result, failure))

    with ThreadPoolExecutor(HELPER_THREADS) as pool:
        while (message := _receive(sys.stdin.buffer)) is not None:
            pool.submit(carry_out, *message)


if __name__ == "__main__":
    from crisp_stream import object_store

    object_store.serve(sys.argv[1], float(sys.argv[2]))
