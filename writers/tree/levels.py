"""One level of a tree that grows: the node of every window, and the examples by which each node is split.

A window has a pseudo-random key per level, a function of seed, level and the window alone, and a node is fitted on its
windows with the smallest keys, as many as its steps visit. So the examples do not depend on how the windows are split
into parts, nor on who reads them. To find them in the same pass that counts the windows, a node takes windows below a
threshold, which follows from the number of windows that it is expected to have: a share of its parent's, as of the
examples by which the parent was split. It is set so high that too few are taken once in 30,000 nodes; then these are
all examples there are. The other way, a pass that counts and one that draws, reads every embedding twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.hashing import splitmix64
from crisp_stream.tree.families import Family, Scorer, check_finite, cuts, widen
from crisp_stream.writers.tree.balanced_kmeans import closest, fit_node, unit_rows
from crisp_stream.writers.tree.settings import TreeSettings

SETTLED = -1
"""Row of a window that is in a leaf above the level, or is not used at all."""
_EVERY = np.uint64((1 << 64) - 1)
_SURE = 4.0
"""Standard deviations that estimates are trusted to."""
_ROWS_PER_BATCH = 1 << 14
_KEY_SALT = 0x7472656500000000
"""Makes keys of the tree unrelated to those of the order inside a leaf."""


def window_ids(part: int, num_windows: int) -> NDArray[np.uint64]:
    """[num_windows], number of each window of a part: part << 32 | row."""
    return np.uint64(part << 32) | np.arange(num_windows, dtype=np.uint64)


def draw_keys(ids: NDArray[np.uint64], seed: int, level: int) -> NDArray[np.uint64]:
    """[num_windows] keys by which examples for the split of nodes of a level are drawn, all different."""
    salt = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ np.uint64(_KEY_SALT + level))
    return splitmix64(ids ^ salt)


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """The nodes of one level, and thresholds for drawing the examples by which they are split."""

    number: int
    """0 for the root alone."""
    nodes: NDArray[np.uint32]
    """[num_nodes], sorted ids; siblings are complete."""
    centroids: NDArray[np.float32]
    """[num_nodes, dim]; none for the root."""
    families: NDArray[np.int64]
    """For each node of the level above its family among those of this one, `SETTLED` for leaves."""
    thresholds: NDArray[np.uint64]
    """[num_nodes], windows with smaller keys are taken; 0 where no split is to be expected."""

    @classmethod
    def root(cls, expected: float, settings: TreeSettings, *, is_exact: bool) -> Level:
        """The level above the first, of so many windows."""
        thresholds = _thresholds(np.array([expected]), np.array([np.inf if is_exact else expected]), settings)
        return cls(
            number=0,
            nodes=np.zeros(1, np.uint32),
            centroids=np.zeros((0, 0), np.float32),
            families=np.zeros(0, np.int64),
            thresholds=thresholds,
        )

    @classmethod
    def below(cls, above: Level, splits: Splits, settings: TreeSettings) -> Level:
        """The level of the children of nodes that are split."""
        arity = settings.arity
        families = np.full(len(above.nodes), SETTLED, np.int64)
        families[splits.rows] = np.arange(len(splits.rows))
        first = above.nodes[splits.rows].astype(np.int64) * arity
        made = cls(
            number=above.number + 1,
            nodes=(first[:, None] + np.arange(arity)).reshape(-1).astype(np.uint32),
            centroids=splits.centroids,
            families=families,
            thresholds=np.zeros(len(first) * arity, np.uint64),
        )
        if made.number == settings.depth:
            return made
        seen = splits.examples_per_child.astype(np.float64)
        num_examples = seen.sum(axis=1, keepdims=True)
        expected = (splits.windows[:, None] * seen / num_examples).reshape(-1)
        trust = np.where(num_examples == splits.windows[:, None], np.inf, seen).reshape(-1)
        thresholds = _thresholds(expected, trust, settings)
        thresholds[np.isinf(trust) & (np.round(expected) < settings.least)] = 0
        return dataclasses.replace(made, thresholds=thresholds)

    def place(self, embeddings: NDArray[Any], rows_above: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """Let every window choose a child of its node at the level above.

        Args:
            embeddings: [num_windows, dim] of norm 1.
            rows_above: [num_windows], row of that node; None where all are at the root.

        Returns:
            [num_windows], row of the child at this level; `SETTLED` where the node is a leaf, or was.

        Raises:
            InputError: values that are not finite.
        """
        if rows_above is None:
            return self._family(0).closest(embeddings).astype(np.int32)
        families = np.full(len(rows_above), SETTLED, np.int64)
        families[rows_above >= 0] = self.families[rows_above[rows_above >= 0]]
        order = np.argsort(families, kind="stable")
        order = order[np.searchsorted(families[order], 0) :]
        present, first = np.unique(families[order], return_index=True)
        sizes = np.diff(np.append(first, len(order)))
        rows = np.full(len(rows_above), SETTLED, np.int32)
        if self.number == 1:
            _check_finite(embeddings)
        if len(order):
            siblings = [self._family(int(family)) for family in present]
            scorer = Scorer(len(siblings[0].centroids), embeddings.shape[1])
            labels = scorer.choose(embeddings, order, siblings, sizes.tolist())
            rows[order] = np.repeat(present, sizes) * len(siblings[0].centroids) + labels
        return rows

    def drawn(self, rows: NDArray[np.int32], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The windows that are taken, by node and then by key; `rows` as of `place`, `keys` of this level."""
        alive = np.flatnonzero(rows >= 0)
        taken = alive[keys[alive] < self.thresholds[rows[alive]]]
        return taken[np.lexsort((keys[taken], rows[taken]))]

    @cached_property
    def _arity(self) -> int:
        return len(self.nodes) // max(int(np.count_nonzero(self.families >= 0)), 1)

    @cached_property
    def _made(self) -> dict[int, Family]:
        return {}

    def _family(self, family: int) -> Family:
        if family not in self._made:
            self._made[family] = Family(self.centroids[family * self._arity : (family + 1) * self._arity])
        return self._made[family]


def _check_finite(embeddings: NDArray[Any]) -> None:
    for part in cuts(len(embeddings), _ROWS_PER_BATCH):
        vectors = np.empty(embeddings[part].shape, np.float32)
        widen(embeddings[part], vectors)
        check_finite(vectors, embeddings[part])


def _thresholds(expected: NDArray[np.float64], seen: NDArray[np.float64], settings: TreeSettings) -> NDArray[np.uint64]:
    """[num_nodes] thresholds that nodes of the expected size fill their quota by.

    Args:
        expected: [num_nodes] windows.
        seen: [num_nodes] examples that this is estimated from; infinite where it is known.
    """
    quota, is_known = settings.quota, np.isinf(seen)
    surely = expected * np.maximum(1 - _SURE / np.sqrt(np.maximum(seen, 1)), 0)
    shares = (quota + _SURE * quota**0.5) / np.maximum(np.where(is_known, expected, surely), 1)
    thresholds = np.full(len(shares), _EVERY)
    few = (shares < 1) & ~(is_known & (expected <= quota))
    thresholds[few] = (shares[few] * 2.0**64).astype(np.uint64)
    return thresholds


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Nodes of a level that were split."""

    rows: NDArray[np.int64]
    """[num_split], sorted, of the nodes among those of their level."""
    windows: NDArray[np.int64]
    """[num_split], of each of them."""
    centroids: NDArray[np.float32]
    """[num_split * arity, dim] of their children."""
    examples_per_child: NDArray[np.int64]
    """[num_split, arity], which add up to the examples of the node."""


def split_nodes(
    embeddings: NDArray[Any],
    examples_per_node: Sequence[NDArray[np.int64]],
    level: Level,
    rows: NDArray[np.int64],
    windows: NDArray[np.int64],
    settings: TreeSettings,
) -> Splits:
    """Fit some nodes of a level, one after the other; those with too few different examples are left out.

    Args:
        embeddings: [num_examples, dim], normalised here.
        examples_per_node: rows of `embeddings` for each node, by key; those above the quota are not used.
        level: of the nodes.
        rows: [num_nodes] of the level.
        windows: [num_nodes] that the nodes have.
        settings: of the tree.
    """
    split, centroids, examples_per_child = [], [], []
    for at, (row, examples) in enumerate(zip(rows.tolist(), examples_per_node, strict=True)):
        node, used = int(level.nodes[row]), examples[: settings.quota]
        if len(used) < settings.arity:
            continue
        is_root = level.number == 0
        fitted = fit_node(embeddings, used, settings, level=level.number + 1, node=node, is_root=is_root)
        if fitted is not None:
            batches = [unit_rows(embeddings, used[part]) for part in cuts(len(used), _ROWS_PER_BATCH)]
            labels = np.concatenate([closest(batch, fitted) for batch in batches])
            split.append(at)
            centroids.append(fitted)
            examples_per_child.append(np.bincount(labels, minlength=settings.arity))
    return Splits(
        rows=rows[split],
        windows=windows[split],
        centroids=np.concatenate([np.zeros((0, embeddings.shape[1]), np.float32), *centroids]),
        examples_per_child=np.array(examples_per_child, np.int64).reshape(-1, settings.arity),
    )
