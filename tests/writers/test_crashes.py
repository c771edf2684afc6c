"""The command killed, starved and failed in the middle, as users meet it: it says what happened, goes on when it is run
again, and publishes the bytes of an uninterrupted write."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.ledger import read_ledger
from crisp_stream.storage.store import open_store
from tests.support.fault_proxy import fault_proxy
from tests.support.seaweed import S3Server
from tests.support.written_dataset import files_below

COMMAND = (sys.executable, "-m", "crisp_stream")
OPTIONS = [
    *("--encoder", "lsi", "--window-tokens", "64", "--vocab-size", "600", "--arity", "4", "--depth", "2"),
    *("--min-split", "32", "--part-characters", "5000", "--shard-mb", "0.006", "--processes", "2", "--dedup", "near"),
]
KILLS = 5
NUM_TASKS = 2 + 2 * 14 + 3 + 4 + 1 + 1 + 4 + 4 + 1
"""Documents, tokenizer, windows and embeddings of 14 parts, LSI, sample, root, branches, tree, run, ranges, shards,
table."""


def start(source: Path, out: Path | str, log: Path, *more: str, **environment: str) -> subprocess.Popen[bytes]:
    """The command in a process group of its own."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [*COMMAND, "write", str(source), "--out", str(out), *OPTIONS, *more],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(source: Path, out: Path | str, log: Path, *more: str, **environment: str) -> str:
    """What an uninterrupted command printed."""
    process = start(source, out, log, *more, **environment)
    status = process.wait(1500)
    printed = log.read_text()
    assert status == 0, printed
    return printed


def fail(source: Path, out: Path | str, log: Path, *more: str, **environment: str) -> str:
    """The error that a command ended with; there must be one, on one line, without a traceback."""
    status = start(source, out, log, *more, **environment).wait(1500)
    printed = log.read_text()
    assert status == 2, printed
    assert "Traceback" not in printed
    [error] = re.findall(r"^error: .*", printed, re.MULTILINE)
    return error


@pytest.fixture(scope="module")
def whole(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted write."""
    folder = tmp_path_factory.mktemp("whole")
    finish(text_file, folder / "root", folder / "log")
    return files_below(folder / "root")


def num_records(work: Path) -> int:
    """Tasks that are done."""
    return len(list(work.glob("**/*-*.json")))


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Whether it held before the process ended."""
    while process.poll() is None:
        if holds():
            return True
        time.sleep(0.01)
    return False


def write_with_kills(source: Path, out: Path | str, work: Path, log: Path, seed: int) -> list[int]:
    """Kill the whole group at random points, spread over all stages, then let it finish; tasks done at each kill."""
    rng = np.random.default_rng(seed)
    kills: list[int] = []
    for mark in np.sort(rng.integers(0, NUM_TASKS - 4, KILLS)).tolist():
        process = start(source, out, log, "--work", str(work))
        reached = wait_until(lambda mark=mark: num_records(work) >= max(mark, *kills, 0), process)
        assert reached, log.read_text()
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if open_store(str(out)).exists("manifest.json"):
            return kills  # it was complete, and being tidied up
        kills.append(num_records(work))
    finish(source, out, log, "--work", str(work))
    return kills


def test_a_write_killed_again_and_again_publishes_the_same_bytes(
    whole: dict[str, bytes], text_file: Path, tmp_path: Path
) -> None:
    kills = write_with_kills(text_file, tmp_path / "root", tmp_path / "work", tmp_path / "log", 1)
    assert len(kills) >= 4
    assert kills == sorted(kills)
    assert files_below(tmp_path / "root") == whole


def test_a_write_to_s3_killed_again_and_again_publishes_the_same_bytes(
    whole: dict[str, bytes], s3: S3Server, text_file: Path, tmp_path: Path
) -> None:
    root = s3.fresh_prefix("killed")
    kills = write_with_kills(text_file, root, tmp_path / "work", tmp_path / "log", 2)
    assert len(kills) >= 4
    store = open_store(root)
    assert {path: store.get(path) for path, _ in store.list()} == whole


def workers_of(pid: int) -> list[int]:
    """The worker processes of a process: forked from its server."""
    servers = [child for child in children(pid) if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [worker for server in servers for worker in children(server)]


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_a_killed_worker_ends_the_command_with_an_error_and_nothing_is_lost(
    whole: dict[str, bytes], text_file: Path, tmp_path: Path
) -> None:
    log, work = tmp_path / "log", tmp_path / "work"
    process = start(text_file, tmp_path / "root", log, "--work", str(work))
    assert wait_until(lambda: len(list(work.glob("windows/*.json"))) > 2, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(300) == 2
    assert "error: a worker process was killed, most often for memory; finished work is kept." in log.read_text()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    again = finish(text_file, tmp_path / "root", log, "--work", str(work))
    assert re.search(r"windows: \d+ of 14 tasks were done by an earlier run", again)
    assert files_below(tmp_path / "root") == whole


@pytest.mark.parametrize("processes", ["1", "2"])
def test_workers_end_with_a_command_that_is_killed(processes: str, text_file: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    process = start(text_file, tmp_path / "root", tmp_path / "log", "--work", str(work), "--processes", processes)
    assert wait_until(lambda: len(list(work.glob("windows/*.json"))) > 2, process)
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    until = time.monotonic() + 120
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert bool(workers) is (processes == "2")


def test_an_object_store_that_refuses_in_the_middle_gives_an_error_and_the_write_goes_on(
    whole: dict[str, bytes], s3: S3Server, text_file: Path, tmp_path: Path
) -> None:
    root, work = s3.fresh_prefix("refused"), s3.fresh_prefix("work")
    with fault_proxy(s3.endpoint) as proxy:
        proxy.start("403", where=lambda request: request.method == "PUT" and "/embeddings/" in request.path, after=9)
        error = fail(text_file, root, tmp_path / "log", "--work", work, AWS_ENDPOINT_URL=proxy.endpoint)
        assert proxy.injected >= 1
    assert re.search(r"embeddings/0000.*(403|denied|refused|permission)", error, re.IGNORECASE), error
    assert not open_store(root).exists("manifest.json")
    finish(text_file, root, tmp_path / "log", "--work", work)
    store = open_store(root)
    assert {path: store.get(path) for path, _ in store.list()} == whole
    assert open_store(work).list() == []


def test_an_object_store_that_is_away_for_seconds_is_waited_for(
    whole: dict[str, bytes], s3: S3Server, text_file: Path, tmp_path: Path
) -> None:
    root, work = s3.fresh_prefix("away"), s3.fresh_prefix("work")
    with fault_proxy(s3.endpoint) as proxy:
        log = tmp_path / "log"
        process = start(text_file, root, log, "--work", work, AWS_ENDPOINT_URL=proxy.endpoint)
        listing = open_store(work)
        assert wait_until(lambda: len(listing.list("windows")) > 8, process)
        proxy.start("503")
        time.sleep(4)
        proxy.heal()
        assert process.wait(1500) == 0, log.read_text()
    store = open_store(root)
    assert {path: store.get(path) for path, _ in store.list()} == whole


_FULL_DISK = """
import errno, os, sys
original = os.fsync
def fsync(file):
    if os.environ.get("FULL_WHERE") in os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    original(file)
os.fsync = fsync
"""


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Callable[[int], None] | None]:
    """A file system of its own at a folder, which can grow; None where this user may not mount one."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(num_bytes: int, flags: int) -> bool:
        return not libc.mount(b"tmpfs", bytes(folder), b"tmpfs", flags, f"size={num_bytes}".encode())

    if not mount(num_bytes, 0):
        yield None
        return
    try:
        yield lambda num_bytes: None if mount(num_bytes, 32) else pytest.fail("the disk does not grow")
    finally:
        libc.umount2(bytes(folder), 2)


@pytest.mark.parametrize("room", [20 << 10, 400 << 10, 800 << 10])
def test_a_disk_that_fills_gives_an_error_and_the_write_goes_on(
    room: int, whole: dict[str, bytes], text_file: Path, tmp_path: Path
) -> None:
    log, work = tmp_path / "log", tmp_path / "disk" / "work"
    with small_disk(work.parent, room) as grow:
        environment: dict[str, str] = {}
        if grow is None:  # the same error from the call that would meet it
            (tmp_path / "sitecustomize.py").write_text(_FULL_DISK)
            environment = {"PYTHONPATH": str(tmp_path), "FULL_WHERE": f"/00000{room >> 18}-"}
        error = fail(text_file, tmp_path / "root", log, "--work", str(work), **environment)
        assert re.match(rf"error: {work}.*: there is no room left for \S+ \(disk full\)\. Free some space, or ", error)
        assert not (tmp_path / "root").exists()
        if grow is not None:
            grow(64 << 20)
        finish(text_file, tmp_path / "root", log, "--work", str(work))
        assert files_below(tmp_path / "root") == whole


def test_one_corrupt_input_is_named_and_on_request_left_out_and_counted(text_file: Path, tmp_path: Path) -> None:
    lines = text_file.read_text().splitlines(keepends=True)
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(lines[:30]))
    packed = gzip.compress("".join(lines[30:50]).encode())
    (folder / "b.jsonl.gz").write_bytes(packed[:-10])
    (folder / "c.jsonl").write_text("".join(lines[50:]))
    log = tmp_path / "log"
    error = fail(folder, tmp_path / "root", log)
    assert "b.jsonl.gz: must be readable to its end" in error
    assert not (tmp_path / "root").exists()
    printed = finish(folder, tmp_path / "root", log, "--skip-corrupt")
    assert re.search(r"left out b\.jsonl\.gz: must be readable to its end, got: Truncated", printed)
    assert re.search(r"paths not read +1\n  file that cannot be read to its end +1\n", printed)
    provenance = open_dataset(tmp_path / "root").manifest.provenance
    assert [row.file for row in read_ledger(open_dataset(tmp_path / "root"))] == ["b.jsonl.gz"]
    assert provenance["documents"] == sum(bool(json.loads(line)["text"].strip()) for line in lines[:30] + lines[50:])
    (folder / "b.jsonl.gz").unlink()
    finish(folder, tmp_path / "without", log)
    with_damage, without = files_below(tmp_path / "root"), files_below(tmp_path / "without")
    for name in ("clusters.parquet", "tokenizer/tokenizer.json"):
        assert with_damage[name] == without[name]
