"""The two engines of the writers: processes of this machine, or a Ray cluster (ray_engine.py). Both run the same tasks,
and so give the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from crisp_stream.errors import InputError, import_extra
from crisp_stream.processes import Pool, num_processes, raise_file_limit
from crisp_stream.writers.engine.memory_limit import MemoryLimit, bound_allocators, return_memory
from crisp_stream.writers.engine.ray_engine import ENCODERS_PER_GPU, RayEngine
from crisp_stream.writers.engine.tasks import Engine, Kind, Record, Task, execute
from crisp_stream.writers.engine.workspace import delete_abandoned_scratch


def open_engine(
    name: str, *, processes: int | None, memory_bytes: int | None, address: str | None
) -> LocalEngine | RayEngine:
    """The engine of a write: local or ray. Raises InputError, MissingExtraError."""
    raise_file_limit()
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
