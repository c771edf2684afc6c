"""What models made for one task are worth on the others (CRISP, Table 1)."""

from __future__ import annotations

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.tables.cells import Cell, StudyTable, figure_line, value_cell
from crisp_stream.study.tables.comparisons import Column, Place, figure
from crisp_stream.table import NONE


def transfer_tables(study: StudyResults) -> list[StudyTable]:
    """Models by method and target on all test sets; none where no model was judged on another task's set."""
    sets = [(name, own.own_set, own.kind == "questions") for name, own in study.specialists.items()]
    models = [(own.name, task) for own in study.methods for task in _targets(study, own.name)]
    rows, lines = [], []
    for method, task in models:
        cells = [Cell(method), Cell(task or "all")]
        for name, set_name, questions in sets:
            column = Column(title=name, places=(Place(task, set_name),), questions=questions)
            found = figure(study, method, column)
            cells.append(value_cell(found))
            if found is not None:
                lines.append(figure_line(found, column, method=method, target=task or "all"))
        if sum(cell.text != NONE for cell in cells[2:]) > 1:
            rows.append(cells)
    if not any(row[1].text != "all" for row in rows):
        return []
    return [
        StudyTable(
            name="transfer",
            title="Transfer, pretrained",
            caption="perplexity, or accuracy in % of question sets, of models made for one task on the sets of others",
            head=("method", "made for", *(name for name, _, _ in sets)),
            rows=_with_best(rows, [questions for _, _, questions in sets]),
            lines=lines,
            left=2,
        )
    ]


def _targets(study: StudyResults, method: str) -> list[str]:
    """What a method's pretrained models are for; an empty name is all tasks."""
    own = [own for own in study.judgements if own.method == method and own.fraction == 0]
    named = [name for name in study.specialists if any(each.specialist == name for each in own)]
    return named or ([""] if own else [])


def _with_best(rows: list[list[Cell]], questions: list[bool]) -> list[list[Cell]]:
    """The best figure of each column marked."""
    for number, higher in enumerate(questions, start=2):
        values = [(float(row[number].text), at) for at, row in enumerate(rows) if row[number].text != NONE]
        if len(values) > 1:
            best, _ = (max if higher else min)(values)
            for value, at in values:
                if value == best:
                    rows[at][number] = Cell(rows[at][number].text, "best")
    return rows
