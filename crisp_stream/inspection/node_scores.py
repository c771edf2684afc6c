"""Scores of windows by cluster: means and quantiles, over the whole dataset and inside nodes of the tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores, quantile_of
from crisp_stream.table import NONE, Table

SHOWN_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class NodeScores:
    """The clusters of a level that have windows, and the mean score of each."""

    nodes: NDArray[np.uint32]
    """[num_nodes], sorted."""
    first_windows: NDArray[np.int64]
    """[num_nodes + 1], where the windows of each node begin; the last one is the number of windows."""
    means: NDArray[np.float64]
    """[num_nodes]"""

    def mean_of(self, node: int) -> float:
        """The mean of a node by its id, which has windows."""
        return float(self.means[np.searchsorted(self.nodes, node)])

    def windows_of(self, row: int) -> slice:
        """The windows of a node by its row: a cluster is a contiguous range."""
        return slice(int(self.first_windows[row]), int(self.first_windows[row + 1]))


def node_scores(scores: WindowScores, dataset: Dataset, level: int) -> NodeScores:
    """Average a score inside the nodes of a level. Raises InputError: of another dataset, or no such level."""
    scores.check_dataset(dataset)
    nodes, first_windows = node_borders(dataset, level)
    sums = np.add.reduceat(scores.scores, first_windows[:-1], dtype=np.float64)
    return NodeScores(nodes=nodes, first_windows=first_windows, means=sums / np.diff(first_windows))


def node_borders(dataset: Dataset, level: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The nodes of a level that have windows, [num_nodes], and the borders of their windows, [num_nodes + 1]."""
    nodes, first_rows = np.unique(dataset.tree.node_of(dataset.leaves, level), return_index=True)
    return nodes, np.append(dataset.first_window_per_leaf[first_rows], dataset.manifest.num_windows)


def score_digits(value: float) -> str:
    """A score as tables show it: four digits, or all of those before the point."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:,.4g}"


def quantile_table(scores: Mapping[str, NDArray[np.float32]], *, first: str = "score") -> Table:
    """Tabulate mean and quantiles, a row for each named set of scores."""
    head = (first, "windows", "mean", *("least", "5%", "25%", "median", "75%", "95%", "most"))
    rows = [
        [
            name,
            f"{len(values):,}",
            score_digits(float(values.mean(dtype=np.float64))),
            *(score_digits(quantile_of(values, quantile)) for quantile in SHOWN_QUANTILES),
        ]
        for name, values in scores.items()
    ]
    return Table(head=head, rows=rows)


def level_table(scores: WindowScores, dataset: Dataset, *, limit: int = 20) -> Table:
    """Tabulate a score: all windows, then the level-1 clusters with the highest and lowest means, at most `limit`."""
    found = node_scores(scores, dataset, 1)
    order = np.argsort(-found.means, kind="stable").tolist()
    shown = order if len(order) <= limit else [*order[: limit // 2], None, *order[-(limit - limit // 2) :]]
    rows: list[Sequence[str]] = list(quantile_table({"all": scores.scores}).rows)
    head = quantile_table({}, first="cluster").head
    for row in shown:
        if row is None:
            rows.append([f"{len(order) - limit:,} others", *[NONE] * (len(head) - 1)])
        else:
            rows += quantile_table({str(found.nodes[row]): scores.scores[found.windows_of(row)]}).rows
    return Table(head=head, rows=rows)
