"""SplitMix64, a cheap hash of integers, for whole arrays; and sha256 of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def splitmix64_finalise(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all, element by element: the finaliser of SplitMix64, a bijection."""
    with np.errstate(over="ignore"):
        mixed = (values ^ (values >> np.uint64(30))) * np.uint64(_FACTORS[0])
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_FACTORS[1])
    return mixed ^ (mixed >> np.uint64(31))


def splitmix64(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Compute the number that SplitMix64 gives next in each of these states."""
    return splitmix64_finalise(states + np.uint64(_STEP))


def file_sha256(path: Path) -> str:
    """Hash the content of a file; returns the hex digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
