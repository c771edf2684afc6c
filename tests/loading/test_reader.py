"""Reading windows: verified, from folders and from S3, with caches that may be damaged, evicted or shared."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.errors import CorruptDataError, InputError, StorageError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.loading import reader as reading
from crisp_stream.loading import shard_files
from crisp_stream.loading.reader import ReadOptions, WindowReader, read_windows
from crisp_stream.loading.runs import MAX_RUN_WINDOWS, RunPlan
from crisp_stream.storage.store import open_store
from tests.support.seaweed import S3Server
from tests.support.synthetic import write_synthetic_dataset

WINDOWS_PER_LEAF = {0: 100, 3: 50, 5: 7, 9: 300, 15: 200}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("local"), WINDOWS_PER_LEAF, windows_per_shard=90)


@pytest.fixture
def root(local: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(local.root, tmp_path / "copy"))


@pytest.fixture
def remote(local: Dataset, s3: S3Server) -> Dataset:
    url = s3.fresh_prefix()
    store = open_store(url)
    for file in Path(local.root).rglob("*"):
        if file.is_file():
            store.put_file(file.relative_to(local.root).as_posix(), file)
    return open_dataset(url)


def every_window(dataset: Dataset) -> np.ndarray:
    return np.random.default_rng(0).permutation(dataset.manifest.num_windows)


def test_windows_come_back_in_the_order_asked_repeats_included(local: Dataset) -> None:
    ids = np.concatenate([every_window(local), [5, 5, 0]])
    tokens = read_windows(local, ids)["tokens"].astype(np.int64)
    assert (tokens[:, 0] + 256 * tokens[:, 1] == ids).all()


def test_runs_stay_inside_their_leaf_and_their_shard(local: Dataset) -> None:
    ids = np.arange(local.manifest.num_windows)
    shard, first, count = RunPlan(local).runs(ids, local.row_of_windows(ids))
    leaf = local.leaf_of_windows(ids)
    assert (count <= MAX_RUN_WINDOWS).all()
    assert ((first <= ids) & (ids < first + count)).all()
    for ends in (first, first + count - 1):
        assert (local.leaf_of_windows(ends) == leaf).all()
        assert (np.searchsorted(local.first_window_per_shard, ends, side="right") - 1 == shard).all()


def test_a_flipped_bit_in_a_local_shard_is_named_and_never_served(root: Path) -> None:
    dataset = open_dataset(root)
    row = dataset.shards[2]
    damaged = int(dataset.first_window_per_shard[2]) + 3
    with (root / row.path).open("r+b") as file:
        file.seek(row.first_sample_offset + 3 * dataset.manifest.sample_bytes + 20)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(CorruptDataError, match=rf"{row.path}: window {damaged} .*does not match its checksum"):
        read_windows(dataset, np.array([damaged]))
    assert len(read_windows(dataset, np.array([damaged - 1, damaged + 1]))) == 2


def test_a_truncated_or_missing_local_shard_is_named(root: Path) -> None:
    dataset = open_dataset(root)
    path = root / dataset.shards[0].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=r"shard\.00000\.mds: the shard table says .* truncated"):
        read_windows(dataset, np.array([0]))
    path.unlink()
    with pytest.raises(StorageError, match=r"shard\.00000\.mds does not exist"):
        read_windows(dataset, np.array([0]))


def test_s3_gives_the_same_windows_as_the_folder(remote: Dataset, local: Dataset, tmp_path: Path) -> None:
    ids = every_window(local)
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        assert (reader.read(ids) == read_windows(local, ids)).all()
        assert reader.bytes_read == local.manifest.num_windows * local.manifest.sample_bytes
        assert reader.requests == len(local.shards)  # neighbouring runs are joined
    with WindowReader(remote, ReadOptions(local=tmp_path)) as again:
        assert (again.read(ids) == read_windows(local, ids)).all()
        assert again.requests == 0  # all cached


def test_prefetched_windows_are_requested_once(remote: Dataset, tmp_path: Path) -> None:
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        for _ in range(3):
            reader.prefetch(np.arange(300, 400))
        reader.read(np.arange(300, 400))
        once = reader.requests
        reader.read(np.arange(300, 400))
        assert 0 < once == reader.requests


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_cache_entries_are_fetched_again(remote: Dataset, local: Dataset, tmp_path: Path, damage: str) -> None:
    ids = np.arange(200, 260)
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        reader.read(ids)
    entries = list(tmp_path.rglob("*.run"))
    assert entries
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[10] ^= 1
        if damage == "delete":
            entry.unlink()
        else:
            entry.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-5]))
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        assert (reader.read(ids) == read_windows(local, ids)).all()
        assert reader.requests > 0
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        reader.read(ids)
        assert reader.requests == 0 or damage == "flip"  # healed on disk


def test_a_cache_limit_below_the_working_set_still_gives_every_window(
    remote: Dataset, local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 8 * MAX_RUN_WINDOWS * local.manifest.sample_bytes // 4
    with WindowReader(remote, ReadOptions(local=tmp_path, cache_limit=limit)) as reader:
        for part in np.array_split(every_window(local), 20):
            assert (reader.read(part) == read_windows(local, part)).all()
        held = sum(entry.stat().st_size for entry in tmp_path.rglob("*.run"))
        largest_run = MAX_RUN_WINDOWS * local.manifest.sample_bytes
        assert held <= limit + limit // 8 + largest_run
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("limit", "expected"), [("1mb", 10**6), (" 1.5 KB ", 1500), ("7", 7), (9, 9), (np.int64(9), 9), (None, None)]
)
def test_a_cache_limit_is_a_number_or_a_size(
    remote: Dataset, local: Dataset, tmp_path: Path, limit: Any, expected: int | None
) -> None:
    options = ReadOptions(local=tmp_path, cache_limit=limit)
    assert options.cache_limit_bytes == expected
    with WindowReader(remote, options) as reader:
        assert (reader.read(np.arange(5)) == read_windows(local, np.arange(5))).all()


@pytest.mark.parametrize("limit", [0, -1, "0", "lots", "1 mib", "-1mb", "", 1e9, True, b"1mb"])
def test_what_is_no_cache_limit_is_refused_when_it_is_given(limit: Any) -> None:
    message = f"cache_limit must be a positive number of bytes, or a size such as 200gb; got {limit!r}."
    with pytest.raises(InputError, match=re.escape(message)):
        ReadOptions(cache_limit=limit)


def test_a_damaged_remote_shard_is_retried_then_raised(
    remote: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = remote.shards[0]
    content = bytearray(remote.store.get(row.path))
    content[row.first_sample_offset + 30] ^= 1
    remote.store.put(row.path, bytes(content))
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        with pytest.raises(
            CorruptDataError, match=r"shards/00/shard\.00000\.mds: window 0 .*does not match its checksum"
        ):
            reader.read(np.arange(3))
        assert reader.requests == 1 + reading.FETCH_ATTEMPTS
        assert len(reader.read(np.arange(64, 70))) == 6


def test_a_wrong_body_once_is_healed(
    remote: Dataset, local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = remote.store.get_range, []

    def sometimes_wrong(path: str, start: int, length: int) -> bytes:
        calls.append(path)
        content = original(path, start, length)
        return content[:-1] + bytes([content[-1] ^ 1]) if len(calls) == 1 else content

    monkeypatch.setattr(remote.store, "get_range", sometimes_wrong)
    with WindowReader(remote, ReadOptions(local=tmp_path)) as reader:
        assert (reader.read(np.arange(100)) == read_windows(local, np.arange(100))).all()
    assert len(calls) > 1


def test_a_short_body_and_an_object_that_vanished_are_raised(remote: Dataset, tmp_path: Path) -> None:
    row = remote.shards[0]
    remote.store.put(row.path, remote.store.get(row.path)[:2000])
    with (
        WindowReader(remote, ReadOptions(local=tmp_path / "a")) as reader,
        pytest.raises((CorruptDataError, StorageError)) as short,
    ):
        reader.read(np.arange(60))
    assert row.path in str(short.value)
    remote.store.delete(row.path)
    with (
        WindowReader(remote, ReadOptions(local=tmp_path / "b")) as reader,
        pytest.raises(StorageError, match=r"shard\.00000\.mds does not exist"),
    ):
        reader.read(np.arange(3))


def test_a_stalled_answer_is_raised_within_the_timeout(
    remote: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    release = threading.Event()
    monkeypatch.setattr(remote.store, "get_range", lambda *_: release.wait(60) and b"")
    monkeypatch.setattr(reading, "_STALL_MARGIN", 0.2)
    with WindowReader(remote, ReadOptions(local=tmp_path, timeout=0.5)) as reader:
        with pytest.raises(StorageError, match=r"no answer within 0 s|no answer within 1 s"):
            reader.read(np.arange(3))
        release.set()


def test_an_unwritable_cache_folder_is_a_clear_error(remote: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked: Any = tmp_path / "file"
    with (
        WindowReader(remote, ReadOptions(local=blocked)) as reader,
        pytest.raises(StorageError, match=r"(?s)cache.*local="),
    ):
        reader.read(np.arange(3))


@pytest.mark.parametrize("mapped", [True, False])
def test_local_shards_are_read_alike_mapped_or_not(
    root: Path, local: Dataset, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "maps_are_safe", lambda folder: mapped)
    monkeypatch.setattr(shard_files, "_OPEN_FILES", 2)
    dataset, ids = open_dataset(root), every_window(local)
    with WindowReader(dataset) as reader:
        assert (reader.read(ids) == read_windows(local, ids)).all()
        assert isinstance(reader._source, reading._LocalShards)
        opened = reader._source._files.opened
        assert {isinstance(file, memoryview) for file in opened.values()} == {mapped}
        assert mapped or len(opened) == 2
        if not mapped:  # a file that becomes shorter while it is open
            shard = next(iter(opened))
            path = root / dataset.shards[shard].path
            path.write_bytes(path.read_bytes()[:-100])
            last = int(dataset.first_window_per_shard[shard]) + dataset.shards[shard].num_windows - 1
            with pytest.raises(CorruptDataError, match="The shard is truncated"):
                reader.read(np.array([last]))


@pytest.mark.parametrize("limit", ["number", "bytes"])
def test_beyond_the_limits_of_mappings_shards_are_read_alike_and_a_few_are_exchanged(
    root: Path, local: Dataset, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, ids = open_dataset(root), every_window(local)
    maps, before = shard_files._maps, len(shard_files._maps._addresses)
    if limit == "number":
        monkeypatch.setattr(maps, "_most", before + 2)
    else:
        monkeypatch.setattr(
            shard_files, "MOST_MAPPED_BYTES", maps._num_bytes + int(dataset.shards.shard_bytes[:2].sum())
        )
    with WindowReader(dataset) as reader:
        assert isinstance(reader._source, reading._LocalShards)
        opened = reader._source._files.opened
        assert (reader.read(ids[::-1]) == read_windows(local, ids[::-1])).all()
        first, most = set(opened), max(2, len(opened))
        assert len(dataset.shards) > len(first) > 0
        for _ in range(40):
            assert (reader.read(ids) == read_windows(local, ids)).all()
            assert len(opened) <= most
        assert set(opened) != first
    assert len(maps._addresses) == before
    with monkeypatch.context() as patch:  # nothing at all can be mapped
        patch.setattr(maps, "_most", 0)
        assert (read_windows(dataset, ids) == read_windows(local, ids)).all()
    assert len(maps._addresses) == before


def test_what_the_system_refuses_to_map_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"12345")
    assert bytes(shard_files._maps.map(str(path), 5)) == b"12345"
    with pytest.raises(CorruptDataError, match="says 6 bytes, got 5"):
        shard_files._maps.map(str(path), 6)
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        shard_files._maps.map(str(tmp_path / "empty"), 0)


def test_mappings_are_for_file_systems_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shard_files.maps_are_safe(tmp_path)
    device = tmp_path.stat().st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,noatime master:1 - {{}} server:/export rw"
    for kind, safe in (("nfs4", False), ("fuse.sshfs", False), ("ext4", True), ("tmpfs", True)):
        shard_files.maps_are_safe.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda self, kind=kind: line.format(kind))
        assert shard_files.maps_are_safe(tmp_path) == safe
    shard_files.maps_are_safe.cache_clear()
