"""Object-store requests of a forked process, carried out by a fresh interpreter behind a pipe.

obstore's threads do not survive a fork, so a forked DataLoader worker cannot use a client that its parent had used. The
helper costs 0.3 s of CPU once per worker. It ends when its input closes, that is when the worker ends in whatever way;
when the helper itself ends or falls silent, a new one carries out reads, and writes raise.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import IO, Any

from crisp_stream.errors import StorageError
from crisp_stream.storage.object_client import WRITES, ObjectClient

THREADS = 32
ATTEMPTS = 3
_MARGIN_SECONDS = 5.0
"""Beyond the timeout, within which the helper gives up by itself: for its start, and for a machine under load."""
_LENGTH = struct.Struct("<Q")


class _HelperLostError(Exception):
    """The helper process ended, or does not answer."""


class _HelperProcess:
    """A running helper. Messages are length-prefixed pickles between the two processes."""

    def __init__(self, url: str, timeout: float) -> None:
        start = f"import sys; sys.path[:] = {sys.path!r}; from crisp_stream.storage.object_helper import serve"
        command = [sys.executable, "-c", f"{start}; serve({url!r}, {timeout!r})"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._timeout = timeout
        self._waiting: dict[int, Future[Any]] = {}
        self._next_id = 0
        self._lock = threading.Lock()
        self.lost = False
        threading.Thread(target=self._receive, name="crisp-stream-helper", daemon=True).start()

    def call(self, operation: str, *arguments: Any) -> Any:
        """Run one operation in the helper; raises what it raised, or _HelperLostError."""
        future: Future[Any] = Future()
        with self._lock:
            if self.lost:
                raise _HelperLostError("it ended before")
            self._next_id += 1
            self._waiting[self._next_id] = future
            assert self._process.stdin is not None
            try:
                _send(self._process.stdin, (self._next_id, operation, arguments))
            except OSError as error:
                self.lost = True
                raise _HelperLostError("its pipe is closed") from error
        try:
            return future.result(self._timeout + _MARGIN_SECONDS)
        except FutureTimeoutError as error:
            self._process.kill()
            raise _HelperLostError(f"it did not answer within {self._timeout:g} s") from error

    def _receive(self) -> None:
        assert self._process.stdout is not None
        while (message := _receive(self._process.stdout)) is not None:
            identifier, result, error = message
            future = self._waiting.pop(identifier)
            future.set_exception(error) if error is not None else future.set_result(result)
        with self._lock:
            self.lost = True
            status = self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # a request may be left in the buffer
                    pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
            for future in self._waiting.values():
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(_HelperLostError(f"it ended with status {status}"))
            self._waiting.clear()


class Helper:
    """The helper of one root in this process, started anew when it is lost."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._running: _HelperProcess | None = None
        self._lock = threading.Lock()

    def call(self, operation: str, path: str, *arguments: Any) -> Any:
        """Carry out an operation of ObjectStore. Raises StorageError."""
        for attempt in range(ATTEMPTS):
            try:
                return self._process().call(operation, path, *arguments)
            except _HelperLostError as error:
                if operation in WRITES or attempt == ATTEMPTS - 1 or "did not answer" in str(error):
                    raise StorageError(
                        f"{self._url}/{path}: the helper process that carries out requests was lost: {error}. "
                        "Check the machine's memory, or start DataLoader workers with multiprocessing_context='spawn'."
                    ) from error
        raise AssertionError("unreachable")

    def _process(self) -> _HelperProcess:
        with self._lock:
            if self._running is None or self._running.lost:
                self._running = _HelperProcess(self._url, self._timeout)
            return self._running


_helpers: dict[tuple[str, float], Helper] = {}
_helpers_lock = threading.Lock()


def _forget() -> None:
    global _helpers, _helpers_lock
    _helpers = {}
    _helpers_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def helper(url: str, timeout: float) -> Helper:
    """This process's helper for a root."""
    with _helpers_lock:
        return _helpers.setdefault((url, timeout), Helper(url, timeout))


def _send(pipe: IO[bytes], message: Any) -> None:
    content = pickle.dumps(message, protocol=5)
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    prefix = pipe.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    content = pipe.read(expected := _LENGTH.unpack(prefix)[0])
    return pickle.loads(content) if len(content) == expected else None


def serve(url: str, timeout: float) -> None:
    """Carry out requests from standard input until it closes: the main loop of a helper process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; this one follows it
    client = ObjectClient(url, timeout)
    answer_lock = threading.Lock()

    def carry_out(identifier: int, operation: str, arguments: tuple[Any, ...]) -> None:
        result, failure = None, None
        try:
            result = client.call(operation, *arguments)
        except StorageError as error:
            failure = error.with_traceback(None)
            failure.__cause__ = failure.__context__ = None
        with answer_lock:
            _send(sys.stdout.buffer, (identifier, result, failure))

    pool = ThreadPoolExecutor(THREADS)
    while (message := _receive(sys.stdin.buffer)) is not None:
        pool.submit(carry_out, *message)
    os._exit(0)  # nobody is left to answer: requests in flight are not waited for
