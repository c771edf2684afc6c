"""Section `Where the task lives`: its heaviest clusters against the corpus, with terms and a text of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crisp_stream.report.colours import BASE, Colours
from crisp_stream.report.elements import bar, legend, node_button, safe, section
from crisp_stream.report.map import TaskShares, Tree

_NUM_CLUSTERS = 8
_TEXT_CHARACTERS = 180


def heaviest_section(tasks: Sequence[TaskShares], tree: Tree, colours: Colours) -> str:
    """A table of clusters for each task; that of the first is open."""
    scale = largest_share(tasks, tree, _NUM_CLUSTERS)
    first, *others = [(task, _task_part(task, tree, colours.tasks[task.name], scale)) for task in tasks]
    folded = "\n".join(f"<details>\n<summary>{safe(task.name)}</summary>\n{part}\n</details>" for task, part in others)
    if not others:
        return section("heaviest", "Where the task lives", first[1])
    return section("heaviest", "Where the tasks live", f"<h3>{safe(first[0].name)}</h3>\n{first[1]}\n{folded}")


def heaviest_rows(task: TaskShares, limit: int) -> NDArray[np.intp]:
    """Rows of the heaviest clusters of a task at its level, heaviest first; none without mass."""
    rows = np.argsort(-task.shares, kind="stable")[:limit]
    return rows[task.shares[rows] > 0]


def largest_share(tasks: Sequence[TaskShares], tree: Tree, limit: int) -> float:
    """Largest share, of a task or of the corpus, among the heaviest clusters of all tasks: the scale of their bars."""
    shares = [0.0]
    for task in tasks:
        rows = heaviest_rows(task, limit)
        shares += [float(column[rows].max(initial=0)) for column in (task.shares, tree.levels[task.level - 1].shares)]
    return max(shares) or 1.0


def _task_part(task: TaskShares, tree: Tree, colour: str, scale: float) -> str:
    level = tree.levels[task.level - 1]
    top = heaviest_rows(task, _NUM_CLUSTERS)
    rows = "\n".join(_row(task, tree, int(row), colour, scale) for row in top)
    name = safe(task.name)
    held, corpus = task.shares[top].sum(), level.shares[top].sum()
    return f"""<p class="note">The {len(top)} heaviest of {len(level.nodes):,} clusters hold {held:.0%} of {name}, and
{corpus:.0%} of the corpus. Importance weight w = share of the task / share of the corpus: how much more often
training on the task's histogram draws the cluster than base does.</p>
{legend([(colour, task.name), (BASE, "corpus")])}
<table class="stack clusters">
<caption class="unseen">Heaviest clusters of {name} at level {task.level} of the tree</caption>
<thead><tr><th scope="col">Cluster: path and terms</th><th scope="col">Share</th>
<th scope="col" class="number">w</th><th scope="col">Beginning of one of its windows</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>"""


def _row(task: TaskShares, tree: Tree, row: int, colour: str, scale: float) -> str:
    level = tree.levels[task.level - 1]
    node, share, corpus = int(level.nodes[row]), float(task.shares[row]), float(level.shares[row])
    text = tree.text_of(task.level, node)[:_TEXT_CHARACTERS]
    quote = f"<q>{safe(text)}</q>" if text else ""
    return (
        f'<tr><th scope="row">{node_button(tree, task.level, node)}</th>'
        f'<td class="bar" data-label="share"><span class="line"><span class="value">{share:.1%}</span>'
        f'{bar(share / scale, colour)}</span><span class="line"><span class="value quiet">{corpus:.1%}</span>'
        f'{bar(corpus / scale, BASE)}</span></td><td class="number" data-label="w">{share / corpus:,.1f}</td>'
        f'<td class="sample">{quote}</td></tr>'
    )
