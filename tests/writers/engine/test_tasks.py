from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from crisp_stream.errors import StorageError
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import (
    Kind,
    PlanEnds,
    Record,
    Runner,
    Task,
    execute,
    file_sizes,
    fingerprint,
    finished,
)
from crisp_stream.writers.engine.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Squares(Task):
    """Writes the squares below a number; the least task there can be."""

    stage: ClassVar[str] = "squares"

    length: int
    pace: float = 1.0

    def settings(self) -> Any:
        return self.length

    def make(self) -> Record:
        self.workspace.save_array(self.file("npy"), np.arange(self.length) ** 2)
        return {"num_units": self.length, "files": file_sizes(self, self.file("npy"))}


def squares(folder: Path, count: int = 3) -> list[Squares]:
    return [Squares(workspace=Workspace(folder), number=n, inputs=(), length=10 + n) for n in range(count)]


def quiet(line: str) -> None:
    """Takes log lines."""


def test_a_fingerprint_changes_with_inputs_settings_and_number_and_with_nothing_else(tmp_path: Path) -> None:
    one = squares(tmp_path)[0]
    same = Squares(workspace=Workspace("elsewhere"), number=0, inputs=(), length=10, pace=2.0)
    assert one.fingerprint == same.fingerprint
    others = [
        Squares(workspace=one.workspace, number=0, inputs=("a",), length=10),
        Squares(workspace=one.workspace, number=0, inputs=(), length=11),
        Squares(workspace=one.workspace, number=1, inputs=(), length=10),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert one.key == f"squares/000000-{one.fingerprint}"
    with pytest.raises(TypeError, match="set has no fingerprint"):
        fingerprint({1})


def test_only_what_is_not_done_runs_and_records_come_in_order(tmp_path: Path) -> None:
    tasks = squares(tmp_path)
    execute(tasks[1])
    lines: list[str] = []
    runner = Runner(LocalEngine(processes=1), tasks[0].workspace, log=lines.append)
    before = (tmp_path / tasks[1].file("npy")).stat().st_mtime_ns
    assert [record["num_units"] for record in runner.run(tasks, unit="numbers")] == [10, 11, 12]
    assert (tmp_path / tasks[1].file("npy")).stat().st_mtime_ns == before
    assert lines[0] == "squares: 1 of 3 tasks were done by an earlier run"
    assert runner.plan == [("squares", 3, 1)]


@pytest.mark.parametrize("damage", ["lost", "cut short", "lost record"])
def test_a_task_whose_files_are_not_whole_is_not_done(damage: str, tmp_path: Path) -> None:
    tasks = squares(tmp_path)
    for task in tasks:
        execute(task)
    path = tmp_path / tasks[2].file("npy")
    if damage == "cut short":
        os.truncate(path, path.stat().st_size - 1)
    else:
        (path if damage == "lost" else tmp_path / tasks[2].record_name).unlink()
    assert sorted(finished(tasks[0].workspace, tasks)) == [0, 1]
    assert finished(tasks[0].workspace, []) == {}


def test_a_plan_ends_at_the_first_stage_with_anything_to_do(tmp_path: Path) -> None:
    tasks = squares(tmp_path)
    execute(tasks[0])
    runner = Runner(None, tasks[0].workspace, log=quiet)
    assert len(runner.run(tasks[:1], unit="numbers")) == 1
    with pytest.raises(PlanEnds):
        runner.run(tasks, unit="numbers")
    assert runner.plan == [("squares", 1, 1), ("squares", 3, 1)]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("131072 requested and 4096 written"),
    ],
)
def test_a_full_disk_is_told_with_the_stage_and_a_remedy(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Workspace, name: str, array: object) -> None:
        raise error

    monkeypatch.setattr(Workspace, "save_array", full)
    [task] = squares(tmp_path, 1)
    with pytest.raises(StorageError, match=r"no room left for squares \(disk full\). Free some space, or name another"):
        execute(task)
    assert finished(task.workspace, [task]) == {}


def test_another_error_of_the_disk_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Workspace, name: str, array: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Workspace, "save_array", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        execute(squares(tmp_path, 1)[0])
    assert not isinstance(caught.value, StorageError)


@dataclass(frozen=True, kw_only=True)
class Halves(Task):
    """Reads what a task of the first stage wrote."""

    stage: ClassVar[str] = "halves"

    of: str

    @property
    def kind(self) -> Kind:
        return "encoder"

    def settings(self) -> Any:
        return self.of

    def make(self) -> Record:
        array = self.workspace.load_array(self.of) // 2
        self.workspace.save_array(self.file("npy"), array)
        return {"num_units": len(array), "files": file_sizes(self, self.file("npy"))}


@pytest.mark.parametrize("done", [(), (0, 2), (0, 1, 2)])
def test_two_stages_at_once_give_what_one_after_the_other_gives(done: tuple[int, ...], tmp_path: Path) -> None:
    first = squares(tmp_path)
    second = [
        Halves(workspace=task.workspace, number=task.number, inputs=(task.fingerprint,), of=task.file("npy"))
        for task in first
    ]
    for number in done:
        execute(first[number])
    if done:
        execute(second[0])
    runner = Runner(LocalEngine(processes=1), first[0].workspace, log=quiet)
    taken: tuple[dict[int, Record], dict[int, Record]] = ({}, {})
    runner.run_both(first, second, taken[0].__setitem__, taken[1].__setitem__, unit="numbers")
    for records in taken:
        assert {number: record["num_units"] for number, record in records.items()} == {0: 10, 1: 11, 2: 12}
    np.testing.assert_array_equal(runner.workspace.load_array(second[2].file("npy")), np.arange(12) ** 2 // 2)
    assert runner.plan == [("squares", 3, len(done)), ("halves", 3, bool(done))]


def test_a_record_is_json_that_anyone_can_read(tmp_path: Path) -> None:
    [task] = squares(tmp_path, 1)
    record = execute(task)
    assert json.loads((tmp_path / task.record_name).read_text()) == record
    assert record["files"] == {task.file("npy"): (tmp_path / task.file("npy")).stat().st_size}
