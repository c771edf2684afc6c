"""One door to local folders and object stores: small objects by name, ranges of large ones, atomic puts.

Object stores are reached through obstore (see object_store.py). Local folders are plain files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from crisp_stream.errors import ConflictError, InputError, MissingObjectError, StorageError
from crisp_stream.storage.file_sizes import FileSizes

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https", "hf")

_PLACINGS = 3


def is_remote(url: str) -> bool:
    """Whether `url` names an object store rather than a local path.

    Raises:
        InputError: a scheme that is not supported.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme not in REMOTE_SCHEMES:
        raise InputError(f"{url}: unknown scheme {scheme}://. Use a local path or one of {', '.join(REMOTE_SCHEMES)}.")
    return True


def local_path(url: str) -> Path:
    """The file-system path of a local url (plain path or file://)."""
    return Path(url.removeprefix("file://"))


def cache_folder() -> Path:
    """Folder that keeps data of remote roots between runs: $CRISP_STREAM_CACHE, else crisp-stream below the user's
    cache folder."""
    if chosen := os.environ.get("CRISP_STREAM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crisp-stream"


class Store(Protocol):
    """Objects under one root. Paths are relative, with forward slashes. Every method raises StorageError."""

    url: str
    """The root, without a trailing slash."""
    is_local: bool
    """Whether the root is a folder of this machine."""

    def get(self, path: str) -> bytes:
        """The whole object. Raises MissingObjectError when it is not there."""
        ...

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`."""
        ...

    def get_versioned(self, path: str) -> tuple[bytes, Any]:
        """The whole object, and the version of it that `replace` asks for. Raises MissingObjectError."""
        ...

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write atomically; with `create`, only if nothing is there, else it raises ConflictError."""
        ...

    def replace(self, path: str, content: bytes, version: Any) -> None:
        """Write in the place of the version that was read, in one step. Raises ConflictError for any other, or none.

        A store that ignores conditions (If-Match) replaces whatever is there.
        """
        ...

    def put_file(self, path: str, source: Path) -> None:
        """Write the content of a local file."""
        ...

    def object_bytes(self, path: str) -> int:
        """Size of the object in bytes. Raises MissingObjectError when it is not there."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        ...

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """(path, bytes) of every object under `prefix`, sorted by path."""
        ...

    def sizes(self, prefix: str = "") -> FileSizes:
        """What `list` gives, in 16 bytes per object."""
        ...

    def delete(self, path: str) -> None:
        """Delete one object."""
        ...

    def delete_version(self, path: str, version: Any) -> None:
        """Delete the version that was read. Raises ConflictError for any other, or none.

        In an object store, which deletes whatever is there, the version is compared just before.
        """
        ...


class FolderStore:
    """A local folder as a `Store`, which describes the methods."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)
        self._folder = folder

    def _file(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(f"{path!r} leaves the root {self.url}. Paths must be relative and free of `..`.")
        return self._folder / path

    def get(self, path: str) -> bytes:
        with self._explained(path):
            return self._file(path).read_bytes()

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`; fewer at the end of the file."""
        with self._explained(path), self._file(path).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def get_versioned(self, path: str) -> tuple[bytes, Any]:
        content = self.get(path)
        return content, _digest(content)

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write to a temporary name, then rename (or link, with `create`)."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        self._place(path, write, create=create)

    def _place(self, path: str, write: Callable[[Path], object], *, create: bool = False) -> None:
        """Write a temporary file and bring it to its place; again, where another process tidied it away."""
        target = self._file(path)
        with self._explained(path):
            for left in range(_PLACINGS, -1, -1):
                with temporary_beside(target) as temporary:
                    try:
                        write(temporary)
                        if create:
                            os.link(temporary, target)
                        else:
                            temporary.replace(target)
                        return
                    except FileNotFoundError:
                        if not left or temporary.exists():
                            raise

    def replace(self, path: str, content: bytes, version: Any) -> None:
        """Compare and rename under a lock on the file itself, which ends with the process that holds it."""
        with self._locked(path, version):
            self.put(path, content)

    def delete_version(self, path: str, version: Any) -> None:
        """Delete the version that was read. Raises ConflictError for any other, or none."""
        with self._locked(path, version):
            self.delete(path)

    @contextlib.contextmanager
    def _locked(self, path: str, version: Any) -> Iterator[None]:
        target = self._file(path)
        changed = ConflictError(f"{target} was changed by another process meanwhile. Run the command again.")
        while True:
            try:
                with self._explained(path), target.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if not _is_at(target, file.fileno()):
                        continue  # replaced while this waited for its turn
                    if _digest(file.read()) != version:
                        raise changed
                    yield
                    return
            except MissingObjectError as error:
                raise changed from error

    def put_file(self, path: str, source: Path) -> None:
        """Copy a file to its place, whole or not at all."""
        self._place(path, lambda temporary: shutil.copyfile(source, temporary))

    def object_bytes(self, path: str) -> int:
        with self._explained(path):
            return self._file(path).stat().st_size

    def exists(self, path: str) -> bool:
        return self._file(path).is_file()

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        return sorted(self._files(prefix))

    def sizes(self, prefix: str = "") -> FileSizes:
        return FileSizes(self._files(prefix))

    def _files(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) in any order; nothing is held but the names of folders."""
        folders = [prefix]
        while folders:
            folder = folders.pop()
            with (
                contextlib.suppress(MissingObjectError),
                self._explained(folder),
                os.scandir(self._file(folder)) as found,
            ):
                for entry in found:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif entry.is_file():
                        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                            yield path, entry.stat().st_size

    def delete(self, path: str) -> None:
        with self._explained(path):
            self._file(path).unlink()

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        where = f"{self.url}/{path}"
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingObjectError(f"{where} does not exist. Check the path.") from error
        except FileExistsError as error:
            raise ConflictError(
                f"{where} already exists and is not overwritten. Choose another root, or delete it first."
            ) from error
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(explain_os_error(where, error)) from error


def explain_os_error(where: str, error: OSError) -> str:
    """One line for what the system refused at a path, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space there; the same command goes on where it stopped."
    elif error.errno == errno.EROFS:
        remedy = "Name a place that can be written to, or mount it for writing."
    else:
        remedy = "Check the permissions and the disk."
    return f"{where}: {error.strerror or error}. {remedy}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still stands under its name."""
    opened = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Name a temporary file in the folder of a target, which is made; delete the file unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def open_store(url: str, *, timeout: float = 120.0) -> Store:
    """The objects under a local folder or an object-store prefix. Nothing is contacted yet.

    Args:
        url: local folder, file://, s3://, gs://, az://, https:// or hf:// prefix.
        timeout: seconds after which a request that keeps failing is given up.
    """
    if not is_remote(url):
        return FolderStore(local_path(url.rstrip("/") or "/"))
    from crisp_stream.storage.object_store import ObjectStore

    return ObjectStore(url.rstrip("/"), timeout=timeout)


def try_folder(folder: str) -> None:
    """Write and delete a small object, so that a wrong credential or place shows before the run and not after it.

    Folders that this makes are removed again.

    Raises:
        StorageError: it cannot be done; the message says why.
    """
    store = open_store(folder, timeout=30.0)
    path = local_path(folder)
    made = [path for path in (path, *path.parents) if store.is_local and not path.exists()]
    name = f".crisp-stream-{uuid.uuid4().hex}"
    store.put(name, b"a run can save here")
    store.delete(name)
    with contextlib.suppress(OSError):  # another process has put something there
        for path in made:
            path.rmdir()


def file_name(path: str) -> str:
    """The last part of a path or URL, without what follows a `?`."""
    return PurePosixPath(urlsplit(path).path if is_remote(path) else path).name
