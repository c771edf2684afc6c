from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.writers.tree.balanced_kmeans import balance, gpu_resources, search_device
from crisp_stream.writers.tree.fit_tree import fit_tree
from crisp_stream.writers.tree.settings import TreeSettings


def blobs(num_blobs: int, per_blob: int, dim: int = 12, spread: float = 0.1, seed: int = 0) -> NDArray[np.float32]:
    """[num_blobs * per_blob, dim] float32 around random unit centres, shuffled."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_blobs, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    points = np.repeat(centres, per_blob, axis=0) + spread * rng.normal(size=(num_blobs * per_blob, dim))
    return rng.permutation(points).astype(np.float32)


def test_the_tree_separates_blobs_and_its_clusters_are_balanced() -> None:
    points = blobs(64, 40)
    tree = fit_tree(points, arity=8, depth=2, examples_per_step=1024, min_examples_to_split=64)
    assert [len(nodes) for nodes in tree.nodes_per_level] == [8, 64]
    assert np.allclose(np.linalg.norm(tree.centroids_per_level[1], axis=1), 1, atol=1e-5)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    sizes = np.bincount(tree.assign(unit, level=1), minlength=8) / len(points)
    assert sizes.max() < 2 / 8
    assert sizes.min() > 0.3 / 8
    leaves = tree.assign(unit)
    cosine = np.einsum("ij,ij->i", unit, tree.centroids_per_level[1][np.searchsorted(tree.nodes_per_level[1], leaves)])
    assert cosine.mean() > 0.9


def test_balancing_makes_sizes_more_even() -> None:
    rng = np.random.default_rng(0)
    one_heavy = np.concatenate([blobs(1, 3000, spread=0.2), blobs(15, 60, seed=1)])
    points = rng.permutation(one_heavy)

    def largest(limit: float) -> float:
        tree = fit_tree(points, arity=16, depth=1, examples_per_step=1600, balance_limit=limit)
        sizes = np.bincount(tree.assign(points / np.linalg.norm(points, axis=1, keepdims=True)), minlength=16)
        return float(sizes.max() / len(points))

    assert largest(1.408 / 16) < largest(1.0)


def test_the_same_seed_gives_the_same_tree_whatever_the_storage_type() -> None:
    points = blobs(16, 40).astype(np.float16)
    one = fit_tree(points, arity=4, depth=3, min_examples_to_split=40, seed=3)
    again = fit_tree(points.copy(), arity=4, depth=3, min_examples_to_split=40, seed=3)
    as_float = fit_tree(points.astype(np.float32), arity=4, depth=3, min_examples_to_split=40, seed=3)
    other = fit_tree(points, arity=4, depth=3, min_examples_to_split=40, seed=4)
    assert one.fingerprint == again.fingerprint == as_float.fingerprint != other.fingerprint


def test_the_number_of_threads_changes_nothing() -> None:
    from threadpoolctl import threadpool_limits

    points = blobs(16, 400, dim=96)
    with threadpool_limits(2):
        two = fit_tree(points, arity=16, depth=2, examples_per_step=3200, min_examples_to_split=64)
    with threadpool_limits(1):
        one = fit_tree(points, arity=16, depth=2, examples_per_step=3200, min_examples_to_split=64)
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("rule", ["step_mean", "running_mean"])
def test_centroids_are_means_of_the_last_step_or_of_all(rule: Literal["step_mean", "running_mean"]) -> None:
    points = blobs(4, 100, spread=0.05)
    settings = TreeSettings(arity=4, depth=1, examples_per_step=200, centroid_rule=rule, balance_limit=1.0, steps=6)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    leaves = fit_tree(points, settings).assign(unit)
    [scaled] = fit_tree(points, settings).centroids_per_level
    [plain] = fit_tree(points, replace(settings, normalise_centroids=False)).centroids_per_level
    means = np.stack([unit[leaves == leaf].mean(axis=0) for leaf in range(4)])
    assert np.allclose(plain, means, atol=0.02)
    assert np.allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)
    assert (np.linalg.norm(plain, axis=1) < 0.999).all()


def test_a_gpu_is_used_when_faiss_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss: Any = importlib.import_module("faiss")
    searches: list[int] = []

    def on_the_gpu(resources: object, examples: Any, centroids: Any, count: int, *, metric: int) -> Any:
        assert resources == "resources"
        assert metric == faiss.METRIC_L2
        searches.append(len(examples))
        return faiss.knn(examples, centroids, count, metric=metric)

    points = blobs(16, 40, dim=24)
    settings = TreeSettings(arity=4, depth=2, min_examples_to_split=40)
    on_the_cpu = fit_tree(points, settings)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", on_the_gpu, raising=False)
    gpu_resources.cache_clear()
    on_the_gpu_too = fit_tree(points, settings)
    assert search_device() == "gpu"
    gpu_resources.cache_clear()
    assert len(searches) > settings.steps
    assert (on_the_gpu_too.centroids_per_level[0] == on_the_cpu.centroids_per_level[0]).all()


def test_nodes_with_few_examples_stay_leaves() -> None:
    points = blobs(16, 20)
    tree = fit_tree(points, arity=4, depth=3, min_examples_to_split=1000)
    assert [len(nodes) for nodes in tree.nodes_per_level] == [4, 0, 0]
    assert set(tree.assign(points).tolist()) <= {0, 16, 32, 48}
    full = fit_tree(points, arity=4, depth=3)
    assert len(full.nodes_per_level[1]) > 0


def test_a_node_of_equal_examples_stays_a_leaf() -> None:
    points = np.concatenate([np.tile(blobs(1, 1), (500, 1)), blobs(3, 100, seed=5)])
    tree = fit_tree(points, arity=4, depth=3, min_examples_to_split=50, balance_limit=1.0)
    equal = int(tree.assign(points[:1])[0])
    children = np.uint32(equal // 16 * 4)
    assert children not in tree.nodes_per_level[1]


def test_a_few_different_vectors_among_very_many_equal_ones_are_told_apart() -> None:
    different = blobs(6, 1, spread=0)
    points = np.concatenate([np.tile(different[:1], (20_000, 1)), different[1:]])
    tree = fit_tree(points, arity=4, depth=1, examples_per_step=1000)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    leaves = tree.assign(unit)
    assert len(set(leaves[-5:].tolist()) | {int(leaves[0])}) == 4, "seeds are looked for beyond the first step"


def test_a_corpus_of_equal_windows_gets_a_tree_whose_other_leaves_are_empty() -> None:
    points = np.tile(blobs(1, 1), (300, 1))
    tree = fit_tree(points, arity=4, depth=3, min_examples_to_split=4)
    assert [len(nodes) for nodes in tree.nodes_per_level] == [4, 0, 0]
    assert set(tree.assign(points / np.linalg.norm(points[0])).tolist()) == {0}
    assert np.isfinite(tree.centroids_per_level[0]).all()


def test_the_examples_of_a_node_do_not_depend_on_the_order_of_the_windows() -> None:
    points, ids = blobs(16, 100), np.arange(1600, dtype=np.uint64)
    settings = TreeSettings(arity=4, depth=3, steps=4, examples_per_step=100, min_examples_to_split=40)
    order = np.random.default_rng(1).permutation(len(points))
    one, other = fit_tree(points, settings, ids=ids), fit_tree(points[order], settings, ids=ids[order])
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != fit_tree(points, settings, ids=ids + np.uint64(1)).fingerprint


def test_fewer_examples_than_a_step_are_reused_in_passes() -> None:
    points = blobs(4, 30)
    tree = fit_tree(points, arity=4, depth=1, examples_per_step=6400)
    sizes = np.bincount(tree.assign(points), minlength=64)[[0, 1, 2, 3]]
    assert sizes.tolist() == [30, 30, 30, 30]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 99))
def test_balancing_moves_only_halves_of_clusters_above_the_limit(labels: list[int], seed: int) -> None:
    before = np.array(labels, np.int64)
    after = balance(before, 6, 1.408 / 6, np.random.default_rng(seed))
    counts = np.bincount(before, minlength=6)
    allowed = counts > 1.408 / 6 * len(before)
    assert set(before[before != after].tolist()) <= set(np.flatnonzero(allowed).tolist())
    assert np.bincount(after, minlength=6).max() <= counts.max()
    assert before.tolist() == labels


def test_clusters_of_equal_examples_share_nothing() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    examples = blobs(100, 1)
    rng = np.random.default_rng(0)
    assert np.bincount(balance(labels, 3, 0.4, rng, examples)).tolist() == [30, 30, 40]
    examples[:60] = examples[0]
    assert balance(labels, 3, 0.4, rng, examples).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (blobs(2, 1), {"arity": 4}, "needs at least 4 examples to split in 4, got 2"),
        (blobs(8, 9), {"arity": 65}, "arity: must be 2 to 64, got 65"),
        (blobs(8, 9), {"arity": 64, "depth": 5}, r"arity \*\* depth <= 16,777,216"),
        (np.full((100, 3), np.nan, np.float32), {"arity": 4}, "every value must be finite"),
        (np.ones(100, np.float32), {"arity": 4}, r"must be \[num_examples, dim\]"),
        (blobs(8, 9), {"arity": 4, "steps": 0}, "steps, examples_per_step and min_examples_to_split"),
    ],
)
def test_impossible_trees_are_refused(points: NDArray[np.float32], options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_tree(points, **options)  # type: ignore[arg-type]
