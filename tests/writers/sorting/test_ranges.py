"""Ranges of sort keys: whatever runs and ranges there are, shards are those of a plain sort of everything."""

from __future__ import annotations

import gc
import resource
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.errors import StorageError
from crisp_stream.format.keys import HASH_BITS
from crisp_stream.format.manifest import places_path
from crisp_stream.format.mds import sample_dtype
from crisp_stream.storage.store import FolderStore
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import Runner, execute
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.sorting import ranges as stage
from crisp_stream.writers.sorting.key_sources import NPY_HEADER_BYTES, Sources
from crisp_stream.writers.sorting.range_windows import RangeWindows
from crisp_stream.writers.sorting.ranges import (
    MOST_RANGE_WINDOWS,
    MOST_RANGES,
    NODE_COUNT,
    NodeCounts,
    Nodes,
    Ranges,
    list_ranges,
    ranges_in_stages,
    windows_per_range,
)
from crisp_stream.writers.stages.dataset import shard_tasks
from crisp_stream.writers.stages.runs import RunTask
from crisp_stream.writers.stages.shards import ShardSettings, ShardsSummary, ShardsTask, shard_ends

ARITY, DEPTH = 3, 3
LEAVES_PER_NODE = ARITY ** (DEPTH - 1)
NODES = Nodes(arity=ARITY, leaves_per_node=LEAVES_PER_NODE)
WINDOW_TOKENS = 4
KEY = st.builds(lambda leaf, low: leaf << HASH_BITS | low, st.integers(0, ARITY**DEPTH - 1), st.integers(0, 3))
KEYS_OF_RUNS = st.lists(st.lists(KEY, min_size=1, max_size=25), min_size=1, max_size=6)


def make_runs(workspace: Workspace, keys_of_runs: Sequence[Sequence[int]]) -> list[RunTask]:
    """Sorted runs with such keys, of windows whose tokens and places say which they are."""
    runs, first = [], 0
    for number, keys in enumerate(keys_of_runs):
        run = RunTask(workspace=workspace, number=number, inputs=(), parts=(), tree="tree", seed=0)
        windows = np.arange(first, first + len(keys))
        arrays = {
            "keys": np.sort(np.array(keys, np.uint64)),
            "tokens": tokens_of(windows),
            "places": np.stack([windows, windows + 7], axis=1).astype(np.uint32),
        }
        for kind, array in arrays.items():
            path = Path(workspace.url) / run.file(f"{kind}.npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)  # without waiting for the disk, as save_array does
        runs.append(run)
        first += len(keys)
    return runs


def tokens_of(windows: NDArray[Any]) -> NDArray[np.uint16]:
    return np.repeat(windows.astype(np.uint16)[:, None], WINDOW_TOKENS, axis=1)


def settings_for(root: Path, windows_per_shard: int, shard_level: int = 1) -> ShardSettings:
    one = ShardSettings(
        root=str(root),
        window_tokens=WINDOW_TOKENS,
        token_dtype="uint16",
        shard_bytes=1,
        leaves_per_shard_node=ARITY ** (DEPTH - shard_level),
        identity=3,
    )
    while one.windows_per_shard < windows_per_shard:
        one = ShardSettings(**{**vars(one), "shard_bytes": one.shard_bytes + 20})
    return one


def cut(
    workspace: Workspace, runs: list[RunTask], settings: ShardSettings, range_windows: int
) -> tuple[Runner, Ranges]:
    runner = Runner(LocalEngine(processes=1), workspace, log=lambda line: None)
    ranges = ranges_in_stages(
        runner,
        runs,
        NODES,
        windows_per_range=range_windows,
        windows_per_shard=settings.windows_per_shard,
        leaves_per_shard_node=settings.leaves_per_shard_node,
    )
    return runner, ranges


def expected_shards(keys: NDArray[np.uint64], settings: ShardSettings) -> dict[str, NDArray[np.int64]]:
    """Path of each shard to its windows, by one stable sort of all."""
    order = np.argsort(keys, kind="stable")
    leaves = keys[order] >> np.uint64(HASH_BITS)
    shards = {}
    for node in range(ARITY):
        own = order[leaves // np.uint64(LEAVES_PER_NODE) == node]
        nodes = (keys[own] >> np.uint64(HASH_BITS)) // np.uint64(settings.leaves_per_shard_node)
        borders = [0, *shard_ends(nodes, settings.windows_per_shard), len(own)]
        pieces = [own[start:stop] for start, stop in pairwise(borders) if stop > start]
        shards |= {f"shards/{node:02d}/shard.{number:05d}.mds": piece for number, piece in enumerate(pieces)}
    return shards


@hypothesis.settings(max_examples=40)
@given(KEYS_OF_RUNS, st.integers(1, 12), st.integers(1, 9), st.integers(1, DEPTH), st.integers(1, 3), st.booleans())
def test_shards_are_those_of_a_plain_sort_of_everything(
    keys_of_runs: list[list[int]],
    range_windows: int,
    windows_per_shard: int,
    shard_level: int,
    bundle: int,
    reads_all_at_once: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_LEAST_BUNDLE", bundle)
        workspace, root = Workspace(folder), Path(folder) / "staged"
        runs = make_runs(workspace, keys_of_runs)
        settings = settings_for(root, windows_per_shard, shard_level)
        runner, ranges = cut(workspace, runs, settings, range_windows)
        tasks = shard_tasks(runner, ranges, NODES, settings, memory_bytes=10_000 if reads_all_at_once else 1)
        summary = ShardsSummary.of(runner.run(tasks, unit="windows"))
        keys = np.concatenate([np.sort(np.array(run, np.uint64)) for run in keys_of_runs])
        expected = expected_shards(keys, settings)
        assert [row.path for row in summary.rows] == list(expected)
        dtype = sample_dtype(WINDOW_TOKENS, "uint16")
        for row, windows in zip(summary.rows, expected.values(), strict=True):
            samples = np.frombuffer((root / row.path).read_bytes(), dtype, offset=row.first_sample_offset)
            np.testing.assert_array_equal(samples["tokens"], tokens_of(windows))
            np.testing.assert_array_equal(samples["cluster"], keys[windows] >> np.uint64(HASH_BITS))
            np.testing.assert_array_equal(np.load(root / places_path(row.path))[:, 0], windows)
        leaves, counts = np.unique(keys >> np.uint64(HASH_BITS), return_counts=True)
        np.testing.assert_array_equal(summary.leaves, leaves)
        np.testing.assert_array_equal(summary.windows_per_leaf, counts)
        assert sorted(path.name for path in root.glob("shards/*/*")) == sorted(Path(path).name for path in expected)
        _check_rows_without_shards(workspace, ranges, keys)


def _check_rows_without_shards(workspace: Workspace, ranges: Ranges, keys: NDArray[np.uint64]) -> None:
    """The windows between the cuts, as embeddings are kept, follow one another."""
    order, at = np.argsort(keys, kind="stable"), 0
    sources = Sources(workspace=workspace)
    for row in ranges.rows:
        windows = RangeWindows(sources, ranges.range(row, whole_shards=False))
        assert int(row["at"]) == at
        np.testing.assert_array_equal(windows.leaves, keys[order[at : at + len(windows)]] >> np.uint64(HASH_BITS))
        at += len(windows)
    assert at == len(keys)


def test_ranges_are_about_as_large_as_wanted_and_cut_where_nodes_begin(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 3000, 200)
    leaves = [rng.zipf(1.3, size) % ARITY**DEPTH for size in sizes]
    keys = [
        one.astype(np.uint64) << np.uint64(HASH_BITS) | rng.integers(0, 1 << 40, len(one), np.uint64) for one in leaves
    ]
    workspace = Workspace(tmp_path)
    settings = settings_for(tmp_path, 50)
    _, ranges = cut(workspace, make_runs(workspace, [one.tolist() for one in keys]), settings, 5000)
    total = sum(map(len, keys))
    assert int(ranges.rows["windows"].sum()) == total
    per_node = np.bincount(np.concatenate(leaves) // LEAVES_PER_NODE, minlength=ARITY)
    for node in range(ARITY):
        own = ranges.rows[ranges.rows["node"] == node]["windows"]
        assert own.sum() == per_node[node]
        assert len(own) == -(-per_node[node] // 5000)
        assert abs(own - own.mean()).max() < 0.25 * own.mean()


def test_the_size_of_a_range_follows_from_tokens_memory_and_the_corpus() -> None:
    assert windows_per_range(4 << 30, 2048, 10**9, None) == MOST_RANGE_WINDOWS == (4 << 30) // 2048
    assert windows_per_range(4 << 30, 128, 10**9, None) == MOST_RANGE_WINDOWS
    assert windows_per_range(4 << 30, 16384, 10**9, None) == (4 << 30) // 16384
    assert windows_per_range(4 << 30, 2048, 10**9, 64 << 20) == 1 << 20
    assert windows_per_range(4 << 30, 2048, 33 * 10**9, None) == -(-33 * 10**9 // MOST_RANGES)
    assert windows_per_range(1, 2048, 100, None) == 1


def test_counts_of_nodes_are_joined_whatever_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_HELD_COUNTS", 3)
    rng, counts = np.random.default_rng(1), NodeCounts()
    pieces = [np.sort(rng.integers(0, 9, size)) for size in (5, 0, 1, 20, 7)]
    for piece in pieces:
        counts.add_sorted(piece.astype(np.uint64))
    nodes, windows = np.unique(np.concatenate(pieces), return_counts=True)
    np.testing.assert_array_equal(counts.total()["node"], nodes)
    np.testing.assert_array_equal(counts.total()["windows"], windows)


def test_a_node_of_the_largest_tree_has_ranges() -> None:
    nodes = Nodes(arity=64, leaves_per_node=64**3)
    last = 64**4 - 1
    cuts = np.append(nodes.first_keys, np.uint64((last << HASH_BITS) + 5))
    below = np.array([*[0] * 64, 10, 30])
    counts = np.array([(last, 30)], NODE_COUNT)
    [one, two] = list_ranges(cuts, below, counts, nodes, leaves_per_shard_node=1, windows_per_shard=8)
    assert (one["node"], one["windows"], one["skip"], one["extra"], one["shard"], one["at"]) == (63, 10, 0, 6, 0, 0)
    assert (two["node"], two["windows"], two["skip"], two["extra"], two["shard"], two["at"]) == (63, 20, 6, 0, 2, 10)


@contextmanager
def at_most_open(num_files: int) -> Iterator[None]:
    """Let this process open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _peak_of(task: ShardsTask) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        task.make()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _one_task(folder: Path, num_runs: int) -> ShardsTask:
    """A task of the first of several ranges of 8,000 windows in so many runs."""
    rng = np.random.default_rng(0)
    keys = np.sort(rng.integers(0, ARITY**DEPTH << HASH_BITS, 8_000, np.uint64))
    workspace = Workspace(folder)
    runs = make_runs(workspace, [keys[number::num_runs].tolist() for number in range(num_runs)])
    settings = settings_for(folder / "staged", 200)
    runner, ranges = cut(workspace, runs, settings, 2000)
    task = shard_tasks(runner, ranges, NODES, settings, memory_bytes=20_000)[0]
    assert isinstance(task, ShardsTask)
    return task


def test_a_task_opens_one_file_at_a_time_and_holds_no_more_with_a_hundred_times_the_runs(tmp_path: Path) -> None:
    with at_most_open(256):
        few, many = _one_task(tmp_path / "few", 20), _one_task(tmp_path / "many", 2000)
    assert len(repr(many)) < len(repr(few)) + 20, "its description does not list runs"
    opened, peaks = [], []
    original = FolderStore.get_range
    for task in (few, many):
        most = calls = 0

        def counted(store: FolderStore, path: str, start: int, length: int) -> bytes:
            nonlocal most, calls
            calls += 1
            if calls % 10 == 1:
                most = max(most, len(list(Path("/proc/self/fd").iterdir())))
            return original(store, path, start, length)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FolderStore, "get_range", counted)
            task.make()
        opened.append(most)
        peaks.append(min(_peak_of(task) for _ in range(2)))
        assert not any(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert opened[0] == opened[1]
    assert peaks[1] < peaks[0] + 2000 * 400, peaks


def test_a_run_that_was_cut_short_meanwhile_is_named(tmp_path: Path) -> None:
    task = _one_task(tmp_path, 4)
    [path] = (tmp_path / "runs").glob("000002-*.tokens.npy")
    path.write_bytes(path.read_bytes()[: NPY_HEADER_BYTES + 5])
    with pytest.raises(StorageError, match=r"tokens\.npy: ends before row \d+\. Delete it and run the command again\."):
        execute(task)
