"""Runs the jobs of a plan: side by side where there is room, each once, going on after an interruption.

Workers are processes that live over many jobs, since importing the trainer takes ten seconds: one per GPU, else one per
core. A job of one core each, rather than all cores on one job after another: threads on models this small wait for each
other. What a job prints goes into its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from crisp_stream import errors
from crisp_stream.errors import CrispError, InputError, RunInterruptedError
from crisp_stream.study.jobs import LOG, Done, Job, JobPlace, Plan, job_folder, load_done, save_done
from crisp_stream.writers.pool import Pool, num_processes, worker_index

GRACE_SECONDS = 60.0
"""After a signal, for jobs to end by themselves."""
_POLL_SECONDS = 0.5
_LOG_LINES = 12
_LOCK = ".lock"

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """An error of a job, in a form that passes between processes."""

    kind: str
    message: str
    signal_name: str | None = None

    def error(self, job: Job, log: Path) -> CrispError:
        """To be raised by the study."""
        message = f"{job.name}: {self.message}"
        if self.signal_name is not None:
            return RunInterruptedError(message, signal_name=self.signal_name)
        own = getattr(errors, self.kind, None)
        if isinstance(own, type) and issubclass(own, CrispError):
            return own(f"{message} Its log: {log}")
        return CrispError(f"{job.name} failed: {self.kind}: {self.message}. Its log, {log}, ends with:\n{_tail(log)}")


def run_jobs(plan: Plan, out: str | Path, *, workers: int | None = None, log: Log = print) -> dict[str, Done]:
    """Run all jobs of a plan that are not finished; the plan is asked again after each.

    Args:
        plan: names the jobs, in the order in which they should run.
        out: folder of the study.
        workers: jobs at a time; one per GPU, or one per core, when None.
        log: takes a line per job.

    Returns:
        All jobs of the plan, by name.

    Raises:
        InputError: the plan names a job twice or needs one that it does not have, or another study is running here.
        CrispError: a job failed, or a worker was killed. What was finished is kept, the same call goes on.
        RunInterruptedError: SIGTERM or Ctrl-C.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder), _Signals() as signals:
        run = _Run(plan, folder, workers, log, signals)
        try:
            return run.finish()
        finally:
            run.close()


class _Signals:
    """Remembers SIGTERM and Ctrl-C instead of dying of them. A second Ctrl-C is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> _Signals:
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
        self.received = signal.Signals(number)


class _Run:
    """The state of `run_jobs`."""

    def __init__(self, plan: Plan, out: Path, workers: int | None, log: Log, signals: _Signals) -> None:
        self._plan, self._out, self._log, self._signals = plan, out, log, signals
        self._cores = num_processes(None)
        self._gpus = _num_gpus()
        self._workers = num_processes(workers) if workers is not None else self._gpus or self._cores
        self._threads = max(1, self._cores // self._workers)
        self._pool: Pool | None = None
        self._alone: Pool | None = None
        self._running: dict[Future[Done | _Failure], Job] = {}
        self._done: dict[str, Done] = {}

    def finish(self) -> dict[str, Done]:
        """Until nothing is left."""
        jobs = self._jobs()
        if self._done:
            self._log(f"{len(self._done):,} of {len(jobs):,} jobs are finished already")
        while left := [job for job in jobs if job.name not in self._done]:
            self._start(left)
            if not self._running:
                raise InputError(f"the plan: {left[0].name} needs jobs that need it. Nothing can be run.")
            failure = self._await_one()
            if failure is not None:
                self._await_rest()
                raise failure
            jobs = self._jobs()
        return {job.name: self._done[job.name] for job in jobs}

    def close(self) -> None:
        """End the workers."""
        for pool in (self._pool, self._alone):
            if pool is not None:
                pool.close()

    def _jobs(self) -> list[Job]:
        """The plan, with all that is finished."""
        while True:
            jobs = list(self._plan(self._done))
            _check(jobs)
            found = {job.name: done for job in jobs if (done := self._found(job)) is not None}
            if found.keys() <= self._done.keys() and all(self._done[name] == own for name, own in found.items()):
                self._done = found
                return jobs
            self._done = found

    def _found(self, job: Job) -> Done | None:
        if job.name in {own.name for own in self._running.values()}:
            return None  # its record may be there already; it is taken with its process
        known = self._done.get(job.name)
        return known if known is not None and known.key == job.key else load_done(self._out, job)

    def _start(self, left: Sequence[Job]) -> None:
        """Start what there is room for, in the order of the plan; a whole-machine job waits until nothing runs."""
        names = {job.name for job in self._running.values()}
        for job in left:
            if self._signals.received is not None or len(self._running) >= self._workers:
                return
            if job.name in names or any(need not in self._done for need in job.needs):
                continue
            if job.whole_machine:
                if not self._running:
                    self._submit(job)
                return
            if any(own.whole_machine for own in self._running.values()):
                return
            self._submit(job)

    def _submit(self, job: Job) -> None:
        folder = job_folder(self._out, job.name, job.key)
        folder.mkdir(parents=True, exist_ok=True)
        if job.whole_machine:
            self._log(f"{job.name}: started")
            pool = self._alone = Pool(1, start=functools.partial(_prepare_worker, self._cores))
            future = pool.submit(_run_job, job, folder, self._cores, self._cores, 0)
        else:
            if self._pool is None:
                self._pool = Pool(self._workers, start=functools.partial(_prepare_worker, self._threads))
            future = self._pool.submit(_run_job, job, folder, self._threads, 1, self._gpus)
        self._running[future] = job

    def _await_one(self) -> CrispError | None:
        """Until a job is finished, or a signal has come. Returns an error to raise once the others have ended."""
        while True:
            finished, _ = wait(self._running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            if self._signals.received is not None:
                self._stop(self._signals.received)
            if finished:
                failures = [error for future in finished if (error := self._take(future)) is not None]
                return failures[0] if failures else None

    def _await_rest(self) -> None:
        """Let the jobs that run finish, so that their work is kept."""
        while self._running:
            finished, _ = wait(self._running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            if self._signals.received is not None:
                self._stop(self._signals.received)
            for future in finished:
                self._take(future)

    def _take(self, future: Future[Done | _Failure]) -> CrispError | None:
        job = self._running.pop(future)
        if job.whole_machine and self._alone is not None:
            self._alone.close()
            self._alone = None
        folder = job_folder(self._out, job.name, job.key)
        try:
            outcome = future.result()
        except BrokenProcessPool:
            return CrispError(
                f"{job.name}: its worker process was killed, most often for memory; finished jobs are kept. Run the "
                f"same command again, with fewer --jobs if memory was short. Its log: {folder / LOG}"
            )
        if isinstance(outcome, _Failure):
            return outcome.error(job, folder / LOG)
        self._done[job.name] = outcome
        known = len(self._plan(self._done))
        self._log(f"[{len(self._done):,}/{known:,}] {job.name}  {outcome.wall_seconds:,.0f} s")
        return None

    def _stop(self, received: signal.Signals) -> None:
        """Have the workers end their jobs, with a checkpoint where they train, and give up."""
        self._log(f"{received.name}: the jobs that run are told to stop")
        deadline = time.monotonic() + GRACE_SECONDS
        for process in multiprocessing.active_children():
            process.terminate()
        while self._running and time.monotonic() < deadline:
            finished, _ = wait(self._running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                with contextlib.suppress(CrispError):
                    self._take(future)
        for process in multiprocessing.active_children():
            process.kill()
        self._running.clear()
        raise RunInterruptedError(
            f"the study was stopped by {received.name}; {len(self._done):,} jobs are finished. The same command goes "
            "on.",
            signal_name=received.name,
        )


def _prepare_worker(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the study says SIGTERM


def _run_job(job: Job, folder: Path, threads: int, processes: int, num_gpus: int) -> Done | _Failure:
    """Do a job in a worker; what it prints goes to its log."""
    if num_gpus:
        _take_gpu(worker_index(), num_gpus)
    started, cpu = time.monotonic(), _cpu_seconds()
    with _output_to(folder / LOG):
        try:
            place = JobPlace(folder=folder, threads=threads, processes=processes, log=_print)
            values = job.work(place)
        except CrispError as error:
            traceback.print_exc()
            return _Failure(
                kind=type(error).__name__, message=str(error), signal_name=getattr(error, "signal_name", None)
            )
        except Exception as error:
            traceback.print_exc()
            return _Failure(kind=type(error).__name__, message=str(error))
    done = Done(
        name=job.name,
        key=job.key,
        values=values,
        wall_seconds=time.monotonic() - started,
        cpu_seconds=_cpu_seconds() - cpu,
    )
    save_done(folder, done)
    return done


def _print(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Append everything that this process and its children print to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with path.open("ab", buffering=0) as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)
            os.close(own)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in used)


def _num_gpus() -> int:
    """Visible ones. Counting does not initialise CUDA."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def _take_gpu(index: int, num_gpus: int) -> None:
    """Let this worker see one GPU; before it imports torch, or to no effect after it took one."""
    if "CRISP_STREAM_STUDY_GPU" in os.environ:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(num_gpus)]
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["CRISP_STREAM_STUDY_GPU"] = names[index % len(names)]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another study is running here. Wait for it, or choose another --out."
            ) from error
        yield


def _check(jobs: Sequence[Job]) -> None:
    names = [job.name for job in jobs]
    for job in jobs:
        if names.count(job.name) > 1:
            raise InputError(f"the plan: two jobs are called {job.name}. Give the methods other names.")
        for need in job.needs:
            if need not in names:
                raise InputError(f"the plan: {job.name} needs {need}, which is not in it.")


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
