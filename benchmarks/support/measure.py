"""Tasks in fresh processes, and what a process costs: CPU time, peak and private memory. Linux only (reads /proc).

A task is a function of a module of benchmarks/ from JSON to JSON. Each runs in a process of its own (child.py), so that
imports, page faults, allocator arenas and threads of one side are charged to no other.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MARK = "crisp-stream-benchmark:"
"""Starts a line that a task prints for its parent."""


class UnavailableError(Exception):
    """A side that cannot be measured here; the message says why, and stands in its row."""


class Child:
    """A task in a process of its own that may stop at `pause` until `resume`."""

    def __init__(
        self, task: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None, ranks: int = 1
    ) -> None:
        self.task = task
        composer = [str(Path(sys.executable).with_name("composer")), "-n", str(ranks)]
        self._process = subprocess.Popen(
            [
                *([sys.executable] if ranks == 1 else composer),
                "-m",
                "benchmarks.support.child",
                task,
                json.dumps(options),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self, timeout: float) -> dict[str, Any]:
        """What the task returned, or {"unavailable": why}; what a paused one is left waiting for is granted."""
        try:
            out, errors = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return {"unavailable": f"gave up after {timeout:.0f} s"}
        lines = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
        if self._process.returncode or not lines:
            raise RuntimeError(f"{self.task} ended with status {self._process.returncode}:\n{errors[-4000:]}")
        return json.loads(lines[-1])

    def wait_until_paused(self) -> bool:
        """Whether the task paused; False when it ended instead."""
        assert self._process.stdout is not None
        return any(line.startswith(MARK + "paused") for line in self._process.stdout)

    def resume(self) -> None:
        """Let a paused task go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


def task_named(task: str) -> Callable[..., dict[str, Any]]:
    """Import a task by its name, such as `loading.ours:first_batch`."""
    module, _, function = task.partition(":")
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)


def run_task(
    task: str,
    options: Mapping[str, Any],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 600.0,
    ranks: int = 1,
) -> dict[str, Any]:
    """Run a task in a fresh process, or in several of Composer's launcher, and return the result of the first."""
    return Child(task, options, env, ranks).result(timeout)


def run_repeated(task: str, options: Mapping[str, Any], *, times: int, timeout: float = 600.0) -> dict[str, Any]:
    """What `times` fresh processes returned, as `medians_of` says it."""
    results = []
    for _ in range(times):
        results.append(run_task(task, options, timeout=timeout))
        if "unavailable" in results[-1]:
            return results[-1]
    return medians_of(results)


def medians_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number, and its least and largest value as `<name>_spread`; the first of what is no number."""
    medians: dict[str, Any] = {}
    for name, value in results[0].items():
        values = [result[name] for result in results]
        if isinstance(value, (int, float)):
            medians[name] = statistics.median(values)
            medians[f"{name}_spread"] = (min(values), max(values))
        else:
            medians[name] = value
    return medians


@contextlib.contextmanager
def out_of_memory_is_unavailable() -> Iterator[None]:
    """Turns torch's several ways to say that memory ran out into UnavailableError."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is what torch raises on a CPU
        reason = out_of_memory(str(error))
        if reason is None:
            raise
        raise UnavailableError(reason) from error


def out_of_memory(message: str) -> str | None:
    """What to say of an error if it means that memory ran out; None if it means something else."""
    signs = ("out of memory", "OutOfMemoryError", "can't allocate memory", "not enough memory")
    return "out of memory" if any(sign in message for sign in signs) else None


def pause() -> None:
    """Inside a task: tell the parent, and wait for its `resume` (or for the end of its input)."""
    print(MARK + "paused", flush=True)
    sys.stdin.readline()


def memory_bytes(field: str) -> int:
    """A line of /proc/self/status, such as VmRSS or VmHWM (peak resident)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) << 10 if found else 0


def reset_peak() -> None:
    """Let VmHWM start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def mapped_memory() -> dict[str, int]:
    """Bytes of this process: private (in no other process), pss (shared pages divided by their users)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    sizes = {name: int(kb) << 10 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {"private": sizes["Private_Clean"] + sizes["Private_Dirty"], "pss": sizes["Pss"]}


def cpu_of_process(pid: int) -> float:
    """CPU seconds of a process, its threads and the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_SECOND


def descendants(pid: int) -> list[int]:
    """Process ids below a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def cpu_of_all() -> float:
    """CPU seconds of this process and of everything below it."""
    seconds = time.process_time()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(FileNotFoundError):  # a process that has just ended
            seconds += cpu_of_process(pid)
    return seconds
