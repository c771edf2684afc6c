"""Jobs of a study, which leave files in folders named by what determined them.

Another setting is another key, hence another folder: nothing that was finished is overwritten, and going back to an
earlier setting finds its outcome again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crisp_stream.errors import FormatError
from crisp_stream.storage.store import FolderStore

DONE = "done.json"
LOG = "log.txt"


@dataclass(frozen=True)
class JobPlace:
    """Folder, threads and log of a job."""

    folder: Path
    """Exists; may hold what an interrupted attempt left, to go on from."""
    threads: int
    """Threads that the job computes with."""
    processes: int
    """Worker processes that it may start: 1, but for whole-machine jobs."""
    log: Callable[[str], None]
    """Takes a line."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work."""

    name: str
    """Readable, unique in a plan: `train/crisp.medicine.seed-1`."""
    key: str
    """sha256 over everything that determines the outcome, the keys of `needs` included."""
    needs: tuple[str, ...] = ()
    """Names of the jobs whose outcomes it uses."""
    whole_machine: bool = False
    """Whether it starts processes itself, and runs alone."""
    work: Callable[[JobPlace], dict[str, Any]]
    """Importable by name, or a partial of such; returns plain values."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished job."""

    name: str
    key: str
    values: dict[str, Any]
    """Values that `work` returned."""
    wall_seconds: float
    cpu_seconds: float
    """CPU time, its child processes included."""


Plan = Callable[[Mapping[str, Done]], Sequence[Job]]
"""Function from finished jobs to all jobs that can be named. A job that is finished stays in the plan."""


def job_folder(out: str | Path, name: str, key: str) -> Path:
    """Folder of a job's files."""
    return Path(out) / f"{name}-{key[:10]}"


def plain_values(values: Any) -> dict[str, Any]:
    """Convert what `work` returned to what its record will give. Raises TypeError: JSON cannot hold it."""
    if not isinstance(values, dict):
        raise TypeError(f"a job must return a dict of plain values, got {type(values).__name__}")
    return json.loads(json.dumps(values))


def save_done(folder: Path, done: Done) -> None:
    """Save that a job is finished: the last thing it does."""
    FolderStore(folder).put(DONE, (json.dumps(asdict(done), indent=2) + "\n").encode())


def load_done(out: str | Path, job: Job) -> Done | None:
    """Read the outcome of a job, if it is finished. Raises FormatError: damaged, or of another job."""
    path = job_folder(out, job.name, job.key) / DONE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        done = Done(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path} is damaged ({error}). Delete its folder to run the job again.") from error
    if (done.name, done.key) != (job.name, job.key):
        raise FormatError(f"{path} must be of job {job.name}, got {done.name}. Delete its folder to run the job again.")
    return done
