"""Groups of tasks played on machines: list scheduling of each stage over the workers, with barriers between stages."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.writing.scale_model import Tasks, constant

_SCHEDULED = 100_000
"""Tasks of a stage that are scheduled one by one; of more, the mean and the longest decide."""
_SPREAD = 0.15
"""Standard deviation of the logarithm of a task's time, beside its stage's: assumed."""
_DISPATCH_SECONDS = 0.002
"""From the end of a task to the start of the next one on its worker: assumed."""
ENCODERS_PER_GPU = 2


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where a write runs, and what it costs there."""

    machines: int
    cores: int
    gpus: int = 0
    """Per machine."""
    windows_per_gpu_second: float = 3000.0
    latency: float = 0.03
    """Seconds of a request."""
    bandwidth: float = 1.5e9
    """Bytes per second of a machine."""
    request_bandwidth: float = 80e6
    """Bytes per second of one request."""
    gets_per_second: float = 5500.0
    puts_per_second: float = 3500.0
    """Of the store, for one stage's prefix."""
    speed: float = 1.0
    """Of a core, by that of the machine of the measurement."""
    per_core_hour: float = 0.04
    per_gpu_hour: float = 3.0
    per_put: float = 5e-6
    """Lists, too."""
    per_get: float = 4e-7
    per_gb_month: float = 0.023

    @property
    def all_cores(self) -> int:
        """Workers for light tasks."""
        return self.machines * self.cores

    @property
    def all_gpus(self) -> int:
        """GPUs."""
        return self.machines * self.gpus


@dataclass(frozen=True, kw_only=True)
class Played:
    """A stage, played."""

    tasks: Any
    """Tasks, or their Sum."""
    start: float
    seconds: float
    bound: str
    """What its length comes from."""


def play(stages: Sequence[Tasks], machines: Machines) -> list[Played]:
    """Play all stages; windows and embeddings run at the same time where there are GPUs."""
    played: list[Played] = []
    now = 0.0
    for tasks in stages:
        seconds, bound = _stage(tasks, machines)
        start = now
        if tasks.stage == "embeddings" and tasks.on == "gpus" and machines.gpus:
            cutting = played[-1]
            first = _task_seconds(cutting.tasks, machines)
            last = _task_seconds(tasks, machines)
            start = cutting.start + first
            end = max(start + seconds, cutting.start + cutting.seconds + last)
            bound = bound if end == start + seconds else "windows"
            seconds = end - start
        played.append(Played(tasks=tasks, start=start, seconds=seconds, bound=bound))
        now = max(now, start + seconds)
    return played


def _workers(tasks: Tasks, machines: Machines) -> int:
    if tasks.on == "driver":
        return 1
    if tasks.on == "gpus" and machines.gpus:
        return machines.all_gpus * ENCODERS_PER_GPU
    return machines.all_cores


def _task_seconds(tasks: Tasks, machines: Machines) -> float:
    """One task alone: its computation, its bytes, and the requests it waits for."""
    return sum(_parts_of(tasks, machines).values())


def _parts_of(tasks: Tasks, machines: Machines) -> dict[str, float]:
    workers = min(_workers(tasks, machines), tasks.count)
    per_machine = max(1.0, workers / machines.machines)
    rate = min(machines.request_bandwidth * min(tasks.at_once, 4), machines.bandwidth / per_machine)
    computing = tasks.cpu / machines.speed
    if tasks.on == "gpus" and machines.gpus:
        computing = tasks.units["windows"] / machines.windows_per_gpu_second * ENCODERS_PER_GPU
    return {
        "computing": computing,
        "bytes": (tasks.read + tasks.written) / rate,
        "requests": tasks.rounds * machines.latency + _DISPATCH_SECONDS,
    }


def _stage(tasks: Tasks, machines: Machines) -> tuple[float, str]:
    parts = _parts_of(tasks, machines)
    workers = _workers(tasks, machines)
    most = max(parts, key=parts.__getitem__)
    where = "GPUs" if tasks.on == "gpus" and machines.gpus else "cores"
    scheduled = makespan(tasks.count, sum(parts.values()), workers)
    reason = f"{where}: {most}" if tasks.count >= workers else f"one task: {most}"
    puts, gets = tasks.count * tasks.puts, tasks.count * (tasks.gets + tasks.heads)
    bounds = {
        reason: scheduled,
        "the driver": tasks.count * constant("driver/tasks") / machines.speed,
        "PUT/s of the store": puts / machines.puts_per_second,
        "GET/s of the store": gets / machines.gets_per_second,
    }
    bound = max(bounds, key=bounds.__getitem__)
    return bounds[bound] + machines.latency, bound


def makespan(count: int, seconds: float, workers: int) -> float:
    """List scheduling of tasks of about that length, in their order, each on the worker that is free first."""
    if count == 1 or seconds <= 0:
        return seconds
    if count > _SCHEDULED:
        return count * seconds / workers + seconds * math.exp(3 * _SPREAD)
    rng = np.random.default_rng(count)
    lengths = seconds * np.exp(rng.normal(-(_SPREAD**2) / 2, _SPREAD, count))
    free = [0.0] * min(workers, count)
    for length in lengths.tolist():
        heapq.heapreplace(free, free[0] + length)
    return max(free)
