"""What storage and machines do to a training run, and what the run makes of it.

Every case runs the training loop `for batch in MixtureDataset(…).loader()` against a real S3 server behind a
fault-injecting proxy (fault_proxy.py), compares every batch with the source, and looks for hangs and litter. The cases
together make the table of docs/train/faults.md (fault_table.py).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.storage.store import open_store
from tests.support import fault_runs
from tests.support.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.support.fault_runs import BATCHES, SLACK, TIMEOUT, Child, Outcome, Source, train
from tests.support.seaweed import S3Server, seaweed
from tests.support.synthetic import write_synthetic_dataset

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
ROWS: list[tuple[str, str, str, str]] = []
"""Fault, when, reader, outcome: the table, in the order of the tests."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    leaves = dict.fromkeys(range(64), 100)
    folder = tmp_path_factory.mktemp("source")
    return Source(write_synthetic_dataset(folder, leaves, depth=3, windows_per_shard=400).root)


def upload(source: Source, url: str) -> str:
    store = open_store(url)
    for file in Path(source.root).rglob("*"):
        if file.is_file():
            store.put(file.relative_to(source.root).as_posix(), file.read_bytes())
    return url


@pytest.fixture(scope="module")
def root(source: Source, s3: S3Server) -> str:
    return upload(source, s3.fresh_prefix("faults"))


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with fault_proxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def clean(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Nothing is left: no process, no shared memory, no temporary file."""
    temporary = Path(tempfile.mkdtemp())  # below `tmp_path` it could be too long for the sockets of workers
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    mark = uuid.uuid4().hex
    monkeypatch.setenv(fault_runs.HELPER_MARK, mark)
    with fault_runs.no_shared_memory_left(tmp_path / "processes"), fault_runs.no_process_left(mark):
        yield
    killed = "killed" in request.node.name  # then a claim may be left, and Python's own folder of sockets
    assert killed or not fault_runs.cache_litter(cache)
    assert not [path for path in temporary.iterdir() if not (killed and path.name.startswith("pymp-"))]


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the table of what was tried; fault_table.py takes it from the file named by CRISP_STREAM_FAULT_TABLE."""
    yield
    target = os.environ.get("CRISP_STREAM_FAULT_TABLE")
    if target:
        Path(target).write_text(json.dumps(ROWS))
    for row in ROWS:
        print(" | ".join(row))


def note(fault: str, when: str, num_workers: int | str, outcome: Outcome | str) -> None:
    reader = {"0": "in the process", "2": "2 workers"}.get(str(num_workers), str(num_workers))
    ROWS.append((fault, when, str(reader), str(outcome)))


def test_shared_memory_that_a_process_of_the_test_leaves_is_seen(tmp_path: Path) -> None:
    entries: list[Path] = []

    def leave() -> Outcome:
        entry = Path(f"/dev/shm/torch_{os.getpid()}_1_0")
        entry.touch()
        return Outcome(how=str(entry))

    seen = fault_runs.no_shared_memory_left(tmp_path / "inner-processes")
    with pytest.raises(AssertionError, match="shared memory is left behind"), seen:
        entries.append(Path(Child(leave).outcome(500).how))
    entries[0].unlink()


def test_shared_memory_of_other_processes_does_not_count(tmp_path: Path) -> None:
    entry = Path(f"/dev/shm/torch_1_{uuid.uuid4().int}_0")
    with fault_runs.no_shared_memory_left(tmp_path / "inner-processes"):
        entry.touch()
    entry.unlink()


def assert_healed(outcome: Outcome) -> None:
    assert outcome.right, str(outcome)


def assert_one_clear_error(outcome: Outcome, text: str, timeout: float = TIMEOUT) -> None:
    """Right batches, then one expected exception with the words of `text`, in time."""
    assert outcome.error, f"no exception: {outcome}"
    assert outcome.expected_error, outcome.error
    assert outcome.batches < BATCHES
    assert not outcome.wrong
    assert outcome.seconds < timeout + SLACK, str(outcome)
    for word in text.split("…"):
        assert word.strip() in outcome.error, outcome.error


HEALED: list[tuple[Fault, int, int]] = [
    ("500", 3, 0),
    ("503", 3, 0),
    ("reset", 3, 0),
    ("truncated", 3, 0),
    ("flipped", 3, 0),
    ("stalled", 2, 0),
    ("503", 3, 2),
    ("stalled", 2, 2),
    ("flipped", 3, 2),
]


@pytest.mark.parametrize(("fault", "times", "num_workers"), HEALED, ids=str)
def test_a_passing_fault_is_healed(
    source: Source, root: str, proxy: FaultProxy, cache: Path, fault: Fault, times: int, num_workers: int
) -> None:
    rule = proxy.start(fault, times=times, after=5)
    outcome = train(source, root, cache, num_workers=num_workers)
    note(fault, f"{times} times", num_workers, outcome)
    assert_healed(outcome)
    assert rule.injected == times


RAISED: list[tuple[Fault, str, int]] = [
    ("500", "StorageError: cannot read bytes … of s3:// … .mds: … 500 Internal Server Error … Check the network", 0),
    ("503", "StorageError: cannot read bytes … of s3:// … .mds: … 503 Service Unavailable … SlowDown", 0),
    ("reset", "StorageError: cannot read bytes … of s3:// … .mds: the connection was reset", 0),
    ("truncated", "StorageError: cannot read bytes … .mds: the answer ended before its promised length", 0),
    ("flipped", "CorruptDataError: s3:// … .mds: window … does not match its checksum … restore it", 0),
    ("stalled", "StorageError: cannot read bytes … of s3:// … .mds: no answer in time", 0),
    ("403", "StorageError: cannot read bytes … .mds: the credentials were refused. Check AWS_ACCESS_KEY_ID", 0),
    ("404", "MissingObjectError: s3:// … .mds does not exist", 0),
    ("503", "StorageError: … .mds: … 503 Service Unavailable", 2),
    ("stalled", "StorageError: … .mds: no answer in time", 2),
    ("403", "StorageError: … .mds: the credentials were refused", 2),
]


@pytest.mark.parametrize(("fault", "text", "num_workers"), RAISED, ids=lambda value: str(value)[:7])
def test_a_lasting_fault_is_one_clear_exception_in_time(
    source: Source, root: str, proxy: FaultProxy, cache: Path, fault: Fault, text: str, num_workers: int
) -> None:
    rule = proxy.start(fault, after=20)
    outcome = train(source, root, cache, num_workers=num_workers)
    note(fault, "for good", num_workers, outcome)
    assert_one_clear_error(outcome, text)
    if fault in ("403", "404"):
        assert rule.injected <= 200  # not retried


@pytest.mark.parametrize("times", [2, None])
def test_faults_while_a_dataset_is_opened(
    source: Source, root: str, proxy: FaultProxy, cache: Path, times: int | None
) -> None:
    proxy.start("stalled", where=lambda request: "manifest.json" in request.path, times=times)
    outcome = train(source, root, cache)
    note("stalled, opening the dataset", f"{times} times" if times else "for good", 0, outcome)
    if times:
        assert_healed(outcome)
    else:
        assert_one_clear_error(outcome, "StorageError: cannot read s3:// … manifest.json: no answer in time")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_host_name_that_cannot_be_resolved(
    source: Source, root: str, cache: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    def fail_name_lookup() -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid")

    if num_workers:  # the workers find the name gone
        outcome = train(source, root, cache, num_workers=num_workers, opened=fail_name_lookup)
    else:
        fail_name_lookup()
        outcome = train(source, root, cache)
    note("DNS failure", "for good", num_workers, outcome)
    assert_one_clear_error(outcome, "StorageError: … s3:// … storage.invalid … Check the network")


@pytest.mark.parametrize("back", [True, False])
def test_a_server_killed_during_a_run(
    source: Source, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    with seaweed(tmp_path) as server:
        for name, text in server.environment().items():
            monkeypatch.setenv(name, text)
        root = upload(source, server.fresh_prefix())
        restart = threading.Timer(0.5, server.start)

        def kill(number: int, _: Any) -> None:
            if number == 2:
                server.kill()
                if back:
                    restart.start()

        outcome = train(source, root, cache, timeout=60.0 if back else TIMEOUT, after_batch=kill)
        note("server killed", "and started again" if back else "for good", 0, outcome)
        if back:
            restart.join()
            assert_healed(outcome)
        else:
            assert_one_clear_error(outcome, "StorageError: cannot read bytes … .mds: the connection was")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_full_disk_in_the_cache_folder(source: Source, root: str, cache: Path, num_workers: int) -> None:
    cache.mkdir()

    def run() -> Outcome:
        with ExitStack() as disk:
            try:
                disk.enter_context(fault_runs.tiny_disk(cache, 64))
                mechanism = "tmpfs of 64 kB"
            except OSError:
                disk.enter_context(fault_runs.no_space_by_audit(cache, 64))
                mechanism = "ENOSPC from opening files"
            outcome = train(source, root, cache, num_workers=num_workers)
            outcome.litter = fault_runs.cache_litter(cache)
            outcome.how = mechanism
            return outcome

    outcome = Child(run).outcome(500)
    note("disk full in the cache folder", outcome.how, num_workers, outcome)
    assert not outcome.litter
    if outcome.error:
        assert_one_clear_error(
            outcome, "StorageError: … cannot write to the cache (No space left on device). Free space"
        )
    else:
        assert_healed(outcome)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
def test_cache_entries_damaged_while_in_use(source: Source, root: str, cache: Path, damage: str) -> None:
    done = 0

    def spoil(number: int, _: Any) -> None:
        nonlocal done
        if number not in (3, 20, 60):
            return
        for entry in [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 64]:
            if damage == "deleted":
                entry.unlink(missing_ok=True)
            else:
                with entry.open("r+b") as file:
                    middle = entry.stat().st_size // 2
                    file.seek(middle)
                    byte = file.read(1)
                    file.seek(middle)
                    file.truncate() if damage == "truncated" else file.write(bytes([byte[0] ^ 1]))
            done += 1

    outcome = Child(lambda: train(source, root, cache, after_batch=spoil)).outcome(500)  # a crash would be seen
    note(f"cache entries {damage}", "all entries, three times", 0, outcome)
    assert_healed(outcome)
    again = train(source, root, cache)
    note(f"cache entries {damage}", "the next run", 0, again)
    assert_healed(again)


def test_a_cache_limit_below_the_working_set(source: Source, root: str, cache: Path) -> None:
    limit = 40_000  # of 460,800 bytes
    outcome = train(source, root, cache, num_workers=2, cache_limit=limit)
    held = sum(path.stat().st_size for path in cache.rglob("*.run"))
    note("cache limit below the working set", "40 kB of 460 kB", 2, outcome)
    assert_healed(outcome)
    assert held <= 2 * limit


def test_a_worker_killed(source: Source, root: str, cache: Path) -> None:
    def kill(number: int, iterator: Any) -> None:
        if number == 3:
            workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
            os.kill(min(workers), signal.SIGKILL)
            time.sleep(5)  # which torch interrupts by its exception

    outcome = train(source, root, cache, num_workers=2, after_batch=kill)
    note("kill -9", "of a DataLoader worker", 2, outcome)
    assert_one_clear_error(outcome, "RuntimeError: DataLoader worker … killed by signal: Killed")


def test_a_worker_s_helper_killed(source: Source, root: str, cache: Path) -> None:
    mark, killed = os.environ[fault_runs.HELPER_MARK], []

    def kill(number: int, _: Any) -> None:
        if number in (1, 2):
            for pid in fault_runs.helpers(mark):
                with suppress(ProcessLookupError):  # it may be ending already
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    outcome = train(source, root, cache, num_workers=2, after_batch=kill)
    note("kill -9", "of the helper processes of workers", 2, outcome)
    assert killed
    assert_healed(outcome)


def test_a_job_killed_and_run_again(source: Source, root: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"source": source.root, "root": root, "cache": str(cache), "num_workers": 2}
    command = [sys.executable, "-m", "tests.support.fault_runs", json.dumps(told)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        seen = [next(job.stdout) for _ in range(3)]
        job.kill()
    assert seen[-1] == "batch 3\n"
    again = train(source, root, cache, num_workers=2)
    note("kill -9", "of the job; the outcome is that of the next run on the same cache", 2, again)
    assert_healed(again)


def test_a_rank_killed_and_started_again(source: Source, root: str, cache: Path) -> None:
    def rank(number: int, deadly: bool) -> Outcome:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
        suicide = lambda batch, _: os.kill(os.getpid(), signal.SIGKILL) if batch == 3 and deadly else None  # noqa: E731
        return train(source, root, cache, num_workers=1, after_batch=suicide)

    first, second = (Child(lambda n=n: rank(n, deadly=n == 1)) for n in (0, 1))
    other = first.outcome(500)
    with pytest.raises(EOFError):
        second.outcome(500)
    second.process.join()
    assert second.process.exitcode == -signal.SIGKILL
    note("kill -9", "of a rank; the outcome is that of the other rank", "1 worker", other)
    again = Child(lambda: rank(1, deadly=False)).outcome(500)
    note("kill -9", "of a rank, started again", "1 worker", again)
    for outcome in (other, again):
        assert_healed(outcome)


def test_two_jobs_share_one_cache(source: Source, root: str, cache: Path) -> None:
    limits = (None, 60_000)  # one of them evicts what the other uses
    jobs = [Child(lambda limit=limit: train(source, root, cache, num_workers=1, cache_limit=limit)) for limit in limits]
    for job, limit in zip(jobs, limits, strict=True):
        outcome = job.outcome(500)
        note("two jobs share one cache", f"this one with cache_limit={limit}", "1 worker", outcome)
        assert_healed(outcome)


@pytest.mark.parametrize("shared", [False, True])
def test_two_users_on_one_machine(source: Source, root: str, cache: Path, shared: bool) -> None:
    """The second has another user id where this process may change it; elsewhere the first's folders are read-only."""
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))  # which another user may enter
    try:
        place.chmod(0o777)
        first = place / "first"
        assert_healed(train(source, root, first))
        entries = sorted(path for path in first.rglob("*") if path.is_file())
        for entry in entries[::2]:
            entry.unlink()
        told: dict[str, Any] = {"source": source.root, "root": root, "warm_up": str(cache / "warm-up")}
        told["cache"] = str(first if shared else place / "second")
        if os.geteuid() == 0:
            means, told["user"] = "a second user id", 65534
        else:
            means = "simulated by read-only folders"
            for folder in [first, *(path for path in first.rglob("*") if path.is_dir())]:
                folder.chmod(0o555)
        command = [sys.executable, "-m", "tests.support.fault_runs", json.dumps(told)]
        environment = {**os.environ, "TMPDIR": str(place)}
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
        outcome = Outcome(**json.loads(run.stdout.splitlines()[-1]))
        for folder in [first, *(path for path in first.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
    finally:
        shutil.rmtree(place)
    where = "local= is the first user's folder, half of it evicted" if shared else "each with an own cache folder"
    note("two users on one machine", f"{where}; {means}", 0, outcome)
    if shared and outcome.error:
        assert_one_clear_error(outcome, "StorageError: … cannot write to the cache (Permission denied) … local=")
    else:
        assert_healed(outcome)
