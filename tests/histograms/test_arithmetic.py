"""Arithmetic of histograms against plain sums over a small tree."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import (
    compare,
    cut,
    effective_clusters,
    generalist_histogram,
    importance_weights,
    interpolate,
)
from crisp_stream.histograms.histogram import Histogram
from tests.support.synthetic import synthetic_tree, write_synthetic_dataset

TREE = synthetic_tree(4, 2)
WINDOWS = {0: 10, 1: 30, 5: 20, 15: 40}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("data"), WINDOWS)


def by_node(histogram: Histogram) -> dict[int, float]:
    return dict(zip(histogram.nodes.tolist(), histogram.proportions.tolist(), strict=True))


def test_the_generalist_histogram_is_the_share_of_windows_at_every_level(dataset: Dataset) -> None:
    assert by_node(generalist_histogram(dataset, 2)) == pytest.approx({0: 0.1, 1: 0.3, 5: 0.2, 15: 0.4})
    assert by_node(generalist_histogram(dataset, 1)) == pytest.approx({0: 0.4, 1: 0.2, 3: 0.4})
    assert by_node(generalist_histogram(dataset, 0)) == {0: 1.0}
    counts = generalist_histogram(dataset, 1).counts
    assert counts is not None
    assert counts.tolist() == [40, 20, 40]
    with pytest.raises(InputError, match="level: must be 0 to 2, the depth of the tree, got 3"):
        generalist_histogram(dataset, 3)


def test_interpolating_mixes_with_the_corpus(dataset: Dataset) -> None:
    task = Histogram.from_leaves([5, 5, 2], dataset.tree, 2)
    mixed = by_node(interpolate(task, dataset, 0.25))
    assert mixed == pytest.approx({0: 0.025, 1: 0.075, 2: 0.25, 5: 0.5 + 0.05, 15: 0.1})
    assert by_node(interpolate(task, dataset, 0)) == pytest.approx(by_node(task))
    assert by_node(interpolate(task, dataset, 1)) == pytest.approx(by_node(generalist_histogram(dataset, 2)))
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="base share: must be 0 to 1"):
            interpolate(task, dataset, share)


def test_importance_weights_are_ratios_and_infinite_where_the_corpus_has_nothing(dataset: Dataset) -> None:
    task = Histogram.from_leaves([5, 5, 2, 15], dataset.tree, 2)
    assert importance_weights(task, dataset).tolist() == pytest.approx([math.inf, 0.5 / 0.2, 0.25 / 0.4])
    base = generalist_histogram(dataset, 1)
    assert importance_weights(base, dataset) == pytest.approx(np.ones(3))
    other = dataclasses.replace(task, tree_fingerprint="f" * 64)
    for operation in (importance_weights, lambda h, d: interpolate(h, d, 0.5)):
        with pytest.raises(InputError, match="was counted with tree"):
            operation(other, dataset)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.integers(1, 2))
def test_cutting_counted_leaves_is_counting_at_the_coarser_level(leaves: list[int], level: int) -> None:
    examples = [number // 2 for number in range(len(leaves))]
    fine = Histogram.from_leaves(leaves, TREE, 2, examples=examples)
    direct, coarse = Histogram.from_leaves(leaves, TREE, level, examples=examples), cut(fine, level)
    assert by_node(coarse) == pytest.approx(by_node(direct))
    assert coarse.counts is not None
    assert direct.counts is not None
    assert coarse.counts.tolist() == direct.counts.tolist()
    assert coarse.examples is not None
    assert sorted(coarse.examples.tolist()) == sorted(examples)


def test_cutting_refuses_finer_levels() -> None:
    coarse = Histogram.from_leaves([0, 5], TREE, 1)
    with pytest.raises(InputError, match="level: must be 0 to 1, that of the histogram, got 2"):
        cut(coarse, 2)


def test_effective_clusters_count_equal_ones_fully_and_rare_ones_little() -> None:
    assert effective_clusters(Histogram.from_leaves([0, 1, 2, 3], TREE, 2)) == pytest.approx(4)
    assert effective_clusters(Histogram.from_leaves([7], TREE, 2)) == pytest.approx(1)
    assert 1 < effective_clusters(Histogram.from_leaves([0] * 99 + [1], TREE, 2)) < 1.1


def test_a_comparison_gives_the_divergences_and_the_largest_differences() -> None:
    first, second = Histogram.from_leaves([0, 0, 0, 5], TREE, 2), Histogram.from_leaves([0, 5], TREE, 2)
    found = compare(first, second)
    assert found.total_variation == pytest.approx(0.25)
    assert found.first_from_second == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.second_from_first == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2))
    assert 0 < found.jensen_shannon < math.log(2)
    assert {row.node for row in found.differences} == {0, 5}
    assert "total variation          25.0%" in found.table()
    equal = compare(first, first)
    assert (equal.total_variation, equal.first_from_second, equal.jensen_shannon) == (0, 0, 0)


def test_disjoint_histograms_share_nothing() -> None:
    found = compare(Histogram.from_leaves([0], TREE, 2), Histogram.from_leaves([15], TREE, 2), limit=1)
    assert found.total_variation == 1
    assert found.first_from_second == math.inf
    assert found.jensen_shannon == pytest.approx(math.log(2))
    assert len(found.differences) == 1
    assert found.to_json()["first_from_second"] is None


def test_histograms_of_two_levels_are_compared_at_the_coarser_one_and_those_of_two_trees_never() -> None:
    fine, coarse = Histogram.from_leaves([0, 1, 15], TREE, 2), Histogram.from_leaves([0, 1, 15], TREE, 1)
    assert compare(fine, coarse).level == 1
    assert compare(fine, coarse).total_variation == 0
    other = Histogram.from_leaves([0], synthetic_tree(4, 2, seed=3), 2)
    with pytest.raises(InputError, match="histograms must come from one tree"):
        compare(fine, other)
    with pytest.raises(InputError, match="the base mixture has no level"):
        compare(fine, cut(coarse, 0))


def test_examples_and_counts_survive_a_file_and_damage_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crisp_stream.errors import FormatError

    counted = Histogram.from_leaves([5, 0, 5, 5], TREE, 2, examples=[2, 0, 1, 2])
    assert counted.examples is not None
    assert counted.examples.tolist() == [0, 1, 2, 2]
    counted.save(tmp_path / "h.parquet")
    loaded = Histogram.load(tmp_path / "h.parquet")
    assert loaded.examples is not None
    assert loaded.examples.tolist() == [0, 1, 2, 2]
    assert loaded.fingerprint == counted.fingerprint
    table = pq.read_table(tmp_path / "h.parquet")
    assert table["examples"].to_pylist() == [[0], [1, 2, 2]]
    for wrong in (pa.array([[0], [1, 2]]), pa.array([[0], None]), pa.array([1, 2])):
        broken = table.set_column(3, "examples", wrong)
        pq.write_table(broken, tmp_path / "broken.parquet")
        with pytest.raises(FormatError, match="examples must be"):
            Histogram.load(tmp_path / "broken.parquet")
    with pytest.raises(InputError, match="examples must be as many as windows were counted, 4, got 3"):
        dataclasses.replace(counted, examples=np.array([1, 2, 3]))
    assert dataclasses.replace(counted, counts=None).examples is None
