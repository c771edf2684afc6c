"""Looking at datasets and histograms; verification finds every kind of damage."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crisp_stream import Histogram
from crisp_stream.errors import FormatError
from crisp_stream.format import Dataset
from crisp_stream.inspection import (
    describe_dataset,
    describe_histogram,
    size_histogram,
    top_nodes,
    verify_dataset,
    window_text,
)
from crisp_stream.mds import encode_samples
from tests.synthetic import EOT_ID, synthetic_tree, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("inspected"), {0: 100, 3: 50, 5: 7, 15: 200})


@pytest.fixture
def root(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


def test_a_whole_dataset_verifies(dataset: Dataset) -> None:
    seen = []
    report = verify_dataset(dataset.root, progress=lambda done, total: seen.append((done, total)))
    assert report.problems == []
    assert report.num_windows == 357
    assert seen[-1] == (len(dataset.shards), len(dataset.shards))


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def flip_token(root: Path, dataset: Dataset) -> None:
    overwrite(root / dataset.shards[1].path, dataset.shards[1].first_sample_offset + 40, b"\xff\xff")


def flip_header(root: Path, dataset: Dataset) -> None:
    overwrite(root / dataset.shards[1].path, 60, b"X")


def swap_windows(root: Path, dataset: Dataset) -> None:
    row, samples = dataset.shards[0], dataset.read_windows(np.array([1, 0]))
    overwrite(root / row.path, row.first_sample_offset, samples.tobytes())


def move_to_another_leaf(root: Path, dataset: Dataset) -> None:
    row, samples = dataset.shards[0], dataset.read_windows(np.array([0]))
    overwrite(root / row.path, row.first_sample_offset, encode_samples(samples["tokens"], np.array([3])).tobytes())


def truncate(root: Path, dataset: Dataset) -> None:
    path = root / dataset.shards[-1].path
    path.write_bytes(path.read_bytes()[:-1])


def remove_shard(root: Path, dataset: Dataset) -> None:
    (root / dataset.shards[-1].path).unlink()


def remove_index(root: Path, dataset: Dataset) -> None:
    (root / "shards" / "03" / "index.json").unlink()


def edit_index(root: Path, dataset: Dataset) -> None:
    shutil.copy(root / "shards" / "03" / "index.json", root / "shards" / "index.json")


def replace_tree(root: Path, dataset: Dataset) -> None:
    synthetic_tree(4, 2, seed=5).save(root / "tree")


def replace_tokenizer(root: Path, dataset: Dataset) -> None:
    (root / "tokenizer" / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_token, r"shards/00/shard.00001.mds: window 64 does not match its checksum \(1 such windows\)"),
        (flip_header, "shards/00/shard.00001.mds: its hash is"),
        (swap_windows, "shards/00/shard.00000.mds: its hash is"),
        (move_to_another_leaf, "window 0 is of cluster 3, the cluster table says 0"),
        (truncate, "the shard table says"),
        (remove_shard, "does not exist"),
        (remove_index, "shards/03/index.json does not exist"),
        (edit_index, "shards/index.json: does not list the shards of the shard table"),
        (replace_tree, "The tree was replaced"),
        (replace_tokenizer, "The tokenizer was replaced"),
    ],
)
def test_verification_names_the_damage(
    root: Path, dataset: Dataset, damage: Callable[[Path, Dataset], None], message: str
) -> None:
    damage(root, dataset)
    problems = verify_dataset(str(root)).problems
    assert len(problems) == 1
    assert re.search(message, problems[0]), problems


def test_a_dataset_is_described_with_its_largest_clusters(dataset: Dataset) -> None:
    page = describe_dataset(dataset, level=2, limit=2)
    assert "357 of 32 tokens (uint16, joined)" in page
    assert "4 leaves with windows of at most 16" in page
    lines = page.splitlines()[-2:]
    assert lines[0].split()[:3] == ["15", "56.02%", "200"]
    assert lines[1].split()[:3] == ["0", "28.01%", "100"]


def test_top_clusters_carry_importance_weights_and_text(dataset: Dataset) -> None:
    histogram = Histogram.from_leaves([15, 15, 15, 3, 2], dataset.tree, 2, {"inputs": ["x.jsonl"]})
    nodes = {node.node: node for node in top_nodes(dataset, histogram)}
    assert nodes[15].weight == pytest.approx(0.6 / (200 / 357))
    assert nodes[3].num_windows == 50
    assert np.isnan(nodes[2].weight)
    first_of_15 = window_text(dataset, np.array([157]))[0]
    assert nodes[15].text == " ".join(first_of_15.split())
    page = describe_histogram(histogram, dataset, limit=3)
    assert "counted      5 windows" in page
    assert "x.jsonl" in page
    assert "60.00%" in describe_histogram(histogram, None, limit=1)
    with pytest.raises(FormatError, match="was counted with tree"):
        top_nodes(dataset, Histogram.from_leaves([0], synthetic_tree(4, 2, seed=8), 2))


def test_documents_in_a_window_are_shown_apart_and_padding_not_at_all(tmp_path: Path) -> None:
    tokens = np.full((5, 8), EOT_ID, np.uint16)
    tokens[:, :2], tokens[:, 3:5] = ord("a"), ord("b")
    made = write_synthetic_dataset(tmp_path, {0: 5}, window_tokens=8, tokens=tokens)
    assert window_text(made, np.array([0, 4])) == ["aa\n\nbb"] * 2


def test_the_generalist_histogram_comes_from_the_cluster_table(dataset: Dataset) -> None:
    assert size_histogram(dataset, 1).counts.tolist() == [150, 7, 200]  # pyright: ignore[reportOptionalMemberAccess]
    assert size_histogram(dataset, 2).proportions.sum() == pytest.approx(1)


def test_a_root_that_cannot_be_opened_is_an_error_not_a_report(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no dataset"):
        verify_dataset(str(tmp_path))
