"""One door to local folders and object stores: small objects by name, ranges of large ones, atomic puts.

Object stores are reached through obstore (see object_store.py). Local folders are plain files.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import uuid
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Protocol

from crisp_stream.errors import InputError, StorageError

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")
GLOB_SIGNS = "*?["


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
    """Where data of remote roots is kept between runs: $CRISP_STREAM_CACHE, else crisp-stream below the user's cache
    folder."""
    chosen = os.environ.get("CRISP_STREAM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crisp-stream"


class MissingObjectError(StorageError):
    """The object is not there, though the storage answered."""


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

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write atomically; with `create`, only if nothing is there."""
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

    def delete(self, path: str) -> None:
        """Delete one object."""
        ...


class FolderStore:
    """A local folder as a Store."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)
        self._folder = folder

    def _file(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(f"{path!r} leaves the root {self.url}. Paths must be relative and free of `..`.")
        return self._folder / path

    def get(self, path: str) -> bytes:
        """The whole file."""
        try:
            return self._file(path).read_bytes()
        except OSError as error:
            raise self._explain(error, path) from error

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`; fewer at the end of the file."""
        try:
            with self._file(path).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise self._explain(error, path) from error

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write to a temporary name, then rename (or link, with `create`)."""
        target = self._file(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if create:
                os.link(temporary, target)
                temporary.unlink()
            else:
                temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise self._explain(error, path) from error

    def put_file(self, path: str, source: Path) -> None:
        """Copy a file to its place, whole or not at all."""
        target = self._file(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise self._explain(error, path) from error

    def object_bytes(self, path: str) -> int:
        """Size of the file."""
        try:
            return self._file(path).stat().st_size
        except OSError as error:
            raise self._explain(error, path) from error

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        return self._file(path).is_file()

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Every file below `prefix`."""
        files = (file for file in self._file(prefix).rglob("*") if file.is_file())
        return sorted((file.relative_to(self._folder).as_posix(), file.stat().st_size) for file in files)

    def delete(self, path: str) -> None:
        """Remove one file."""
        try:
            self._file(path).unlink()
        except OSError as error:
            raise self._explain(error, path) from error

    def _explain(self, error: OSError, path: str) -> StorageError:
        where = f"{self.url}/{path}"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return MissingObjectError(f"{where} does not exist. Check the path.")
        if isinstance(error, FileExistsError):
            return StorageError(
                f"{where} already exists and is not overwritten. Choose another root, or delete it first."
            )
        return StorageError(f"{where}: {error.strerror or error}. Check the permissions and the disk.")


def open_store(url: str, *, timeout: float = 120.0) -> Store:
    """The objects under a local folder or an object-store prefix. Nothing is contacted yet.

    Args:
        url: local folder, file://, s3://, gs://, az:// or https:// prefix.
        timeout: seconds after which a request that keeps failing is given up.
    """
    if not is_remote(url):
        return FolderStore(local_path(url.rstrip("/") or "/"))
    from crisp_stream.storage.object_store import ObjectStore

    return ObjectStore(url.rstrip("/"), timeout=timeout)


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """One file behind an input, as the listing describes it."""

    url: str
    path: str
    """Below the named folder, the prefix or the part of a glob without signs; the file's own name when it was named."""
    num_bytes: int
    version: str
    """Differs when the content was replaced: the modification time in ns, or the entity tag of an object store."""


def list_inputs(url: str) -> list[str]:
    """The files that an input names: a file, a folder or prefix (all files below it), or a glob; sorted.

    Raises:
        InputError: nothing matches.
        StorageError: the storage cannot be listed.
    """
    return [file.url for file in describe_inputs(url)]


def describe_inputs(url: str) -> list[ListedFile]:
    """The files that an input names, with size and version, from one listing whatever their number.

    Raises:
        InputError: nothing matches.
        StorageError: the storage cannot be listed.
    """
    found = _list_remote(url) if is_remote(url) else _list_local(str(local_path(url)))
    if not found:
        raise InputError(f"{url} matches no file. Give a file, a folder, a prefix or a glob that exists.")
    return found


def _list_local(path: str) -> list[ListedFile]:
    if Path(path).is_dir():
        below = (file for file in Path(path).rglob("*") if file.is_file())
        return _describe_local([str(file) for file in below if not _is_hidden(file.relative_to(path))], path)
    if Path(path).is_file():
        return _describe_local([path], str(Path(path).parent))
    fixed = path[: min((path.index(sign) for sign in GLOB_SIGNS if sign in path), default=0)].rpartition("/")
    found = [match for match in glob.glob(path, recursive=True) if Path(match).is_file()]  # noqa: PTH207
    return _describe_local(found, fixed[0] + fixed[1] or ".")


def _describe_local(files: list[str], folder: str) -> list[ListedFile]:
    listed: list[ListedFile] = []
    for file in sorted(files):
        try:
            status = Path(file).stat()
        except OSError as error:
            raise StorageError(f"{file}: {error.strerror}. Check the path and the permissions.") from error
        path = Path(file).relative_to(folder).as_posix()
        listed.append(ListedFile(url=file, path=path, num_bytes=status.st_size, version=str(status.st_mtime_ns)))
    return listed


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _list_remote(url: str) -> list[ListedFile]:
    parent, _, name = url.rstrip("/").rpartition("/")
    if any(sign in url for sign in GLOB_SIGNS):
        fixed = url[: min(url.index(sign) for sign in GLOB_SIGNS if sign in url)].rpartition("/")[0]
        patterns = url.removeprefix(f"{fixed}/").split("/")
        return [file for file in _describe_remote(fixed) if _matches(file.path.split("/"), patterns)]
    if name and parent.count("/") >= 2 and not url.endswith("/"):
        with contextlib.suppress(MissingObjectError):
            return _describe_remote(parent, name=name)
    return [file for file in _describe_remote(url.rstrip("/")) if not _is_hidden(Path(file.path))]


def _matches(names: list[str], patterns: list[str]) -> bool:
    """As `glob` matches a path: `*` within one name, `**` any number of folders, neither hidden ones."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        num_open = next((index for index, name in enumerate(names) if name.startswith(".")), len(names))
        return any(_matches(names[skipped:], patterns[1:]) for skipped in range(num_open + 1))
    if not names or (names[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    return fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _describe_remote(prefix: str, *, name: str | None = None) -> list[ListedFile]:
    from crisp_stream.storage.object_store import ObjectStore

    store = ObjectStore(prefix, timeout=120.0)
    described = store.describe_all() if name is None else [store.describe(name)]
    return [
        ListedFile(url=f"{prefix}/{path}", path=path, num_bytes=num_bytes, version=version)
        for path, num_bytes, version in described
    ]


def input_bytes(url: str) -> int:
    """Size of one input file in bytes. Raises StorageError."""
    parent, name = _split(url)
    return open_store(parent).object_bytes(name)


def open_input(url: str) -> IO[bytes]:
    """Open one input file for streaming, seekable reads; the caller closes it. Raises StorageError."""
    if not is_remote(url):
        try:
            return local_path(url).open("rb")
        except OSError as error:
            raise StorageError(f"{url}: {error.strerror}. Check the path and the permissions.") from error
    from crisp_stream.storage.object_store import ObjectStore

    parent, name = _split(url)
    return ObjectStore(parent, timeout=120.0).open(name)


def _split(url: str) -> tuple[str, str]:
    if is_remote(url):
        parent, _, name = url.rpartition("/")
        return parent, name
    path = local_path(url)
    return str(path.parent), path.name
