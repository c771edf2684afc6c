"""Shards of a local root as files to read slices of: mapped on a local disk, read with `pread` on a network.

A mapping takes 3.5 µs of CPU for a sample instead of 6.7 (everything included). But what goes wrong below a mapping
ends the process with SIGBUS, without a word; on network file systems, where things do go wrong, an exception is worth
more.

A process keeps as many shards mapped as the system and the memory of page tables admit, which is all of most datasets.
`mmap.mmap` would keep an open file for each (before Python 3.13), and of these a process may have far fewer. What is
beyond the limit is opened, read and closed: a quarter of what mapping and unmapping it costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from crisp_stream.errors import CorruptDataError, MissingObjectError, StorageError
from crisp_stream.format.shards import ShardTable

NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "gluster",
    "fuse",
    "9p",
    "afs",
    "pvfs",
)
"""Beginnings of their names in /proc/self/mountinfo."""


MOST_MAPPED_BYTES = 64 << 30
"""By a process. The page tables of what was touched then take up to 128 MB."""
_OPEN_FILES = 256
_MISSES_PER_EXCHANGE = 16
_MAP_FAILED = ctypes.c_void_p(-1).value
_READ_ONLY = 0x100  # PyBUF_READ


class ShardFile(Protocol):
    """An open shard."""

    def __getitem__(self, part: slice, /) -> Any:
        """The bytes from part.start to part.stop; fewer where the file has become shorter. Raises StorageError."""
        ...


class ShardFiles:
    """The shards of a local root, by number."""

    def __init__(self, root: Path, shards: ShardTable) -> None:
        self._root, self._shards = root, shards
        self.opened: dict[int, ShardFile] = {}
        """Those that are kept open, the oldest first."""
        self._misses = 0

    def open(self, shard: int) -> ShardFile:
        """Open a shard that is not in `opened`, and keep it there if there is room.

        Raises:
            MissingObjectError, StorageError: it cannot be opened.
            CorruptDataError: it is not as long as the shard table says.
        """
        path, num_bytes = f"{self._root}/{self._shards.path[shard].decode()}", int(self._shards.shard_bytes[shard])
        try:
            if maps_are_safe(path.rpartition("/")[0]):
                if _maps.are_full(num_bytes):
                    self._misses += 1
                    if self._misses % _MISSES_PER_EXCHANGE or not self.opened:
                        return ReadFile(path, num_bytes)
                    self._close_oldest()  # some are exchanged: another mixture reads other shards
                file: ShardFile = _maps.map(path, num_bytes)
            else:
                if len(self.opened) >= _OPEN_FILES:
                    self._close_oldest()
                file = ReadFile(path, num_bytes)
        except FileNotFoundError as error:
            raise MissingObjectError(
                f"{path} does not exist. Restore the shard; crisp-stream verify finds others."
            ) from error
        except OSError as error:
            raise StorageError(
                f"{path}: {error.strerror}. Restore the shard; crisp-stream verify finds others."
            ) from error
        self.opened[shard] = file
        return file

    def _close_oldest(self) -> None:
        file = self.opened.pop(next(iter(self.opened)))
        if isinstance(file, memoryview):
            _maps.unmap(file)

    def close(self) -> None:
        """Close all."""
        while self.opened:
            self._close_oldest()

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ending():
            self.close()


class ReadFile:
    """A shard that is read with `pread`."""

    def __init__(self, path: str, num_bytes: int) -> None:
        self._path, self._file = path, -1
        self._file = _opened(path, num_bytes)

    def __getitem__(self, part: slice, /) -> bytes:
        try:
            return os.pread(self._file, part.stop - part.start, part.start)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}. Check the disk.") from error

    def __del__(self, close: Any = os.close) -> None:  # `os` may be gone before this object
        if self._file >= 0:
            close(self._file)


def _opened(path: str, num_bytes: int) -> int:
    """Open a file that must have so many bytes. Raises OSError, CorruptDataError."""
    file = os.open(path, os.O_RDONLY)
    found = os.fstat(file).st_size
    if found != num_bytes:
        os.close(file)
        raise wrong_length(path, num_bytes, found)
    return file


def wrong_length(path: str, expected: int, found: int) -> CorruptDataError:
    """Make the error about a shard that is longer or shorter than its table says."""
    return CorruptDataError(
        f"{path}: the shard table says {expected} bytes, got {found}. "
        "The shard is truncated or was replaced: restore it from a copy or write the dataset again."
    )


class _Maps:
    """The mappings of this process."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._map, self._unmap = library.mmap, library.munmap
        self._map.restype = ctypes.c_void_p
        self._map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._view = ctypes.pythonapi.PyMemoryView_FromMemory
        self._view.restype = ctypes.py_object
        self._view.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
        self._addresses: dict[int, tuple[int, int]] = {}
        """Address and length of each view, by its identity."""
        self._num_bytes = 0
        self._most = _most_maps()

    def are_full(self, num_bytes: int) -> bool:
        """Whether there is no room for another mapping of so many bytes."""
        return len(self._addresses) >= self._most or self._num_bytes + num_bytes > MOST_MAPPED_BYTES

    def map(self, path: str, num_bytes: int) -> memoryview:
        """Map a file that must have so many bytes. Raises OSError, CorruptDataError."""
        file = _opened(path, num_bytes)
        try:
            address = self._map(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
        finally:
            os.close(file)
        if address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        view: memoryview = self._view(address, num_bytes, _READ_ONLY)
        self._addresses[id(view)] = address, num_bytes
        self._num_bytes += num_bytes
        return view

    def unmap(self, view: memoryview) -> None:
        """End a mapping, of which no slices may be left. Raises BufferError where there are some."""
        key = id(view)
        view.release()
        address, num_bytes = self._addresses.pop(key)
        self._num_bytes -= num_bytes
        self._unmap(address, num_bytes)


def _most_maps() -> int:
    """Three quarters of what the system admits to a process, of which libraries take thousands."""
    with contextlib.suppress(OSError):
        return 3 * int(Path("/proc/sys/vm/max_map_count").read_text()) // 4
    return 16_384


_maps = _Maps()


@functools.lru_cache(maxsize=4096)
def maps_are_safe(folder: str | Path) -> bool:
    """Whether a folder is on a file system of this machine; False where the system does not say."""
    try:
        device = os.stat(folder).st_dev  # noqa: PTH116
        number = f"{os.major(device)}:{os.minor(device)}"
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    kinds = [mount.partition(" - ")[2].split(" ")[0] for mount in mounts if mount.split(" ")[2] == number]
    return bool(kinds) and not kinds[-1].startswith(NETWORK_FILE_SYSTEMS)
