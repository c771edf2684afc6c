"""Input files behind names, folders, prefixes and globs, local or in an object store."""

from __future__ import annotations

import contextlib
import glob
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from crisp_stream.errors import InputError, MissingObjectError, StorageError
from crisp_stream.storage.store import is_remote, local_path

GLOB_SIGNS = "*?["


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """One file behind an input, as the listing describes it."""

    url: str
    path: str
    """Path below the named folder, the prefix or the part of a glob without signs; the name of a file named itself."""
    num_bytes: int
    version: str
    """Mark that changes with the content: the modification time in ns, or the entity tag of an object store."""


def describe_inputs(url: str) -> list[ListedFile]:
    """List the files that an input names, sorted by path, from one listing whatever their number.

    An input is a file, a folder or prefix (all files below it), or a glob.

    Raises:
        InputError: nothing matches.
        StorageError: the storage cannot be listed.
    """
    files = _list_remote(url) if is_remote(url) else _list_local(str(local_path(url)))
    if not files:
        raise InputError(f"{url} matches no file. Give a file, a folder, a prefix or a glob that exists.")
    return files


def _list_local(path: str) -> list[ListedFile]:
    if Path(path).is_dir():
        below = (file for file in Path(path).rglob("*") if file.is_file())
        return _describe_local([str(file) for file in below if not _is_hidden(file.relative_to(path))], path)
    if Path(path).is_file():
        return _describe_local([path], str(Path(path).parent))
    fixed = path[: min((path.index(sign) for sign in GLOB_SIGNS if sign in path), default=0)].rpartition("/")
    files = [match for match in glob.glob(path, recursive=True) if Path(match).is_file()]  # noqa: PTH207
    return _describe_local(files, fixed[0] + fixed[1] or ".")


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


def open_input(url: str) -> IO[bytes]:
    """Open one input file for streaming, seekable reads; the caller closes it. Raises StorageError."""
    if not is_remote(url):
        try:
            return local_path(url).open("rb")
        except OSError as error:
            raise StorageError(f"{url}: {error.strerror}. Check the path and the permissions.") from error
    from crisp_stream.storage.object_store import ObjectStore

    parent, _, name = url.rpartition("/")
    return ObjectStore(parent, timeout=120.0).open(name)
