"""Messages between a MixtureDataset and its DataLoader workers: how far is planned, how the mixture changed.

A worker is a copy of the dataset in another process, forked or spawned; DataLoader has no channel to it. This one is an
unnamed file, in memory where the system has such, that all copies hold open: a few mapped numbers, and a log of
changes. It has no name, so nothing can be left behind, and its lock (POSIX, by process) is released by the kernel when
a process dies in it.
"""

from __future__ import annotations

import fcntl
import mmap
import multiprocessing.context
import multiprocessing.reduction
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from crisp_stream.errors import StorageError

_HEADER_BYTES = 8192
_MAX_WORKERS = 4096
_NO_CEILING = -1
_RECORD = struct.Struct("<Q")


class Control:
    """Shared by a dataset and the copies of it that DataLoader makes."""

    def __init__(self, file: int | None = None) -> None:
        self._file = -1
        self._file = _unnamed_file() if file is None else file
        self._mapped = mmap.mmap(self._file, _HEADER_BYTES)
        numbers = np.frombuffer(self._mapped, np.int64, (_HEADER_BYTES - _MAX_WORKERS) // 8, _MAX_WORKERS)
        self._registered = np.frombuffer(self._mapped, np.int8, _MAX_WORKERS)
        self._log_bytes, self._planned, self._ceiling = numbers[0:1], numbers[1:2], numbers[2:3]
        self._begun, self._pass, self._at_start, self._key = (numbers[slot : slot + 1] for slot in range(3, 7))
        if file is None:
            self._ceiling[0] = _NO_CEILING
        self._read_bytes = 0
        self._thread_lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.context.get_spawning_popen() is not None:
            return (_attach, (multiprocessing.reduction.DupFd(self._file),))
        return (Control._copy, (bytes(self._mapped), os.pread(self._file, int(self._log_bytes[0]), _HEADER_BYTES)))

    @staticmethod
    def _copy(header: bytes, log: bytes) -> Control:
        """A copy that shares nothing, where a dataset is pickled for another purpose than a worker."""
        copied = Control()
        copied._mapped[:] = header
        os.pwrite(copied._file, log, _HEADER_BYTES)
        return copied

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone before this object
        if self._file >= 0:
            close(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread_lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def begin_pass(self, worker: int, key: int, start: int, *, loaded: bool) -> tuple[int, bool]:
        """Say that a worker begins to iterate.

        Args:
            worker: number of the worker.
            key: the same for all workers of an iteration, most likely another for another iteration.
            start: the pass in which the position lies where the first iteration begins.
            loaded: that position was loaded in the worker itself, for this iteration.

        Returns:
            The pass that this iteration serves, and whether it begins at that position, not with the pass.
        """
        key &= (1 << 62) - 1
        with self._locked():
            if self._begun[0] == 0 or self._key[0] != key or self._registered[worker]:
                self._registered[:] = 0
                self._at_start[0] = loaded or self._begun[0] == 0
                self._pass[0] = start if self._at_start[0] else self._pass[0] + 1
                self._begun[0] += 1
                self._key[0] = key
            self._registered[worker] = 1
            return int(self._pass[0]), bool(self._at_start[0])

    @property
    def current_pass(self) -> int | None:
        """The pass that is being served, or was last; None before the first iteration."""
        return int(self._pass[0]) if self._begun[0] else None

    @property
    def planned(self) -> int:
        """Position before which workers have planned what to serve."""
        return int(self._planned[0])

    def plan(self, stop: int) -> bool:
        """Claim the positions before `stop` for the mixture as it is known; False when that has to wait for a change
        that is being made."""
        with self._locked():
            if self._ceiling[0] != _NO_CEILING and stop > self._ceiling[0]:
                return False
            self._planned[0] = max(int(self._planned[0]), stop)
            return True

    def hold(self) -> int:
        """Let workers plan nothing more; returns the position before which they have planned."""
        with self._locked():
            self._ceiling[0] = self._planned[0]
            return int(self._planned[0])

    def release(self, record: bytes | None) -> None:
        """Let workers go on, after a change (None: there was none)."""
        with self._locked():
            if record is not None:
                end = _HEADER_BYTES + int(self._log_bytes[0])
                content = _RECORD.pack(len(record)) + record
                while content:  # a write may be partial
                    written = os.pwrite(self._file, content, end)
                    content, end = content[written:], end + written
                self._log_bytes[0] = end - _HEADER_BYTES
            self._ceiling[0] = _NO_CEILING

    def new_records(self) -> list[bytes]:
        """The changes since the last call in this process."""
        records = []
        while self._read_bytes < int(self._log_bytes[0]):
            at = _HEADER_BYTES + self._read_bytes
            (length,) = _RECORD.unpack(os.pread(self._file, _RECORD.size, at))
            records.append(os.pread(self._file, length, at + _RECORD.size))
            self._read_bytes += _RECORD.size + length
        return records


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


def _attach(duplicate: Any) -> Control:
    return Control(duplicate.detach())
