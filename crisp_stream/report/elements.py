"""Pieces of HTML that several sections use: names, bars, tables, charts with a legend, buttons of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from crisp_stream.report.charts import Axis, Curve, line_chart, linear_axis, smoothed, thinned
from crisp_stream.report.map import Tree, visible

Cells = Mapping[str, str]
"""HTML of the cells of a row by heading; the first one names the row."""


def safe(name: str) -> str:
    """Escape a name or text of somebody else, and keep its writing direction from spreading."""
    return f"<bdi>{escape(visible(name))}</bdi>"


def section(key: str, title: str, body: str) -> str:
    """A section with its heading."""
    return f'<section aria-labelledby="{key}">\n<h2 id="{key}">{title}</h2>\n{body}\n</section>'


def named(name: str, colour: str | None) -> str:
    """A name behind a dot in the colour of its task or run; the name alone without a colour."""
    dot = "" if colour is None else f'<span class="dot {colour}" aria-hidden="true"></span>'
    return dot + safe(name)


def bar(share: float, colour: str) -> str:
    """A bar that fills a share of its track."""
    width = f"{100 * min(1.0, share):.1f}%"
    return f'<span class="track" aria-hidden="true"><span class="fill {colour}" style="width:{width}"></span></span>'


def valued_bar(value: str, share: float, colour: str) -> str:
    """A value, a bar behind it, and the interval of the value below it, if it has one."""
    number, _, interval = value.partition(" ")
    line = f'<span class="line"><span class="value">{number}</span>{bar(share, colour)}</span>'
    return f'{line}<span class="interval">{interval}</span>' if interval else line


def interval_below(text: str) -> str:
    """A figure with its interval below it."""
    value, bracket, interval = text.rpartition(" [")
    return f'<span>{value} <span class="interval">[{interval}</span></span>' if bracket else text


def table(
    groups: Mapping[str, Sequence[Cells]], *, title: str, caption: str, kinds: Mapping[str, str] | None = None
) -> str:
    """A table that becomes a list of cards on a narrow screen; nothing without rows.

    Args:
        groups: HTML of the heading of a group of rows (empty: no heading) to the rows, which all have the same cells.
        title: name for readers who cannot see the table.
        caption: meaning of the cells.
        kinds: class of the cells below a heading: `bar`, `sample` (text) or nothing; those of others are numbers.
    """
    columns = next((list(rows[0]) for rows in groups.values() if rows), [])
    if not columns:
        return ""
    classes = {name: (kinds or {}).get(name, "number") for name in columns} | {columns[0]: ""}
    head = "".join(f'<th scope="col" class="{kind}">{safe(name)}</th>' for name, kind in classes.items())
    bodies = "\n".join(_group(heading, rows, classes) for heading, rows in groups.items())
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{escape(visible(title))}">
<table class="stack">
<caption>{caption}</caption>
<thead><tr>{head}</tr></thead>
{bodies}
</table>
</div>"""


def _group(heading: str, rows: Sequence[Cells], classes: Mapping[str, str]) -> str:
    lines = [f'<tr class="group"><th scope="rowgroup" colspan="{len(classes)}">{heading}</th></tr>'] if heading else []
    for cells in rows:
        (_, name), *others = cells.items()
        data = "".join(
            f'<td class="{classes[heading]}" data-label="{escape(visible(heading))}">{cell}</td>'
            for heading, cell in others
        )
        lines.append(f'<tr><th scope="row">{name}</th>{data}</tr>')
    return "<tbody>\n" + "\n".join(lines) + "\n</tbody>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """A legend: class of each colour, and text."""
    keys = " ".join(
        f'<span class="key"><span class="swatch {colour}" aria-hidden="true"></span>{safe(text)}</span>'
        for colour, text in entries
    )
    return f'<p class="legend">{keys}</p>'


def figure(curves: Sequence[Curve], x: Axis, y: Axis, *, caption: str, heading: str = "") -> str:
    """A chart with a legend of the curves that have a label, drawn twice: for wide and for narrow screens."""
    labelled = [curve for curve in curves if curve.label]
    described = f"{y.label} by {x.label}: {'; '.join(visible(curve.label) for curve in labelled)}."
    return f"""<figure>
{heading}
<figcaption>{caption}</figcaption>
{legend([(curve.colour, curve.label) for curve in labelled])}
{line_chart(curves, x, y, width=760, height=310, described=described)}
{line_chart(curves, x, y, width=360, height=270, described="")}
</figure>"""


def batch_figure(
    heading: str,
    caption: str,
    unit: str,
    lines: Sequence[Curve],
    *,
    noisy: bool = False,
    beside: Sequence[Curve] = (),
) -> str:
    """Chart figures of runs by batch; runs of fewer than two points are left out, and nothing is left without runs.

    Args:
        heading: element with the title.
        caption: what the values are.
        unit: label of the vertical axis.
        lines: one of each run, of finite values.
        noisy: draw an average over neighbouring batches, and the values themselves faint.
        beside: lines of charts that are read beside this one, whose axes it has.
    """
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return ""
    curves = [Curve(points=thinned(line.points), colour=line.colour, style="raw") for line in lines if noisy]
    for line in lines:
        points = smoothed(line.points) if noisy else line.points
        curves.append(Curve(points=thinned(points), colour=line.colour, label=line.label))
    every = np.concatenate([line.points for line in [*lines, *beside] if len(line.points) > 1])
    x = linear_axis([0.0, every[:, 0].max()], count=5, label="batch")
    y = linear_axis(every[:, 1], count=5, margin=0.04, label=unit)
    return figure(curves, x, y, caption=caption, heading=heading)


def definitions(facts: Mapping[str, str], *, kind: str = "") -> str:
    """A list of names and values."""
    listed = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="{kind}">{listed}</dl>'


def node_button(tree: Tree, level: int, node: int) -> str:
    """A node's path and terms; with the script a press shows it on the map."""
    return (
        f'<button type="button" class="node" data-level="{level}" data-node="{node}">'
        f'<span class="path">{tree.path(level, node)}</span> {safe(tree.terms_of(level, node))}</button>'
    )
