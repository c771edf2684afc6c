"""Models made for one task, judged on the others (CRISP, Table 1)."""

from __future__ import annotations

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.cells import figure_record, value_cell
from crisp_stream.study.tables.comparisons import Column, Place, figure
from crisp_stream.table import NONE, Marked, Table


def transfer_tables(study: StudyResults) -> list[Table]:
    """Set models by method and target on all test sets; nothing where no model was judged on another task's set."""
    sets = [(name, task.own_set, task.kind == "questions") for name, task in study.specialists.items()]
    models = [(method.name, task) for method in study.methods for task in _targets(study, method.name)]
    rows, records = [], []
    for method, task in models:
        cells = [method, task or "all"]
        for name, set_name, questions in sets:
            column = Column(title=name, places=(Place(task, set_name),), questions=questions)
            value = figure(study, method, column)
            cells.append(value_cell(value))
            if value is not None:
                records.append(figure_record(value, column, method=method, target=task or "all"))
        if sum(cell != NONE for cell in cells[2:]) > 1:
            rows.append(cells)
    if not any(row[1] != "all" for row in rows):
        return []
    return [
        Table(
            name="transfer",
            title="Transfer, pretrained",
            caption="perplexity, or accuracy in % of question sets, of models made for one task on the sets of others",
            head=("method", "made for", *(name for name, _, _ in sets)),
            rows=_with_best(rows, [questions for _, _, questions in sets]),
            records=records,
            words=(0, 1),
        )
    ]


def _targets(study: StudyResults, method: str) -> list[str]:
    """Name the tasks that a method's pretrained models are for; an empty name is all tasks."""
    judged = {model.specialist for model in study.judgements if (model.method, model.fraction) == (method, 0)}
    named = [name for name in study.specialists if name in judged]
    return named or ([""] if judged else [])


def _with_best(rows: list[list[str]], questions: list[bool]) -> list[list[str]]:
    """Mark the best figure of each column."""
    for number, higher in enumerate(questions, start=2):
        values = {at: float(row[number]) for at, row in enumerate(rows) if row[number] != NONE}
        if len(values) > 1:
            best = (max if higher else min)(values.values())
            for at in (at for at, value in values.items() if value == best):
                rows[at][number] = Marked(rows[at][number], "best")
    return rows
