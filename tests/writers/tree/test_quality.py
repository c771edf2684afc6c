"""Quality of trees: sums, balance, leaf sizes, agreement, report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError, MissingExtraError
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.tree.fit_tree import fit_tree
from crisp_stream.writers.tree.quality import (
    QualitySums,
    label_agreement,
    quality_of_counts,
    tree_quality,
)
from crisp_stream.writers.tree.report import inspect_tree


def unit_vectors(count: int, dim: int = 24, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    vectors = centres[rng.integers(0, 20, count)] + 0.8 * rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def tree() -> ClusterTree:
    """Arity 4, depth 3, ragged at levels 2 and 3."""
    fitted = fit_tree(unit_vectors(1500), arity=4, depth=3, min_examples_to_split=100)
    assert 0 < len(fitted.nodes_per_level[2]) < 64
    return fitted


def centroid_passed(tree: ClusterTree, leaf: int, level: int) -> NDArray[np.float32]:
    """Centroid of the node above a leaf at a level; of the leaf, where it lies above."""
    for own in range(level, 0, -1):
        node = int(tree.node_of(leaf, own))
        parent_is_node = own == 1 or int(tree.node_of(leaf, own - 1)) in tree.nodes_per_level[own - 2]
        if parent_is_node and node in tree.nodes_per_level[own - 1]:
            return tree.centroids_per_level[own - 1][int(np.searchsorted(tree.nodes_per_level[own - 1], node))]
    raise AssertionError(leaf)


def assigned(tree: ClusterTree, vectors: NDArray[np.float32]) -> tuple[NDArray[np.uint32], QualitySums]:
    leaves = tree.assign(vectors)
    return leaves, QualitySums.of(tree, vectors, leaves)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_the_sums_are_those_of_distances_to_the_centroids_passed(tree: ClusterTree, scale: float) -> None:
    scaled = ClusterTree(
        arity=tree.arity,
        depth=tree.depth,
        nodes_per_level=tree.nodes_per_level,
        centroids_per_level=[np.float32(scale) * centroids for centroids in tree.centroids_per_level],
    )
    vectors = unit_vectors(400, seed=1)
    leaves, sums = assigned(scaled, vectors)
    for level in (1, 2, 3):
        own = np.stack([centroid_passed(scaled, int(leaf), level) for leaf in leaves]).astype(np.float64)
        distances = np.square(vectors - own).sum()
        cosines = ((vectors * own).sum(axis=1) / np.linalg.norm(own, axis=1)).sum()
        assert sums.squared_distances[level - 1] == pytest.approx(distances, rel=1e-4)
        assert sums.cosines[level - 1] == pytest.approx(cosines, rel=1e-4)
    assert sums.num_windows == 400


def test_sums_of_batches_merge_to_those_of_all_and_survive_json(tree: ClusterTree) -> None:
    vectors = unit_vectors(500, seed=2)
    whole = assigned(tree, vectors)[1]
    parts = [assigned(tree, vectors[at : at + 120])[1] for at in range(0, 500, 120)]
    parts.append(assigned(tree, vectors[:0])[1])
    merged = QualitySums.merge(QualitySums.from_json(json.loads(json.dumps(part.to_json()))) for part in parts)
    assert merged.num_windows == 500
    assert merged.cosines == pytest.approx(whole.cosines)
    assert merged.squared_distances == pytest.approx(whole.squared_distances)
    with pytest.raises(InputError, match="must be some, of one tree"):
        QualitySums.merge([])
    with pytest.raises(FormatError, match="quality sums: not readable"):
        QualitySums.from_json({"num_windows": 3})


def test_deeper_levels_are_closer_and_balance_is_counted_over_all_clusters(tree: ClusterTree) -> None:
    vectors = unit_vectors(600, seed=3)
    quality = tree_quality(tree, vectors, fit_seconds=[1, 2, 3])
    distances = [own.squared_distance for own in quality.levels if own.squared_distance is not None]
    assert distances == sorted(distances, reverse=True)
    assert len(distances) == 3
    assert quality.levels[0].num_clusters == 4
    assert quality.levels[-1].num_clusters == quality.levels[-1].num_leaves == tree.num_leaves
    assert [own.fit_seconds for own in quality.levels] == [1, 2, 3]
    for own in quality.levels:
        sizes = np.unique(tree.assign(vectors, own.level), return_counts=True)[1]
        assert own.imbalance == pytest.approx(own.num_clusters * np.square(sizes / 600).sum())
        assert own.largest == pytest.approx(sizes.max() / 600 * own.num_clusters)
        assert own.empty_clusters == own.num_clusters - len(sizes)
    assert sum(size.num_leaves for size in quality.leaf_sizes) == tree.num_leaves
    assert quality.leaf_sizes[0].num_leaves == quality.empty_leaves


def test_leaf_counts_of_a_dataset_give_the_same_balance_without_embeddings(tree: ClusterTree) -> None:
    vectors = unit_vectors(600, seed=3)
    leaves, sums = assigned(tree, vectors)
    counts = np.unique(leaves, return_counts=True)
    assert quality_of_counts(tree, *counts, sums=sums) == tree_quality(tree, vectors)
    unknown = quality_of_counts(tree, *counts)
    assert all(own.squared_distance is None and own.cosine is None for own in unknown.levels)
    with pytest.raises(InputError, match="at least one, got none"):
        quality_of_counts(tree, counts[0][:0], counts[1][:0])


def test_agreement_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 700)
    for others in (rng.integers(0, 9, 700), labels // 2, labels, np.zeros(700, np.int64)):
        own = label_agreement(labels, others)
        assert own.adjusted_rand == pytest.approx(adjusted_rand_score(labels, others), abs=1e-9)
        expected = normalized_mutual_info_score(labels, others)
        assert own.normalised_mutual_information == pytest.approx(expected, abs=1e-9)
    with pytest.raises(InputError, match="at least 2, got 1"):
        label_agreement(labels[:1], labels[:1])


def test_the_report_says_what_is_known_as_text_and_json(tree: ClusterTree) -> None:
    vectors = unit_vectors(600, seed=3)
    bare = inspect_tree(tree)
    assert bare.quality is None
    assert f"{tree.num_leaves} leaves" in bare.text()
    other = fit_tree(unit_vectors(1500), arity=4, depth=2, min_examples_to_split=100, seed=7)
    report = inspect_tree(tree, embeddings=vectors, against=other)
    assert [own.level for own in report.agreements] == [1, 2]
    assert json.loads(json.dumps(report.to_json()))["quality"]["num_windows"] == 600
    text = report.text()
    for column in ("imbalance", "squared distance", "adjusted Rand index", "windows in the leaf"):
        assert column in text
    itself = inspect_tree(tree, embeddings=vectors, against=tree)
    assert all(own.adjusted_rand == pytest.approx(1) for own in itself.agreements)
    with pytest.raises(InputError, match="two trees: are compared on embeddings"):
        inspect_tree(tree, against=other)


def test_the_plot_is_written_as_png_or_svg_with_the_same_bytes_every_time(tree: ClusterTree, tmp_path: Path) -> None:
    vectors = unit_vectors(600, seed=3)
    report = inspect_tree(tree, embeddings=vectors, against=tree)
    for name, start in (("tree.png", b"\x89PNG"), ("tree.svg", b"<?xml")):
        report.plot(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert content.startswith(start)
        report.plot(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    inspect_tree(tree, leaf_counts=np.unique(tree.assign(vectors), return_counts=True)).plot(tmp_path / "counts.svg")
    with pytest.raises(InputError, match=r"must be a \.png or \.svg file, got tree\.pdf"):
        report.plot(tmp_path / "tree.pdf")
    with pytest.raises(InputError, match="needs windows to measure the tree on"):
        inspect_tree(tree).plot(tmp_path / "none.png")


def test_plotting_without_matplotlib_says_how_to_install_it(
    tree: ClusterTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = inspect_tree(tree, embeddings=unit_vectors(50))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"crisp-stream\[write\]"):
        report.plot(tmp_path / "tree.png")
