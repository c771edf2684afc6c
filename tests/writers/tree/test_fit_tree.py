from __future__ import annotations

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.writers.tree.balanced_kmeans import balance, gpu_resources
from crisp_stream.writers.tree.fit_tree import Subtree, fit_root, fit_subtree, fit_tree, join_subtrees, root_labels
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


def test_subtrees_fitted_apart_and_saved_join_to_the_same_tree(tmp_path: Path) -> None:
    points = blobs(16, 60, dim=24).astype(np.float16)
    np.save(tmp_path / "sample.npy", points)
    sample = np.load(tmp_path / "sample.npy", mmap_mode="r")
    settings = TreeSettings(arity=4, depth=3, min_examples_to_split=30, seed=2)
    root = fit_root(sample, settings)
    for child in (2, 0, 3, 1):
        fit_subtree(sample, root, child, settings).save(tmp_path / f"{child}.npz")
    subtrees = [Subtree.load(tmp_path / f"{child}.npz") for child in (3, 1, 0, 2)]
    apart, at_once = join_subtrees(root, subtrees, settings), fit_tree(points, settings)
    assert apart.fingerprint == at_once.fingerprint
    assert len(at_once.nodes_per_level[2]) > 0
    assert all(subtree.device == "cpu" and len(subtree.seconds_per_level) == 2 for subtree in subtrees)


def test_another_process_fits_the_same_subtree(tmp_path: Path) -> None:
    points = blobs(8, 60, dim=24).astype(np.float16)
    settings = TreeSettings(arity=4, depth=2, min_examples_to_split=30, seed=2)
    root = fit_root(points, settings)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        elsewhere = pool.submit(_saved_subtree, points, root, settings, tmp_path / "1.npz").result()
    here = fit_subtree(points, root, 1, settings)
    assert len(here.nodes_per_level[0]) == 4
    assert (Subtree.load(elsewhere).centroids_per_level[0] == here.centroids_per_level[0]).all()


def _saved_subtree(points: NDArray[Any], root: NDArray[np.float32], settings: TreeSettings, path: Path) -> Path:
    fit_subtree(points, root, 1, settings).save(path)
    return path


def test_subtrees_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    points = blobs(8, 30)
    settings = TreeSettings(arity=4, depth=2)
    root = fit_root(points, settings)
    with pytest.raises(InputError, match=r"one per level-1 node, 0 to 3, got \[0\]"):
        join_subtrees(root, [fit_subtree(points, root, 0, settings)], settings)
    fit_subtree(points, root, 0, settings).save(tmp_path / "0.npz")
    content = (tmp_path / "0.npz").read_bytes()
    for damaged in (content[:100], b"", b"text", content[: len(content) // 2]):
        (tmp_path / "0.npz").write_bytes(damaged)
        with pytest.raises(FormatError, match=r"0\.npz: not a readable subtree"):
            Subtree.load(tmp_path / "0.npz")


def test_the_seed_of_a_subtree_does_not_depend_on_the_others() -> None:
    points = blobs(16, 60)
    settings = TreeSettings(arity=4, depth=2, min_examples_to_split=30)
    root = fit_root(points, settings)
    labels = root_labels(points, root)
    with_labels = fit_subtree(points, root, 3, settings, labels=labels)
    alone = fit_subtree(points[labels == 3], root, 3, settings)
    assert (with_labels.centroids_per_level[0] == alone.centroids_per_level[0]).all()


@pytest.mark.parametrize("rule", ["step_mean", "running_mean"])
def test_centroids_are_means_of_the_last_step_or_of_all(rule: Literal["step_mean", "running_mean"]) -> None:
    points = blobs(4, 100, spread=0.05)
    settings = TreeSettings(arity=4, depth=1, examples_per_step=200, centroid_rule=rule, balance_limit=1.0, steps=6)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    leaves = fit_tree(points, settings).assign(unit)
    scaled, plain = fit_root(points, settings), fit_root(points, replace(settings, normalise_centroids=False))
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
    root = fit_root(points, settings)
    subtree = fit_subtree(points, root, 0, settings)
    gpu_resources.cache_clear()
    assert subtree.device == "gpu"
    assert len(searches) > settings.steps
    assert (root == on_the_cpu.centroids_per_level[0]).all()


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


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (blobs(2, 1), {"arity": 4}, "needs at least 4 examples to split in 4, got 2"),
        (np.ones((100, 3), np.float32), {"arity": 4}, "at least 4 distinct examples"),
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
