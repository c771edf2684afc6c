"""Mixtures over a dataset whose leaves have all kinds of lengths, for tests of forecasts."""

from __future__ import annotations

import numpy as np

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Draw, Mixture
from crisp_stream.histograms.phase import Phase

LEAVES = {0: 300, 1: 64, 2: 65, 3: 7, 5: 1, 6: 200, 9: 130, 12: 63, 13: 40, 15: 90}


def histogram_of(dataset: Dataset, shares: dict[int, float], *, level: int | None = None) -> Histogram:
    nodes, values = np.array(list(shares), np.uint32), np.array(list(shares.values()))
    manifest = dataset.manifest
    return Histogram(
        level=manifest.depth if level is None else level,
        nodes=nodes,
        proportions=values / values.sum(),
        arity=manifest.arity,
        depth=manifest.depth,
        tree_fingerprint=manifest.tree_fingerprint,
    )


def two_phases(dataset: Dataset, first: int, second: int | None, draw: Draw = "systematic") -> Mixture:
    task = histogram_of(dataset, {0: 0.5, 3: 0.2, 5: 0.05, 12: 0.25})
    return Mixture([Phase(Histogram.base(dataset.manifest), first), Phase(task, second)], draw=draw)
