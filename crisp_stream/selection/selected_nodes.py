"""Clusters of the tree, and the windows of a selection in each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.table import Table


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


def selected_nodes_table(selection: WindowSelection, dataset: Dataset, *, limit: int = 10) -> Table:
    """Tabulate the nodes with most selected windows, with a line for all others. Errors of `selected_nodes`."""
    nodes = selected_nodes(selection, dataset)
    others = nodes[limit:]
    rows = [_row(str(node.node), node.num_windows, node.num_selected, selection) for node in nodes[:limit]]
    if others:
        windows, selected = sum(node.num_windows for node in others), sum(node.num_selected for node in others)
        rows.append(_row(f"{len(others):,} others", windows, selected, selection))
    rows.append(_row("all", selection.num_windows, selection.num_selected, selection))
    head = ("cluster", "windows", "selected", "of cluster", "of selection")
    return Table(head=head, rows=rows, words=())


def _row(name: str, num_windows: int, num_selected: int, selection: WindowSelection) -> list[str]:
    of_cluster, of_selection = num_selected / num_windows, num_selected / selection.num_selected
    return [name, f"{num_windows:,}", f"{num_selected:,}", f"{of_cluster:.2%}", f"{of_selection:.2%}"]
