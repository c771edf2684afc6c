"""The place of intermediate files: a folder, or a prefix of an object store that all machines reach.

Files are immutable and appear whole: written under a temporary name and renamed, or put as one object. Their names
hold a fingerprint of everything that determined them, so two processes that make the same file make the same bytes,
and nothing needs a lock.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import io
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import MissingObjectError
from crisp_stream.storage.file_sizes import FileSizes
from crisp_stream.storage.store import Store, is_remote, local_path, open_store


def remote_or_absolute(url: str) -> str:
    """A url that means the same in every process."""
    return url.rstrip("/") if is_remote(url) else str(local_path(url).resolve())


class Workspace:
    """Named files below one url. Can be pickled, and then works in any process that reaches the url."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self._store: Store | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Workspace, (self.url,))

    @property
    def store(self) -> Store:
        """The files as a Store."""
        if self._store is None:
            self._store = open_store(self.url)
        return self._store

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one of this machine (or of a file system that machines share)."""
        return None if is_remote(self.url) else local_path(self.url)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Name to bytes of every finished file below a folder of the workspace, in one listing."""
        return {name: num_bytes for name, num_bytes in self.store.list(prefix) if not name.endswith(".tmp")}

    def listed(self, prefix: str) -> FileSizes:
        """`sizes`, and those of unfinished files, in 16 bytes per file: for folders of millions of files."""
        return self.store.sizes(prefix)

    def read(self, name: str) -> bytes:
        """A whole small file. Raises MissingObjectError, StorageError."""
        return self.store.get(name)

    def read_if_there(self, name: str) -> bytes | None:
        """A whole small file, or None."""
        with contextlib.suppress(MissingObjectError):
            return self.store.get(name)
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        self.store.put(name, content)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A readable local file with the content of `name`; where that is remote, a copy that lives as long."""
        with opened(self.store, name) as path:
            yield path

    @contextlib.contextmanager
    def created(self, name: str) -> Iterator[Path]:
        """A path to write to; what stands there at the end of the block becomes `name`, whole or not at all."""
        folder = self.folder
        if folder is not None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.tmp")
            try:
                yield temporary
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with scratch_folder() as scratch:
            temporary = scratch / Path(name).name
            yield temporary
            self.store.put_file(name, temporary)

    def kept(self, *names: str) -> list[Path]:
        """Local files with the content of `names`, for as long as this process lives; remote ones are copied once."""
        folder = self.folder
        if folder is not None:
            return [folder / name for name in names]
        return [_kept_copy(self.url, name) for name in names]

    def save_array(self, name: str, array: NDArray[Any]) -> None:
        """Write a .npy file."""
        with self.created(name) as path, path.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    def save_rows(self, name: str, pieces: Iterator[NDArray[Any]]) -> None:
        """Write a .npy file piece by piece, at least one, as `save_array` writes all of them joined. Not through a map,
        because a full disk would end the process."""
        with self.created(name) as path, path.open("wb") as file:
            first = next(pieces)
            num_rows = 0
            header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, header | {"shape": (0, *first.shape[1:])})
            for piece in itertools.chain([first], pieces):
                file.write(np.ascontiguousarray(piece).data)
                num_rows += len(piece)
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, header | {"shape": (num_rows, *first.shape[1:])})

    def load_array(self, name: str) -> NDArray[Any]:
        """Read a .npy file into memory."""
        with self.opened(name) as path:
            return np.load(path, allow_pickle=False)

    def array(self, name: str) -> StoredArray:
        """A .npy file of which rows are read by range."""
        return StoredArray(self.store, name)


_COPIED_BYTES = 16 << 20


@contextlib.contextmanager
def opened(store: Store, name: str) -> Iterator[Path]:
    """A readable local file with the content of an object; of a remote one a copy, made by ranges, that lives as long
    as the block."""
    if store.is_local:
        yield local_path(store.url) / name
        return
    with scratch_folder() as scratch:
        copy = scratch / Path(name).name
        with copy.open("wb") as file:
            first = store.get_range(name, 0, _COPIED_BYTES)
            file.write(first)
            if len(first) == _COPIED_BYTES:  # there may be more: most are smaller, and cost one request
                num_bytes = store.object_bytes(name)
                for start in range(_COPIED_BYTES, num_bytes, _COPIED_BYTES):
                    file.write(store.get_range(name, start, min(_COPIED_BYTES, num_bytes - start)))
        yield copy


_copies: dict[tuple[str, str], Path] = {}


def _kept_copy(url: str, name: str) -> Path:
    copy = _copies.get((url, name))
    if copy is None:
        folder = _process_scratch() / hashlib.sha256(f"{url}/{PurePosixPath(name).parent}".encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        copy = folder / PurePosixPath(name).name
        copy.write_bytes(open_store(url).get(name))
        _copies[url, name] = copy
    return copy


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder on local disk for as long as the block; where the process is killed, another deletes it."""
    with tempfile.TemporaryDirectory(dir=_process_scratch()) as folder:
        yield Path(folder)


_SCRATCH = "crisp-stream-"


@lru_cache(maxsize=1)
def _process_scratch() -> Path:
    """Locked while its process lives, so that it can be seen to be abandoned."""
    delete_abandoned_scratch()
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    lock = os.open(folder / "locking", os.O_CREAT | os.O_WRONLY)  # held to the end of the process
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "locking").rename(folder / "lock")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def delete_abandoned_scratch() -> None:
    """Delete the scratch folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*/lock"):
        with contextlib.suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


class StoredArray:
    """A .npy file in C order whose rows are read when they are needed: a map of a local file, ranges of an object."""

    _HEADER_BYTES = 256

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._mapped: NDArray[Any] | None = None
        self.shape: tuple[int, ...]
        self.dtype: np.dtype[Any]
        if store.is_local:
            mapped: NDArray[Any] = np.load(Path(store.url) / name, mmap_mode="r", allow_pickle=False)
            self._mapped, self.shape, self.dtype = mapped, mapped.shape, mapped.dtype
            return
        header = io.BytesIO(store.get_range(name, 0, self._HEADER_BYTES))
        version = np.lib.format.read_magic(header)
        reader = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        self.shape, _, self.dtype = reader(header)
        self._first_byte = header.tell()

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start … stop - 1, copied into memory where the file is remote."""
        if self._mapped is not None:
            return self._mapped[start:stop]
        row_shape = self.shape[1:]
        row_bytes = int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize
        content = self._store.get_range(self._name, self._first_byte + start * row_bytes, (stop - start) * row_bytes)
        return np.frombuffer(content, self.dtype).reshape(stop - start, *row_shape)
