"""Hashes by which a text is known again: of all its words, and of its n-grams of 8 words.

Words are those of `words.py`, so case, punctuation and white space do not count. A text whose words are those of
another one has its hash; a copy with a sentence changed, or one inside a longer document, shares most of its n-grams.
Hashes are of 64 bits, made from those of the words: two different texts have one hash with a chance of 5e-20.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.words import hashed_pieces, ngram_hashes

NGRAM_WORDS = 8


@dataclass(frozen=True, kw_only=True)
class TextHashes:
    """Hashes of a batch of texts."""

    documents: NDArray[np.uint64]
    """[num_texts], of all words of each; 0 where there are none."""
    ngrams: NDArray[np.uint64]
    """[num_ngrams], of all texts one after another; texts below 8 words have none."""
    ngrams_per_text: NDArray[np.int64]
    """[num_texts]."""


@dataclass(frozen=True, kw_only=True)
class _PieceHashes:
    """Hashes of some texts, or of a piece of one."""

    first_text: int
    documents: NDArray[np.uint64]
    """Of the texts that end with the piece."""
    ngrams: NDArray[np.uint64]
    ngrams_per_text: NDArray[np.int64]
    """Of the piece, from `first_text` on."""


def hash_texts(texts: Sequence[str]) -> TextHashes:
    """Hash every text of a batch; the hashes of a text depend on nothing but its words."""
    documents: list[NDArray[np.uint64]] = []
    ngrams: list[NDArray[np.uint64]] = []
    counts = np.zeros(len(texts), np.int64)
    for piece in hash_in_pieces(texts):
        documents.append(piece.documents)
        ngrams.append(piece.ngrams)
        counts[piece.first_text : piece.first_text + len(piece.ngrams_per_text)] += piece.ngrams_per_text
    none = np.empty(0, np.uint64)
    return TextHashes(
        documents=np.concatenate([none, *documents]), ngrams=np.concatenate([none, *ngrams]), ngrams_per_text=counts
    )


def hash_in_pieces(texts: Sequence[str]) -> Iterator[_PieceHashes]:
    """`hash_texts` piece by piece, so that a large text takes no more memory than a small one."""
    hasher, num_words = xxhash.xxh3_64(), 0
    for piece in hashed_pieces(texts, overlap=NGRAM_WORDS - 1):
        hashes, first_word = piece.words.hashes, piece.words.first_word
        documents: list[int] = []
        for start, end in itertools.pairwise(first_word.tolist()):
            new = hashes[start + piece.num_repeated : end]
            hasher.update(new.astype("<u8").tobytes())
            num_words += len(new)
            if piece.is_last:
                documents.append(hasher.intdigest() if num_words else 0)
                hasher.reset()
                num_words = 0
        words_per_text = np.diff(first_word)
        text_of_word = np.repeat(np.arange(len(words_per_text)), words_per_text)
        within = text_of_word[NGRAM_WORDS - 1 :] == text_of_word[: max(len(hashes) - NGRAM_WORDS + 1, 0)]
        yield _PieceHashes(
            first_text=piece.first_text,
            documents=np.array(documents, np.uint64),
            ngrams=ngram_hashes(hashes, NGRAM_WORDS)[within],
            ngrams_per_text=np.maximum(words_per_text - NGRAM_WORDS + 1, 0),
        )
