"""The parts of the page that need no script: histograms side by side, how specific they are, what transfers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from crisp_stream.histograms.arithmetic import effective_clusters
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.inspection.terms import NodeTerms
from crisp_stream.report.charts import Axis, Curve, line_chart
from crisp_stream.report.map import MapLevel, TaskShares, shares_at, visible

BASE_SHARE = 0.1
"""Share of the base mixture in the second transfer matrix: with it no example of another task is impossible."""

NUM_COLOURS = 8
"""Line colours of the style sheet; more tasks use them again, dashed."""

_TOP_NODES = 6
_CURVE_POINTS = 120


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What the sections know of the dataset's tree."""

    arity: int
    levels: Sequence[MapLevel]
    terms: Sequence[NodeTerms]
    """One per level."""

    def terms_of(self, level: int, node: int) -> str:
        """The terms of a node, or of the closest node above it that has some; empty where none has."""
        for found in reversed(self.terms[:level]):
            above = node // self.arity ** (level - found.level)
            at = int(np.searchsorted(found.nodes, above))
            if at < len(found.nodes) and found.nodes[at] == above and found.terms[at]:
                return " ".join(visible(term) for term in found.terms[at])
        return ""

    def path(self, level: int, node: int) -> str:
        """A node's path from the root: `37/5/12`."""
        return "/".join(str(node // self.arity ** (level - at) % self.arity) for at in range(1, level + 1))


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How much the data of one task has of another (paper, Section 5.4)."""

    level: int
    """The coarsest of the histograms' levels, at which they are compared."""
    names: Sequence[str]
    """[num_tasks]."""
    overlap: NDArray[np.float64]
    """[num_tasks, num_tasks], 1 - total variation."""
    gain: NDArray[np.float64]
    """[num_tasks + 1, num_tasks]: row A, column B: nats per example of B that A's mixture gains over the corpus; the
    last row is the average of all histograms."""


def transfer(tasks: Sequence[TaskShares], tree: Tree) -> Transfer:
    """Compare tasks at the coarsest of their levels.

    gain(A, B) = Σ_c P(c | B) · log((1 - λ) P(c | A) / P(c | D^g) + λ), with λ = BASE_SHARE.
    """
    level = min(task.level for task in tasks)
    generalist = tree.levels[level - 1].shares
    shares = np.stack([shares_at(task, level, tree.levels, tree.arity) for task in tasks])
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    overlap = np.stack([np.minimum(row, shares).sum(axis=1) for row in shares])
    sources = np.concatenate([shares, shares.mean(axis=0, keepdims=True)])
    gain = np.log((1 - BASE_SHARE) * sources / generalist + BASE_SHARE) @ shares.T
    return Transfer(level=level, names=[task.name for task in tasks], overlap=overlap, gain=gain)


def histogram_section(histograms: Mapping[str, Histogram], tasks: Sequence[TaskShares], tree: Tree) -> str:
    """A card per histogram: how many clusters, how far from the corpus, the heaviest with their terms."""
    cards = "\n".join(
        _card(number, task, histograms[task.name], tree) for number, task in enumerate(tasks) if task.name in histograms
    )
    return f"""<section aria-labelledby="histograms">
<h2 id="histograms">Histograms side by side</h2>
<p class="note">The heaviest clusters of each task. The bar is the task's share of the cluster, the mark in it the
corpus's own share; w is the ratio of the two. <i>Effectively</i>: how many equally heavy clusters would be as spread
out (exp of the entropy). <i>Off the corpus</i>: total variation, 0 for the corpus itself, 1 for nothing in common.</p>
<div class="cards">
{cards}
</div>
</section>"""


def _card(number: int, task: TaskShares, histogram: Histogram, tree: Tree) -> str:
    level = tree.levels[task.level - 1]
    shares, generalist = task.shares, level.shares
    top = np.argsort(-shares, kind="stable")[:_TOP_NODES]
    top = top[shares[top] > 0]
    most = float(shares[top].max(initial=0)) or 1.0
    rows = "\n".join(
        f"<li>{node_button(tree, task.level, int(level.nodes[row]))}"
        f"{meter(float(shares[row]) / most, float(generalist[row]) / most)}"
        f'<span class="figures">{shares[row]:.1%} · w {shares[row] / generalist[row]:,.1f}</span></li>'
        for row in top
    )
    facts = [
        ("level", f"{histogram.level}"),
        ("counted", "-" if histogram.counts is None else f"{int(histogram.counts.sum()):,}"),
        ("clusters", f"{len(histogram.nodes):,} of {len(level.nodes):,}"),
        ("effectively", f"{effective_clusters(histogram):,.0f}"),
        ("off the corpus", f"{np.abs(shares - generalist).sum() / 2 + task.missing / 2:.2f}"),
    ]
    if task.missing > 0:
        facts.append(("on empty clusters", f"{task.missing:.1%}"))
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"""<article class="card colour{number % NUM_COLOURS}">
<h3><span class="dot" aria-hidden="true"></span>{escape(visible(task.name))}</h3>
<dl class="facts">{listed}</dl>
<ol class="top">
{rows}
</ol>
</article>"""


def meter(share: float, mark: float) -> str:
    """A bar, and a mark across it; both 0 to 1."""
    return (
        f'<span class="meter" aria-hidden="true"><span class="fill" style="width:{100 * share:.1f}%"></span>'
        f'<span class="mark" style="left:{min(100.0, 100 * mark):.1f}%"></span></span>'
    )


def legend(entries: Sequence[tuple[int, str]]) -> str:
    """What each line colour stands for: number of the colour, and text."""
    keys = " ".join(
        f'<span class="key colour{number % NUM_COLOURS}"><span class="swatch line"></span>'
        f"<bdi>{escape(text)}</bdi></span>"
        for number, text in entries
    )
    return f'<p class="legend">{keys}</p>'


def node_button(tree: Tree, level: int, node: int) -> str:
    """A node's path and terms; with the script a press shows it on the map."""
    return (
        f'<button type="button" class="node" data-level="{level}" data-node="{node}">'
        f'<span class="path">{tree.path(level, node)}</span> <bdi>{escape(tree.terms_of(level, node))}</bdi></button>'
    )


def specificity_section(tasks: Sequence[TaskShares], tree: Tree) -> str:
    """Which part of the corpus holds how much of each task: curves, the best clusters first."""
    curves, ends = [], []
    for number, task in enumerate(tasks):
        corpus, held = _concentration(task, tree)
        half = float(np.interp(0.5 * held[-1], held, corpus))
        ends.append(f"{visible(task.name)}: half of it in {half:.1%}")
        dashed = " dashed" if number >= NUM_COLOURS else ""
        at = np.unique(np.searchsorted(corpus, np.geomspace(1e-3, 1, _CURVE_POINTS)).clip(0, len(corpus) - 1))
        points = np.column_stack([np.maximum(corpus[at], 1e-3), held[at]])
        curves.append(Curve(points=points, kind=f"curve colour{number % NUM_COLOURS}{dashed}"))
    diagonal = np.geomspace(1e-3, 1, _CURVE_POINTS)
    curves.insert(0, Curve(points=np.column_stack([diagonal, diagonal]), kind="raw base"))
    x = Axis(
        low=1e-3, high=1, ticks=[1e-3, 1e-2, 1e-1, 1], label="share of the corpus", logarithmic=True, write=_percent
    )
    y = Axis(low=0, high=1, ticks=[0, 0.25, 0.5, 0.75, 1], write=_percent)
    described = "Share of each task held by the best part of the corpus; " + "; ".join(ends) + "."
    return f"""<section aria-labelledby="specificity">
<h2 id="specificity">How much of the corpus a task needs</h2>
<figure>
<figcaption>Clusters in the order of w(c), largest first: the part of the corpus that they make up, against the share of
the task that falls in them. Faint: the corpus itself. A curve far to the left is a task that few clusters serve, and
whose windows will repeat soonest.</figcaption>
{legend(list(enumerate(ends)))}
{line_chart(curves, x, y, width=760, height=320, described=described)}
{line_chart(curves, x, y, width=360, height=280, described="")}
</figure>
</section>"""


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


def _concentration(task: TaskShares, tree: Tree) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative share of the corpus, and of the task, over clusters in the order of w(c)."""
    generalist = tree.levels[task.level - 1].shares
    order = np.argsort(-task.shares / generalist, kind="stable")
    corpus, held = np.cumsum(generalist[order]), np.cumsum(task.shares[order])
    return np.append(0, corpus).clip(0, 1), np.append(0, held).clip(0, 1)


def transfer_section(found: Transfer) -> str:
    """Two heat maps with numbers: who shares clusters with whom, and whose data raises whose likelihood."""
    gain_rows = [*found.names, "all, averaged"]
    overlap = _heat_table(
        found.overlap,
        found.names,
        found.names,
        "Overlap",
        "1 - total variation: 1 for the same clusters in the same shares, 0 for none in common.",
        "{:.2f}",
    )
    gain = _heat_table(
        found.gain,
        gain_rows,
        found.names,
        "Gain",
        "Row A, column B: how much likelier, in nats per example, the clusters of B's examples are under A's "
        f"mixture (with {BASE_SHARE:.0%} of the corpus mixed in) than under the corpus. Below 0: worse than no "
        "selection. The best row of another task is bold.",
        "{:+.2f}",
    )
    return f"""<section aria-labelledby="transfer">
<h2 id="transfer">Which data helps which task</h2>
<p class="note">Compared at level {found.level}. A task's own entry in the second table is measured on the very examples
that were counted, and so is too good, the more so the fewer they are. Counts of few examples at a fine level overlap
little even when their tasks are alike; compare those at a coarser level.</p>
<div class="pair">{overlap}{gain}</div>
</section>"""


def _heat_table(
    values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str, caption: str, write: str
) -> str:
    own = np.eye(len(rows), len(columns), dtype=bool)
    best = np.where(own, -np.inf, values)[: len(columns)].argmax(axis=0)
    most = max(float(np.abs(values).max(initial=0)), 1e-9)
    body = []
    for at, (name, line) in enumerate(zip(rows, values, strict=True)):
        cells = "".join(
            f'<td class="heat{" below" if value < 0 else ""}{" own" if own[at, column] else ""}'
            f'{" best" if best[column] == at else ""}" style="--heat:{abs(value) / most:.3f}">'
            f"{write.format(value)}</td>"
            for column, value in enumerate(line)
        )
        body.append(f'<tr><th scope="row"><bdi>{escape(visible(name))}</bdi></th>{cells}</tr>')
    head = "".join(f'<th scope="col"><span><bdi>{escape(visible(name))}</bdi></span></th>' for name in columns)
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{title}">
<h3>{title}</h3>
<table class="matrix">
<caption>{caption}</caption>
<thead><tr><td></td>{head}</tr></thead>
<tbody>
{chr(10).join(body)}
</tbody>
</table>
</div>"""
