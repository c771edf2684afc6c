"""Intervals over examples: by theory, in their range, and how often they hold a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from crisp_stream.results.bootstrap import (
    Interval,
    difference_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)
from crisp_stream.results.tables import result_rows, result_tables
from tests.support.made_results import answered, text_results


def test_the_interval_of_the_mean_of_many_examples_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.5, 2000)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert mean_interval(values) == mean_interval(values)


def test_few_examples_have_the_interval_of_student() -> None:
    expected = stats.t.interval(0.95, 2, loc=2, scale=1 / math.sqrt(3))
    assert mean_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(expected)
    assert mean_interval(np.array([2.0, 2.0])) == (2, 2)
    assert all(math.isnan(bound) for bound in mean_interval(np.array([2.0])))
    # Of eight examples of which seven are equal, a third of the resamples have no spread.
    assert all(math.isfinite(bound) for bound in mean_interval(np.array([0.0] * 7 + [1.0])))


def test_a_ratio_of_sums_has_the_interval_of_theory_and_is_never_negative() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.gamma(2, size=3000)
    losses = rng.gamma(2, size=3000) * sizes
    ratio = losses.sum() / sizes.sum()
    half = 1.96 * (losses - ratio * sizes).std() / sizes.mean() / math.sqrt(3000)
    assert ratio_interval([losses], [sizes]) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)
    assert ratio_interval([np.array([0.0, 1.0, 0.1])], [np.array([1.0, 1.0, 1.0])]).low == 0
    once, twice = ratio_interval([losses], [sizes]), ratio_interval([losses, losses], [sizes, sizes])
    assert twice == pytest.approx((once.low**2, once.high**2), rel=0.01)


def test_shares_have_the_interval_of_wilson_and_never_beyond_the_range() -> None:
    for right, of in [(0, 10), (3, 10), (79, 79), (20, 300), (300, 300)]:
        expected = stats.binomtest(right, of).proportion_ci(method="wilson")
        assert share_interval(np.arange(of) < right) == pytest.approx((expected.low, expected.high))
        assert 0 <= share_interval(np.arange(of) < right).low <= right / of
    assert share_interval(np.ones(79, np.bool_)) == pytest.approx((0.9536, 1.0), abs=1e-4)


def test_paired_differences_have_the_interval_of_tango() -> None:
    """Tango (1998), Table III: 12 and 2 discordant of 24 pairs, and pairs without any."""

    def counted(above: int, below: int, of: int) -> Interval:
        return difference_interval(np.array([1] * above + [-1] * below + [0] * (of - above - below)))

    for above, below, of in [(12, 2, 24), (0, 0, 44), (9, 3, 32), (10, 0, 10)]:
        low, high = counted(above, below, of)
        assert -1 <= low <= (above - below) / of <= high <= 1
        assert counted(below, above, of) == pytest.approx((-high, -low))
        for bound in (low, high):
            assert bound in (-1, 1) or abs(_score(above, below, of, bound)) == pytest.approx(1.95996, abs=1e-4)


def _score(above: int, below: int, of: int, delta: float) -> float:
    """Tango's statistic, its nuisance parameter found by maximising the likelihood on a fine grid."""
    shares = np.linspace(max(0.0, -delta), min(1.0, (1 - delta) / 2), 2_000_001)[1:-1]
    both = 1 - 2 * shares - delta
    with np.errstate(divide="ignore"):
        logs = above * np.log(shares + delta) + (below * np.log(shares) if below else 0.0)
        logs = logs + (of - above - below) * np.log(both) if of > above + below else logs
    best = float(shares[np.argmax(logs)])
    return (above - below - of * delta) / math.sqrt(of * (2 * best + delta * (1 - delta)))


@pytest.mark.parametrize("examples", [10, 30])
def test_intervals_hold_the_mean_of_skewed_losses_about_as_often_as_they_say(examples: int) -> None:
    rng, trials = np.random.default_rng(5), 600
    held = [low <= 2 <= high for low, high in (mean_interval(rng.gamma(2, size=examples)) for _ in range(trials))]
    assert 0.92 <= np.mean(held) <= 0.975


@pytest.mark.parametrize("examples", [10, 30])
def test_intervals_hold_the_loss_per_token_of_texts_of_very_different_lengths(examples: int) -> None:
    rng, trials, held = np.random.default_rng(5), 600, 0
    for _ in range(trials):
        tokens = rng.lognormal(5, 0.8, examples)
        losses = tokens * (rng.normal(4, 0.5, examples) - 0.2 * (np.log(tokens) - 5))
        low, high = ratio_interval([losses], [tokens])
        held += low <= 4 - 0.2 * 0.64 <= high
    assert 0.925 <= held / trials <= 0.975


def test_copies_among_the_examples_are_warned_of() -> None:
    notes = result_tables(result_rows([text_results("a", [1.0, 2.0, 1.0], ids=[5, 6, 5])])).notes
    assert any("news: 1 of the 3 examples are copies of others" in note for note in notes)
    assert not any("copies" in note for note in result_tables(result_rows([answered("a", 2, 3, set_name="q")])).notes)
