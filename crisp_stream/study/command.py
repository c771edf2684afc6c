"""`crisp-stream study run`: the jobs of a study, then its record, tables and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crisp_stream.study.jobs import Done, load_done
from crisp_stream.study.plan import StudyPlan
from crisp_stream.study.runner import run_jobs
from crisp_stream.study.settings import StudySettings


def run_study(
    study: StudySettings,
    out: Path,
    *,
    text: str | None = None,
    workers: int | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Done]:
    """Run what is missing of a study.

    Args:
        study: what is compared.
        out: folder of the study.
        text: folder of the text, if it is not to be fetched.
        workers: jobs at a time.
        log: takes a line per job.

    Raises:
        InputError, CrispError, RunInterruptedError: as `run_jobs`.
    """
    return run_jobs(StudyPlan(study, out, text=text), out, workers=workers, log=log)


def plan_text(study: StudySettings, out: Path, *, text: str | None = None) -> str:
    """The jobs that can be named now, and which of them are finished."""
    plan, done = StudyPlan(study, out, text=text), dict[str, Done]()
    while True:
        jobs = plan(done)
        found = {job.name: own for job in jobs if (own := load_done(out, job)) is not None}
        if found == done:
            break
        done = found
    lines = [f"{'finished' if job.name in done else 'to run':<9} {job.name}" for job in jobs]
    note = "More jobs follow where candidates are chosen by validation."
    return "\n".join([*lines, "", f"{len(done):,} of {len(jobs):,} jobs are finished. {note}"])
