"""Runs of windows on a local disk: one file each, shared by any number of processes without locks.

A file is written under a temporary name and renamed, never changed, and deleted only by eviction. Before a process
fetches a run it leaves a claim in a small file that all have open, so that the 64 processes of a node do not all
fetch what they all need soon. A claim is a hint: it may be lost to another run, which costs a second request, and is
ignored when it is old, so that a killed process keeps nobody waiting.

Files are dealt to 256 folders. With a limit, folders are grouped, each group has its share of the limit, and who
writes into a group evicts from that group alone, the least recently used first: no process has to know what the whole
cache holds.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, StorageError

CLAIM_SECONDS = 10.0
"""A claim older than this is ignored."""

_FOLDERS = 256
_TICKS = 10  # of a claim's clock in a second
_GROUP_BYTES = 8 << 20
_LITTER_SECONDS = 3600.0


class WindowRun(NamedTuple):
    """Consecutive windows of one leaf within one shard: the unit of reading and caching."""

    shard: int
    first: int
    """Id of its first window."""
    num_windows: int


class RunCache:
    """The runs of one dataset in one cache folder."""

    def __init__(self, folder: Path, limit_bytes: int | None, dtype: np.dtype[Any]) -> None:
        if limit_bytes is not None and limit_bytes < 1:
            raise InputError(f"cache_limit must be a positive number of bytes, got {limit_bytes}.")
        self._folder, self._limit, self._dtype = str(folder), limit_bytes, dtype
        self._num_groups = 1
        while (
            limit_bytes is not None and self._num_groups < _FOLDERS and limit_bytes // self._num_groups > _GROUP_BYTES
        ):
            self._num_groups *= 2
        self._stores_until_check: dict[int, int] = {}
        self._swept: set[int] = set()
        self._claims = _Claims(folder)

    def holds(self, run: WindowRun) -> bool:
        """Whether the run is in the cache now; it may be gone when it is read."""
        return os.path.exists(self._path(run))  # noqa: PTH110 - a million times

    def read(self, run: WindowRun, windows: NDArray[np.int64], samples: NDArray[Any], places: NDArray[np.intp]) -> bool:
        """Copy some windows of a run to some places of `samples`; False when the run is not there or not whole."""
        path, size = self._path(run), self._dtype.itemsize
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                if os.fstat(file).st_size != run.num_windows * size:
                    return False
                if self._limit is not None:
                    os.utime(file)  # least recently used goes first
                if 2 * len(windows) > run.num_windows:
                    content = np.frombuffer(os.pread(file, run.num_windows * size, 0), self._dtype)
                    samples[places] = content[windows - run.first]
                else:
                    raw = samples.view(np.uint8).data
                    for window, place in zip((windows - run.first).tolist(), places.tolist(), strict=True):
                        os.preadv(file, [raw[place * size : (place + 1) * size]], window * size)
            finally:
                os.close(file)
        except FileNotFoundError:
            return False
        except PermissionError as error:
            raise self._refused(path, "use") from error
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: {error}. Check the cache folder, or choose another with local=.") from error
        return True

    def store(self, run: WindowRun, content: bytes | memoryview) -> None:
        """Keep the bytes of a run, whole or not at all. Raises StorageError when the folder cannot be written."""
        path = self._path(run)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            try:
                file = open(temporary, "xb", buffering=0)  # noqa: PTH123, SIM115
            except FileNotFoundError:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                file = open(temporary, "xb", buffering=0)  # noqa: PTH123, SIM115
            with file:
                written = file.write(content)
            if written != len(content):
                raise OSError(28, "No space left on device")
            os.replace(temporary, path)  # noqa: PTH105
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            if isinstance(error, PermissionError):
                raise self._refused(str(Path(path).parent), "write to") from error
            raise StorageError(
                f"{Path(path).parent}: cannot write to the cache ({error.strerror}). Free space, set cache_limit=, or "
                "choose another folder with local=."
            ) from error
        self._sweep(self._folder_of(run))
        if self._limit is not None:
            self._evict(run)

    def _refused(self, path: str, action: str) -> StorageError:
        """The error of a cache that another user has made."""
        limited = " With cache_limit=, files are marked when they are used, and deleted." if self._limit else ""
        return StorageError(
            f"{path}: cannot {action} the cache (Permission denied). It belongs to {_owner(path)}.{limited} "
            "Choose a folder of your own with local=."
        )

    def drop(self, run: WindowRun) -> None:
        """Forget a run."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(run))  # noqa: PTH108

    def claim(self, run: WindowRun) -> bool:
        """Say that this process fetches the run; False when another one said so a moment ago."""
        if self.claimed(run):
            return False
        slot, tag = self._claim_slot(run)
        self._claims.set(slot, (tag << 32) | _clock())
        return True

    def claimed(self, run: WindowRun) -> bool:
        """Whether some process said a moment ago that it fetches the run."""
        slot, tag = self._claim_slot(run)
        claim = self._claims.get(slot)
        return claim >> 32 == tag and (_clock() - claim) % (1 << 32) < CLAIM_SECONDS * _TICKS

    def release(self, run: WindowRun) -> None:
        """Take the claim back."""
        slot, tag = self._claim_slot(run)
        if self._claims.get(slot) >> 32 == tag:
            self._claims.set(slot, 0)

    def _claim_slot(self, run: WindowRun) -> tuple[int, int]:
        mixed = ((run.first << 8 | run.num_windows & 0xFF) + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        return mixed >> 48, mixed >> 16 & 0xFFFFFFFF

    def _path(self, run: WindowRun) -> str:
        return f"{self._folder}/{self._folder_of(run):02x}/{run.first:012d}-{run.num_windows}.run"

    def _folder_of(self, run: WindowRun) -> int:
        return (run.first * 0x9E3779B97F4A7C15 >> 56) & (_FOLDERS - 1)

    def _evict(self, stored: WindowRun) -> None:
        """Bring the group of a run that was just stored below its share of the limit; the run itself stays."""
        assert self._limit is not None
        group, share = self._folder_of(stored) % self._num_groups, self._limit // self._num_groups
        left = self._stores_until_check.get(group, 0)
        self._stores_until_check[group] = left - 1
        if left > 0:
            return
        entries = self._runs_of_group(group)
        self._stores_until_check[group] = len(entries) // 128
        excess = -share
        for _, size, path in sorted(entries, reverse=True):
            excess += size
            if excess > 0 and path != self._path(stored):
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108

    def _runs_of_group(self, group: int) -> list[tuple[float, int, str]]:
        """Modification time, bytes and path of each run in the folders of a group."""
        entries = []
        for folder in range(group, _FOLDERS, self._num_groups):
            with contextlib.suppress(OSError), os.scandir(f"{self._folder}/{folder:02x}") as files:
                for entry in files:
                    if entry.name.endswith(".run"):
                        with contextlib.suppress(OSError):
                            status = entry.stat()
                            entries.append((status.st_mtime, status.st_size, entry.path))
        return entries

    def _sweep(self, folder: int) -> None:
        """Remove what killed processes left in a folder; once for each process and folder."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        with contextlib.suppress(OSError), os.scandir(f"{self._folder}/{folder:02x}") as files:
            for entry in files:
                if not entry.name.endswith(".run"):
                    with contextlib.suppress(OSError):
                        if time.time() - entry.stat().st_mtime > _LITTER_SECONDS:
                            os.unlink(entry.path)  # noqa: PTH108


def _owner(path: str) -> str:
    """Whose a file is, or the first folder above it that is there."""
    for place in (Path(path), *Path(path).parents):
        with contextlib.suppress(OSError):
            user_id = place.stat().st_uid
            with contextlib.suppress(KeyError):
                return f"the user {pwd.getpwuid(user_id).pw_name}"
            return f"the user id {user_id}"
    return "another user"


def _clock() -> int:
    return int(time.time() * _TICKS) & 0xFFFFFFFF


class _Claims:
    """The claims of all processes that use a cache folder; of this one alone where the folder cannot be written.

    Read and written, not mapped: a file that somebody truncates would end the process with SIGBUS.
    """

    def __init__(self, folder: Path) -> None:
        self._file = -1
        self._in_memory: dict[int, int] = {}
        with contextlib.suppress(OSError):  # a folder that cannot be written is reported when a run is stored
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)

    def get(self, slot: int) -> int:
        if self._file < 0:
            return self._in_memory.get(slot, 0)
        with contextlib.suppress(OSError):
            return int.from_bytes(os.pread(self._file, 8, 8 * slot), "little")
        return 0

    def set(self, slot: int, claim: int) -> None:
        if self._file < 0:
            self._in_memory[slot] = claim
        with contextlib.suppress(OSError):
            os.pwrite(self._file, claim.to_bytes(8, "little"), 8 * slot)

    def __del__(self, close: Any = os.close) -> None:  # `os` may be gone before this object
        if self._file >= 0:
            close(self._file)
