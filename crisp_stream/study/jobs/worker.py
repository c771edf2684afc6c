"""Worker processes of a study: each does one job after another, which print into their folders.

Workers live over many jobs, since importing the trainer takes ten seconds; those of the first job of a worker count in
its time.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crisp_stream import errors, processes
from crisp_stream.errors import CrispError, RunInterruptedError
from crisp_stream.study.jobs.job import LOG, Done, Job, JobPlace, plain_values, save_done

_LOG_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error of a job, in a form that passes between processes."""

    kind: str
    """Name of its class."""
    message: str
    signal_name: str | None = None
    """Signal that ended the job in order; None without one."""

    def error(self, job: Job, log: Path) -> CrispError:
        """Make the error that the study raises: an expected one as it was, another with the last lines of the log."""
        if self.signal_name is not None:
            return RunInterruptedError(f"{job.name}: {self.message} Its log: {log}", signal_name=self.signal_name)
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, CrispError):
            return kind(f"{job.name}: {self.message} Its log: {log}")
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
        return CrispError(f"{job.name} failed: {self.kind}: {self.message}. Its log, {log}, ends with:\n{tail}")


def prepare_worker(threads: int, gpu: str | None) -> None:
    """Set the environment that libraries read when they are imported.

    `gpu` is the only one to be seen, as CUDA_VISIBLE_DEVICES names it; None: as the study itself sees them.
    """
    processes.START_METHOD = "spawn"  # the system adds the CPU time of spawned processes to that of their job
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # so that a worker that is killed leaves what it printed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the study says SIGTERM
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # one that came during the start is forgotten


@contextlib.contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Hold Ctrl-C back from processes that are started meanwhile: before `prepare_worker` they would die of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_job(job: Job, folder: Path, threads: int, processes: int) -> Done | Failure:
    """Do a job and save in its folder that it is finished. Its prints go to its log."""
    started, cpu = time.monotonic(), _cpu_seconds()
    with _output_to(folder / LOG):
        try:
            log = partial(print, flush=True)
            values = job.work(JobPlace(folder=folder, threads=threads, processes=processes, log=log))
            done = Done(
                name=job.name,
                key=job.key,
                values=plain_values(values),
                wall_seconds=time.monotonic() - started,
                cpu_seconds=_cpu_seconds() - cpu,
            )
            save_done(folder, done)
        except BaseException as error:  # SystemExit and KeyboardInterrupt, too, end the job and not the study
            traceback.print_exc()
            return Failure(
                kind=type(error).__name__,
                message=str(error),
                signal_name=error.signal_name if isinstance(error, RunInterruptedError) else None,
            )
        finally:
            gc.collect()  # trainers are circles: the next job needs the memory of their models
    return done


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
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
