"""Histograms: counting, averaging, expanding to leaves, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import FormatError, InputError
from crisp_stream.histograms.histogram import Histogram
from tests.support.synthetic import synthetic_tree

TREE = synthetic_tree(4, 2)


def histogram(proportions: dict[int, float], level: int = 2) -> Histogram:
    return Histogram(
        level=level,
        nodes=np.array(sorted(proportions), np.uint32),
        proportions=np.array([proportions[node] for node in sorted(proportions)]),
        arity=4,
        depth=2,
        tree_fingerprint=TREE.fingerprint,
    )


def test_counting_gives_frequencies_at_the_asked_level() -> None:
    counted = Histogram.from_leaves([0, 1, 1, 15], TREE, 2)
    assert counted.nodes.tolist() == [0, 1, 15]
    assert counted.proportions.tolist() == [0.25, 0.5, 0.25]
    assert counted.counts is not None
    assert counted.counts.tolist() == [1, 2, 1]
    assert Histogram.from_leaves([0, 1, 1, 15], TREE, 1).proportions.tolist() == [0.75, 0.25]


def test_counting_refuses_levels_outside_the_tree_and_no_examples() -> None:
    for level in (0, 3):
        with pytest.raises(InputError, match=f"level {level} is not in the tree, which has levels 1 to 2"):
            Histogram.from_leaves([0], TREE, level)
    with pytest.raises(InputError, match="at least one example, got none"):
        Histogram.from_leaves([], TREE, 1)


def test_an_average_weighs_histograms_equally_or_as_told() -> None:
    first, second = histogram({0: 1.0}), histogram({0: 0.5, 7: 0.5})
    assert Histogram.average([first, second]).proportions.tolist() == [0.75, 0.25]
    assert Histogram.average([first, second], weights=[3, 1]).proportions.tolist() == [0.875, 0.125]
    assert Histogram.average([first]).fingerprint == first.fingerprint


def test_an_average_refuses_other_trees_levels_and_bad_weights() -> None:
    other = dataclasses.replace(histogram({0: 1.0}), tree_fingerprint="f" * 64)
    with pytest.raises(InputError, match="must come from one tree"):
        Histogram.average([histogram({0: 1.0}), other])
    with pytest.raises(InputError, match="must have one level, got 2 and 1"):
        Histogram.average([histogram({0: 1.0}), histogram({0: 1.0}, level=1)])
    with pytest.raises(InputError, match="weights must be 1 numbers >= 0"):
        Histogram.average([histogram({0: 1.0})], weights=[-1])
    with pytest.raises(InputError, match="at least one histogram, got none"):
        Histogram.average([])


@given(st.lists(st.integers(0, 40), min_size=16, max_size=16), st.integers(0, 2), st.data())
def test_expanding_keeps_each_nodes_mass_and_is_uniform_over_its_windows(
    windows: list[int], level: int, data: st.DataObject
) -> None:
    sizes = np.array(windows)
    if not sizes.sum():
        sizes[0] = 1
    leaves, counts = np.flatnonzero(sizes).astype(np.uint32), sizes[sizes > 0]
    weights = np.array(data.draw(st.lists(st.integers(0, 5), min_size=4**level, max_size=4**level)), float)
    weights[0] += 1
    asked = histogram({node: weight / weights.sum() for node, weight in enumerate(weights) if weight}, level)
    expanded, missing = asked.expand(leaves, counts)
    assert abs(expanded.sum() + missing - 1) < 1e-12
    nodes = leaves // 4 ** (2 - level)
    for node, proportion in zip(asked.nodes, asked.proportions, strict=True):
        inside = nodes == node
        if inside.any():
            assert abs(expanded[inside].sum() - proportion) < 1e-12
            assert np.ptp(expanded[inside] / counts[inside]) < 1e-12
        else:
            assert node in asked.missing_nodes(leaves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proportions": np.array([0.5, 0.4])}, r"must sum to 1, got 0\.900000"),
        ({"proportions": np.array([1.5, -0.5])}, "finite and not negative"),
        ({"proportions": np.array([np.nan, 1])}, "finite and not negative"),
        ({"nodes": np.array([3, 1])}, "sorted, unique and below 16"),
        ({"nodes": np.array([3, 16])}, "sorted, unique and below 16"),
        ({"nodes": np.array([3])}, "as many proportions as nodes"),
        ({"level": 3}, "level 3 is not in the tree"),
    ],
)
def test_impossible_histograms_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(histogram({0: 0.5, 1: 0.5}), **changes)


def test_a_saved_histogram_loads_equal_and_is_plain_parquet(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    counted = Histogram.from_leaves([0, 1, 1, 15], TREE, 2, {"inputs": ["a.jsonl"]})
    counted.save(path)
    loaded = Histogram.load(path)
    assert loaded.fingerprint == counted.fingerprint
    assert loaded.provenance == {"inputs": ["a.jsonl"]}
    assert pq.read_table(path).to_pydict() == {"node": [0, 1, 15], "proportion": [0.25, 0.5, 0.25], "count": [1, 2, 1]}
    Histogram.average([counted, counted]).save(path)
    assert Histogram.load(path).counts is None


def test_files_that_are_no_histograms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no such file. Make a histogram with: crisp-stream histogram"):
        Histogram.load(tmp_path / "none.parquet")
    pq.write_table(pa.table({"node": [1]}), tmp_path / "other.parquet")
    with pytest.raises(FormatError, match="not a histogram file of crisp-stream"):
        Histogram.load(tmp_path / "other.parquet")
