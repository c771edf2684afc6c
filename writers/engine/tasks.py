"""Tasks: one function from files to files each, done when its record is there.

A task is named by a fingerprint of everything that determines its outcome: its stage's version, its settings, and the
fingerprints of the tasks whose files it reads. So what is done is seen in one listing; a change of an option or an
input gives other names to just the tasks that it touches; and whoever runs a task twice writes the same bytes twice.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from crisp_stream.errors import InputError, StorageError
from crisp_stream.processes import Log, Progress
from crisp_stream.writers.engine.versions import stage_libraries
from crisp_stream.writers.engine.workspace import Workspace

Record = dict[str, Any]
Kind = Literal["light", "encoder"]
"""Workers that run a task: light ones, or those that hold an encoder and a GPU where there are any."""
_RECORD_THREADS = 64


def fingerprint(*parts: Any) -> str:
    """16 hex digits over anything that JSON can hold, and dataclasses and paths."""
    content = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no fingerprint")


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One piece of a stage. `make` writes files below `key` and returns what is to be known of them."""

    stage: ClassVar[str]
    """Folder of the workspace that its files stand in."""
    title: ClassVar[str] = ""
    """What is done, as the display of progress says it; the stage when empty."""
    version: ClassVar[int] = 1
    """Version of the stage; raised when the same inputs give other files."""

    workspace: Workspace
    number: int
    """Number of the task within the stage."""
    inputs: tuple[str, ...]
    """Fingerprints of the tasks whose files it reads."""
    libraries: dict[str, str] = field(init=False, repr=False, compare=False)
    """Versions of the libraries that decide its outcome, on the machine that the command was started on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "libraries", self._libraries_here())

    def _libraries_here(self) -> dict[str, str]:
        return stage_libraries(self.stage, light=self.kind == "light")

    def require_libraries(self) -> None:
        """Raises InputError: this machine would make other files than the one that the command was started on."""
        here = self._libraries_here()
        if here != self.libraries:
            others = {name: wanted for name, wanted in self.libraries.items() if here[name] != wanted}
            wrong = ", ".join(f"{name} {here[name]} instead of {wanted}" for name, wanted in others.items())
            raise InputError(
                f"{socket.gethostname()}: all machines must have the same versions of libraries for {self.stage}, but "
                f"this one has {wrong}. Install them there."
            )

    @abstractmethod
    def settings(self) -> Any:
        """Everything else that determines the outcome, as `fingerprint` takes it."""

    @abstractmethod
    def make(self) -> Record:
        """Write the files; return a record that JSON can hold. `num_units` in it is what progress counts."""

    @property
    def kind(self) -> Kind:
        """Workers that run it; the same for all of a stage."""
        return "light"

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over everything that determines the outcome."""
        return fingerprint(self.stage, self.version, self.libraries, self.number, self.inputs, self.settings())

    def __getstate__(self) -> dict[str, Any]:
        """What a process gets that runs it: the fingerprint, and not those of the tasks that it follows from, which
        may be as many as there are parts."""
        return {**self.__dict__, "inputs": (), "fingerprint": self.fingerprint}

    @property
    def key(self) -> str:
        """Name of the task's files, without their kind."""
        return f"{self.stage}/{self.number:06d}-{self.fingerprint}"

    def file(self, kind: str) -> str:
        """Name of one of its files, such as tokens.npy."""
        return f"{self.key}.{kind}"

    @property
    def record_name(self) -> str:
        """Name of its record, which is written last."""
        return self.file("json")


def execute(task: Task) -> Record:
    """Run a task and publish its record. Raises StorageError where the disk is full; other errors as they are."""
    task.require_libraries()
    try:
        record = task.make()
        task.workspace.write(task.record_name, json.dumps(record, sort_keys=True).encode())
    except OSError as error:
        if not _is_full(error):
            raise
        where = task.workspace.url if task.workspace.folder is not None else tempfile.gettempdir()
        raise StorageError(
            f"{where}: there is no room left for {task.stage} (disk full). Free some space, or name another --work "
            "folder (or TMPDIR for a remote one); the same command goes on where it stopped."
        ) from error
    return record


def _is_full(error: BaseException | None) -> bool:
    """Say whether a full disk is behind an error; numpy reports short writes without a number."""
    while error is not None:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return True
            if error.errno is None and re.search(r"\d+ requested and \d+ written", str(error)):
                return True
        error = error.__cause__
    return False


class Engine(Protocol):
    """A place where tasks run."""

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        """(number, record) of every task, as they come; tasks are taken from the iterable as workers keep up."""
        ...

    def workers(self, kind: Kind) -> int:
        """Tasks of a kind that run at once."""
        ...

    def work_bytes(self) -> int | None:
        """Data that one light worker may hold; None where memory is not limited."""
        ...

    @property
    def has_gpus(self) -> bool:
        """True where encoders run on GPUs."""
        ...


def finished(workspace: Workspace, tasks: Sequence[Task]) -> dict[int, Record]:
    """Records of the tasks that are done, by number; those whose files are missing or cut short are not done."""
    if not tasks:
        return {}
    sizes = workspace.sizes(tasks[0].stage)
    candidates = [task for task in tasks if task.record_name in sizes]
    with ThreadPoolExecutor(_RECORD_THREADS) as threads:
        records = threads.map(lambda task: json.loads(workspace.read(task.record_name)), candidates)
        return {
            task.number: record
            for task, record in zip(candidates, records, strict=True)
            if all(sizes.get(name) == size for name, size in record.get("files", {}).items())
        }


class PlanEnds(Exception):  # noqa: N818 (not an error)
    """A plan has come to tasks that must run before more can be known."""


class Runner:
    """Runs stages: what is not done of each, on an engine; or only says what would run."""

    def __init__(self, engine: Engine | None, workspace: Workspace, *, log: Log) -> None:
        """Without an engine it plans: a stage with anything to do ends it."""
        self.engine = engine
        self.workspace = workspace
        self.log = log
        self.plan: list[tuple[str, int, int]] = []
        """Stage, tasks, tasks that are done."""

    def run(self, tasks: Sequence[Task], *, unit: str, num_units: Sequence[int] | None = None) -> list[Record]:
        """Run what is not done of a stage; the records of all its tasks, in their order.

        Args:
            tasks: of one stage.
            unit: what records count as `num_units`, in the plural; empty where a task is all there is to count.
            num_units: of each task, where that is known before.

        Raises:
            PlanEnds: without an engine, when a task is not done.
        """
        if not tasks:
            return []
        records = self._finished(tasks)
        missing = [task for task in tasks if task.number not in records]
        if missing:
            done = self._engine().run(missing, kind=tasks[0].kind, num_tasks=len(missing))
            total = None
            if num_units is not None:
                total = sum(count for task, count in zip(tasks, num_units, strict=True) if task.number not in records)
            self._collect(records, done, tasks, unit, total)
        return [records[task.number] for task in tasks]

    def run_here(self, task: Task) -> Record:
        """Run the only task of a stage in this process, unless it is done: its description holds whole files.

        Raises:
            PlanEnds: without an engine, when it is not done.
        """
        records = self._finished([task])
        if not records:
            self._engine()
            records[task.number] = execute(task)
        return records[task.number]

    def run_both(
        self, first: Sequence[Task], second: Sequence[Task], *, unit: str
    ) -> tuple[list[Record], list[Record]]:
        """Run two stages of which task i of the second needs task i of the first, both at once.

        A task of the second stage starts as soon as its first is done: GPUs do not wait for the last CPU task.
        """
        records = self._finished(first)
        missing = [task for task in first if task.number not in records]
        of_second = self._finished(second)
        if missing or len(of_second) < len(second):
            engine = self._engine()
            wanted = {one.number: other for one, other in zip(first, second, strict=True)}

            def feed() -> Iterator[Task]:
                for number, task in wanted.items():
                    if number in records and task.number not in of_second:
                        yield task
                for number, record in engine.run(missing, kind="light", num_tasks=len(missing)):
                    records[number] = record
                    if wanted[number].number not in of_second:
                        yield wanted[number]

            self._collect(of_second, engine.run(feed(), kind="encoder"), second, unit)
        return [records[task.number] for task in first], [of_second[task.number] for task in second]

    def _engine(self) -> Engine:
        if self.engine is None:
            raise PlanEnds
        return self.engine

    def _finished(self, tasks: Sequence[Task]) -> dict[int, Record]:
        records = finished(self.workspace, tasks)
        self.plan.append((tasks[0].stage, len(tasks), len(records)))
        if records and self.engine is not None:
            self.log(f"{tasks[0].stage}: {len(records):,} of {len(tasks):,} tasks were done by an earlier run")
        return records

    def _collect(
        self,
        records: dict[int, Record],
        done: Iterator[tuple[int, Record]],
        tasks: Sequence[Task],
        unit: str,
        total: int | None = None,
    ) -> None:
        progress = Progress(tasks[0].title or tasks[0].stage, unit, log=self.log, total=total)
        try:
            for number, record in done:
                records[number] = record
                progress.add(int(record.get("num_units", 1)))
        except BaseException:
            progress.close()
            raise
        progress.finish()


def file_sizes(task: Task, *names: str) -> dict[str, int]:
    """Name to bytes of files that a task has just written; becomes `files` of its record."""
    return {name: task.workspace.store.object_bytes(name) for name in names}


def write_files(task: Task, files: dict[str, bytes], **known: Any) -> Record:
    """Write small files below a task's key; its record, with what else is known."""
    names = [f"{task.key}/{name}" for name in files]
    for name, content in zip(names, files.values(), strict=True):
        task.workspace.write(name, content)
    return {**known, "files": file_sizes(task, *names)}
