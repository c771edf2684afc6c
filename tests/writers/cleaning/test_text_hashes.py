"""Texts are known again by their words and n-grams, whatever batch they come in."""

from __future__ import annotations

import numpy as np
import pytest

from crisp_stream.writers.cleaning import words
from crisp_stream.writers.cleaning.text_hashes import NGRAM_WORDS, hash_texts
from tests.support.written_dataset import TOPICS

PLAIN = "Don't stop: the quick brown fox jumps over 13 lazy dogs, and the “café” is closed."
TEXTS = [text[:3000] for text in TOPICS[:20]]


def ngrams_of(texts: list[str]) -> list[list[int]]:
    hashes = hash_texts(texts)
    ends = np.cumsum(hashes.ngrams_per_text)
    return [part.tolist() for part in np.split(hashes.ngrams, ends[:-1])]


@pytest.mark.parametrize(
    "copy",
    [
        PLAIN.upper(),
        PLAIN.replace(" ", "\n\t"),
        "don t stop the quick brown fox jumps over 13 lazy dogs and the cafe\u0301 is closed",
        PLAIN.replace("quick", "qu\u00adick"),
    ],
)
def test_case_punctuation_white_space_and_composition_do_not_count(copy: str) -> None:
    first, second = hash_texts([PLAIN, copy]).documents.tolist()
    assert first == second
    assert ngrams_of([PLAIN]) == ngrams_of([copy])


def test_another_word_is_another_text_of_which_most_ngrams_are_the_same() -> None:
    changed = PLAIN.replace("closed", "open")
    assert len(set(hash_texts([PLAIN, changed]).documents.tolist())) == 2
    [[*one], [*two]] = ngrams_of([PLAIN, changed])
    assert one[:-1] == two[:-1]
    assert one[-1] != two[-1]


def test_ngrams_do_not_cross_texts_and_short_texts_have_none() -> None:
    eight = "one two three four five six seven eight"
    hashes = hash_texts(["one two", eight, "", "...", eight, f"{eight} nine"])
    assert hashes.ngrams_per_text.tolist() == [0, 1, 0, 0, 1, 2]
    assert (hashes.documents == 0).tolist() == [False, False, True, True, False, False]
    assert hashes.ngrams[0] == hashes.ngrams[1] == hashes.ngrams[2]
    assert len(hashes.ngrams) == 4
    assert hash_texts([]).documents.tolist() == []
    for num_words in range(12):
        hashes = hash_texts(["a " * num_words])
        assert hashes.ngrams_per_text.tolist() == [len(hashes.ngrams)] == [max(num_words - 7, 0)]
    assert NGRAM_WORDS == 8


def test_batches_and_the_pieces_of_long_texts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [(hash_texts([text]).documents[0], ngrams_of([text])[0]) for text in TEXTS]
    together = zip(hash_texts(TEXTS).documents, ngrams_of(TEXTS), strict=True)
    assert [(int(one), ngrams) for one, ngrams in together] == [(int(one), ngrams) for one, ngrams in alone]
    for characters in (1, 50, 4000):
        monkeypatch.setattr(words, "PIECE_CHARACTERS", characters)
        again = zip(hash_texts(TEXTS).documents, ngrams_of(TEXTS), strict=True)
        assert [(int(one), ngrams) for one, ngrams in again] == [(int(one), ngrams) for one, ngrams in alone]
