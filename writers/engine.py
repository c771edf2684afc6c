"""The two engines of the writers: processes of this machine, or a Ray cluster. Both run the same tasks.

Ray moves no data here: tasks read and write files, by themselves, and a task whose machine was lost is run again. So
its object store may be small, and local processes and Ray give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from crisp_stream.errors import CrispError, InputError, import_extra
from crisp_stream.writers.pool import Pool, num_processes
from crisp_stream.writers.tasks import Kind, Record, Task, execute

ENCODER_BYTES = 1400 << 20
"""Memory of a process with torch, sentence-transformers and all-MiniLM-L6-v2 on the CPU (measured 1.3 GB)."""
LIGHT_BYTES = 320 << 20
"""Memory of a process that reads, tokenises, assigns or sorts, before the data it holds (measured 0.25 GB)."""
LEAST_WORK_BYTES = 64 << 20
"""Data that a process must be able to hold beside."""
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
        return RayEngine(processes=processes, address=address)
    raise InputError(f"engine: must be local or ray, got {name!r}.")


def _run(task: Task) -> tuple[int, Record]:
    return task.number, execute(task)


class LocalEngine:
    """Processes of this machine."""

    name = "local"

    def __init__(self, *, processes: int | None = None, memory_bytes: int | None = None) -> None:
        """Args:
            processes: at most; None is one per core.
            memory_bytes: of all processes together; fewer run where it is short.

        Raises:
            InputError: not even one process fits.
        """
        self._processes = num_processes(processes)
        self._memory_bytes = memory_bytes
        least = LIGHT_BYTES + LEAST_WORK_BYTES
        if memory_bytes is not None and memory_bytes < least:
            raise InputError(
                f"memory: must be at least {least >> 20} MB, what one process needs, got {memory_bytes >> 20} MB."
            )
        self._light: Pool | None = None

    @property
    def has_gpus(self) -> bool:
        """Whether encoders run on GPUs."""
        return _num_gpus() > 0

    def workers(self, kind: Kind) -> int:
        """Processes at once."""
        if kind == "encoder" and (gpus := _num_gpus()):
            return gpus * ENCODERS_PER_GPU
        if self._memory_bytes is None:
            return self._processes
        each = ENCODER_BYTES if kind == "encoder" else LIGHT_BYTES + LEAST_WORK_BYTES
        fitting = self._memory_bytes // each
        if fitting < 1:
            raise InputError(
                f"memory: embedding needs {each >> 20} MB for one process, got {self._memory_bytes >> 20} MB. "
                "Give more, or use --encoder lsi, which needs no neural network."
            )
        return min(self._processes, fitting)

    def work_bytes(self) -> int | None:
        """Data that one light process may hold; None where memory is not limited."""
        if self._memory_bytes is None:
            return None
        return self._memory_bytes // self.workers("light") - LIGHT_BYTES

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        """See Engine. The processes of light tasks are kept for the next stage, those with an encoder are not."""
        processes = self.workers(kind)
        if num_tasks is not None:
            processes = min(processes, num_tasks)
        if processes == 1:
            yield from map(_run, tasks)
        elif kind == "encoder":
            pool = Pool(processes)
            try:
                yield from pool.map_unordered(_run, tasks)
            finally:
                pool.close()
        else:
            self._light = self._light or Pool(self.workers("light"))
            yield from self._light.map_unordered(_run, tasks)

    def close(self) -> None:
        """End the processes."""
        if self._light is not None:
            self._light.close()
            self._light = None


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
            InputError: no cluster at the address. MissingExtraError: ray is not installed.
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
        if address is None:
            options |= {
                "num_cpus": num_processes(processes),
                "include_dashboard": False,
                "object_store_memory": 128 << 20,  # no data goes through it
            }
        try:
            self._ray.init(address=address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"address {address}: must be a running Ray cluster, got: {error}. Start one with: ray start --head"
            ) from error
        resources = self._ray.cluster_resources()
        self._cpus = min(int(resources.get("CPU", 1)), processes or 1 << 30)
        self._gpus = int(resources.get("GPU", 0))
        self.num_nodes = len([node for node in self._ray.nodes() if node["Alive"]])

    @property
    def has_gpus(self) -> bool:
        """Whether encoders run on GPUs."""
        return self._gpus > 0

    def workers(self, kind: Kind) -> int:
        """Ray tasks, or actors with encoders, at once."""
        return self._gpus * ENCODERS_PER_GPU if kind == "encoder" and self._gpus else max(1, self._cpus)

    def work_bytes(self) -> int | None:
        """Not limited."""
        return None

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        """See Engine. Encoders live in actors, one per GPU; a task or actor whose machine was lost starts again."""
        workers = self.workers(kind)
        if num_tasks is not None:
            workers = min(workers, num_tasks)
        if kind == "encoder":
            yield from self._run_in_actors(tasks, workers)
        else:
            remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)
            yield from self._as_they_come(tasks, [remote.remote] * workers)

    def _run_in_actors(self, tasks: Iterable[Task], workers: int) -> Iterator[tuple[int, Record]]:
        actor_type = self._ray.remote(max_restarts=-1, max_task_retries=_RETRIES)(_Actor)
        options = {"num_cpus": 1, "num_gpus": 1 / ENCODERS_PER_GPU if self._gpus else 0}
        actors = [actor_type.options(**options).remote() for _ in range(workers)]
        try:
            yield from self._as_they_come(tasks, [actor.run.remote for actor in actors])
        finally:
            for actor in actors:
                self._ray.kill(actor)

    def _as_they_come(self, tasks: Iterable[Task], slots: list[Any]) -> Iterator[tuple[int, Record]]:
        """Keep `_AHEAD` tasks submitted per slot; a slot is a function that submits."""
        free = list(range(len(slots))) * _AHEAD
        slot_of: dict[Any, int] = {}
        for task in tasks:
            if not free:
                yield from self._finish_one(slot_of, free)
            slot = free.pop(0)
            slot_of[slots[slot](task)] = slot
        while slot_of:
            yield from self._finish_one(slot_of, free)

    def _finish_one(self, slot_of: dict[Any, int], free: list[int]) -> Iterator[tuple[int, Record]]:
        done, _ = self._ray.wait(list(slot_of), num_returns=1)
        for reference in done:
            free.append(slot_of.pop(reference))
            try:
                yield self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, CrispError):
                    raise cause from None
                raise
            except self._ray.exceptions.RayError as error:
                raise CrispError(
                    f"a task was lost {_RETRIES} times with its machine or process, most often for memory: "
                    f"{str(error).strip().partition(chr(10))[0]} Finished work is kept; run the same command again."
                ) from error

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


class _Actor:
    """Holds an encoder between tasks, by the cache of `load_encoder`."""

    def run(self, task: Task) -> tuple[int, Record]:
        return _run(task)
