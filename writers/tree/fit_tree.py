"""Fit the clustering tree (paper, Appendix A and Table 6): balanced k-means per node, from the root down.

The root is one task and each level-1 node's subtree is another, so 65 tasks fit a tree of arity 64, in any process and
in any order: a task is a function of the embeddings, the settings and the root's centroids, and every node draws from
a generator of its own. `fit_tree` runs the same tasks one after the other.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError, import_extra
from crisp_stream.tree.families import cuts
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.tree.balanced_kmeans import closest, fit_node, search_device, unit_rows
from crisp_stream.writers.tree.settings import TreeSettings

_ROWS_PER_BATCH = 1 << 14


@dataclass(frozen=True, kw_only=True, eq=False)
class Subtree:
    """The tree below one level-1 node."""

    child: int
    """The level-1 node."""
    nodes_per_level: list[NDArray[np.uint32]]
    """[num_nodes] sorted node ids for levels 2 … depth; empty where nothing is split."""
    centroids_per_level: list[NDArray[np.float32]]
    """[num_nodes, dim] for levels 2 … depth."""
    seconds_per_level: list[float] = field(default_factory=list)
    """Time spent fitting levels 2 … depth."""
    device: str = "cpu"
    """Device that searched nearest centroids: cpu or gpu."""

    def save(self, path: Path) -> None:
        """Write an .npz file, whatever the path's suffix."""
        arrays: dict[str, Any] = {
            "child": np.int64(self.child),
            "seconds_per_level": np.array(self.seconds_per_level, np.float64),
            "device": np.array(self.device),
        }
        for level, (nodes, centroids) in enumerate(zip(self.nodes_per_level, self.centroids_per_level, strict=True), 2):
            arrays[f"nodes{level}"] = nodes
            arrays[f"centroids{level}"] = centroids
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Subtree:
        """Read what `save` wrote. Raises FormatError for anything else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                levels = range(2, 2 + sum(name.startswith("nodes") for name in arrays))
                return cls(
                    child=int(arrays["child"]),
                    nodes_per_level=[arrays[f"nodes{level}"] for level in levels],
                    centroids_per_level=[arrays[f"centroids{level}"] for level in levels],
                    seconds_per_level=arrays["seconds_per_level"].tolist(),
                    device=str(arrays["device"]),
                )
        except (KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise FormatError(f"{path.name}: not a readable subtree ({error}). Remove it, to fit it again.") from error


def fit_tree(
    embeddings: NDArray[Any],
    settings: TreeSettings | None = None,
    **options: Any,
) -> ClusterTree:
    """Fit a clustering tree: the root, then its subtrees, one after the other.

    Time is about 0.6 s per node of 128,000 examples on one core; memory is the batches and two int64 per example.

    Args:
        embeddings: [num_examples, dim], float16 or float32, may be memory-mapped; normalised here.
        settings: how; the paper's when None.
        options: single fields of TreeSettings, where settings is None.

    Raises:
        InputError: sizes out of range, not enough distinct examples for the root, values that are not finite.
    """
    settings = settings or TreeSettings(**options)
    root_centroids = fit_root(embeddings, settings)
    subtrees = []
    if settings.depth > 1:
        labels = root_labels(embeddings, root_centroids)
        subtrees = [
            fit_subtree(embeddings, root_centroids, child, settings, labels=labels) for child in range(settings.arity)
        ]
    return join_subtrees(root_centroids, subtrees, settings)


def fit_root(embeddings: NDArray[Any], settings: TreeSettings) -> NDArray[np.float32]:
    """The centroids of level 1, [arity, dim], from embeddings as of `fit_tree`.

    Raises:
        InputError: not enough distinct examples, values that are not finite.
    """
    if embeddings.ndim != 2:
        raise InputError(f"embeddings: must be [num_examples, dim], got the shape {list(embeddings.shape)}.")
    if len(embeddings) < settings.arity:
        raise InputError(
            f"embeddings: the root needs at least {settings.arity} examples to split in {settings.arity}, "
            f"got {len(embeddings)}. Give more documents, or a smaller arity."
        )
    with _one_thread():
        centroids = fit_node(np.asarray(embeddings), np.arange(len(embeddings)), settings, level=1, node=0)
    if centroids is None:
        raise InputError(
            f"embeddings: the root needs at least {settings.arity} distinct examples to split in {settings.arity}, "
            f"got fewer among {len(embeddings)}. Give more documents, or a smaller arity."
        )
    return centroids


def root_labels(embeddings: NDArray[Any], root_centroids: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[num_examples], the level-1 node of each example, for every `fit_subtree`."""
    embeddings = np.asarray(embeddings)
    with _one_thread():
        parts = [
            closest(unit_rows(embeddings, part), root_centroids).astype(np.uint8)
            for part in cuts(len(embeddings), _ROWS_PER_BATCH)
        ]
    return np.concatenate(parts)


def fit_subtree(
    embeddings: NDArray[Any],
    root_centroids: NDArray[np.float32],
    child: int,
    settings: TreeSettings,
    *,
    labels: NDArray[np.uint8] | None = None,
) -> Subtree:
    """Fit all levels below the level-1 node `child`, with the embeddings and settings of the root.

    `labels` are of `root_labels`; computed when None, in 2 microseconds per example.

    Raises:
        InputError: values that are not finite.
    """
    if labels is None:
        labels = root_labels(embeddings, root_centroids)
    rows_per_node = {child: np.flatnonzero(labels == child)}
    nodes_per_level, centroids_per_level, seconds_per_level = [], [], []
    with _one_thread():
        for level in range(2, settings.depth + 1):
            started = time.perf_counter()
            nodes, centroids, rows_per_node = _fit_level(np.asarray(embeddings), rows_per_node, settings, level)
            nodes_per_level.append(nodes)
            centroids_per_level.append(centroids)
            seconds_per_level.append(time.perf_counter() - started)
    return Subtree(
        child=child,
        nodes_per_level=nodes_per_level,
        centroids_per_level=centroids_per_level,
        seconds_per_level=seconds_per_level,
        device=search_device(),
    )


def join_subtrees(
    root_centroids: NDArray[np.float32], subtrees: Sequence[Subtree], settings: TreeSettings
) -> ClusterTree:
    """The tree of a root and its subtrees, in any order. Raises InputError unless all are there (none at depth 1)."""
    ordered = sorted(subtrees, key=lambda subtree: subtree.child)
    if settings.depth > 1 and [subtree.child for subtree in ordered] != list(range(settings.arity)):
        raise InputError(
            f"subtrees: must be one per level-1 node, 0 to {settings.arity - 1}, "
            f"got {[subtree.child for subtree in ordered]}. Fit the missing ones."
        )
    below = range(settings.depth - 1)
    return ClusterTree(
        arity=settings.arity,
        depth=settings.depth,
        nodes_per_level=[
            np.arange(settings.arity, dtype=np.uint32),
            *(np.concatenate([subtree.nodes_per_level[level] for subtree in ordered]) for level in below),
        ],
        centroids_per_level=[
            root_centroids,
            *(np.concatenate([subtree.centroids_per_level[level] for subtree in ordered]) for level in below),
        ],
    )


def _one_thread() -> AbstractContextManager[Any]:
    """Products must not depend on how many cores share them; the limit holds for libraries that are loaded already."""
    for module in ("faiss", "sklearn.cluster"):
        import_extra(module, extra="write", purpose="fitting the tree")
    limits: Any = import_extra("threadpoolctl", extra="write", purpose="fitting the tree")
    return limits.threadpool_limits(1)


def _fit_level(
    embeddings: NDArray[Any],
    rows_per_node: dict[int, NDArray[np.int64]],
    settings: TreeSettings,
    level: int,
) -> tuple[NDArray[np.uint32], NDArray[np.float32], dict[int, NDArray[np.int64]]]:
    """Split the nodes of the level above: the level's node ids and centroids, and the rows of each."""
    nodes = [np.zeros(0, np.uint32)]
    centroids = [np.zeros((0, embeddings.shape[1]), np.float32)]
    children_rows: dict[int, NDArray[np.int64]] = {}
    for node, rows in sorted(rows_per_node.items()):
        if len(rows) < max(settings.min_examples, settings.arity):
            continue
        fitted = fit_node(embeddings, rows, settings, level=level, node=node)
        if fitted is not None:
            first_child = node * settings.arity
            nodes.append(np.arange(first_child, first_child + settings.arity, dtype=np.uint32))
            centroids.append(fitted)
            if level < settings.depth:
                children_rows.update(_partition(embeddings, rows, fitted, first_child))
    return np.concatenate(nodes), np.concatenate(centroids), children_rows


def _partition(
    embeddings: NDArray[Any], rows: NDArray[np.int64], centroids: NDArray[np.float32], first_child: int
) -> dict[int, NDArray[np.int64]]:
    """Rows of each child, in row order; children without any are left out."""
    batches = [rows[part] for part in cuts(len(rows), _ROWS_PER_BATCH)]
    labels = np.concatenate([closest(unit_rows(embeddings, batch), centroids) for batch in batches])
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    return {
        first_child + int(child): child_rows
        for child, child_rows in zip(present, np.split(rows[order], first[1:]), strict=True)
    }
