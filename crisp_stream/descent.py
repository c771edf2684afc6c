"""The inner loop of assignment: greedy descent of many vectors through the families of a tree.

A float32 matrix product per family scores its children. Children whose scores differ by no more than the product may
be wrong by are compared again in float64, row by row. So the node of a vector of norm 1 is a function of the vector and
the tree alone: not of the batch it came in, of threads, of the BLAS library or of the processor.

The products are half of the time and more: small families share everything but the product itself, and rows are
gathered once per level into memory that stays in the cache. float16 is widened by integer shifts: numpy's own
conversion takes 0.9 microseconds for 384 numbers, more than a product with 64 centroids (0.5); the shifts take 0.15.
docs/tree.md has the measurements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError

_ROWS_PER_PACK = 512
"""Vectors scored at once: they and their scores, in float32, stay in a core's second-level cache."""
_ROWS_PER_BLOCK = 1 << 15
"""Vectors of one node that are held in float32: at most 50 MB of 384 numbers, per level below the first."""
_EVEN_HALF_NORMS = 2.0**-20
_HALF_BITS = np.array(0x8FFFE000, np.uint32).view(np.int32)
_HALF_SCALE = np.float32(2.0**112)
_LARGEST_SQUARE = 2.0**31
"""Above it the values are looked at one by one: widening makes a number of at least 2^16 of an infinite float16."""


class Family:
    """The centroids of siblings, ready for scoring: score = inner product - half the centroid's squared norm."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        """Args:
        centroids: [num_children, dim].
        """
        self.centroids = centroids
        self.transposed = centroids.T
        half_norms = 0.5 * np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64)
        self.half_norms = half_norms.astype(np.float32)
        largest_norm = float(np.sqrt(2 * half_norms.max()))
        spread = float(np.ptp(half_norms))
        self.even = spread < _EVEN_HALF_NORMS
        """The centroids are so nearly of one norm that comparing inner products alone is comparing scores."""
        self.margin = 2 * (centroids.shape[1] + 3) * 2.0**-24 * max(largest_norm, largest_norm**2) + self.even * spread
        """Scores further apart are in the right order: twice the error bound dim * 2^-24 * |vector| * |centroid|."""

    @cached_property
    def exact_half_norms(self) -> NDArray[np.float64]:
        """[num_children], summed in an order that no library chooses."""
        wide = self.centroids.astype(np.float64)
        return 0.5 * (wide * wide).sum(axis=1)

    def closest(self, vectors: NDArray[Any]) -> NDArray[np.int64]:
        """The child with the closest centroid of each vector: [num_vectors, dim] of norm 1 -> [num_vectors]."""
        labels, _ = Scorer(*self.centroids.shape).choose(vectors, None, [self], [len(vectors)])
        return labels


class Scorer:
    """Buffers for scoring, used again and again."""

    def __init__(self, num_children: int, dim: int) -> None:
        self._halves = np.empty((_ROWS_PER_PACK, dim), np.float16)
        self._vectors = np.empty((_ROWS_PER_PACK, dim), np.float32)
        self._scores = np.empty((_ROWS_PER_PACK, num_children), np.float32)
        self._first_scores = np.arange(0, _ROWS_PER_PACK * num_children, num_children)

    def choose(
        self,
        source: NDArray[Any],
        rows: NDArray[np.int64] | None,
        families: Sequence[Family],
        sizes: Sequence[int],
        *,
        keep: NDArray[np.float32] | None = None,
        with_products: bool = False,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """The closest child of each vector, among those of its family.

        Args:
            source: [num_rows, dim], float16 or float32.
            rows: [num_vectors], which rows of the source, those of the first family first; all, in order, when None.
            families: of the vectors.
            sizes: vectors per family; their sum is num_vectors.
            keep: [num_vectors, dim], is set to the vectors.
            with_products: give the inner products, too.

        Returns:
            [num_vectors] children (the first among equally close ones), and [num_vectors] inner products with their
            centroids.

        Raises:
            InputError: values of the source that are not finite, where rows is None.
        """
        num_vectors = sum(sizes)
        labels = np.empty(num_vectors, np.int64)
        products = np.empty(num_vectors, np.float32) if with_products else None
        for start, stop, members in _packs(families, sizes):
            vectors = self._vectors[: stop - start] if keep is None else keep[start:stop]
            if rows is None:
                widen(source[start:stop], vectors)
                check_finite(vectors, source[start:stop])
            else:
                self._gather(source, rows[start:stop], vectors)
            scores = self._scores[: stop - start]
            for family, first, last in members:
                own = scores[first:last]
                np.matmul(vectors[first:last], family.transposed, out=own)
                if not family.even:
                    np.subtract(own, family.half_norms, out=own)
            chosen, best = self._best(scores, vectors, members)
            labels[start:stop] = chosen
            if products is not None:
                for family, first, last in members:
                    own = products[start + first : start + last]
                    own[:] = best[first:last]
                    if not family.even:
                        own += family.half_norms[chosen[first:last]]
        return labels, products

    def _best(
        self, scores: NDArray[np.float32], vectors: NDArray[np.float32], members: list[tuple[Family, int, int]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        chosen = scores.argmax(axis=1)
        best = scores.reshape(-1).take(chosen + self._first_scores[: len(scores)])
        near = scores >= (best - np.float32(max(family.margin for family, _, _ in members)))[:, None]
        if np.count_nonzero(near) != len(scores):
            for family, first, last in members:
                _decide(vectors[first:last], near[first:last], family, chosen[first:last])
        return chosen, best

    def _gather(self, source: NDArray[Any], rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        if source.dtype == np.float32:
            np.take(source, rows, axis=0, out=out, mode="clip")  # the mode that needs no second buffer
        elif source.dtype == np.float16:
            halves = self._halves[: len(rows)]
            np.take(source, rows, axis=0, out=halves, mode="clip")
            widen(halves, out)
        else:
            out[:] = source[rows]


def _decide(vectors: NDArray[np.float32], near: NDArray[np.bool_], family: Family, chosen: NDArray[np.int64]) -> None:
    """Choose among near children by float64 sums over one row at a time, whose rounding nothing else can change."""
    undecided = np.flatnonzero(np.count_nonzero(near, axis=1) > 1)
    if len(undecided):
        pair_row, pair_child = np.nonzero(near[undecided])
        wide = vectors[undecided[pair_row]].astype(np.float64)
        wide *= family.centroids[pair_child]
        scores = wide.sum(axis=1) - family.exact_half_norms[pair_child]
        order = np.lexsort((pair_child, -scores, pair_row))
        chosen[undecided] = pair_child[order[np.searchsorted(pair_row, np.arange(len(undecided)))]]


def _packs(
    families: Sequence[Family], sizes: Sequence[int]
) -> Iterator[tuple[int, int, list[tuple[Family, int, int]]]]:
    """(start, stop, members) of consecutive vectors scored together; members: (family, first, last) from the start."""
    start = stop = 0
    members: list[tuple[Family, int, int]] = []
    for family, size in zip(families, sizes, strict=True):
        for part in cuts(size, _ROWS_PER_PACK):
            rows = part.stop - part.start
            if stop - start + rows > _ROWS_PER_PACK:
                yield start, stop, members
                start, members = stop, []
            members.append((family, stop - start, stop - start + rows))
            stop += rows
    if members:
        yield start, stop, members


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

    def nodes(
        self, embeddings: NDArray[Any], level: int, *, with_products: bool = False
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32] | None]:
        """Descend to the closest child at every level.

        Args:
            embeddings: [num_windows, dim], float16 or float32.
            level: where to stop, 1 to depth.
            with_products: give the inner products, too.

        Returns:
            [num_windows] node ids at the level, padded with zeros below leaves; and [level, num_windows], the inner
            product with the centroid passed at each level (below a leaf: the leaf's).

        Raises:
            InputError: values that are not finite.
        """
        walk = _Walk(self, self._arity, level, np.asarray(embeddings), with_products)
        walk.visit(walk.embeddings, None, np.arange(len(embeddings)), depth=0, row=0)
        return walk.result, walk.products


class _Walk:
    """One descent: where it stops, and what it fills in."""

    def __init__(self, tree: Descent, arity: int, level: int, embeddings: NDArray[Any], with_products: bool) -> None:
        self.embeddings = embeddings
        self.result = np.zeros(len(embeddings), np.uint32)
        self.products = np.empty((level, len(embeddings)), np.float32) if with_products else None
        self._tree = tree
        self._arity = arity
        self._level = level
        self._scorer = Scorer(arity, embeddings.shape[1])
        self._blocks: dict[int, NDArray[np.float32]] = {}

    def visit(
        self, source: NDArray[Any], rows: NDArray[np.int64] | None, places: NDArray[np.int64], *, depth: int, row: int
    ) -> None:
        """Let vectors that reached a family choose its children, and go on below these.

        Args:
            source: [num_rows, dim].
            rows: [num_vectors], which of them; all when None.
            places: [num_vectors], their rows in the result.
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
            own = order[np.isin(labels[order], inner)] if len(inner) < self._arity else order
            families = [(depth + 1, int(below[child])) for child in inner]
            self._choose(kept, own, places[own], families, sizes[inner].tolist())
            return
        for child in inner:
            first = stops[child] - sizes[child]
            for part in cuts(int(sizes[child]), _ROWS_PER_BLOCK):
                own = order[first + part.start : first + part.stop]
                self.visit(kept, own, places[own], depth=depth + 1, row=int(below[child]))

    def _choose(
        self,
        source: NDArray[Any],
        rows: NDArray[np.int64] | None,
        places: NDArray[np.int64],
        families: list[tuple[int, int]],
        sizes: list[int],
        *,
        keep: NDArray[np.float32] | None = None,
    ) -> NDArray[np.int64]:
        """Record the choices of vectors within their families [(level of the parent, row)], all of one level."""
        labels, products = self._scorer.choose(
            source,
            rows,
            [self._tree.family(*family) for family in families],
            sizes,
            keep=keep,
            with_products=self.products is not None,
        )
        depth = families[0][0]
        first_children = np.repeat([self._tree.first_child(*family) for family in families], sizes)
        self.result[places] = (first_children + labels) * self._arity ** (self._level - depth - 1)
        if self.products is not None:
            self.products[depth:, places] = products
        return labels

    def _block(self, depth: int, num_rows: int) -> NDArray[np.float32]:
        block = self._blocks.get(depth)
        if block is None or len(block) < num_rows:
            block = self._blocks[depth] = np.empty((num_rows, self.embeddings.shape[1]), np.float32)
        return block[:num_rows]


def widen(source: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Set out to the source, of the same shape; exact for float16, whose values must be finite.

    The bits of sign, exponent and fraction are moved to their places; the product mends the exponent's bias.
    """
    if source.dtype != np.float16 or not source.flags.c_contiguous:
        out[:] = source
        return
    bits = out.view(np.int32)
    bits[:] = source.view(np.int16)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _HALF_BITS, out=bits)
    np.multiply(out, _HALF_SCALE, out=out)


def check_finite(vectors: NDArray[np.float32], source: NDArray[Any]) -> None:
    """Raises InputError for nan or inf in the source, which was widened to vectors (C-contiguous)."""
    flat = vectors.reshape(-1)
    if not float(np.dot(flat, flat)) < _LARGEST_SQUARE and not np.isfinite(source).all():
        raise InputError("embeddings: every value must be finite, got nan or inf. Embed the windows again.")


def cuts(count: int, longest: int) -> Iterator[slice]:
    """Slices of 0 … count, as few as can be, of nearly equal length, none longer than `longest`."""
    pieces = -(-count // longest)
    for piece in range(pieces):
        yield slice(count * piece // pieces, count * (piece + 1) // pieces)
