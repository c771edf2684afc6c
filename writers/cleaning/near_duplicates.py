"""Near-duplicates: documents that share most of their word 5-grams, by MinHash and locality-sensitive hashing.

The similarity of two documents is the Jaccard index of their sets of word 5-grams (words: `words.py`; a document of one
to four words has one gram, all its words; one without words is like no other). A sketch holds 128 minima over random
permutations of the grams' hashes; two documents agree in each with the probability of their similarity. Bands of minima
that agree make a candidate, and **every candidate is verified** by the share of all 128 minima that agree, so what is
removed has an *estimated* similarity of the threshold or more. The estimate's standard error is sqrt(J (1 - J) / 128),
0.035 at 0.8. Because candidates are verified, bands are chosen for recall: at 0.8, 14 bands of 9, which find a pair of
similarity 0.8 / 0.85 / 0.9 with probability 0.87 / 0.975 / 0.999 (the usual choice, 9 of 13: 0.40 / 0.69 / 0.93).

Permutations and bands are datasketch's; the minima are taken here, over blocks that stay in the cache, twice as fast as
`MinHash.bulk` and equal to it bit for bit. On disk a document has 8 bytes per band and a byte per minimum (its low
byte; agreement by chance, 1 in 256, is corrected): 240 bytes at 0.8, 240 GB for 10^9 documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.hashing import splitmix64_finalise
from crisp_stream.writers.cleaning.duplicates import PAIR, Firsts
from crisp_stream.writers.cleaning.words import hashed_pieces, ngram_hashes

_BLOCK_GRAMS = 512
_PAIRS_AT_ONCE = 1 << 16
_RECALL_WEIGHTS = (0.1, 0.9)


@dataclass(frozen=True, kw_only=True)
class NearSettings:
    """Settings of sketches; sketches of different settings cannot be compared."""

    threshold: float
    """Similarity from which two documents are near-duplicates, 0.5 to 0.99."""
    words_per_gram: int = 5
    num_minima: int = 128
    seed: int = 1
    """Seed of the permutations, 0 to 2^32 - 1."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold <= 0.99:
            raise InputError(
                f"near-duplicate threshold: must be 0.5 to 0.99, got {self.threshold}. Below, unrelated documents are "
                "compared; above, remove exact duplicates instead."
            )
        if self.words_per_gram < 1 or not 16 <= self.num_minima <= 4096 or not 0 <= self.seed < 2**32:
            raise InputError(
                "near-duplicate sketch: at least 1 word per gram, 16 to 4096 minima and a seed of 32 bits are needed, "
                f"got {self.words_per_gram}, {self.num_minima} and {self.seed}. Leave them at their defaults."
            )

    @property
    def bands(self) -> tuple[int, int]:
        """Number of bands, minima per band."""
        return _bands(self.threshold, self.num_minima)


@dataclass(frozen=True, kw_only=True)
class Sketches:
    """Sketches of a batch of documents, to be stored as two .npy files."""

    keys: NDArray[np.uint64]
    """[num_bands, num_texts], hash of each band; 0 for a document without words."""
    minima: NDArray[np.uint8]
    """[num_texts, num_minima], low bytes."""

    @classmethod
    def joined(cls, sketches: Sequence[Sketches]) -> Sketches:
        """The sketches of consecutive batches as one; at least one batch."""
        return cls(
            keys=np.concatenate([sketch.keys for sketch in sketches], axis=1),
            minima=np.concatenate([sketch.minima for sketch in sketches]),
        )


def sketch_texts(texts: Sequence[str], settings: NearSettings) -> Sketches:
    """Sketch every text of a batch; a sketch depends on nothing but its text and the settings.

    Raises:
        MissingExtraError: datasketch is not installed.
    """
    minima, has_words = text_minima(texts, settings)
    num_bands, minima_per_band = settings.bands
    keys = np.empty((num_bands, len(texts)), np.uint64)
    for band in range(num_bands):
        key = np.zeros(len(texts), np.uint64)
        for column in range(band * minima_per_band, (band + 1) * minima_per_band):
            key = splitmix64_finalise(key + minima[:, column] + np.uint64(band + 1))
        keys[band] = np.where(has_words, np.maximum(key, np.uint64(1)), np.uint64(0))
    return Sketches(keys=keys, minima=minima.astype(np.uint8))


def text_minima(texts: Sequence[str], settings: NearSettings) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """MinHash signatures, equal to datasketch's over the same gram hashes.

    Returns:
        [num_texts, num_minima]; and which texts have words at all.
    """
    factors, summands = _permutations(settings.num_minima, settings.seed)
    words_per_gram = settings.words_per_gram
    minima = np.full((len(texts), settings.num_minima), 2**32 - 1, np.uint32)
    block = np.empty((_BLOCK_GRAMS, settings.num_minima), np.uint32)
    has_words, has_grams = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
    for piece in hashed_pieces(texts, overlap=words_per_gram - 1):
        hashes = piece.words.hashes
        grams = _gram_hashes(hashes, words_per_gram)
        for text, (first, end) in enumerate(itertools.pairwise(piece.words.first_word.tolist()), piece.first_text):
            of_text = grams[first : max(end - words_per_gram + 1, first)]
            if first == end:
                continue
            has_words[text] = True
            if len(of_text):
                has_grams[text] = True
            elif piece.is_last and not has_grams[text]:  # fewer words than a gram has, and these are all
                of_text = _gram_hashes(hashes[first:end], end - first)
            for start in range(0, len(of_text), _BLOCK_GRAMS):
                some = of_text[start : start + _BLOCK_GRAMS, None]
                permuted = np.multiply(some, factors, out=block[: len(some)])
                permuted += summands
                np.minimum(minima[text], permuted.min(axis=0), out=minima[text])
    return minima, has_words


def _gram_hashes(word_hashes: NDArray[np.uint64], words_per_gram: int) -> NDArray[np.uint32]:
    return _murmur3_finalise((ngram_hashes(word_hashes, words_per_gram) >> np.uint64(32)).astype(np.uint32))


def similarities(minima: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard index of each pair: the share of minima that agree, less what agrees by chance.

    Args:
        minima: [num_pairs, num_minima], of one document of each pair.
        others: as `minima`, of the other one.

    Returns:
        [num_pairs], 0 to 1.
    """
    agree = np.mean(minima == others, axis=1)
    return np.maximum((agree - 1 / 256) / (1 - 1 / 256), 0)


class Groups:
    """Documents that edges join, each with the first one of its group; 16 bytes for each that is not the first."""

    def __init__(self) -> None:
        self.pairs: NDArray[np.void] = np.empty(0, PAIR)
        """Sorted by document: every document of a group but its first, and the first."""

    def join(self, edges: NDArray[np.void]) -> None:
        """Join the groups of the two documents of each edge ([num_edges] of PAIR)."""
        ends = np.stack([self.first_of(edges["place"]), self.first_of(edges["first"])], axis=1)
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            return
        # Edges are between first documents now. What becomes of these is found first, then that of all others.
        moved = _components(ends)
        merged = Groups()
        merged.pairs = moved
        kept = self.pairs.copy()
        kept["first"] = merged.first_of(kept["first"])
        joined = np.concatenate([kept, moved])
        self.pairs = joined[np.argsort(joined["place"])]

    def first_of(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The first document of the group of each; itself where it is in none."""
        if not len(self.pairs):
            return places
        at = np.minimum(np.searchsorted(self.pairs["place"], places), len(self.pairs) - 1)
        return np.where(self.pairs["place"][at] == places, self.pairs["first"][at], places)


def find_near_duplicates(sketches: Sketches, settings: NearSettings) -> NDArray[np.void]:
    """Find the near-duplicates among documents whose sketches fit in memory; writing does the same in parts.

    In each band a document is compared with the first that has its key there. Pairs that are similar enough are edges,
    and documents that edges connect are a group, of which the first is kept. A document whose only like one is not the
    first of any band they share is missed.

    Returns:
        [num_removed] of PAIR, sorted: number of the document, and that of the kept one. Exact duplicates are among
        them.
    """
    groups = Groups()
    for keys in sketches.keys:
        numbers = np.flatnonzero(keys).astype(np.uint64)
        firsts = Firsts(len(numbers))
        pairs = np.concatenate([firsts.add([keys[numbers]], numbers), firsts.finish()])
        for some in np.array_split(pairs, -(-len(pairs) // _PAIRS_AT_ONCE) or 1):
            similar = similarities(sketches.minima[some["place"]], sketches.minima[some["first"]])
            groups.join(some[similar >= settings.threshold])
    return groups.pairs


def _components(edges: NDArray[np.uint64]) -> NDArray[np.void]:
    """Every node of `edges` ([num_edges, 2]) but the first of its component, and the first; sorted, as PAIR."""
    sparse = import_extra("scipy.sparse", extra="write", purpose="removing near-duplicates")
    graph = import_extra("scipy.sparse.csgraph", extra="write", purpose="removing near-duplicates")
    nodes, ends = np.unique(edges, return_inverse=True)
    ends = ends.reshape(-1, 2)
    matrix = sparse.coo_array((np.ones(len(ends), np.bool_), (ends[:, 0], ends[:, 1])), (len(nodes), len(nodes)))
    labels = graph.connected_components(matrix, directed=False)[1]
    # Nodes are sorted, so the first node of a label is the first document of its group.
    roots = nodes[np.unique(labels, return_index=True)[1][labels]]
    moved = np.empty(int(np.count_nonzero(nodes != roots)), PAIR)
    moved["place"], moved["first"] = nodes[nodes != roots], roots[nodes != roots]
    return moved


def _murmur3_finalise(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The 32-bit finaliser of MurmurHash3, which datasketch puts before its permutations."""
    mixed = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


@lru_cache(maxsize=4)
def _permutations(num_minima: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    datasketch: Any = import_extra("datasketch", extra="write", purpose="removing near-duplicates")
    factors, summands = datasketch.MinHash(num_perm=num_minima, seed=seed, scheme="affine32").permutations
    return factors, summands


@lru_cache(maxsize=4)
def _bands(threshold: float, num_minima: int) -> tuple[int, int]:
    datasketch: Any = import_extra("datasketch", extra="write", purpose="removing near-duplicates")
    lsh = datasketch.MinHashLSH(threshold=threshold, num_perm=num_minima, weights=_RECALL_WEIGHTS)
    return int(lsh.b), int(lsh.r)
