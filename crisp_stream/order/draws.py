"""Which leaf each draw of a block falls in: a systematic sample of the proportions' CDF, counted exactly.

The blocks' offsets are a seeded start and even steps (golden-ratio steps, a Weyl sequence, from block to block), not
independent uniforms: each is uniform, so the draws are unbiased, but together they are evenly spaced, so a leaf's
surplus in one block is paid back in the next: after B blocks its draws are within O(log B) of its share instead of
O(sqrt B). And because the offsets need no memory, the draws of any number of blocks are counted in one vectorised step,
for just the leaves of interest. All counting is in 44-bit fixed point; floating point would round differently in
different ways of counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.hashing import splitmix64_finalise

_FRACTION_BITS = 44  # 18 bits of draws + 44 bits of fraction fit in int64
_ONE = 1 << _FRACTION_BITS
_GOLDEN_STEP = 10_872_568_911_861  # the odd number next to 2^44 / golden ratio: odd gives the full period
_PURPOSES = {"offset": 1, "lanes": 2, "spread": 3, "multinomial": 4, "start": 5}

Int64s = NDArray[np.int64]
Rows = NDArray[np.integer[Any]]
"""Rows of the table that is drawn from, or leaf ids: any integers."""


def random_bits(seed: int, purpose: str, *, phase: int = 0, block: int = 0, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words of the Philox stream of a seed and purpose, in a block of the phase that begins at
    sample `phase`."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, _PURPOSES[purpose]], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, block, phase], np.uint64)).random_raw(count)


def uniforms(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random words as float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def leaf_starts(seed: int, keys: NDArray[np.integer[Any]], windows_per_leaf: Int64s) -> Int64s:
    """The window of each leaf that is drawn first: the SplitMix64 finaliser of (seed, key of the leaf), modulo the
    leaf's windows."""
    with np.errstate(over="ignore"):
        salted = keys.astype(np.uint64) + random_bits(seed, "start", count=1)[0]
    return (splitmix64_finalise(salted) % windows_per_leaf.astype(np.uint64)).astype(np.int64)


def block_offsets(seed: int, phase: int, first: int, stop: int, *, num_first: int) -> Int64s:
    """[stop - first]: the systematic offsets of blocks first … stop - 1 of the phase that begins at sample `phase`, in
    [0, 1) with 44 fractional bits.

    Those of the first blocks (`num_first`, a power of two) are evenly spaced, in bit-reversed order: together their
    draws are those of one large block, and so are those of every first half, quarter, …
    """
    start = random_bits(seed, "offset", phase=phase, count=1)[0] >> np.uint64(64 - _FRACTION_BITS)
    blocks = np.arange(first, stop, dtype=np.uint64)
    bits = num_first.bit_length() - 1
    reversed_bits = np.zeros(len(blocks), np.uint64)
    for bit in range(bits):
        reversed_bits |= (blocks >> np.uint64(bit) & np.uint64(1)) << np.uint64(bits - 1 - bit)
    with np.errstate(over="ignore"):  # 2^44 divides 2^64, so wrapping does no harm
        small = start + (reversed_bits << np.uint64(_FRACTION_BITS - bits))
        large = start * np.uint64(num_first) + (blocks - np.uint64(num_first - 1)) * np.uint64(_GOLDEN_STEP)
    return (np.where(blocks < num_first, small, large) & np.uint64(_ONE - 1)).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class LeafShares:
    """Proportions, restricted to the leaves that have mass. An entry is an index into these leaves."""

    rows: Rows
    """[num_entries], their rows in the table, increasing."""
    cdf: NDArray[np.float64]
    """[num_entries], cumulative proportions, ending at exactly 1."""

    @classmethod
    def of(cls, proportions: NDArray[np.float64], *, first_row: int = 0) -> LeafShares:
        """From [num_rows] proportions of the rows from `first_row` on; the sum is normalised in order, so that it is
        the same on every machine."""
        rows = np.flatnonzero(proportions > 0).astype(np.uint32)
        cumulative = np.cumsum(proportions[rows], dtype=np.float64)
        cumulative /= cumulative[-1]
        return cls(rows=rows + np.uint32(first_row) if first_row else rows, cdf=cumulative)

    def entries_of(self, rows: Rows) -> tuple[Int64s, NDArray[np.bool_]]:
        """The entry of each row of the table, and whether it has one."""
        entries = np.searchsorted(self.rows, rows)
        entries[entries == len(self.rows)] = 0
        return entries, self.rows[entries] == rows

    def drawn_before_end(self, entries: Int64s, draws: int, offset: int) -> Int64s:
        """Count the draws of a block that fall in the entries up to and with each of these.

        Entry l gets the draws d of the block, counted in leaf order, with
        drawn_before_end(l - 1) <= d < drawn_before_end(l).
        """
        return (self._ends(entries, draws) + offset) >> _FRACTION_BITS

    def entries_of_draws(self, draws: int, offset: int) -> Int64s:
        """[draws]: the entry in which each draw of a block falls, in leaf order."""
        wanted = np.arange(draws)
        entries = np.searchsorted(self.cdf, (wanted + 1 - offset / _ONE) / draws)  # right up to rounding
        np.minimum(entries, len(self.cdf) - 1, out=entries)
        while len(low := np.flatnonzero(self.drawn_before_end(entries, draws, offset) <= wanted)):
            entries[low] += 1
        while len(high := np.flatnonzero(self.drawn_before_end(entries - 1, draws, offset) > wanted)):
            entries[high] -= 1
        return entries

    def draws_in_blocks(self, entries: Int64s, draws: int, sorted_offsets: Int64s) -> Int64s:
        """Draws of each entry over several blocks of equal size, equal to summing the blocks one by one.

        sum over blocks of floor(x + u_b) = B * floor(x) + #{b : u_b >= 1 - frac(x)}, at both edges of each entry.
        """

        def drawn_before(ends: Int64s) -> Int64s:
            carried = np.searchsorted(sorted_offsets, _ONE - (ends & (_ONE - 1)), side="left")
            return len(sorted_offsets) * (ends >> _FRACTION_BITS) + (len(sorted_offsets) - carried)

        return drawn_before(self._ends(entries, draws)) - drawn_before(self._ends(entries - 1, draws))

    def _ends(self, entries: Int64s, draws: int) -> Int64s:
        """draws x CDF at the end of each entry, with 44 fractional bits; entry -1 ends at 0."""
        ends = np.floor(self.cdf[entries] * float(draws * _ONE)).astype(np.int64)
        return np.where(entries < 0, 0, ends)
