"""A picture of a score: its distribution over all windows, and over the windows of each level-1 cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.figure import blank_figure, save_figure
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores, quantile_of
from crisp_stream.inspection.node_scores import node_scores

_BINS = 60
_SHOWN_NODES = 64


def draw_scores(scores: WindowScores, dataset: Dataset, path: str | Path) -> Path:
    """Draw a histogram of all windows, and for each level-1 cluster its median, quartiles and 5 to 95 %.

    Raises:
        InputError: another format than SVG, PNG or PDF. MissingExtraError: matplotlib is not installed.
    """
    found = node_scores(scores, dataset, 1)
    order = np.argsort(found.means, kind="stable")
    if len(order) > _SHOWN_NODES:  # the lowest, the highest, and some between
        order = order[np.round(np.linspace(0, len(order) - 1, _SHOWN_NODES)).astype(np.int64)]
    figure = blank_figure(9, 2.5 + 0.16 * len(order))
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 0.3 + 0.16 * len(order)])
    axes[0].hist(scores.scores, bins=_BINS, color="#1f6fb5")
    axes[0].set_ylabel("windows")
    axes[0].set_title(f"{scores.name}: {len(scores.scores):,} windows")
    for place, row in enumerate(order.tolist()):
        values = scores.scores[found.windows_of(row)]
        low, first, middle, third, high = (quantile_of(values, part) for part in (0.05, 0.25, 0.5, 0.75, 0.95))
        axes[1].plot([low, high], [place, place], color="#9aa5b1", linewidth=1)
        axes[1].plot([first, third], [place, place], color="#1f6fb5", linewidth=3)
        axes[1].plot([middle], [place], color="#c2500a", marker="|", markersize=8)
    axes[1].set_yticks(range(len(order)), [str(node) for node in found.nodes[order].tolist()], fontsize=7)
    axes[1].set_ylabel("level-1 cluster")
    axes[1].set_xlabel(f"{scores.name} (median, quartiles, 5 to 95 %)")
    return save_figure(figure, path)
