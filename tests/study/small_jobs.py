"""Jobs of milliseconds, importable by workers, that leave traces of when and how often they ran."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, RunInterruptedError
from crisp_stream.study.jobs import Done, Job, JobPlace


def job(name: str, work: Any, *, needs: tuple[str, ...] = (), setting: object = 0, whole_machine: bool = False) -> Job:
    """A job whose key is of its name and a setting."""
    key = hashlib.sha256(f"{name} {setting}".encode()).hexdigest()
    return Job(name=name, key=key, needs=needs, whole_machine=whole_machine, work=work)


def add(place: JobPlace, *, numbers: list[int]) -> dict[str, Any]:
    """The sum; each run leaves a line."""
    with (place.folder / "runs").open("a") as file:
        file.write("run\n")
    return {"sum": sum(numbers)}


def nap(place: JobPlace, *, seconds: float = 0.2) -> dict[str, Any]:
    """When it began and ended, and with what it worked."""
    began = time.time()
    time.sleep(seconds)
    threads = os.environ["OMP_NUM_THREADS"]
    return {"began": began, "ended": time.time(), "pid": os.getpid(), "threads": threads, "processes": place.processes}


def chat(place: JobPlace) -> dict[str, Any]:
    """Prints in every way that there is."""
    place.log("by the log")
    print("by print")
    print("by stderr", file=sys.stderr)
    os.write(1, b"by the descriptor\n")
    subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
    return {}


def fail(place: JobPlace, *, kind: str) -> dict[str, Any]:
    """An error."""
    if kind == "input":
        raise InputError("text: must be there, got none.")
    raise ZeroDivisionError("no such number")


def die(place: JobPlace) -> dict[str, Any]:
    """As a worker that the system kills for memory does; once."""
    if not (place.folder / "died").exists():
        (place.folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"lived": True}


def train_until_told(place: JobPlace) -> dict[str, Any]:
    """As training does: told to stop, it leaves a checkpoint, from which the next attempt goes on to its end."""
    checkpoint = place.folder / "checkpoint"
    if checkpoint.exists():
        return {"went_on": True}
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    (place.folder / "begun").touch()
    while not told:
        time.sleep(0.02)
    checkpoint.touch()
    raise RunInterruptedError("the run was stopped by SIGTERM.", signal_name="SIGTERM")


def interrupted_plan(done: Mapping[str, Done]) -> list[Job]:
    """A short job, one that lasts until it is told to stop, and one behind it."""
    return [
        job("short", functools.partial(add, numbers=[1])),
        job("long", train_until_told),
        job("behind", functools.partial(add, numbers=[2]), needs=("long",)),
    ]


if __name__ == "__main__":  # a study as a program of its own, to be stopped from outside
    from crisp_stream.study.runner import run_jobs

    try:
        found = run_jobs(interrupted_plan, Path(sys.argv[1]), workers=1)
    except RunInterruptedError as error:
        print(f"stopped: {error}")
        sys.exit(143)
    print(json.dumps({name: own.values for name, own in found.items()}))
