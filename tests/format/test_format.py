"""The MUSTs of FORMAT.md, by number."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import FormatError, InputError, StorageError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import Manifest
from crisp_stream.format.mds import ShardRow
from crisp_stream.format.shards import ShardTable
from crisp_stream.format.tables import clusters_parquet
from crisp_stream.loading.reader import read_windows
from tests.support.seaweed import S3Server
from tests.support.synthetic import synthetic_tokens, upload, write_synthetic_dataset

GOLDEN = Path(__file__).parent / "golden" / "v2"
GOLDEN_WINDOWS_PER_LEAF = {0: 5, 3: 2, 6: 70, 13: 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("dataset"), {0: 100, 3: 50, 5: 7, 15: 200})


@pytest.fixture
def root(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


def edit_manifest(root: Path, **changes: Any) -> None:
    record = json.loads((root / "manifest.json").read_text())
    record.update(changes)
    (root / "manifest.json").write_text(json.dumps(record))


def test_must_1_a_root_without_manifest_is_no_dataset(root: Path) -> None:
    (root / "manifest.json").unlink()
    with pytest.raises(
        FormatError, match=r"manifest\.json is missing; it holds no dataset, or one whose writing did not finish"
    ):
        open_dataset(root)


def test_must_2_a_newer_format_version_is_refused(root: Path) -> None:
    edit_manifest(root, format_version=3)
    with pytest.raises(FormatError, match=r"format_version 3 is newer than this reader \(2\)\. Upgrade crisp-stream"):
        open_dataset(root)


def test_must_2_the_version_that_was_never_released_is_refused(root: Path) -> None:
    edit_manifest(root, format_version=1)
    with pytest.raises(FormatError, match=r"format_version 1 is of an early version .*: write the dataset again"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_tokens": "1024"}, r"`window_tokens` must be a whole number; got text \('1024'\)"),
        ({"window_tokens": 0}, "window_tokens must be 1 to"),
        ({"token_dtype": "int8"}, "`token_dtype` must be one of uint16, uint32; got 'int8'"),
        ({"packing": "tight"}, "`packing` must be one of joined, document; got 'tight'"),
        ({"arity": 65}, "arity must be 2 to 64"),
        ({"depth": 30}, "depth must be"),
        ({"num_windows": 0}, "num_windows must be 1 to 281,474,976,710,656"),
        ({"num_shards": 10**9}, "num_shards must be 1 to num_windows"),
        ({"tree_fingerprint": "abc"}, "tree_fingerprint must be a sha256"),
        ({"tokenizer": 3}, "`tokenizer` must be a mapping of keys; got a whole number"),
        ({"encoder": {}}, "`encoder.name` is missing"),
        ({"extra": 1}, "`extra` is not a key of format version 2"),
        ({"generation": -1}, "generation must be 0 to 999,999"),
        ({"generation": 1}, "mark must be 8 hex digits for a generation above 0, got ''"),
        ({"generation": 1, "mark": "0123ABCD"}, "mark must be 8 hex digits for a generation above 0"),
        ({"mark": "0123abcd"}, "mark must be left out for generation 0"),
        ({"generation": "1"}, "`generation` must be a whole number; got text"),
        ({"format_version": True}, "format_version must be a positive integer"),
    ],
)
def test_must_3_a_manifest_that_breaks_the_table_of_keys_is_refused(root: Path, changes: dict, message: str) -> None:
    edit_manifest(root, **changes)
    with pytest.raises(FormatError, match=message):
        open_dataset(root)


def test_must_3_an_optional_key_is_written_only_where_it_says_something(root: Path) -> None:
    plain = open_dataset(root).manifest
    assert plain.encoder.reads == "first"
    assert b'"reads"' not in plain.to_json()
    whole = dataclasses.replace(plain, encoder=dataclasses.replace(plain.encoder, reads="all"))
    assert Manifest.from_json(whole.to_json()) == whole
    assert whole.fingerprint != plain.fingerprint
    stated = json.loads(plain.to_json())
    stated["encoder"]["reads"] = "first"
    assert Manifest.from_json(json.dumps(stated).encode()).fingerprint == plain.fingerprint
    for value, message in (
        ("last", "`encoder.reads` must be one of first, all; got 'last'"),
        (1, "`encoder.reads` must be one of first, all; got 1"),
    ):
        stated["encoder"]["reads"] = value
        with pytest.raises(FormatError, match=message):
            Manifest.from_json(json.dumps(stated).encode())


def test_must_12_a_generation_has_tables_of_its_own_and_the_older_ones_stay(root: Path) -> None:
    old = open_dataset(root)
    assert b'"generation"' not in old.manifest.to_json()
    grown = dataclasses.replace(old.manifest, generation=1, mark="0123abcd")
    assert Manifest.from_json(grown.to_json()) == grown
    assert grown.fingerprint != old.manifest.fingerprint
    (root / "manifest.g0.json").write_bytes((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_bytes(grown.to_json())
    with pytest.raises(FormatError, match=r"clusters\.g1\.0123abcd\.parquet is missing; it is damaged"):
        open_dataset(root)
    for name in ("clusters", "shards"):
        shutil.copy(root / f"{name}.parquet", root / f"{name}.g1.0123abcd.parquet")
    assert open_dataset(root).manifest == open_dataset(root, generation=1).manifest == grown
    assert open_dataset(root, generation=0).manifest == old.manifest
    assert open_dataset(root).generation_with(old.manifest.fingerprint) == 0
    assert open_dataset(root).generation_with("0" * 64) is None
    for generation in (-1, 2):
        with pytest.raises(
            InputError, match=f"generation must be one that is there, got {generation}; the newest is 1"
        ):
            open_dataset(root, generation=generation)
    (root / "manifest.g0.json").write_bytes(grown.to_json())
    with pytest.raises(FormatError, match=r"manifest\.g0\.json is of generation 1"):
        open_dataset(root, generation=0)


@given(st.binary(max_size=200))
def test_must_3_any_bytes_as_manifest_give_a_format_error(content: bytes) -> None:
    with pytest.raises(FormatError, match=r"manifest\.json"):
        Manifest.from_json(content)


def replace_clusters(root: Path, leaves: list[int], counts: list[int]) -> None:
    (root / "clusters.parquet").write_bytes(clusters_parquet(np.array(leaves, np.uint32), np.array(counts)))


@pytest.mark.parametrize(
    ("leaves", "counts", "message"),
    [
        ([0, 3, 5], [100, 50, 207], "must have 4 rows"),
        ([0, 5, 3, 15], [100, 50, 7, 200], "strictly increasing"),
        ([0, 3, 5, 16], [100, 50, 7, 200], "below arity"),
        ([0, 3, 5, 15], [100, 50, 7, 201], "sum to 357, got 358"),
        ([0, 3, 5, 15], [100, 57, 0, 200], "must be positive"),
        ([0, 3, 5, 15], [100, 51, 6, 200], "is not the manifest's"),
    ],
)
def test_must_4_the_cluster_table_is_sorted_complete_and_adds_up(
    root: Path, leaves: list, counts: list, message: str
) -> None:
    replace_clusters(root, leaves, counts)
    with pytest.raises(FormatError, match=r"clusters\.parquet.*" + message):
        open_dataset(root)


def edit_shard(root: Path, dataset: Dataset, change: Callable[[ShardRow], ShardRow]) -> None:
    rows = [change(dataset.shards[0]), *dataset.shards[1:]]
    (root / "shards.parquet").write_bytes(ShardTable.of(rows).to_parquet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "shards/00/../../../etc/passwd"}, "path must look like"),
        ({"path": "/etc/passwd"}, "path must look like"),
        ({"path": "shards/01/shard.00000.mds"}, "every path must stand once"),
        ({"num_windows": 65}, "65 windows need offset and size"),
        ({"shard_bytes": 1}, "need offset and size"),
        ({"first_sample_offset": 0}, "need offset and size"),
        ({"shard_hash": "0" * 32}, "is not the manifest's"),
        ({"checksum_seed": 1}, "is not the manifest's"),
    ],
)
def test_must_5_the_shard_table_stays_below_the_root_and_adds_up(
    root: Path, dataset: Dataset, changes: dict, message: str
) -> None:
    edit_shard(root, dataset, lambda row: dataclasses.replace(row, **changes))
    with pytest.raises(FormatError, match=r"shards\.parquet.*" + message):
        open_dataset(root)


def test_must_5_every_shard_has_a_seed_of_its_own(root: Path, dataset: Dataset) -> None:
    seeds = {row.checksum_seed for row in dataset.shards}
    assert len(seeds) == len(dataset.shards)
    edit_shard(root, dataset, lambda row: dataclasses.replace(row, checksum_seed=dataset.shards[1].checksum_seed))
    with pytest.raises(FormatError, match=r"shards\.parquet: every checksum_seed must stand once"):
        open_dataset(root)
    table = pq.read_table(root / "shards.parquet")
    at = table.column_names.index("checksum_seed")
    for value, rule in ((None, "without nulls"), (-1, "whole numbers"), ("seven", "whole numbers")):
        values = [value] * len(table)
        pq.write_table(table.set_column(at, "checksum_seed", pa.array(values)), root / "shards.parquet")
        with pytest.raises(FormatError, match=rf"shards\.parquet: .*{rule}"):
            open_dataset(root)
    pq.write_table(table.drop_columns("checksum_seed"), root / "shards.parquet")
    with pytest.raises(FormatError, match=r"shards\.parquet: column checksum_seed is missing"):
        open_dataset(root)


@pytest.mark.parametrize("name", ["clusters.parquet", "shards.parquet"])
def test_must_4_and_5_a_table_that_is_missing_or_not_parquet_is_refused(root: Path, name: str) -> None:
    (root / name).write_bytes(b"PAR1 nothing")
    with pytest.raises(FormatError, match=f"{name}: not a readable Parquet file"):
        open_dataset(root)
    (root / name).unlink()
    with pytest.raises(FormatError, match=f"{name} is missing; it is damaged"):
        open_dataset(root)


def test_must_6_windows_are_sorted_by_leaf_and_shards_by_level_1_cluster(dataset: Dataset) -> None:
    samples = read_windows(dataset, np.arange(dataset.manifest.num_windows))
    assert (np.diff(samples["cluster"].astype(int)) >= 0).all()
    for first, row in zip(dataset.first_window_per_shard, dataset.shards, strict=True):
        assert samples["cluster"][first] // 4 == int(row.path.split("/")[1])


# mosaicml-streaming leaves the shard files that it reads to the garbage collector.
@pytest.mark.usefixtures("names_in_shared_memory")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_must_7_vanilla_streaming_reads_every_window_back(dataset: Dataset, tmp_path: Path) -> None:
    from streaming import StreamingDataset

    whole = StreamingDataset(
        remote=f"{dataset.root}/shards",
        local=str(tmp_path / "whole"),
        batch_size=1,
        shuffle=False,
        validate_hash="xxh3_128",
    )
    expected = read_windows(dataset, np.arange(dataset.manifest.num_windows))
    assert len(whole) == dataset.manifest.num_windows
    for sample, ours in zip((whole[i] for i in range(len(whole))), expected, strict=True):
        assert (sample["tokens"] == ours["tokens"]).all()
        assert (sample["cluster"], sample["checksum"]) == (ours["cluster"], ours["checksum"])
    one = StreamingDataset(remote=f"{dataset.root}/shards/03", local=str(tmp_path / "one"), batch_size=1, shuffle=False)
    assert [int(one[i]["cluster"]) for i in range(len(one))] == [15] * 200
    del whole, one
    gc.collect()


def test_must_8_the_tree_is_the_one_of_the_manifest(root: Path) -> None:
    from tests.support.synthetic import synthetic_tree

    synthetic_tree(4, 2, seed=9).save(root / "tree")
    with pytest.raises(FormatError, match="The tree was replaced"):
        _ = open_dataset(root).tree


def test_a_pickled_dataset_leaves_its_tree_out(dataset: Dataset) -> None:
    nodes = dataset.tree.node_of(dataset.leaves, 1)
    copied = pickle.loads(pickle.dumps(dataset))
    assert "tree" not in copied.__dict__
    assert (copied.tree.node_of(copied.leaves, 1) == nodes).all()


def test_must_9_the_tokenizer_is_the_one_of_the_manifest(root: Path) -> None:
    with (root / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(FormatError, match="The tokenizer was replaced"):
        open_dataset(root).tokenizer_path()


def test_the_fingerprint_covers_everything_but_the_provenance(dataset: Dataset) -> None:
    manifest = dataset.manifest
    assert dataclasses.replace(manifest, provenance={"note": "x"}).fingerprint == manifest.fingerprint
    assert dataclasses.replace(manifest, sort_seed=1).fingerprint != manifest.fingerprint
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_vocabulary_beyond_65536_needs_uint32(dataset: Dataset) -> None:
    tokenizer = dataclasses.replace(dataset.manifest.tokenizer, vocab_size=70_000)
    with pytest.raises(FormatError, match="needs token_dtype uint32"):
        dataclasses.replace(dataset.manifest, tokenizer=tokenizer)


def test_window_ids_outside_the_dataset_are_refused(dataset: Dataset) -> None:
    for bad in ([-1], [357]):
        with pytest.raises(InputError, match="window ids must be 0 to 356"):
            read_windows(dataset, np.array(bad))


def write_golden(root: Path) -> Dataset:
    """The golden dataset, from numbers that need no random generator."""
    num_windows = sum(GOLDEN_WINDOWS_PER_LEAF.values())
    tokens = synthetic_tokens(num_windows, 8)
    tokens[:, 4:] = 97 + (np.arange(num_windows)[:, None] * 7 + np.arange(4)) % 26
    return write_synthetic_dataset(root, GOLDEN_WINDOWS_PER_LEAF, window_tokens=8, tokens=tokens, seed=5, texts=None)


def test_the_golden_dataset_of_format_v2_reads_back_and_is_rewritten_byte_for_byte(tmp_path: Path) -> None:
    golden, again = open_dataset(GOLDEN), write_golden(tmp_path)
    files = sorted(path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    for name in files:
        # The tables' content is covered by the manifest; their Parquet encoding names the pyarrow version.
        if not name.endswith(".parquet"):
            assert (GOLDEN / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert golden.manifest == again.manifest
    samples = read_windows(golden, np.arange(golden.manifest.num_windows))
    assert samples["tokens"][:, 0].tolist() == list(range(78))
    assert np.unique(samples["cluster"], return_counts=True)[1].tolist() == [5, 2, 70, 1]


def test_a_tokenizer_that_cannot_be_kept_is_a_clear_error(
    root: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_dataset(upload(open_dataset(root), s3.fresh_prefix()))
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path / "cache"))
    assert (remote.tokenizer_path() / "tokenizer.json").read_bytes() == (root / "tokenizer/tokenizer.json").read_bytes()
    assert not [path for path in remote.tokenizer_path().iterdir() if path.name.startswith(".")]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"file/.*/tokenizer"):
        remote.tokenizer_path()
