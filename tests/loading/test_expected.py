"""Bytes belong to their place: whole windows of another place, shard or dataset are found as flipped bits are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import CorruptDataError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.mds import sample_dtype
from crisp_stream.inspection.window_reading import parts_of, read_tokens
from crisp_stream.loading.reader import ReadOptions, WindowReader, read_windows
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload, write_synthetic_dataset

WINDOWS_PER_LEAF = {0: 100, 3: 50, 9: 300, 15: 200}
LEAF_9 = np.arange(150, 450)
"""Windows of one leaf, in four shards of 90, 90, 90 and 30."""


def written(folder: Path, seed: int) -> Dataset:
    """Datasets of other seeds differ in text alone: tree, tokenizer, counts and sizes of shards are equal."""
    return write_synthetic_dataset(folder, WINDOWS_PER_LEAF, windows_per_shard=90, seed=seed)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return written(tmp_path_factory.mktemp("one"), 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return written(tmp_path_factory.mktemp("other"), 1)


@pytest.fixture
def root(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


def shards_of_leaf_9(dataset: Dataset) -> list[str]:
    return [row.path for row in dataset.shards if row.path.startswith("shards/02/") and row.num_windows == 90]


def swap(one: Path, two: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def test_windows_that_changed_places_in_their_shard_are_not_served(root: Path) -> None:
    dataset = open_dataset(root)
    row = dataset.shards[0]
    content = bytearray((root / row.path).read_bytes())
    samples = np.frombuffer(content, sample_dtype(32, "uint16"), offset=row.first_sample_offset)
    samples[[4, 7]] = samples[[7, 4]]
    (root / row.path).write_bytes(content)
    for window in (4, 7):
        with pytest.raises(CorruptDataError, match=rf"{row.path}: window {window} .* does not match its checksum"):
            read_windows(dataset, np.array([window]))
    assert len(read_windows(dataset, np.array([3, 5, 6, 8]))) == 4
    with pytest.raises(CorruptDataError, match=r"window 4 .* does not match its checksum"):
        read_tokens(dataset, next(parts_of(dataset)))


def test_shards_that_changed_places_are_not_served(root: Path) -> None:
    dataset = open_dataset(root)
    one, two = shards_of_leaf_9(dataset)[:2]
    swap(root / one, root / two)
    for path, window in ((one, 150), (two, 240)):
        with pytest.raises(CorruptDataError, match=rf"{path}: window {window} .* does not match its checksum"):
            read_windows(dataset, np.array([window]))


def test_files_of_the_run_cache_that_changed_places_are_fetched_again(
    dataset: Dataset, s3: S3Server, tmp_path: Path
) -> None:
    remote, expected = open_dataset(upload(dataset, s3.fresh_prefix())), read_windows(dataset, LEAF_9)
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        reader.read(LEAF_9)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*.run")}
    one, two = [path for path, content in whole.items() if len(content) == 64 * dataset.manifest.sample_bytes][:2]
    swap(one, two)
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        assert (reader.read(LEAF_9) == expected).all()
        assert 1 <= reader.requests <= 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.run")} == whole
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        assert (reader.read(LEAF_9) == expected).all()
        assert reader.requests == 0


def test_a_run_cache_of_another_dataset_of_the_same_layout_is_not_used(
    dataset: Dataset, other: Dataset, s3: S3Server, tmp_path: Path
) -> None:
    remote = open_dataset(upload(dataset, s3.fresh_prefix("one")))
    for name, source in (("one", remote), ("other", open_dataset(upload(other, s3.fresh_prefix("other"))))):
        with WindowReader(source, ReadOptions(local=tmp_path / name)) as reader:
            reader.read(LEAF_9)
    mine, theirs = (next((tmp_path / name).glob("*/runs")) for name in ("one", "other"))
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    with WindowReader(remote, ReadOptions(local=tmp_path / "one")) as reader:
        assert (reader.read(LEAF_9) == read_windows(dataset, LEAF_9)).all()
        assert reader.requests > 0


def test_a_local_root_that_is_replaced_while_it_is_read_is_named(root: Path, other: Dataset) -> None:
    dataset = open_dataset(root)
    with WindowReader(dataset) as reader:
        before = reader.read(np.arange(10))
        shutil.rmtree(root)
        shutil.copytree(other.root, root)
        assert (reader.read(np.arange(10)) == before).all()  # of a shard that is open
        with pytest.raises(CorruptDataError, match=r"window 150 .* is of another dataset: .*copy was replaced while"):
            reader.read(LEAF_9)
    with pytest.raises(CorruptDataError, match="was replaced while it was read"):
        read_tokens(dataset, next(parts_of(dataset)))
    assert (read_windows(open_dataset(root), LEAF_9) == read_windows(other, LEAF_9)).all()


def test_a_remote_root_that_is_replaced_while_it_is_read_is_named(
    dataset: Dataset, other: Dataset, s3: S3Server, tmp_path: Path
) -> None:
    url = upload(dataset, s3.fresh_prefix())
    remote = open_dataset(url)
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        before = reader.read(np.arange(10))
        upload(other, url)
        assert (reader.read(np.arange(10)) == before).all()  # from the cache
        with pytest.raises(CorruptDataError, match=r"window 150 .* is of another dataset: s3://.* was replaced while"):
            reader.read(LEAF_9)
        with pytest.raises(CorruptDataError, match=r"was replaced while"):
            reader.read(LEAF_9)  # what was fetched did not stay in the cache
    assert (read_windows(open_dataset(url), LEAF_9) == read_windows(other, LEAF_9)).all()


def test_a_replaced_root_whose_manifest_cannot_be_read_counts_as_damage(root: Path, other: Dataset) -> None:
    dataset = open_dataset(root)
    shutil.copytree(Path(other.root) / "shards", root / "shards", dirs_exist_ok=True)
    (root / "manifest.json").unlink()
    with pytest.raises(CorruptDataError, match=r"window 150 .* does not match its checksum"):
        read_windows(dataset, LEAF_9)
