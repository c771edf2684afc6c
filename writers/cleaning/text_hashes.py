"""Hashes by which a text is known again: of all its words, and of its n-grams of 8 words.

Words are those of `words.py`, so case, punctuation and white space do not count. A text whose words are those of
another one has its hash; a copy with a sentence changed, or one inside a longer document, shares most of its n-grams.
Hashes are of 64 bits, made from those of the words: two different texts have one hash with a chance of 5e-20.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.words import hash_words, ngram_hashes

NGRAM_WORDS = 8
_CHARACTERS = 1 << 20
"""Text that is hashed at once, about 30 MB of memory."""
_CUT = re.compile(r"\s")


@dataclass(frozen=True, kw_only=True)
class TextHashes:
    """Hashes of a batch of texts."""

    documents: NDArray[np.uint64]
    """[num_texts], of all words of each; 0 where there are none."""
    ngrams: NDArray[np.uint64]
    """[num_ngrams], of all texts one after another; texts below 8 words have none."""
    ngrams_per_text: NDArray[np.int64]
    """[num_texts]."""


def hash_texts(texts: Sequence[str]) -> TextHashes:
    """Hash every text of a batch; the hashes of a text depend on nothing but its words."""
    documents: list[int] = []
    ngrams: list[NDArray[np.uint64]] = []
    counts: list[NDArray[np.int64]] = []
    for words, ends in _hashed_words(texts):
        for start, end in itertools.pairwise([0, *ends.tolist()]):
            documents.append(xxhash.xxh3_64_intdigest(words[start:end].astype("<u8").tobytes()) if end > start else 0)
        text_of_word = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        within = text_of_word[NGRAM_WORDS - 1 :] == text_of_word[: max(len(words) - NGRAM_WORDS + 1, 0)]
        ngrams.append(ngram_hashes(words, NGRAM_WORDS)[within])
        counts.append(np.maximum(np.diff(ends, prepend=0) - NGRAM_WORDS + 1, 0))
    return TextHashes(
        documents=np.array(documents, np.uint64),
        ngrams=np.concatenate([np.empty(0, np.uint64), *ngrams]),
        ngrams_per_text=np.concatenate([np.empty(0, np.int64), *counts]),
    )


def _hashed_words(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Hash the words of texts, some texts at a time: words of all, and where those of each end."""
    held: list[str] = []
    held_characters = 0
    for text in texts:
        if held and held_characters + len(text) > _CHARACTERS:
            yield _words_of(held)
            held, held_characters = [], 0
        if len(text) > _CHARACTERS:
            words = np.concatenate([hash_words([piece]).hashes for piece in _pieces(text)])
            yield words, np.array([len(words)], np.int64)
        else:
            held.append(text)
            held_characters += len(text)
    if held:
        yield _words_of(held)


def _words_of(texts: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    hashed = hash_words(texts)
    return hashed.hashes, hashed.first_word[1:]


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text at white space, which parts words anyway."""
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _CHARACTERS)
        end = len(text) if cut is None else cut.end()
        yield text[start:end]
        start = end
