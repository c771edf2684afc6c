"""Assignment: greedy descent of many vectors through the families of a tree.

Rows are gathered once per level into blocks, so that what a family scores is close together; families of the last
level, of which no block is needed, are scored many at once.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.tree.families import Family, Scorer, cuts

_ROWS_PER_BLOCK = 1 << 15
"""Vectors of one node that are held at once: at most 50 MB of 384 numbers in float32, per level below the first."""


class Descent:
    """The way down a tree."""

    def __init__(
        self, arity: int, nodes_per_level: list[NDArray[np.uint32]], centroids_per_level: list[NDArray[np.float32]]
    ) -> None:
        """Args: as those of ClusterTree."""
        self._arity = arity
        self._centroids = centroids_per_level
        self._nodes = nodes_per_level
        self._families: list[dict[int, Family]] = [{} for _ in nodes_per_level]
        self._below: list[NDArray[np.int64]] = []
        for upper, lower in itertools.pairwise(nodes_per_level):
            parents = lower[::arity] // np.uint32(arity)
            row_below = np.full(len(upper), -1)
            row_below[np.searchsorted(upper, parents)] = np.arange(len(parents))
            self._below.append(row_below)

    def family(self, depth: int, row: int) -> Family:
        """The `row`-th family of siblings at level depth + 1."""
        families = self._families[depth]
        if row not in families:
            families[row] = Family(self._centroids[depth][row * self._arity : (row + 1) * self._arity])
        return families[row]

    def first_child(self, depth: int, row: int) -> int:
        """Node id of the first child of that family."""
        return int(self._nodes[depth][row * self._arity])

    def rows_below(self, depth: int, row: int) -> NDArray[np.int64]:
        """[arity], for each child of that family: the family below it, -1 for leaves."""
        return self._below[depth][row * self._arity : (row + 1) * self._arity]

    def nodes(self, embeddings: NDArray[Any], level: int) -> NDArray[np.uint32]:
        """Descend to the closest child at every level.

        Args:
            embeddings: [num_windows, dim], float16 or float32.
            level: where to stop, 1 to depth.

        Returns:
            [num_windows] node ids at the level, padded with zeros below leaves.

        Raises:
            InputError: values that are not finite.
        """
        walk = _Walk(self, self._arity, level, np.asarray(embeddings))
        walk.visit(walk.embeddings, None, np.arange(len(embeddings)), depth=0, row=0)
        return walk.result


class _Walk:
    """One descent: where it stops, and what it fills in."""

    def __init__(self, tree: Descent, arity: int, level: int, embeddings: NDArray[Any]) -> None:
        self.embeddings = embeddings
        self.result = np.zeros(len(embeddings), np.uint32)
        self._tree = tree
        self._arity = arity
        self._level = level
        self._scorer = Scorer(arity, embeddings.shape[1])
        self._blocks: dict[int, NDArray[Any]] = {}

    def visit(
        self, source: NDArray[Any], rows: NDArray[np.int64] | None, places: NDArray[np.int64], *, depth: int, row: int
    ) -> None:
        """Let vectors that reached a family choose its children, and go on below these.

        Args:
            source: [num_rows, dim], the embeddings or a block.
            rows: [num_vectors], which of them; all when None.
            places: [num_vectors], their rows in the embeddings and the result.
            depth: level of the family's parent.
            row: of the family among those of its level.
        """
        block = None if rows is None else self._block(depth, len(rows))
        labels = self._choose(source, rows, places, [(depth, row)], [len(places)], keep=block)
        if depth + 1 == self._level:
            return
        below = self._tree.rows_below(depth, row)
        order = np.argsort(labels.astype(np.uint8), kind="stable")
        sizes = np.bincount(labels, minlength=self._arity)
        stops = np.cumsum(sizes)
        inner = [child for child in range(self._arity) if below[child] >= 0 and sizes[child]]
        kept = source if block is None else block
        if inner and depth + 2 == self._level:  # no block is kept below: many small families at once
            order = order[np.isin(labels[order], inner)] if len(inner) < self._arity else order
            families = [(depth + 1, int(below[child])) for child in inner]
            self._choose(kept, order, places[order], families, sizes[inner].tolist())
            return
        for child in inner:
            first = stops[child] - sizes[child]
            for part in cuts(int(sizes[child]), _ROWS_PER_BLOCK):
                members = order[first + part.start : first + part.stop]
                self.visit(kept, members, places[members], depth=depth + 1, row=int(below[child]))

    def _choose(
        self,
        source: NDArray[Any],
        rows: NDArray[np.int64] | None,
        places: NDArray[np.int64],
        families: list[tuple[int, int]],
        sizes: list[int],
        *,
        keep: NDArray[Any] | None = None,
    ) -> NDArray[np.int64]:
        """Record the choices of vectors within their families [(level of the parent, row)], all of one level."""
        siblings = [self._tree.family(*family) for family in families]
        labels = self._scorer.choose(source, rows, siblings, sizes, keep=keep)
        depth = families[0][0]
        first_children = np.repeat([self._tree.first_child(*family) for family in families], sizes)
        self.result[places] = (first_children + labels) * self._arity ** (self._level - depth - 1)
        return labels

    def _block(self, depth: int, num_rows: int) -> NDArray[Any]:
        block = self._blocks.get(depth)
        if block is None or len(block) < num_rows:
            block = self._blocks[depth] = self._scorer.new_block(num_rows)
        return block[:num_rows]
