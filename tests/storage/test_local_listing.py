"""Listing of folders and globs: links, loops, hidden names, and what cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crisp_stream.errors import InputError, StorageError
from crisp_stream.storage.inputs import Listing, list_input
from crisp_stream.storage.local_listing import AGAIN, DANGLING, FOLDER_IN_GLOB, HIDDEN, SPECIAL, UNREADABLE


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def described(listing: Listing) -> tuple[list[str], dict[str, str]]:
    return [file.path for file in listing.files], {one.path: one.reason for one in listing.skipped}


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "elsewhere", "x.txt", "deep/y.txt")
    folder = tree(tmp_path / "in", "a.txt")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "b.txt").symlink_to(elsewhere / "x.txt")
    assert described(list_input(str(folder))) == (["a.txt", "b.txt", "linked/deep/y.txt", "linked/x.txt"], {})
    files, _ = described(list_input(f"{folder}/**/*.txt"))
    assert files == ["a.txt", "b.txt", "linked/deep/y.txt", "linked/x.txt"]


def test_loops_and_second_names_of_a_folder_are_read_once_under_the_real_name(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "z/a.txt", "z/deep/b.txt")
    (folder / "z" / "deep" / "up").symlink_to(folder)
    (folder / "0-first-by-name").symlink_to(folder / "z")
    (folder / "itself").symlink_to(folder / "itself")
    with pytest.raises((InputError, StorageError), match="itself"):
        list_input(str(folder))
    (folder / "itself").unlink()
    expected = ["z/a.txt", "z/deep/b.txt"], {"0-first-by-name": AGAIN, "z/deep/up": AGAIN}
    assert described(list_input(str(folder))) == expected
    assert described(list_input(f"{folder}/**")) == expected
    assert described(list_input(f"{folder}/**/*.txt")) == expected


def test_a_link_to_nothing_is_an_error_or_left_out_on_request(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    for source in (str(folder), f"{folder}/*.txt"):
        with pytest.raises(InputError, match=r"gone\.txt: is a link to .*nowhere, which is not there. Mend .*skip-cor"):
            list_input(source)
        assert described(list_input(source, leave_out=True)) == (["a.txt"], {"gone.txt": DANGLING})
    with pytest.raises(InputError, match=r"gone\.txt: is a link to .*nowhere"):
        list_input(str(folder / "gone.txt"))
    assert described(list_input(str(folder / "gone.txt"), leave_out=True)) == ([], {"gone.txt": DANGLING})
    assert described(list_input(f"{folder}/a*")) == (["a.txt"], {})  # which does not name it


def test_hidden_and_temporary_names_are_read_only_where_they_are_named(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.txt", "_SUCCESS", "_temporary/0/b.txt", ".git/c.txt", "sub/.d.txt")
    hidden = {".git": HIDDEN, "_SUCCESS": HIDDEN, "_temporary": HIDDEN, "sub/.d.txt": HIDDEN}
    assert described(list_input(str(folder))) == (["a.txt"], hidden)
    assert described(list_input(f"{folder}/_temporary")) == (["0/b.txt"], {})
    assert described(list_input(f"{folder}/_temporary/0/b.txt")) == (["b.txt"], {})
    assert described(list_input(f"{folder}/_*/*/*.txt")) == (["_temporary/0/b.txt"], {})
    with pytest.raises(InputError, match=r"matches no file that is read, only 1 that are not, such as \.d\.txt"):
        list_input(f"{folder}/sub")


def test_a_folder_that_a_glob_names_is_not_passed_over_without_a_word(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.txt", "sub/b.txt")
    assert described(list_input(f"{folder}/*")) == (["a.txt"], {"sub": FOLDER_IN_GLOB})
    assert described(list_input(f"{folder}/**/*")) == (["a.txt", "sub/b.txt"], {})


def test_pipes_and_the_like_are_left_out(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", "a.txt")
    os.mkfifo(folder / "pipe.txt")
    assert described(list_input(str(folder))) == (["a.txt"], {"pipe.txt": SPECIAL})


_AS_NOBODY = """
import os, sys
from crisp_stream.errors import CrispError
from crisp_stream.storage.inputs import list_input
if os.geteuid() == 0:
    os.setuid(65534)  # nobody
try:
    listing = list_input(sys.argv[1], leave_out=sys.argv[2] == "yes")
    print([file.path for file in listing.files], [(one.path, one.reason) for one in listing.skipped])
except CrispError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that everyone can reach, with a file and a folder in it that nobody may read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = tree(Path(name), "a.txt", "closed/b.txt", "closed.txt")
        folder.chmod(0o755)
        (folder / "closed").chmod(0)
        (folder / "closed.txt").chmod(0)
        yield folder
        (folder / "closed").chmod(0o755)


def test_what_may_not_be_read_is_an_error_or_left_out_on_request(closed: Path) -> None:
    def listed(source: str, leave_out: str) -> str:
        command = [sys.executable, "-c", _AS_NOBODY, source, leave_out]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    expected = f"['a.txt'] [('closed', '{UNREADABLE}'), ('closed.txt', '{UNREADABLE}')]\n"
    for source in (f"{closed}", f"{closed}/**/*.txt"):
        refused = listed(source, "no")
        assert refused.startswith(f"StorageError {closed}/closed")
        assert "Permission denied. Check the path and the permissions, or leave out what cannot be read" in refused
        assert listed(source, "yes") == expected
