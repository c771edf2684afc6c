"""Tasks: one function from files to files each, done when its record is there.

A task is named by a fingerprint of everything that determines its outcome: its stage's version, its settings, and the
fingerprints of the tasks whose files it reads. So what is done is seen in one listing; a change of an option or an
input gives other names to just the tasks that it touches; and whoever runs a task twice writes the same bytes twice.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import re
import socket
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
Take = Callable[[int, Record], None]
"""Takes the number of a task and its record."""
Kind = Literal["light", "encoder"]
"""Workers that run a task: light ones, or those that hold an encoder and a GPU where there are any."""
_RECORD_THREADS = 64
_RECORDS_AT_ONCE = 1024


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


def task_key(stage: str, number: int, task_fingerprint: str) -> str:
    """Name of a task's files, without their kind."""
    return f"{stage}/{number:06d}-{task_fingerprint}"


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

    def has_fingerprint(self, known: str) -> None:
        """Take the fingerprint that the same task had before, which spares its computation."""
        vars(self)["fingerprint"] = known

    @property
    def key(self) -> str:
        """Name of the task's files, without their kind."""
        return task_key(self.stage, self.number, self.fingerprint)

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


def stored_records(tasks: Iterable[Task]) -> Iterator[tuple[Task, Record]]:
    """Tasks that are done with their records, in the order given; some are read at a time, and none is held."""
    remaining = iter(tasks)
    with ThreadPoolExecutor(_RECORD_THREADS) as threads:
        while some := list(itertools.islice(remaining, _RECORDS_AT_ONCE)):
            contents = threads.map(lambda task: task.workspace.read(task.record_name), some)
            for task, content in zip(some, contents, strict=True):
                yield task, json.loads(content)


def each_finished(workspace: Workspace, tasks: Sequence[Task]) -> Iterator[tuple[int, Task, Record]]:
    """(position, task, record) of the tasks that are done; those whose files are missing or cut short are not done."""
    if not tasks:
        return
    sizes = workspace.listed(tasks[0].stage)
    positions: deque[int] = deque()

    def candidates() -> Iterator[Task]:
        for position, task in enumerate(tasks):
            if task.record_name in sizes:
                positions.append(position)
                yield task

    for task, record in stored_records(candidates() if len(sizes) else ()):
        position = positions.popleft()
        if all(sizes.get(name) == size for name, size in record.get("files", {}).items()):
            yield position, task, record


def finished(workspace: Workspace, tasks: Sequence[Task]) -> dict[int, Record]:
    """Records of the tasks that are done, by number."""
    return {task.number: record for _, task, record in each_finished(workspace, tasks)}


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
        """`run_each`, for a stage of few tasks; the records of all of them, in their order."""
        records: dict[int, Record] = {}
        self.run_each(tasks, records.__setitem__, unit=unit, num_units=num_units)
        return [records[task.number] for task in tasks]

    def run_each(self, tasks: Sequence[Task], take: Take, *, unit: str, num_units: Sequence[int] | None = None) -> None:
        """Run what is not done of a stage. Nothing of a task is held here but whether it is done.

        Args:
            tasks: of one stage.
            take: gets number and record of every task, in any order. Whoever needs a record again reads it
                (`stored_records`).
            unit: what records count as `num_units`, in the plural; empty where a task is all there is to count.
            num_units: of each task, where that is known before.

        Raises:
            PlanEnds: without an engine, when a task is not done.
        """
        if not tasks:
            return
        done = self._finished(tasks, take)
        num_missing = done.count(0)
        if num_missing:
            missing = (task for task, is_done in zip(tasks, done, strict=True) if not is_done)
            running = self._engine().run(missing, kind=tasks[0].kind, num_tasks=num_missing)
            total = None
            if num_units is not None:
                total = sum(count for count, is_done in zip(num_units, done, strict=True) if not is_done)
            self._collect(take, running, tasks[0], unit, total)

    def run_here(self, task: Task) -> Record:
        """Run the only task of a stage in this process, unless it is done: its description holds whole files.

        Raises:
            PlanEnds: without an engine, when it is not done.
        """
        records: list[Record] = []
        self._finished([task], lambda _, record: records.append(record))
        if not records:
            self._engine()
            records.append(execute(task))
        return records[0]

    def run_both(
        self, first: Sequence[Task], second: Sequence[Task], take_first: Take, take_second: Take, *, unit: str
    ) -> None:
        """Run two stages of which task i of the second needs task i of the first, both at once.

        A task of the second stage starts as soon as its first is done: GPUs do not wait for the last CPU task. Tasks
        of the first are numbered consecutively; `take_first` and `take_second` are those of `run_each`.
        """
        done_first = self._finished(first, take_first)
        done_second = self._finished(second, take_second)
        if all(done_first) and all(done_second):
            return
        engine = self._engine()
        first_number = first[0].number
        missing = (task for task, is_done in zip(first, done_first, strict=True) if not is_done)

        def feed() -> Iterator[Task]:
            for position, is_done in enumerate(done_first):
                if is_done and not done_second[position]:
                    yield second[position]
            for number, record in engine.run(missing, kind="light", num_tasks=done_first.count(0)):
                take_first(number, record)
                if not done_second[number - first_number]:
                    yield second[number - first_number]

        self._collect(take_second, engine.run(feed(), kind="encoder"), second[0], unit)

    def _engine(self) -> Engine:
        if self.engine is None:
            raise PlanEnds
        return self.engine

    def _finished(self, tasks: Sequence[Task], take: Take) -> bytearray:
        """[num_tasks], 1 for the tasks that are done, whose records are taken."""
        done = bytearray(len(tasks))
        for position, task, record in each_finished(self.workspace, tasks):
            done[position] = 1
            take(task.number, record)
        num_done = done.count(1)
        self.plan.append((tasks[0].stage, len(tasks), num_done))
        if num_done and self.engine is not None:
            self.log(f"{tasks[0].stage}: {num_done:,} of {len(tasks):,} tasks were done by an earlier run")
        return done

    def _collect(
        self, take: Take, running: Iterator[tuple[int, Record]], one: Task, unit: str, total: int | None = None
    ) -> None:
        progress = Progress(one.title or one.stage, unit, log=self.log, total=total)
        try:
            for number, record in running:
                progress.add(int(record.get("num_units", 1)))
                take(number, record)
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
