"""Plain mosaicml-streaming over our clusters: StreamingDataset itself serves what `to_streams` asks it to."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from crisp_stream import Histogram, to_streams
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.loading.mds_streams import _streaming_url
from crisp_stream.loading.reader import read_windows
from tests.support.seaweed import S3Server
from tests.support.synthetic import synthetic_tree, write_synthetic_dataset
from tests.support.written_dataset import files_below

# mosaicml-streaming leaves the shard files that it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

LEAVES = {leaf: 20 + 3 * leaf for leaf in range(16) if leaf not in (6, 9)}


@pytest.fixture(autouse=True)
def released(names_in_shared_memory: None) -> Iterator[None]:
    """StreamingDataset holds its folders until it is collected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """14 leaves; shards of at most 16 windows end at every level-2 node."""
    return write_synthetic_dataset(
        tmp_path_factory.mktemp("streams") / "root", LEAVES, windows_per_shard=16, shard_level=2
    )


def histogram_of(dataset: Dataset, shares: dict[int, float], level: int) -> Histogram:
    manifest = dataset.manifest
    return Histogram(
        level=level,
        nodes=np.array(sorted(shares), np.uint32),
        proportions=np.array([shares[node] for node in sorted(shares)]),
        arity=manifest.arity,
        depth=manifest.depth,
        tree_fingerprint=manifest.tree_fingerprint,
    )


def streaming_dataset(streams: list[Any], samples: int = 400, cache_limit: int | None = None) -> Any:
    """Plain mosaicml-streaming over the streams. (Its default of 64 canonical nodes would pad so short an epoch.)"""
    from streaming import StreamingDataset

    return StreamingDataset(
        streams=streams,
        batch_size=4,
        epoch_size=samples,
        shuffle=True,
        num_canonical_nodes=1,
        predownload=4,
        cache_limit=cache_limit,
    )


def serve(streaming: Iterable[Any], dataset: Dataset) -> NDArray[np.int64]:
    """[num_leaves of the tree]: samples of an epoch per leaf, each compared with what we read of its window."""
    served = list(streaming)
    tokens = np.stack([sample["tokens"] for sample in served])
    windows = (tokens[:, :4].astype(np.int64) << np.array([0, 8, 16, 24])).sum(axis=1)  # see synthetic_tokens
    ours = read_windows(dataset, windows)
    np.testing.assert_array_equal(tokens, ours["tokens"])
    np.testing.assert_array_equal([sample["cluster"] for sample in served], ours["cluster"])
    np.testing.assert_array_equal([sample["checksum"] for sample in served], ours["checksum"])
    return np.bincount(ours["cluster"], minlength=16)


def shards_below(folder: Path) -> int:
    return len([path for path in folder.rglob("*.mds") if not path.is_symlink()])


def test_a_stream_per_level_2_node_serves_its_share(dataset: Dataset, tmp_path: Path) -> None:
    shares = {0: 0.4, 3: 0.3, 5: 0.2, 15: 0.1}
    streams = to_streams(dataset.root, histogram_of(dataset, shares, 2), local=tmp_path)
    assert [stream.proportion for stream in streams] == list(shares.values())
    counts = serve(streaming_dataset(streams), dataset)
    assert counts.sum() == 400
    assert np.abs(counts - 400 * np.array([shares.get(leaf, 0) for leaf in range(16)])).max() <= 1
    assert shards_below(tmp_path) == 0  # links: nothing is copied


def test_a_stream_per_level_1_folder_serves_its_share(dataset: Dataset, tmp_path: Path) -> None:
    streams = to_streams(dataset.root, histogram_of(dataset, {0: 0.75, 2: 0.25}, 1), local=tmp_path)
    counts = serve(streaming_dataset(streams), dataset)
    assert counts.reshape(4, 4).sum(axis=1).tolist() == [300, 0, 100, 0]
    assert (counts[:4] > 0).all()


def test_base_is_the_folders_in_proportion_to_their_windows(dataset: Dataset, tmp_path: Path) -> None:
    windows = np.bincount(dataset.leaves // 4, weights=dataset.windows_per_leaf)
    streams = to_streams(dataset.root, Histogram.base(dataset.manifest), local=tmp_path)
    assert [stream.proportion for stream in streams] == pytest.approx(windows / windows.sum())
    with pytest.raises(InputError, match="level must be 1 for base, got 2"):
        to_streams(dataset.root, Histogram.base(dataset.manifest), level=2)


def test_a_deeper_histogram_is_cut_only_when_asked(dataset: Dataset, tmp_path: Path) -> None:
    histogram = histogram_of(dataset, {0: 0.4, 3: 0.3, 5: 0.2, 15: 0.1}, 2)
    streams = to_streams(dataset.root, histogram, local=tmp_path, level=1)
    assert [stream.proportion for stream in streams] == pytest.approx([0.7, 0.2, 0.1])
    assert [Path(stream.remote or "").name for stream in streams] == ["00", "01", "03"]
    for level in (0, 3):
        with pytest.raises(InputError, match=f"level must be 1 to 2, the level of the histogram, got {level}"):
            to_streams(dataset.root, histogram, level=level)


def test_shards_that_cross_clusters_are_refused_with_a_remedy(tmp_path: Path) -> None:
    crossing = write_synthetic_dataset(tmp_path / "root", LEAVES, windows_per_shard=16)
    histogram = histogram_of(crossing, {0: 0.5, 3: 0.5}, 2)
    with pytest.raises(
        InputError,
        match=r"2 of 2 clusters of level 2 share a shard with another \(such as cluster 0\).*--shard-level 2, or ",
    ):
        to_streams(crossing.root, histogram, local=tmp_path / "local")
    assert len(to_streams(crossing.root, histogram, local=tmp_path / "local", level=1)) == 1


def test_what_does_not_fit_the_dataset_is_refused(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Histogram.from_leaves([0], synthetic_tree(4, 2, seed=3), 2)
    with pytest.raises(InputError, match="to_streams: the histogram was counted with tree"):
        to_streams(dataset.root, other)
    with pytest.raises(InputError, match=r"to_streams: 30\.0% of the histogram stands on 2 clusters .*limit is 5\.0%"):
        to_streams(dataset.root, histogram_of(dataset, {0: 0.7, 6: 0.2, 9: 0.1}, 2))
    assert len(to_streams(dataset.root, histogram_of(dataset, {0: 0.96, 6: 0.04}, 2), local=tmp_path)) == 1
    assert "4.0% of the histogram stands on 1 clusters" in caplog.text
    azure = cast(Dataset, SimpleNamespace(root="az://box/root", store=SimpleNamespace(is_local=False)))
    with pytest.raises(
        InputError, match=r"takes local folders, s3://, gs:// and hf://, got az://\. Use MixtureDataset"
    ):
        _streaming_url(azure)
    pinned = cast(Dataset, SimpleNamespace(root="hf://datasets/a/b@v2/x", store=SimpleNamespace(is_local=False)))
    with pytest.raises(InputError, match=r"reads the branch main of the hub alone, got a revision\. Use Mixture"):
        _streaming_url(pinned)


def test_eviction_never_deletes_a_shard_of_a_local_root(dataset: Dataset, tmp_path: Path) -> None:
    before = files_below(Path(dataset.root))
    shares = {node: 1 / 4 for node in (0, 3, 5, 15)}
    streams = to_streams(dataset.root, histogram_of(dataset, shares, 2), local=tmp_path)
    indexes = sum(path.stat().st_size for path in tmp_path.rglob("index.json"))
    limit = indexes + 4 * max(row.shard_bytes for row in dataset.shards)
    streaming = streaming_dataset(streams, cache_limit=limit)
    for shard in range(streaming.num_shards):
        streaming.evict_shard(shard)
    assert list(tmp_path.rglob("*.mds")) == []
    # By index: its iterator was seen to hang where the cache holds fewer shards than it is working on.
    counts = serve((streaming[index] for index in range(streaming.num_samples)), dataset)
    assert counts[[0, 3, 5, 15]].tolist() == [LEAVES[leaf] for leaf in (0, 3, 5, 15)]
    assert 0 < len(list(tmp_path.rglob("*.mds"))) == shards_below(tmp_path) <= 4  # copies, within the limit
    assert files_below(Path(dataset.root)) == before
    del streaming
    gc.collect()
    again = to_streams(dataset.root, histogram_of(dataset, shares, 2), local=tmp_path)
    assert serve(streaming_dataset(again), dataset)[[0, 3, 5, 15]].tolist() == [100] * 4


def test_a_moved_root_is_linked_anew(dataset: Dataset, tmp_path: Path) -> None:
    histogram = histogram_of(dataset, {0: 0.5, 5: 0.5}, 2)
    shutil.copytree(dataset.root, tmp_path / "old")
    to_streams(tmp_path / "old", histogram, local=tmp_path / "local")
    (tmp_path / "old").rename(tmp_path / "new")
    streams = to_streams(tmp_path / "new", histogram, local=tmp_path / "local")
    assert serve(streaming_dataset(streams), open_dataset(tmp_path / "new"))[[0, 5]].tolist() == [200, 200]


def test_from_s3_only_the_shards_of_the_asked_clusters_are_fetched(
    dataset: Dataset, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path))
    url = s3.fresh_prefix()
    store = s3.store(url.partition(f"{s3.bucket}/")[2])
    for path, content in files_below(Path(dataset.root)).items():
        store.put(path, content)
    shares = {0: 0.4, 3: 0.3, 5: 0.2, 15: 0.1}
    streams = to_streams(url, histogram_of(dataset, shares, 2))
    counts = serve(streaming_dataset(streams), dataset)
    assert np.abs(counts - 400 * np.array([shares.get(leaf, 0) for leaf in range(16)])).max() <= 1
    assert 4 <= shards_below(tmp_path / "streams") <= sum(-(-LEAVES[node] // 16) for node in shares)
