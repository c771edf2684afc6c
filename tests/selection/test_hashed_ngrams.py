"""Bags of hashed n-grams, by hand and against a regular expression."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.selection.hashed_ngrams import (
    NUM_BUCKETS,
    SMOOTHING,
    count_ngrams,
    log_ratios,
    log_weights,
    ngram_buckets,
)
from crisp_stream.writers.cleaning.words import hash_tokens

SIGNS = st.text(
    st.sampled_from("ab_Zß9 \n.,-'\u00a0\u0301é中文²½٣İ\U0001f600") | st.characters(codec="utf-8"), max_size=30
)


def bucket(ngram: str) -> int:
    """Where one n-gram of one or two tokens falls."""
    return int(ngram_buckets([ngram], np.zeros(1, np.int64))[0][-1])


def ngrams(text: str) -> list[str]:
    """As NLTK's wordpunct cuts lower case, independently."""
    tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
    return [*tokens, *(" ".join(pair) for pair in pairwise(tokens))]


@given(st.lists(SIGNS, max_size=4))
def test_tokens_are_those_of_the_regular_expression(texts: list[str]) -> None:
    hashed = hash_tokens(texts)
    for number, text in enumerate(texts):
        first, end = hashed.first_word[number : number + 2].tolist()
        assert hashed.words(first, end) == re.findall(r"\w+|[^\w\s]+", text.lower())


def test_a_bag_holds_tokens_and_pairs_and_no_pair_across_two_texts() -> None:
    counted = Counter(bucket(ngram) for ngram in ["a", "b", "a", "a b", "b a", "b", "b", "b b"])
    assert {
        place: n for place, n in enumerate(count_ngrams(["A b a", "b b", "", "!"]).tolist()) if n
    } == counted + Counter([bucket("!")])


def test_pairs_are_other_n_grams_than_their_tokens_and_their_turn() -> None:
    assert len({bucket("alpha"), bucket("beta"), bucket("alpha beta"), bucket("beta alpha")}) == 4


def test_n_grams_belong_to_the_owner_of_their_text() -> None:
    buckets, owners = ngram_buckets(["a b", "c", "d d"], np.array([4, 4, 9]))
    found = Counter(zip(buckets.tolist(), owners.tolist(), strict=True))
    of_four = [(bucket(ngram), 4) for ngram in ("a", "b", "a b", "c")]
    assert found == Counter([*of_four, *((bucket(ngram), 9) for ngram in ("d", "d", "d d"))])


def test_many_n_grams_fill_all_buckets_evenly() -> None:
    counts = np.bincount(ngram_buckets([str(number) for number in range(200_000)], np.zeros(200_000, np.int64))[0])
    assert len(counts) == NUM_BUCKETS
    # 20 are expected in each; the sum of squared deviations over 20 is chi-square of 9,999 degrees.
    assert float(((counts - 20) ** 2 / 20).sum()) == pytest.approx(NUM_BUCKETS - 1, rel=0.06)


def test_log_ratios_of_two_bags_by_hand() -> None:
    task, corpus = np.zeros(NUM_BUCKETS, np.int64), np.zeros(NUM_BUCKETS, np.int64)
    task[[3, 5]] = 3, 1
    corpus[[3, 7]] = 1, 3
    ratios = log_ratios(task, corpus)
    assert ratios[3] == pytest.approx(math.log(3))
    assert ratios[5] == pytest.approx(math.log(0.25 / SMOOTHING))
    assert ratios[7] == pytest.approx(math.log(SMOOTHING / 0.75))
    assert np.count_nonzero(ratios) == 3


def test_a_weight_is_the_sum_over_all_n_grams_of_a_window_however_many() -> None:
    ratios = np.random.default_rng(0).normal(size=NUM_BUCKETS)
    texts = ["The fox, the FOX", "the fox", "", "jumps"]
    weights, counts = log_weights(texts, np.array([0, 2, 1, 2]), 4, ratios)
    first, second = (sum(ratios[bucket(ngram)] for ngram in ngrams(text)) for text in ("The fox, the FOX", "the fox"))
    assert weights.tolist() == pytest.approx([first, 0.0, second + ratios[bucket("jumps")], 0.0])
    assert counts.tolist() == [len(ngrams("The fox, the FOX")), 0, len(ngrams("the fox")) + 1, 0]
