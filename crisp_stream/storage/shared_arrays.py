"""Large read-only arrays in one file, memory-mapped: the processes of a machine share one copy of them.

A table of 16.7 million leaves is 335 MB and its plan 200 MB; eight ranks with eight workers each would hold 64 copies.
The file is made once, under a temporary name, and renamed; whoever opens it checks its hash, so that a damaged or
half-written file is made again instead of used.

    JSON line {"arrays": [[name, dtype, length], …], "hash": xxh3_128 of the rest} | arrays, each aligned to 64 bytes
"""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.errors import StorageError
from crisp_stream.storage.store import temporary_beside

SHARED_ROWS = 1 << 20
"""Tables of at least so many rows are shared; smaller ones are cheaper to hold."""

_HEADER_BYTES = 4096
_ALIGNMENT = 64


class SharedArrays:
    """Named arrays of a file. Pickled as its path, so that spawned workers map the same file."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when the file is not whole, OSError when it cannot be read."""
        self._path = path
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER_BYTES))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        body = memoryview(mapped)[_HEADER_BYTES:]
        if xxhash.xxh3_128_hexdigest(body) != header["hash"]:
            raise ValueError(f"{path} does not match its hash")
        self._arrays: dict[str, NDArray[Any]] = {}
        start = 0
        for name, dtype, length in header["arrays"]:
            self._arrays[name] = np.frombuffer(body, dtype, length, start)
            start = _aligned(start + self._arrays[name].nbytes)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return (SharedArrays, (self._path,))


def shared_arrays(path: Path, make: Callable[[], dict[str, NDArray[Any]]]) -> SharedArrays:
    """Map the arrays of a file, which is made when it is not there or not whole.

    Args:
        path: the file; its name must say everything that its content depends on.
        make: gives the arrays, one-dimensional.

    Raises:
        StorageError: the file cannot be written.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return SharedArrays(path)
    arrays = make()
    try:
        _write(path, arrays)
        return SharedArrays(path)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path}: cannot keep the tables of a large dataset in the cache ({error}). Free space there, or choose "
            "another folder with local= or CRISP_STREAM_CACHE."
        ) from error


def keep_newest(folder: Path, pattern: str, count: int) -> None:
    """Delete all but the newest files of a pattern; who has one of the others mapped keeps it."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True)[count:]:
            path.unlink(missing_ok=True)


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    digest = xxhash.xxh3_128()
    with temporary_beside(path) as temporary:
        with temporary.open("wb") as file:
            file.write(b"\0" * _HEADER_BYTES)
            written = 0
            for array in arrays.values():
                padding = b"\0" * (_aligned(written) - written)
                for part in (padding, np.ascontiguousarray(array).view(np.uint8).data):
                    digest.update(part)
                    file.write(part)
                written = _aligned(written) + array.nbytes
            described = [[name, array.dtype.str, len(array)] for name, array in arrays.items()]
            header = json.dumps({"arrays": described, "hash": digest.hexdigest()}).encode()
            file.seek(0)
            file.write(header.ljust(_HEADER_BYTES - 1) + b"\n")
        temporary.replace(path)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
