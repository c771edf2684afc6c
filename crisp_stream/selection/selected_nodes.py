"""Clusters of the tree, and the windows of a selection in each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_selection import WindowSelection


class SelectedNode(NamedTuple):
    """A cluster of the dataset, and its part in a selection."""

    node: int
    """Id of the cluster at its level."""
    num_windows: int
    """Windows of the dataset in the cluster."""
    num_selected: int
    """Selected windows in the cluster."""


def selected_nodes(selection: WindowSelection, dataset: Dataset, *, level: int = 1) -> list[SelectedNode]:
    """List every non-empty node of a level, those with most selected windows first.

    Raises:
        InputError: a selection of another dataset, or a level the tree does not have.
    """
    per_leaf = selection.selected_per_leaf(dataset)
    nodes, places = np.unique(dataset.tree.node_of(dataset.leaves, level), return_inverse=True)
    windows = np.bincount(places, weights=dataset.windows_per_leaf).astype(np.int64)
    chosen = np.bincount(places, weights=per_leaf).astype(np.int64)
    order = np.argsort(-chosen, kind="stable")
    return [SelectedNode(int(nodes[at]), int(windows[at]), int(chosen[at])) for at in order]


def selected_nodes_text(selection: WindowSelection, dataset: Dataset, *, level: int = 1, limit: int = 10) -> str:
    """A line for each of the nodes with most selected windows, and one for all others. Errors of `selected_nodes`."""
    found = selected_nodes(selection, dataset, level=level)
    shown, others = found[:limit], found[limit:]
    lines = [f"{'cluster':>10} {'windows':>12} {'selected':>12} {'of cluster':>10} {'of selection':>12}"]
    lines += [_line(f"{own.node}", own.num_windows, own.num_selected, selection) for own in shown]
    if others:
        windows, chosen = sum(own.num_windows for own in others), sum(own.num_selected for own in others)
        lines.append(_line(f"{len(others):,} others", windows, chosen, selection))
    lines.append(_line("all", selection.num_windows, selection.num_selected, selection))
    return "\n".join(lines)


def _line(name: str, num_windows: int, num_selected: int, selection: WindowSelection) -> str:
    of_cluster, of_selection = num_selected / num_windows, num_selected / selection.num_selected
    return f"{name:>10} {num_windows:>12,} {num_selected:>12,} {of_cluster:>10.2%} {of_selection:>12.2%}"
