"""A write with more parts and runs than a process may open files; sorting/test_ranges.py has more runs."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.support.measure import descendants
from crisp_stream.format.dataset import open_dataset
from crisp_stream.processes import OPEN_FILES, Pool, raise_file_limit
from tests.support.written_dataset import TOPICS

NUM_RUNS = 400
LIMIT = 128


def open_files(pid: int) -> int:
    """Files that a process, or the one below it with the most, has open."""
    most = 0
    for one in (pid, *descendants(pid)):
        try:
            most = max(most, len(list(Path(f"/proc/{one}/fd").iterdir())))
        except OSError:
            continue  # it has just ended
    return most


def test_a_write_of_several_times_as_many_runs_as_files_may_be_open_passes(tmp_path: Path) -> None:
    source, work = tmp_path / "text.jsonl", tmp_path / "work"
    words = " ".join(TOPICS).split()
    with source.open("w") as file:
        for number in range(NUM_RUNS):
            file.write(json.dumps({"text": " ".join(words[number * 7 % 20_000 :][:40])}) + "\n")
    options = ["--encoder", "lsi", "--window-tokens", "32", "--vocab-size", "400", "--arity", "4", "--depth", "2"]
    options += ["--part-characters", "100", "--run-mb", "0.000001", "--dedup", "near", "--processes", "2"]
    options += ["--work", str(work), "--keep-work", "--embeddings", str(tmp_path / "kept")]
    command = [sys.executable, "-m", "crisp_stream", "write", str(source), "--out", str(tmp_path / "root"), *options]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f'ulimit -n {LIMIT} && exec "$@"', "bash", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    most = 0
    while process.poll() is None:
        most = max(most, open_files(process.pid))
        time.sleep(0.2)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert len(list(work.glob("runs/*.json"))) > NUM_RUNS * 0.8
    assert open_dataset(tmp_path / "root").manifest.num_windows > NUM_RUNS * 0.8
    assert 3 < most < LIMIT - 32


def soft_limit(number: int) -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_command_and_its_workers_may_open_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, allowed, 300), hard))
        pool = Pool(1)
        assert set(pool.map_unordered(soft_limit, range(2))) == {allowed}
        pool.close()
        assert soft_limit(0) == min(soft, allowed, 300)
        raise_file_limit()
        assert soft_limit(0) == allowed
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        raise_file_limit()
        assert soft_limit(0) == allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
