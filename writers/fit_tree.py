"""Fit the clustering tree (paper, Appendix A and Table 6): balanced k-means per node, from the root down.

Per node: k-means++ seeds, then EM steps on fresh examples; a cluster that gets more than the balancing limit of a
step's assignments shares them, evenly and at random, with the smallest cluster. The centroid of a step is the
normalised mean of that step's assignments alone.

A running mean over all steps was measured and left: on 7,000 MiniLM vectors of English text, arity 64 (mean of 3
seeds, held-out 2,000), the step's mean gives a cosine of 0.438 to the centroid, a largest cluster of 1.57 times the
average and sizes of perplexity 60.9; the running mean 0.426, 2.15 and 58.0, because it never forgets the seeds;
without balancing 0.437, 2.18 and 58.8. With only 1,000 examples a step the running mean has the better cosine (0.423
against 0.393): keep 100 examples per cluster and step, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format import MAX_ARITY, MAX_LEAVES
from crisp_stream.tree import ClusterTree

BALANCE_FACTOR = 1.408
"""Balancing limit times arity: 0.022 at 64 (the paper's 1.5 / 64, as printed there)."""
_ROWS_PER_BATCH = 1 << 16

Progress = Callable[[int, int, int], None]
"""Called with (level being built, nodes looked at, nodes of the level above)."""


def fit_tree(
    embeddings: NDArray[Any],
    *,
    arity: int = 64,
    depth: int = 4,
    steps: int = 20,
    examples_per_step: int = 6400,
    balance_limit: float | None = None,
    min_examples_to_split: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ClusterTree:
    """Fit a clustering tree, level by level.

    The result is a function of the arguments alone: every node draws from its own generator, keyed by (seed, level,
    node). Time is about 1 s per node of 128,000 examples on one core; memory is the batches and one int64 per
    example.

    Args:
        embeddings: [num_examples, dim], float16 or float32, may be memory-mapped; normalised here.
        arity: children of a node that is split, 2 to 64.
        depth: levels below the root.
        steps: EM steps per node.
        examples_per_step: examples of a step, in shuffled passes over the node's examples; at most all of them.
        balance_limit: share of a step's assignments above which a cluster is split; 1.408 / arity when None.
        min_examples_to_split: a node with fewer examples stays a leaf; 16 * arity when None. The root is always split.
        seed: of all random choices.
        progress: told after every node.

    Raises:
        InputError: sizes out of range, not enough distinct examples for the root, values that are not finite.
    """
    limit = BALANCE_FACTOR / arity if balance_limit is None else balance_limit
    min_examples = 16 * arity if min_examples_to_split is None else min_examples_to_split
    _check(
        embeddings,
        arity=arity,
        depth=depth,
        steps=steps,
        examples_per_step=examples_per_step,
        min_examples=min_examples,
    )
    for module in ("faiss", "sklearn.cluster"):  # the limit below holds for libraries that are loaded already
        import_extra(module, extra="write", purpose="fitting the tree")
    limits: Any = import_extra("threadpoolctl", extra="write", purpose="fitting the tree")
    with limits.threadpool_limits(1):  # products must not depend on how many cores share them
        return _fit_levels(
            embeddings,
            arity=arity,
            depth=depth,
            min_examples=min_examples,
            seed=seed,
            progress=progress,
            fit=partial(_fit_node, arity=arity, steps=steps, examples_per_step=examples_per_step, limit=limit),
        )


def _fit_levels(
    embeddings: NDArray[Any],
    *,
    arity: int,
    depth: int,
    min_examples: int,
    seed: int,
    progress: Progress | None,
    fit: Callable[..., NDArray[np.float32] | None],
) -> ClusterTree:
    dim = embeddings.shape[1]
    rows_per_node: dict[int, NDArray[np.int64]] = {0: np.arange(len(embeddings))}
    nodes_per_level, centroids_per_level = [], []
    for level in range(1, depth + 1):
        families: list[NDArray[np.float32]] = []
        parents: list[int] = []
        children_rows: dict[int, NDArray[np.int64]] = {}
        for done, (node, rows) in enumerate(sorted(rows_per_node.items()), start=1):
            centroids = None
            if level == 1 or len(rows) >= max(min_examples, arity):
                centroids = fit(embeddings, rows, rng=np.random.default_rng([seed, level, node]))
            if centroids is not None:
                parents.append(node)
                families.append(centroids)
                if level < depth:
                    children_rows.update(_partition(embeddings, rows, centroids, node * arity))
            if progress is not None:
                progress(level, done, len(rows_per_node))
        if level == 1 and not families:
            raise InputError(
                f"embeddings: the root needs at least {arity} distinct examples to split in {arity}, got fewer among "
                f"{len(embeddings)}. Give more documents, or a smaller arity."
            )
        first_children = np.array(parents, np.uint32)[:, None] * np.uint32(arity)
        nodes_per_level.append((first_children + np.arange(arity, dtype=np.uint32)).reshape(-1))
        centroids_per_level.append(np.concatenate(families) if families else np.zeros((0, dim), np.float32))
        rows_per_node = children_rows
    return ClusterTree(
        arity=arity, depth=depth, nodes_per_level=nodes_per_level, centroids_per_level=centroids_per_level
    )


def _check(
    embeddings: NDArray[Any], *, arity: int, depth: int, steps: int, examples_per_step: int, min_examples: int
) -> None:
    if embeddings.ndim != 2:
        raise InputError(f"embeddings: must be [num_examples, dim], got the shape {list(embeddings.shape)}.")
    if not 2 <= arity <= MAX_ARITY:
        raise InputError(f"arity: must be 2 to {MAX_ARITY}, got {arity}.")
    if depth < 1 or arity**depth > MAX_LEAVES:
        raise InputError(f"depth: must be at least 1 with arity ** depth <= {MAX_LEAVES:,}, got {arity} ** {depth}.")
    if steps < 1 or examples_per_step < arity or min_examples < 1:
        raise InputError(
            f"steps, examples_per_step and min_examples_to_split: must be at least 1, {arity} (the arity) and 1, "
            f"got {steps}, {examples_per_step} and {min_examples}."
        )
    if len(embeddings) < arity:
        raise InputError(
            f"embeddings: the root needs at least {arity} examples to split in {arity}, got {len(embeddings)}. "
            "Give more documents, or a smaller arity."
        )


def _unit_rows(embeddings: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[len(rows), dim], L2-normalised."""
    vectors = embeddings[rows].astype(np.float32)
    return _normalised(vectors)


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise InputError("embeddings: every value must be finite, got nan or inf. Embed the windows again.")
    return vectors / np.maximum(norms, np.finfo(np.float32).tiny)


def _passes(rows: NDArray[np.int64], examples_per_step: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Endless steps of up to `examples_per_step` different rows, in shuffled passes over all of them."""
    per_step = min(examples_per_step, len(rows))
    while True:
        shuffled = rng.permutation(rows)
        for start in range(0, len(rows) - per_step + 1, per_step):
            yield shuffled[start : start + per_step]


def _fit_node(
    embeddings: NDArray[Any],
    rows: NDArray[np.int64],
    *,
    arity: int,
    steps: int,
    examples_per_step: int,
    limit: float,
    rng: np.random.Generator,
) -> NDArray[np.float32] | None:
    """Centroids [arity, dim] of one node's children; None when its examples are not distinct enough to split."""
    cluster = import_extra("sklearn.cluster", extra="write", purpose="fitting the tree")
    drawn = _passes(rows, examples_per_step, rng)
    seeds, _ = cluster.kmeans_plusplus(
        _unit_rows(embeddings, next(drawn)), arity, random_state=int(rng.integers(1 << 31))
    )
    centroids = _normalised(np.asarray(seeds, np.float32))
    if len(np.unique(centroids, axis=0)) < arity:
        return None
    for _ in range(steps):
        examples = _unit_rows(embeddings, next(drawn))
        labels = balance(closest(examples, centroids), arity, limit, rng)
        centroids = _step_means(examples, labels, centroids)
    return centroids


def closest(examples: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the closest centroid of each example, [num_examples]; both L2-normalised."""
    faiss: Any = import_extra("faiss", extra="write", purpose="fitting the tree")
    _, indices = faiss.knn(examples, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(indices[:, 0], np.int64)


def balance(labels: NDArray[np.int64], arity: int, limit: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Let clusters above the limit share their assignments with the smallest ones (Appendix A; Jégou et al., 2010).

    Args:
        labels: [num_examples], cluster of each example; not changed.
        arity: number of clusters.
        limit: largest share of the assignments that is left alone.
        rng: chooses which half moves.

    Returns:
        [num_examples]; each cluster that was above the limit, largest first, gave a random half to the then smallest
        one.
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


def _step_means(
    examples: NDArray[np.float32], labels: NDArray[np.int64], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Normalised mean of each cluster's examples; a cluster without any keeps its centroid."""
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    updated = centroids.copy()
    updated[present] = _normalised(np.add.reduceat(examples[order], first, axis=0))
    return updated


def _partition(
    embeddings: NDArray[Any], rows: NDArray[np.int64], centroids: NDArray[np.float32], first_child: int
) -> dict[int, NDArray[np.int64]]:
    """Rows of each child, in row order; children without any are left out."""
    batches = [rows[at : at + _ROWS_PER_BATCH] for at in range(0, len(rows), _ROWS_PER_BATCH)]
    labels = np.concatenate([closest(_unit_rows(embeddings, batch), centroids) for batch in batches])
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    return {first_child + int(child): own for child, own in zip(present, np.split(rows[order], first[1:]), strict=True)}
