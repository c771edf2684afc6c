from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.mds import sample_dtype
from crisp_stream.tree import ClusterTree
from crisp_stream.writers import shards
from crisp_stream.writers.shards import (
    HASH_BITS,
    DirectoryRecord,
    DirectoryTask,
    RunTask,
    group_parts,
    key_ranges,
    part_path,
    save_array,
    shard_ends,
    sort_run,
    window_hashes,
    write_directory,
)
from tests.synthetic import DIM, synthetic_tokens, synthetic_tree
from tests.writers.conftest import files_below

WINDOWS_PER_PART = [40, 0, 33, 57, 1]
WINDOW_TOKENS = 16


def make_parts(folder: Path) -> NDArray[Any]:
    """Parts with random embeddings; returns all tokens [131, 16], the first four of which tell the window."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    tokens = synthetic_tokens(sum(WINDOWS_PER_PART), WINDOW_TOKENS)
    first = 0
    for part, count in enumerate(WINDOWS_PER_PART):
        save_array(part_path(folder, part, "tokens.npy"), tokens[first : first + count])
        save_array(part_path(folder, part, "embeddings.npy"), rng.normal(size=(count, DIM)).astype(np.float16))
        first += count
    return tokens


def sort_and_write(
    work: Path, tree: ClusterTree, *, memory_windows: int, run_windows: int = 60, shard_level: int = 1
) -> list[DirectoryRecord]:
    tree.save(work / "tree")
    groups = group_parts(WINDOWS_PER_PART, WINDOW_TOKENS * 2, run_bytes=run_windows * WINDOW_TOKENS * 2)
    runs = [work / f"run-{number:05d}" for number in range(len(groups))]
    for parts, run in zip(groups, runs, strict=True):
        task = RunTask(parts=parts, parts_folder=work / "parts", tree_folder=work / "tree", run=run, seed=7)
        assert sort_run(task) == sum(WINDOWS_PER_PART[part] for part in parts)
    records = []
    leaves_per_node = tree.arity ** (tree.depth - 1)
    for node in range(tree.arity):
        task = DirectoryTask(
            node=node,
            first_leaf=node * leaves_per_node,
            end_leaf=(node + 1) * leaves_per_node,
            runs=tuple(runs),
            root=work / "staged",
            record=work / f"{node}.json",
            shard_bytes=900,
            memory_bytes=memory_windows * WINDOW_TOKENS * 2,
            leaves_per_shard_node=tree.arity ** (tree.depth - shard_level),
        )
        write_directory(task)
        records.append(DirectoryRecord.load(task.record))
    return records


def read_back(root: Path, records: list[DirectoryRecord]) -> NDArray[Any]:
    dtype = sample_dtype(WINDOW_TOKENS, "uint16")
    rows = [row for record in records for row in record.rows]
    return np.concatenate(
        [np.frombuffer((root / row.path).read_bytes(), dtype, offset=row.first_sample_offset) for row in rows]
    )


def test_windows_are_sorted_by_leaf_and_stand_in_hash_order_inside_a_leaf(tmp_path: Path) -> None:
    tokens = make_parts(tmp_path / "parts")
    embeddings = [np.load(part_path(tmp_path / "parts", part, "embeddings.npy")) for part in range(5)]
    tree = synthetic_tree(arity=4, depth=2)
    records = sort_and_write(tmp_path, tree, memory_windows=10_000)
    samples = read_back(tmp_path / "staged", records)
    hashes = np.concatenate([window_hashes(part, count, 7) for part, count in enumerate(WINDOWS_PER_PART)])
    leaves = np.concatenate([tree.assign(part) for part in embeddings])
    expected = np.lexsort((hashes, leaves))
    np.testing.assert_array_equal(samples["tokens"], tokens[expected])
    np.testing.assert_array_equal(samples["cluster"], leaves[expected])
    counted = np.concatenate([np.repeat(record.leaves, record.windows_per_leaf) for record in records])
    np.testing.assert_array_equal(counted, leaves[expected])
    assert all(row.shard_bytes <= 900 for record in records for row in record.rows)
    assert {path.name[:10] for path in (tmp_path / "parts").glob("*.npy")} == {"part-00001"}  # empty: in no run


@pytest.mark.parametrize(("memory_windows", "run_windows"), [(1, 60), (7, 1), (31, 1000)])
def test_a_small_memory_budget_gives_the_bytes_of_a_large_one(
    tmp_path: Path, memory_windows: int, run_windows: int
) -> None:
    tree = synthetic_tree(arity=2, depth=1)  # two huge leaves, cut by hash
    outcomes = []
    for name, memory, run in (("large", 10_000, 60), ("small", memory_windows, run_windows)):
        make_parts(tmp_path / name / "parts")
        sort_and_write(tmp_path / name, tree, memory_windows=memory, run_windows=run)
        outcomes.append(files_below(tmp_path / name / "staged"))
    assert outcomes[0] == outcomes[1]


def test_shards_end_at_the_nodes_of_a_level_and_hold_the_same_windows(tmp_path: Path) -> None:
    tree = synthetic_tree(arity=4, depth=2)
    samples, rows, staged = {}, {}, {}
    for name, level, memory in (("1", 1, 50), ("2", 2, 50), ("2 again", 2, 3)):
        make_parts(tmp_path / name / "parts")
        records = sort_and_write(tmp_path / name, tree, memory_windows=memory, shard_level=level)
        samples[name] = read_back(tmp_path / name / "staged", records)
        rows[name] = [row.num_windows for record in records for row in record.rows]
        staged[name] = files_below(tmp_path / name / "staged")
    assert samples["1"].tobytes() == samples["2"].tobytes()
    assert staged["2"] == staged["2 again"]
    assert len(rows["2"]) > len(rows["1"])
    borders = np.flatnonzero(np.diff(samples["2"]["cluster"].astype(int))) + 1
    assert set(borders) <= set(np.cumsum(rows["2"]))
    full, leaf_windows = max(rows["1"]), np.diff([0, *borders, len(samples["2"])])
    assert len(rows["2"]) == sum(-(-windows // full) for windows in leaf_windows)


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 7))
def test_shards_cross_no_node_and_are_full_elsewhere(nodes: list[int], windows_per_shard: int) -> None:
    ordered = np.sort(np.array(nodes, np.uint32))
    ends = shard_ends(ordered, windows_per_shard)
    pieces = np.split(ordered, ends)
    for number, piece in enumerate(pieces[:-1]):
        assert len(set(piece.tolist())) == 1
        following = ordered[ends[number] :]
        assert len(piece) == windows_per_shard or (len(following) and following[0] != piece[0])
        assert len(piece) <= windows_per_shard
    assert len(pieces[-1]) < windows_per_shard
    assert len(set(pieces[-1].tolist())) <= 1


def test_a_directory_that_was_interrupted_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = synthetic_tree(arity=4, depth=2)
    make_parts(tmp_path / "whole" / "parts")
    sort_and_write(tmp_path / "whole", tree, memory_windows=20)
    make_parts(tmp_path / "broken" / "parts")
    original, calls = shards.write_shard, []

    def fail_at_third(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "write_shard", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        sort_and_write(tmp_path / "broken", tree, memory_windows=20)
    sort_and_write(tmp_path / "broken", tree, memory_windows=20)
    assert files_below(tmp_path / "broken" / "staged") == files_below(tmp_path / "whole" / "staged")


def test_hashes_are_uniform_distinct_and_depend_on_part_and_seed() -> None:
    hashes = window_hashes(3, 20_000, 0)
    assert len(np.unique(hashes)) == 20_000
    assert int(hashes.max()) < 1 << HASH_BITS
    counts = np.bincount((hashes >> np.uint64(HASH_BITS - 4)).astype(int), minlength=16)
    assert ((counts - 1250) ** 2 / 1250).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001
    assert not np.isin(hashes, window_hashes(4, 20_000, 0)).any()
    assert (hashes != window_hashes(3, 20_000, 1)).all()


@given(
    st.lists(st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 20), max_size=30), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_key_ranges_cover_every_key_once_and_fit_the_budget(keys: list[list[int]], budget: int) -> None:
    runs = [np.sort(np.array(run, np.uint64)) for run in keys]
    positions = [0] * len(runs)
    for slices in key_ranges(runs, 0, 1 << 64, budget):
        taken = np.concatenate([run[start:stop] for run, (start, stop) in zip(runs, slices, strict=True)])
        assert len(taken) > 0
        assert len(taken) <= budget or len(np.unique(taken)) == 1
        assert [start for start, _ in slices] == positions
        positions = [stop for _, stop in slices]
    assert positions == [len(run) for run in runs]


def test_the_last_leaf_of_the_largest_tree_has_a_key() -> None:
    keys = np.array([((1 << 24) - 1) << HASH_BITS, (1 << 64) - 1], np.uint64)
    assert list(key_ranges([keys], ((1 << 24) - 1) << HASH_BITS, 1 << 64, 10)) == [[(0, 2)]]


def test_parts_are_grouped_in_order_and_empty_ones_left_out() -> None:
    assert group_parts([10, 0, 10, 30, 5, 5], 2, run_bytes=40) == [(0, 2), (3,), (4, 5)]
    assert group_parts([0, 0], 2) == []
