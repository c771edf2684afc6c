"""Rules of the Ray engine that need no cluster: what counts as a loss of what, and how much a cluster is asked for."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crisp_stream.errors import CrispError
from crisp_stream.writers.engine.ray_engine import LEAST_QUEUED, MACHINE_LOSSES, PROCESS_LOSSES, Losses, Machines
from crisp_stream.writers.engine.workspace import Workspace
from tests.writers.engine.test_engine import Doubled


class FakeRay:
    """A cluster of machines with (CPUs, GPUs) each, by name."""

    def __init__(self, **machines: tuple[float, float]) -> None:
        import ray.exceptions

        self.exceptions = ray.exceptions
        self.machines = dict(machines)
        self._gone: list[str] = []

    def nodes(self) -> list[dict[str, Any]]:
        alive = [
            {"NodeID": name, "Alive": True, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}
            for name, (cpus, gpus) in self.machines.items()
        ]
        return alive + [{"NodeID": name, "Alive": False, "Resources": {}} for name in self._gone]

    def remove(self, name: str) -> None:
        del self.machines[name]
        self._gone.append(name)


def losses_on(**machines: tuple[float, float]) -> tuple[FakeRay, Machines, Losses]:
    ray = FakeRay(**machines)
    looked = Machines(ray, processes=None)
    return ray, looked, Losses(ray, looked)


@pytest.mark.parametrize("name", ["WorkerCrashedError", "OutOfMemoryError", "ActorDiedError"])
def test_a_task_that_loses_its_process_five_times_ends_the_write(name: str) -> None:
    ray, _, losses = losses_on(a=(4, 0))
    error = getattr(ray.exceptions, name)(*(["killed for memory"] if name == "OutOfMemoryError" else []))
    for _ in range(PROCESS_LOSSES - 1):
        losses.count(7, error, departed=0)
        losses.count(8, error, departed=0)
    with pytest.raises(CrispError, match=r"a task was lost 5 times with its process, most often for memory: .* again"):
        losses.count(7, error, departed=0)


@pytest.mark.parametrize("name", ["NodeDiedError", "LocalRayletDiedError", "ActorUnavailableError", "ObjectLostError"])
def test_a_task_may_lose_its_machine_many_times(name: str) -> None:
    ray, _, losses = losses_on(a=(4, 0))
    arguments = {
        "NodeDiedError": ["gone"],
        "ActorUnavailableError": ["gone", None],
        "ObjectLostError": ["ff", None, ""],
    }
    error = getattr(ray.exceptions, name)(*arguments.get(name, []))
    for _ in range(MACHINE_LOSSES - 1):
        losses.count(7, error, departed=0)
    losses.count(7, ray.exceptions.WorkerCrashedError(), departed=0)
    with pytest.raises(CrispError, match=r"a task was lost 100 times with its machine, .* or the task ends them"):
        losses.count(7, error, departed=0)


def test_a_process_that_dies_while_its_machine_leaves_is_a_lost_machine() -> None:
    ray, machines, losses = losses_on(a=(4, 0), b=(4, 0), c=(4, 0))
    submitted = machines.departed
    ray.remove("b")
    for _ in range(2 * PROCESS_LOSSES):
        losses.count(1, ray.exceptions.WorkerCrashedError(), departed=submitted)
        losses.count(2, ray.exceptions.ActorDiedError(), departed=machines.departed, machine="b")
    assert not losses.with_process
    losses.count(1, ray.exceptions.WorkerCrashedError(), departed=machines.departed)
    losses.count(2, ray.exceptions.ActorDiedError(), departed=0, machine="c")
    assert losses.with_process == {1: 1, 2: 1}


def test_what_is_asked_for_follows_the_cluster_and_is_more_than_it_has() -> None:
    ray, machines, _ = losses_on(head=(0, 0))
    assert (machines.tasks, machines.queue, machines.encoders_asked_for(on_gpus=False)) == (1, LEAST_QUEUED, 2)
    ray.machines |= {"a": (200, 0), "b": (100, 4)}
    machines.look()
    assert (machines.tasks, machines.queue, machines.smallest_cpus) == (300, 600, 100)
    assert machines.encoders(on_gpus=True) == 8
    assert machines.encoders_asked_for(on_gpus=True) == 16
    ray.remove("b")
    machines.look()
    assert (machines.tasks, machines.departed, machines.gpus) == (200, 1, 0)
    assert machines.encoders(on_gpus=True) == 2  # of a GPU that may come back


def test_a_limit_of_processes_is_never_exceeded() -> None:
    machines = Machines(FakeRay(a=(64, 0), b=(64, 0)), processes=20)
    assert (machines.tasks, machines.queue, machines.encoders_asked_for(on_gpus=False)) == (20, 20, 20)


@pytest.mark.parametrize(
    ("gpu_machine", "cpus_per_gpu"), [((64, 8), 1), ((32, 8), 1), ((31, 8), 0), ((2, 1), 0), ((1, 1), 0)]
)
def test_encoders_on_gpus_ask_for_a_cpu_only_where_others_are_left(
    gpu_machine: tuple[int, int], cpus_per_gpu: int
) -> None:
    machines = Machines(FakeRay(cpus_only=(1, 0), gpus=gpu_machine), processes=None)
    assert machines.cpus_per_gpu_encoder * 2 == cpus_per_gpu


def test_a_task_is_sent_with_its_fingerprint_and_without_those_of_what_it_follows_from(tmp_path: Path) -> None:
    inputs = tuple(f"{number:016x}" for number in range(10_000))
    task = Doubled(workspace=Workspace(tmp_path), number=1, inputs=inputs)
    sent = pickle.dumps(task)
    received = pickle.loads(sent)
    assert len(sent) < 1_000
    assert (received.key, received.make()["doubled"]) == (task.key, 2)
    assert task.inputs == inputs
    assert SimpleNamespace(**received.__getstate__()).fingerprint == task.fingerprint
