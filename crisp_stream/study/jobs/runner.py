"""Run the jobs of a plan, each once, side by side where there is room, and go on after an interruption.

One worker per GPU, else one per core. A job of one core each, rather than all cores on one job after another: threads
on models this small wait for each other. Each worker is a separate pool, because a pool that loses a process ends all
the others at once; so a job that is killed, or that a signal ends before the rest, costs no other job its work.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from crisp_stream.errors import CrispError, InputError, RunInterruptedError, StorageError
from crisp_stream.processes import Pool, StopSignals, num_processes
from crisp_stream.study.jobs.job import LOG, Done, Job, Plan, job_folder, load_done
from crisp_stream.study.jobs.worker import Failure, ctrl_c_held_back, prepare_worker, run_job

GRACE_SECONDS = 60.0
"""Time that jobs have after a signal to end by themselves."""
_POLL_SECONDS = 0.5
_LOCK = ".lock"

Log = Callable[[str], None]


def run_jobs(plan: Plan, out: str | Path, *, workers: int | None = None, log: Log = print) -> dict[str, Done]:
    """Run all jobs of a plan that are not finished; the plan is made anew after each.

    Args:
        plan: names the jobs, in the order in which they should run.
        out: folder of the study.
        workers: jobs at a time; one per GPU, or one per core, when None.
        log: takes a line when a job is started and one when it is finished.

    Raises:
        InputError: the plan names a job twice or needs one that it does not have, or another study is running here.
        FormatError: the record of a finished job is damaged.
        CrispError: a job failed, or a worker was killed. Jobs that ran beside it are finished and kept; the same call
            goes on.
        RunInterruptedError: SIGTERM or Ctrl-C.
        StorageError: the folder cannot be written to.
    """
    if workers is not None and workers < 1:
        raise InputError(
            f"jobs at a time must be at least 1, got {workers}. Leave it out for one per GPU, or per core."
        )
    folder = Path(out)
    with _locked(folder), StopSignals() as signals:
        run = _Run(plan, folder, workers, log, signals)
        try:
            return run.finish()
        finally:
            run.close()


@dataclass(frozen=True, kw_only=True)
class _Room:
    """Workers, cores and GPUs of the machine."""

    workers: int
    cores: int
    gpus: tuple[str, ...]
    """Names of GPUs, as in CUDA_VISIBLE_DEVICES."""

    @property
    def threads(self) -> int:
        """Threads of a job that shares the machine."""
        return max(1, self.cores // self.workers)

    def pool(self, number: int | None) -> Pool:
        """Make a worker: None has the whole machine; others share it, on different GPUs where there are enough."""
        gpu = self.gpus[number % len(self.gpus)] if self.gpus and number is not None else None
        threads = self.cores if number is None else self.threads
        return Pool(1, start=functools.partial(prepare_worker, threads, gpu), bare=True)


class _Run:
    """The state of `run_jobs`."""

    def __init__(self, plan: Plan, out: Path, workers: int | None, log: Log, signals: StopSignals) -> None:
        self._plan, self._out, self._workers, self._log, self._signals = plan, out, workers, log, signals
        self._others = set(multiprocessing.active_children())
        self._pools: dict[int | None, Pool] = {}
        self._running: dict[Future[Done | Failure], tuple[Job, int | None]] = {}
        """Jobs, and the numbers of their workers."""
        self._done: dict[str, Done] = {}
        self._known = 0

    @functools.cached_property
    def _room(self) -> _Room:
        gpus, cores = _visible_gpus(), num_processes(None)
        return _Room(workers=self._workers or len(gpus) or cores, cores=cores, gpus=gpus)

    def finish(self) -> dict[str, Done]:
        """Run until nothing is left. Jobs that run beside one that fails are finished first."""
        try:
            return self._finish()
        except Exception as error:
            if self._running:
                self._log(f"{error}\n{len(self._running):,} jobs that run are finished first")
            while self._running:
                done, failures = self._await_some()
                self._say(done)
                for failure in failures:
                    self._log(str(failure))
            raise

    def close(self) -> None:
        """End the workers; where they are still at work, at once."""
        if self._running:
            self._signal_workers(signal.SIGKILL)
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _finish(self) -> dict[str, Done]:
        jobs = self._jobs()
        if self._done:
            self._log(f"{len(self._done):,} of {len(jobs):,} jobs are finished already")
        while True:
            if self._signals.received is not None:
                self._stop(self._signals.received)
            left = [job for job in jobs if job.name not in self._done]
            if not left:
                return {job.name: self._done[job.name] for job in jobs}
            self._start(left)
            if not self._running:
                names = ", ".join(job.name for job in left[:5])
                raise InputError(f"the plan: jobs need each other in a circle, so that none can be run: {names}.")
            done, failures = self._await_some()
            if not failures:
                jobs = self._jobs()
            self._say(done)
            if failures:
                raise failures[0]

    def _jobs(self) -> list[Job]:
        """Make the plan with all that is finished."""
        while True:
            jobs = list(self._plan(self._done))
            _check(jobs)
            # records of jobs that run are taken with their processes
            running = {job.name for job, _ in self._running.values()}
            finished = {job.name: done for job in jobs if job.name not in running and (done := self._finished(job))}
            if finished == self._done:
                self._known = len(jobs)
                return jobs
            self._done = finished

    def _finished(self, job: Job) -> Done | None:
        known = self._done.get(job.name)
        return known if known is not None and known.key == job.key else load_done(self._out, job)

    def _start(self, left: Sequence[Job]) -> None:
        """Start what there is room for, in the order of the plan. Others do not start while a whole-machine job waits:
        it unlocks many, and the machine is drained for it once."""
        running = [job for job, _ in self._running.values()]
        names = {job.name for job in running}
        ready = [job for job in left if job.name not in names and all(need in self._done for need in job.needs)]
        whole = [job for job in ready if job.whole_machine]
        if any(job.whole_machine for job in running) or (whole and running):
            return
        for job in whole[:1] or ready[: self._room.workers - len(running)]:
            self._submit(job)

    def _submit(self, job: Job) -> None:
        folder = job_folder(self._out, job.name, job.key)
        folder.mkdir(parents=True, exist_ok=True)
        self._log(f"{job.name}: started")
        room, number = self._room, None
        if job.whole_machine:
            self.close()  # for the memory that idle workers hold
        else:
            taken = {started for _, started in self._running.values()}
            number = next(each for each in range(room.workers) if each not in taken)
        size = (room.cores, room.cores) if job.whole_machine else (room.threads, 1)
        pool = self._pools.get(number) or self._pools.setdefault(number, room.pool(number))
        with ctrl_c_held_back():  # after the pool is made: the first starts Python's resource tracker, which lifts it
            try:
                future = pool.submit(run_job, job, folder, *size)
            except BrokenProcessPool:  # killed while it was idle
                pool.close()
                pool = self._pools[number] = room.pool(number)
                future = pool.submit(run_job, job, folder, *size)
        self._running[future] = job, number

    def _await_some(self) -> tuple[list[Done], list[CrispError]]:
        """Wait until jobs are finished or failed, or a signal has come."""
        while True:
            finished, _ = wait(self._running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            if self._signals.received is not None:
                self._stop(self._signals.received)
            if finished:
                return self._take(finished)

    def _take(self, finished: set[Future[Done | Failure]]) -> tuple[list[Done], list[CrispError]]:
        done: list[Done] = []
        failures: list[CrispError] = []
        for future in finished:
            job, number = self._running.pop(future)
            if job.whole_machine:
                self._pools.pop(number).close()
            outcome = self._outcome(future, job)
            if isinstance(outcome, Done):
                self._done[outcome.name] = outcome
                done.append(outcome)
            else:
                failures.append(outcome)
        return done, failures

    def _outcome(self, future: Future[Done | Failure], job: Job) -> Done | CrispError:
        log = job_folder(self._out, job.name, job.key) / LOG
        try:
            outcome = future.result()
        except BrokenProcessPool:
            return CrispError(
                f"{job.name}: its worker process was killed, most often for memory; finished jobs are kept. Run the "
                f"same command again, with fewer --jobs if memory was short. Its log: {log}"
            )
        except Exception as error:  # it could not be handed to the worker
            return CrispError(f"{job.name} failed: {type(error).__name__}: {error}")
        return outcome if isinstance(outcome, Done) else outcome.error(job, log)

    def _say(self, done: Sequence[Done]) -> None:
        for number, job in enumerate(done, len(self._done) - len(done) + 1):
            self._log(f"[{number:,}/{self._known:,}] {job.name}: finished in {job.wall_seconds:,.0f} s")

    def _stop(self, received: signal.Signals) -> None:
        """Have the workers end their jobs, with a checkpoint where they train, and give up."""
        if self._running:
            self._log(
                f"{received.name}: {len(self._running):,} running jobs must stop now, and are ended in "
                f"{GRACE_SECONDS:,.0f} s"
            )
        deadline = time.monotonic() + GRACE_SECONDS
        self._signal_workers(signal.SIGTERM)
        while self._running and (left := deadline - time.monotonic()) > 0:
            finished, _ = wait(self._running, timeout=min(left, _POLL_SECONDS), return_when=FIRST_COMPLETED)
            self._say(self._take(finished)[0])
        self._signal_workers(signal.SIGKILL)
        self._running.clear()
        raise RunInterruptedError(
            f"the study was stopped by {received.name}; {len(self._done):,} of {self._known:,} jobs are finished. The "
            "same command goes on.",
            signal_name=received.name,
        )

    def _signal_workers(self, number: signal.Signals) -> None:
        for process in set(multiprocessing.active_children()) - self._others:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)


def _visible_gpus() -> tuple[str, ...]:
    """Name the GPUs as CUDA_VISIBLE_DEVICES does. Counting does not initialise CUDA."""
    try:
        import torch
    except ImportError:
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return tuple(names)[: torch.cuda.device_count()]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder of a study, and keep others out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("w")
    except OSError as error:
        raise StorageError(f"{folder}: a study must be able to write there ({error}). Choose another --out.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another study is running here. Wait for it, or choose another --out."
            ) from error
        yield


def _check(jobs: Sequence[Job]) -> None:
    names = Counter(job.name for job in jobs)
    for job in jobs:
        if names[job.name] > 1:
            raise InputError(f"the plan: two jobs are called {job.name}. Give the methods other names.")
        for need in job.needs:
            if need not in names:
                raise InputError(f"the plan: {job.name} needs {need}, which is not in it.")
