"""The sort key of a window: its leaf, then a seeded hash that orders the windows of a leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.hashing import splitmix64

HASH_BITS = 40
"""A key is leaf << 40 | hash; leaf ids have at most 24 bits."""
KEY_END = 1 << 64


def window_keys(leaves: NDArray[Any], places: NDArray[np.uint32], seed: int) -> NDArray[np.uint64]:
    """Order of windows in a dataset: by leaf, and inside a leaf by a uniform 40-bit hash of (part, place).

    Args:
        leaves: [num_windows], leaf ids.
        places: [num_windows, 2], part and place in the part.
        seed: another seed gives an unrelated order.

    Returns:
        [num_windows], leaf << 40 | hash.
    """
    return leaves.astype(np.uint64) << np.uint64(HASH_BITS) | window_hashes(places, seed)


def window_hashes(places: NDArray[np.uint32], seed: int) -> NDArray[np.uint64]:
    """A uniform 40-bit hash of (part, place) of each window; places as for `window_keys`."""
    identity = places[:, 0].astype(np.uint64) << np.uint64(32) | places[:, 1].astype(np.uint64)
    salt = splitmix64(np.array([seed % KEY_END], np.uint64))
    return splitmix64(identity ^ salt) >> np.uint64(64 - HASH_BITS)
