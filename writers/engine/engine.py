"""The two engines of the writers: processes of this machine, or a Ray cluster. Both run the same tasks.

Ray moves no data here: tasks read and write files, by themselves, and a task whose machine was lost is run again. So
its object store may be small, and local processes and Ray give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from crisp_stream.errors import CrispError, InputError, import_extra
from crisp_stream.processes import Pool, num_processes
from crisp_stream.writers.engine.memory_limit import MemoryLimit, bound_allocators, return_memory
from crisp_stream.writers.engine.ray_cluster import RayCluster, no_cluster, require_ray
from crisp_stream.writers.engine.tasks import Engine, Kind, Record, Task, execute
from crisp_stream.writers.engine.workspace import delete_abandoned_scratch

ENCODERS_PER_GPU = 2
"""While one loads its next windows, the other computes."""
_RETRIES = 5
_AHEAD = 2
"""Ray tasks submitted per worker."""


def open_engine(
    name: str, *, processes: int | None, memory_bytes: int | None, address: str | None
) -> LocalEngine | RayEngine:
    """The engine of a write: local or ray. Raises InputError, MissingExtraError."""
    if name == "local":
        if address is not None:
            raise InputError(f"address: must be left out with the local engine, got {address}. Add --engine ray.")
        return LocalEngine(processes=processes, memory_bytes=memory_bytes)
    if name == "ray":
        if memory_bytes is not None:
            raise InputError(
                f"memory: must be left out with the Ray engine, got {memory_bytes >> 20} MB. "
                "Limit --processes instead; Ray watches the memory of its machines by itself."
            )
        return RayEngine(processes=processes, address=address)
    raise InputError(f"engine: must be local or ray, got {name!r}.")


def _run(task: Task) -> tuple[int, Record]:
    return task.number, execute(task)


def _run_bounded(task: Task) -> tuple[int, Record]:
    record = execute(task)
    return_memory()
    return task.number, record


class LocalEngine:
    """Processes of this machine."""

    name = "local"

    def __init__(self, *, processes: int | None = None, memory_bytes: int | None = None) -> None:
        """At most so many processes (None: one per core); fewer where they need more than `memory_bytes` together.

        Raises:
            InputError: not even one process fits.
        """
        self._processes = num_processes(processes)
        self.limit = None if memory_bytes is None else MemoryLimit(memory_bytes)
        self._light: Pool | None = None

    @property
    def has_gpus(self) -> bool:
        """True where encoders run on GPUs."""
        return _num_gpus() > 0

    def workers(self, kind: Kind) -> int:
        """Processes at once."""
        if kind == "encoder" and (gpus := _num_gpus()):
            return gpus * ENCODERS_PER_GPU
        return self._processes if self.limit is None else min(self._processes, self.limit.processes(kind))

    @property
    def keeps_encoders_out(self) -> bool:
        """True where this process shall load no encoder: others will, or its memory is counted without one."""
        return self.limit is not None or self.workers("encoder") > 1

    def work_bytes(self) -> int | None:
        """Data that one light process may hold; None where memory is not limited."""
        return None if self.limit is None else self.limit.work_bytes(self.workers("light"))

    @contextlib.contextmanager
    def holding(self, purpose: str, num_bytes: int, remedy: str | None = None) -> Iterator[None]:
        """Run fewer processes while `num_bytes` are needed beside them. Raises InputError where none fits."""
        if self.limit is None:
            yield
            return
        self._close_light()
        with self.limit.beside(purpose, num_bytes, remedy):
            yield
        self._close_light()

    @contextlib.contextmanager
    def each_holding(self, purpose: str, num_bytes: int) -> Iterator[int | None]:
        """Run no more processes than may hold `num_bytes` each; gives what they may hold then, None without a limit.

        Raises:
            InputError: not even one fits.
        """
        if self.limit is None:
            yield None
            return
        self._close_light()
        with self.limit.in_each(purpose, num_bytes):
            yield max(num_bytes, self.limit.work_bytes(self.workers("light")))
        self._close_light()

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        """See Engine. The processes of light tasks are kept for the next stage, those with an encoder are not."""
        processes = self.workers(kind)
        run, start = (_run, None) if self.limit is None else (_run_bounded, bound_allocators)
        if num_tasks is not None:
            processes = min(processes, num_tasks)
        if processes == 1:
            yield from map(run, tasks)
        elif kind == "encoder":
            with contextlib.closing(Pool(processes, start=start)) as pool:
                yield from pool.map_unordered(run, tasks)
        else:
            self._light = self._light or Pool(self.workers("light"), start=start)
            yield from self._light.map_unordered(run, tasks)

    def close(self) -> None:
        """End the processes."""
        self._close_light()
        delete_abandoned_scratch()

    def _close_light(self) -> None:
        if self._light is not None:
            self._light.close()
            self._light = None


def limit_of(engine: Engine | None) -> MemoryLimit | None:
    """The limit of an engine that has one."""
    return engine.limit if isinstance(engine, LocalEngine) else None


def holding(
    engine: Engine | None, purpose: str, num_bytes: int, remedy: str | None = None
) -> contextlib.AbstractContextManager[None]:
    """`LocalEngine.holding`; other engines have no limit."""
    return engine.holding(purpose, num_bytes, remedy) if isinstance(engine, LocalEngine) else contextlib.nullcontext()


def each_holding(engine: Engine | None, purpose: str, num_bytes: int) -> contextlib.AbstractContextManager[int | None]:
    """`LocalEngine.each_holding`; other engines have no limit."""
    if isinstance(engine, LocalEngine):
        return engine.each_holding(purpose, num_bytes)
    return contextlib.nullcontext()


def _num_gpus() -> int:
    try:
        faiss: Any = import_extra("faiss", extra="write", purpose="writing a dataset")
        return int(faiss.get_num_gpus())
    except (ImportError, AttributeError):
        return 0


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
        resources = self._ray.cluster_resources()
        self._cpus = min(int(resources.get("CPU", 1)), processes or 1 << 30)
        self._gpus = int(resources.get("GPU", 0))
        self.num_nodes = len([node for node in self._ray.nodes() if node["Alive"]])

    @property
    def has_gpus(self) -> bool:
        """True where encoders run on GPUs."""
        return self._gpus > 0

    def workers(self, kind: Kind) -> int:
        """Ray tasks, or actors with encoders, at once."""
        return self._gpus * ENCODERS_PER_GPU if kind == "encoder" and self._gpus else max(1, self._cpus)

    def work_bytes(self) -> int | None:
        """None: Ray limits memory itself."""
        return None

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        """See Engine. Encoders live in actors, one per GPU; a task or actor whose machine was lost starts again."""
        workers = self.workers(kind)
        if num_tasks is not None:
            workers = min(workers, num_tasks)
        if kind == "encoder":
            with contextlib.closing(_Team(self._ray, workers, on_gpus=self._gpus > 0)) as team:
                yield from team.run(tasks)
        else:
            yield from self._run_light(tasks, workers)

    def _run_light(self, tasks: Iterable[Task], workers: int) -> Iterator[tuple[int, Record]]:
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)
        running: list[Any] = []
        for task in tasks:
            if len(running) == workers * _AHEAD:
                [done], running = self._ray.wait(running, num_returns=1)
                yield _outcome(self._ray, done)
            running.append(remote.remote(task))
        while running:
            [done], running = self._ray.wait(running, num_returns=1)
            yield _outcome(self._ray, done)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()
        if self._cluster is not None:
            self._cluster.close()
        delete_abandoned_scratch()


def _outcome(ray: Any, reference: Any) -> tuple[int, Record]:
    """Get the result of a task. Raises the task's CrispError, or one that says that the task was lost."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CrispError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise _lost(error) from error


def _lost(error: BaseException) -> CrispError:
    reason = str(error).strip().partition("\n")[0]
    return CrispError(
        f"a task was lost {_RETRIES} times with its process or machine, most often for memory: {reason} "
        "Finished work is kept; run the same command again."
    )


class _Actor:
    """Holds an encoder between tasks, by the cache of `load_encoder`."""

    def ready(self) -> None:
        """Answers once the actor has its place."""

    def run(self, task: Task) -> tuple[int, Record]:
        """Run a task."""
        return _run(task)


class _Team:
    """Actors that each hold an encoder.

    Ray would start a lost actor again with its tasks, but on a cluster that has shrunk there may be no room for it, and
    its tasks would wait for ever. So a lost actor's tasks go to those that are there, and a new one joins when it can.
    """

    def __init__(self, ray: Any, size: int, *, on_gpus: bool) -> None:
        """Start `size` actors, with a CPU each; or a part of a GPU each and no CPU, which tasks that feed them need."""
        self._ray = ray
        options = {"num_cpus": 0, "num_gpus": 1 / ENCODERS_PER_GPU} if on_gpus else {"num_cpus": 1}
        self._type: Any = ray.remote(max_restarts=0, max_task_retries=0, **options)(_Actor)
        self._starting: dict[Any, Any] = {}
        self._members: set[Any] = set()
        self._free: list[Any] = []
        self._running: dict[Any, tuple[Task, Any]] = {}
        self._waiting: list[Task] = []
        """Tasks whose actor was lost."""
        self._times_lost: Counter[int] = Counter()
        """Losses by number of the task; -1 counts actors that were lost before they had a task."""
        for _ in range(size):
            self._recruit()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        """(number, record) of every task, as they come."""
        for task in tasks:
            while not self._free:
                yield from self._next()
            self._submit(task)
        while self._running or self._waiting:
            yield from self._next()

    def close(self) -> None:
        """End all actors."""
        for actor in (*self._members, *self._starting.values()):
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def _recruit(self) -> None:
        actor = self._type.remote()
        self._starting[actor.ready.remote()] = actor

    def _submit(self, task: Task) -> None:
        actor = self._free.pop(0)
        self._running[actor.run.remote(task)] = (task, actor)

    def _next(self) -> Iterator[tuple[int, Record]]:
        """Take note of one actor that has started, or one task that has ended."""
        while self._waiting and self._free:
            self._submit(self._waiting.pop())
        [reference], _ = self._ray.wait([*self._starting, *self._running], num_returns=1)
        if reference in self._starting:
            actor = self._starting.pop(reference)
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._count_loss(-1, error)
                self._recruit()
            else:
                self._members.add(actor)
                self._free += [actor] * _AHEAD
            return
        task, actor = self._running.pop(reference)
        try:
            outcome = _outcome(self._ray, reference)
        except CrispError as error:
            cause = error.__cause__
            if cause is None or not isinstance(cause, self._ray.exceptions.RayActorError):
                raise
            self._dismiss(actor)
            self._count_loss(task.number, cause)
            self._waiting.append(task)
        else:
            if actor in self._members:
                self._free.append(actor)
            yield outcome

    def _dismiss(self, actor: Any) -> None:
        if actor in self._members:
            self._members.remove(actor)
            self._free = [one for one in self._free if one is not actor]
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
            self._recruit()

    def _count_loss(self, number: int, error: BaseException) -> None:
        self._times_lost[number] += 1
        if self._times_lost[number] >= _RETRIES:
            raise _lost(error) from error
