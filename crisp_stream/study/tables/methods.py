"""Perplexities and accuracies of all methods, before and after fine-tuning (CRISP, Tables 8 to 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.cells import figure_record, ratio_cell, seed_notes, value_cell
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
    share_better,
    task_columns,
)
from crisp_stream.table import NONE, Marked, Table

TITLES: dict[Stage, str] = {"pretrained": "pretrained", "finetuned": "after fine-tuning"}


def value_tables(study: StudyResults, *, questions: bool) -> list[Table]:
    """Tabulate perplexities or accuracies, then how they differ from base, by stage; nothing of what was not judged."""
    if not task_columns(study, questions=questions):
        return []
    ratios = [_ratio_table(study, stage, questions=questions) for stage in STAGES if has_stage(study, stage)]
    return [_values_table(study, questions=questions), *ratios]


def has_stage(study: StudyResults, stage: Stage) -> bool:
    """Tell whether any method of the study got that far."""
    return stage == "pretrained" or any(method.finetuned for method in study.methods)


def _values_table(study: StudyResults, *, questions: bool) -> Table:
    """Show figures of both stages; a dash where fine-tuning was not tried or made nothing better."""
    of_stage = {stage: task_columns(study, stage, questions=questions) for stage in STAGES}
    stages = [stage for stage in STAGES if has_stage(study, stage)]
    columns = [of_stage[stage][number] for number in range(len(of_stage["pretrained"])) for stage in stages]
    marks_of_columns = [marks(study, _shown(study, column), column) for column in columns]
    rows, records = [], []
    for method in (method.name for method in study.methods):
        cells = [method]
        for column, column_marks in zip(columns, marks_of_columns, strict=True):
            value = figure(study, method, column) if method in _shown(study, column) else None
            mark = column_marks.get(method, "")
            cells.append(Marked(value_cell(value), mark))
            if value is not None:
                records.append(figure_record(value, column, method=method, mark=mark))
        if any(cell != NONE for cell in cells[1:]):
            rows.append(cells)
    heads = [column.title if column.stage == "pretrained" else "+ft" for column in columns]
    return Table(
        name="accuracy" if questions else "perplexity",
        title="Accuracy" if questions else "Perplexity",
        caption=f"{'%, ' if questions else ''}mean over seeds; +ft: after fine-tuning; -: not tried, or validation "
        "preferred none at all",
        head=("method", *heads),
        rows=rows,
        records=records,
    )


def _shown(study: StudyResults, column: Column) -> list[str]:
    """Name the methods that have a cell in a column; a mean holds those that fine-tuning did not help, too."""
    names = [method.name for method in study.methods]
    if column.stage == "pretrained" or column.is_mean:
        return names
    return [name for name in names if not is_unhelped(study, name, column.places[0].specialist)]


def _ratio_table(study: StudyResults, stage: Stage, *, questions: bool) -> Table:
    """Set each method against base at the same stage, with intervals."""
    columns = task_columns(study, stage, questions=questions)
    than = f"to {study.base}"
    what = (
        f"difference of accuracies {than}, points, above 0" if questions else f"ratio of perplexities {than}, below 1"
    )
    kept = "; where validation preferred no fine-tuning, the pretrained model counts" if stage == "finetuned" else ""
    return _table_against_base(
        study,
        columns,
        name=f"{'accuracy-difference' if questions else 'ratio'}-{stage}",
        title=f"{'Accuracy' if questions else 'Perplexity'} against {study.base}, {TITLES[stage]}",
        caption=f"{what} is better, [95 % interval over seeds and examples], paired by seed and example{kept}",
        head=("method", *(column.title for column in columns)),
    )


def _table_against_base(
    study: StudyResults,
    columns: Sequence[Column],
    *,
    compare: Callable[[StudyResults, str, str, Column], Figure | None] = against,
    cell: Callable[[Figure | None], str] = ratio_cell,
    **labels: Any,
) -> Table:
    """Set each other method against base where there is anything to compare. `labels`: name, title, caption, head."""
    others = [method.name for method in study.methods if method.name != study.base]
    compared = {method: [compare(study, method, study.base, column) for column in columns] for method in others}
    compared = {method: figures for method, figures in compared.items() if any(figures)}
    records = [
        figure_record(value, column, method=method, than=study.base)
        for method, figures in compared.items()
        for column, value in zip(columns, figures, strict=True)
        if value is not None
    ]
    rows = [[method, *map(cell, figures)] for method, figures in compared.items()]
    return Table(rows=rows, records=records, **{"notes": seed_notes(compared), **labels})


def generalist_tables(study: StudyResults) -> list[Table]:
    """Show what specialising costs on held-out text of the corpus, and on how many examples models are better."""
    columns = generalist_columns(study)
    if not columns or study.generalist_set is None:
        return []
    ratio = _table_against_base(
        study,
        columns,
        name="generalist",
        title=f"Perplexity on {study.generalist_set} against {study.base}, pretrained",
        caption=f"ratio of each specialist's models to {study.base}, below 1 is better, [95 % interval]",
        head=("method", *(f"for {column.title}" if not column.is_mean else column.title for column in columns)),
    )
    return [ratio, _better_table(study, study.generalist_set)]


def _better_table(study: StudyResults, generalist_set: str) -> Table:
    """Count the examples on which a method is better than base, as Table 8 of the paper."""
    heads, columns = [], []
    for name, specialist in study.specialists.items():
        if specialist.perplexity_set:
            heads += [f"{name}: corpus", "own"]
            places = (Place(name, generalist_set), Place(name, specialist.perplexity_set))
            columns += [Column(title=name, places=(place,)) for place in places]
    return _table_against_base(
        study,
        columns,
        compare=share_better,
        cell=lambda share: NONE if share is None else f"{100 * share.estimate.value:.1f}",
        name="share-better",
        title=f"Examples with lower perplexity than {study.base}, pretrained",
        caption="% of the held-out examples of the corpus, and of the specialist's own set; a tie counts as half",
        head=("method", *heads),
        notes=(),
    )
