"""Texts as bags of hashed n-grams: the features of DSIR (Xie et al. 2023, arXiv:2302.03169, Section 4).

The n-grams of a text are its tokens and its pairs of neighbouring tokens, by lower case, punctuation apart
(`hash_tokens`). Each falls in one of 10,000 buckets by its hash. A set of texts is the distribution of its n-grams over
the buckets, and a text is taken to be n-grams drawn from one: its likelihood is a product over its n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.words import hash_tokens, ngram_hashes

NUM_BUCKETS = 10_000
SMOOTHING = 1e-8
"""Added to the probability of every bucket, so that one without n-grams has a logarithm; as in the authors' code."""


def ngram_buckets(texts: Sequence[str], owners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hash all n-grams of texts into buckets, and name the owner of each. No pair crosses the border of two texts.

    Args:
        owners: [num_texts], number of the owner of each text, such as its window.

    Returns:
        [num_ngrams] buckets below NUM_BUCKETS, and [num_ngrams] owners.
    """
    hashed = hash_tokens(texts)
    text_of = np.repeat(np.arange(len(texts)), np.diff(hashed.first_word))
    inside = text_of[1:] == text_of[:-1]
    hashes = np.concatenate([hashed.hashes, ngram_hashes(hashed.hashes, 2)[inside]])
    # The upper half of a uniform hash, scaled: as uniform as the remainder, in a third of the time.
    buckets = ((hashes >> np.uint64(32)) * np.uint64(NUM_BUCKETS)) >> np.uint64(32)
    of_token = owners[text_of]
    return buckets.astype(np.int64), np.concatenate([of_token, of_token[1:][inside]])


def count_ngrams(texts: Sequence[str]) -> NDArray[np.int64]:
    """Count the n-grams of the texts in each bucket, [NUM_BUCKETS]."""
    buckets, _ = ngram_buckets(texts, np.zeros(len(texts), np.int64))
    return np.bincount(buckets, minlength=NUM_BUCKETS)


def log_ratios(task: NDArray[np.int64], corpus: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute log P(bucket | task) - log P(bucket | corpus), both smoothed.

    Args:
        task: [NUM_BUCKETS], n-grams counted, at least one.
        corpus: [NUM_BUCKETS], likewise.

    Returns:
        [NUM_BUCKETS], nats.
    """
    return np.log(task / task.sum() + SMOOTHING) - np.log(corpus / corpus.sum() + SMOOTHING)


def log_weights(
    texts: Sequence[str], owners: NDArray[np.int64], num_owners: int, ratios: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum the log ratios of each owner's n-grams: its log importance weight, not divided by their number.

    Args:
        owners: [num_texts], each below `num_owners`.
        num_owners: number of owners; an owner without n-grams has weight 0.
        ratios: [NUM_BUCKETS], see `log_ratios`.

    Returns:
        [num_owners] nats; and [num_owners] numbers of n-grams.
    """
    buckets, of_ngram = ngram_buckets(texts, owners)
    sums = np.bincount(of_ngram, weights=ratios[buckets], minlength=num_owners).astype(np.float64)
    return sums, np.bincount(of_ngram, minlength=num_owners)
