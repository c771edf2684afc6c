"""Results of judged models: all their figures, the share of examples on which each is better than base, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.report.colours import Colours, task_of_set
from crisp_stream.report.elements import Line, bar, batch_figure, dot, safe, section
from crisp_stream.report.map import visible
from crisp_stream.results.better import BetterRow, better_rows, natural_baseline
from crisp_stream.results.curves import TRAINING_LOSS, CurvePoint, curves, run_identity
from crisp_stream.results.pairing import AnyResults, model_names
from crisp_stream.results.results import SUFFIX, QuestionResults, TextResults
from crisp_stream.results.tables import (
    BITS_PER_BYTE,
    INTERVALS,
    PERPLEXITY,
    TOKEN_LEVEL,
    WRITTEN,
    ResultRow,
    clean_cell,
    figure_cell,
    result_rows,
    row_notes,
    than_cell,
)
from crisp_stream.storage.store import is_remote, local_path, open_store
from crisp_stream.table import NONE

Cells = Mapping[str, str]
"""Heading to text, of one row."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results that a page shows."""

    results: Sequence[AnyResults]
    baseline: str | None = None
    """Model that the others are compared with; the first with `base` in its name when None, if there is one."""

    @cached_property
    def newest(self) -> list[AnyResults]:
        """Results of the newest checkpoint of each run on each set, and of the baseline; older ones are for curves."""
        newest: dict[tuple[object, ...], AnyResults] = {}
        for results in self.results:
            key = (*run_identity(results), *_set_of(results))
            if key not in newest or results.model["batch"] > newest[key].model["batch"]:
                newest[key] = results
        kept = {(results.model_name, *_set_of(results)) for results in newest.values()}
        return [
            results
            for results in self.results
            if results.model_name == self.baseline or (results.model_name, *_set_of(results)) in kept
        ]

    @property
    def than(self) -> str | None:
        """The baseline, where there are other models; None: nothing is compared."""
        return (self.baseline or natural_baseline(self.newest)) if len(model_names(self.newest)) > 1 else None

    @cached_property
    def rows(self) -> list[ResultRow]:
        """Figures of the newest checkpoints on all sets.

        Raises:
            InputError: no results, none of the baseline, or two models of one name.
        """
        return result_rows(self.newest, baseline=self.than)

    def led_by(self, tasks: Sequence[str]) -> Evaluation:
        """The same results, with the sets of the tasks before other sets."""
        ordered = sorted(self.results, key=lambda results: task_of_set(results.set_name, tasks) is None)
        return replace(self, results=ordered)


def _set_of(results: AnyResults) -> tuple[str, str]:
    return results.kind, results.fingerprint


def holds_results(path: str) -> bool:
    """Tell whether a path is a file of results or a folder with some. Raises StorageError."""
    if path.endswith(SUFFIX):
        return True
    if not is_remote(path) and not local_path(path).is_dir():
        return False
    return any(name.endswith(SUFFIX) for name, _ in open_store(path).list())


def evaluation_section(evaluation: Evaluation, colours: Colours) -> str:
    """Tables of all figures, shares of examples that got better, and curves over training.

    Raises:
        InputError: no results, none of the baseline, or two models of one name.
    """
    rows = evaluation.rows
    texts = [row for row in rows if isinstance(row.results, TextResults)]
    questions = [row for row in rows if isinstance(row.results, QuestionResults)]
    notes = [INTERVALS, *row_notes(rows)]
    if len(evaluation.newest) < len(evaluation.results):
        notes.append("tables: the newest checkpoint of each run; the curves show all")
    listed = "".join(f"<li>{safe(note)}</li>" for note in notes)
    parts = [
        _table("Perplexity of texts", [_text_cells(row) for row in texts], texts, colours),
        _table("Accuracy on questions, %", [_question_cells(row) for row in questions], questions, colours),
        f'<ul class="advice">{listed}</ul>',
        _better_part(evaluation, colours),
        _curve_part(evaluation.results, colours),
    ]
    return section("evaluation", "Evaluation: all figures", "\n".join(part for part in parts if part))


def _text_cells(row: ResultRow) -> Cells:
    return {
        "Perplexity": figure_cell(PERPLEXITY, row.estimates[PERPLEXITY]),
        "Token level": figure_cell(PERPLEXITY, row.estimates[TOKEN_LEVEL]),
        "Bits/byte": figure_cell(BITS_PER_BYTE, row.estimates[BITS_PER_BYTE]),
        "Examples": f"{row.results.num_examples:,}",
    }


def _question_cells(row: ResultRow) -> Cells:
    metric = row.results.metric if isinstance(row.results, QuestionResults) else ""
    cells = {name: figure_cell(name, row.estimates[name]) + "*" * (name == metric) for name in ("acc", "acc_norm")}
    return {**cells, "Questions": f"{row.results.num_examples:,}"}


def _table(title: str, cells: Sequence[Cells], rows: Sequence[ResultRow], colours: Colours) -> str:
    """Rows of models by set; columns of comparisons and of contaminated examples only where there are some."""
    if not rows:
        return ""
    than = next((row.than for row in rows if row.than), None)
    checked = any(row.num_contaminated is not None for row in rows)
    body, names = [], []
    for row, figures in zip(rows, cells, strict=True):
        shown = dict(figures)
        if than is not None:
            shown[f"than {than}"] = than_cell(row)
        if checked:
            shown["Contaminated"] = NONE if row.num_contaminated is None else f"{row.num_contaminated:,}"
            shown["Without them"] = clean_cell(row)
        names = list(shown)
        body.append(f"<tr>{_names(row.judged.name, row.results, colours)}{_number_cells(shown)}</tr>")
    head = "".join(f'<th scope="col" class="number">{safe(name)}</th>' for name in names)
    return f"""<h3>{title}</h3>
<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="stack">
<thead><tr><th scope="col">Set</th><th scope="col">Model</th>{head}</tr></thead>
<tbody>
{chr(10).join(body)}
</tbody>
</table></div>"""


def _names(set_name: str, results: AnyResults, colours: Colours) -> str:
    """The cells of a set and a model, each with its colour."""
    model = f"{dot(colours.of_run(run_identity(results)))}{safe(results.model_name)}"
    return (
        f'<th scope="row">{dot(colours.of_set(set_name))}{safe(set_name)}</th>'
        f'<td data-label="model"><span>{model}</span></td>'
    )


def _number_cells(cells: Cells) -> str:
    return "".join(
        f'<td class="number" data-label="{escape(visible(name))}">{_cell(cell)}</td>' for name, cell in cells.items()
    )


def _cell(text: str) -> str:
    """A figure with its interval below it."""
    value, bracket, interval = text.partition(" [")
    below, closed, mark = interval.partition("]")
    if not bracket:
        return escape(text)
    return f'<span>{escape(value)}{escape(mark)} <span class="interval">[{escape(below)}{closed}</span></span>'


def _better_part(evaluation: Evaluation, colours: Colours) -> str:
    """Shares of the examples on which each model is better than the baseline."""
    than = evaluation.than
    if than is None:
        return ""
    try:
        rows = better_rows(evaluation.newest, baseline=than)
    except InputError as error:  # nothing that may be paired: the table stands, and says why this does not
        return f'<p class="warning">{safe(str(error))}</p>'
    body = "\n".join(_better_row(row, colours) for row in rows)
    title = "Where it got better"
    return f"""<h3>{title}</h3>
<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="stack">
<caption>Share of the examples on which each model is better than {safe(than)}: a lower perplexity, or a likelier right
answer. A tie counts as half.</caption>
<thead><tr><th scope="col">Set</th><th scope="col">Model</th><th scope="col">Better</th>
<th scope="col" class="number">95% interval</th><th scope="col" class="number">Examples</th></tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""


def _better_row(row: BetterRow, colours: Colours) -> str:
    low, high = row.fraction.interval
    interval = NONE if np.isnan(low) else f"{low:.1%} to {high:.1%}"
    results = row.judged.of(row.model)
    assert results is not None
    return (
        f"<tr>{_names(row.judged.name, results, colours)}"
        f'<td class="bar" data-label="better"><span class="line"><span class="value">{row.fraction.value:.1%}</span>'
        f"{bar(row.fraction.value, colours.of_run(run_identity(results)))}</span></td>"
        f'<td class="number" data-label="95% interval">{interval}</td>'
        f'<td class="number" data-label="examples">{row.num_examples:,}</td></tr>'
    )


def _curve_part(results: Sequence[AnyResults], colours: Colours) -> str:
    """A chart per set on which several checkpoints of a run were judged."""
    try:
        lines = curves(results).lines()
    except InputError:  # models of no run, or two of one batch: there is no curve to draw
        return ""
    colour_of = {judged.model_name: colours.of_run(run_identity(judged)) for judged in results}
    by_set: dict[tuple[str, str], list[Line]] = {}
    for (run, set_name), points in lines.items():
        if len(points) > 1 and set_name != TRAINING_LOSS:
            line = _line(run, points, colour_of[points[0].model])
            by_set.setdefault((set_name, WRITTEN[points[0].measure]), []).append(line)
    figures = "\n".join(
        batch_figure(f"<h4>{safe(set_name)}</h4>", "Checkpoints of each run.", measure, drawn)
        for (set_name, measure), drawn in by_set.items()
    )
    return f'<h3>Over training</h3>\n<div class="pair">\n{figures}\n</div>' if figures else ""


def _line(run: str, points: Sequence[CurvePoint], colour: str) -> Line:
    scale = 100 if points[0].measure.startswith("acc") else 1
    values = np.array([(point.batch, scale * point.estimate.value) for point in points], np.float64)
    return Line(label=f"{run}: {values[-1, 1]:.4g} at the end", colour=colour, points=values)
