"""A Ray cluster whose machines come and go: writes go on with what is there, and give the same bytes.

All tests share a cluster of a head without CPUs; each adds the machines that it needs, and takes them away.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crisp_stream.writers.engine import ray_engine
from crisp_stream.writers.engine.ray_engine import RayEngine
from crisp_stream.writers.engine.tasks import Kind, Record, Runner, Task
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.write import WriteReport, write
from tests.support.written_dataset import files_below, small_options

PATIENCE = 300.0
"""Seconds for what takes some on a quiet machine: others may use it, too."""


def quiet(line: str) -> None:
    """Takes log lines."""


def comes_true(is_so: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    """Say whether something is so within some seconds."""
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.05)
    return bool(is_so())


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


class Machines:
    """The cluster, and the machines that a test has added."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._added: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return self._cluster.address

    def add(self, cpus: int, gpus: int = 0) -> str:
        """Add a machine; its id."""
        node = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=128 << 20)
        self._added[node.node_id] = node
        return node.node_id

    def kill(self, machine: str) -> None:
        """`kill -9` of the process that is a machine for Ray, and of its workers, which would finish their tasks."""
        raylet = self._added[machine].all_processes["raylet"][0].process.pid
        for pid in [raylet, *children(raylet)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def add_and_lose(self, is_used: Callable[[str], bool]) -> str:
        """Add a machine, wait until it is used, and lose it; its id."""
        machine = self.add(1)
        assert comes_true(lambda: is_used(machine))
        self.kill(machine)
        return machine

    def remove_all(self) -> None:
        for node in self._added.values():
            self._cluster.remove_node(node, allow_graceful=False)
        self._added.clear()
        assert comes_true(lambda: not self.resources("CPU", available=False))

    def resources(self, name: str, *, available: bool) -> float:
        state = self._cluster.global_state
        return (state.available_resources() if available else state.cluster_resources()).get(name, 0)

    def living_actors(self) -> list[Any]:
        table = self._cluster.global_state.actor_table(None)
        return [actor for actor in table.values() if actor["State"] != "DEAD"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")  # 60: too few on a busy machine
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 128 << 20})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def machines(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setattr(ray_engine, "LOOK_SECONDS", 1.0)
    machines = Machines(cluster)
    yield machines
    machines.remove_all()


@dataclass(frozen=True, kw_only=True)
class Meeting(Task):
    """Notes where it runs, and waits until as many tasks of its stage as `together` have begun."""

    stage: ClassVar[str] = "meeting"

    together: int

    def settings(self) -> Any:
        return self.together

    @property
    def marks(self) -> Path:
        return Path(self.workspace.url) / "marks"

    def has_run_on(self, machine: str) -> bool:
        return any(path.read_text() == machine for path in self.marks.iterdir())

    def make(self) -> Record:
        import ray

        machine = ray.get_runtime_context().get_node_id()
        (self.marks / f"{self.number}-{os.getpid()}").write_text(machine)
        met = comes_true(lambda: len({path.name.partition("-")[0] for path in self.marks.iterdir()}) >= self.together)
        return {"met": met, "machine": machine}


def meetings(folder: Path, count: int, together: int) -> list[Meeting]:
    tasks = [
        Meeting(workspace=Workspace(folder), number=number, inputs=(), together=together) for number in range(count)
    ]
    tasks[0].marks.mkdir(parents=True)
    return tasks


@pytest.mark.parametrize("kind", ["light", "encoder"])
def test_machines_that_join_are_used_and_tasks_outlive_more_of_them_than_processes(
    kind: Kind, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "PROCESS_LOSSES", 1)
    tasks = meetings(tmp_path, 6, together=4)
    engine = RayEngine(address=machines.address)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(lambda: dict(engine.run(tasks, kind=kind, num_tasks=len(tasks))))
        try:
            lost = [machines.add_and_lose(tasks[0].has_run_on) for _ in range(3)]
            machines.add(4)
            records = running.result(timeout=PATIENCE)
        finally:
            engine.close()
    assert len(records) == 6
    assert all(record["met"] for record in records.values())
    assert not {record["machine"] for record in records.values()} & set(lost)


_DRIVER = """
import json, sys
from crisp_stream.writers.write import write
from tests.support.written_dataset import small_options
write(small_options(**json.loads(sys.argv[1])), log=lambda line: None)
"""


def test_a_write_outlives_its_driver_and_a_machine_with_encoders(
    machines: Machines, written: tuple[Path, WriteReport], text_file: Path, tmp_path: Path
) -> None:
    doomed = machines.add(1)
    machines.add(1)  # on which the write goes on
    given = {"out": str(tmp_path / "out"), "work": str(tmp_path / "work")}
    chosen = {**given, "engine": "ray", "address": machines.address, "processes": None}
    embedded = tmp_path / "work" / "embeddings"

    def num_embedded() -> int:
        return len(list(embedded.glob("*.json")))

    command = [sys.executable, "-c", _DRIVER, json.dumps({"text_file": str(text_file), **chosen})]
    with subprocess.Popen(command) as driver:
        assert comes_true(lambda: num_embedded() >= 2 or driver.poll() is not None, 2 * PATIENCE)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    assert comes_true(lambda: not machines.living_actors())
    assert comes_true(lambda: machines.resources("CPU", available=True) == 2)
    before = num_embedded()
    killed = threading.Event()

    def kill_in_the_middle() -> None:
        if comes_true(lambda: num_embedded() > before, 2 * PATIENCE):
            machines.kill(doomed)
            killed.set()

    thread = threading.Thread(target=kill_in_the_middle)
    thread.start()
    lines: list[str] = []
    try:
        write(small_options(text_file, **chosen), log=lines.append)
    finally:
        thread.join()
    assert killed.is_set()
    assert any(line.startswith(f"embeddings: {before} of ") for line in lines), lines
    assert files_below(tmp_path / "out") == files_below(written[0])


@dataclass(frozen=True, kw_only=True)
class Noted(Task):
    """Notes how many tasks of each stage run on its machine; some wait for others there."""

    other: ClassVar[str] = ""

    def settings(self) -> Any:
        return None

    def may_end(self, alike: int, beside: int) -> bool:
        """Say whether it has seen enough: tasks of its own stage, itself included, and of the other one."""
        raise NotImplementedError

    def mark(self, name: str) -> Path:
        return Path(self.workspace.url) / name

    def make(self) -> Record:
        import ray

        running = self.mark("running") / ray.get_runtime_context().get_node_id()
        running.mkdir(parents=True, exist_ok=True)
        mine = running / f"{self.stage}-{self.number}"
        mine.touch()
        begun = time.monotonic()
        most_alike = most_beside = 0
        ended = False
        while not ended and time.monotonic() < begun + PATIENCE:
            time.sleep(0.02)
            names = [path.name for path in running.iterdir()]
            alike, beside = (sum(name.startswith(stage) for name in names) for stage in (self.stage, self.other))
            most_alike, most_beside = max(most_alike, alike), max(most_beside, beside)
            ended = self.may_end(alike, beside) and time.monotonic() > begun + 0.5
        mine.unlink()
        return {"most_alike": most_alike, "most_beside": most_beside, "ended": ended}


@dataclass(frozen=True, kw_only=True)
class Cut(Noted):
    """Takes the place of cutting windows; waits for an encoder, and later for the one in the place of a lost one."""

    stage: ClassVar[str] = "cut"
    other: ClassVar[str] = "embed"

    def may_end(self, alike: int, beside: int) -> bool:
        return self.number < 4 or (beside > 0 if self.number < 10 else self.mark("replaced").exists())


@dataclass(frozen=True, kw_only=True)
class Embed(Noted):
    """Takes the place of embedding; one kills its process, another waits until two encoders are there again."""

    stage: ClassVar[str] = "embed"
    other: ClassVar[str] = "cut"

    @property
    def kind(self) -> Kind:
        return "encoder"

    def may_end(self, alike: int, beside: int) -> bool:
        if self.number == 5 and self.mark("died").exists() and alike == 2:
            self.mark("replaced").touch()
        return beside > 0 if self.number < 2 else self.number != 5 or self.mark("replaced").exists()

    def make(self) -> Record:
        if self.number == 2 and not self.mark("died").exists():
            self.mark("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make()


@pytest.mark.parametrize(("cpus", "cutting"), [(1, 1), (4, 3)])
def test_a_machine_with_a_gpu_cuts_windows_while_it_embeds(
    cpus: int, cutting: int, machines: Machines, tmp_path: Path
) -> None:
    machines.add(cpus, gpus=1)
    engine = RayEngine(address=machines.address)
    workspace, count = Workspace(tmp_path), 16
    cut = [Cut(workspace=workspace, number=number, inputs=()) for number in range(count)]
    embed = [Embed(workspace=workspace, number=number, inputs=()) for number in range(count)]
    try:
        assert engine.has_gpus
        of_cut: list[Record] = []
        of_embedded: list[Record] = []
        Runner(engine, workspace, log=quiet).run_both(
            cut,
            embed,
            lambda _, record: of_cut.append(record),
            lambda _, record: of_embedded.append(record),
            unit="windows",
        )
    finally:
        engine.close()
    assert len(of_cut) == len(of_embedded) == count
    assert all(record["ended"] for record in of_cut + of_embedded)
    assert max(record["most_beside"] for record in of_embedded) == cutting
    assert max(record["most_alike"] for record in of_embedded) == 2
