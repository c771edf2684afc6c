"""Work in other processes, and the display of its progress.

Processes are never forked from the caller (torch and the object-store client do not survive that). On Linux they are
forked from a server that has imported what `preload` names and done nothing else: libraries that take ten seconds to
import are imported once, and lie in memory once. Elsewhere they are spawned. The backlog is bounded, so the reader of
documents waits instead of filling memory. With one process the work runs in the caller: same functions, same bytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from crisp_stream.errors import CrispError, InputError, RunInterruptedError

Task = TypeVar("Task")
Result = TypeVar("Result")
Log = Callable[[str], None]

BACKLOG_PER_PROCESS = 2
OPEN_FILES = 1 << 16
"""Files that a process may open at most where the system allows more."""
LOG_SECONDS = 10.0
CLOCK_SECONDS = 1.0

START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"

_preloaded: set[str] = set()
_worker_index = 0
_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def raise_file_limit() -> None:
    """Let this process, and those that it starts, open as many files as the system allows, 65,536 at most.

    The usual soft limit is 1,024. It is not raised beyond: where the hard limit is a billion, programs that close every
    possible file at their start take minutes.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def preload(*modules: str) -> None:
    """Have the server of the processes import modules, too. To be called before the first pool: later, each process
    imports them by itself."""
    _preloaded.update(modules)
    multiprocessing.set_forkserver_preload(sorted(_preloaded))


def worker_index() -> int:
    """0, 1, … for the processes of a pool; 0 in the process that started it. Chooses the GPU of a worker."""
    return _worker_index


def _start_worker(counter: Any, reported: Any, environment: dict[str, str], start: Callable[[], None] | None) -> None:
    global _worker_index, _reported_by_workers
    _reported_by_workers = reported
    os.environ.clear()  # of the server, which started earlier
    os.environ.update(environment)
    raise_file_limit()
    if start is not None:
        start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the whole group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with counter.get_lock():
        _worker_index = counter.value
        counter.value += 1


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def num_processes(processes: int | None) -> int:
    """The number of processes, one per core that this process may use when None. Raises InputError below 1."""
    if processes is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes < 1:
        raise InputError(f"processes: must be at least 1, got {processes}. Leave it out to use every core.")
    return processes


def map_unordered(function: Callable[[Task], Result], tasks: Iterable[Task], *, processes: int) -> Iterator[Result]:
    """`Pool.map_unordered` with a pool for this call alone; with one process, in the calling one."""
    if processes == 1:
        yield from map(function, tasks)
        return
    with contextlib.closing(Pool(processes)) as pool:
        yield from pool.map_unordered(function, tasks)


class Pool:
    """Worker processes."""

    def __init__(self, processes: int, *, start: Callable[[], None] | None = None, bare: bool = False) -> None:
        """Processes are started with the first task; each calls `start` first. Those of a `bare` pool are spawned: with
        nothing imported, so that libraries read the environment that `start` makes."""
        self._processes = processes
        method = "spawn" if bare else START_METHOD
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            _start_server()
        begun_with = (context.Value("i", 0), _shared_counter(), dict(os.environ), start)
        self._executor = ProcessPoolExecutor(
            processes, mp_context=context, initializer=_start_worker, initargs=begun_with
        )
        _open_pools.add(self)

    def map_unordered(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results of `function` over `tasks`, as they come; tasks are taken from the iterable only as workers keep up.

        Args:
            function: importable by name.
            tasks: may be endless in principle: at most 2 per process wait.

        Raises:
            CrispError: a worker was killed. Errors of `function` come through as they are.
        """
        try:
            running: set[Future[Result]] = set()
            for task in tasks:
                running.add(self._executor.submit(function, task))
                if len(running) >= self._processes * (1 + BACKLOG_PER_PROCESS):
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise CrispError(
                "a worker process was killed, most often for memory; finished work is kept. "
                "Run the same command again, with fewer processes if memory was short."
            ) from error

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have one worker call a function that is importable by name. BrokenProcessPool where it was killed."""
        return self._executor.submit(function, *arguments)

    def close(self) -> None:
        """End the workers; tasks that wait are forgotten. Those that run are finished first, unless by an interrupt."""
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            self.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def kill(self) -> None:
        """End the workers at once, whatever they do."""
        for process in list((self._executor._processes or {}).values()):
            process.kill()


def _start_server() -> None:
    """Start the server that workers are forked from deaf to Ctrl-C, as its workers then are from their first moment.

    Otherwise those that are just starting would print tracebacks.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def stopped_in_order(remedy: str) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end what runs below `with`, and all workers, with one message, which ends with `remedy`.

    Workers are killed: for work that loses nothing that is done.

    Raises:
        RunInterruptedError: a signal came.
    """
    received: list[signal.Signals] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for pool in list(_open_pools):
            pool.kill()
        _kill_starting()
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    before = {one: signal.signal(one, receive) for one in (signal.SIGTERM, signal.SIGINT) if here}
    try:
        yield
    except KeyboardInterrupt:
        first = received[0] if received else signal.SIGINT
        name = "Ctrl-C" if first is signal.SIGINT else first.name
        raise RunInterruptedError(f"by {name}. {remedy}", signal_name=first.name) from None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _kill_starting() -> None:
    """Kill the server of forked processes and its children: one that is just being forked is in no pool, and would end
    with a traceback because its parent is gone."""
    running: Any = multiprocessing.forkserver
    server: int | None = running._forkserver._forkserver_pid
    if server is None:
        return
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(server, signal.SIGSTOP)  # it forks no more
        for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)


class StopSignals:
    """Remembers SIGTERM and Ctrl-C instead of dying of them. A second Ctrl-C is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first one that came."""

    def __enter__(self) -> StopSignals:
        here = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if here else ()
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)


class Progress:
    """Display of a stage's progress: a bar on a terminal, with a clock that moves every second; else a line every ten
    seconds, also while nothing is finished."""

    def __init__(self, stage: str, unit: str, *, log: Log, total: int | None = None) -> None:
        """Args:
        stage: what is being done, as a person would say it.
        unit: what is counted, in the plural; empty where there is nothing to count.
        log: receives the lines.
        total: how many there will be, where that is known; the time that is left is said then.
        """
        self._stage, self._unit, self._log, self._total = stage, unit, log, total
        self._count = 0
        self._reported_before = units_reported()
        self._started = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            form = None if unit else "{desc}: {elapsed}"
            self._bar = tqdm(total=total, desc=stage, unit=f" {unit}", leave=False, bar_format=form)
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._run_clock, daemon=True)
        self._clock.start()

    @property
    def count(self) -> int:
        """Units that are done: those of finished tasks, and what tasks that run have reported."""
        reported = units_reported() - self._reported_before
        count = max(self._count, reported)
        return count if self._total is None else min(count, self._total)

    def add(self, count: int) -> None:
        """Count `count` more as done."""
        self._count += count

    def _run_clock(self) -> None:
        logged = self._started
        while not self._ended.wait(CLOCK_SECONDS):
            now = time.monotonic()
            if self._bar is not None:
                self._bar.n = self.count
                self._bar.refresh()
            elif now - logged >= LOG_SECONDS:
                logged = now
                self._log(f"{self._stage}: {self._so_far()}")

    def close(self) -> None:
        """Take the display away."""
        self._ended.set()
        self._clock.join()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def finish(self) -> None:
        """Take the display away and log one line."""
        self.close()
        seconds = self._seconds()
        summary = f"{self._counted(self._count)} in {seconds:.0f} s{self._rate(self._count)}" if self._unit else ""
        self._log(f"{self._stage}: {summary or f'done in {seconds:.0f} s'}")

    def _so_far(self) -> str:
        count, seconds = self.count, self._seconds()
        if not self._unit:
            return f"{seconds:.0f} s"
        left = ""
        if self._total is not None and 0 < count < self._total:
            left = f", about {duration((self._total - count) * seconds / count)} left"
        of_total = f"{count:,} of " if self._total is not None else ""
        shown = self._counted(count if self._total is None else self._total)
        return f"{of_total}{shown} in {seconds:.0f} s{self._rate(count)}{left}"

    def _counted(self, count: int) -> str:
        return f"{count:,} {self._unit[:-1] if count == 1 and self._unit.endswith('s') else self._unit}"

    def _rate(self, count: int) -> str:
        return f" ({count / self._seconds():,.1f} a second)"

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)


def duration(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes <= 60 else f"{minutes // 60:,} h {minutes % 60} min"


_reported_here = 0
_reported_by_workers: Any = None
"""Counter that the processes of pools share; of the process that started them, and of each of them."""


def report_units(count: int) -> None:
    """Say that so many units of the task that runs are done, for the display of progress alone."""
    global _reported_here
    if multiprocessing.parent_process() is None or _reported_by_workers is None:
        _reported_here += count
        return
    with _reported_by_workers.get_lock():
        _reported_by_workers.value += count


def units_reported() -> int:
    """Units that this process and its pools have reported so far."""
    return _reported_here + (0 if _reported_by_workers is None else int(_reported_by_workers.value))


def _shared_counter() -> Any:
    global _reported_by_workers
    if _reported_by_workers is None:
        _reported_by_workers = multiprocessing.get_context(START_METHOD).Value("q", 0)
    return _reported_by_workers
