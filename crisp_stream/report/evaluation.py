"""Results of judged models on the page: all figures, on which share of the examples a model is better, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.report.charts import Curve, line_chart, linear_axis
from crisp_stream.report.map import visible
from crisp_stream.report.tasks import NUM_COLOURS, legend
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

    @property
    def newest(self) -> list[AnyResults]:
        """Of each run and set the results of the newest checkpoint, and the baseline; older ones are for curves."""
        last: dict[tuple[object, ...], AnyResults] = {}
        for found in self.results:
            key = (*run_identity(found), found.kind, found.fingerprint)
            if key not in last or found.model["batch"] > last[key].model["batch"]:
                last[key] = found
        kept = {id(found) for found in last.values()}
        return [found for found in self.results if id(found) in kept or found.model_name == self.baseline]

    @property
    def than(self) -> str | None:
        """The baseline, where there are other models; None: nothing is compared."""
        return (self.baseline or natural_baseline(self.newest)) if len(model_names(self.newest)) > 1 else None


def holds_results(path: str) -> bool:
    """Whether a path is a file of results or a folder with some. Raises StorageError."""
    if path.endswith(SUFFIX):
        return True
    if not is_remote(path) and not local_path(path).is_dir():
        return False
    return any(name.endswith(SUFFIX) for name, _ in open_store(path).list())


def evaluation_section(evaluation: Evaluation) -> str:
    """The section of the page.

    Raises:
        InputError: no results, none of the baseline, or two models of one name.
    """
    newest = evaluation.newest
    rows = result_rows(newest, baseline=evaluation.than)
    texts = [row for row in rows if isinstance(row.results, TextResults)]
    questions = [row for row in rows if isinstance(row.results, QuestionResults)]
    told = [INTERVALS, *row_notes(rows)]
    if len(newest) < len(evaluation.results):
        told.append("tables: the newest checkpoint of each run; the curves show all")
    notes = "".join(f"<li><bdi>{escape(visible(note))}</bdi></li>" for note in told)
    parts = [
        _table("Perplexity of texts", [_text_cells(row) for row in texts], rows=texts),
        _table("Accuracy on questions, %", [_question_cells(row) for row in questions], rows=questions),
        f'<ul class="advice">{notes}</ul>',
        _better_part(evaluation),
        _curve_part(evaluation.results),
    ]
    return f"""<section aria-labelledby="evaluation">
<h2 id="evaluation">Evaluation</h2>
{chr(10).join(part for part in parts if part)}
</section>"""


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


def _table(title: str, cells: Sequence[Cells], *, rows: Sequence[ResultRow]) -> str:
    """Rows of models by set; columns of comparisons and of contaminated examples only where there are some."""
    if not rows:
        return ""
    than = next((row.than for row in rows if row.than), None)
    checked = any(row.num_contaminated is not None for row in rows)
    lines = []
    for row, own in zip(rows, cells, strict=True):
        shown = dict(own)
        if than is not None:
            shown[f"than {than}"] = than_cell(row)
        if checked:
            shown["Contaminated"] = NONE if row.num_contaminated is None else f"{row.num_contaminated:,}"
            shown["Without them"] = clean_cell(row)
        lines.append((row.judged.name, row.results.model_name, shown))
    return _named_table(title, "", lines)


def _named_table(title: str, caption: str, lines: Sequence[tuple[str, str, Cells]]) -> str:
    """A table whose rows begin with the names of a set and a model."""
    names = list(lines[0][2])
    head = "".join(f'<th scope="col" class="number"><bdi>{escape(visible(name))}</bdi></th>' for name in names)
    body = "\n".join(
        f'<tr><th scope="row"><bdi>{escape(visible(set_name))}</bdi></th>'
        f'<td data-label="model"><bdi>{escape(visible(model))}</bdi></td>'
        + "".join(
            f'<td class="number" data-label="{name.split()[0]}">{_cell(cell)}</td>' for name, cell in shown.items()
        )
        + "</tr>"
        for set_name, model, shown in lines
    )
    described = f"<caption>{caption}</caption>\n" if caption else ""
    return f"""<h3>{title}</h3>
<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="stack">
{described}<thead><tr><th scope="col">Set</th><th scope="col">Model</th>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""


def _cell(text: str) -> str:
    """A figure with its interval below it."""
    value, bracket, interval = text.partition(" [")
    below, closed, mark = interval.partition("]")
    if not bracket:
        return escape(text)
    return f'{escape(value)}{escape(mark)}<span class="interval">[{escape(below)}{closed}</span>'


def _better_part(evaluation: Evaluation) -> str:
    """On which share of the examples each model is better than the baseline."""
    than = evaluation.than
    if than is None:
        return ""
    try:
        rows = better_rows(evaluation.newest, baseline=than)
    except InputError as error:  # nothing that may be paired: the table stands, and says why this does not
        return f'<p class="warning"><bdi>{escape(visible(str(error)))}</bdi></p>'
    name = escape(visible(than))
    body = "\n".join(_better_row(row) for row in rows)
    title = "Where it got better"
    return f"""<h3>{title}</h3>
<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="stack">
<caption>Share of the examples on which each model is better than <bdi>{name}</bdi>: a lower perplexity, or a likelier
right answer. A tie counts as half.</caption>
<thead><tr><th scope="col">Set</th><th scope="col">Model</th><th scope="col">Better</th>
<th scope="col" class="number">95 % interval</th><th scope="col" class="number">Examples</th></tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""


def _better_row(row: BetterRow) -> str:
    low, high = row.fraction.interval
    interval = NONE if np.isnan(low) else f"{low:.1%} to {high:.1%}"
    width = 100 * row.fraction.value
    return (
        f'<tr><th scope="row"><bdi>{escape(visible(row.judged.name))}</bdi></th>'
        f'<td data-label="model"><bdi>{escape(visible(row.model))}</bdi></td>'
        f'<td class="bar" data-label="better"><span class="value">{row.fraction.value:.1%}</span>'
        f'<span class="track"><span class="fill {"crisp" if width > 50 else "base"}" style="width:{width:.1f}%"></span>'
        f'</span></td><td class="number" data-label="95 % interval">{interval}</td>'
        f'<td class="number" data-label="examples">{row.num_examples:,}</td></tr>'
    )


def _curve_part(results: Sequence[AnyResults]) -> str:
    """A chart per set on which several checkpoints of a run were judged."""
    try:
        found = curves(results)
    except InputError:  # models of no run, or two of one batch: there is no curve to draw
        return ""
    runs = list(dict.fromkeys(point.run for point in found.points))
    by_set: dict[str, list[tuple[int, list[CurvePoint]]]] = {}
    for (run, set_name), line in found.lines().items():
        if len(line) > 1 and set_name != TRAINING_LOSS:
            by_set.setdefault(set_name, []).append((runs.index(run), line))
    figures = "\n".join(_curve_figure(set_name, lines) for set_name, lines in by_set.items())
    return f'<h3>Over training</h3>\n<div class="pair">\n{figures}\n</div>' if figures else ""


def _curve_figure(set_name: str, lines: Sequence[tuple[int, list[CurvePoint]]]) -> str:
    measure = lines[0][1][0].measure
    scale = 100 if measure.startswith("acc") else 1
    drawn = [
        (number, np.array([(point.batch, scale * point.estimate.value) for point in line], np.float64))
        for number, line in lines
    ]
    every = np.concatenate([points for _, points in drawn])
    names = [(number, visible(line[0].run)) for number, line in lines]
    ends = "; ".join(f"{name} {points[-1, 1]:.4g}" for (_, name), (_, points) in zip(names, drawn, strict=True))
    title, what = escape(visible(set_name)), WRITTEN[measure]
    charts = [
        line_chart(
            [Curve(points=points, kind=f"curve colour{number % NUM_COLOURS}") for number, points in drawn],
            linear_axis([0.0, every[:, 0].max()], count=4, label="batch"),
            linear_axis(every[:, 1], count=5, margin=0.04),
            width=width,
            height=260,
            described=described,
        )
        for width, described in ((520, f"{what} of {visible(set_name)} by batch; at the end: {ends}."), (360, ""))
    ]
    return f"""<figure>
<h4><bdi>{title}</bdi></h4>
<figcaption>{what} by batch</figcaption>
{legend(names)}
{"".join(charts)}
</figure>"""
