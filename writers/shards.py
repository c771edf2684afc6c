"""Sort windows by (leaf, hash) and write them as MDS shards, in bounded memory.

Two passes. First, consecutive parts are assigned to leaves, sorted and written as **runs** of about 64 MB. Then every
level-1 cluster directory takes its key range from all runs, memory-mapped, a range at a time: keys are cut so that a
range fits the memory budget, also inside one huge leaf, because the hash is part of the key. Every range is gathered
in run order and sorted stably, so the bytes depend neither on the budget nor on the number of processes. Measured:
120 MB of windows per CPU second for both passes, 280 MB at the peak of a process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.draws import splitmix64_finalise
from crisp_stream.errors import import_extra
from crisp_stream.mds import (
    ShardRow,
    TokenDtype,
    encode_samples,
    index_bytes,
    max_windows_per_shard,
    sample_dtype,
    write_shard,
)
from crisp_stream.tree import ClusterTree

HASH_BITS = 40
"""A key is leaf << 40 | hash; leaf ids have at most 24 bits."""
SORT_MEMORY_BYTES = 64 << 20
"""Tokens of a range; sorting and encoding hold about four times as much per process."""
RUN_BYTES = 64 << 20
_KEY_END = 1 << 64


def window_hashes(part: int, num_windows: int, seed: int) -> NDArray[np.uint64]:
    """A uniform 40-bit hash of the identity (part, index in part) of each window of a part.

    Args:
        part: number of the part, below 2^32.
        num_windows: windows of the part.
        seed: another seed gives an unrelated order.

    Returns:
        [num_windows], below 2^40.
    """
    identity = np.arange(num_windows, dtype=np.uint64) + np.uint64(part << 32)
    salt = _splitmix64(np.array([seed % _KEY_END], np.uint64))
    return _splitmix64(identity ^ salt) >> np.uint64(64 - HASH_BITS)


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return splitmix64_finalise(values + np.uint64(0x9E3779B97F4A7C15))


def part_path(folder: Path, part: int, kind: str) -> Path:
    """A file of a part: kind is tokens.npy, embeddings.npy or json (written last)."""
    return folder / f"part-{part:05d}.{kind}"


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file under its final name, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """Sort the windows of some parts into one run."""

    parts: tuple[int, ...]
    parts_folder: Path
    tree_folder: Path
    run: Path
    """Path of the run without .keys.npy and .tokens.npy."""
    seed: int


def group_parts(
    windows_per_part: Sequence[int], window_bytes: int, *, run_bytes: int = RUN_BYTES
) -> list[tuple[int, ...]]:
    """Consecutive parts with windows, grouped into runs of at most `run_bytes` of tokens (or one part)."""
    groups: list[tuple[int, ...]] = []
    held: list[int] = []
    held_bytes = 0
    for part, num_windows in enumerate(windows_per_part):
        if num_windows == 0:
            continue
        if held and held_bytes + num_windows * window_bytes > run_bytes:
            groups.append(tuple(held))
            held, held_bytes = [], 0
        held.append(part)
        held_bytes += num_windows * window_bytes
    return [*groups, tuple(held)] if held else groups


@lru_cache(maxsize=1)
def _load_tree(folder: Path) -> ClusterTree:
    return ClusterTree.load(folder)


def sort_run(task: RunTask) -> int:
    """Assign, sort and write one run unless it is there, then delete its parts' arrays; returns its windows' number."""
    keys_path, tokens_path = run_files(task.run)
    if not keys_path.exists():
        limits = import_extra("threadpoolctl", extra="write", purpose="sorting windows").threadpool_limits
        tree = _load_tree(task.tree_folder)
        keys, tokens = [], []
        for part in task.parts:
            embeddings = np.load(part_path(task.parts_folder, part, "embeddings.npy"))
            with limits(1):  # a part's leaves must not depend on how many cores multiply
                leaves = tree.assign(embeddings).astype(np.uint64)
            keys.append(leaves << np.uint64(HASH_BITS) | window_hashes(part, len(leaves), task.seed))
            tokens.append(np.load(part_path(task.parts_folder, part, "tokens.npy"), mmap_mode="r"))
        all_keys = np.concatenate(keys)
        order = np.argsort(all_keys, kind="stable")
        save_array(tokens_path, np.concatenate(tokens)[order])
        save_array(keys_path, all_keys[order])
    for part in task.parts:
        part_path(task.parts_folder, part, "embeddings.npy").unlink(missing_ok=True)
        part_path(task.parts_folder, part, "tokens.npy").unlink(missing_ok=True)
    return len(np.load(keys_path, mmap_mode="r"))


def run_files(run: Path) -> tuple[Path, Path]:
    """(keys, tokens) of a run; the keys are published last."""
    return run.with_name(run.name + ".keys.npy"), run.with_name(run.name + ".tokens.npy")


@dataclass(frozen=True, kw_only=True)
class DirectoryTask:
    """Write the shards of one level-1 cluster."""

    node: int
    """The level-1 node."""
    first_leaf: int
    end_leaf: int
    runs: tuple[Path, ...]
    root: Path
    """The dataset root being staged."""
    record: Path
    """Where the outcome is kept; its existence means that the directory is complete."""
    shard_bytes: int
    memory_bytes: int
    leaves_per_shard_node: int
    """Leaf ids below a node whose border no shard crosses."""


@dataclass(frozen=True, kw_only=True)
class DirectoryRecord:
    """What a level-1 directory holds."""

    rows: list[ShardRow]
    leaves: NDArray[np.uint32]
    """[num_leaves], sorted, non-empty."""
    windows_per_leaf: NDArray[np.int64]

    @classmethod
    def load(cls, path: Path) -> DirectoryRecord:
        """Read what `write_directory` kept."""
        record = json.loads(path.read_text())
        return cls(
            rows=[ShardRow(**row) for row in record["rows"]],
            leaves=np.array(record["leaves"], np.uint32),
            windows_per_leaf=np.array(record["windows_per_leaf"], np.int64),
        )


def directory_name(node: int) -> str:
    """Folder of a level-1 node below the root."""
    return f"shards/{node:02d}"


def write_directory(task: DirectoryTask) -> int:
    """Write shards and index of one level-1 cluster, unless its record is there. Returns its windows' number."""
    if not task.record.exists():
        folder = task.root / directory_name(task.node)
        shutil.rmtree(folder, ignore_errors=True)
        keys = [np.load(run_files(run)[0], mmap_mode="r") for run in task.runs]
        tokens = [np.load(run_files(run)[1], mmap_mode="r") for run in task.runs]
        window_tokens = tokens[0].shape[1]
        token_dtype: TokenDtype = "uint32" if tokens[0].dtype == np.uint32 else "uint16"
        windows_per_shard = max_windows_per_shard(task.shard_bytes, window_tokens, token_dtype)
        windows_per_range = max(1, task.memory_bytes // (window_tokens * tokens[0].dtype.itemsize))
        bounds = (task.first_leaf << HASH_BITS, task.end_leaf << HASH_BITS)
        rows: list[ShardRow] = []
        windows_of_leaf: dict[int, int] = {}
        pending = np.zeros(0, sample_dtype(window_tokens, token_dtype))
        for slices in key_ranges(keys, bounds[0], bounds[1], windows_per_range):
            samples = _gather(keys, tokens, slices)
            for leaf, count in zip(*np.unique(samples["cluster"], return_counts=True), strict=True):
                windows_of_leaf[int(leaf)] = windows_of_leaf.get(int(leaf), 0) + int(count)
            pending = np.concatenate([pending, samples])
            ends = shard_ends(pending["cluster"] // task.leaves_per_shard_node, windows_per_shard)
            for start, stop in pairwise([0, *ends]):
                rows.append(_write_shard(folder, len(rows), pending[start:stop], task.root))
            pending = pending[ends[-1] if ends else 0 :].copy()
        if len(pending):
            rows.append(_write_shard(folder, len(rows), pending, task.root))
        if rows:
            below = directory_name(task.node)
            index = index_bytes(rows, below=below, window_tokens=window_tokens, token_dtype=token_dtype)
            (folder / "index.json").write_bytes(index)
        _save_record(task.record, rows, windows_of_leaf)
    return int(DirectoryRecord.load(task.record).windows_per_leaf.sum())


def shard_ends(nodes: NDArray[Any], windows_per_shard: int) -> list[int]:
    """Where shards end among windows of which more may follow: after each node, and when full.

    Args:
        nodes: [num_windows], sorted; the first window starts a shard.
        windows_per_shard: at least 1.

    Returns:
        Ends in order; the windows after the last do not fill a shard yet.
    """
    borders = [0, *(np.flatnonzero(np.diff(nodes)) + 1).tolist()]
    ends: list[int] = []
    for start, stop in pairwise(borders):
        ends += [*range(start + windows_per_shard, stop, windows_per_shard), stop]
    return ends + list(range(borders[-1] + windows_per_shard, len(nodes) + 1, windows_per_shard))


def _write_shard(folder: Path, number: int, samples: NDArray[Any], root: Path) -> ShardRow:
    folder.mkdir(parents=True, exist_ok=True)
    return write_shard(folder / f"shard.{number:05d}.mds", samples, root=root)


def _save_record(path: Path, rows: list[ShardRow], windows_of_leaf: dict[int, int]) -> None:
    record = {
        "rows": [asdict(row) for row in rows],
        "leaves": list(windows_of_leaf),
        "windows_per_leaf": list(windows_of_leaf.values()),
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)


def key_ranges(
    keys_per_run: Sequence[NDArray[np.uint64]], first_key: int, end_key: int, windows_per_range: int
) -> Iterator[list[tuple[int, int]]]:
    """Cut [first_key, end_key) into ranges of at most `windows_per_range` windows.

    Args:
        keys_per_run: sorted keys of each run.
        first_key: inclusive.
        end_key: exclusive, up to 2^64.
        windows_per_range: at least 1; exceeded only by windows that share one key.

    Yields:
        [num_runs] of (start, stop): the slice of each run, never all empty.
    """
    starts = [_position(keys, first_key) for keys in keys_per_run]
    ends = [_position(keys, end_key) for keys in keys_per_run]
    low = first_key
    while sum(ends) > sum(starts):
        high = end_key
        if sum(ends) - sum(starts) > windows_per_range:
            high = _largest_key_bound(keys_per_run, starts, low, end_key, windows_per_range)
        stops = [_position(keys, high) for keys in keys_per_run]
        if sum(stops) > sum(starts):
            yield list(zip(starts, stops, strict=True))
        starts, low = stops, high


def _largest_key_bound(
    keys_per_run: Sequence[NDArray[np.uint64]], starts: Sequence[int], low: int, end_key: int, windows_per_range: int
) -> int:
    """The largest bound above `low` with at most `windows_per_range` windows from `starts` below it."""
    fits, exceeds = low + 1, end_key  # one key is always taken whole
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        count = sum(_position(keys, middle) - start for keys, start in zip(keys_per_run, starts, strict=True))
        fits, exceeds = (middle, exceeds) if count <= windows_per_range else (fits, middle)
    return fits


def _position(keys: NDArray[np.uint64], bound: int) -> int:
    return len(keys) if bound >= _KEY_END else int(np.searchsorted(keys, np.uint64(bound)))


def _gather(
    keys_per_run: Sequence[NDArray[np.uint64]], tokens_per_run: Sequence[NDArray[Any]], slices: list[tuple[int, int]]
) -> NDArray[Any]:
    """Samples of one range, sorted by key; ties stay in run order."""
    present = [(run, start, stop) for run, (start, stop) in enumerate(slices) if stop > start]
    keys = np.concatenate([keys_per_run[run][start:stop] for run, start, stop in present])
    order = np.argsort(keys, kind="stable")
    tokens = np.concatenate([tokens_per_run[run][start:stop] for run, start, stop in present])
    return encode_samples(tokens[order], (keys[order] >> np.uint64(HASH_BITS)).astype(np.uint32))
