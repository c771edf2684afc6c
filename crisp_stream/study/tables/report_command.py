"""`crisp-stream study report`: tables and figures of records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from crisp_stream.errors import InputError
from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.report import study_text, write_study_report


def report_records(folders: Sequence[str | Path], *, out: str | Path | None, log: Callable[[str], None]) -> None:
    """Show the tables of records, and write their pages, CSV files and figures if a folder is given.

    Args:
        folders: of records.
        out: folder to write to; of several records a folder below it for each, by the name of the study.
        log: takes the text.

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
