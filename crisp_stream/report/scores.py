"""Scores of windows as colours of the page's map: the mean of every cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.inspection.node_scores import node_scores
from crisp_stream.report.map import MapLevel, visible

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

_OUTER_SHARE = 0.02
"""Share of the windows whose clusters are beyond either end of the colours."""


@dataclass(frozen=True, kw_only=True)
class ScoreLayer:
    """A score on the map."""

    name: str
    means: NDArray[np.float64]
    """[num_nodes of the map's deepest level]"""
    low: float
    """Mean of a cluster at which the colours end below."""
    middle: float
    """Mean over all windows: the colour in the middle."""
    high: float
    """Mean of a cluster at which the colours end above."""

    @property
    def header(self) -> dict[str, Any]:
        """What the script must know besides the means."""
        return {"name": visible(self.name), "low": self.low, "middle": self.middle, "high": self.high}


def score_layers(scores: Mapping[str, WindowScores], dataset: Dataset, levels: Sequence[MapLevel]) -> list[ScoreLayer]:
    """Average scores over the clusters of the map's deepest level. Raises InputError: scores of another dataset."""
    layers = []
    for name, one in scores.items():
        means = node_scores(one, dataset, levels[-1].level).means
        middle = float(one.scores.mean(dtype=np.float64))
        order = np.argsort(means)
        below = np.cumsum(levels[-1].windows[order]) / dataset.manifest.num_windows
        low, high = (float(means[order[np.searchsorted(below, part)]]) for part in (_OUTER_SHARE, 1 - _OUTER_SHARE))
        layers.append(ScoreLayer(name=name, means=means, low=min(low, middle), middle=middle, high=max(high, middle)))
    return layers
