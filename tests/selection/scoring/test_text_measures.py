"""Measures of text by hand: what counts as a symbol, a word, a repeated n-gram."""

from __future__ import annotations

import numpy as np
import pytest

from crisp_stream.selection.scoring.text_measures import Measure, repeat_shares, symbol_shares, type_shares


def of_one(measure: Measure, *documents: str) -> float:
    """The measure of one window of some documents."""
    [found] = measure(list(documents), np.zeros(len(documents), np.int64), 1)
    return float(found)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("abc 123", 0),
        ("a.b!", 0.5),
        ("naïve Ωδέ हिन्दी 你好 ٣", 0),  # letters, marks and digits of any script
        ("a_b", 1 / 3),
        ("\t\n\u00a0\u3000", 0),  # white space
        ("😀", 1),
        ("", 0),
    ],
)
def test_symbols_are_neither_letters_marks_digits_nor_blanks(text: str, share: float) -> None:
    assert of_one(symbol_shares, text) == pytest.approx(share)


def test_types_are_counted_over_all_documents_of_a_window() -> None:
    assert of_one(type_shares, "The cat, the CAT", "a cat") == pytest.approx(3 / 6)
    assert of_one(type_shares, "… !") == 0


def test_repeated_n_grams_count_each_character_once() -> None:
    # the 2-grams "a bb" (twice) and "bb a" (twice) overlap: the first four words are covered, and the last two
    assert of_one(lambda *given: repeat_shares(*given, ngram=2), "a bb a bb ccc bb a") == pytest.approx(9 / 12)
    assert of_one(lambda *given: repeat_shares(*given, ngram=2), "a bb", "a bb ccc") == pytest.approx(6 / 9)
    assert of_one(lambda *given: repeat_shares(*given, ngram=2), "x a", "bb x a", "bb") == pytest.approx(4 / 8)
    assert of_one(repeat_shares, "one two three four") == 0
    assert of_one(repeat_shares, "so it goes " * 20) == 1


@pytest.mark.parametrize("measure", [symbol_shares, type_shares, repeat_shares])
def test_windows_without_text_are_0_and_do_not_touch_others(measure: Measure) -> None:
    assert measure([], np.zeros(0, np.int64), 2).tolist() == [0, 0]
    assert measure([""], np.array([1]), 2).tolist() == [0, 0]
    texts = ["a a! b, a a! b, a a! b, a a! b", "", "c"]
    alone = of_one(measure, texts[0])
    assert measure(texts, np.array([1, 2, 3]), 5).tolist()[:3] == [0, alone, 0]
    assert alone > 0
