"""`crisp-stream study run` and `study report`: the jobs of a study, then its record, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from crisp_stream.errors import InputError
from crisp_stream.study.jobs.job import Done, Job, load_done
from crisp_stream.study.jobs.plan import StudyPlan
from crisp_stream.study.jobs.runner import run_jobs
from crisp_stream.study.record.gather import gather
from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.settings import StudySettings
from crisp_stream.study.tables.report import study_text, write_study_report

RECORD = "record"
"""Folder of the record, its tables and figures, in that of the study."""


def run_study(
    study: StudySettings,
    out: Path,
    *,
    text: str | None = None,
    workers: int | None = None,
    run: bool = True,
    log: Callable[[str], None] = print,
) -> None:
    """Run what is missing of a study, then write and show its record; without `run`, that of what is finished.

    Arguments and errors are those of `StudyPlan` and `run_jobs`.
    """
    plan = StudyPlan(study, out, text=text)
    done = run_jobs(plan, out, workers=workers, log=log) if run else _finished(plan, out)[1]
    results = gather(study, plan, done, out)
    for stale in (*(out / RECORD).glob("*.csv"), *(out / RECORD).glob("*.svg")):  # of methods that were taken out
        stale.unlink()
    results.save(out / RECORD)
    log(study_text(results))
    page = write_study_report(out / RECORD, out / RECORD)[0]
    log(f"\nwritten to {page.parent}: {page.name}, CSV files, figures; `crisp-stream study report` makes them again")


def report_records(folders: Sequence[str | Path], *, out: str | Path | None, log: Callable[[str], None]) -> None:
    """Show the tables of records, and write their pages, CSV files and figures if a folder is named.

    Those of several records are written to folders below it, by the names of the studies.

    Raises:
        InputError: two records of one name. FormatError, StorageError, MissingExtraError: as `write_study_report`.
    """
    studies = [StudyResults.load(folder) for folder in folders]
    names = [study.name for study in studies]
    if out is not None and len(set(names)) < len(names):
        raise InputError(f"--out: names of studies must differ, got {', '.join(names)}. Report on one at a time.")
    for folder, study in zip(folders, studies, strict=True):
        log(study_text(study))
        if out is not None:
            target = Path(out) / study.name if len(studies) > 1 else Path(out)
            paths = write_study_report(folder, target)
            log(f"\nwritten to {target}: {paths[0].name} and {len(paths) - 1} CSV files and figures")


def plan_text(study: StudySettings, out: Path, *, text: str | None = None) -> str:
    """The jobs that can be named now, and which of them are finished."""
    jobs, done = _finished(StudyPlan(study, out, text=text), out)
    lines = [f"{'finished' if job.name in done else 'to run':<9} {job.name}" for job in jobs]
    note = "" if len(done) == len(jobs) else " More jobs follow where candidates are chosen by validation."
    return "\n".join([*lines, "", f"{len(done):,} of {len(jobs):,} jobs are finished.{note}"])


def _finished(plan: StudyPlan, out: Path) -> tuple[Sequence[Job], dict[str, Done]]:
    """The jobs that can be named now, and those of them that are finished."""
    done: dict[str, Done] = {}
    while True:
        jobs = plan(done)
        more = {job.name: record for job in jobs if (record := load_done(out, job)) is not None}
        if more == done:
            return jobs, done
        done = more
