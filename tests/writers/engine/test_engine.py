"""Tasks on local processes and on Ray: the same outcomes, errors that come through, and losses that do not matter."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crisp_stream.errors import CrispError, InputError, StorageError
from crisp_stream.storage.store import open_store
from crisp_stream.writers.engine.engine import LocalEngine, RayEngine, open_engine
from crisp_stream.writers.engine.tasks import Kind, Record, Runner, Task
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.write import WriteReport, write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import files_below, small_options

MB = 1 << 20


def quiet(line: str) -> None:
    """Takes log lines."""


@dataclass(frozen=True, kw_only=True)
class Doubled(Task):
    """Doubles its number; dies `deaths` times before, by SIGKILL, or fails with an error."""

    stage: ClassVar[str] = "doubled"

    deaths: int = 0
    error: str | None = None

    def settings(self) -> Any:
        return [self.deaths, self.error]

    def make(self) -> Record:
        marks = Path(f"{self.workspace.url}/deaths")
        marks.mkdir(parents=True, exist_ok=True)
        died = len(list(marks.glob(f"{self.number}-*")))
        if died < self.deaths:
            (marks / f"{self.number}-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error is not None:
            raise StorageError(self.error)
        return {"doubled": 2 * self.number, "pid": os.getpid()}


def doubled(folder: Path, count: int, **of_third: Any) -> list[Doubled]:
    """Tasks of which the third dies or fails."""
    workspace = Workspace(folder)
    return [Doubled(workspace=workspace, number=n, inputs=(), **(of_third if n == 2 else {})) for n in range(count)]


def ends_within(seconds: float, is_over: Any) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_over():
            return True
        time.sleep(0.05)
    return bool(is_over())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes, each with one CPU, on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    store = 128 * MB
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=store)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def ray_engine(cluster: Any) -> Iterator[RayEngine]:
    engine = RayEngine(address=cluster.address)
    yield engine
    engine.close()


KINDS: list[Kind] = ["light", "encoder"]


@pytest.mark.parametrize("kind", KINDS)
def test_ray_runs_every_task_once_on_all_its_nodes(kind: Kind, ray_engine: RayEngine, tmp_path: Path) -> None:
    assert (ray_engine.workers("light"), ray_engine.has_gpus) == (2, False)
    outcomes = dict(ray_engine.run(doubled(tmp_path, 12), kind=kind, num_tasks=12))
    assert {number: record["doubled"] for number, record in outcomes.items()} == {n: 2 * n for n in range(12)}
    assert os.getpid() not in {record["pid"] for record in outcomes.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_ray_worker_costs_nothing_but_its_task(kind: Kind, ray_engine: RayEngine, tmp_path: Path) -> None:
    tasks = doubled(tmp_path, 8, deaths=2)
    outcomes = dict(ray_engine.run(tasks, kind=kind, num_tasks=8))
    assert {number: record["doubled"] for number, record in outcomes.items()} == {n: 2 * n for n in range(8)}
    assert len(list((tmp_path / "deaths").iterdir())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_that_kills_every_worker_ends_the_stage(kind: Kind, ray_engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(CrispError, match=r"a task was lost 5 times .* run the same command again"):
        list(ray_engine.run(doubled(tmp_path, 3, deaths=99), kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_a_task_comes_through_ray_as_it_is(kind: Kind, ray_engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"^bucket: is gone\. Look for it\.$") as caught:
        list(ray_engine.run(doubled(tmp_path, 4, error="bucket: is gone. Look for it."), kind=kind))
    assert type(caught.value) is StorageError


def test_a_ray_cluster_of_two_machines_needs_a_work_place_that_both_reach(
    cluster: Any, text_file: Path, tmp_path: Path
) -> None:
    import ray

    with pytest.raises(InputError, match="work: must be reached by all machines of the Ray cluster"):
        write(small_options(text_file, tmp_path / "out", engine="ray", address=cluster.address), log=quiet)
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_encoders_in_ray_actors_give_the_bytes_of_local_processes(
    cluster: Any, written: tuple[Path, WriteReport], text_file: Path, tmp_path: Path
) -> None:
    import ray

    options = small_options(
        text_file, tmp_path / "out", engine="ray", address=cluster.address, work=str(tmp_path / "work"), processes=2
    )
    write(options, log=quiet)
    assert files_below(tmp_path / "out") == files_below(written[0])
    assert not ray.is_initialized()


def lsi_options(text_file: Path, out: Path | str, **changes: object) -> Any:
    return small_options(text_file, out, encoder="lsi", max_length=None, depth=2, part_characters=4_000, **changes)


def test_a_write_over_s3_outlives_the_loss_of_a_machine(
    s3: S3Server, cluster: Any, text_file: Path, tmp_path: Path
) -> None:
    write(lsi_options(text_file, tmp_path / "local"), log=quiet)
    node = cluster.add_node(num_cpus=2, object_store_memory=128 * MB)
    root, work = s3.fresh_prefix("root"), s3.fresh_prefix("work")
    listing, removed = open_store(work), threading.Event()

    def remove_when_some_are_embedded() -> None:
        if ends_within(60, lambda: len(listing.list("embeddings")) > 4):
            cluster.remove_node(node, allow_graceful=False)
            removed.set()

    thread = threading.Thread(target=remove_when_some_are_embedded)
    thread.start()
    try:
        write(lsi_options(text_file, root, engine="ray", address=cluster.address, work=work), log=quiet)
    finally:
        thread.join()
    assert removed.is_set()
    store = open_store(root)
    assert {path: store.get(path) for path, _ in store.list()} == files_below(tmp_path / "local")
    assert listing.list() == []


def rays_of(before: set[int]) -> list[bytes]:
    """Ray's processes that are not among `before` and that this process, or one that it started, began."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        if int(path.name) not in before:
            try:
                command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            except OSError:
                continue
            ours = f"CRISP_TEST={os.getpid()}".encode() in environment
            found += [command] if ours and b"ray" in command else []
    return found


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts can be told from others."""
    monkeypatch.setenv("CRISP_TEST", str(os.getpid()))


def pids() -> set[int]:
    return {int(path.name) for path in Path("/proc").glob("[0-9]*")} if Path("/proc").is_dir() else set()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_ray_that_dies_while_it_starts_is_a_clear_error_and_leaves_nothing_running() -> None:
    before = pids()
    killed: list[int] = []

    def hunt() -> None:
        until = time.monotonic() + 200
        while not killed and time.monotonic() < until:
            for pid in pids() - before:
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    environment = Path(f"/proc/{pid}/environ").read_bytes()
                    if b"/raylet\0" in command and f"CRISP_TEST={os.getpid()}".encode() in environment:
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
            time.sleep(0.02)

    hunter = threading.Thread(target=hunt)
    hunter.start()
    with pytest.raises(StorageError, match="ray: must start on this machine, but one of its processes was killed"):
        open_engine("ray", processes=1, memory_bytes=None, address=None)
    hunter.join()
    assert killed
    assert ends_within(10, lambda: not rays_of(before)), rays_of(before)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-server\r\n", b""])
def test_a_port_of_something_else_than_ray_is_refused_within_seconds(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(64)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(
            InputError, match=rf"must be a running Ray cluster, got {address}: what listens there is not"
        ):
            open_engine("ray", processes=None, memory_bytes=None, address=address)
        assert time.monotonic() - begun < 30


def test_a_port_that_never_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crisp_stream.writers.engine.ray_cluster.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"must be a running Ray cluster, got {address}: timed out"):
            open_engine("ray", processes=None, memory_bytes=None, address=address)


def test_ray_started_here_gives_the_same_bytes_and_leaves_nothing_running(text_file: Path, tmp_path: Path) -> None:
    import ray

    before = pids()
    kept = {name: str(tmp_path / f"embeddings-{name}") for name in ("local", "ray")}
    write(lsi_options(text_file, tmp_path / "local", embeddings=kept["local"]), log=quiet)
    write(lsi_options(text_file, tmp_path / "ray", embeddings=kept["ray"], engine="ray", processes=2), log=quiet)
    assert files_below(tmp_path / "ray") == files_below(tmp_path / "local")
    assert files_below(Path(kept["ray"])) == files_below(Path(kept["local"]))
    assert not ray.is_initialized()

    assert ends_within(120, lambda: not rays_of(before)), rays_of(before)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_is_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=rf"must be a running Ray cluster, got {address}: .* ray start --head"):
        open_engine("ray", processes=None, memory_bytes=None, address=address)


def test_options_of_one_engine_are_refused_by_the_other() -> None:
    with pytest.raises(InputError, match="address: must be left out with the local engine, got auto"):
        open_engine("local", processes=1, memory_bytes=None, address="auto")
    with pytest.raises(InputError, match="memory: must be left out with the Ray engine, got 800 MB"):
        open_engine("ray", processes=1, memory_bytes=800 * MB, address=None)
    with pytest.raises(InputError, match="engine: must be local or ray, got 'spark'"):
        open_engine("spark", processes=1, memory_bytes=None, address=None)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_local_processes_run_every_task_once(kind: Kind, processes: int, tmp_path: Path) -> None:
    engine = LocalEngine(processes=processes)
    tasks = doubled(tmp_path, 9)
    try:
        records = Runner(engine, tasks[0].workspace, log=quiet).run(tasks, unit="numbers")
        more = dict(engine.run(doubled(tmp_path, 3), kind=kind))
    finally:
        engine.close()
    assert [record["doubled"] for record in records] == [2 * n for n in range(9)]
    assert sorted(more) == [0, 1, 2]
    pids = {record["pid"] for record in records}
    assert (pids == {os.getpid()}) is (processes == 1)


def test_a_killed_local_worker_gives_an_error_and_its_stage_goes_on_afterwards(tmp_path: Path) -> None:
    tasks = doubled(tmp_path, 9, deaths=1)
    for attempt in range(2):
        engine = LocalEngine(processes=2)
        runner = Runner(engine, tasks[0].workspace, log=quiet)
        try:
            if attempt == 0:
                with pytest.raises(CrispError, match="a worker process was killed, most often for memory"):
                    runner.run(tasks, unit="numbers")
            else:
                assert [record["doubled"] for record in runner.run(tasks, unit="numbers")] == [2 * n for n in range(9)]
        finally:
            engine.close()
