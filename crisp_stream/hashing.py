"""SplitMix64, a cheap hash of integers, for whole arrays and for one number; and sha256 of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def splitmix64_finalise(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The bijective mixing step of SplitMix64, element by element."""
    with np.errstate(over="ignore"):
        mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


_WORD = (1 << 64) - 1


def uniform(number: int) -> float:
    """A hash of a document's number, uniform in [0, 1): the SplitMix64 finaliser."""
    mixed = number * 0x9E3779B97F4A7C15 & _WORD
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
    return (mixed ^ mixed >> 31) / 2**64


def file_sha256(path: Path) -> str:
    """Hash the content of a file; returns the hex digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
