"""Memory is bounded by what was asked for, not by the corpus; measured from outside, on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure import descendants, run_task
from crisp_stream.errors import InputError
from crisp_stream.writers.engine import DRIVER_BYTES, ENCODER_BYTES, LEAST_WORK_BYTES, LIGHT_BYTES, LocalEngine
from tests.writers.conftest import TOPICS

MB = 1 << 20
LEAST = LIGHT_BYTES + LEAST_WORK_BYTES
LIMIT = DRIVER_BYTES + 2 * LEAST


def resident(pid: int) -> int:
    """Bytes of a process and all below it; pages that they share count for each."""
    total = 0
    for one in (pid, *descendants(pid)):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue  # it has just ended
    return total


def test_a_write_stays_below_its_limit(tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    paragraphs = [paragraph for text in TOPICS for paragraph in text.split("\n\n") if len(paragraph) > 60]
    with source.open("w") as file:
        for number in range(3_000):
            text = "\n\n".join(paragraphs[(number * 37 + at * 101) % len(paragraphs)] for at in range(12))
            file.write(json.dumps({"text": text}) + "\n")
    options = ["--encoder", "lsi", "--window-tokens", "256", "--arity", "8", "--depth", "2", "--processes", "2"]
    command = [
        str(Path(sys.executable).with_name("crisp-stream")),
        "write",
        str(source),
        "--out",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options, "--memory", f"{LIMIT >> 20}M"], env=environment, stdout=subprocess.DEVNULL
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
    assert processes >= 2
    assert 200 * MB < peak < LIMIT
    assert (tmp_path / "out" / "manifest.json").exists()


def test_sorting_ten_times_as_many_windows_takes_no_more_memory(tmp_path: Path) -> None:
    budget = 8 * MB
    peaks = []
    for times in (2, 20):
        options = {"folder": str(tmp_path / str(times)), "num_bytes": times * budget, "processes": 1}
        peaks.append(run_task("sort_section:sorted_by_tasks", {**options, "memory_bytes": budget})["peak"])
    assert peaks[1] < peaks[0] + 2 * budget
    assert peaks[1] < 20 * budget


def test_fewer_processes_run_where_memory_is_short() -> None:
    assert LocalEngine(processes=8).workers("light") == 8
    assert LocalEngine(processes=8).work_bytes() is None
    for memory, workers in ((LEAST, 1), (DRIVER_BYTES + LEAST, 1), (LIMIT, 2), (LIMIT + LEAST, 3), (100 * LEAST, 8)):
        engine = LocalEngine(processes=8, memory_bytes=memory)
        assert engine.workers("light") == workers
        held = engine.work_bytes()
        assert held is not None
        assert held >= LEAST_WORK_BYTES
        assert workers * (held + LIGHT_BYTES) + (DRIVER_BYTES if workers > 1 else 0) <= memory
    assert LocalEngine(processes=8, memory_bytes=DRIVER_BYTES + 2 * ENCODER_BYTES).workers("encoder") in (2, 8)
    with pytest.raises(InputError, match=f"memory: must be at least {LEAST >> 20} MB, what one process needs, got 100"):
        LocalEngine(memory_bytes=100 * MB)


def test_an_encoder_that_does_not_fit_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crisp_stream.writers.engine._num_gpus", lambda: 0)
    with pytest.raises(InputError, match="memory: embedding needs 1400 MB for one process, got 800 MB"):
        LocalEngine(processes=2, memory_bytes=800 * MB).workers("encoder")
