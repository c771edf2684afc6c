"""Input files behind names, folders, prefixes and globs, local or in an object store."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from crisp_stream.errors import InputError, MissingObjectError, StorageError
from crisp_stream.storage.local_listing import DANGLING, GLOB_SIGNS, HIDDEN, UNREADABLE, LocalFiles, is_hidden, matches
from crisp_stream.storage.store import is_remote, local_path


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """One file behind an input, as the listing describes it."""

    url: str
    path: str
    """Path below the named folder, the prefix or the part of a glob without signs; the name of a file named itself.
    Bytes of a local name that are not UTF-8 are written as `\\xe9`."""
    num_bytes: int
    version: str
    """Mark that changes with the content: the modification time in ns, or the entity tag of an object store."""


@dataclass(frozen=True, kw_only=True)
class SkippedPath:
    """A file or folder behind an input that is not read."""

    path: str
    """See `ListedFile`."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What an input names."""

    files: list[ListedFile]
    """Sorted by path."""
    skipped: list[SkippedPath]
    """Sorted by path; of a hidden folder only the folder."""
    names_a_file: bool
    """Whether the input is the name of one file."""


def list_input(url: str, *, leave_out: bool = False) -> Listing:
    """List the files that an input names, from one listing whatever their number.

    An input is a file, a folder or prefix (all files below it), or a glob.

    Args:
        url: the input.
        leave_out: leave out what cannot be read and links to nothing, instead of an error.

    Raises:
        InputError: nothing matches, or a link to nothing.
        StorageError: a folder cannot be listed, or a file cannot be read.
    """
    listing = _list_remote(url) if is_remote(url) else _list_local(str(local_path(url)), leave_out)
    if not listing.files and any(one.reason in (UNREADABLE, DANGLING) for one in listing.skipped):
        return listing  # left out on request
    if not listing.files and listing.skipped:
        first = listing.skipped[0]
        raise InputError(
            f"{url} matches no file that is read, only {len(listing.skipped):,} that are not, such as {first.path}: "
            f"{first.reason}. Name such a file or folder itself to have it read."
        )
    if not listing.files:
        raise InputError(f"{url} matches no file. Give a file, a folder, a prefix or a glob that exists.")
    return listing


def describe_inputs(url: str) -> list[ListedFile]:
    """The files of `list_input`. Raises as it does."""
    return list_input(url).files


def _list_local(path: str, leave_out: bool) -> Listing:
    found, below = LocalFiles(leave_out=leave_out), path
    names_a_file = Path(path).is_file() or (Path(path).is_symlink() and not Path(path).exists())
    if names_a_file:
        below = str(Path(path).parent)
        found.add_file(path)
    elif Path(path).is_dir():
        found.add_folder(path)
    elif any(sign in path for sign in GLOB_SIGNS):
        fixed = path[: min(path.index(sign) for sign in GLOB_SIGNS if sign in path)].rpartition("/")
        below = fixed[0] + fixed[1] or "."
        found.add_glob(path)
    skipped = [SkippedPath(path=_relative(name, below), reason=reason) for name, reason in found.skipped.items()]
    return Listing(
        files=[_described(file, below) for file in sorted(found.files)],
        skipped=sorted(skipped, key=lambda one: one.path),
        names_a_file=names_a_file,
    )


def _described(file: str, folder: str) -> ListedFile:
    num_bytes, version = _local_state(file)
    return ListedFile(url=file, path=_relative(file, folder), num_bytes=num_bytes, version=version)


def _relative(file: str, folder: str) -> str:
    return printable(Path(file).relative_to(folder).as_posix())


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold, such as bytes of a file name in another encoding, written as `\\xe9`."""
    if text.isascii():
        return text
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half of a pair, which stands for no byte
        return text.encode(errors="backslashreplace").decode()


def _local_state(file: str) -> tuple[int, str]:
    """(bytes, version). Raises StorageError."""
    try:
        status = Path(file).stat()
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}. Check the path and the permissions.") from error
    return status.st_size, str(status.st_mtime_ns)


def require_unchanged(url: str, num_bytes: int | None, version: str) -> None:
    """Look at a file once more, when it was read to its end: it must be the one that was listed.

    Without `num_bytes` only the version is compared.

    Raises:
        InputError: its size or its version is another. StorageError: it is gone, or the storage failed.
    """
    if is_remote(url):
        from crisp_stream.storage.object_store import ObjectStore

        parent, _, name = url.rpartition("/")
        _, now_bytes, now_version = ObjectStore(parent, timeout=120.0).describe(name)
    else:
        now_bytes, now_version = _local_state(url)
    if num_bytes is None:
        num_bytes = now_bytes
    if (now_bytes, now_version) == (num_bytes, version):
        return
    got = f"{num_bytes:,} bytes then and {now_bytes:,} now" if now_bytes != num_bytes else "another version of its size"
    raise InputError(
        f"{url}: must stay as it was when it was listed until it is read, got {got}. Run the command again when nobody "
        "writes to it."
    )


def _list_remote(url: str) -> Listing:
    parent, _, name = url.rstrip("/").rpartition("/")
    if any(sign in url for sign in GLOB_SIGNS):
        fixed = url[: min(url.index(sign) for sign in GLOB_SIGNS if sign in url)].rpartition("/")[0]
        patterns = url.removeprefix(f"{fixed}/").split("/")
        listed = _describe_remote(fixed)
        files = [file for file in listed if _matches(file.path.split("/"), patterns)]
        others = {file.path for file in listed} - {file.path for file in files}
        hidden = {path for path in others if _matches(path.split("/"), patterns, hidden=True)}
        return _remote_listing(files, hidden)
    if name and parent.count("/") >= 2 and not url.endswith("/"):
        with contextlib.suppress(MissingObjectError):
            return Listing(files=_describe_remote(parent, name=name), skipped=[], names_a_file=True)
    listed = _describe_remote(url.rstrip("/"))
    hidden = {file.path for file in listed if any(map(is_hidden, file.path.split("/")))}
    return _remote_listing([file for file in listed if file.path not in hidden], hidden)


def _remote_listing(files: list[ListedFile], hidden: set[str]) -> Listing:
    """A listing that names, of hidden paths, the first hidden folder or file, as a local one does."""
    tops = {_hidden_top(path) for path in hidden}
    skipped = [SkippedPath(path=path, reason=HIDDEN) for path in sorted(tops)]
    return Listing(files=files, skipped=skipped, names_a_file=False)


def _hidden_top(path: str) -> str:
    names = path.split("/")
    return "/".join(names[: next(at for at, name in enumerate(names) if is_hidden(name)) + 1])


def _matches(names: list[str], patterns: list[str], *, hidden: bool = False) -> bool:
    """As `glob` matches a path: `*` within one name, `**` any number of folders; neither hidden ones, unless asked."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        rest = patterns[1:] or ["*"]
        closed = (at for at, name in enumerate(names) if is_hidden(name) and not hidden)
        num_open = next(closed, len(names))
        return any(_matches(names[skipped:], rest, hidden=hidden) for skipped in range(num_open + 1))
    if not names or not (fnmatchcase(names[0], patterns[0]) if hidden else matches(names[0], patterns[0])):
        return False
    return _matches(names[1:], patterns[1:], hidden=hidden)


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
