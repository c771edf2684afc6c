"""Quality of a clustering tree: balance, quantisation error, leaf sizes, agreement with another tree.

At level l a tree cuts its windows into the nodes of that level and the leaves above it. The sums that the quantisation
error needs are added up batch by batch as windows are assigned, so a write knows the quality over all of its windows.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.tree.families import widen
from crisp_stream.tree.tree import ClusterTree

_ROWS_PER_BATCH = 512
"""They and their centroids stay in a core's second-level cache."""


@dataclass(frozen=True, kw_only=True)
class QualitySums:
    """Sums over windows, which add up over batches; for levels 1 … depth, a leaf counting for all levels below it."""

    num_windows: int
    squared_distances: tuple[float, ...]
    """[depth], of windows (norm 1) to the centroids of their nodes."""
    cosines: tuple[float, ...]
    """[depth], between the two."""

    @classmethod
    def of(cls, tree: ClusterTree, embeddings: NDArray[Any], leaves: NDArray[np.uint32]) -> QualitySums:
        """Sums of windows [num_windows, dim] of norm 1 and their leaves [num_windows]."""
        distances, cosines = np.zeros(tree.depth), np.zeros(tree.depth)
        passed = list(_passed(tree, leaves))
        buffer = np.empty((_ROWS_PER_BATCH, tree.dim), np.float32)
        for start in range(0, len(leaves), _ROWS_PER_BATCH):
            batch = slice(start, min(start + _ROWS_PER_BATCH, len(leaves)))
            vectors = buffer[: batch.stop - start]
            widen(embeddings[batch], vectors)
            for level, (centroid_level, rows) in enumerate(passed):
                for other in np.unique(centroid_level[batch]):
                    chosen = centroid_level[batch] == other
                    nearest = rows[batch][chosen]
                    centroids = tree.centroids_per_level[other].take(nearest, axis=0)
                    norms = tree.centroid_norms[other][nearest].astype(np.float64)
                    products = np.einsum("ij,ij->i", vectors if chosen.all() else vectors[chosen], centroids)
                    cosines[level] += (products / np.maximum(norms, np.finfo(np.float32).tiny)).sum()
                    distances[level] += (1 + norms**2 - 2.0 * products).sum()
        return cls(
            num_windows=len(leaves), squared_distances=tuple(distances.tolist()), cosines=tuple(cosines.tolist())
        )

    @classmethod
    def merge(cls, parts: Iterable[QualitySums]) -> QualitySums:
        """The sums over all parts, added in the order given. Raises InputError for none, or for different depths."""
        num_windows = num_parts = 0
        depths: set[int] = set()
        columns: list[array[float]] = []  # sum() of Python 3.12 is exact beyond a float: it needs all of them
        for part in parts:
            values = (*part.squared_distances, *part.cosines)
            depths.add(len(part.cosines))
            columns = columns or [array("d") for _ in values]
            for column, value in zip(columns, values, strict=False):
                column.append(value)
            num_windows += part.num_windows
            num_parts += 1
        if len(depths) != 1:
            raise InputError(f"quality sums: must be some, of one tree, got {num_parts}. Assign windows first.")
        sums = tuple(map(sum, columns))
        depth = depths.pop()
        return cls(num_windows=num_windows, squared_distances=sums[:depth], cosines=sums[depth:])

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> QualitySums:
        """Read the result of `to_json` back. Raises FormatError."""
        try:
            return cls(
                num_windows=int(content["num_windows"]),
                squared_distances=tuple(map(float, content["squared_distances"])),
                cosines=tuple(map(float, content["cosines"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"quality sums: not readable ({error}). Assign the windows again.") from error


def leaf_cosines(tree: ClusterTree, embeddings: NDArray[Any], leaves: NDArray[np.uint32]) -> NDArray[np.float32]:
    """[num_windows], between windows [num_windows, dim] of norm 1 and the centroids of their leaves."""
    *_, (centroid_level, rows) = _passed(tree, leaves)
    cosines = np.empty(len(leaves), np.float32)
    for level in np.unique(centroid_level):
        chosen = centroid_level == level
        centroids = tree.centroids_per_level[level][rows[chosen]]
        products = np.einsum("ij,ij->i", np.asarray(embeddings[chosen], np.float32), centroids)
        cosines[chosen] = products / np.maximum(tree.centroid_norms[level][rows[chosen]], np.finfo(np.float32).tiny)
    return cosines


def _passed(tree: ClusterTree, leaves: NDArray[np.uint32]) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per level 1 … depth: of each window's node (or leaf above), its index of the level, from 0, and row in it."""
    levels, rows = np.zeros(len(leaves), np.int64), np.zeros(len(leaves), np.int64)
    for level, nodes in enumerate(tree.nodes_per_level):
        nodes_at_level = tree.node_of(leaves, level + 1)
        at = np.minimum(np.searchsorted(nodes, nodes_at_level), max(len(nodes) - 1, 0))
        there = nodes[at] == nodes_at_level if len(nodes) else np.zeros(len(leaves), np.bool_)
        if level:  # a padded id may equal that of a real node only where the parent is split
            there &= levels == level - 1
        levels, rows = np.where(there, level, levels), np.where(there, at, rows)
        yield levels, rows


@dataclass(frozen=True, kw_only=True)
class LevelQuality:
    """One level's clusters: its nodes, and the leaves above it."""

    level: int
    num_clusters: int
    num_leaves: int
    """Clusters that are leaves of the tree."""
    empty_clusters: int
    imbalance: float
    """Number of clusters times the sum of their squared shares: 1 when all are equally large (faiss's measure)."""
    largest: float
    """Windows of the largest cluster over those of the average one."""
    squared_distance: float | None
    """Mean over windows to their centroid; None when unknown."""
    cosine: float | None
    """Mean over windows with their centroid; None when unknown."""
    fit_seconds: float | None
    """Time spent fitting the level; None when unknown."""


@dataclass(frozen=True, kw_only=True)
class LeafSizes:
    """Number of leaves with a number of windows between two bounds."""

    at_least: int
    at_most: int
    num_leaves: int


@dataclass(frozen=True, kw_only=True)
class TreeQuality:
    """A tree, measured on some windows."""

    num_windows: int
    num_leaves: int
    empty_leaves: int
    levels: list[LevelQuality]
    leaf_sizes: list[LeafSizes]
    """Classes of size from 0 windows up, in powers of two."""


def tree_quality(tree: ClusterTree, embeddings: NDArray[Any], *, fit_seconds: ArrayLike | None = None) -> TreeQuality:
    """Measure a tree on embeddings [num_windows, dim] of norm 1, best ones that it was not fitted on.

    `fit_seconds` [depth] is the time spent fitting each level.

    Raises:
        InputError: the width is not the tree's, or values are not finite.
    """
    leaves = tree.assign(embeddings)
    sums = QualitySums.of(tree, embeddings, leaves)
    present, counts = np.unique(leaves, return_counts=True)
    return quality_of_counts(tree, present, counts, sums=sums, fit_seconds=fit_seconds)


def quality_of_counts(
    tree: ClusterTree,
    leaves: NDArray[np.uint32],
    counts: NDArray[np.int64],
    *,
    sums: QualitySums | None = None,
    fit_seconds: ArrayLike | None = None,
) -> TreeQuality:
    """Measure a tree by a dataset's leaf counts.

    Args:
        tree: of the dataset.
        leaves: [num_non_empty_leaves], as in clusters.parquet.
        counts: [num_non_empty_leaves], windows of each.
        sums: of the same windows; without them the quantisation error stays unknown.
        fit_seconds: [depth], time spent fitting each level.

    Raises:
        InputError: no windows.
    """
    num_windows = int(counts.sum())
    if num_windows == 0:
        raise InputError("windows: a tree is measured on at least one, got none. Give embeddings, or a dataset.")
    seconds = None if fit_seconds is None else np.asarray(fit_seconds, np.float64).tolist()
    levels = []
    leaves_above, num_nodes = 0, 1
    for level, nodes in enumerate(tree.nodes_per_level, start=1):
        leaves_above += num_nodes - len(nodes) // tree.arity
        num_nodes = len(nodes)
        num_clusters = leaves_above + num_nodes
        split = len(tree.nodes_per_level[level]) // tree.arity if level < tree.depth else 0
        _, cluster = np.unique(tree.node_of(leaves, level), return_inverse=True)
        shares = np.bincount(cluster, weights=counts) / num_windows
        levels.append(
            LevelQuality(
                level=level,
                num_clusters=num_clusters,
                num_leaves=num_clusters - split,
                empty_clusters=num_clusters - len(shares),
                imbalance=float(num_clusters * np.square(shares).sum()),
                largest=float(shares.max() * num_clusters),
                squared_distance=None if sums is None else sums.squared_distances[level - 1] / sums.num_windows,
                cosine=None if sums is None else sums.cosines[level - 1] / sums.num_windows,
                fit_seconds=None if seconds is None else seconds[level - 1],
            )
        )
    return TreeQuality(
        num_windows=num_windows,
        num_leaves=tree.num_leaves,
        empty_leaves=tree.num_leaves - len(leaves),
        levels=levels,
        leaf_sizes=_leaf_sizes(counts, tree.num_leaves),
    )


def _leaf_sizes(counts: NDArray[np.int64], num_leaves: int) -> list[LeafSizes]:
    sizes = [LeafSizes(at_least=0, at_most=0, num_leaves=num_leaves - len(counts))]
    powers = np.floor(np.log2(counts)).astype(np.int64)
    for power, number in enumerate(np.bincount(powers).tolist()):
        sizes.append(LeafSizes(at_least=2**power, at_most=2 ** (power + 1) - 1, num_leaves=number))
    return sizes


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two trees on the same windows, at one level."""

    level: int
    adjusted_rand: float
    """Adjusted Rand index: 1 for equal clusterings, about 0 for unrelated ones."""
    normalised_mutual_information: float
    """Mutual information over the mean of the two entropies: 1 for equal clusterings. High when windows are few."""


def label_agreement(labels: NDArray[Any], others: NDArray[Any], level: int = 1) -> Agreement:
    """Compare two clusterings [num_windows] through the cells of their contingency table that are not empty."""
    if len(labels) < 2:
        raise InputError(f"windows: two clusterings are compared on at least 2, got {len(labels)}. Give more.")
    _, rows = np.unique(labels, return_inverse=True)
    _, columns = np.unique(others, return_inverse=True)
    row_sizes, column_sizes = np.bincount(rows), np.bincount(columns)
    cells, cell_sizes = np.unique(rows * len(column_sizes) + columns, return_counts=True)
    num_windows = len(labels)

    def pairs(sizes: NDArray[np.int64]) -> float:
        return float((sizes * (sizes - 1.0)).sum() / 2)

    expected = pairs(row_sizes) * pairs(column_sizes) / (num_windows * (num_windows - 1) / 2)
    most = (pairs(row_sizes) + pairs(column_sizes)) / 2
    rand = (pairs(cell_sizes) - expected) / (most - expected) if most != expected else 1.0

    def entropy(sizes: NDArray[np.int64]) -> float:
        shares = sizes / num_windows
        return float(-(shares * np.log(shares)).sum())

    independent = row_sizes[cells // len(column_sizes)] * (column_sizes[cells % len(column_sizes)] / num_windows)
    shared = float((cell_sizes / num_windows * np.log(cell_sizes / independent)).sum())
    mean_entropy = (entropy(row_sizes) + entropy(column_sizes)) / 2
    return Agreement(
        level=level,
        adjusted_rand=rand,
        normalised_mutual_information=shared / mean_entropy if mean_entropy else 1.0,
    )
