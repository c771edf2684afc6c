"""Perplexities and accuracies of judged models as bars: those of one measure share a scale and a track length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from crisp_stream.report.colours import Colours
from crisp_stream.report.elements import bar, dot, safe, section
from crisp_stream.report.evaluation import Evaluation
from crisp_stream.report.map import visible
from crisp_stream.report.verdict import examples
from crisp_stream.results.curves import run_identity
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.results import QuestionResults
from crisp_stream.results.tables import BITS_PER_BYTE, DIFFERENCE, PERPLEXITY, RATIO, RATIO_OF_BITS, ResultRow
from crisp_stream.table import NONE

_CAPTIONS = {
    "Perplexity": "Lower is better: exp of the mean over texts of the mean loss per token.",
    "Bits per byte": "Lower is better: loss of all tokens in bits, over the bytes of their text. For models that cut "
    "text into tokens differently, whose perplexities cannot be compared.",
    "Accuracy": "Higher is better: share of questions answered right, by the metric that counts for the set.",
}


def score_section(evaluation: Evaluation, colours: Colours) -> str:
    """A table per measure, those of perplexity first."""
    by_title = {title: [row for row in evaluation.rows if _title(row) == title] for title in _CAPTIONS}
    by_title = {title: group for title, group in by_title.items() if group}
    tables = "\n".join(_table(title, group, colours) for title, group in by_title.items())
    first, *others = by_title
    return section("scores", " and ".join([first, *(title.lower() for title in others)]), tables)


def _title(row: ResultRow) -> str:
    if isinstance(row.results, QuestionResults):
        return "Accuracy"
    return "Perplexity" if row.judged.comparable else "Bits per byte"


def _figure(row: ResultRow) -> Estimate:
    if isinstance(row.results, QuestionResults):
        return row.estimates[row.results.metric]
    return row.estimates[PERPLEXITY if row.judged.comparable else BITS_PER_BYTE]


def _table(title: str, rows: Sequence[ResultRow], colours: Colours) -> str:
    scale = 1.0 if title == "Accuracy" else max(_figure(row).value for row in rows)
    than = next((row.than for row in rows if row.than), None)
    comparison = "" if than is None else f"{'Points above' if title == 'Accuracy' else 'Ratio to'} {than}"
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.judged.name, []).append(row)
    bodies = "\n".join(_group(title, group, scale, comparison, colours) for group in groups.values())
    head = f'<th scope="col" class="number">{safe(comparison)}</th>' if comparison else ""
    return f"""<table class="stack scores">
<caption>{_CAPTIONS[title]} In brackets: 95% interval over examples.</caption>
<thead><tr><th scope="col">Model</th><th scope="col">{title}</th>{head}</tr></thead>
{bodies}
</table>"""


def _group(title: str, rows: Sequence[ResultRow], scale: float, comparison: str, colours: Colours) -> str:
    """The models on one set."""
    name = rows[0].judged.name
    head = f"{dot(colours.of_set(name))}{safe(name)} <small>{examples(rows[0].results)}</small>"
    lines = "\n".join(_row(title, row, scale, comparison, colours) for row in rows)
    columns = 3 if comparison else 2
    return f"""<tbody>
<tr class="group"><th scope="rowgroup" colspan="{columns}">{head}</th></tr>
{lines}
</tbody>"""


def _row(title: str, row: ResultRow, scale: float, comparison: str, colours: Colours) -> str:
    figure, colour = _figure(row), colours.of_run(run_identity(row.results))
    value = _written(title, figure.value)
    label = escape(visible(comparison))
    than = f'<td class="number" data-label="{label}">{_comparison(row)}</td>' if comparison else ""
    return (
        f'<tr><th scope="row">{dot(colour)}{safe(row.results.model_name)}</th>'
        f'<td class="bar" data-label="{title.lower()}"><span class="line"><span class="value">{value}</span>'
        f"{bar(figure.value / scale, colour)}</span>{_interval(title, figure)}</td>{than}</tr>"
    )


def _written(title: str, value: float) -> str:
    return {"Perplexity": f"{value:,.1f}", "Bits per byte": f"{value:.3f}", "Accuracy": f"{value:.1%}"}[title]


def _interval(title: str, figure: Estimate) -> str:
    low, high = figure.interval
    if math.isnan(low):
        return ""
    return f'<span class="interval">[{_written(title, low)} to {_written(title, high)}]</span>'


def _comparison(row: ResultRow) -> str:
    """Ratio to the baseline, or points above it, with its interval."""
    for measure, estimate in row.estimates.items():
        is_ratio = measure in (RATIO, RATIO_OF_BITS)
        if is_ratio or measure.startswith(DIFFERENCE):
            cell = estimate.cell(3) if is_ratio else estimate.cell(1, scale=100, signed=True)
            value, _, interval = cell.partition(" ")
            return f'<span>{value} <span class="interval">{interval.replace(",", " to")}</span></span>'
    return NONE
