"""Choice of the closest child: the scores of the inner loop of assignment.

Vectors are scored against the children of their family by a matrix product that may be wrong by a known bound. Children
whose scores differ by no more than it may explain are compared again, at last in float64, row by row. So the child of a
vector of norm 1 is a function of the vector and the centroids alone: not of the batch it came in, of threads, of the
library that multiplies or of the processor.

`Scorer` multiplies in float32. Small families share everything but the product itself, and rows are gathered into
memory that stays in the cache. float16 is widened by integer shifts: numpy's own conversion takes 0.9 microseconds for
384 numbers, more than a product with 64 centroids (0.5); the shifts take 0.15. docs/write/tree.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError

_ROWS_PER_PACK = 512
"""Vectors scored at once: they and their scores, in float32, stay in a core's second-level cache."""
_EVEN_HALF_NORMS = 2.0**-20
_HALF_BITS = np.array(0x8FFFE000, np.uint32).view(np.int32)
_HALF_SCALE = np.float32(2.0**112)
_LARGEST_SQUARE = 2.0**31
"""Above it the values are looked at one by one: widening makes a number of at least 2^16 of an infinite float16."""


class Family:
    """The centroids of siblings, ready for scoring: score = inner product - half the centroid's squared norm."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        """Take the centroids [num_children, dim]."""
        self.centroids = centroids
        self.transposed = centroids.T
        half_norms = 0.5 * np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64)
        self.half_norms = half_norms.astype(np.float32)
        largest_norm = float(np.sqrt(2 * half_norms.max()))
        spread = float(np.ptp(half_norms))
        self.even = spread < _EVEN_HALF_NORMS
        """The centroids are so nearly of one norm that comparing inner products alone is comparing scores."""
        self.spread = self.even * spread
        self.margin = 2 * (centroids.shape[1] + 3) * 2.0**-24 * max(largest_norm, largest_norm**2) + self.spread
        """Scores further apart are in the right order: twice the error bound dim * 2^-24 * |vector| * |centroid|."""

    @cached_property
    def exact_half_norms(self) -> NDArray[np.float64]:
        """[num_children], summed in an order that no library chooses."""
        wide = self.centroids.astype(np.float64)
        return 0.5 * (wide * wide).sum(axis=1)

    def closest(self, vectors: NDArray[Any]) -> NDArray[np.int64]:
        """The child with the closest centroid of each vector: [num_vectors, dim] of norm 1 -> [num_vectors]."""
        return Scorer(*self.centroids.shape).choose(vectors, None, [self], [len(vectors)])


class Scorer:
    """Scores in float32. Holds buffers that are used again and again."""

    def __init__(self, num_children: int, dim: int) -> None:
        self._halves = np.empty((_ROWS_PER_PACK, dim), np.float16)
        self._vectors = np.empty((_ROWS_PER_PACK, dim), np.float32)
        self._scores = np.empty((_ROWS_PER_PACK, num_children), np.float32)
        self._first_scores = np.arange(0, _ROWS_PER_PACK * num_children, num_children)

    def new_block(self, num_rows: int) -> NDArray[Any]:
        """[num_rows, dim], for vectors that are needed again."""
        return np.empty((num_rows, self._vectors.shape[1]), np.float32)

    def choose(
        self,
        source: NDArray[Any],
        rows: NDArray[np.int64] | None,
        families: Sequence[Family],
        sizes: Sequence[int],
        *,
        keep: NDArray[Any] | None = None,
    ) -> NDArray[np.int64]:
        """The closest child of each vector, among those of its family.

        Args:
            source: [num_rows, dim], embeddings or a block.
            rows: [num_vectors], which rows of the source, those of the first family first; all, in order, when None.
            families: of the vectors.
            sizes: vectors per family; their sum is num_vectors.
            keep: [num_vectors, dim] of a block, is set to the vectors.

        Returns:
            [num_vectors] children, the first among equally close ones.

        Raises:
            InputError: values of the source that are not finite, where rows is None.
        """
        labels = np.empty(sum(sizes), np.int64)
        for start, stop, members in packs(families, sizes, _ROWS_PER_PACK):
            vectors = self._vectors[: stop - start] if keep is None else keep[start:stop]
            if rows is None:
                widen(source[start:stop], vectors)
                check_finite(vectors, source[start:stop])
            else:
                self._gather(source, rows[start:stop], vectors)
            scores = self._scores[: stop - start]
            for family, first, last in members:
                family_scores = scores[first:last]
                np.matmul(vectors[first:last], family.transposed, out=family_scores)
                if not family.even:
                    np.subtract(family_scores, family.half_norms, out=family_scores)
            chosen = scores.argmax(axis=1)
            best = scores.reshape(-1).take(chosen + self._first_scores[: len(scores)])
            near = scores >= (best - np.float32(max(family.margin for family, _, _ in members)))[:, None]
            if np.count_nonzero(near) != len(scores):
                for family, first, last in members:
                    _decide(vectors[first:last], near[first:last], family, chosen[first:last])
            labels[start:stop] = chosen
        return labels

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


def packs(
    families: Sequence[Family], sizes: Sequence[int], longest: int
) -> Iterator[tuple[int, int, list[tuple[Family, int, int]]]]:
    """Consecutive vectors scored together, at most `longest`: (start, stop, members).

    Members are (family, first, last), counted from the start.
    """
    start = stop = 0
    members: list[tuple[Family, int, int]] = []
    for family, size in zip(families, sizes, strict=True):
        for part in cuts(size, longest):
            rows = part.stop - part.start
            if stop - start + rows > longest:
                yield start, stop, members
                start, members = stop, []
            members.append((family, stop - start, stop - start + rows))
            stop += rows
    if members:
        yield start, stop, members


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
