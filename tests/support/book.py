"""The sample order by the words of FORMAT.md, one draw at a time: a second implementation, for tests."""

from __future__ import annotations

import numpy as np

from crisp_stream.order.blocks import Blocks


def words(seed: int, purpose: int, count: int, *, block: int = 0, phase: int = 0) -> list[int]:
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, 0, block, phase], np.uint64)
    return [int(word) for word in np.random.Philox(key=key, counter=counter).random_raw(count)]


def splitmix64(value: int) -> int:
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def order_by_the_book(leaves: list[int], windows: list[int], phases: list, blocks: Blocks) -> list[int]:
    """FORMAT.md, "Sample order", steps 1 to 5, one draw at a time."""
    seed, lanes = blocks.seed, blocks.num_lanes
    drawn, ids = [0] * len(leaves), []
    lane_words = words(seed, 2, lanes)
    interval_of_lane = sorted(range(lanes), key=lane_words.__getitem__)
    begun = 0
    for proportions, num_samples in phases:
        rows = [row for row, p in enumerate(proportions) if p > 0]
        cdf, total = [], 0.0
        for row in rows:
            total += float(proportions[row])
            cdf.append(total)
        cdf = [value / total for value in cdf]
        start = words(seed, 1, 1, phase=begun)[0] >> 20
        num_first = blocks.block_samples // blocks.first_block_samples
        bits = num_first.bit_length() - 1
        block = served = 0
        while served < num_samples:
            m = blocks.first_block_samples if served < blocks.block_samples else blocks.block_samples
            if block < num_first:
                backwards = int(f"{block:0{bits}b}"[::-1], 2) if bits else 0
                u = (start + backwards * 2 ** (44 - bits)) % 2**44
            else:
                u = (start * num_first + (block - num_first + 1) * 10872568911861) % 2**44
            edges = [0, *(int(np.floor(value * float(m * 2**44))) for value in cdf)]
            edges[-1] = m * 2**44
            edges = [(edge + u) >> 44 for edge in edges]
            draws = [row for i, row in enumerate(rows) for _ in range(edges[i + 1] - edges[i])]
            noise = [(word >> 11) * 2.0**-53 for word in words(seed, 3, m, block=block, phase=begun)]
            slots = m // lanes
            of_lane = []
            for lane in range(lanes):
                first = interval_of_lane[lane] * slots
                own = draws[first : first + slots]
                keys = [(i - own.index(row) + noise[first + i]) / own.count(row) for i, row in enumerate(own)]
                of_lane.append([own[i] for i in sorted(range(slots), key=keys.__getitem__)])
            for i in range(min(m, num_samples - served)):
                row = of_lane[i % lanes][i // lanes]
                begin = splitmix64((leaves[row] + words(seed, 5, 1)[0]) % 2**64) % windows[row]
                ids.append(sum(windows[:row]) + (begin + drawn[row]) % windows[row])
                drawn[row] += 1
            served, block = served + m, block + 1
        begun += num_samples
    return ids
