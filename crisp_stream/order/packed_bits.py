"""A set of whole numbers as one bit each, in which the n-th member is found without unpacking.

A selection of windows of a dataset of 500 million takes 62.5 MB, and as much again for the number of members before
each word of 64 bits, whatever share of them is selected; sorted ids would take 8 bytes for each of them. Bit b of word
w is number 64 · w + b. Bytes are looked up in tables, which numpy does as fast as it would count bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.storage.shared_arrays import SharedArrays

WORD_BITS = 64

_SLICE = 1 << 20
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BITS_IN_BYTE = _BITS.sum(axis=1).astype(np.uint8)
_PLACE_IN_BYTE = np.zeros((256, 8), np.uint8)
"""[byte, n]: place of the n-th set bit of a byte."""
for _byte in range(256):
    _PLACE_IN_BYTE[_byte, : _BITS_IN_BYTE[_byte]] = np.flatnonzero(_BITS[_byte])

Words = NDArray[np.uint64]
Int64s = NDArray[np.int64]


def num_words(length: int) -> int:
    """Words that hold so many bits."""
    return -(-length // WORD_BITS)


def pack(members: Int64s, length: int) -> Words:
    """[num_words(length)]: the bits of some numbers below `length`, in any order."""
    packed = np.zeros(num_words(length) * WORD_BITS // 8, np.uint8)
    for start in range(0, len(members), _SLICE):
        part = members[start : start + _SLICE]
        np.bitwise_or.at(packed, part >> 3, np.left_shift(np.uint8(1), (part & 7).astype(np.uint8)))
    return packed.view("<u8")


def unpack(words: Words, first: int, stop: int) -> NDArray[np.bool_]:
    """[stop - first]: whether each number from `first` on is a member."""
    start = first // 8
    bits = np.unpackbits(_bytes(words)[start : -(-stop // 8)], bitorder="little")
    return bits[first - 8 * start : stop - 8 * start].view(np.bool_)


def members(words: Words) -> Int64s:
    """All members in order."""
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(words), _SLICE):
        bits = np.unpackbits(_bytes(words[start : start + _SLICE]), bitorder="little")
        parts.append(np.flatnonzero(bits) + start * WORD_BITS)
    return np.concatenate(parts)


class PackedBits:
    """A set, with what it takes to find the n-th member."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]] | SharedArrays) -> None:
        """Args:
        arrays: made by `indexed`, or mapped from a file that processes share.
        """
        self._arrays = arrays

    @property
    def words(self) -> Words:
        """[num_words]"""
        return self._arrays["words"]

    @property
    def before(self) -> Int64s:
        """[num_words + 1], members before each word; the last entry counts all."""
        return self._arrays["before"]

    @property
    def num_members(self) -> int:
        """Number of members."""
        return int(self.before[-1])

    def rank(self, numbers: Int64s) -> Int64s:
        """Count the members smaller than each of some numbers, which are at most the length of the set."""
        word, bit = numbers // WORD_BITS, (numbers % WORD_BITS).astype(np.uint64)
        lower = self.words[np.minimum(word, len(self.words) - 1)] & ((np.uint64(1) << bit) - np.uint64(1))
        return self.before[word] + _BITS_IN_BYTE[_bytes(lower)].reshape(-1, 8).sum(axis=1, dtype=np.int64)

    def select(self, ranks: Int64s) -> Int64s:
        """The member at each of some ranks below `num_members`; a rank is the number of smaller members."""
        in_order = np.argsort(ranks)  # searching in order is six times as fast
        selected = np.empty(len(ranks), np.int64)
        selected[in_order] = self._select(ranks[in_order])
        return selected

    def _select(self, ranks: Int64s) -> Int64s:
        word = np.searchsorted(self.before, ranks, side="right") - 1
        in_bytes = _bytes(self.words[word]).reshape(-1, 8)
        ends = np.cumsum(_BITS_IN_BYTE[in_bytes], axis=1, dtype=np.int64)
        nth, rows = ranks - self.before[word], np.arange(len(word))
        at = np.argmax(ends > nth[:, None], axis=1)
        byte = in_bytes[rows, at]
        nth -= ends[rows, at] - _BITS_IN_BYTE[byte]
        return word * WORD_BITS + at * 8 + _PLACE_IN_BYTE[byte, nth]


def indexed(words: Words) -> dict[str, NDArray[Any]]:
    """The arrays of a set's bits: `words`, and `before`, members before each word."""
    before = np.zeros(len(words) + 1, np.int64)
    for start in range(0, len(words), _SLICE):
        part = words[start : start + _SLICE]
        before[start + 1 : start + len(part) + 1] = _BITS_IN_BYTE[_bytes(part)].reshape(-1, 8).sum(axis=1)
    return {"words": words, "before": np.cumsum(before, out=before)}


def _bytes(words: Words) -> NDArray[np.uint8]:
    return np.ascontiguousarray(words, "<u8").view(np.uint8)
