"""Conditions on scores: against Python's own reading of them, their errors with places, and nothing that is run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.errors import InputError
from crisp_stream.selection.conditions import MAX_CHARACTERS, windows_where

NUM_WINDOWS = 200
RNG = np.random.default_rng(0)
SCORES = {
    "quality": RNG.normal(size=NUM_WINDOWS).astype(np.float32),
    "length": RNG.integers(1, 9, NUM_WINDOWS).astype(np.float32),
    "q_1": np.round(RNG.random(NUM_WINDOWS), 1).astype(np.float32),
}


def selected(condition: str) -> list[bool]:
    return windows_where(condition, SCORES).chosen.tolist()


SUMS = st.recursive(
    st.sampled_from([*SCORES, "2", "0.5", ".25", "1e-1", "3."]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"- {text}"),
        inner.map(lambda text: f"({text}) / 4"),
    ),
    max_leaves=5,
)
COMPARISONS = st.one_of(
    st.tuples(SUMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), SUMS).map(" ".join),
    st.tuples(SUMS, st.sampled_from(["<", "<="]), SUMS, st.sampled_from(["<", ">=", "!="]), SUMS).map("".join),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map(lambda text: f"not {text}"),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(CONDITIONS)
def test_a_condition_means_what_python_means_by_it(condition: str) -> None:
    """Python reads it window by window; numbers are made float32, as scores are."""
    import re

    as_float32 = re.sub(r"(?<![\w.])((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)", r"F(\1)", condition)
    rows = [{name: scores[window] for name, scores in SCORES.items()} for window in range(NUM_WINDOWS)]
    with np.errstate(all="ignore"):
        expected = [bool(eval(as_float32, {"F": np.float32}, row)) for row in rows]
    assert selected(condition) == expected


def test_quantiles_are_of_the_other_side() -> None:
    found = windows_where("quality >= q0.8 and q0.25 > length * 2", SCORES)
    least = np.sort(SCORES["quality"])[int(0.8 * NUM_WINDOWS) - 1]
    most = np.sort(SCORES["length"] * 2)[NUM_WINDOWS // 4 - 1]
    np.testing.assert_array_equal(found.chosen, (SCORES["quality"] >= least) & (SCORES["length"] * 2 < most))
    assert found.thresholds == {"q0.8 of quality": float(least), "q0.25 of length * 2": float(most)}
    assert sum(selected("quality > q0.9")) == NUM_WINDOWS // 10
    assert all(selected("quality >= q0"))
    assert sum(selected("quality >= q1")) == 1


def test_numbers_are_those_that_scores_are_written_as() -> None:
    assert selected("q_1 <= 0.3") == (SCORES["q_1"] <= np.float32(0.3)).tolist()
    assert sum(selected("q_1 == .7")) > 0


@pytest.mark.parametrize(
    ("condition", "place", "message"),
    [
        ("", 1, "expected a score, a number, a quantile or a parenthesis, got the end"),
        ("quality", 1, "a condition must be true or false, such as quality >= 0.5, got a number: quality"),
        ("q0.5", 1, "a condition must be true or false, .* got a quantile: q0.5"),
        ("qualty > 1", 1, "qualty is none of the scores, which are quality, length, q_1; did you mean `quality`"),
        ("quality = 1", 9, "'=' is no part of a condition. One = is no comparison; write =="),
        ("quality >", 10, "got the end"),
        ("(quality > 1", 13, "the parenthesis of character 1 must be closed, got the end"),
        ("(quality > 1 length", 14, "the parenthesis of character 1 must be closed, got 'length'"),
        ("quality > 1)", 12, r"expected a comparison, .* got '\)'"),
        ("quality > 1 length > 2", 13, "expected a comparison, .* got 'length'"),
        ("quality and length > 1", 1, "`and` stands between conditions, .* got a number: quality"),
        ("length > 1 or 3", 15, "`or` stands between conditions, .* got a number: 3"),
        ("not quality", 5, "`not` stands before a condition, .* got a number"),
        ("-(quality > 1) > 2", 2, "`-` stands before numbers and scores, got a condition"),
        ("(quality > 1) > 2", 1, "`>` compares numbers and scores, got a condition"),
        ("quality > q0.5 + 1", 11, r"`\+` stands between numbers and scores, got a quantile"),
        ("quality > q1.5", 11, "a quantile must be q0 to q1, got q1.5"),
        ("q0.5 > 1", 1, "a quantile is compared with a score, such as quality >= q0.5, got 1"),
        ("q0.5 > q0.2", 1, "a quantile is compared with a score, .* got q0.2"),
        ("1 / (length - length) > 1", 3, r"must be a finite number, but is none for 200 windows. Compare without"),
        ("quality > 1e39", 11, "a number must be one that float32 holds, got 1e39"),
        ("quality * 1e38 * 1e38 > 0", 16, "must be a finite number, but is none for 200 windows"),
        ("1.2.3 < quality", 1, "'1' is no part of a condition"),
        ("quality > 0x10", 11, "'0' is no part of a condition"),
        ("quality > 1 & length > 2", 13, "'&' is no part of a condition"),
        ("quality > 'a'", 11, '"\'" is no part of a condition'),
        ("quality.real > 1", 8, "'.' is no part of a condition"),
        ("quality[0] > 1", 8, r"'\[' is no part of a condition"),
        ("__import__('os')", 12, "is no part of a condition"),
        ("quality ** 2 > 1", 10, r"expected a score, a number, .* got '\*'"),
        ("quality(1) > 1", 8, r"expected a comparison, .* got '\('"),
        ("not " * 60 + "quality > 1", 201, "a condition must be nested at most 50 deep"),
        ("(" * 60 + "quality > 1" + ")" * 60, 51, "a condition must be nested at most 50 deep"),
    ],
)
def test_what_is_no_condition_is_said_with_its_place(condition: str, place: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        windows_where(condition, SCORES)
    assert str(raised.value).startswith(f"condition, character {place} of {condition!r}: ")


def test_a_condition_is_not_endless() -> None:
    with pytest.raises(InputError, match="at most 10,000 characters, got 10,001"):
        windows_where("1" * (MAX_CHARACTERS + 1), SCORES)
    assert len(selected(" or ".join(["quality > 1"] * 600))) == NUM_WINDOWS  # long, but not deep
