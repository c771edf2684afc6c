"""The clustering tree: assignment by descent, ragged trees, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.tree import ClusterTree
from tests.synthetic import DIM, synthetic_tree


def unit_vectors(count: int, seed: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ragged_tree() -> ClusterTree:
    """Arity 4; only node 2 of level 1 has children."""
    full = synthetic_tree(4, 2)
    keep = np.arange(8, 12)
    return ClusterTree(
        arity=4,
        depth=2,
        nodes_per_level=[full.nodes_per_level[0], full.nodes_per_level[1][keep]],
        centroids_per_level=[full.centroids_per_level[0], full.centroids_per_level[1][keep]],
    )


def test_assignment_is_the_closest_child_at_every_level() -> None:
    tree, vectors = synthetic_tree(4, 3), unit_vectors(200)
    leaves = tree.assign(vectors)
    for vector, leaf in zip(vectors, leaves, strict=True):
        node = 0
        for level in range(3):
            children = tree.centroids_per_level[level][node * 4 : node * 4 + 4]
            node = node * 4 + int(np.square(children - vector).sum(axis=1).argmin())
        assert node == leaf


def test_assignment_to_a_coarser_level_is_the_node_above_the_leaf() -> None:
    tree, vectors = synthetic_tree(4, 3), unit_vectors(300)
    for level in (1, 2, 3):
        assert (tree.assign(vectors, level) == tree.node_of(tree.assign(vectors), level)).all()


def test_a_ragged_leaf_gets_its_path_padded_with_zeros() -> None:
    tree, vectors = ragged_tree(), unit_vectors(300)
    level_1, leaves = tree.assign(vectors, 1), tree.assign(vectors)
    assert (leaves[level_1 != 2] == level_1[level_1 != 2] * 4).all()
    assert len(np.unique(leaves[level_1 == 2])) > 1
    assert (leaves // 4 == level_1).all()
    assert tree.num_leaves == 3 + 4


def test_float16_embeddings_and_empty_input_are_accepted() -> None:
    tree, vectors = synthetic_tree(4, 2), unit_vectors(50)
    assert (tree.assign(vectors.astype(np.float16)) == tree.assign(vectors.astype(np.float16).astype(np.float32))).all()
    assert tree.assign(vectors[:0]).shape == (0,)


def test_a_saved_tree_loads_equal_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    for tree in (synthetic_tree(4, 2), ragged_tree()):
        tree.save(tmp_path / "tree")
        loaded = ClusterTree.load(tmp_path / "tree")
        assert loaded.fingerprint == tree.fingerprint
        assert (loaded.assign(unit_vectors(99)) == tree.assign(unit_vectors(99))).all()


def test_damaged_trees_are_refused(tmp_path: Path) -> None:
    synthetic_tree(4, 2).save(tmp_path)
    (tmp_path / "level1.centroids.npy").write_bytes((tmp_path / "level1.centroids.npy").read_bytes()[:-8])
    with pytest.raises(FormatError, match="not a readable tree"):
        ClusterTree.load(tmp_path)
    synthetic_tree(4, 2).save(tmp_path)
    np.save(tmp_path / "level1.centroids.npy", synthetic_tree(4, 2, seed=4).centroids_per_level[0])
    with pytest.raises(FormatError, match="do not match the fingerprint"):
        ClusterTree.load(tmp_path)
    with pytest.raises(FormatError, match="not a readable tree"):
        ClusterTree.load(tmp_path / "nowhere")
    full = synthetic_tree(4, 2)
    with pytest.raises(FormatError, match="siblings each"):
        ClusterTree(
            arity=4,
            depth=2,
            nodes_per_level=[full.nodes_per_level[0], full.nodes_per_level[1][1:5]],
            centroids_per_level=[full.centroids_per_level[0], full.centroids_per_level[1][1:5]],
        )


def test_wrong_widths_and_levels_are_refused() -> None:
    tree = synthetic_tree(4, 2)
    with pytest.raises(InputError, match=r"embeddings must be \[num_windows, 8\], got \[3, 5\]"):
        tree.assign(np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match="level 3 is not in the tree, which has levels 1 to 2"):
        tree.assign(unit_vectors(3), 3)
