"""One large object into a local file, by ranges that are read at the same time."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crisp_stream.errors import StorageError
from crisp_stream.storage.object_store import ObjectStore
from crisp_stream.storage.store import temporary_beside

RANGE_BYTES = 16 << 20
"""Long enough that the time to the first byte of an answer counts for little."""
RANGES_AT_ONCE = 8
"""Ranges that are held in memory: 128 MiB with `RANGE_BYTES`."""


def download(store: ObjectStore, path: str, target: Path) -> None:
    """Copy an object to a local file, which appears once all of it is there.

    Raises:
        MissingObjectError: no such object.
        StorageError: a range could not be read, the object was replaced meanwhile, or the disk is full.
    """
    _, num_bytes, version = described = store.describe(path)
    try:
        with temporary_beside(target) as temporary:
            with temporary.open("wb") as file, ThreadPoolExecutor(RANGES_AT_ONCE, "crisp-stream-download") as threads:
                copy = functools.partial(_copy_range, store, path, num_bytes, file.fileno())
                for _ in threads.map(
                    copy, range(0, num_bytes, RANGE_BYTES)
                ):  # at the first error, what has not begun is dropped
                    pass
            if store.describe(path) != described:
                raise StorageError(
                    f"{store.url}/{path} was replaced while it was read (its version was {version}). Read it again."
                )
            temporary.replace(target)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{store.url}/{path} needs {num_bytes:,} bytes in {target.parent}: {error.strerror or error}. "
            "Free some, or let TMPDIR name another folder."
        ) from error


def _copy_range(store: ObjectStore, path: str, num_bytes: int, file: int, start: int) -> None:
    length = min(RANGE_BYTES, num_bytes - start)
    content = memoryview(store.get_range(path, start, length))
    if len(content) != length:
        raise StorageError(
            f"cannot read bytes {start}-{start + length - 1} of {store.url}/{path}: got {len(content)}. Read it again."
        )
    while content:
        written = os.pwrite(file, content, start)
        content, start = content[written:], start + written
