"""A cluster by its windows: many of them, read at evenly spaced places."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.inspection.node_scores import quantile_table
from crisp_stream.inspection.plain import facts_text
from crisp_stream.inspection.terms import layout_of, lines_of, node_terms, purity_note, terms_are_known
from crisp_stream.writers.tree.terms import Ranges

_CHARACTERS = 600
"""Of a window; about 150 tokens of English."""
_WIDTH = 100


def node_of_path(dataset: Dataset, path: str, *, level: int | None = None) -> tuple[int, int]:
    """(level, node id) of a path from the root such as 0/10; or of a node id alone, at `level`, 1 when None.

    Raises:
        InputError: no such path in the tree's shape.
    """
    arity, depth = dataset.manifest.arity, dataset.manifest.depth
    try:
        steps = [int(step) for step in path.split("/")]
    except ValueError as error:
        raise InputError(
            f"--cluster: must be a path of numbers from the root, such as 0/10, or a cluster's number, got {path}."
        ) from error
    if len(steps) == 1:
        level = 1 if level is None else level
        dataset.tree.check_level(level)
        if not 0 <= steps[0] < arity**level:
            raise InputError(f"--cluster: must be 0 to {arity**level - 1} at level {level}, got {path}.")
        return level, steps[0]
    if level not in (None, len(steps)):
        raise InputError(f"--level: must be left out with a path, which says it, got {level} beside {path}.")
    if len(steps) > depth or not all(0 <= step < arity for step in steps):
        raise InputError(
            f"--cluster: must be at most {depth} numbers of 0 to {arity - 1}, the tree's shape, got {path}."
        )
    node = 0
    for step in steps:
        node = node * arity + step
    return len(steps), node


def _beginning(text: str) -> str:
    """The first characters of a text, up to the end of a word."""
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS].rpartition(' ')[0] or text[:_CHARACTERS]} …"


def describe_cluster(
    dataset: Dataset, level: int, node: int, *, limit: int, scores: Mapping[str, WindowScores] | None = None
) -> str:
    """Write a page of text about a cluster: its size, its terms, its scores, and the beginnings of `limit` of its
    windows.

    Raises:
        InputError: no window in it. FormatError, CorruptDataError, StorageError.
    """
    arity, num_windows = dataset.manifest.arity, dataset.manifest.num_windows
    path = "/".join(str(node // arity ** (level - at) % arity) for at in range(1, level + 1))
    [first], [size] = Ranges(layout_of(dataset), level).of(np.array([node], np.uint32))
    if not size:
        raise InputError(f"cluster {path} has no windows in {dataset.root}. Choose another cluster.")
    named = node_terms(dataset, level, nodes=[node], terms_per_node=8 if terms_are_known(dataset, level) else 0)
    shown = np.unique(first + ((np.arange(limit) + 0.5) * size / limit).astype(np.int64))
    facts: list[tuple[str, object]] = [
        ("windows", f"{size:,} of {num_windows:,} ({size / num_windows:.2%}), from window {first:,} on"),
        ("terms", " · ".join(named.terms[0])),
    ]
    note = purity_note(dataset, level)
    if note is not None:
        facts.append(("note", note))
    texts = [
        f"window {window:,}\n{textwrap.indent(textwrap.fill(_beginning(text), _WIDTH), '  ')}"
        for window, text in zip(shown.tolist(), lines_of(dataset, shown), strict=True)
    ]
    if scores:
        rows = {}
        for name, one in scores.items():
            rows |= {f"{name}, here": one.scores[first : first + size], f"{name}, all": one.scores}
        texts.insert(0, textwrap.indent(quantile_table(rows).text(), "  "))
    title = f"cluster {path} (level {level}, number {node}) of {dataset.root}"
    return "\n\n".join([f"{title}\n{textwrap.indent(facts_text(facts), '  ')}", *texts]) + "\n"
