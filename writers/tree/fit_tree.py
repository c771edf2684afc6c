"""Fit the clustering tree of embeddings in memory (paper, Appendix A and Table 6): level by level, from the root down.

A write does the same in tasks over files (stages/tree.py), by the same functions (levels.py) and with the same result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.tree.families import cuts
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.tree.balanced_kmeans import one_thread, unit_rows
from crisp_stream.writers.tree.levels import Level, Splits, draw_keys, split_nodes, window_ids
from crisp_stream.writers.tree.settings import TreeSettings

_ROWS_PER_BATCH = 1 << 16


def fit_tree(
    embeddings: NDArray[Any],
    settings: TreeSettings | None = None,
    *,
    ids: NDArray[np.uint64] | None = None,
    **options: Any,
) -> ClusterTree:
    """Fit a clustering tree.

    Time is about 0.6 s per node of 128,000 examples on one core; memory is the batches and 50 bytes per example.

    Args:
        embeddings: [num_examples, dim], float16 or float32, may be memory-mapped; normalised here.
        settings: how; the paper's when None.
        ids: [num_examples], different numbers by which examples are drawn; 0, 1, … when None.
        options: single fields of TreeSettings, where settings is None.

    Raises:
        InputError: sizes out of range, fewer examples than the arity, values that are not finite.
    """
    settings = settings or TreeSettings(**options)
    check_embeddings(embeddings.shape, settings)
    embeddings = np.asarray(embeddings)
    ids = window_ids(0, len(embeddings)) if ids is None else ids
    level = Level.root(len(embeddings), settings, is_exact=True)
    rows = np.zeros(len(embeddings), np.int32)
    levels: list[Level] = []
    with one_thread():
        while True:
            splits = _split(embeddings, ids, level, rows, settings)
            if not len(splits.rows):
                break
            level = Level.below(level, splits, settings)
            levels.append(level)
            if level.number == settings.depth:
                break
            batches = cuts(len(rows), _ROWS_PER_BATCH)
            rows = np.concatenate([level.place(unit_rows(embeddings, part), rows[part]) for part in batches])
    return tree_of_levels([(one.nodes, one.centroids) for one in levels], settings, embeddings.shape[1])


def tree_of_levels(
    levels: list[tuple[NDArray[np.uint32], NDArray[np.float32]]], settings: TreeSettings, dim: int
) -> ClusterTree:
    """The tree of the nodes and centroids of its levels, from the first on; levels that are missing are empty."""
    empty = (np.zeros(0, np.uint32), np.zeros((0, dim), np.float32))
    filled = [*levels, *[empty] * (settings.depth - len(levels))]
    return ClusterTree(
        arity=settings.arity,
        depth=settings.depth,
        nodes_per_level=[nodes for nodes, _ in filled],
        centroids_per_level=[centroids for _, centroids in filled],
    )


def check_embeddings(shape: tuple[int, ...], settings: TreeSettings) -> None:
    """Raises InputError unless embeddings of this shape can be split at the root."""
    if len(shape) != 2:
        raise InputError(f"embeddings: must be [num_examples, dim], got the shape {list(shape)}.")
    if shape[0] < settings.arity:
        raise InputError(
            f"embeddings: the root needs at least {settings.arity} examples to split in {settings.arity}, "
            f"got {shape[0]}. Give more documents, or a smaller arity."
        )


def _split(
    embeddings: NDArray[Any],
    ids: NDArray[np.uint64],
    level: Level,
    rows: NDArray[np.int32],
    settings: TreeSettings,
) -> Splits:
    counts = np.bincount(rows[rows >= 0], minlength=len(level.nodes))
    drawn = level.drawn(rows, draw_keys(ids, settings.seed, level.number))
    large = np.flatnonzero((counts >= settings.least) | (level.number == 0))
    bounds = np.searchsorted(rows[drawn], [large, large + 1])
    examples = [drawn[start:stop] for start, stop in bounds.T.tolist()]
    return split_nodes(embeddings, examples, level, large, counts[large], settings)
