"""The heaviest clusters of tasks and runs: section `Where the task lives`, and cards of other sections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.report.colours import BASE, Colours
from crisp_stream.report.elements import bar, legend, named, node_button, safe, section, table, valued_bar
from crisp_stream.report.map import TaskShares, Tree

_NUM_CLUSTERS = 8
_TEXT_CHARACTERS = 180


def heaviest_section(tasks: Sequence[TaskShares], tree: Tree, colours: Colours, scale: float) -> str:
    """A table of clusters for each task; that of the first is open. `scale` fills a bar."""
    first, *others = [(safe(task.name), _task_part(task, tree, colours.tasks[task.name], scale)) for task in tasks]
    if not others:
        return section("heaviest", "Where the task lives", first[1])
    folded = "\n".join(f"<details>\n<summary>{name}</summary>\n{part}\n</details>" for name, part in others)
    return section("heaviest", "Where the tasks live", f"<h3>{first[0]}</h3>\n{first[1]}\n{folded}")


def heaviest_rows(task: TaskShares) -> NDArray[np.intp]:
    """Rows of the heaviest clusters of a task at its level, heaviest first; none without mass."""
    rows = np.argsort(-task.shares, kind="stable")[:_NUM_CLUSTERS]
    return rows[task.shares[rows] > 0]


def largest_share(tasks: Sequence[TaskShares], tree: Tree) -> float:
    """Largest share, of a task or run or of its corpus, among the heaviest clusters of all: the scale of their bars."""
    shares = [0.0]
    for task in tasks:
        rows = heaviest_rows(task)
        shares += [float(column[rows].max(initial=0)) for column in (task.shares, tree.corpus_of(task))]
    return max(shares) or 1.0


def _task_part(task: TaskShares, tree: Tree, colour: str, scale: float) -> str:
    level = tree.levels[task.level - 1]
    top, name = heaviest_rows(task), safe(task.name)
    rows = []
    for node, share, corpus in zip(level.nodes[top].tolist(), task.shares[top], level.shares[top], strict=True):
        text = tree.text_of(task.level, node)[:_TEXT_CHARACTERS]
        bars = [
            valued_bar(digits.share(share), share / scale, colour),
            valued_bar(digits.share(corpus), corpus / scale, BASE),
        ]
        rows.append(
            {
                "Cluster: path and terms": node_button(tree, task.level, node),
                "Share": "".join(bars),
                "w": digits.weight(share / corpus),
                "Beginning of one of its windows": f"<q>{safe(text)}</q>" if text else "",
            }
        )
    held, of_corpus = task.shares[top].sum(), level.shares[top].sum()
    title = f"Heaviest clusters of {task.name} at level {task.level} of the tree"
    kinds = {"Share": "bar", "Beginning of one of its windows": "sample"}
    return f"""<p class="note">The {len(top)} heaviest of {len(level.nodes):,} clusters hold {held:.0%} of {name}, and
{of_corpus:.0%} of the corpus. Importance weight w = share of the task / share of the corpus: how much more often
training on the task's histogram draws the cluster than base does.</p>
{legend([(colour, task.name), (BASE, "corpus")])}
{table({"": rows}, title=title, caption=f"Level {task.level} of the tree.", kinds=kinds)}"""


def card(task: TaskShares, tree: Tree, colour: str, scale: float, *, heading: str, facts: str = "") -> str:
    """A card with the heaviest clusters of a task or run: its bar above that of the corpus, `scale` fills a track.

    `heading` is the element of the name, such as `h3`; `facts` is HTML above the clusters.
    """
    level = tree.levels[task.level - 1]
    top = heaviest_rows(task)
    rows = "\n".join(
        f"<li>{node_button(tree, task.level, node)}"
        f'<span class="pairs">{bar(share / scale, colour)}{bar(corpus / scale, BASE)}</span>'
        f'<span class="figures">{digits.share(share)} · w {digits.weight(share / corpus)}</span></li>'
        for node, share, corpus in zip(
            level.nodes[top].tolist(), task.shares[top], tree.corpus_of(task)[top], strict=True
        )
    )
    return f"""<article class="card">
<{heading}>{named(task.name, colour)}</{heading}>
{facts}
<ol class="top">
{rows}
</ol>
</article>"""
