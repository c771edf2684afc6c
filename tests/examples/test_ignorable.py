from __future__ import annotations

import unicodedata

from crisp_stream.examples.ignorable import DEFAULT_IGNORABLE, without_ignorable
from crisp_stream.examples.questions import Question, question_hash


def test_exactly_the_ranges_are_left_out() -> None:
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    kept = set(without_ignorable("".join(map(chr, codes))))
    left_out = {code for code in codes if chr(code) not in kept}
    assert left_out == {code for first, last in DEFAULT_IGNORABLE for code in range(first, last + 1)}


def test_every_format_character_is_among_them_but_those_that_are_shown() -> None:
    """Of category Cf only what shapes or counts numbers, notes and hieroglyphs is not ignorable in Unicode 16."""
    shown = {*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0xFFF9, 0xFFFA, 0xFFFB, 0x110BD, 0x110CD}
    shown |= set(range(0x13430, 0x13440))
    formats = {code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"}
    assert {code for code in formats if without_ignorable(f"{chr(code)}")} == formats & shown


def test_questions_that_differ_in_what_is_not_seen_have_one_hash() -> None:
    one = Question(question="What is bile?", choices=("a liver", "a juice"), answer=1)
    other = Question(question="What\u200b is bi\u00adle?", choices=("a liver", "a\ufeff juice"), answer=1)
    assert question_hash(one) == question_hash(other)
