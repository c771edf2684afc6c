"""The sample order, version 1: position in the training stream -> window id.

A pure function of (windows per leaf, leaf proportions of each phase, seed, position); no I/O, no shared state, no
array as long as an epoch. Any process computes any positions by itself. FORMAT.md, "Sample order", is the contract.

A phase is cut into blocks of 2^18 draws. How many of a block's draws fall in each leaf is a systematic sample of the
proportions' CDF. The blocks' offsets are a Weyl sequence (seeded start, golden-ratio steps), not independent
uniforms: each is uniform, so the draws are unbiased, but together they are evenly spaced, so a leaf's surplus in one
block is paid back in the next: after B blocks its draws are within O(log B) of its share instead of O(sqrt B). And
because the offsets need no memory, the draws of any number of blocks are counted in one vectorised step, which is
what makes resuming fast. All counting is exact, in 44-bit fixed point; floating point would round differently in the
two ways of counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
BLOCK_SAMPLES = 1 << 18
NUM_LANES = 64

_FRACTION_BITS = 44  # 18 bits of draws + 44 bits of fraction fit in int64
_ONE = 1 << _FRACTION_BITS
_GOLDEN_STEP = 10_872_568_911_861  # the odd number next to 2^44 / golden ratio: odd gives the full period
_PURPOSES = {"offset": 1, "lanes": 2, "spread": 3, "multinomial": 4, "start": 5}

Int64s = NDArray[np.int64]


def random_bits(
    seed: int, purpose: str, *, phase: int = 0, block: int = 0, lane: int = 0, count: int
) -> NDArray[np.uint64]:
    """`count` random 64-bit words of the Philox stream that belongs to (seed, purpose, phase, block, lane)."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, _PURPOSES[purpose]], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, lane, block, phase], np.uint64)).random_raw(count)


def uniforms(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random words as float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix64_finalise(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The bijective mixing step of SplitMix64, element by element."""
    with np.errstate(over="ignore"):
        mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def leaf_starts(seed: int, leaves: Int64s, windows_per_leaf: Int64s) -> Int64s:
    """The window of each leaf that is drawn first: the SplitMix64 finaliser of (seed, leaf), modulo the leaf's
    windows."""
    with np.errstate(over="ignore"):
        salted = leaves.astype(np.uint64) + random_bits(seed, "start", count=1)[0]
    return (splitmix64_finalise(salted) % windows_per_leaf.astype(np.uint64)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase, restricted to the leaves that have mass."""

    rows: Int64s
    """[num_drawn_leaves], their rows in the cluster table."""
    cdf: NDArray[np.float64]
    """[num_drawn_leaves], cumulative proportions, ending at exactly 1."""
    first_sample: int
    """Position of the phase's first sample."""
    num_samples: int | None
    """None: open-ended."""

    @classmethod
    def of(cls, proportions: NDArray[np.float64], first_sample: int, num_samples: int | None) -> PhasePlan:
        """From [num_leaves] proportions; the sum is normalised in order, so that it is the same on every machine."""
        rows = np.flatnonzero(proportions > 0)
        cumulative = np.cumsum(proportions[rows], dtype=np.float64)
        return cls(rows=rows, cdf=cumulative / cumulative[-1], first_sample=first_sample, num_samples=num_samples)

    def draws_of_block(self, block: int, block_samples: int) -> int:
        """Samples in a block: `block_samples`, or what is left of the phase."""
        left = block_samples if self.num_samples is None else self.num_samples - block * block_samples
        return max(0, min(block_samples, left))


def fixed_point_cdf(cdf: NDArray[np.float64], draws: int) -> Int64s:
    """[num_drawn_leaves + 1]: draws x CDF with 44 fractional bits, starting at 0 and ending at exactly `draws`."""
    edges = np.zeros(len(cdf) + 1, np.int64)
    edges[1:] = np.floor(cdf * float(draws * _ONE)).astype(np.int64)
    edges[-1] = draws * _ONE
    return edges


def block_offsets(seed: int, phase: int, blocks: Int64s) -> Int64s:
    """The systematic offset of each block, in [0, 1) with 44 fractional bits."""
    start = int(random_bits(seed, "offset", phase=phase, count=1)[0]) >> (64 - _FRACTION_BITS)
    # Python-int arithmetic modulo 2^44: block numbers times the step would overflow int64.
    return np.array([(start + int(block) * _GOLDEN_STEP) % _ONE for block in blocks], np.int64)


def systematic_edges(cdf: NDArray[np.float64], draws: int, offset: int) -> Int64s:
    """[num_drawn_leaves + 1]: leaf l gets the draws edges[l] <= d < edges[l + 1] of a block, in leaf order."""
    return (fixed_point_cdf(cdf, draws) + offset) >> _FRACTION_BITS


def systematic_totals(cdf: NDArray[np.float64], draws: int, offsets: Int64s) -> Int64s:
    """Draws per leaf over several blocks of equal size, equal to summing the blocks one by one.

    sum over blocks of floor(x + u_b) = B * floor(x) + #{b : u_b >= 1 - frac(x)}, at both edges of each leaf.
    """
    if not len(offsets):
        return np.zeros(len(cdf), np.int64)
    edges = fixed_point_cdf(cdf, draws)
    needed = _ONE - (edges & (_ONE - 1))
    carried = len(offsets) - np.searchsorted(np.sort(offsets), needed, side="left")
    return np.diff(len(offsets) * (edges >> _FRACTION_BITS) + carried)


def lane_samples(draws: int, num_lanes: int) -> Int64s:
    """[num_lanes]: slots of each lane; position i of a block is slot i // num_lanes of lane i mod num_lanes."""
    return (draws - np.arange(num_lanes) + num_lanes - 1) // num_lanes


class SampleOrder:
    """Window ids by position. Walking forward is incremental; jumping costs O(leaves) (systematic draws)."""

    def __init__(
        self,
        leaves: Int64s,
        windows_per_leaf: Int64s,
        phases: list[tuple[NDArray[np.float64], int | None]],
        *,
        seed: int,
        draw: Literal["systematic", "multinomial"] = "systematic",
        block_samples: int = BLOCK_SAMPLES,
        num_lanes: int = NUM_LANES,
    ) -> None:
        """Args:
        leaves: [num_leaves], sorted ids of the non-empty leaves.
        windows_per_leaf: [num_leaves], at least 1 each.
        phases: (proportions [num_leaves], samples or None) in order; only the last may have None.
        seed: of the order; another seed gives another order with the same guarantees.
        draw: how a block's draws are shared among the leaves.
        block_samples: draws per block, at most 2^18. Part of the contract; smaller only in tests.
        num_lanes: lanes per block. Part of the contract.
        """
        if not 1 <= block_samples <= BLOCK_SAMPLES:
            raise ValueError(f"block_samples must be 1 to {BLOCK_SAMPLES}, got {block_samples}")
        self._leaves = np.asarray(leaves, np.int64)
        self._windows_per_leaf = np.asarray(windows_per_leaf, np.int64)
        self._first_window = np.cumsum(self._windows_per_leaf) - self._windows_per_leaf
        self._seed, self._draw, self._block_samples = seed, draw, block_samples
        self._num_lanes = 1 if draw == "multinomial" else num_lanes
        self.phases: list[PhasePlan] = []
        first_sample = 0
        for proportions, num_samples in phases:
            self.phases.append(PhasePlan.of(proportions, first_sample, num_samples))
            first_sample += num_samples or 0
        self.num_samples = None if phases[-1][1] is None else first_sample
        self._interval_of_lane = np.argsort(random_bits(seed, "lanes", count=self._num_lanes), kind="stable")
        self._block: _Block | None = None

    def window_ids(self, positions: Int64s) -> Int64s:
        """The windows at some positions.

        Args:
            positions: [num_positions], any order (ascending is fastest), each below `num_samples`.
        """
        ids = np.empty(len(positions), np.int64)
        phase_starts = np.array([phase.first_sample for phase in self.phases], np.int64)
        phase_of = np.searchsorted(phase_starts, positions, side="right") - 1
        within = positions - phase_starts[phase_of]
        block_of = within // self._block_samples
        for number in np.unique(phase_of):
            for block in np.unique(block_of[phase_of == number]):
                here = (phase_of == number) & (block_of == block)
                ids[here] = self._windows_of_block(int(number), int(block), within[here] - block * self._block_samples)
        return ids

    def cursors(self, phase: int, block: int) -> Int64s:
        """[num_leaves]: draws of each leaf before a block, over all earlier phases and blocks."""
        totals = np.zeros(len(self._leaves), np.int64)
        for number, plan in enumerate(self.phases[: phase + 1]):
            if number == phase:
                full_blocks, rest = block, 0
            else:
                assert plan.num_samples is not None
                full_blocks, rest = divmod(plan.num_samples, self._block_samples)
            totals[plan.rows] += self._draws_of_blocks(number, full_blocks, rest)
        return totals

    def _draws_of_blocks(self, phase: int, full_blocks: int, rest: int) -> Int64s:
        plan = self.phases[phase]
        if self._draw == "multinomial":
            totals = np.zeros(len(plan.rows), np.int64)
            for block in range(full_blocks + (rest > 0)):
                draws = plan.draws_of_block(block, self._block_samples)
                totals += np.bincount(self._multinomial_draws(phase, block, draws), minlength=len(plan.rows))
            return totals
        offsets = block_offsets(self._seed, phase, np.arange(full_blocks + 1))
        totals = systematic_totals(plan.cdf, self._block_samples, offsets[:-1])
        if rest:
            totals += np.diff(systematic_edges(plan.cdf, rest, int(offsets[-1])))
        return totals

    def _multinomial_draws(self, phase: int, block: int, draws: int) -> Int64s:
        bits = random_bits(self._seed, "multinomial", phase=phase, block=block, count=draws)
        return np.searchsorted(self.phases[phase].cdf, uniforms(bits), side="right")

    def _windows_of_block(self, phase: int, block: int, places: Int64s) -> Int64s:
        current = self._block
        if current is None or (current.phase, current.number) != (phase, block):
            if current is not None and (current.phase, current.number + 1) == (phase, block):
                cursors = current.cursors + current.draws_per_row
            else:
                cursors = self.cursors(phase, block)[self.phases[phase].rows]
            current = self._block = self._open_block(phase, block, cursors)
        lane_of, slot_of = places % self._num_lanes, places // self._num_lanes
        ids = np.empty(len(places), np.int64)
        for lane in np.unique(lane_of):
            if lane not in current.windows_of_lane:
                current.windows_of_lane[lane] = self._lane_windows(current, int(lane))
            here = lane_of == lane
            ids[here] = current.windows_of_lane[lane][slot_of[here]]
        return ids

    def _open_block(self, phase: int, block: int, cursors: Int64s) -> _Block:
        plan = self.phases[phase]
        draws = plan.draws_of_block(block, self._block_samples)
        drawn_rows = None
        if self._draw == "multinomial":
            drawn_rows = self._multinomial_draws(phase, block, draws)
            counts = np.bincount(drawn_rows, minlength=len(plan.rows))
            edges = np.concatenate([[0], np.cumsum(counts)])
        else:
            edges = systematic_edges(plan.cdf, draws, int(block_offsets(self._seed, phase, np.array([block]))[0]))
        slots = lane_samples(draws, self._num_lanes)
        slots_of_interval = np.empty_like(slots)
        slots_of_interval[self._interval_of_lane] = slots
        interval_edges = np.concatenate([[0], np.cumsum(slots_of_interval)])
        return _Block(phase, block, edges, interval_edges, cursors, drawn_rows, {})

    def _lane_windows(self, block: _Block, lane: int) -> Int64s:
        if block.drawn_rows is not None:
            order = np.argsort(block.drawn_rows, kind="stable")
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order)) - block.edges[block.drawn_rows[order]]
            return self._nth_windows(block, block.drawn_rows, rank)
        interval = self._interval_of_lane[lane]
        start, stop = int(block.interval_edges[interval]), int(block.interval_edges[interval + 1])
        if start == stop:
            return np.empty(0, np.int64)
        low = int(np.searchsorted(block.edges, start, side="right")) - 1
        high = int(np.searchsorted(block.edges, stop, side="left"))
        edges = np.clip(block.edges[low : high + 1], start, stop)
        per_leaf = np.diff(edges)
        rows = np.repeat(np.arange(low, high), per_leaf)
        nth = np.arange(start, stop) - np.repeat(edges[:-1], per_leaf)
        bits = random_bits(self._seed, "spread", phase=block.phase, block=block.number, lane=lane, count=stop - start)
        keys = (nth + uniforms(bits)) / np.repeat(per_leaf, per_leaf)
        order = np.argsort(keys, kind="stable")
        return self._nth_windows(block, rows[order], (np.arange(start, stop) - block.edges[rows])[order])

    def _nth_windows(self, block: _Block, rows: Int64s, nth_of_block: Int64s) -> Int64s:
        """The window that is the nth draw of its leaf in this block: stored order, from a seeded start, cyclically."""
        table_rows = self.phases[block.phase].rows[rows]
        windows = self._windows_per_leaf[table_rows]
        start = leaf_starts(self._seed, self._leaves[table_rows], windows)
        return self._first_window[table_rows] + (start + block.cursors[rows] + nth_of_block) % windows


@dataclass
class _Block:
    """The block being walked, with the lanes computed so far."""

    phase: int
    number: int
    edges: Int64s
    interval_edges: Int64s
    cursors: Int64s
    drawn_rows: Int64s | None
    windows_of_lane: dict[int, Int64s]

    @property
    def draws_per_row(self) -> Int64s:
        return np.diff(self.edges)
