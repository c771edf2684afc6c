"""Exact duplicates: of the documents with the same text the first in document order is kept.

Each document is represented by the XXH3-128 of its UTF-8 bytes, 16 bytes on disk. Among 10^9 different texts two share
one with probability 10^-21, so texts are not compared again. (The hash is not cryptographic: a text made to collide
with another is dropped as its duplicate.)

Duplicates are found in passes over ranges of the first digest word. A pass reads all digests in document order, keeps
those of its range, sorts them, and needs no other state; passes are independent and may run in different processes.
10^9 documents are 16 GB of digests; with 8 GB of memory they take 16 passes, which read 256 GB in sequence. A set of
digests in memory would take 100 GB in Python; scattering the digests by range first reads less and writes as much
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.writers.cleaning.array_files import ArrayFiles

BYTES_PER_ENTRY = 128
"""Memory that a pass takes per document of its range at worst, when half of them are duplicates."""
SMALLEST_MEMORY_BYTES = 8 << 20
_SMALLEST_CAPACITY = 1024
_CAPACITY_PER_MEAN = 1.25

Removals = NDArray[np.int64]
"""[num_removed, 2]: document number, and the number of the kept document."""
_NO_REMOVALS: Removals = np.zeros((0, 2), np.int64)


def text_digests(texts: Sequence[str]) -> NDArray[np.uint64]:
    """The identity of each text.

    Returns:
        [num_texts, 2], the two words of XXH3-128 (seed 0) over the UTF-8 bytes, high word first.
    """
    digests = b"".join(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts)
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


def num_passes(num_documents: int, memory_bytes: int) -> int:
    """Passes that keep the memory of each within `memory_bytes`.

    Raises:
        InputError: memory below 8 MB.
    """
    if memory_bytes < SMALLEST_MEMORY_BYTES:
        raise InputError(
            f"memory_bytes: must be at least {SMALLEST_MEMORY_BYTES}, got {memory_bytes}. Give more memory."
        )
    return max(1, -(-num_documents * BYTES_PER_ENTRY // memory_bytes))


def find_duplicates(paths: Sequence[Path], *, memory_bytes: int) -> Removals:
    """Find every document whose text occurred earlier.

    Args:
        paths: .npy files of `text_digests`, together in document order.
        memory_bytes: of a pass, at least 8 MB. The result takes 16 bytes per removed document beside it, thrice that
            while it is sorted.

    Returns:
        [num_removed, 2], the document and the first one with its text, sorted by document; numbers count over all
        files. Independent of memory_bytes and of how documents are cut into files.

    Raises:
        FormatError: a file is not an array of digests. InputError: memory below 8 MB.
    """
    files = ArrayFiles(paths, np.uint64, columns=2)
    passes = num_passes(files.num_rows, memory_bytes)
    return sort_removals([removals_in_pass(files, number, passes) for number in range(passes)])


def removals_in_pass(files: ArrayFiles, number: int, passes: int, *, skip_zero: bool = False) -> Removals:
    """Find the rows that occurred earlier, among those whose first word lies in one of `passes` equal ranges.

    Frequent rows do not fill the memory: when more rows than a range has on average are gathered, repeats are let go.

    Args:
        files: [rows, 1 or 2 words] of uint64, uniform in the first word (hashes are).
        number: of the range, below `passes`.
        passes: ranges.
        skip_zero: rows whose first word is 0 equal no other.

    Returns:
        [num_removed, 2], row and first equal row, in no order; `sort_removals` sorts them.
    """
    low, high = number * 2**64 // passes, (number + 1) * 2**64 // passes - 1
    low = max(low, int(skip_zero))
    capacity = max(int(_CAPACITY_PER_MEAN * files.num_rows / passes), _SMALLEST_CAPACITY)
    gathered: list[NDArray[np.uint64]] = []
    removed: list[Removals] = []
    num_gathered = 0
    for first, rows in files.chunks():
        at = np.flatnonzero((rows[:, 0] >= np.uint64(low)) & (rows[:, 0] <= np.uint64(high)))
        gathered.append(np.vstack([rows[at].T, (at + first).astype(np.uint64)]))
        num_gathered += len(at)
        if num_gathered > capacity:
            kept, repeats = _split_repeats(gathered)
            gathered.append(kept)
            removed.append(repeats)
            num_gathered = kept.shape[1]
            capacity = max(capacity, int(_CAPACITY_PER_MEAN * num_gathered))
    if gathered:
        removed.append(_split_repeats(gathered)[1])
    return np.concatenate([_NO_REMOVALS, *removed])


def sort_removals(removals: Sequence[Removals]) -> Removals:
    """The removals of all passes as one array, sorted by document."""
    joined = np.concatenate([_NO_REMOVALS, *removals])
    return joined[np.argsort(joined[:, 0])]


def _split_repeats(gathered: list[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], Removals]:
    """Empty the list and part its entries (rows: key words, last the row number) into first occurrences and repeats."""
    entries = np.concatenate(gathered, axis=1)
    gathered.clear()
    order = np.argsort(entries[0])
    ordered = entries[0][order]
    same = ordered[1:] == ordered[:-1]
    del ordered
    shared = np.zeros(len(order), np.bool_)
    shared[1:] |= same
    shared[:-1] |= same
    # Only entries that share their first word are sorted in full: by key words, then by row number.
    candidates = order[shared]
    del order
    if not len(candidates):
        return entries, _NO_REMOVALS
    members = entries[:, candidates]
    ranks = np.lexsort((members[-1], *members[:-1]))
    members = members[:, ranks]
    begins = np.ones(len(candidates), np.bool_)
    begins[1:] = np.any(members[:-1, 1:] != members[:-1, :-1], axis=0)
    leaders = members[-1][begins][np.cumsum(begins) - 1]
    removed = np.stack([members[-1], leaders], axis=1)[~begins].astype(np.int64)
    keep = np.ones(entries.shape[1], np.bool_)
    keep[candidates[ranks[~begins]]] = False
    return entries[:, keep], removed
