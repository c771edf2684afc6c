"""SplitMix64 against the published outputs of seed 0."""

from __future__ import annotations

import numpy as np

from crisp_stream.hashing import splitmix64

OUTPUTS = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
STEP = 0x9E3779B97F4A7C15


def test_the_outputs_of_seed_0_are_the_published_ones() -> None:
    states = np.array([count * STEP % 2**64 for count in range(3)], np.uint64)
    assert splitmix64(states).tolist() == list(OUTPUTS)
