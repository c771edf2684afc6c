"""Small datasets and selections of their windows, for tests."""

from __future__ import annotations

import numpy as np

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_selection import WindowSelection

LEAVES = {0: 300, 1: 64, 2: 65, 3: 7, 5: 1, 6: 200, 9: 130, 12: 63, 13: 40, 15: 90}


def select(dataset: Dataset, windows: object) -> WindowSelection:
    """A selection of windows of a dataset: their ids, or a bool for each."""
    return WindowSelection(
        dataset_fingerprint=dataset.manifest.fingerprint,
        windows=np.asarray(windows),
        num_windows=dataset.manifest.num_windows,
        provenance={"method": "by hand"},
    )


def random_selection(dataset: Dataset, share: float, seed: int = 0) -> WindowSelection:
    """About a share of the windows; none of leaf 6, all of leaf 12."""
    chosen = np.random.default_rng(seed).random(dataset.manifest.num_windows) < share
    leaves = dataset.leaf_of_windows(np.arange(len(chosen)))
    return select(dataset, (chosen | (leaves == 12)) & (leaves != 6))
