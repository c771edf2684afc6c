"""Smoothing against the formula written out, and what tuning finds where the truth is known."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import generalist_histogram, interpolate
from crisp_stream.histograms.histogram import ALIKE_KEY, Histogram
from crisp_stream.histograms.smoothing import smooth
from crisp_stream.histograms.tuning import FLOOR, tune, tuned
from crisp_stream.histograms.tuning_plot import plot_tuning
from crisp_stream.typed import plain
from tests.support.synthetic import write_synthetic_dataset

WINDOWS = {0: 10, 1: 30, 5: 20, 6: 5, 15: 40}
DEEP = {leaf: 3 + leaf % 5 for leaf in range(64) if leaf % 7}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("data"), WINDOWS)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("deep"), DEEP, depth=3)


def plainly(leaves: list[int], windows: dict[int, int], strength: float, level: int, depth: int) -> dict[int, float]:
    """The formula, node by node."""

    def windows_below(node: int, at: int) -> int:
        return sum(count for leaf, count in windows.items() if leaf // 4 ** (depth - at) == node)

    def examples_below(node: int, at: int) -> int:
        return sum(leaf // 4 ** (depth - at) == node for leaf in leaves)

    mass = {0: 1.0}
    for at in range(1, level + 1):
        below: dict[int, float] = {}
        for node, own in mass.items():
            children = [child for child in range(4 * node, 4 * node + 4) if windows_below(child, at)]
            total = sum(examples_below(child, at) for child in children) + strength
            for child in children:
                prior = windows_below(child, at) / windows_below(node, at - 1)
                share = (examples_below(child, at) + strength * prior) / total if total else prior
                below[child] = own * share
        mass = below
    return {node: own for node, own in mass.items() if own > 0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 63), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 3.0, 100.0]),
    st.integers(1, 3),
)
def test_smoothing_is_the_dirichlet_posterior_at_every_node(
    deep: Dataset, leaves: list[int], strength: float, level: int
) -> None:
    if strength == 0 and not any(DEEP.get(leaf) for leaf in leaves):
        leaves = [*leaves, 1]
    counted = Histogram.from_leaves(leaves, deep.tree, 3)
    found = smooth(counted, deep, strength=strength, level=level)
    expected = plainly(leaves, DEEP, strength, level, 3)
    assert found.nodes.tolist() == sorted(expected)
    assert found.proportions == pytest.approx([expected[node] for node in sorted(expected)])


def test_every_level_may_have_its_own_strength(deep: Dataset) -> None:
    leaves = [1, 1, 2, 17, 40, 41]
    counted = Histogram.from_leaves(leaves, deep.tree, 3)
    coarse = smooth(counted, deep, strength=0.5, level=1)
    mixed = smooth(counted, deep, strength=[0.5, 4.0, 1e12])
    tops = mixed.nodes // 16
    for node, proportion in zip(coarse.nodes, coarse.proportions, strict=True):
        assert mixed.proportions[tops == node].sum() == pytest.approx(proportion)
    two = smooth(counted, deep, strength=[0.5, 4.0], level=2)
    expanded, _ = two.expand(deep.leaves, deep.windows_per_leaf)
    assert mixed.proportions == pytest.approx(expanded)


def test_no_strength_gives_the_counts_and_much_of_it_the_corpus(dataset: Dataset) -> None:
    counted = Histogram.from_leaves([0, 0, 5, 15], dataset.tree, 2)
    raw = smooth(counted, dataset, strength=0)
    assert raw.nodes.tolist() == counted.nodes.tolist()
    assert raw.proportions == pytest.approx(counted.proportions)
    base = generalist_histogram(dataset, 2)
    assert smooth(counted, dataset, strength=1e12).proportions == pytest.approx(base.proportions)


def test_examples_where_the_corpus_has_nothing_count_above(dataset: Dataset) -> None:
    inside, outside = Histogram.from_leaves([0, 5], dataset.tree, 2), Histogram.from_leaves([0, 4], dataset.tree, 2)
    found = dict(zip(*(part.tolist() for part in _columns(smooth(outside, dataset, strength=0))), strict=True))
    assert found == pytest.approx({0: 0.5, 5: 0.4, 6: 0.1})  # node 1 of level 1 keeps its half
    assert smooth(inside, dataset, strength=0).nodes.tolist() == [0, 5]


def _columns(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    return histogram.nodes, histogram.proportions


def test_smoothing_refuses_what_it_cannot_count(dataset: Dataset, deep: Dataset) -> None:
    counted = Histogram.from_leaves([0, 5], dataset.tree, 1)
    with pytest.raises(InputError, match="must have counts"):
        smooth(interpolate(counted, dataset, 0.5), dataset, strength=1)
    with pytest.raises(InputError, match="level must be 1 to 1, that of the histogram, got 2"):
        smooth(counted, dataset, strength=1, level=2)
    for strength in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="strength must be a finite number >= 0"):
            smooth(counted, dataset, strength=strength)
    with pytest.raises(InputError, match="one for each of the levels 1 to 1"):
        smooth(counted, dataset, strength=[1.0, 2.0])
    with pytest.raises(InputError, match="was counted with tree"):
        smooth(counted, deep, strength=1)


def log_weight(smoothed: Histogram, data: Dataset, leaf: int) -> float:
    """log w of the last node above a leaf, at the histogram's level or above, that has windows of the corpus."""
    for level in range(smoothed.level, 0, -1):
        node, base = leaf // 4 ** (data.manifest.depth - level), generalist_histogram(data, level)
        if node in base.nodes:
            own = smoothed.proportions[smoothed.nodes // 4 ** (smoothed.level - level) == node].sum()
            return float(np.log(own / base.proportions[base.nodes == node][0]))
    return 0.0


@pytest.mark.parametrize("empty", [False, True], ids=["all in the corpus", "some in clusters without windows"])
def test_the_score_of_a_tuning_is_the_mean_log_weight_of_the_smoothed_histogram(deep: Dataset, empty: bool) -> None:
    """Each fold's score can be computed from the histogram of the other, which `smooth` writes."""
    rng = np.random.default_rng(0)
    leaves = rng.choice(np.arange(24) if empty else np.array(sorted(DEEP))[:20], 40)
    assert np.isin(leaves, sorted(DEEP)).all() != empty
    counted = Histogram.from_leaves(leaves, deep.tree, 3, examples=np.arange(40))
    found = tune(counted, deep, strengths=[2.0, 20.0], folds=2, seed=3, sizes=())
    ordered = np.sort(leaves)  # the histogram keeps windows node by node
    by_example = {example: leaf for leaf, example in zip(ordered, counted.examples, strict=True)}  # pyright: ignore[reportArgumentType]
    assert [by_example[number] for number in range(40)] == leaves.tolist()
    folds = np.array_split(np.random.default_rng(3).permutation(40), 2)
    for at, strength in enumerate([2.0, 20.0]):
        for level in (1, 2, 3):
            logs = []
            for own, other in (folds, folds[::-1]):
                trained = Histogram.from_leaves(leaves[other], deep.tree, 3)
                smoothed = smooth(trained, deep, strength=strength, level=level)
                logs += [log_weight(smoothed, deep, leaf) for leaf in leaves[own].tolist()]
            assert sum(part[at] for part in found.scores[:level]) == pytest.approx(np.mean(logs))


def test_tuning_prefers_fine_levels_only_where_examples_are_many(deep: Dataset) -> None:
    """The truth is one leaf out of each pair: visible at level 3 with many examples, noise with few."""
    rng = np.random.default_rng(1)
    fine = [leaf for leaf in DEEP if leaf % 2]
    leaves = rng.choice(fine, 4000)
    found = tune(Histogram.from_leaves(leaves, deep.tree, 3), deep, sizes=[20, 100, 1000])
    assert found.chosen.level == 3
    assert [size.examples for size in found.sizes] == [20, 100, 1000, 3200]
    scores = [size.tuned for size in found.sizes]
    assert scores == sorted(scores)
    for size in found.sizes:
        assert size.tuned > max(size.raw)
        assert list(size.unseen) == sorted(size.unseen)
    assert found.sizes[-1].typical.strengths[2] < 10
    assert found.sizes[-1].unseen[2] == 0


def test_examples_like_the_corpus_are_smoothed_to_it(deep: Dataset) -> None:
    rng = np.random.default_rng(2)
    counts = np.array(list(DEEP.values()))
    leaves = rng.choice(list(DEEP), 60, p=counts / counts.sum())
    found = tune(Histogram.from_leaves(leaves, deep.tree, 3), deep)
    assert found.chosen.level == 0
    assert str(found.chosen) == "the base mixture: no level is better than it"
    assert tuned(Histogram.from_leaves(leaves, deep.tree, 3), deep, found.chosen).level == 0
    assert found.sizes[-1].tuned == pytest.approx(0, abs=0.1)
    assert found.sizes[-1].raw[2] < -0.5


def test_windows_of_one_example_are_held_out_together(deep: Dataset) -> None:
    """Ten examples of 30 equal windows each: window by window, every held-out one would be known."""
    occupied = sorted(DEEP)
    leaves = np.repeat(occupied[:10], 30)
    examples = np.repeat(np.arange(10), 30)
    together = tune(Histogram.from_leaves(leaves, deep.tree, 3, examples=examples), deep, sizes=())
    apart = tune(Histogram.from_leaves(leaves, deep.tree, 3), deep, sizes=())
    assert together.num_examples == 10
    assert together.sizes[-1].unseen[2] == 1
    assert apart.sizes[-1].unseen[2] == 0
    assert together.sizes[-1].raw[2] == pytest.approx(math.log(FLOOR))


def test_copies_on_both_sides_of_a_fold_would_make_the_score_too_good(tmp_path: Path) -> None:
    """100 examples three times each, of a known truth over 219 leaves; docs/task/histograms.md has these numbers."""
    windows = {leaf: 3 + leaf % 5 for leaf in range(256) if leaf % 7}
    data, rng = write_synthetic_dataset(tmp_path, windows, depth=4), np.random.default_rng(0)
    truth = rng.dirichlet(np.full(len(windows), 0.3))
    leaves = np.repeat(rng.choice(np.array(sorted(windows)), 100, p=truth), 3)

    def reported_and_true(examples: np.ndarray) -> tuple[float, float]:
        counted = Histogram.from_leaves(leaves, data.tree, 4, examples=examples)
        found = tune(counted, data, sizes=())
        proportions, _ = tuned(counted, data, found.chosen).expand(data.leaves, data.windows_per_leaf)
        weights = proportions / (data.windows_per_leaf / data.windows_per_leaf.sum())
        return found.sizes[-1].tuned, float((truth * np.log(weights)).sum())

    assert reported_and_true(np.arange(300)) == pytest.approx((1.37, -0.13), abs=0.01)
    assert reported_and_true(np.repeat(np.arange(100), 3)) == pytest.approx((0.44, 0.52), abs=0.01)


def test_a_tuning_says_how_many_examples_are_held_out_with_others(deep: Dataset) -> None:
    leaves = np.repeat(np.random.default_rng(0).choice([1, 2, 3, 4, 5, 6], 20), 3)
    counted = Histogram.from_leaves(leaves, deep.tree, 3, examples=np.repeat(np.arange(20), 3))
    told = dataclasses.replace(counted, provenance={ALIKE_KEY: {"exact": 30, "near": 10, "groups": 20}})
    assert "20 examples, 60 windows\n40 more are like one of these" in tune(told, deep, sizes=()).table()


def test_a_tuning_is_printed_drawn_and_saved(deep: Dataset, tmp_path: Path) -> None:
    leaves = np.random.default_rng(0).choice([1, 2, 3, 4, 5, 6], 300)
    found = tune(Histogram.from_leaves([*leaves, 0], deep.tree, 3), deep)
    assert found.num_outside == 1  # the corpus has no window in leaf 0
    assert "301 examples, 301 windows (1 in clusters without windows of the corpus: counted above)" in found.table()
    assert "Which examples are alike is not known" in found.table()
    assert len(found.table().splitlines()) == 9 + len(found.sizes)
    assert plain(found)["sizes"][0]["examples"] == 50
    drawn = plot_tuning(found, tmp_path / "curves" / "t.svg", title="a task").read_text()
    assert "<svg" in drawn
    assert drawn.count('id="matplotlib.axis_') == 2 * (len(found.sizes) + 1)


def test_tuning_refuses_too_few_examples_and_bad_options(deep: Dataset) -> None:
    few = Histogram.from_leaves([1, 2, 3], deep.tree, 3)
    with pytest.raises(InputError, match="needs at least 10 examples, got 3"):
        tune(few, deep)
    counted = Histogram.from_leaves([1, 2, 3] * 10, deep.tree, 3)
    for options in ({"folds": 1}, {"strengths": [0.0]}, {"draws": 0}):
        with pytest.raises(InputError, match="needs 2 folds, 1 draw, and positive strengths"):
            tune(counted, deep, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="must have counts"):
        tune(dataclasses.replace(counted, counts=None), deep)
