"""The draws of a block: the row of the cluster table at each of its places. Pure: nothing is kept between calls.

FORMAT.md, "Sample order", is the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order.draws import Int64s, PhasePlan, Rows, block_offsets, random_bits, uniforms

Draw = Literal["systematic", "multinomial"]


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Seed and sizes of the blocks, which with a phase's proportions say everything about their draws."""

    seed: int
    draw: Draw
    """How a block's draws are shared among the leaves."""
    block_samples: int
    """Draws of a whole block."""
    num_lanes: int
    """Lanes of a block: 1 where draws are multinomial."""

    @cached_property
    def lane_of_interval(self) -> Int64s:
        """[num_lanes], the lane that has each of the equal intervals of the CDF, in leaf order."""
        return np.argsort(np.argsort(random_bits(self.seed, "lanes", count=self.num_lanes), kind="stable"))

    def rows_of_places(self, phase: PhasePlan, block: int) -> Rows:
        """[draws of the block]: the row of the cluster table drawn at each place of a block of a phase."""
        draws = phase.draws_of_block(block, self.block_samples)
        if self.draw == "multinomial":
            bits = random_bits(self.seed, "multinomial", phase=phase.number, block=block, count=draws)
            return phase.rows[np.searchsorted(phase.cdf, uniforms(bits), side="right")]
        offset = int(block_offsets(self.seed, phase.number, block, block + 1)[0])
        entries = phase.entries_of_draws(draws, offset)
        entry_of_place = np.empty(draws, np.int64)
        start = 0
        for lane in self.lane_of_interval.tolist():
            of_lane = entries[start : start + (draws - lane + self.num_lanes - 1) // self.num_lanes]
            bits = random_bits(self.seed, "spread", phase=phase.number, block=block, lane=lane, count=len(of_lane))
            entry_of_place[lane :: self.num_lanes] = of_lane[_spread(of_lane, uniforms(bits))]
            start += len(of_lane)
        return phase.rows[entry_of_place]

    def drawn_before_block(self, phase: PhasePlan, block: int, rows: Rows) -> Int64s:
        """[len(rows)]: systematic draws of some rows in a phase before one of its blocks."""
        entries, has_entry = phase.entries_of(rows)
        counts = np.zeros(len(rows), np.int64)
        counts[has_entry] = self._drawn_in_whole_blocks(phase, entries[has_entry], block)
        return counts

    def drawn_in_phase(self, phase: PhasePlan, rows: Rows) -> Int64s:
        """[len(rows)]: systematic draws of some rows over a whole phase."""
        assert phase.served is not None
        blocks, rest = divmod(phase.served, self.block_samples)
        entries, has_entry = phase.entries_of(rows)
        counts = np.zeros(len(rows), np.int64)
        counts[has_entry] = self._drawn_in_whole_blocks(phase, entries[has_entry], blocks)
        if rest == phase.draws_of_block(blocks, self.block_samples):
            offset = block_offsets(self.seed, phase.number, blocks, blocks + 1)
            counts[has_entry] += phase.draws_in_blocks(entries[has_entry], rest, offset)
        elif rest:  # cut short while running
            served, times = np.unique(self.rows_of_places(phase, blocks)[:rest], return_counts=True)
            at = np.minimum(np.searchsorted(served, rows), len(served) - 1)
            counts += np.where(served[at] == rows, times[at], 0)
        return counts

    def _drawn_in_whole_blocks(self, phase: PhasePlan, entries: Int64s, blocks: int) -> Int64s:
        offsets = np.sort(block_offsets(self.seed, phase.number, 0, blocks))
        return phase.draws_in_blocks(entries, self.block_samples, offsets)


def _spread(entries: Int64s, noise: NDArray[np.float64]) -> Int64s:
    """The order of a lane's draws: the j-th of an entry's n draws has the key (j + noise) / n."""
    if not len(entries):
        return np.empty(0, np.int64)
    first = np.flatnonzero(np.diff(entries, prepend=entries[0] - 1))
    times = np.diff(first, append=len(entries))
    nth = np.arange(len(entries)) - np.repeat(first, times)
    return np.argsort((nth + noise) / np.repeat(times, times), kind="stable")
