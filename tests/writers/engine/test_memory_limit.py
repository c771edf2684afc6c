"""Memory is bounded by what was asked for, not by the corpus; measured from outside, on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.support.measure import descendants, run_task
from crisp_stream.errors import InputError
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.memory_limit import (
    DRIVER_BYTES,
    ENCODER_BYTES,
    ENCODER_WEIGHTS_BYTES,
    LEAST_WORK_BYTES,
    LIGHT_BYTES,
    MemoryLimit,
)
from crisp_stream.writers.write import write
from tests.support.written_dataset import TOPICS, small_options

MB = 1 << 20
ALONE = DRIVER_BYTES + LEAST_WORK_BYTES
EACH = LIGHT_BYTES + LEAST_WORK_BYTES
LIMIT = DRIVER_BYTES + 2 * EACH


def resident(pid: int) -> int:
    """Bytes of a process and all below it; pages that they share count for each."""
    total = 0
    for one in (pid, *descendants(pid)):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue  # it has just ended
    return total


def write_measured(source: Path, out: Path, limit_bytes: int, *options: str) -> tuple[int, int]:
    """(peak bytes, most processes below the first) of `crisp-stream write`."""
    command = [sys.executable, "-m", "crisp_stream", "write", str(source), "--out", str(out), *options]
    process = subprocess.Popen(
        [*command, "--memory", f"{limit_bytes >> 20}M"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    peak = processes = 0
    while process.poll() is None:
        try:
            peak = max(peak, resident(process.pid))
            processes = max(processes, len(descendants(process.pid)))
        except OSError:
            continue
        time.sleep(0.05)
    assert process.returncode == 0
    return peak, processes


def test_writes_stay_below_their_limits(tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    paragraphs = [paragraph for text in TOPICS for paragraph in text.split("\n\n") if len(paragraph) > 60]
    with source.open("w") as file:
        for number in range(3_000):
            text = "\n\n".join(paragraphs[(number * 37 + at * 101) % len(paragraphs)] for at in range(12))
            file.write(json.dumps({"text": text}) + "\n")
    options = [
        "--encoder",
        "lsi",
        "--window-tokens",
        "256",
        "--arity",
        "8",
        "--depth",
        "2",
        "--processes",
        "2",
        "--shard-mb",
        "24",
    ]
    peak, processes = write_measured(source, tmp_path / "out", LIMIT, *options)
    assert processes >= 2
    assert 200 * MB < peak < LIMIT
    peak, processes = write_measured(
        source, tmp_path / "more", ALONE, "--like", str(tmp_path / "out"), "--shard-mb", "24"
    )
    assert processes == 0
    assert 200 * MB < peak < ALONE
    first, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "shards").rglob("*.mds")}
        for name in ("out", "more")
    )
    assert first == again


def test_sorting_ten_times_as_many_windows_takes_no_more_memory(tmp_path: Path) -> None:
    budget = 8 * MB
    peaks = []
    for times in (2, 20):
        options = {"folder": str(tmp_path / str(times)), "num_bytes": times * budget, "processes": 1}
        peaks.append(run_task("writing.sort_section:sorted_by_tasks", {**options, "memory_bytes": budget})["peak"])
    assert peaks[1] < peaks[0] + 2 * budget
    assert peaks[1] < 20 * budget


def test_fewer_processes_run_where_memory_is_short() -> None:
    assert LocalEngine(processes=8).workers("light") == 8
    assert LocalEngine(processes=8).work_bytes() is None
    for memory, workers in ((ALONE, 1), (DRIVER_BYTES + EACH, 1), (LIMIT, 2), (LIMIT + EACH, 3), (100 * EACH, 8)):
        engine = LocalEngine(processes=8, memory_bytes=memory)
        assert engine.workers("light") == workers
        held = engine.work_bytes()
        assert held is not None
        assert held >= LEAST_WORK_BYTES
        assert DRIVER_BYTES + workers * held + (workers * LIGHT_BYTES if workers > 1 else 0) <= memory
    assert LocalEngine(processes=8, memory_bytes=DRIVER_BYTES + 2 * ENCODER_BYTES).workers("encoder") in (2, 8)
    with pytest.raises(InputError, match=f"memory: must be at least {ALONE >> 20} MB, what one process needs, got 100"):
        LocalEngine(memory_bytes=100 * MB)


def test_fewer_processes_run_while_memory_is_needed_beside_them() -> None:
    engine = LocalEngine(processes=8, memory_bytes=LIMIT)
    with engine.holding("fitting", 100 * MB):
        assert engine.workers("light") == 1
    assert engine.workers("light") == 2
    refused = pytest.raises(InputError, match=r"memory: must be at least \d+ MB, what fitting needs, got 1344 MB")
    with refused, engine.holding("fitting", LIMIT):
        pass


def test_fewer_processes_run_while_each_holds_the_examples_of_a_node() -> None:
    engine = LocalEngine(processes=8, memory_bytes=LIMIT)
    with engine.each_holding("fitting a tree", 200 * MB) as work_bytes:
        assert engine.workers("light") == 1
        assert work_bytes == LIMIT - DRIVER_BYTES
    assert engine.workers("light") == 2
    with engine.each_holding("fitting a tree", 10 * MB) as work_bytes:
        assert engine.workers("light") == 2
        assert work_bytes == LEAST_WORK_BYTES
    with LocalEngine(processes=8).each_holding("fitting a tree", LIMIT) as work_bytes:
        assert work_bytes is None
    refused = pytest.raises(InputError, match=r"must be at least \d+ MB, what fitting a tree needs, got 1344 MB\. Give")
    with refused, engine.each_holding("fitting a tree", LIMIT):
        pass


def test_an_lsi_that_cannot_be_fitted_is_refused_before_documents_are_cut(text_file: Path, tmp_path: Path) -> None:
    log: list[str] = []
    options = small_options(text_file, tmp_path / "out", encoder="lsi", memory_bytes=ALONE)
    least = r"memory: must be at least 64\d MB, what fitting an LSI on this much text needs, got 512 MB"
    with pytest.raises(InputError, match=least):
        write(options, log=log.append)
    assert any(line.startswith("reading documents: 79 documents in ") for line in log)
    assert not any(line.startswith("cutting windows") for line in log)


def test_an_encoder_that_does_not_fit_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crisp_stream.writers.engine.engine._num_gpus", lambda: 0)
    with pytest.raises(InputError, match="memory: embedding needs 1400 MB for one process, got 800 MB"):
        LocalEngine(processes=2, memory_bytes=800 * MB).workers("encoder")


def test_the_weights_of_a_larger_encoder_count() -> None:
    limit = MemoryLimit(ENCODER_BYTES)
    limit.count_encoder(ENCODER_WEIGHTS_BYTES)
    assert limit.processes("encoder") == 1
    with pytest.raises(InputError, match="memory: embedding needs 1500 MB for one process, got 1400 MB"):
        limit.count_encoder(ENCODER_WEIGHTS_BYTES + 100 * MB)


def test_shards_that_do_not_fit_are_refused_before_anything_is_read(text_file: Path, tmp_path: Path) -> None:
    log: list[str] = []
    options = small_options(text_file, tmp_path / "out", encoder="lsi", memory_bytes=ALONE, shard_bytes=64 * MB)
    with pytest.raises(InputError, match="memory: must be at least 608 MB for shards of 64 MB, got 512 MB"):
        write(options, log=log.append)
    assert not log
    limit = MemoryLimit(LIMIT)
    assert limit.processes("light") == 2
    limit.count_shards(192 * MB)
    assert limit.processes("light") == 1


FREED = """
import os, sys
from pathlib import Path
from crisp_stream.writers.engine import memory_limit
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
if sys.argv[1] == "bounded":
    memory_limit.bound_allocators()
bytearray(30 << 20)  # after which glibc keeps blocks of such a size in its heap
before, small = resident(), []
large = []
for number in range(100):
    large.append(bytearray(1 << 20))
    small.append(bytearray(5000))
del large
print(resident() - before)
"""


@pytest.mark.parametrize("allocators", ["bounded", "default"])
def test_a_bounded_process_returns_what_it_frees(allocators: str) -> None:
    command = [sys.executable, "-c", FREED, allocators]
    kept = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (kept < 10 * MB) == (allocators == "bounded")


def test_a_document_that_does_not_fit_is_refused_with_its_place_its_size_and_what_it_needs(tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    with source.open("w") as file:
        for text in ("short", "large " * (3 * MB), "short"):
            file.write(json.dumps({"text": text}) + "\n")
    options = small_options(source, tmp_path / "out", encoder="lsi", memory_bytes=ALONE, processes=1)
    expected = (
        r"memory: the document at .*text\.jsonl:2 has 19 MB and takes 73 MB of memory while it is read, got 64 MB for "
        r"the data of a process\. Give more \(at least 521 MB with --processes 1\), or cut the document or take it out"
    )
    with pytest.raises(InputError, match=expected):
        write(options, log=lambda line: None)


def test_parts_that_do_not_fit_are_refused_before_anything_is_read(text_file: Path, tmp_path: Path) -> None:
    options = small_options(text_file, tmp_path / "out", encoder="lsi", memory_bytes=ALONE, part_characters=20 * MB)
    with pytest.raises(InputError, match=r"at least 528 MB for parts of 20,971,520 characters, got 512 MB\. Give more"):
        write(options, log=lambda line: None)
