"""Local files below a folder or behind a glob: links followed once, and nothing passed over without a word.

Hidden names (`.x`) and those that begin with `_`, such as `_temporary/` and `_SUCCESS`, are not read, as Hadoop, Spark
and pyarrow have it, unless the input names them. Linked folders are followed after all others, and a folder that was
read is not read again, whatever its name: so links cannot make a loop, and of two names of a folder the real one
counts. What cannot be read, or is a link to nothing, is an error or, on request, left out; files that a pipe or a
device stands for are left out.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from crisp_stream.errors import InputError, StorageError

GLOB_SIGNS = "*?["
HIDDEN = "hidden or temporary name (. or _)"
AGAIN = "folder that is read under another name"
DANGLING = "link to nothing"
UNREADABLE = "cannot be read"
SPECIAL = "neither a file nor a folder"
FOLDER_IN_GLOB = "folder that a glob names"
LEAVE_OUT = "or leave out what cannot be read (write, append: --skip-corrupt)"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith((".", "_"))


def matches(name: str, pattern: str) -> bool:
    """As `glob` matches a name, but hidden names only where the pattern begins as they do."""
    return fnmatchcase(name, pattern) and not (is_hidden(name) and name[0] != pattern[0])


@dataclass(kw_only=True)
class LocalFiles:
    """Files that were found below a folder or behind a glob, and what was passed over."""

    leave_out: bool
    """Leave out what cannot be read and links to nothing, instead of an error."""
    files: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    """Path to reason."""

    def add_folder(self, folder: str) -> None:
        """Take all files below a folder. Raises InputError, StorageError."""
        for _, entries in self._folders(folder):
            for entry in entries:
                if not is_hidden(entry.name) and not _is_folder(entry):
                    self.add_file(entry.path)

    def add_glob(self, pattern: str) -> None:
        """Take all files that a glob names; `**` is any number of folders. Raises InputError, StorageError."""
        parts = pattern.split("/")
        number = next(at for at, part in enumerate(parts) if _has_signs(part))
        folder = "/".join(parts[:number]) or ("/" if pattern.startswith("/") else ".")
        if Path(folder).is_dir():
            self._match(folder, parts[number:])

    def _match(self, folder: str, patterns: list[str], *, deep: bool = False) -> None:
        head, rest = patterns[0], patterns[1:]
        if head == "**":
            for inner, _ in self._folders(folder):
                self._match(inner, rest or ["*"], deep=True)
        elif not _has_signs(head):
            if os.path.lexists(path := os.path.join(folder, head)):  # noqa: PTH118 (paths as they were written)
                self._match_rest(path, rest, deep)
        else:
            for entry in self._entries(folder):
                if matches(entry.name, head):
                    self._match_rest(entry.path, rest, deep)
                elif fnmatchcase(entry.name, head):
                    self.skipped[entry.path] = HIDDEN

    def _match_rest(self, path: str, patterns: list[str], deep: bool) -> None:
        is_folder = Path(path).is_dir()
        if patterns and is_folder:
            self._match(path, patterns, deep=deep)
        elif is_folder and not deep:
            self.skipped[path] = FOLDER_IN_GLOB
        elif not is_folder and not patterns:
            self.add_file(path)

    def _folders(self, top: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
        """A folder and all below it that are not hidden, each once with what it holds: those behind links at last."""
        seen: set[tuple[int, int]] = set()
        folders, links = [top], list[str]()
        while folders or links:
            folder = folders.pop() if folders else heapq.heappop(links)
            try:
                status = os.stat(folder)  # noqa: PTH116 (thousands of them)
            except OSError as error:
                self._unreadable(folder, error)
                continue
            if (key := (status.st_dev, status.st_ino)) in seen:
                self.skipped[folder] = AGAIN
                continue
            seen.add(key)
            entries = self._entries(folder)
            yield folder, entries
            for entry in entries:
                if is_hidden(entry.name):
                    self.skipped[entry.path] = HIDDEN
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif _is_folder(entry):
                    heapq.heappush(links, entry.path)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._unreadable(folder, error)
            return []

    def add_file(self, path: str) -> None:
        """Take one file. Raises InputError, StorageError."""
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116
        except OSError as error:
            self._unreadable(path, error)
            return
        if not stat.S_ISREG(mode):
            self.skipped[path] = SPECIAL
        elif os.access(path, os.R_OK):
            self.files.add(path)
        else:
            self._unreadable(path, PermissionError(0, "Permission denied"))

    def _unreadable(self, path: str, error: OSError) -> None:
        dangling = os.path.islink(path) and isinstance(error, FileNotFoundError)  # noqa: PTH114
        if self.leave_out:
            self.skipped[path] = DANGLING if dangling else UNREADABLE
            return
        if dangling:
            raise InputError(
                f"{path}: is a link to {os.readlink(path)}, which is not there. Mend or remove it, {LEAVE_OUT}."  # noqa: PTH115
            )
        raise StorageError(f"{path}: {error.strerror}. Check the path and the permissions, {LEAVE_OUT}.") from error


def _has_signs(part: str) -> bool:
    return any(sign in part for sign in GLOB_SIGNS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round in a circle
        return False
