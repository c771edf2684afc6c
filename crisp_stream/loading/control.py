"""Memory that a MixtureDataset shares with its copies in DataLoader workers.

DataLoader has no channel to the datasets in its workers. This one is an unnamed file, in memory where the system has
such, that all copies hold open. Three things go through it:

* where the next iteration begins, said by the parent; how far workers have planned, and what they have read;
* a log of changes of the mixture, written by the parent, which every process follows once, in order;
* slots for the samples of batches (slots.py).

It has no name, so nothing can be left behind, and its lock (POSIX, by process) is released by the kernel when a process
dies in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import multiprocessing.context
import multiprocessing.reduction
import os
import secrets
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from crisp_stream.errors import StorageError

MAX_WORKERS = 1024
_NUMBERS = 8
_COLUMNS = 4  # per worker
_HEADER_BYTES = -(-8 * (_NUMBERS + _COLUMNS * MAX_WORKERS) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
_NO_CEILING = -1
_RECORD = struct.Struct("<Q")

_here: WeakValueDictionary[int, Control] = WeakValueDictionary()
"""Those of this process, by name."""


class Control:
    """Shared by a dataset and the copies of it that DataLoader makes. Made by the parent."""

    def __init__(self, start: int = 0, *, shared: tuple[int, int, int] | None = None) -> None:
        """Args:
        start: position where the first iteration begins.
        shared: descriptor, name and bytes of the log that are followed already, of one that another process made.
        """
        self._file = -1
        self._file, self.name, self._followed = shared or (_unnamed_file(), secrets.randbits(62), 0)
        self._mapped = mmap.mmap(self._file, _HEADER_BYTES)
        numbers = np.frombuffer(self._mapped, np.int64, _NUMBERS + _COLUMNS * MAX_WORKERS)
        self._log_end, self._planned, self._ceiling, self._iteration, self._start, self._workers, self._forgotten = (
            numbers[slot : slot + 1] for slot in range(7)
        )
        columns = numbers[_NUMBERS:].reshape(_COLUMNS, MAX_WORKERS)
        self._begun, self._followed_by, self._bytes_read, self._requests = columns
        self._thread_lock = threading.Lock()
        _here[self.name] = self
        if shared is None:
            self._ceiling[0] = _NO_CEILING
            self.begin(start)

    def __reduce__(self) -> tuple[Any, ...]:
        assert multiprocessing.context.get_spawning_popen() is not None, "another copy shares nothing"
        return (_attach, (multiprocessing.reduction.DupFd(self._file), self.name, self._followed))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone before this object
        if self._file >= 0:
            close(self._file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of all processes."""
        with self._thread_lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    # Iterations.

    def begin(self, start: int, num_workers: int = -1) -> int:
        """Say where the next iteration begins, and how many workers it has (-1: not known); returns its number."""
        with self.locked():
            self._iteration[0] += 1
            self._start[0] = self._planned[0] = start
            self._workers[0] = num_workers
            return int(self._iteration[0])

    def join(self, worker: int, iteration: int) -> bool:
        """Take part in an iteration; False if this worker of it has taken part already."""
        with self.locked():
            if self._begun[worker] == iteration:
                return False
            self._begun[worker], self._followed_by[worker] = iteration, self._followed
            return True

    @property
    def iteration(self) -> int:
        """Number of the iteration."""
        return int(self._iteration[0])

    @property
    def start(self) -> int:
        """First position of the iteration."""
        return int(self._start[0])

    @property
    def knows_workers(self) -> bool:
        """Whether the iteration was begun with a known number of workers."""
        return bool(self._workers[0] >= 0)

    @property
    def joined(self) -> bool:
        """Whether a worker takes part in the iteration."""
        return bool((self._begun == self._iteration[0]).any())

    def count(self, worker: int, bytes_read: int, requests: int) -> None:
        """Add what a worker has read."""
        self._bytes_read[worker] += bytes_read
        self._requests[worker] += requests

    @property
    def bytes_read(self) -> int:
        """Bytes read by all workers, in all iterations."""
        return int(self._bytes_read.sum())

    @property
    def requests(self) -> int:
        """Requests by all workers, in all iterations."""
        return int(self._requests.sum())

    # Changes of the mixture.

    def plan(self, stop: int) -> bool:
        """Claim the positions before `stop` for the mixture as it is known; False when that has to wait for a change
        that is being made."""
        with self.locked():
            if self._ceiling[0] != _NO_CEILING and stop > self._ceiling[0]:
                return False
            self._planned[0] = max(int(self._planned[0]), stop)
            return True

    def hold(self) -> tuple[int, int]:
        """Let workers plan nothing more; returns the first position of the iteration, and the one before which they
        have planned."""
        with self.locked():
            self._ceiling[0] = self._planned[0]
            return int(self._start[0]), int(self._planned[0])

    def release(self, record: bytes | None) -> None:
        """Let workers go on, after a change (None: there was none), which this process has made already."""
        with self.locked():
            if record is not None:
                self._append(record)
            self._ceiling[0] = _NO_CEILING

    def append(self, record: bytes) -> None:
        """Write to the log what this process has done already."""
        with self.locked():
            self._append(record)

    def _append(self, record: bytes) -> None:
        end = _HEADER_BYTES + int(self._log_end[0])
        content = _RECORD.pack(len(record)) + record
        while content:  # a write may be partial
            written = os.pwrite(self._file, content, end)
            content, end = content[written:], end + written
        self._log_end[0] = self._followed = end - _HEADER_BYTES
        self._forget()

    def _forget(self) -> None:
        """Give back the memory of records that all workers have followed. Where their number is not known, nothing."""
        workers = slice(0, max(0, int(self._workers[0])))
        if (self._begun[workers] != self._iteration[0]).any():
            return
        followed = int(self._followed_by[workers].min(initial=self._followed)) if self._workers[0] >= 0 else 0
        page = mmap.ALLOCATIONGRANULARITY
        first, stop = int(self._forgotten[0]), followed // page * page
        if stop > first and hasattr(mmap, "MADV_REMOVE"):
            with mmap.mmap(self._file, stop - first, offset=_HEADER_BYTES + first) as old, contextlib.suppress(OSError):
                old.madvise(mmap.MADV_REMOVE)
            self._forgotten[0] = stop

    def new_records(self, worker: int | None = None) -> list[bytes]:
        """The records since the last call in this process."""
        records = []
        while self._followed < int(self._log_end[0]):
            at = _HEADER_BYTES + self._followed
            (length,) = _RECORD.unpack(os.pread(self._file, _RECORD.size, at))
            records.append(os.pread(self._file, length, at + _RECORD.size))
            self._followed += _RECORD.size + length
        if worker is not None:
            self._followed_by[worker] = self._followed
        return records


def control_named(name: int) -> Control | None:
    """The control of this name in this process."""
    return _here.get(name)


def _unnamed_file() -> int:
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("crisp-stream")
        else:
            with tempfile.TemporaryFile(prefix="crisp-stream-") as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _HEADER_BYTES)
    except OSError as error:
        raise StorageError(f"cannot make a temporary file ({error}). Check TMPDIR and the disk.") from error
    return descriptor


def _attach(duplicate: Any, name: int, followed: int) -> Control:
    return Control(shared=(duplicate.detach(), name, followed))
