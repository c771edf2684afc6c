"""Looking at datasets and histograms; verification finds every kind of damage."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from crisp_stream import Histogram
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.checksums import checksums, window_seeds
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.listed_files import FILES, digests_of, files_parquet
from crisp_stream.format.manifest import Manifest, places_path
from crisp_stream.format.mds import encode_samples, sample_dtype, write_shard
from crisp_stream.format.parquet import read_parquet
from crisp_stream.format.shards import ShardTable
from crisp_stream.format.tables import clusters_fingerprint, clusters_parquet
from crisp_stream.inspection.summary import describe_dataset, describe_histogram, top_nodes, window_text
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.loading.reader import read_windows
from crisp_stream.writers.publishing.generations import write_indexes
from tests.format.test_format import GOLDEN
from tests.support.seaweed import S3Server
from tests.support.synthetic import EOT_ID, synthetic_tree, upload, write_synthetic_dataset
from tests.support.words import write_texts, write_words


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
    row, samples = dataset.shards[0], read_windows(dataset, np.array([1, 0]))
    overwrite(root / row.path, row.first_sample_offset, samples.tobytes())


def replace_shard(root: Path, dataset: Dataset) -> None:
    """A whole shard stands in the place of another of the same leaf and size."""
    shutil.copy(root / "shards/03/shard.00001.mds", root / "shards/03/shard.00000.mds")


def move_to_another_leaf(root: Path, dataset: Dataset) -> None:
    row, samples = dataset.shards[0], read_windows(dataset, np.array([0]))
    samples = encode_samples(samples["tokens"], np.array([3]))
    samples["checksum"] = checksums(samples, window_seeds(row.checksum_seed, 0, 1))
    overwrite(root / row.path, row.first_sample_offset, samples.tobytes())


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
        (swap_windows, r"shards/00/shard.00000.mds: window 0 does not match its checksum \(2 such windows\)"),
        (replace_shard, r"shards/03/shard.00000.mds: window 157 does not match its checksum \(64 such windows\)"),
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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of real text, with provenance: several shards and leaves, three tables of documents."""
    folder = tmp_path_factory.mktemp("verified")
    return write_words(write_texts(folder / "in"), folder / "root", group_bytes=1, depth=5, min_examples_to_split=4)


@pytest.fixture
def written_root(written: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.root, tmp_path / "copy"))


def flip(path: Path, at: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def long_leaf(dataset: Dataset) -> tuple[int, int]:
    """A shard and the row in it at which three windows of one leaf begin."""
    leaves = dataset.leaf_of_windows(np.arange(dataset.manifest.num_windows))
    for shard, row in enumerate(dataset.shards):
        first = int(dataset.first_window_per_shard[shard])
        for at in range(row.num_windows - 3):
            if shard > 0 and len(set(leaves[first + at : first + at + 3].tolist())) == 1:
                return shard, at
    raise AssertionError("no leaf is long enough")


def alone(dataset: Dataset) -> tuple[int, int]:
    """A shard and a row in it whose window is the only one of its leaf, so that no order shows its place."""
    window = int(dataset.first_window_per_leaf[np.flatnonzero(dataset.windows_per_leaf == 1)[0]])
    shard = int(np.searchsorted(dataset.first_window_per_shard, window, side="right")) - 1
    return shard, window - int(dataset.first_window_per_shard[shard])


def flip_shard(root: Path, dataset: Dataset) -> str:
    row = dataset.shards[2]
    flip(root / row.path, row.first_sample_offset + 3 * dataset.manifest.sample_bytes + 50)
    return rf"{row.path}: window \d+ does not match its checksum \(1 such windows\)"


def flip_places(root: Path, dataset: Dataset) -> str:
    shard, at = long_leaf(dataset)
    path = places_path(dataset.shards[shard].path)
    flip(root / path, 128 + 8 * (at + 1) + 4)
    # The order shows it, unless the other place fits there by chance; then it is a place that another window has.
    return rf"{path}: damaged at window \d+ or the one before|window \d+ in {path}; one of the two files is damaged"


def flip_place_that_no_order_shows(root: Path, dataset: Dataset) -> str:
    shard, at = alone(dataset)
    path = places_path(dataset.shards[shard].path)
    flip(root / path, 128 + 8 * at + 7, bit=64)
    return (
        rf"{path}: window {dataset.first_window_per_shard[shard] + at} is said to be place \d+ of part \d+, which has"
    )


def repeat_place_that_no_order_shows(root: Path, dataset: Dataset) -> str:
    shard, at = alone(dataset)
    other = places_path(dataset.shards[0 if shard else 1].path)
    path = places_path(dataset.shards[shard].path)
    overwrite(root / path, 128 + 8 * at, (root / other).read_bytes()[128:136])
    return r"window \d+ is said to be place \d+ of part \d+, as is window \d+ in .*; one of the two files is damaged"


def flip_part(root: Path, dataset: Dataset) -> str:
    path = places_path(dataset.shards[1].path)
    flip(root / path, 128 + 8 * 2 + 3)
    return rf"{path}: window \d+ is said to be of part \d+, which no table of documents has"


def flip_header_of_places(root: Path, dataset: Dataset) -> str:
    path = places_path(dataset.shards[1].path)
    flip(root / path, 20)
    return rf"{path}: is not a .npy file of u32"


def cut_places(root: Path, dataset: Dataset) -> str:
    path = places_path(dataset.shards[1].path)
    (root / path).write_bytes((root / path).read_bytes()[:-8])
    return rf"{path}: has \d+ bytes, the places of \d+ windows need \d+"


def remove_a_shard(root: Path, dataset: Dataset) -> str:
    (root / dataset.shards[3].path).unlink()
    return rf"{dataset.shards[3].path} does not exist"


def remove_places(root: Path, dataset: Dataset) -> str:
    path = places_path(dataset.shards[3].path)
    (root / path).unlink()
    return rf"{path} does not exist"


def edit_manifest(root: Path, **changes: Any) -> None:
    """Change the manifest, and make its checksum and the list of files anew."""
    manifest = Manifest.from_json((root / "manifest.json").read_bytes())
    listed = read_parquet((root / FILES).read_bytes(), max_rows=1000)["path"].to_pylist()
    content = files_parquet(digests_of({path: (root / path).read_bytes() for path in listed}))
    (root / FILES).write_bytes(content)
    changed = dataclasses.replace(manifest, files_sha256=hashlib.sha256(content).hexdigest(), **changes)
    (root / "manifest.json").write_bytes(changed.to_json())


def reorder_leaf(root: Path, dataset: Dataset) -> str:
    """Two windows of a leaf change places, and all that has a hash of them is made anew."""
    shard, at = long_leaf(dataset)
    row = dataset.shards[shard]
    dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
    samples = np.frombuffer((root / row.path).read_bytes(), dtype, offset=row.first_sample_offset).copy()
    places = np.load(root / places_path(row.path))
    samples[[at, at + 1]], places[[at, at + 1]] = samples[[at + 1, at]], places[[at + 1, at]]
    np.save(root / places_path(row.path), places)
    rows = list(dataset.shards)
    rows[shard] = write_shard(root / row.path, samples, root=root, identity=7)
    (root / "shards.parquet").write_bytes(ShardTable.of(rows).to_parquet())
    edit_manifest(root, shards_fingerprint=ShardTable.of(rows).fingerprint)
    write_indexes(open_dataset(root))
    window = int(dataset.first_window_per_shard[shard]) + at + 1
    return rf"{row.path}: window {window} stands out of order: windows of a leaf are sorted by their hash"


def miscount(root: Path, dataset: Dataset) -> str:
    counts = dataset.windows_per_leaf.copy()
    at = int(np.argmax(counts[:-1]))
    counts[at] -= 1
    counts[at + 1] += 1
    (root / "clusters.parquet").write_bytes(clusters_parquet(dataset.leaves, counts))
    edit_manifest(root, clusters_fingerprint=clusters_fingerprint(dataset.leaves, counts))
    return (
        rf"clusters.parquet: says {counts[at]} windows of leaf {dataset.leaves[at]}, the shards hold {counts[at] + 1} "
        r"\(2 such leaves\)"
    )


def flip_documents(root: Path, dataset: Dataset) -> str:
    path = root / "provenance/documents/000001.parquet"
    column = pq.read_metadata(path).row_group(0).column(4)
    flip(path, column.data_page_offset + column.total_compressed_size - 3)
    return r"provenance/documents/000001.parquet: not a readable table"


def lose_a_part(root: Path, dataset: Dataset) -> str:
    path = root / "provenance/documents/000002.parquet"
    table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)
    last = max(table["part"].to_pylist())
    pq.write_table(table.filter(pc.field("part") != last), path)
    edit_manifest(root)
    return rf"provenance/.*\.npy: window \d+ is said to be of part {last}, which no table of documents has"


def lose_a_document(root: Path, dataset: Dataset) -> str:
    path = root / "provenance/documents/000002.parquet"
    table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)
    pq.write_table(table.slice(1), path)
    return r"provenance/documents/000002.parquet: the documents of part \d+ do not follow one another"


DEEP_DAMAGE = [
    flip_shard,
    flip_places,
    flip_place_that_no_order_shows,
    repeat_place_that_no_order_shows,
    flip_part,
    flip_header_of_places,
    cut_places,
    remove_a_shard,
    remove_places,
    reorder_leaf,
    miscount,
    flip_documents,
    lose_a_document,
]


@pytest.mark.parametrize("damage", DEEP_DAMAGE)
def test_deep_verification_names_the_damage_in_one_line(
    damage: Callable[[Path, Dataset], str], written_root: Path, written: Dataset
) -> None:
    message = damage(written_root, written)
    problems = verify_dataset(str(written_root), deep=True).problems
    assert len(problems) == 1, problems
    assert re.search(message, problems[0]), problems


def test_deep_verification_says_which_part_the_documents_lack(written_root: Path, written: Dataset) -> None:
    message = lose_a_part(written_root, written)
    problems = verify_dataset(str(written_root), deep=True).problems
    assert problems
    assert all(re.search(message, problem) for problem in problems)


def test_a_reordered_leaf_with_fitting_hashes_is_seen_by_nothing_less_deep(
    written_root: Path, written: Dataset
) -> None:
    reorder_leaf(written_root, written)
    assert verify_dataset(str(written_root)).problems == []


def test_a_whole_dataset_verifies_deeply_a_chunk_at_a_time(written: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crisp_stream.inspection.verify.VERIFY_CHUNK_BYTES", 5 * written.manifest.sample_bytes)
    report = verify_dataset(written.root, deep=True)
    assert report.problems == []
    assert report.num_windows == written.manifest.num_windows


def test_a_dataset_on_s3_verifies_deeply(s3: S3Server, written_root: Path, written: Dataset, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CRISP_STREAM_CACHE", str(tmp_path / "cache"))
        assert verify_dataset(upload(written, s3.fresh_prefix()), deep=True).problems == []
        message = flip_places(written_root, written)
        problems = verify_dataset(upload(open_dataset(written_root), s3.fresh_prefix()), deep=True).problems
    assert len(problems) == 1
    assert re.search(message, problems[0]), problems


def test_without_provenance_a_deep_verification_says_what_it_cannot_compare() -> None:
    assert verify_dataset(str(GOLDEN)).problems == []
    [problem] = verify_dataset(str(GOLDEN), deep=True).problems
    assert problem.startswith("provenance: missing, because the dataset was written without it")


def test_a_dataset_is_described_with_its_largest_clusters(dataset: Dataset) -> None:
    page = describe_dataset(dataset, level=2, limit=2)
    assert "357 of 32 tokens (uint16, joined)" in page
    assert "4 leaves with windows of at most 16" in page
    lines = page.splitlines()[-4:]
    assert lines[0].split()[:3] == ["15", "56.02%", "200"]
    assert lines[2].split()[:3] == ["0", "28.01%", "100"]
    assert lines[1].strip()


def test_top_clusters_carry_importance_weights_and_text(dataset: Dataset) -> None:
    histogram = Histogram.from_leaves([15, 15, 15, 3, 2], dataset.tree, 2, {"inputs": ["x.jsonl"]})
    nodes = {node.node: node for node in top_nodes(dataset, histogram)}
    assert nodes[15].weight == pytest.approx(0.6 / (200 / 357))
    assert nodes[3].num_windows == 50
    assert np.isnan(nodes[2].weight)
    texts = window_text(dataset, np.arange(157, 357))
    assert nodes[15].text in {" ".join(text.strip("\ufffd").split()) for text in texts}
    assert nodes[2].text == ""
    page = describe_histogram(histogram, dataset, limit=3)
    assert "counted     5 windows" in page
    assert "off corpus  " in page
    assert "x.jsonl" in page
    assert "60.00%" in describe_histogram(histogram, None, limit=1)
    with pytest.raises(InputError, match="was counted with tree"):
        top_nodes(dataset, Histogram.from_leaves([0], synthetic_tree(4, 2, seed=8), 2))


def test_documents_in_a_window_are_shown_apart_and_padding_not_at_all(tmp_path: Path) -> None:
    tokens = np.full((5, 8), EOT_ID, np.uint16)
    tokens[:, :2], tokens[:, 3:5] = ord("a"), ord("b")
    made = write_synthetic_dataset(tmp_path, {0: 5}, window_tokens=8, tokens=tokens)
    assert window_text(made, np.array([0, 4])) == ["aa\n\nbb"] * 2


def test_a_root_that_cannot_be_opened_is_an_error_not_a_report(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no dataset"):
        verify_dataset(str(tmp_path))
