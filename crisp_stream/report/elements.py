"""Pieces of HTML that several sections use: names, bars, legends, charts over batches, buttons of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from crisp_stream.report.charts import Curve, drawings, linear_axis, smoothed, thinned
from crisp_stream.report.colours import BASE
from crisp_stream.report.map import Tree, visible


def safe(name: str) -> str:
    """Escape a name or text of somebody else, and keep its writing direction from spreading."""
    return f"<bdi>{escape(visible(name))}</bdi>"


def section(key: str, title: str, body: str, *, kind: str = "") -> str:
    """A section with its heading."""
    kinds = f' class="{kind}"' if kind else ""
    return f'<section aria-labelledby="{key}"{kinds}>\n<h2 id="{key}">{title}</h2>\n{body}\n</section>'


def dot(colour: str | None) -> str:
    """A dot in the colour of a task or run; nothing without a colour."""
    return "" if colour is None else f'<span class="dot {colour}" aria-hidden="true"></span>'


def bar(share: float, colour: str) -> str:
    """A bar that fills a share of its track."""
    width = f"{100 * min(1.0, share):.1f}%"
    return f'<span class="track" aria-hidden="true"><span class="fill {colour}" style="width:{width}"></span></span>'


def against_corpus(share: float, corpus: float, scale: float, colour: str) -> str:
    """Two bars on one scale: a share of a task or run, and below it that of the corpus."""
    return f'<span class="pairs">{bar(share / scale, colour)}{bar(corpus / scale, BASE)}</span>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """A legend: class of each colour, and text."""
    keys = " ".join(
        f'<span class="key"><span class="swatch {colour}" aria-hidden="true"></span>{safe(text)}</span>'
        for colour, text in entries
    )
    return f'<p class="legend">{keys}</p>'


@dataclass(frozen=True, kw_only=True)
class Line:
    """A figure of a run over its batches."""

    label: str
    """Name and last value, for the legend."""
    colour: str
    """Class of the run."""
    points: NDArray[np.float64]
    """[num_points, 2]: batch and value, finite."""


def batch_figure(heading: str, caption: str, unit: str, lines: Sequence[Line], *, noisy: bool = False) -> str:
    """Chart lines by batch; nothing without lines.

    Args:
        heading: element with the title.
        caption: what the values are.
        unit: label of the vertical axis.
        lines: one of each run.
        noisy: draw an average over neighbouring batches, and the values themselves faint.
    """
    if not lines:
        return ""
    curves = [Curve(points=thinned(line.points), kind=f"raw {line.colour}") for line in lines if noisy]
    for line in lines:
        points = smoothed(line.points) if noisy else line.points
        curves.append(Curve(points=thinned(points), kind=f"curve {line.colour}"))
    every = np.concatenate([line.points for line in lines])
    x = linear_axis([0.0, every[:, 0].max()], count=5, label="batch")
    y = linear_axis(every[:, 1], count=5, margin=0.04, label=unit)
    described = f"{unit} by batch: {'; '.join(visible(line.label) for line in lines)}."
    return f"""<figure>
{heading}
<figcaption>{caption}</figcaption>
{legend([(line.colour, line.label) for line in lines])}
{drawings(curves, x, y, described=described)}
</figure>"""


def definitions(facts: Mapping[str, str], *, kind: str = "") -> str:
    """A list of names and values."""
    kinds = f' class="{kind}"' if kind else ""
    listed = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in facts.items())
    return f"<dl{kinds}>{listed}</dl>"


def node_button(tree: Tree, level: int, node: int) -> str:
    """A node's path and terms; with the script a press shows it on the map."""
    return (
        f'<button type="button" class="node" data-level="{level}" data-node="{node}">'
        f'<span class="path">{tree.path(level, node)}</span> {safe(tree.terms_of(level, node))}</button>'
    )
