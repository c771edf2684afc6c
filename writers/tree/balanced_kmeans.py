"""K-means of one tree node: k-means++ seeds, then EM steps on fresh examples, with balancing (paper, Appendix A).

Seeds are drawn from the examples of the first step, so that 20 steps of 6,400 visit 128,000. A cluster that gets more
than the balancing limit of a step's assignments shares them, evenly and at random, with the smallest cluster. The
centroid of a step is the normalised mean of that step's assignments alone: docs/write/tree.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
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
    embeddings: NDArray[Any],
    rows: NDArray[np.int64],
    settings: TreeSettings,
    *,
    level: int,
    node: int,
    is_root: bool = False,
) -> NDArray[np.float32] | None:
    """Centroids [arity, dim] of one node's children; None when its examples are not distinct enough to split.

    Args:
        embeddings: [num_examples, dim], of this node and others.
        rows: its examples; their order counts.
        settings: of the tree.
        level: level of the children.
        node: id of the node.
        is_root: it is always split: where too few examples are distinct, centroids repeat, and their clusters stay
            empty.
    """
    arity = settings.arity
    rng = np.random.default_rng([settings.seed, level, node])
    drawn = _passes(rows, settings.examples_per_step, rng)
    first = unit_rows(embeddings, next(drawn))
    centroids = _seeds(first, arity, rng)
    if centroids is None:
        distinct = unit_rows(embeddings, _distinct(embeddings, rows, settings.examples_per_step))
        centroids = _seeds(distinct, arity, rng) if len(distinct) >= arity else None
        if centroids is None and is_root:
            centroids = np.resize(distinct, (arity, distinct.shape[1]))
        if centroids is None:
            return None
    sums, counts = np.zeros(centroids.shape), np.zeros(arity, np.int64)
    for step in range(settings.steps):
        examples = first if step == 0 or len(first) == len(rows) else unit_rows(embeddings, next(drawn))
        labels = balance(closest(examples, centroids), arity, settings.limit, rng, examples)
        if settings.centroid_rule == "step_mean":
            sums[:], counts[:] = 0, 0
        _add_by_label(examples, labels, sums, counts)
        filled = counts > 0
        means = (sums[filled] / counts[filled, None]).astype(np.float32)
        centroids[filled] = _normalised(means) if settings.normalise_centroids else means
    return centroids


def _seeds(examples: NDArray[np.float32], arity: int, rng: np.random.Generator) -> NDArray[np.float32] | None:
    """[arity, dim] examples chosen by k-means++; None where they are not all different."""
    cluster = import_extra("sklearn.cluster", extra="write", purpose="fitting the tree")
    wide = examples.astype(np.float64)  # of float32, every sum would be widened again
    _, rows = cluster.kmeans_plusplus(wide, arity, random_state=int(rng.integers(1 << 31)))
    seeds = examples[rows]
    return seeds if len(np.unique(seeds, axis=0)) == arity else None


def _distinct(embeddings: NDArray[Any], rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The first rows, `most` of them, of which no two hold the same numbers."""
    first_row: dict[bytes, int] = {}
    for row in rows.tolist():
        first_row.setdefault(embeddings[row].tobytes(), row)
        if len(first_row) == most:
            break
    return np.fromiter(first_row.values(), np.int64)


def _add_by_label(
    examples: NDArray[np.float32], labels: NDArray[np.int64], sums: NDArray[np.float64], counts: NDArray[np.int64]
) -> None:
    """Add each cluster's examples to sums [arity, dim] and counts [arity]."""
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    sums[present] += np.add.reduceat(examples[order], first, axis=0)
    counts += np.bincount(labels, minlength=len(counts))


def one_thread() -> AbstractContextManager[Any]:
    """Products must not depend on how many cores share them; the limit holds for libraries that are loaded already."""
    for module in ("faiss", "sklearn.cluster"):
        import_extra(module, extra="write", purpose="fitting the tree")
    limits: Any = import_extra("threadpoolctl", extra="write", purpose="fitting the tree")
    return limits.threadpool_limits(1)


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


def balance(
    labels: NDArray[np.int64],
    arity: int,
    limit: float,
    rng: np.random.Generator,
    examples: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """Let clusters above the limit share their assignments with the smallest ones (Appendix A; Jégou et al., 2010).

    Each does so once. A cluster of equal examples shares nothing: that could not make it smaller, and would pull one
    centroid after the other to the same place.

    Args:
        labels: [num_examples], cluster of each example; not changed.
        arity: number of clusters.
        limit: largest share of the assignments that is left alone.
        rng: chooses the half that each cluster above the limit, largest first, gives to the then smallest one.
        examples: [num_examples, dim]; not looked at when None.
    """
    balanced = labels.copy()
    counts = np.bincount(labels, minlength=arity)
    above = np.flatnonzero(counts > limit * len(labels))
    for large in above[np.argsort(-counts[above], kind="stable")]:
        small = int(counts.argmin())
        if small == large:
            break
        members = rng.permutation(np.flatnonzero(balanced == large))
        if examples is not None and _are_equal(examples, members):
            continue
        moved = members[: len(members) // 2]
        balanced[moved] = small
        counts[large] -= len(moved)
        counts[small] += len(moved)
    return balanced


def _are_equal(examples: NDArray[np.float32], members: NDArray[np.int64]) -> bool:
    """Say whether these rows hold the same numbers; a few of them tell, as a rule."""
    first = examples[members[0]]
    return bool((examples[members[:4]] == first).all() and (examples[members] == first).all())
