"""Scores in bfloat16, where the processor multiplies it faster, and in float32 for the vectors it leaves undecided.

Most of the time of an assignment is products in float32. Processors with bfloat16 units make them in half of it,
through torch. What is lost is bounded: with m the mean of the siblings, all of them have x . m in common, so only
x . (c - m) is computed, of vectors shorter than c. Vectors for which the bound leaves more than one child are scored by
`Scorer`, so the children are the same as without bfloat16. docs/write/tree.md says how many these are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.tree.families import Family, Scorer, check_finite, packs

_HALF_STEP = 2.0**-9
"""Largest relative error of rounding to bfloat16, which has 8 significant bits."""
_ROWS_PER_PACK = 2048
"""Vectors scored at once: calls of torch cost microseconds each."""
_ROWS_PER_FAMILY = 32
"""With fewer, a product of bfloat16 is no faster than one of float32."""
_WORTHWHILE = 0.7
"""Share of the time of float32 products below which bfloat16 is used."""


class CoarseFamily:
    """The siblings' distances from their mean, in bfloat16."""

    def __init__(self, family: Family, torch: Any) -> None:
        """Args:
        family: of the siblings.
        torch: the module.
        """
        centred = family.centroids - family.centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        rounded = torch.from_numpy(centred).to(torch.bfloat16)
        lost = float(np.linalg.norm(centred - rounded.float().numpy(), axis=1).max())
        longest = float(np.linalg.norm(centred, axis=1).max())
        self.centred = rounded
        summing = (centred.shape[1] + 3) * 2.0**-23 * longest
        of_norms = 2.0**-23 * float(np.abs(family.half_norms).max())
        self.margin = 2.02 * (2 * _HALF_STEP * longest + lost + summing + of_norms) + family.spread
        """Twice the error: rounding the vector and the result, rounding the centroids, and float32 sums."""


class CoarseScorer:
    """As Scorer; blocks hold the bits of bfloat16 in int16."""

    def __init__(self, embeddings: NDArray[Any], num_children: int) -> None:
        """Args:
        embeddings: [num_windows, dim], where vectors are found exactly.
        num_children: of every family.
        """
        import torch

        self._torch = torch
        self._embeddings = embeddings
        dim = embeddings.shape[1]
        self._exact = Scorer(num_children, dim)
        self._read = torch.empty((_ROWS_PER_PACK, dim), dtype=torch.float16)
        self._wide = torch.empty((_ROWS_PER_PACK, dim), dtype=torch.float32)
        self._vectors = torch.empty((_ROWS_PER_PACK, dim), dtype=torch.bfloat16)
        self._scores = torch.empty((num_children, _ROWS_PER_PACK), dtype=torch.float32)
        self._children = np.arange(num_children, dtype=np.uint8)[:, None]

    def new_block(self, num_rows: int) -> NDArray[Any]:
        """[num_rows, dim], for vectors that are needed again."""
        return np.empty((num_rows, self._vectors.shape[1]), np.int16)

    def choose(
        self,
        source: NDArray[Any],
        rows: NDArray[np.int64] | None,
        places: NDArray[np.int64],
        families: Sequence[Family],
        sizes: Sequence[int],
        *,
        keep: NDArray[Any] | None = None,
    ) -> NDArray[np.int64]:
        """As `Scorer.choose`."""
        if rows is not None and keep is None and sum(sizes) < _ROWS_PER_FAMILY * len(sizes):
            return self._exact.choose(self._embeddings, places, places, families, sizes)
        labels = np.empty(sum(sizes), np.int64)
        undecided = np.ones(len(labels), np.bool_)
        for start, stop, members in packs(families, sizes, _ROWS_PER_PACK):
            own = slice(start, stop)
            vectors = self._bfloat16(source, own if rows is None else rows[own], check=rows is None)
            if keep is not None:
                keep[own] = vectors.view(self._torch.int16).numpy()
            labels[own], undecided[own] = self._closest(vectors, members)
        if undecided.any():
            ends = np.cumsum(sizes)
            left = [int(np.count_nonzero(undecided[end - size : end])) for size, end in zip(sizes, ends, strict=True)]
            own = places[undecided]
            labels[undecided] = self._exact.choose(self._embeddings, own, own, families, left)
        return labels

    def _closest(
        self, vectors: Any, members: list[tuple[Family, int, int]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """[num_vectors] children, and for which vectors these are not sure; members as of `packs`.

        Scores are [num_children, num_vectors], because numpy compares and adds rows far faster than columns.
        """
        margin = 0.0
        scores = self._scores[:, : len(vectors)].numpy()
        for family, first, last in members:
            coarse = family.coarse or CoarseFamily(family, self._torch)
            family.coarse = coarse
            self._scores[:, first:last] = coarse.centred @ vectors[first:last].t()  # not mm(out=): wrong for one column
            margin = max(margin, coarse.margin)
            if not family.even:
                scores[:, first:last] -= family.half_norms[:, None]
        near = (scores >= scores.max(axis=0) - np.float32(margin)).view(np.uint8)
        undecided = np.add.reduce(near, axis=0, dtype=np.uint8) != 1
        return np.add.reduce(near * self._children, axis=0, dtype=np.uint8), undecided

    def _bfloat16(self, source: NDArray[Any], rows: slice | NDArray[np.int64], *, check: bool) -> Any:
        """[num_vectors, dim] of those rows. Raises InputError where values are to be checked and not finite."""
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        vectors = self._vectors[:count]
        if source.dtype == np.int16:
            _read(source, rows, vectors.view(self._torch.int16).numpy())
            return vectors
        wide = self._wide[:count]
        if source.dtype == np.float16:
            _read(source, rows, self._read[:count].numpy())
            wide.copy_(self._read[:count])
        else:
            _read(source, rows, wide.numpy())
        if check:
            check_finite(wide.numpy(), source[rows])
        return vectors.copy_(wide)


def _read(source: NDArray[Any], rows: slice | NDArray[np.int64], out: NDArray[Any]) -> None:
    if isinstance(rows, slice) or source.dtype != out.dtype:
        out[:] = source[rows]
    else:
        np.take(source, rows, axis=0, out=out, mode="clip")


def has_fast_bfloat16(num_children: int, dim: int) -> bool:
    """Whether torch is loaded and multiplies bfloat16 faster than numpy multiplies float32, here: 2 ms of trying.

    Loading torch takes 1.4 s and 0.4 GB, as much time as a million windows and more memory, so that is left to others.
    """
    return "torch" in sys.modules and _is_faster(num_children, dim)


@lru_cache
def _is_faster(num_children: int, dim: int) -> bool:
    import torch

    vectors, centroids = np.ones((_ROWS_PER_PACK, dim), np.float32), np.ones((dim, num_children), np.float32)
    coarse_vectors, coarse_centroids = (torch.from_numpy(one).to(torch.bfloat16) for one in (vectors, centroids))
    own = _shortest(lambda: torch.mm(coarse_vectors, coarse_centroids))
    return own < _WORTHWHILE * _shortest(lambda: vectors @ centroids)


def _shortest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
