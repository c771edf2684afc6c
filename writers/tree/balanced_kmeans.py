"""K-means of one tree node: k-means++ seeds, then EM steps on fresh examples, with balancing (paper, Appendix A).

A cluster that gets more than the balancing limit of a step's assignments shares them, evenly and at random, with the
smallest cluster. The centroid of a step is the normalised mean of that step's assignments alone: docs/write/tree.md has
the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import import_extra
from crisp_stream.tree.families import Family, check_finite, widen
from crisp_stream.writers.tree.settings import TreeSettings


def unit_rows(embeddings: NDArray[Any], rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
    """[len(rows), dim], L2-normalised."""
    chosen = embeddings[rows]
    vectors = np.empty(chosen.shape, np.float32)
    widen(chosen, vectors)
    check_finite(vectors, chosen)
    return _normalised(vectors)


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.finfo(np.float32).tiny)


def _passes(rows: NDArray[np.int64], examples_per_step: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Endless steps of up to `examples_per_step` different rows, in shuffled passes over all of them."""
    per_step = min(examples_per_step, len(rows))
    while True:
        shuffled = rng.permutation(rows)
        for start in range(0, len(rows) - per_step + 1, per_step):
            yield shuffled[start : start + per_step]


def fit_node(
    embeddings: NDArray[Any], rows: NDArray[np.int64], settings: TreeSettings, *, level: int, node: int
) -> NDArray[np.float32] | None:
    """Centroids [arity, dim] of one node's children; None when its examples are not distinct enough to split."""
    cluster = import_extra("sklearn.cluster", extra="write", purpose="fitting the tree")
    arity = settings.arity
    rng = np.random.default_rng([settings.seed, level, node])
    drawn = _passes(rows, settings.examples_per_step, rng)
    seeds, _ = cluster.kmeans_plusplus(
        unit_rows(embeddings, next(drawn)), arity, random_state=int(rng.integers(1 << 31))
    )
    centroids = _normalised(np.asarray(seeds, np.float32))
    if len(np.unique(centroids, axis=0)) < arity:
        return None
    sums, counts = np.zeros(centroids.shape), np.zeros(arity, np.int64)
    for _ in range(settings.steps):
        examples = unit_rows(embeddings, next(drawn))
        labels = balance(closest(examples, centroids), arity, settings.limit, rng)
        if settings.centroid_rule == "step_mean":
            sums[:], counts[:] = 0, 0
        _add_by_label(examples, labels, sums, counts)
        filled = counts > 0
        means = (sums[filled] / counts[filled, None]).astype(np.float32)
        centroids[filled] = _normalised(means) if settings.normalise_centroids else means
    return centroids


def _add_by_label(
    examples: NDArray[np.float32], labels: NDArray[np.int64], sums: NDArray[np.float64], counts: NDArray[np.int64]
) -> None:
    """Add each cluster's examples to sums [arity, dim] and counts [arity]."""
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    sums[present] += np.add.reduceat(examples[order], first, axis=0)
    counts += np.bincount(labels, minlength=len(counts))


def search_device() -> str:
    """Device that searches nearest centroids while fitting: "gpu" when faiss sees one, else "cpu"."""
    faiss: Any = import_extra("faiss", extra="write", purpose="fitting the tree")
    return "gpu" if faiss.get_num_gpus() > 0 else "cpu"


@cache
def gpu_resources() -> Any:
    """Faiss's buffers on the GPU, one set per process."""
    return import_extra("faiss", extra="write", purpose="fitting the tree").StandardGpuResources()


def closest(examples: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the closest centroid of each example of norm 1, [num_examples].

    On a GPU, examples as close to two centroids as its float32 sums can tell may go to the other one: the tree is then
    a function of the device, too.
    """
    if search_device() == "cpu":
        return Family(centroids).closest(examples)
    faiss: Any = import_extra("faiss", extra="write", purpose="fitting the tree")
    _, indices = faiss.knn_gpu(gpu_resources(), examples, centroids, 1, metric=faiss.METRIC_L2)
    return np.asarray(indices[:, 0], np.int64)


def balance(labels: NDArray[np.int64], arity: int, limit: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Let clusters above the limit share their assignments with the smallest ones (Appendix A; Jégou et al., 2010).

    Args:
        labels: [num_examples], cluster of each example; not changed.
        arity: number of clusters.
        limit: largest share of the assignments that is left alone.
        rng: chooses the half that each cluster above the limit, largest first, gives to the then smallest one.
    """
    balanced = labels.copy()
    counts = np.bincount(labels, minlength=arity)
    above = np.flatnonzero(counts > limit * len(labels))
    for large in above[np.argsort(-counts[above], kind="stable")]:
        small = int(counts.argmin())
        if small == large:
            break
        members = rng.permutation(np.flatnonzero(balanced == large))
        moved = members[: len(members) // 2]
        balanced[moved] = small
        counts[large] -= len(moved)
        counts[small] += len(moved)
    return balanced
