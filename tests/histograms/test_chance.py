"""What sampling alone makes of a histogram, against plain simulation and cases that can be worked out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.histograms.arithmetic import chance_of, compare, generalist_histogram, total_variation
from crisp_stream.histograms.chance import by_chance, distance_by_chance
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.inspection.summary import describe_histogram
from tests.support.synthetic import write_synthetic_dataset


def test_a_single_window_is_all_but_its_own_cluster_off_the_corpus() -> None:
    found = by_chance(np.full(100, 0.01), 1)
    assert (found.off_corpus, found.effective_clusters) == pytest.approx((0.99, 1))
    assert found.largest_weight == pytest.approx(100)
    assert found.windows_per_cluster == 0.01
    with pytest.raises(InputError, match="needs at least 1 window, got 0"):
        by_chance(np.ones(1), 0)


def test_random_windows_are_off_the_corpus_as_much_as_a_plain_simulation_says() -> None:
    rng = np.random.default_rng(7)
    shares = rng.dirichlet(np.full(300, 0.7))
    counts = rng.multinomial(50, shares, 400) / 50
    off = np.abs(counts - shares).sum(axis=1).mean() / 2
    entropies = -np.where(counts > 0, counts * np.log(np.maximum(counts, 1e-300)), 0).sum(axis=1)
    found = by_chance(shares, 50, draws=200)
    assert found.off_corpus == pytest.approx(off, abs=0.01)
    assert found.off_corpus > 0.7
    assert found.effective_clusters == pytest.approx(np.exp(entropies).mean(), rel=0.03)
    assert found.largest_weight > 2
    assert by_chance(shares, 300_000).off_corpus < 0.02
    assert by_chance(shares, 50) == by_chance(shares, 50)


def test_few_windows_per_cluster_are_warned_of() -> None:
    shares = np.full(20, 0.05)
    assert by_chance(shares, 100).warning is None
    assert (by_chance(shares, 99).warning or "").startswith("warning: 5 windows per cluster, below 5: shares of single")


def test_two_sets_of_one_mixture_are_as_far_apart_as_exchanging_their_windows_says() -> None:
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(200))
    first, second = rng.multinomial(80, shares), rng.multinomial(120, shares)
    seen = np.abs(first / 80 - second / 120).sum() / 2
    assert distance_by_chance(first, second) == pytest.approx(seen, abs=0.06)
    apart = np.zeros(200, np.int64)
    apart[0] = 500
    assert distance_by_chance(first, apart) < 0.2  # of one mixture they would be near; they are not


def test_figures_of_a_histogram_stand_beside_those_of_random_windows(tmp_path: Path) -> None:
    windows = {leaf: 3 + leaf % 5 for leaf in range(64)}
    dataset = write_synthetic_dataset(tmp_path, windows, depth=3)
    leaves = np.random.default_rng(0).choice(np.repeat(list(windows), list(windows.values())), 50)
    histogram, corpus = Histogram.from_leaves(leaves, dataset.tree, 3), generalist_histogram(dataset, 3)
    chance = chance_of(histogram, dataset)
    assert chance is not None
    assert total_variation(histogram, corpus) == pytest.approx(chance.off_corpus, abs=0.08)
    assert total_variation(histogram, corpus) == pytest.approx(compare(histogram, corpus).total_variation)
    page = " ".join(describe_histogram(histogram, dataset, limit=3).split())
    assert f"(total variation); {chance.off_corpus:.1%} of as many random windows" in page
    assert f"; {chance.effective_clusters:.1f} of as many random windows of the corpus" in page
    assert f"w(c) up to {chance.largest_weight:.1f} in the ten heaviest of random windows" in page
    assert "warning: 0.78 windows per cluster, below 5" in page
    assert "warning" not in describe_histogram(Histogram.from_leaves(leaves, dataset.tree, 1), dataset, limit=3)


def test_a_comparison_says_what_sampling_alone_would_give(tmp_path: Path) -> None:
    dataset = write_synthetic_dataset(tmp_path, {leaf: 3 for leaf in range(16)})
    rng = np.random.default_rng(0)
    first, second = (Histogram.from_leaves(rng.integers(0, 16, 40), dataset.tree, 2) for _ in range(2))
    found = compare(first, second)
    assert found.total_variation_by_chance == pytest.approx(found.total_variation, abs=0.12)
    assert f"by sampling alone      {found.total_variation_by_chance:.1%} (as many windows each" in found.table()
    computed = Histogram.average([first, second])
    assert compare(first, computed).total_variation_by_chance is None
    assert "not known: one of them was computed" in compare(first, computed).table()
