"""The page, CSV files and figures of a study, made of its record in seconds and without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.costs import candidate_tables, cost_tables
from crisp_stream.study.tables.curves import AXES, curve_tables
from crisp_stream.study.tables.figures import save_study_figure, study_figures
from crisp_stream.study.tables.methods import generalist_tables, value_tables
from crisp_stream.study.tables.transfer import transfer_tables
from crisp_stream.study.tables.verdicts import verdict_lines, verdict_tables
from crisp_stream.study.tables.weights import weight_tables
from crisp_stream.table import Table, write_csv

TABLES = "tables.md"
"""The page of all tables and figures."""
_INTERVALS = "95 % intervals over seeds and examples"


def study_tables(study: StudyResults) -> list[Table]:
    """Make all tables that the study has something for, in the order of the page."""
    return [
        *value_tables(study, questions=False),
        *value_tables(study, questions=True),
        *verdict_tables(study),
        *transfer_tables(study),
        *curve_tables(study),
        *generalist_tables(study),
        *weight_tables(study),
        *candidate_tables(study),
        *cost_tables(study),
    ]


def conditions(study: StudyResults) -> list[str]:
    """List the conditions that the figures were measured under, a line each."""
    seeds = ", ".join(map(str, study.seeds))
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    datasets = [
        f"{name}: {dataset.windows:,} windows of {study.window_tokens:,} tokens, {dataset.encoder}, "
        f"{' and '.join(f'{nodes:,}' for nodes in dataset.nodes_per_level)} clusters"
        for name, dataset in study.datasets.items()
    ]
    specialists = [
        f"{name}: {task.documents:,} {'documents' if task.kind == 'text' else 'questions'}, {task.windows:,} windows"
        for name, task in study.specialists.items()
    ]
    return [
        f"every model: {study.tokens:,} tokens in {study.batches:,} batches (checked), {study.num_parameters:,} "
        "parameters",
        f"seeds {seeds}; {study.device}" + (f"; {versions}" if versions else ""),
        *(f"dataset {line}" for line in datasets),
        *(f"specialist {line}" for line in specialists),
        *(f"{name}: {value}" for name, value in study.tags.items()),
    ]


def study_text(study: StudyResults) -> str:
    """Format all tables for a terminal, claims in sentences last."""
    parts = [f"study {study.name}", "\n".join(conditions(study)), *(table.text() for table in study_tables(study))]
    return "\n\n".join([*parts, *(["\n".join(verdict_lines(study))] if verdict_lines(study) else [])])


def study_markdown(study: StudyResults, figures: Sequence[str] = ()) -> str:
    """Format the page of all tables and figures. `figures`: names of the SVG files beside it."""
    lists = ["\n".join(f"* {line}" for line in lines) for lines in (conditions(study), verdict_lines(study)) if lines]
    captions = [_caption(study, name) for name in figures]
    pictures = [f"![{text}]({name}.svg)\n\n{text}." for name, text in zip(figures, captions, strict=True)]
    tables = [table.markdown() for table in study_tables(study)]
    return "\n\n".join([f"## Study {study.name}", *lists, *pictures, *tables]) + "\n"


def _caption(study: StudyResults, name: str) -> str:
    """Say what a figure shows."""
    along = {f"curve-{curve.name}": AXES[curve.along] for curve in study.curves}
    if name in along:
        return f"Against {study.base} along {along[name]}, with {_INTERVALS}"
    if name == "main":
        return f"Each method against {study.base}, with {_INTERVALS}"
    return "Weights of the heaviest clusters by each method; the line is a cluster's share of the corpus"


def write_study_report(folder: str | Path, out: str | Path) -> list[Path]:
    """Write the page, a CSV file per table and the figures of the record in `folder`. Equal records give equal files.

    Returns:
        What was written, the page first; older files of the same names are replaced.

    Raises:
        FormatError, StorageError: as `StudyResults.load`. MissingExtraError: matplotlib or scipy is not installed.
    """
    study = StudyResults.load(folder)
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    figures = study_figures(study)
    page = target / TABLES
    page.write_text(study_markdown(study, list(figures)), encoding="utf-8")
    tables = [write_csv(target / f"{table.name}.csv", table.records) for table in study_tables(study) if table.records]
    return [page, *tables, *(save_study_figure(figure, target / f"{name}.svg") for name, figure in figures.items())]
