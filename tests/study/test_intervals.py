"""Intervals over seeds and examples: computed by hand, and tried on data whose true mean is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from crisp_stream.results.bootstrap import Interval
from crisp_stream.results.estimates import Estimate
from crisp_stream.study.tables.intervals import difference_over_sets, exponential, mean_over_sets, share_over_sets

TRIALS = 1500


def drawn(
    rng: np.random.Generator, *, seeds: int, examples: int, spreads: tuple[float, float, float]
) -> NDArray[np.float64]:
    """[seeds, examples] values of mean 0, of effects of seeds, of examples, and of both together."""
    of_seed, of_example, of_both = spreads
    return (
        of_seed * rng.standard_normal((seeds, 1))
        + of_example * rng.standard_normal((1, examples))
        + of_both * rng.standard_normal((seeds, examples))
    )


def coverage(*, seeds: int, examples: int, spreads: tuple[float, float, float], only: int | None = None) -> float:
    """How often an interval holds the true mean. `only`: give it that many of the seeds."""
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(TRIALS):
        low, high = mean_over_sets([("", drawn(rng, seeds=seeds, examples=examples, spreads=spreads)[:only])]).interval
        held += low <= 0 <= high
    return held / TRIALS


def test_an_interval_by_hand() -> None:
    values = np.array([[1.0, 3.0, 2.0], [2.0, 4.0, 6.0]])
    found = mean_over_sets([("", values)])
    assert found.value == 3.0
    of_seeds = stats.t.ppf(0.975, 1) * np.std([2.0, 4.0], ddof=1) / math.sqrt(2)
    of_examples = stats.t.ppf(0.975, 2) * np.std([1.5, 3.5, 4.0], ddof=1) / math.sqrt(3)
    half = math.hypot(of_seeds, of_examples)
    assert np.allclose(found.interval, (3 - half, 3 + half))


def test_one_seed_leaves_the_term_of_examples_and_one_example_leaves_no_interval() -> None:
    found = mean_over_sets([("", np.array([[1.0, 3.0, 2.0]]))])
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert np.allclose(found.interval, (2 - half, 2 + half))
    alone = mean_over_sets([("", np.array([[1.0], [2.0]]))])
    assert alone.value == 1.5
    assert math.isnan(alone.interval.low)


@pytest.mark.parametrize(
    ("spreads", "bounds"),
    [
        ((0.05, 0.0, 0.05), (0.935, 0.975)),  # seeds decide
        ((0.0, 0.4, 0.01), (0.935, 0.975)),  # examples decide
        ((0.03, 0.4, 0.1), (0.945, 0.995)),  # both: at least what it says
    ],
)
def test_intervals_hold_the_true_mean_about_as_often_as_they_say(
    spreads: tuple[float, float, float], bounds: tuple[float, float]
) -> None:
    found = coverage(seeds=3, examples=100, spreads=spreads)
    assert bounds[0] <= found <= bounds[1], found


def test_intervals_hold_the_true_mean_of_few_examples_too() -> None:
    assert 0.935 <= coverage(seeds=3, examples=10, spreads=(0.0, 0.4, 0.01)) <= 0.975


def test_an_interval_over_examples_alone_misses_the_effect_of_seeds() -> None:
    assert coverage(seeds=3, examples=100, spreads=(0.05, 0.0, 0.05), only=1) < 0.4


def test_the_mean_over_sets_adds_what_examples_do_and_takes_seeds_together() -> None:
    rng = np.random.default_rng(2)
    values = [drawn(rng, seeds=3, examples=size, spreads=(0.1, 0.4, 0.1)) for size in (40, 90)]
    found = mean_over_sets([(str(own.shape), own) for own in values])
    by_seed = np.mean([own.mean(axis=1) for own in values], axis=0)
    squared = stats.t.ppf(0.975, 2) ** 2 * by_seed.var(ddof=1) / 3
    for own in values:
        size = own.shape[1]
        squared += stats.t.ppf(0.975, size - 1) ** 2 * own.mean(axis=0).var(ddof=1) / size / 4
    assert found.value == pytest.approx(by_seed.mean())
    assert np.allclose(found.interval, (by_seed.mean() - squared**0.5, by_seed.mean() + squared**0.5))


def test_a_set_that_stands_twice_makes_no_figure_surer() -> None:
    values = drawn(np.random.default_rng(2), seeds=3, examples=40, spreads=(0.1, 0.4, 0.1))
    once = ("generalist", values)
    assert np.allclose(mean_over_sets([once, once]).interval, mean_over_sets([once]).interval)


def test_perplexities_are_estimated_in_nats() -> None:
    found = exponential(Estimate(math.log(20.0), Interval(math.log(19.0), math.log(21.0))))
    assert np.allclose([found.value, *found.interval], [20.0, 19.0, 21.0])


def test_the_interval_of_a_share_stays_in_its_range() -> None:
    """As many wins of all examples and seeds, and one loss: both were beyond 1, or without any width."""
    values = np.ones((3, 79))
    found = share_over_sets([("", values)])
    t = stats.t.ppf(0.975, 78)
    assert found.value == 1
    assert found.interval == pytest.approx((1 / (1 + t**2 / 79), 1))
    values[:, 0] = 0
    low, high = share_over_sets([("", values)]).interval
    assert 0.9 < low < 78 / 79 < high < 1
    plain = mean_over_sets([("", values)])
    assert plain.interval.high > 1
    assert difference_over_sets([("", values)]).interval == (plain.interval.low, 1)


def test_the_interval_of_a_share_in_the_middle_is_about_that_of_a_mean() -> None:
    values = (drawn(np.random.default_rng(0), seeds=3, examples=400, spreads=(0.1, 1, 0.3)) > 0).astype(np.float64)
    share, mean = share_over_sets([("", values)]), mean_over_sets([("", values)])
    assert np.allclose(share.interval, mean.interval, atol=0.01)
    assert math.isnan(share_over_sets([("", values[:, :1])]).interval.low)
