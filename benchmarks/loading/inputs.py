"""What the sides are given: datasets of several sizes, and histograms over them. Made once per work folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.support.synthetic_dataset import DatasetPlan, write_dataset
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.component import Component
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.histograms.phase import Phase

NARROW = 64
"""Tokens of a window where the number of clusters is what matters."""

DATASETS = {
    "leaves64": DatasetPlan(leaves=64, windows=2_000_000, window_tokens=NARROW),
    "leaves4k": DatasetPlan(leaves=4_096, windows=2_000_000, window_tokens=NARROW),
    "leaves262k": DatasetPlan(leaves=262_144, windows=2_000_000, window_tokens=NARROW),
    "leaves16m": DatasetPlan(leaves=1 << 24, windows=20_000_000, window_tokens=16),
    "wide262k": DatasetPlan(leaves=262_144, windows=400_000, window_tokens=1_024),
    "task10k": DatasetPlan(leaves=64, windows=10_000, window_tokens=1_024),
    # Leaves with tens of windows, scattered over a tree of 262,144: what a corpus of 10^8 windows has.
    "scattered": DatasetPlan(leaves=7_500, windows=500_000, window_tokens=1_024, depth=3),
    "shards64": DatasetPlan(leaves=4_096, windows=400_000, window_tokens=1_024),
    "shards100k": DatasetPlan(leaves=4_096, windows=400_000, window_tokens=1_024, shard_bytes=8_700),  # of 4 windows
}
TOYS = {
    "leaves64": DatasetPlan(leaves=64, windows=4_000, window_tokens=8),
    "leaves4k": DatasetPlan(leaves=256, windows=4_000, window_tokens=8, depth=2),
    "leaves262k": DatasetPlan(leaves=1_000, windows=4_000, window_tokens=8, depth=2),
    "leaves16m": DatasetPlan(leaves=2_000, windows=4_000, window_tokens=8, depth=2),
    "wide262k": DatasetPlan(leaves=1_000, windows=3_000, window_tokens=64, depth=2),
    "task10k": DatasetPlan(leaves=16, windows=500, window_tokens=64, depth=1),
    "scattered": DatasetPlan(leaves=200, windows=3_000, window_tokens=64, depth=2),
    "shards64": DatasetPlan(leaves=256, windows=3_000, window_tokens=64, depth=2),
    "shards100k": DatasetPlan(leaves=256, windows=3_000, window_tokens=64, depth=2, shard_bytes=900),
}
"""The same names at the size of a test."""


class Inputs:
    """Datasets and histograms below a work folder, made when first asked for."""

    def __init__(self, work: Path, *, quick: bool) -> None:
        self.work = work
        self.quick = quick
        self._plans = TOYS if quick else DATASETS

    def plan(self, name: str) -> DatasetPlan:
        """What a dataset holds."""
        return self._plans[name]

    def dataset(self, name: str) -> Path:
        """The root of a dataset."""
        root = self.work / name
        if not (root / "manifest.json").exists():
            unfinished = root.with_name(f".{name}.{os.getpid()}")
            shutil.rmtree(unfinished, ignore_errors=True)
            write_dataset(unfinished, self._plans[name], with_tree=False)
            unfinished.rename(root)
        return root

    def histogram(self, name: str, nonzero: int | None, *, by_size: bool = False) -> Path:
        """A histogram on the leaves of a dataset, with log-normal (sigma 2) weights.

        Args:
            name: of the dataset.
            nonzero: leaves with mass, chosen at random; all when None or when there are fewer.
            by_size: choose leaves and weigh them by their windows too, as examples of a task fall.
        """
        root = self.dataset(name)
        path = self.work / f"{name}.{nonzero or 'all'}{'.by-size' if by_size else ''}.parquet"
        if not path.exists():
            _histogram(open_dataset(root), nonzero, by_size).save(path)
        return path

    def hottest(self, name: str) -> Path:
        """A histogram with all mass on the leaf that holds the most windows."""
        path = self.work / f"{name}.hottest.parquet"
        if not path.exists():
            dataset = open_dataset(self.dataset(name))
            row = int(np.argmax(dataset.windows_per_leaf))
            _on_leaves(dataset, np.array([row]), np.ones(1)).save(path)
        return path


def _histogram(dataset: Dataset, nonzero: int | None, by_size: bool) -> Histogram:
    rng = np.random.default_rng(7)
    num_leaves = len(dataset.leaves)
    rows: NDArray[np.int64] = np.arange(num_leaves)
    if nonzero is not None and nonzero < num_leaves:
        shares = dataset.windows_per_leaf / dataset.manifest.num_windows if by_size else None
        rows = np.sort(rng.choice(num_leaves, nonzero, replace=False, p=shares))
    weights = np.exp((1 if by_size else 2) * rng.normal(size=len(rows)))
    if by_size:
        weights *= dataset.windows_per_leaf[rows]
    return _on_leaves(dataset, rows, weights)


def _on_leaves(dataset: Dataset, rows: NDArray[np.int64], weights: NDArray[Any]) -> Histogram:
    manifest = dataset.manifest
    return Histogram(
        level=manifest.depth,
        nodes=dataset.leaves[rows],
        proportions=weights / weights.sum(),
        arity=manifest.arity,
        depth=manifest.depth,
        tree_fingerprint=manifest.tree_fingerprint,
    )


def mixed_in(corpus: str, histogram: str, task: str, share: float) -> Mixture:
    """One open-ended phase of a saved histogram of the corpus, and a share of all windows of the task."""
    whole = Histogram.base(open_dataset(task).manifest)
    parts = [Component(Histogram.load(histogram), share=1 - share, source="corpus")]
    return Mixture([Phase([*parts, Component(whole, share=share, source="task")])])


def mixture_of(dataset_root: str, histogram: str | None) -> Mixture:
    """One open-ended phase of a saved histogram; of the corpus itself when None."""
    if histogram is None:
        return Mixture.base(open_dataset(dataset_root).manifest)
    return Mixture.from_histogram(Histogram.load(histogram))
