"""Work of seconds and less for tests of the runner, and a study of it that runs in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, RunInterruptedError
from crisp_stream.processes import map_unordered
from crisp_stream.study.jobs import runner
from crisp_stream.study.jobs.job import Done, Job, JobPlace
from crisp_stream.study.jobs.runner import run_jobs

PATIENCE_SECONDS = 300.0
"""Of work that waits for something that comes at once, unless the machine is busy."""


def job(name: str, work: Callable[..., dict[str, Any]], *needs: str, key: str = "", whole: bool = False) -> Job:
    """A job whose key is made of its name."""
    return Job(name=name, key=key or name.encode().hex() + "0" * 10, needs=needs, whole_machine=whole, work=work)


def silent(line: str) -> None:
    """A log that nobody reads."""


def fixed(*jobs: Job) -> Any:
    """A plan that is known from the start."""
    return lambda done: jobs


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def add(place: JobPlace, *, terms: tuple[int, ...] = (), runs: Path | None = None) -> dict[str, Any]:
    """A sum, and a line in `runs`."""
    if runs is not None:
        with runs.open("a") as file:
            file.write(f"{place.folder.name}\n")
    return {"sum": sum(terms), "terms": terms}


def fail(place: JobPlace, *, error: BaseException) -> dict[str, Any]:
    print("the last thing before it failed")
    raise error


def return_this(place: JobPlace, *, value: Any) -> Any:
    return value


def kill_worker(place: JobPlace, *, once: Path | None = None) -> dict[str, Any]:
    """As the system does when memory is short."""
    if once is None or not once.exists():
        if once is not None:
            once.touch()
        wait_for(place.folder / "log.txt")
        print("about to be killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def note_interval(place: JobPlace, *, mark: Path | None = None, awaited: Path | None = None) -> dict[str, Any]:
    """When it ran, by a clock that processes share. It begins with `mark`, and ends after `awaited`."""
    started = time.monotonic()
    if mark is not None:
        mark.touch()
    if awaited is not None:
        wait_for(awaited)
    time.sleep(0.1)
    return {"started": started, "ended": time.monotonic(), "threads": place.threads, "processes": place.processes}


def meet(place: JobPlace, *, own: Path, other: Path) -> dict[str, Any]:
    """Ends only if another job runs at the same time."""
    own.touch()
    wait_for(other)
    return {}


def sleep_after(place: JobPlace, *, mark: Path, seconds: float) -> dict[str, Any]:
    """Touch a file, and sleep."""
    mark.write_text(str(os.getpid()))
    time.sleep(seconds)
    return {}


def print_everywhere(place: JobPlace) -> dict[str, Any]:
    """By the four ways in which libraries print."""
    print("printed")
    os.write(2, b"written past Python\n")
    subprocess.run([sys.executable, "-c", "print('printed by a child')"], check=True)
    place.log("logged")
    return {}


def burn_in_child(place: JobPlace, *, seconds: float) -> dict[str, Any]:
    """Use the processor, in a child process."""
    code = f"import time\nwhile time.process_time() < {seconds}: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    return {}


def burn_in_pool(place: JobPlace, *, seconds: float) -> dict[str, Any]:
    """Use the processor, in the processes of a pool."""
    list(map_unordered(burn, [seconds, seconds], processes=2))
    return {}


def burn(seconds: float) -> None:
    """Use the processor."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def environment(place: JobPlace) -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
    return {"pid": os.getpid(), "numpy": "numpy" in sys.modules, **{name: os.environ.get(name) for name in names}}


def take_steps(place: JobPlace, *, steps: int, mark: Path, awaited: Path) -> dict[str, Any]:
    """Like a training: goes on at its checkpoint; a signal ends it after the step in progress, with a checkpoint.

    The first step lasts until `awaited` is there.
    """
    checkpoint, received = place.folder / "step", list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first, steps):
        mark.touch()
        wait_for(awaited)
        time.sleep(1.0)
        if received:
            checkpoint.write_text(str(step + 1))
            raise RunInterruptedError(f"stopped after step {step + 1}.", signal_name="SIGTERM")
    signal.signal(signal.SIGTERM, before)
    return {"first": first, "steps": steps}


def ignore_signals(place: JobPlace, *, mark: Path) -> dict[str, Any]:
    """Neither ends nor hears."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark.write_text(str(os.getpid()))
    time.sleep(10 * PATIENCE_SECONDS)
    return {}


def wait_for(path: Path) -> None:
    """Until a file is there."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise InputError(f"{path} did not come")
        time.sleep(0.02)


def training_plan(folder: Path, steps: int, done: Mapping[str, Done]) -> list[Job]:
    """A training beside work that dies of a signal, once a first job has left its worker idle."""
    first = job("first", functools.partial(add, runs=folder / "first.runs"))
    work = functools.partial(take_steps, steps=steps, mark=folder / "training", awaited=folder / "dying")
    training = job("training", work, "first")
    dying = job("dying", functools.partial(sleep_after, mark=folder / "dying", seconds=1), "first")
    last = job("last", functools.partial(add, runs=folder / "last.runs"), "training", "dying")
    return [first, training, dying, last]


def deaf_plan(folder: Path, done: Mapping[str, Done]) -> list[Job]:
    return [job("deaf", functools.partial(ignore_signals, mark=folder / "deaf"))]


def run_alone(kind: str, out: str, folder: str, grace: str) -> None:
    """A study in this process. Prints how it ended."""
    runner.GRACE_SECONDS = float(grace)
    where = Path(folder)
    deaf = not kind.isdigit()
    plan = functools.partial(deaf_plan, where) if deaf else functools.partial(training_plan, where, int(kind))
    try:
        done = run_jobs(plan, out, workers=4)
    except (RunInterruptedError, KeyboardInterrupt) as error:
        print(f"{type(error).__name__}: {error}")
        return
    print(json.dumps({name: own.values for name, own in done.items()}))


if __name__ == "__mp_main__" and sys.argv[1] == "slow-start":  # in a worker that starts
    Path(sys.argv[3], "starting").touch()
    time.sleep(2.0)

if __name__ == "__main__":
    run_alone(*sys.argv[1:])
