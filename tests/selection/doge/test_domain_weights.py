"""DoGE's weights against cases worked by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from crisp_stream.selection.doge.domain_weights import DomainWeights, gain_factor, scores


def test_an_update_multiplies_each_weight_by_the_exponential_of_its_score_over_mu() -> None:
    weights = DomainWeights(3)
    weights.update(np.array([0, 1, 2]), np.array([0.002, 0.001, -0.001]), mu=5e-4)
    grown = np.exp([4.0, 2.0, -2.0])
    np.testing.assert_allclose(weights.weights, grown / grown.sum(), rtol=1e-12)
    weights.update(np.array([0, 1, 2]), np.array([0.0, 0.001, 0.0]), mu=5e-4)
    grown = np.exp([4.0, 4.0, -2.0])
    np.testing.assert_allclose(weights.weights, grown / grown.sum(), rtol=1e-12)


def test_the_papers_score_is_the_product_times_the_learning_rate_whatever_the_norms() -> None:
    found = scores(np.array([3.0, -2.0]), np.array([0.0, 9.0]), learning_rate=1e-4, update="paper")
    np.testing.assert_allclose(found, [3e-4, -2e-4], rtol=1e-12)


def test_the_public_codes_score_is_divided_by_the_mean_norm_and_cut_at_0_and_5_rates() -> None:
    found = scores(np.array([3.0, -2.0, 60.0]), np.array([1.0, 2.0, 3.0]), learning_rate=1e-4, update="public-code")
    np.testing.assert_allclose(found, [1.5e-4, 0.0, 5e-4], rtol=1e-5)


@pytest.mark.parametrize("num_present", [2, 3, 4, 5])
def test_over_all_batches_that_hold_some_domains_the_mean_move_is_that_with_all_domains(num_present: int) -> None:
    known = np.array([0.3, -0.1, 0.25, 0.0, 0.7])
    everything = DomainWeights(5)
    everything.update(np.arange(5), known, mu=1.0)
    moves = []
    for present in combinations(range(5), num_present):
        weights = DomainWeights(5)
        weights.update(np.array(present), known[list(present)], mu=1.0)
        moves.append(weights.log_weights - weights.log_weights.mean())
    wanted = everything.log_weights - everything.log_weights.mean()
    np.testing.assert_allclose(np.mean(moves, axis=0), wanted, rtol=1e-12)


def test_absent_domains_keep_their_ratios_and_are_scored_as_the_mean_of_the_present_ones() -> None:
    weights = DomainWeights(4)
    weights.update(np.arange(4), np.array([1.0, 0.0, 2.0, 0.5]), mu=1.0)
    before = weights.log_weights.copy()
    weights.update(np.array([1, 3]), np.array([0.4, 0.2]), mu=1.0)
    moved = weights.log_weights - before
    assert moved[0] == pytest.approx(moved[2])
    assert moved[1] - moved[0] == pytest.approx(0.1 * 3)  # 0.1 above the mean of the two, times (4 - 1) / (2 - 1)
    assert moved[3] - moved[0] == pytest.approx(-0.1 * 3)


def test_a_domain_that_is_alone_in_its_batch_moves_nothing() -> None:
    assert gain_factor(4, 1) == 0.0
    weights = DomainWeights(4)
    weights.update(np.array([2]), np.array([123.0]), mu=1e-9)
    np.testing.assert_allclose(weights.weights, 0.25)


def test_a_weight_that_vanished_comes_back() -> None:
    weights = DomainWeights(2)
    weights.update(np.arange(2), np.array([0.0, 2000.0]), mu=1.0)
    assert weights.weights[0] == 0.0
    weights.update(np.arange(2), np.array([2001.0, 0.0]), mu=1.0)
    assert weights.weights[0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_the_averages_are_over_all_updates_and_over_the_last_twenty() -> None:
    weights = DomainWeights(2)
    seen = []
    generator = np.random.default_rng(0)
    for _ in range(33):
        weights.update(np.arange(2), generator.normal(size=2), mu=2.0)
        seen.append(weights.weights)
    np.testing.assert_allclose(weights.run_average, np.mean(seen, axis=0), rtol=1e-12)
    np.testing.assert_allclose(weights.last_average, np.mean(seen[-20:], axis=0), rtol=1e-12)


def test_restored_weights_go_on_as_those_that_were_saved() -> None:
    first, second = DomainWeights(3), DomainWeights(3)
    generator = np.random.default_rng(0)
    for _ in range(25):
        first.update(np.arange(3), generator.normal(size=3), mu=2.0)
    second.restore(first.state())
    for weights in (first, second):
        weights.update(np.array([0, 2]), np.array([1.0, 0.5]), mu=2.0)
    for name in ("weights", "run_average", "last_average", "num_updates"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
