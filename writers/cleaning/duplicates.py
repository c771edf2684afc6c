"""Exact duplicates: of the documents with the same text the first in document order is kept.

Each document is represented by the XXH3-128 of its UTF-8 bytes. Among 10^9 different texts two share one with
probability 10^-21, so texts are not compared again. (The hash is not cryptographic: a text made to collide with another
is dropped as its duplicate.) Documents are known by their place, one number that grows in document order.

Hashes are parted into ranges, and `Firsts` looks at those of one range alone, in document order: it holds the hashes of
the range that are different, and needs no other state. A set of all digests in memory would take 100 GB in Python for
10^9 documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.errors import InputError

BYTES_PER_HASH = {1: 128, 2: 160}
"""Memory that `Firsts` takes per hash that it expects, by its words, at worst, when most of them are repeats."""
_SMALLEST_CAPACITY = 1024
_CAPACITY_PER_EXPECTED = 1.25
_ROW_BITS = 40
MAX_FILES = 1 << (64 - _ROW_BITS)
"""Input files whose documents have places."""

PAIR = np.dtype([("place", "<u8"), ("first", "<u8")])
"""A document, and one before it that it repeats or may be like."""


def packed_places(files: NDArray[np.uint32], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The places of documents as one number each, in document order.

    Raises:
        InputError: more files than 2^24, or documents of a file than 2^40.
    """
    if len(files) and (int(files.max()) >= MAX_FILES or int(rows.max()) >= 1 << _ROW_BITS):
        raise InputError(
            f"dedup: at most {MAX_FILES:,} input files of {1 << _ROW_BITS:,} documents can be compared, got file "
            f"{int(files.max()):,} and row {int(rows.max()):,}. Join small files, or leave --dedup out."
        )
    return files.astype(np.uint64) << np.uint64(_ROW_BITS) | rows.astype(np.uint64)


def unpacked_places(places: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """File and row of each place."""
    mask = np.uint64((1 << _ROW_BITS) - 1)
    return (places >> np.uint64(_ROW_BITS)).astype(np.uint32), (places & mask).astype(np.int64)


def text_digests(texts: Sequence[str]) -> NDArray[np.uint64]:
    """The identity of each text.

    Returns:
        [num_texts, 2], the two words of XXH3-128 (seed 0) over the UTF-8 bytes, high word first.
    """
    digests = b"".join(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts)
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


def hash_ranges(hashes: NDArray[np.uint64], num_ranges: int) -> NDArray[np.int64]:
    """The range of each hash among `num_ranges` (at most 2^31) of about equal size."""
    return ((hashes >> np.uint64(32)) * np.uint64(num_ranges) >> np.uint64(32)).astype(np.int64)


class Firsts:
    """Hashes in document order; gives each one that occurred before together with its first occurrence.

    Frequent hashes do not fill the memory: when more than expected are gathered, repeats are let go.
    """

    def __init__(self, expected: int) -> None:
        """Expect about so many hashes."""
        self._capacity = max(int(_CAPACITY_PER_EXPECTED * expected), _SMALLEST_CAPACITY)
        self._gathered: list[NDArray[np.uint64]] = []
        self._num_gathered = 0

    def add(self, words: Sequence[NDArray[np.uint64]], places: NDArray[np.uint64]) -> NDArray[np.void]:
        """Take the next hashes, as their words, with their places, which are all after those taken before.

        Returns:
            [num_repeats] of PAIR, sorted; repeats among those taken so far that were not given yet, or none.
        """
        self._gathered.append(np.stack([*words, places]))
        self._num_gathered += len(places)
        if self._num_gathered <= self._capacity:
            return np.empty(0, PAIR)
        repeats = self.finish()
        self._capacity = max(self._capacity, int(_CAPACITY_PER_EXPECTED * self._num_gathered))
        return repeats

    def finish(self) -> NDArray[np.void]:
        """The repeats that were not given yet: [num_repeats] of PAIR, sorted."""
        if not self._gathered:
            return np.empty(0, PAIR)
        kept, repeats = _split_repeats(self._gathered)
        self._gathered.append(kept)
        self._num_gathered = kept.shape[1]
        return repeats


def _split_repeats(gathered: list[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """Empty the list and part its entries (rows: words of the hash, last the place) into first ones and repeats."""
    entries = np.concatenate(gathered, axis=1)
    gathered.clear()
    order = np.argsort(entries[0])
    ordered = entries[0][order]
    same = ordered[1:] == ordered[:-1]
    del ordered
    shared = np.zeros(len(order), np.bool_)
    shared[1:] |= same
    shared[:-1] |= same
    # Only entries that share their first word are sorted in full: by words, then by place.
    candidates = order[shared]
    del order
    if not len(candidates):
        return entries, np.empty(0, PAIR)
    members = entries[:, candidates]
    ranks = np.lexsort((members[-1], *members[:-1]))
    members = members[:, ranks]
    begins = np.ones(len(candidates), np.bool_)
    begins[1:] = np.any(members[:-1, 1:] != members[:-1, :-1], axis=0)
    leaders = members[-1][begins][np.cumsum(begins) - 1]
    repeats = np.empty(int(np.count_nonzero(~begins)), PAIR)
    repeats["place"], repeats["first"] = members[-1][~begins], leaders[~begins]
    keep = np.ones(entries.shape[1], np.bool_)
    keep[candidates[ranks[~begins]]] = False
    return entries[:, keep], repeats[np.argsort(repeats["place"])]
