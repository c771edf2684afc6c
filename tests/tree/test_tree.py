"""The clustering tree: assignment by descent, ragged trees, saving."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.tree.families import widen
from crisp_stream.tree.tree import ClusterTree
from tests.support.synthetic import DIM, synthetic_tree


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


def wide_tree(dim: int = 96, seed: int = 3) -> ClusterTree:
    """Arity 16, depth 3, ragged: children of every third node are missing."""
    rng = np.random.default_rng(seed)
    nodes = [np.arange(16, dtype=np.uint32)]
    for _ in range(2):
        parents = nodes[-1][nodes[-1] % 3 != 0]
        nodes.append((parents[:, None] * np.uint32(16) + np.arange(16, dtype=np.uint32)).reshape(-1))
    centroids = [rng.normal(size=(len(own), dim)).astype(np.float32) for own in nodes]
    centroids = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in centroids]
    return ClusterTree(arity=16, depth=3, nodes_per_level=nodes, centroids_per_level=centroids)


def rounded_unit_vectors(count: int, dim: int = 96) -> np.ndarray:
    vectors = np.random.default_rng(1).normal(size=(count, dim)).astype(np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def descended(tree: ClusterTree, vector: np.ndarray) -> list[int]:
    """The node at each level, by float64 arithmetic on one vector."""
    node, path = 0, []
    for nodes, centroids in zip(tree.nodes_per_level, tree.centroids_per_level, strict=True):
        first = int(np.searchsorted(nodes, node * tree.arity))
        node *= tree.arity
        if first < len(nodes) and nodes[first] == node:
            children = centroids[first : first + tree.arity].astype(np.float64)
            node += int((children @ vector - 0.5 * np.square(children).sum(axis=1)).argmax())
        path.append(node)
    return path


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("length", [1.0, 1.3])
def test_large_batches_through_ragged_levels_are_assigned_as_single_vectors_are(kind: type, length: float) -> None:
    tree, vectors = wide_tree(), rounded_unit_vectors(20_000).astype(kind)
    for centroids in tree.centroids_per_level:
        centroids[::3] *= np.float32(length)
    leaves = tree.assign(vectors)
    for cut in (1, 2, 31, 33, 500):
        parts = [tree.assign(vectors[at : at + cut]) for at in range(0, 20 * cut, cut)]
        assert (np.concatenate(parts) == leaves[: 20 * cut]).all()
    for row in range(0, len(vectors), 50):
        path = descended(tree, vectors[row].astype(np.float64))
        assert [int(tree.node_of(leaves[row], level)) for level in (1, 2, 3)] == path


def test_leaves_do_not_depend_on_the_batch_even_between_nearly_equal_centroids() -> None:
    vectors = rounded_unit_vectors(1500)
    tree = wide_tree()
    for centroids in tree.centroids_per_level:  # children in pairs that float32 can hardly tell apart
        centroids[1::2] = centroids[::2]
        centroids[1::2, :4] *= np.float32(1 + 2**-20)
    expected = [descended(tree, vector.astype(np.float64))[-1] for vector in vectors]
    assert tree.assign(vectors).tolist() == expected
    for cut in (1, 7, 64, 700):
        parts = [tree.assign(vectors[at : at + cut]) for at in range(0, len(vectors), cut)]
        assert np.concatenate(parts).tolist() == expected
    shuffled = np.random.default_rng(0).permutation(len(vectors))
    assert (tree.assign(vectors[shuffled]) == np.array(expected)[shuffled]).all()


def test_the_first_of_equal_centroids_is_chosen() -> None:
    tree, vectors = wide_tree(), rounded_unit_vectors(300)
    tree.centroids_per_level[0][8:] = tree.centroids_per_level[0][:8]
    assert tree.assign(vectors, 1).max() < 8


def test_every_finite_float16_is_widened_exactly_and_others_are_refused() -> None:
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).reshape(-1, 64)
    finite = np.where(np.isfinite(halves), halves, np.float16(0))
    out = np.empty(finite.shape, np.float32)
    widen(finite, out)
    assert (out.view(np.uint32) == finite.astype(np.float32).view(np.uint32)).all()
    tree = synthetic_tree(4, 2)
    for kind in (np.float16, np.float32):
        for value in (np.nan, np.inf, -np.inf):
            vectors = unit_vectors(700).astype(kind)
            vectors[600, 3] = value
            with pytest.raises(InputError, match="every value must be finite"):
                tree.assign(vectors)


def test_memory_mapped_and_strided_embeddings_are_accepted(tmp_path: Path) -> None:
    tree, vectors = wide_tree(), rounded_unit_vectors(900)
    np.save(tmp_path / "embeddings.npy", vectors)
    expected = tree.assign(vectors)
    assert (tree.assign(np.load(tmp_path / "embeddings.npy", mmap_mode="r")) == expected).all()
    assert (tree.assign(np.asfortranarray(vectors)) == expected).all()
    assert (tree.assign(np.repeat(vectors, 2, axis=0)[::2]) == expected).all()
    assert (tree.assign(vectors.astype(np.float64)) == expected).all()


def test_a_pickled_tree_assigns_equally_and_is_no_larger_for_having_assigned() -> None:
    tree, vectors = wide_tree(), rounded_unit_vectors(400)
    before = pickle.dumps(tree)
    expected = tree.assign(vectors)
    after = pickle.dumps(tree)
    assert len(after) == len(before)
    assert (pickle.loads(after).assign(vectors) == expected).all()


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
