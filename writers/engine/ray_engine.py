"""The engine that runs tasks on a Ray cluster, whose machines may come and go.

Ray moves no data here: tasks read and write files, by themselves, so its object store may be small. What is lost is
run again by this process, not by Ray, which counts machines that die like processes that die and would run a task
without end that is killed for memory. Here a task may lose many machines, as on spot instances, but few processes.

What a cluster has is looked at again every few seconds, and more is asked for than it has: tasks and encoders that
wait for a place are what an autoscaler adds machines for, and take the places of those that are lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from crisp_stream.errors import CrispError, import_extra
from crisp_stream.processes import num_processes, raise_file_limit
from crisp_stream.writers.engine.ray_cluster import RayCluster, no_cluster, require_ray
from crisp_stream.writers.engine.tasks import Kind, Record, Task, execute
from crisp_stream.writers.engine.workspace import delete_abandoned_scratch

ENCODERS_PER_GPU = 2
"""While one loads its next windows, the other computes."""
PROCESS_LOSSES = 5
"""Losses of a task with its process alone, most often for memory, that end the write."""
MACHINE_LOSSES = 100
"""Losses of a task with its machine that end the write: no spot market does this, a task that kills machines does."""
LOOK_SECONDS = 10.0
"""Between looks at what the cluster has."""
LEAST_QUEUED = 256
"""Light tasks submitted at least, running or not: what a cluster without CPUs can be asked to grow for at once."""
_AHEAD = 2
"""Tasks submitted per CPU or encoder, and encoders asked for per place that there is."""
_LEAST_CPUS_PER_GPU = 4
"""CPUs per GPU from which on encoders ask for one of them."""
_NO_TASK = -1
"""Counts encoders that were lost before they had a task."""
_PASSED_ON = (
    "AWS_",
    "GOOGLE_",
    "AZURE_",
    "CRISP_STREAM_",
    "HF_",
    "OMP_",
    "STORAGE_",
    "S3_ENDPOINT_URL",
    "SSL_CERT_FILE",
)


class RayEngine:
    """A Ray cluster: one started on this machine, or the one at an address."""

    name = "ray"

    def __init__(self, *, processes: int | None = None, address: str | None = None) -> None:
        """Args:
            processes: CPUs of a cluster started here; tasks at once of one that is connected to. None takes all.
            address: of a running cluster, such as auto or ray://head:10001; None starts one.

        Raises:
            InputError: no cluster at the address. StorageError: none could be started here.
            MissingExtraError: ray is not installed.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray: Any = import_extra("ray", extra="ray", purpose="writing with --engine ray")
        environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false", **environment}},
            "log_to_driver": False,
            "logging_level": "error",
        }
        if address is not None:
            require_ray(address)
        self._cluster = RayCluster(num_cpus=num_processes(processes)) if address is None else None
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=self._cluster.address if self._cluster else address, **options)
        except Exception as error:  # Ray raises plain Exception, too
            self.close()
            raise no_cluster(address or "local", str(error).strip().partition("\n")[0]) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)  # Ray's own exits without a word
        self._machines = Machines(self._ray, processes=None if address is None else processes)
        self.has_gpus = self._machines.gpus > 0
        """True where encoders run on GPUs: the cluster had one when this began."""

    def workers(self, kind: Kind) -> int:
        """Ray tasks, or actors with encoders, at once, of the cluster as it is now."""
        return self._machines.encoders(on_gpus=self.has_gpus) if kind == "encoder" else self._machines.tasks

    def work_bytes(self) -> int | None:
        """None: Ray limits memory itself."""
        return None

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        """See Engine. Encoders live in actors, on a part of a GPU each where there are GPUs."""
        if kind == "encoder":
            running = _Team(self._ray, self._machines, on_gpus=self.has_gpus, num_tasks=num_tasks)
        else:
            running = _LightTasks(self._ray, self._machines)
        with contextlib.closing(running):
            yield from running.run(tasks)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()
        if self._cluster is not None:
            self._cluster.close()
        delete_abandoned_scratch()


class Machines:
    """What a cluster has; looked at again when that is some seconds old."""

    def __init__(self, ray: Any, *, processes: int | None) -> None:
        """At most so many `processes` run at once; None runs as many as there is room for."""
        self._ray, self._processes = ray, processes
        self.alive: set[str] = set()
        """Ids of the machines that are there."""
        self.departed = 0
        """Machines that have left since the start."""
        self.look()

    def look(self) -> None:
        """Ask Ray."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        alive = {node["NodeID"] for node in nodes}
        self.departed += len(self.alive - alive)
        self.alive = alive
        self._cpus_and_gpus = [
            (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes
        ]
        self._looked = time.monotonic()

    def look_if_due(self) -> None:
        """Ask Ray, if the last answer is old."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self.look()

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return sum(gpus for _, gpus in self._cpus_and_gpus)

    @property
    def tasks(self) -> int:
        """Light tasks that run at once, at least 1."""
        cpus = sum(cpus for cpus, _ in self._cpus_and_gpus)
        return max(1, cpus if self._processes is None else min(cpus, self._processes))

    @property
    def queue(self) -> int:
        """Light tasks that are submitted, running or waiting: more than run, but where these are limited."""
        room = max(self.tasks * _AHEAD, LEAST_QUEUED)
        return room if self._processes is None else min(room, self._processes)

    @property
    def smallest_cpus(self) -> int:
        """CPUs of the smallest machine that has any; 1 where none has."""
        return min((cpus for cpus, _ in self._cpus_and_gpus if cpus), default=1)

    def encoders(self, *, on_gpus: bool) -> int:
        """Actors with encoders that run at once, at least 1."""
        return max(1, self.gpus) * ENCODERS_PER_GPU if on_gpus else self.tasks

    def encoders_asked_for(self, *, on_gpus: bool) -> int:
        """Actors that are started, with a place or waiting for one."""
        room = self.encoders(on_gpus=on_gpus) * _AHEAD
        return room if on_gpus or self._processes is None else min(room, self._processes)

    @property
    def cpus_per_gpu_encoder(self) -> float:
        """CPUs that an encoder on a GPU asks for: one per GPU in all, where at least three are left for other tasks.

        Encoders start kernels and wait; CPU tasks on every core of their machine would let them wait longer. But an
        encoder stays, and so must never hold the only CPUs, which the tasks that feed it need.
        """
        with_gpus = [(cpus, gpus) for cpus, gpus in self._cpus_and_gpus if gpus]
        enough = with_gpus and all(cpus >= gpus * _LEAST_CPUS_PER_GPU for cpus, gpus in with_gpus)
        return 1 / ENCODERS_PER_GPU if enough else 0


class Losses:
    """Counts how often tasks are lost; those with a machine apart from those with a process alone."""

    def __init__(self, ray: Any, machines: Machines) -> None:
        errors = ray.exceptions
        self._of_machines = (
            errors.NodeDiedError,
            errors.LocalRayletDiedError,
            errors.ObjectLostError,
            errors.ActorUnavailableError,
        )
        self._machines = machines
        self.with_process: Counter[int] = Counter()
        """Losses by number of the task."""
        self._with_machine: Counter[int] = Counter()

    def count(self, number: int, error: BaseException, *, departed: int, machine: str | None = None) -> None:
        """Count a loss.

        Args:
            number: of the task.
            error: of Ray, about it.
            departed: `Machines.departed` when it was submitted.
            machine: on which it ran, where that is known.

        Raises:
            CrispError: it was lost too often.
        """
        self._machines.look()
        gone = self._machines.departed > departed if machine is None else machine not in self._machines.alive
        if gone or isinstance(error, self._of_machines):
            counter, limit, owner = self._with_machine, MACHINE_LOSSES, "machine"
            reason = "either machines leave all the time, or the task ends them"
        else:
            counter, limit, owner = self.with_process, PROCESS_LOSSES, "process"
            reason = "most often for memory"
        counter[number] += 1
        if counter[number] >= limit:
            raise CrispError(
                f"a task was lost {limit} times with its {owner}, {reason}: {_first_line(error)} "
                "Finished work is kept; run the same command again."
            ) from error

    def forget(self, number: int) -> None:
        """Begin anew with a task."""
        self.with_process.pop(number, None)
        self._with_machine.pop(number, None)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _run(task: Task) -> tuple[int, Record]:
    raise_file_limit()  # workers of Ray are started by others
    return task.number, execute(task)


def _result(ray: Any, reference: Any) -> tuple[int, Record]:
    """Get the result of a task. Raises the task's CrispError as it is; RayTaskError for a bug; another RayError where
    the task was lost."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CrispError):
            raise error.cause from None
        raise


def _ready(ray: Any, references: list[Any], seconds: float) -> list[Any]:
    """All that are done of some references, once one is, or none when the time is over."""
    done = references and ray.wait(references, num_returns=1, timeout=seconds)[0]
    return ray.wait(references, num_returns=len(references), timeout=0)[0] if done else []


class _LightTasks:
    """Tasks of one CPU each, spread over the machines: where there are few, they share no disk and no network."""

    def __init__(self, ray: Any, machines: Machines) -> None:
        self._ray, self._machines = ray, machines
        self._remote: Any = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_run)
        self._losses = Losses(ray, machines)
        self._running: dict[Any, tuple[Task, int]] = {}
        """Task, and machines that had departed when it was submitted."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        """(number, record) of every task, as they come."""
        for task in tasks:
            while len(self._running) >= self._machines.queue:
                yield from self._next()
            self._submit(task)
        while self._running:
            yield from self._next()

    def close(self) -> None:
        """End what still runs."""
        for reference in self._running:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)

    def _submit(self, task: Task) -> None:
        """A task that lost its process asks for twice the CPUs each time: it may need the memory of its neighbours."""
        cpus = min(2 ** self._losses.with_process[task.number], self._machines.smallest_cpus)
        remote = self._remote if cpus == 1 else self._remote.options(num_cpus=cpus)
        self._running[remote.remote(task)] = (task, self._machines.departed)

    def _next(self) -> Iterator[tuple[int, Record]]:
        self._machines.look_if_due()
        for reference in _ready(self._ray, list(self._running), LOOK_SECONDS):
            task, departed = self._running.pop(reference)
            try:
                outcome = _result(self._ray, reference)
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError as error:
                self._losses.count(task.number, error, departed=departed)
                self._submit(task)
            else:
                yield outcome


class _Actor:
    """Holds an encoder between tasks, by the cache of `load_encoder`."""

    def machine(self) -> str:
        """Id of its machine; answers once the actor has its place."""
        return import_extra("ray", extra="ray", purpose="writing with --engine ray").get_runtime_context().get_node_id()

    def run(self, task: Task) -> tuple[int, Record]:
        """Run a task."""
        return _run(task)


class _Team:
    """Actors that each hold an encoder.

    Ray would start a lost actor again with its tasks, but on a cluster that has shrunk there may be no room for it, and
    its tasks would wait for ever. So a lost actor's tasks go to those that are there, and a new one joins when it can.
    """

    def __init__(self, ray: Any, machines: Machines, *, on_gpus: bool, num_tasks: int | None) -> None:
        """Actors ask for a CPU each, or for a part of a GPU each. There are no more of them than tasks."""
        self._ray, self._machines = ray, machines
        self._on_gpus, self._num_tasks = on_gpus, num_tasks
        self._type: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        self._losses = Losses(ray, machines)
        self._starting: dict[Any, tuple[Any, int]] = {}
        """Actor, and machines that had departed when it was asked for."""
        self._members: dict[Any, str] = {}
        """Machine of each actor."""
        self._free: list[Any] = []
        self._running: dict[Any, tuple[Task, Any, str]] = {}
        """Task, actor and its machine."""
        self._waiting: list[Task] = []
        """Tasks whose actor was lost."""
        self._recruit()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        """(number, record) of every task, as they come."""
        for task in tasks:
            yield from self._next(0)
            while self._waiting or not self._free:
                yield from self._next(LOOK_SECONDS)
            self._submit(task)
        while self._running or self._waiting:
            yield from self._next(LOOK_SECONDS)

    def close(self) -> None:
        """End all actors."""
        for actor in (*self._members, *(actor for actor, _ in self._starting.values())):
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def _recruit(self) -> None:
        """Ask for as many actors as there should be by now."""
        wanted = self._machines.encoders_asked_for(on_gpus=self._on_gpus)
        if self._num_tasks is not None:
            wanted = min(wanted, self._num_tasks)
        options: dict[str, float] = {"num_cpus": 1}
        if self._on_gpus:
            options = {"num_cpus": self._machines.cpus_per_gpu_encoder, "num_gpus": 1 / ENCODERS_PER_GPU}
        while len(self._members) + len(self._starting) < wanted:
            actor = self._type.options(**options).remote()
            self._starting[actor.machine.remote()] = (actor, self._machines.departed)

    def _submit(self, task: Task) -> None:
        actor = self._free.pop(0)
        self._running[actor.run.remote(task)] = (task, actor, self._members[actor])

    def _next(self, seconds: float) -> Iterator[tuple[int, Record]]:
        """Take note of actors that have started, and of tasks that have ended."""
        self._machines.look_if_due()
        for actor in [actor for actor, machine in self._members.items() if machine not in self._machines.alive]:
            self._dismiss(actor)
        self._recruit()
        while self._waiting and self._free:
            self._submit(self._waiting.pop())
        for reference in _ready(self._ray, [*self._starting, *self._running], seconds):
            if reference in self._starting:
                self._welcome(reference)
            else:
                yield from self._ended(reference)

    def _welcome(self, reference: Any) -> None:
        actor, departed = self._starting.pop(reference)
        try:
            machine = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._losses.count(_NO_TASK, error, departed=departed)
        else:
            self._losses.forget(_NO_TASK)
            self._members[actor] = machine
            self._free += [actor] * _AHEAD

    def _ended(self, reference: Any) -> Iterator[tuple[int, Record]]:
        task, actor, machine = self._running.pop(reference)
        try:
            outcome = _result(self._ray, reference)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            self._dismiss(actor)
            self._losses.count(task.number, error, departed=self._machines.departed, machine=machine)
            self._waiting.append(task)
        else:
            if actor in self._members:
                self._free.append(actor)
            yield outcome

    def _dismiss(self, actor: Any) -> None:
        if self._members.pop(actor, None) is not None:
            self._free = [one for one in self._free if one is not actor]
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
