"""Measures of a window's text: symbols, repeated n-grams, kinds of words.

The rules are in the spirit of those of Gopher (Rae et al. 2021, arXiv:2112.11446, Table A1), which are of documents;
these are of windows, whose number of words is about the same. A word is a run of letters, digits and marks, case folded
(`writers/cleaning/words.py`). A window without a word is 0 by `repeats` and `types`, one without a character by
`symbols`.

Reading and decoding included, a core measures symbols of 20 MB of text a second, types of 14 and repeats of 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.words import HashedWords, hash_words, ngram_hashes, symbol_flags

DEFAULT_NGRAM = 5
"""The shortest n-gram of Gopher's rules about repeated n-grams, and the one that they allow most of: 15 %."""

Measure = Callable[[Sequence[str], NDArray[np.int64], int], NDArray[np.float64]]
"""Takes texts, the window of each from 0, and the number of windows; gives a number per window."""


def symbol_shares(texts: Sequence[str], owners: NDArray[np.int64], num_windows: int) -> NDArray[np.float64]:
    """Measure the share of characters that are no letter, mark, digit or white space, [num_windows].

    Args:
        texts: [num_texts], see `WindowDecoder.documents`.
        owners: [num_texts], the window of each text; ascending.
        num_windows: number of windows.
    """
    characters = np.fromiter((len(text) for text in texts), np.int64, len(texts))
    of_character = np.repeat(owners, characters)
    symbols = of_character[symbol_flags("".join(texts))]
    return _shares(_sums(symbols, None, num_windows), _sums(of_character, None, num_windows))


def type_shares(texts: Sequence[str], owners: NDArray[np.int64], num_windows: int) -> NDArray[np.float64]:
    """Measure distinct words / words, [num_windows]. Arguments of `symbol_shares`."""
    words = hash_words(texts)
    windows = owners[_text_of_words(words)]
    first = _is_first(windows, words.hashes)
    return _shares(_sums(windows[first], None, num_windows), _sums(windows, None, num_windows))


def repeat_shares(
    texts: Sequence[str], owners: NDArray[np.int64], num_windows: int, *, ngram: int = DEFAULT_NGRAM
) -> NDArray[np.float64]:
    """Measure the share of the words' characters that stand in an n-gram which the window has more than once.

    Each character counts once, also where n-grams overlap, and all places of such an n-gram count, the first one, too.
    No n-gram crosses the border of two documents. Arguments of `symbol_shares`.

    Returns:
        [num_windows], 0 where there are fewer than `ngram` words.
    """
    words = hash_words(texts)
    text_of = _text_of_words(words)
    lengths = (words.word_end - words.word_start).astype(np.float64)
    windows = owners[text_of]
    hashes = ngram_hashes(words.hashes, ngram)
    inside = text_of[: len(hashes)] == text_of[ngram - 1 :][: len(hashes)]
    starts = np.flatnonzero(inside)
    repeated = starts[_is_repeated(windows[starts], hashes[starts])]
    covers = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(covers, repeated, 1)
    np.add.at(covers, repeated + ngram, -1)
    covered = np.cumsum(covers[:-1]) > 0
    return _shares(_sums(windows, lengths * covered, num_windows), _sums(windows, lengths, num_windows))


def _text_of_words(words: HashedWords) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(words.first_word) - 1), np.diff(words.first_word))


def _sums(owners: NDArray[np.int64], values: NDArray[np.float64] | None, num_windows: int) -> NDArray[np.float64]:
    return np.bincount(owners, weights=values, minlength=num_windows).astype(np.float64)


def _shares(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> NDArray[np.float64]:
    return parts / np.maximum(wholes, 1)


def _groups(windows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """An order that brings equal pairs together, stably, and whether each in it differs from the one before."""
    order = np.lexsort((hashes, windows))
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(windows[order]) != 0) | (hashes[order][1:] != hashes[order][:-1])
    return order, new


def _is_first(windows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each hash is the first of its kind in its window."""
    order, new = _groups(windows, hashes)
    first = np.zeros(len(order), np.bool_)
    first[order[new]] = True
    return first


def _is_repeated(windows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each hash stands more than once in its window."""
    order, new = _groups(windows, hashes)
    counts = np.diff(np.append(np.flatnonzero(new), len(order)))
    repeated = np.zeros(len(order), np.bool_)
    repeated[order] = np.repeat(counts > 1, counts)
    return repeated
