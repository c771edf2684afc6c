"""Blocks: the leaves that a phase draws, in the order of its samples. Pure: nothing is kept between calls.

FORMAT.md, "Sample order", is the contract. A phase is cut into blocks from its first sample on, small ones at first, in
one way only, however long it lasts. So a phase can end, and another one begin, at any sample: what was drawn before
does not depend on it. The small blocks keep what that costs small: a phase of one batch opens 4,096 draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.draws import Int64s, LeafShares, Rows, block_offsets, random_bits, uniforms

Draw = Literal["systematic", "multinomial"]

FIRST_BLOCK_SAMPLES = 1 << 12
BLOCK_SAMPLES = 1 << 18
NUM_LANES = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderPhase:
    """A stretch of the stream with one mixture. Its first sample is its name: random words depend on it."""

    shares: Callable[[], LeafShares]
    """Function that gives the proportions, so that a stream of thousands of phases need not hold them all."""
    first_sample: int = 0
    """Position of its first sample."""
    num_samples: int | None = None
    """Samples that it has, at least 1; None: open-ended."""
    parts: frozenset[int] = frozenset()
    """Window selections that it draws from, as parts of the order's table."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Seed and sizes of the blocks, which with a phase's proportions say everything about their draws."""

    seed: int
    draw: Draw = "systematic"
    """How a block's draws are shared among the leaves."""
    first_block_samples: int = FIRST_BLOCK_SAMPLES
    """Draws of each of a phase's first blocks, until they make up `block_samples`."""
    block_samples: int = BLOCK_SAMPLES
    """Draws of every later block."""
    num_lanes: int = NUM_LANES
    """Lanes of a block."""

    def __post_init__(self) -> None:
        if not 1 <= self.block_samples <= BLOCK_SAMPLES:
            raise ValueError(f"block_samples must be 1 to {BLOCK_SAMPLES}, got {self.block_samples}")

    @property
    def num_first(self) -> int:
        """Number of small blocks at the beginning of a phase."""
        return self.block_samples // self.first_block_samples

    @cached_property
    def interval_of_lane(self) -> Int64s:
        """[num_lanes], which of the equal intervals of the CDF, in leaf order, each lane has."""
        return np.argsort(random_bits(self.seed, "lanes", count=self.num_lanes), kind="stable")

    def holding(self, sample: int) -> tuple[int, int]:
        """The block that holds a sample of a phase, and the samples of the block before it."""
        if sample < self.block_samples:
            return divmod(sample, self.first_block_samples)
        number, rest = divmod(sample, self.block_samples)
        return number - 1 + self.num_first, rest

    def first_sample(self, block: int) -> int:
        """The sample of the phase with which a block begins."""
        if block < self.num_first:
            return block * self.first_block_samples
        return (block - self.num_first + 1) * self.block_samples

    def num_draws(self, block: int) -> int:
        """Draws of a block."""
        return self.first_block_samples if block < self.num_first else self.block_samples

    def rows_of_places(self, phase: OrderPhase, block: int) -> Rows:
        """[num_draws]: the row of the table drawn at each place of a block of a phase."""
        shares, draws = phase.shares(), self.num_draws(block)
        if self.draw == "multinomial":
            bits = random_bits(self.seed, "multinomial", phase=phase.first_sample, block=block, count=draws)
            return shares.rows[np.searchsorted(shares.cdf, uniforms(bits), side="right")]
        offset = int(self._offsets(phase, block, block + 1)[0])
        bits = random_bits(self.seed, "spread", phase=phase.first_sample, block=block, count=draws)
        entries = shares.entries_of_draws(draws, offset).reshape(self.num_lanes, -1)
        spread = np.take_along_axis(entries, _spread(entries, uniforms(bits)), axis=1)
        return shares.rows[spread[self.interval_of_lane].T.ravel()]

    def drawn(self, phase: OrderPhase, block: int, rows: Rows) -> Int64s:
        """[len(rows)]: systematic draws of some rows in a phase before one of its blocks."""
        counts = np.zeros(len(rows), np.int64)
        if not block:
            return counts
        shares = phase.shares()
        entries, has_entry = shares.entries_of(rows)
        entries = entries[has_entry]
        offsets = self._offsets(phase, 0, block)
        small, large = offsets[: self.num_first], offsets[self.num_first :]
        counts[has_entry] = shares.draws_in_blocks(entries, self.first_block_samples, np.sort(small))
        if len(large):
            counts[has_entry] += shares.draws_in_blocks(entries, self.block_samples, np.sort(large))
        return counts

    def _offsets(self, phase: OrderPhase, first: int, stop: int) -> Int64s:
        return block_offsets(self.seed, phase.first_sample, first, stop, num_first=self.num_first)


def _spread(entries: Int64s, noise: NDArray[np.float64]) -> Int64s:
    """[num_lanes, slots]: the order of each lane's draws, whose entries increase: the j-th of an entry's n draws has
    the key (j + noise) / n."""
    begins = np.ones(entries.shape, bool)
    begins[:, 1:] = entries[:, 1:] != entries[:, :-1]
    first = np.flatnonzero(begins)
    times = np.diff(first, append=entries.size)
    nth = np.arange(entries.size) - np.repeat(first, times)
    keys = (nth + noise) / np.repeat(times, times)
    return np.argsort(keys.reshape(entries.shape), axis=1, kind="stable")
