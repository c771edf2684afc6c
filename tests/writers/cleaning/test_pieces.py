"""Large texts are cleaned in pieces: in bounded memory, and with the outcome of the whole."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.writers.cleaning import words as words_module
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.near_duplicates import NearSettings, text_minima
from crisp_stream.writers.cleaning.text_hashes import hash_in_pieces, hash_texts
from crisp_stream.writers.cleaning.words import hash_words, hashed_pieces

TEXTS = st.lists(st.text(st.sampled_from("ab B\n.,-'_1é\u0301\xad\u200bİßﬁ²語のक्\u2019\U00020000"), max_size=40))
EVALUATION = [("a", 0, "a b a a b a"), ("a", 1, "b a b"), ("b", 0, "b b a b"), ("b", 1, "a a a a")]


def in_pieces(characters: int) -> Any:
    return patch.object(words_module, "PIECE_CHARACTERS", characters)


@given(TEXTS, st.integers(1, 9), st.integers(0, 5))
def test_the_words_of_pieces_are_those_of_the_text(texts: list[str], characters: int, overlap: int) -> None:
    with in_pieces(characters):
        pieces = list(hashed_pieces(texts, overlap=overlap))
    found: list[list[str]] = [[] for _ in texts]
    hashes: list[list[int]] = [[] for _ in texts]
    for piece in pieces:
        bounds = piece.words.first_word.tolist()
        for text, (first, end) in enumerate(itertools.pairwise(bounds), piece.first_text):
            repeated = piece.num_repeated
            assert piece.words.words(first, first + repeated) == (found[text][-repeated:] if repeated else [])
            assert repeated == 0 or repeated == min(overlap, len(found[text]))
            found[text] += piece.words.words(first + repeated, end)
            hashes[text] += piece.words.hashes[first + repeated : end].tolist()
    for text, own, hashed in zip(texts, found, hashes, strict=True):
        whole = hash_words([text])
        assert own == whole.words(0, len(whole.hashes))
        assert hashed == whole.hashes.tolist()


@given(TEXTS, st.integers(1, 9))
def test_pieces_change_no_sketch_no_hash_and_no_match(texts: list[str], characters: int) -> None:
    settings = NearSettings(threshold=0.8, num_minima=16)
    ngrams = EvaluationNgrams.build(EVALUATION, ngram=5, min_words=3)
    whole = text_minima(texts, settings), hash_texts(texts), ngrams.find_all(texts)
    with in_pieces(characters):
        again = text_minima(texts, settings), hash_texts(texts), ngrams.find_all(texts)
    for one, other in zip(whole[0], again[0], strict=True):
        np.testing.assert_array_equal(one, other)
    for name, value in vars(whole[1]).items():
        np.testing.assert_array_equal(value, getattr(again[1], name))
    assert whole[2] == again[2]


@given(st.integers(1, 400), st.integers(1, 50))
def test_a_long_word_has_its_hash_whatever_the_blocks(length: int, block: int) -> None:
    word = "".join(random.Random(length).choices("abcé1", k=length))
    whole = hash_words([f"x {word} y"]).hashes.tolist()
    with patch.object(words_module, "_BLOCK_CHARACTERS", block):
        assert hash_words([f"x {word} y"]).hashes.tolist() == whole


def _drain(texts: list[str]) -> None:
    for _ in hash_in_pieces(texts):
        pass


@pytest.mark.parametrize(
    "work",
    [
        _drain,
        lambda texts: text_minima(texts, NearSettings(threshold=0.8)),
        lambda texts: EvaluationNgrams.build([("a", 0, "one two three four five six seven eight")]).find_all(texts),
    ],
    ids=["hashes", "sketch", "match"],
)
def test_a_text_four_times_as_large_takes_no_more_memory(work: Callable[[list[str]], object]) -> None:
    rng = random.Random(0)
    some = " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(40_000))
    peaks = []
    with in_pieces(1 << 14):
        work([some[:50_000]])
        for text in (some[:60_000], some[:240_000]):
            tracemalloc.start()
            work([text])
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
