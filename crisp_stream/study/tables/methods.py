"""Perplexities of all methods on the specialists' own sets, before and after fine-tuning (CRISP, Tables 9 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.cells import Cell, StudyTable, figure_line, ratio_cell, seed_notes, value_cell
from crisp_stream.study.tables.comparisons import (
    STAGES,
    Column,
    Figure,
    Place,
    Stage,
    against,
    figure,
    generalist_columns,
    is_unhelped,
    marks,
    own_columns,
    question_columns,
    share_better,
)
from crisp_stream.table import NONE

TITLES: dict[Stage, str] = {"pretrained": "pretrained", "finetuned": "after fine-tuning"}


def perplexity_tables(study: StudyResults) -> list[StudyTable]:
    """Perplexities, and their ratios to base of both stages."""
    if not own_columns(study):
        return []
    return [
        values_table(study, "perplexity", "Perplexity", "mean over seeds; +ft: after fine-tuning", questions=False),
        *(ratio_table(study, stage, questions=False) for stage in STAGES if has_stage(study, stage)),
    ]


def has_stage(study: StudyResults, stage: Stage) -> bool:
    """Whether there is anything of it."""
    return stage == "pretrained" or any(method.finetuned for method in study.methods)


def values_table(study: StudyResults, name: str, title: str, caption: str, *, questions: bool) -> StudyTable:
    """Perplexities or accuracies of both stages; a dash where fine-tuning was not tried or made nothing better."""
    of_stage = {stage: (question_columns if questions else own_columns)(study, stage) for stage in STAGES}
    stages = [stage for stage in STAGES if has_stage(study, stage)]
    columns = [of_stage[stage][number] for number in range(len(of_stage["pretrained"])) for stage in stages]
    best = [marks(study, _shown(study, column), column) for column in columns]
    rows, lines = [], []
    for method in (own.name for own in study.methods):
        cells = [Cell(method)]
        for column, own in zip(columns, best, strict=True):
            found = figure(study, method, column) if method in _shown(study, column) else None
            mark = own.get(method, "")
            cells.append(value_cell(found, mark=mark))
            if found is not None:
                lines.append(figure_line(found, column, method=method, mark=mark))
        if any(cell.text != NONE for cell in cells[1:]):
            rows.append(cells)
    heads = [column.title if column.stage == "pretrained" else "+ft" for column in columns]
    return StudyTable(
        name=name,
        title=title,
        caption=f"{caption}; -: not tried, or validation preferred none at all",
        head=("method", *heads),
        rows=rows,
        lines=lines,
    )


def _shown(study: StudyResults, column: Column) -> list[str]:
    """Methods that have a cell of their own in a column; a mean holds those that fine-tuning did not help, too."""
    names = [method.name for method in study.methods]
    if column.stage == "pretrained" or column.is_mean:
        return names
    return [name for name in names if not is_unhelped(study, name, column.places[0].specialist)]


def ratio_table(study: StudyResults, stage: Stage, *, questions: bool) -> StudyTable:
    """Each method against base at the same stage, with intervals."""
    columns = (question_columns if questions else own_columns)(study, stage)
    rows, lines, figures = _against_base(study, columns)
    than = f"to {study.base}"
    what = (
        f"difference of accuracies {than}, points, above 0" if questions else f"ratio of perplexities {than}, below 1"
    )
    kept = "; where validation preferred no fine-tuning, the pretrained model counts" if stage == "finetuned" else ""
    return StudyTable(
        name=f"{'accuracy-difference' if questions else 'ratio'}-{stage}",
        title=f"{'Accuracy' if questions else 'Perplexity'} against {study.base}, {TITLES[stage]}",
        caption=f"{what} is better, [95 % interval over seeds and examples], paired by seed and example{kept}",
        head=("method", *(column.title for column in columns)),
        rows=rows,
        notes=seed_notes(figures),
        lines=lines,
    )


def _against_base(
    study: StudyResults, columns: Sequence[Column]
) -> tuple[list[list[Cell]], list[dict[str, Any]], dict[str, list[Figure | None]]]:
    """Rows of a table, lines of its CSV file and figures by method: each method against base, where there is any."""
    rows: list[list[Cell]] = []
    lines: list[dict[str, Any]] = []
    figures: dict[str, list[Figure | None]] = {}
    for method in (own.name for own in study.methods if own.name != study.base):
        found = [against(study, method, study.base, column) for column in columns]
        if all(own is None for own in found):
            continue
        rows.append([Cell(method), *map(ratio_cell, found)])
        figures[method] = found
        lines += _lines(study, method, columns, found)
    return rows, lines, figures


def _lines(
    study: StudyResults, method: str, columns: Sequence[Column], found: Sequence[Figure | None]
) -> list[dict[str, Any]]:
    return [
        figure_line(own, column, method=method, than=study.base)
        for column, own in zip(columns, found, strict=True)
        if own is not None
    ]


def generalist_tables(study: StudyResults) -> list[StudyTable]:
    """What specialising costs on held-out text of the corpus, and on how many examples models are better."""
    columns = generalist_columns(study)
    if not columns or study.generalist_set is None:
        return []
    rows, lines, figures = _against_base(study, columns)
    ratio = StudyTable(
        name="generalist",
        title=f"Perplexity on {study.generalist_set} against {study.base}, pretrained",
        caption=f"ratio of each specialist's models to {study.base}, below 1 is better, [95 % interval]",
        head=("method", *(f"for {column.title}" if not column.is_mean else column.title for column in columns)),
        rows=rows,
        notes=seed_notes(figures),
        lines=lines,
    )
    return [ratio, _better_table(study)]


def _better_table(study: StudyResults) -> StudyTable:
    """As Table 8 of the paper."""
    assert study.generalist_set is not None, "called for studies with a generalist set"
    heads, columns = [], []
    for name, own in study.specialists.items():
        if own.perplexity_set:
            heads += [f"{name}: corpus", "own"]
            places = (Place(name, study.generalist_set), Place(name, own.perplexity_set))
            columns += [Column(title=name, places=(place,)) for place in places]
    rows, lines = [], []
    for method in (own.name for own in study.methods if own.name != study.base):
        found = [share_better(study, method, study.base, column) for column in columns]
        if any(own is not None for own in found):
            shares = [NONE if own is None else f"{100 * own.estimate.value:.1f}" for own in found]
            rows.append([Cell(method), *map(Cell, shares)])
            lines += _lines(study, method, columns, found)
    return StudyTable(
        name="share-better",
        title=f"Examples with lower perplexity than {study.base}, pretrained",
        caption="% of the held-out examples of the corpus, and of the specialist's own set; a tie counts as half",
        head=("method", *heads),
        rows=rows,
        lines=lines,
    )
