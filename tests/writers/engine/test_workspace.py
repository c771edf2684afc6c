from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import MissingObjectError
from crisp_stream.writers.engine import workspace as workspaces
from crisp_stream.writers.engine.workspace import Workspace, delete_abandoned_scratch
from tests.support.seaweed import S3Server

Place = Callable[[], Workspace]


@pytest.fixture(params=["folder", "s3"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    """An empty one, in a folder and on an object store."""
    if request.param == "folder":
        return Workspace(tmp_path / "work")
    server: S3Server = request.getfixturevalue("s3")
    return Workspace(server.fresh_prefix("work"))


def test_files_are_read_as_they_were_written_in_any_process(workspace: Workspace) -> None:
    workspace.write("a/one.json", b"{}")
    with workspace.created("a/two.bin") as path:
        path.write_bytes(b"two")
    elsewhere = pickle.loads(pickle.dumps(workspace))
    assert elsewhere.read("a/one.json") == b"{}"
    with elsewhere.opened("a/two.bin") as path:
        assert path.read_bytes() == b"two"
    assert elsewhere.sizes("a") == {"a/one.json": 2, "a/two.bin": 3}
    assert elsewhere.sizes("b") == {}
    listed = elsewhere.listed("a")
    assert [listed.get(name) for name in ("a/one.json", "a/two.bin", "a/three", "")] == [2, 3, None, None]
    assert "a/one.json" in listed
    assert (len(listed), len(elsewhere.listed("b"))) == (2, 0)
    assert elsewhere.read_if_there("a/three") is None
    with pytest.raises(MissingObjectError):
        elsewhere.read("a/three")


@pytest.mark.parametrize("size", [1, 9, 10, 11, 20, 25])
def test_a_large_file_is_brought_piece_by_piece(
    workspace: Workspace, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "_COPIED_BYTES", 10)
    workspace.write("a/file", bytes(range(size)))
    with workspace.opened("a/file") as path:
        assert path.read_bytes() == bytes(range(size))


def test_a_file_whose_writing_failed_is_not_there(workspace: Workspace, tmp_path: Path) -> None:
    def write_half() -> None:
        with workspace.created("a/broken.bin") as path:
            path.write_bytes(b"half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert workspace.sizes("a") == {}
    assert list(tmp_path.rglob("*.tmp")) == []


def test_what_a_killed_process_left_unfinished_is_not_listed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.write("a/one.json", b"{}")
    (tmp_path / "a" / "two.bin.0123456789ab.tmp").write_bytes(b"half")
    assert list(workspace.sizes("a")) == ["a/one.json"]


@pytest.mark.parametrize("shape", [(7,), (5, 3), (0, 3), (130, 2, 2)])
def test_an_array_that_is_written_in_pieces_has_the_bytes_of_the_whole(
    workspace: Workspace, shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    workspace.save_array("a/whole.npy", array)
    workspace.save_rows("a/pieces.npy", iter([array[:3], array[3:3], array[3:]]))
    assert workspace.read("a/pieces.npy") == workspace.read("a/whole.npy")


@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 2, 2)])
def test_rows_of_an_array_are_read_by_range(workspace: Workspace, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    workspace.save_array("a/array.npy", array)
    np.testing.assert_array_equal(workspace.load_array("a/array.npy"), array)
    stored = workspace.array("a/array.npy")
    assert (stored.shape, stored.dtype, len(stored)) == (array.shape, array.dtype, len(array))
    for start, stop in ((0, len(array)), (1, 3), (3, 4)):
        np.testing.assert_array_equal(stored.rows(start, stop), array[start:stop])


def test_kept_files_stand_in_one_folder_and_are_copied_once(workspace: Workspace) -> None:
    for name in ("one", "two"):
        workspace.write(f"model/{name}", name.encode())
    first = workspace.kept("model/one", "model/two")
    assert [path.read_bytes() for path in first] == [b"one", b"two"]
    assert len({path.parent for path in first}) == 1
    assert workspace.kept("model/one", "model/two") == first


def test_the_scratch_of_a_killed_process_is_deleted_by_another_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys\nfrom crisp_stream.writers.engine.workspace import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'copy').write_bytes(b'x')\n    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    folders = []
    for process in processes:
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    delete_abandoned_scratch()
    assert [folder.exists() for folder in folders] == [False, True]
    processes[1].communicate()
    assert list(tmp_path.iterdir()) == []
