"""Tasks beside each other: their histograms, how much of the corpus they need, and which data helps which task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.histograms.arithmetic import effective_clusters
from crisp_stream.histograms.chance import DRAWS, FEW_WINDOWS, by_chance
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.unlike import UnknownWords, unknown_words_of, unlike_warnings
from crisp_stream.report.charts import Axis, Curve, percent
from crisp_stream.report.colours import BASE, Colours
from crisp_stream.report.elements import definitions, figure, safe, section
from crisp_stream.report.heaviest import card
from crisp_stream.report.map import TaskShares, Tree, shares_at, visible
from crisp_stream.table import NONE

BASE_SHARE = 0.1
"""Share of the base mixture in the second transfer matrix: with it no example of another task is impossible."""

_CURVE_POINTS = 120


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Shares that tasks have in common, and gains of one from the data of another (paper, Section 5.4)."""

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


def histogram_section(
    histograms: Mapping[str, Histogram], tasks: Sequence[TaskShares], tree: Tree, colours: Colours, scale: float
) -> str:
    """A card per histogram: how many clusters, how far from the corpus, the heaviest with their terms. `scale` fills a
    bar."""
    cards = "\n".join(
        card(
            task,
            tree,
            colours.tasks[task.name],
            scale,
            heading="h3",
            facts=definitions(_facts(task, histograms[task.name], tree), kind="facts"),
        )
        for task in tasks
    )
    return section(
        "histograms",
        "Histograms side by side",
        f"""<p class="note">The heaviest clusters of each task: the coloured bar is the task's share of the cluster, the
grey one that of the corpus, on one scale for all bars of shares on this page; w is the ratio of the two. <i>Effective
clusters</i>: how many equally heavy clusters would be as spread out (exp of the entropy). <i>Off the corpus</i>: total
variation, 0% for the corpus itself, 100% for nothing in common. <i>random</i>, <i>w by chance</i>: what as many random
windows of the corpus would show, the mean of {DRAWS} sets; below {FEW_WINDOWS} windows per cluster, single clusters are
mostly chance. <i>Unknown words</i>: the share of the examples' letters in words that a sample of the corpus does not
have.</p>
{_unlike(histograms)}<div class="cards">
{cards}
</div>""",
    )


def _unlike(histograms: Mapping[str, Histogram]) -> str:
    """Warnings of examples that are unlike the corpus."""
    return "".join(
        f'<p class="warning">{safe(name)}: {safe(warning.removeprefix("warning: "))}</p>\n'
        for name, histogram in histograms.items()
        for warning in unlike_warnings(histogram.provenance)
    )


def _facts(task: TaskShares, histogram: Histogram, tree: Tree) -> dict[str, str]:
    level, counts = tree.levels[task.level - 1], histogram.counts
    # A histogram is shown at its own level; where it has counts, random windows are drawn at that level, too.
    chance = None if counts is None or histogram.level != task.level else by_chance(level.shares, int(counts.sum()))
    effective, off = digits.effective(effective_clusters(histogram)), np.abs(task.shares - level.shares).sum() / 2
    off_corpus = digits.part(off + task.missing / 2)
    if chance is not None:
        effective += f" (random: {digits.effective(chance.effective_clusters)})"
        off_corpus += f" (random: {digits.part(chance.off_corpus)})"
    words = unknown_words_of(histogram.provenance)
    return {
        "level": f"{histogram.level}",
        "windows counted": NONE if histogram.counts is None else f"{int(histogram.counts.sum()):,}",
        "clusters": f"{len(histogram.nodes):,} of {len(level.nodes):,}",
        "effective clusters": effective,
        "off the corpus": off_corpus,
        **({} if chance is None else {"w by chance": f"up to {digits.largest_weight(chance.largest_weight)}"}),
        **({} if words is None else {"unknown words": _beside_corpus(words)}),
        **({"on empty clusters": digits.share(task.missing)} if task.missing > 0 else {}),
    }


def specificity_section(tasks: Sequence[TaskShares], tree: Tree, colours: Colours) -> str:
    """Curves of how much of a task a part of the corpus holds, the best clusters first."""
    diagonal = np.geomspace(1e-3, 1, _CURVE_POINTS)
    curves = [Curve(points=np.column_stack([diagonal, diagonal]), colour=BASE, label="corpus", style="curve thin")]
    for task in tasks:
        corpus, held = _concentration(task, tree)
        half = float(np.interp(0.5 * held[-1], held, corpus))
        at = np.unique(np.searchsorted(corpus, diagonal).clip(0, len(corpus) - 1))
        points = np.column_stack([np.maximum(corpus[at], 1e-3), held[at]])
        label = f"{task.name}: half of it in {digits.part(half)}"
        curves.append(Curve(points=points, colour=colours.tasks[task.name], label=label))
    x = Axis(
        low=1e-3, high=1, ticks=[1e-3, 1e-2, 1e-1, 1], label="share of the corpus", logarithmic=True, write=percent
    )
    y = Axis(low=0, high=1, ticks=[0, 0.25, 0.5, 0.75, 1], label="share of the task", write=percent)
    caption = (
        "Clusters in the order of w, largest first: the part of the corpus that they make up, against the share of the "
        "task that falls in them. Grey: the corpus itself. A curve far to the left is a task that few clusters serve, "
        "and whose windows will repeat soonest."
    )
    return section("specificity", "How much of the corpus a task needs", figure(curves, x, y, caption=caption))


def _concentration(task: TaskShares, tree: Tree) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative share of the corpus, and of the task, over clusters in the order of w(c)."""
    generalist = tree.levels[task.level - 1].shares
    order = np.argsort(-task.shares / generalist, kind="stable")
    corpus, held = np.cumsum(generalist[order]), np.cumsum(task.shares[order])
    return np.append(0, corpus).clip(0, 1), np.append(0, held).clip(0, 1)


def transfer_section(compared: Transfer) -> str:
    """Two heat maps with numbers: who shares clusters with whom, and whose data raises whose likelihood."""
    gain_rows = [*compared.names, "all, averaged"]
    overlap = _heat_table(
        compared.overlap,
        compared.names,
        compared.names,
        "Overlap",
        "1 - total variation: 100% for the same clusters in the same shares, 0% for none in common.",
        digits.part,
    )
    gain = _heat_table(
        compared.gain,
        gain_rows,
        compared.names,
        "Gain",
        "Row A, column B: how much likelier, in nats per example, the clusters of B's examples are under A's "
        f"mixture (with {BASE_SHARE:.0%} of the corpus mixed in) than under the corpus. Below 0: worse than no "
        "selection. The best row of another task is bold.",
        "{:+.2f}".format,
    )
    return section(
        "transfer",
        "Which data helps which task",
        f"""<p class="note">Compared at level {compared.level}. A task's gain for itself (outlined) is measured on the
very examples that were counted, and so is too good, the more so the fewer they are. Counts of few examples at a fine
level overlap little even when their tasks are alike; compare those at a coarser level.</p>
<div class="pair">{overlap}{gain}</div>""",
    )


def _heat_table(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    caption: str,
    write: Callable[[float], str],
) -> str:
    itself = np.eye(len(rows), len(columns), dtype=bool)
    best = np.where(itself, -np.inf, values)[: len(columns)].argmax(axis=0)
    most = max(float(np.abs(values).max(initial=0)), 1e-9)
    body = []
    for at, (name, line) in enumerate(zip(rows, values, strict=True)):
        cells = "".join(
            f'<td class="heat{" below" if value < 0 else ""}{" itself" if itself[at, column] else ""}'
            f'{" best" if best[column] == at else ""}" style="--heat:{abs(value) / most:.3f}">'
            f"{write(float(value))}</td>"
            for column, value in enumerate(line)
        )
        body.append(f'<tr><th scope="row">{safe(name)}</th>{cells}</tr>')
    head = "".join(
        f'<th scope="col"><span title="{escape(visible(name))}">{safe(name)}</span></th>' for name in columns
    )
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


def _beside_corpus(words: UnknownWords) -> str:
    return f"{digits.part(words.share)} (corpus: {digits.part(words.corpus_share)})"
