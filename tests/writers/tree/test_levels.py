"""Drawing the examples of a level, and placing windows on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.writers.tree.fit_tree import fit_tree
from crisp_stream.writers.tree.levels import SETTLED, Level, Splits, draw_keys, split_nodes, window_ids
from crisp_stream.writers.tree.settings import TreeSettings

SETTINGS = TreeSettings(arity=4, depth=3, steps=5, examples_per_step=200, min_examples_to_split=50)


def unit(number: int, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(number, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def level_one(vectors: NDArray[np.float32], settings: TreeSettings = SETTINGS) -> tuple[Level, Splits]:
    """Level 1 of a tree of these windows, and the split of the root that it comes from."""
    root = Level.root(len(vectors), settings, is_exact=True)
    keys = draw_keys(window_ids(0, len(vectors)), settings.seed, 0)
    drawn = root.drawn(np.zeros(len(vectors), np.int32), keys)
    splits = split_nodes(vectors, [drawn], root, np.array([0]), np.array([len(vectors)]), settings)
    return Level.below(root, splits, settings), splits


def test_keys_differ_between_windows_levels_and_seeds_and_are_uniform() -> None:
    ids = np.concatenate([window_ids(part, 5000) for part in range(4)])
    keys = [draw_keys(ids, seed, level) for seed, level in ((0, 0), (0, 1), (1, 0))]
    assert all(len(np.unique(one)) == len(ids) for one in keys)
    for one, other in ((keys[0], keys[1]), (keys[0], keys[2])):
        assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 0.03
    assert abs((keys[0] < np.uint64(1 << 62)).mean() - 0.25) < 0.02


def test_the_root_draws_its_quota_and_a_little_more() -> None:
    level = Level.root(10**6, SETTINGS, is_exact=True)
    keys = draw_keys(window_ids(3, 10**6), 0, 0)
    drawn = level.drawn(np.zeros(10**6, np.int32), keys)
    assert SETTINGS.quota <= len(drawn) < SETTINGS.quota + 8 * SETTINGS.quota**0.5
    assert (np.diff(keys[drawn].astype(object)) > 0).all()
    assert (keys[drawn].max() < np.delete(keys, drawn)).all()


@pytest.mark.parametrize("number", [1, 200, 999, 1000, 1001])
def test_a_node_of_at_most_its_quota_takes_all_its_windows(number: int) -> None:
    level = Level.root(number, SETTINGS, is_exact=True)
    drawn = level.drawn(np.zeros(number, np.int32), draw_keys(window_ids(0, number), 0, 0))
    assert sorted(drawn.tolist()) == list(range(number))


def test_children_of_a_large_node_fill_their_quota_by_what_its_examples_foretell() -> None:
    vectors = unit(60_000)
    level, splits = level_one(vectors)
    assert splits.examples_per_child.sum() == SETTINGS.quota
    rows = level.place(vectors, None)
    keys = draw_keys(window_ids(0, len(vectors)), SETTINGS.seed, 1)
    windows = np.bincount(rows, minlength=4)
    drawn = np.bincount(rows[level.drawn(rows, keys)], minlength=4)
    assert (windows > 2 * SETTINGS.quota).all()
    assert (drawn >= SETTINGS.quota).all()
    assert (drawn < 3 * SETTINGS.quota).all()


def test_children_that_cannot_be_split_draw_nothing_where_all_windows_were_examples() -> None:
    settings = replace(SETTINGS, min_examples_to_split=300)
    level, splits = level_one(unit(900), settings)
    windows = splits.examples_per_child[0]
    assert windows.sum() == 900
    assert ((level.thresholds == 0) == (windows < 300)).all()
    assert (level.thresholds == 0).any()


def test_windows_are_placed_as_the_tree_assigns_them() -> None:
    vectors = unit(3000).astype(np.float16)
    tree = fit_tree(vectors, replace(SETTINGS, min_examples_to_split=180))
    rows: NDArray[np.int32] | None = None
    above = Level.root(len(vectors), SETTINGS, is_exact=True)
    for number, (nodes, centroids) in enumerate(zip(tree.nodes_per_level, tree.centroids_per_level, strict=True), 1):
        families = np.full(len(above.nodes), SETTLED)
        parents = np.searchsorted(above.nodes, nodes[:: SETTINGS.arity] // SETTINGS.arity)
        families[parents] = np.arange(len(parents))
        level = Level(
            number=number,
            nodes=nodes,
            centroids=centroids,
            families=families,
            thresholds=np.zeros(len(nodes), np.uint64),
        )
        rows = level.place(vectors, rows)
        placed = rows >= 0
        np.testing.assert_array_equal(level.nodes[rows[placed]], tree.assign(vectors, number)[placed])
        above = level
    assert rows is not None
    assert 0 < np.count_nonzero(rows == SETTLED) < len(rows), "some are in leaves above"


def test_placing_looks_at_windows_that_are_used_and_at_their_values() -> None:
    vectors = unit(400)
    level, _ = level_one(vectors)
    some = np.where(np.arange(400) % 3, SETTLED, 0).astype(np.int32)
    rows = level.place(vectors, some)
    assert ((rows >= 0) == (some == 0)).all()
    np.testing.assert_array_equal(rows[some == 0], level.place(vectors, None)[some == 0])
    vectors[7] = np.nan
    for above in (None, some):
        with pytest.raises(InputError, match="every value must be finite"):
            level.place(vectors, above)


@given(st.lists(st.integers(-1, 3), max_size=300), st.integers(0, 99))
def test_what_is_drawn_is_the_same_however_windows_are_grouped(rows: list[int], seed: int) -> None:
    thresholds = np.array([0, 1 << 62, 1 << 63, (1 << 64) - 1], np.uint64)
    level = Level(
        number=1,
        nodes=np.arange(4, dtype=np.uint32),
        centroids=np.zeros((4, 2), np.float32),
        families=np.zeros(1, np.int64),
        thresholds=thresholds,
    )
    at, keys = np.array(rows, np.int32), draw_keys(window_ids(1, len(rows)), seed, 1)
    half = len(rows) // 2
    whole = level.drawn(at, keys)
    apart = [*level.drawn(at[:half], keys[:half]), *(level.drawn(at[half:], keys[half:]) + half)]
    assert sorted(apart) == sorted(whole.tolist())
    assert all(at[one] > 0 for one in whole)
    assert [(at[one], keys[one]) for one in whole] == sorted((at[one], keys[one]) for one in whole)
