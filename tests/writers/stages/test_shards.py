from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError
from crisp_stream.format.keys import HASH_BITS, window_hashes, window_keys
from crisp_stream.format.mds import ShardRow, sample_dtype
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import Record, Runner, execute
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.sorting.key_sources import GrownDataset
from crisp_stream.writers.sorting.ranges import Nodes, ranges_in_stages
from crisp_stream.writers.stages import shards
from crisp_stream.writers.stages.dataset import shard_tasks
from crisp_stream.writers.stages.runs import RunTask, group_parts, identity_of, part_places
from crisp_stream.writers.stages.shards import ShardSettings, ShardsSummary, shard_ends
from crisp_stream.writers.stages.windows import Part
from tests.support.seaweed import S3Server
from tests.support.synthetic import DIM, synthetic_tokens, synthetic_tree, write_synthetic_dataset
from tests.support.written_dataset import files_below

WINDOWS_PER_PART = [40, 0, 33, 57, 1]
WINDOW_TOKENS = 16


def make_parts(workspace: Workspace) -> tuple[list[Part], NDArray[Any]]:
    """Parts with random embeddings; and all tokens [131, 16], the first four of which tell the window."""
    rng = np.random.default_rng(1)
    tokens = synthetic_tokens(sum(WINDOWS_PER_PART), WINDOW_TOKENS)
    parts, first = [], 0
    for number, count in enumerate(WINDOWS_PER_PART):
        part = Part(
            number=number,
            num_windows=count,
            windows_key=f"windows/{number:06d}",
            embeddings_key=f"embeddings/{number:06d}",
            fingerprint=f"{number}",
        )
        workspace.save_array(f"{part.windows_key}.tokens.npy", tokens[first : first + count])
        workspace.save_array(f"{part.windows_key}.places.npy", np.arange(count, dtype=np.uint32))
        workspace.save_array(f"{part.embeddings_key}.embeddings.npy", rng.normal(size=(count, DIM)).astype(np.float16))
        parts.append(part)
        first += count
    return parts, tokens


def sorted_runs(workspace: Workspace, tree: ClusterTree, *, run_windows: int) -> list[RunTask]:
    """All parts in sorted runs."""
    for name, content in tree.to_files().items():
        workspace.write(f"tree/{name}", content)
    parts, _ = make_parts(workspace)
    runs = []
    groups = group_parts(parts, WINDOW_TOKENS * 2, run_bytes=run_windows * WINDOW_TOKENS * 2)
    for number, members in enumerate(groups):
        task = RunTask(workspace=workspace, number=number, inputs=(), parts=members, tree="tree", seed=7)
        assert execute(task)["num_units"] == sum(part.num_windows for part in members)
        runs.append(task)
    return runs


def sort_and_write(
    work: Path | str,
    tree: ClusterTree,
    *,
    memory_windows: int,
    run_windows: int = 60,
    range_windows: int = 10_000,
    shard_level: int = 1,
    root: str | None = None,
) -> list[Record]:
    """The records of all ranges; their shards stand below `root`, or in `staged`."""
    workspace = Workspace(work)
    runs = sorted_runs(workspace, tree, run_windows=run_windows)
    settings = ShardSettings(
        root=root or str(Path(work) / "staged"),
        window_tokens=WINDOW_TOKENS,
        token_dtype="uint16",
        shard_bytes=900,
        leaves_per_shard_node=tree.arity ** (tree.depth - shard_level),
        identity=3,
    )
    runner = Runner(LocalEngine(processes=1), workspace, log=lambda line: None)
    nodes = Nodes(arity=tree.arity, leaves_per_node=tree.arity ** (tree.depth - 1))
    ranges = ranges_in_stages(
        runner,
        runs,
        nodes,
        windows_per_range=range_windows,
        windows_per_shard=settings.windows_per_shard,
        leaves_per_shard_node=settings.leaves_per_shard_node,
    )
    tasks = shard_tasks(runner, ranges, nodes, settings, memory_bytes=memory_windows * WINDOW_TOKENS * 2)
    return runner.run(tasks, unit="windows")


def rows_of(records: list[Record]) -> list[ShardRow]:
    return ShardsSummary.of(records).rows


def read_back(root: Path, records: list[Record]) -> NDArray[Any]:
    dtype = sample_dtype(WINDOW_TOKENS, "uint16")
    contents = [((root / row.path).read_bytes(), row.first_sample_offset) for row in rows_of(records)]
    return np.concatenate([np.frombuffer(content, dtype, offset=offset) for content, offset in contents])


def test_windows_are_sorted_by_leaf_and_stand_in_hash_order_inside_a_leaf(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    parts, tokens = make_parts(workspace)
    tree = synthetic_tree(arity=4, depth=2)
    records = sort_and_write(tmp_path, tree, memory_windows=10_000)
    samples = read_back(tmp_path / "staged", records)
    places = np.concatenate(
        [part_places(n, np.arange(count, dtype=np.uint32)) for n, count in enumerate(WINDOWS_PER_PART)]
    )
    embeddings = [workspace.load_array(f"{part.embeddings_key}.embeddings.npy") for part in parts]
    leaves = np.concatenate([tree.assign(part) for part in embeddings])
    expected = np.lexsort((window_hashes(places, 7), leaves))
    np.testing.assert_array_equal(expected, np.argsort(window_keys(leaves, places, 7)))
    np.testing.assert_array_equal(samples["tokens"], tokens[expected])
    np.testing.assert_array_equal(samples["cluster"], leaves[expected])
    summary = ShardsSummary.of(records)
    np.testing.assert_array_equal(np.repeat(summary.leaves, summary.windows_per_leaf), leaves[expected])
    assert all(row.shard_bytes <= 900 for row in summary.rows)
    files = sorted((tmp_path / "staged" / "provenance").rglob("*.npy"))
    stored = np.concatenate([np.load(path) for path in files])
    np.testing.assert_array_equal(stored, places[expected])
    assert len(files) == len(summary.rows)


@pytest.mark.parametrize(
    ("memory_windows", "run_windows", "range_windows"), [(1, 60, 25), (7, 1, 10_000), (31, 1000, 1), (100, 1, 30)]
)
def test_a_small_memory_budget_and_small_ranges_give_the_bytes_of_large_ones(
    tmp_path: Path, memory_windows: int, run_windows: int, range_windows: int
) -> None:
    tree = synthetic_tree(arity=2, depth=1)  # two huge leaves, cut by hash
    outcomes, num_records = [], []
    for name, memory, run, ranges in (
        ("large", 10_000, 60, 10_000),
        ("small", memory_windows, run_windows, range_windows),
    ):
        records = sort_and_write(tmp_path / name, tree, memory_windows=memory, run_windows=run, range_windows=ranges)
        num_records.append(len(records))
        outcomes.append((files_below(tmp_path / name / "staged"), rows_of(records)))
    assert outcomes[0] == outcomes[1]
    assert num_records[0] == 2
    assert (num_records[1] > 2) == (range_windows < 10_000)


def test_an_identity_follows_from_all_windows_whatever_runs_they_are_sorted_in(tmp_path: Path) -> None:
    tree = synthetic_tree(arity=4, depth=2)

    def records(name: str, *, run_windows: int = 60, seed: int = 7, flip: bool = False) -> list[Record]:
        workspace = Workspace(tmp_path / name)
        for file, content in tree.to_files().items():
            workspace.write(f"tree/{file}", content)
        parts, _ = make_parts(workspace)
        if flip:
            tokens = workspace.load_array(f"{parts[3].windows_key}.tokens.npy")
            tokens[56, 15] ^= 1
            workspace.save_array(f"{parts[3].windows_key}.tokens.npy", tokens)
        groups = group_parts(parts, WINDOW_TOKENS * 2, run_bytes=run_windows * WINDOW_TOKENS * 2)
        return [
            execute(RunTask(workspace=workspace, number=number, inputs=(), parts=members, tree="tree", seed=seed))
            for number, members in enumerate(groups)
        ]

    one, many = records("one", run_windows=1000), records("many", run_windows=1)
    assert len(one) < len(many)
    assert identity_of(one, None) == identity_of(many, None) < 1 << 64
    others = [
        identity_of(records("another order", seed=8), None),
        identity_of(records("another bit", flip=True), None),
        identity_of(one, "0" * 64),
    ]
    assert len({identity_of(one, None), *others}) == 4


def test_shards_end_at_the_nodes_of_a_level_and_hold_the_same_windows(tmp_path: Path) -> None:
    tree = synthetic_tree(arity=4, depth=2)
    samples, rows, staged = {}, {}, {}
    for name, level, memory in (("1", 1, 50), ("2", 2, 50), ("2 again", 2, 3)):
        records = sort_and_write(tmp_path / name, tree, memory_windows=memory, shard_level=level, range_windows=memory)
        samples[name] = read_back(tmp_path / name / "staged", records)
        rows[name] = [row.num_windows for row in rows_of(records)]
        staged[name] = files_below(tmp_path / name / "staged")
    for column in ("tokens", "cluster"):
        assert (samples["1"][column] == samples["2"][column]).all()
    assert staged["2"] == staged["2 again"]
    assert len(rows["2"]) > len(rows["1"])
    borders = np.flatnonzero(np.diff(samples["2"]["cluster"].astype(int))) + 1
    assert set(borders) <= set(np.cumsum(rows["2"]))
    full, leaf_windows = max(rows["1"]), np.diff(np.array([0, *borders, len(samples["2"])]))
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


def test_a_range_that_was_interrupted_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = synthetic_tree(arity=4, depth=2)
    sort_and_write(tmp_path / "whole", tree, memory_windows=20)
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


def test_runs_and_shards_of_an_object_store_have_the_bytes_of_local_ones(s3: S3Server, tmp_path: Path) -> None:
    from crisp_stream.storage.store import open_store

    tree = synthetic_tree(arity=4, depth=2)
    sort_and_write(tmp_path, tree, memory_windows=20)
    root = s3.fresh_prefix("root")
    sort_and_write(s3.fresh_prefix("work"), tree, memory_windows=7, range_windows=25, root=root)
    store = open_store(root)
    assert {path: store.get(path) for path, _ in store.list()} == files_below(tmp_path / "staged")


def test_windows_that_are_taken_over_damaged_are_refused(tmp_path: Path) -> None:
    made = write_synthetic_dataset(tmp_path, {0: 9, 1: 20}, arity=2, depth=1)
    row = made.shards[0]
    grown = GrownDataset(root=str(tmp_path), generation=0, fingerprint="x", sort_seed=0)
    expected = grown.tokens(0, 0, row.num_windows)
    path, sample = tmp_path / row.path, sample_dtype(made.manifest.window_tokens, "uint16").itemsize
    content = bytearray(path.read_bytes())
    content[row.first_sample_offset + 4 * sample + 20] ^= 1
    path.write_bytes(content)
    for start, stop in ((0, 4), (5, row.num_windows)):
        np.testing.assert_array_equal(grown.tokens(0, start, stop), expected[start:stop])
    with pytest.raises(CorruptDataError, match="a window of cluster 0 does not match its checksum"):
        grown.tokens(0, 2, 5)
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptDataError, match="is cut short"):
        grown.tokens(0, row.num_windows - 1, row.num_windows)


def test_hashes_are_uniform_distinct_and_depend_on_part_and_seed() -> None:
    places = np.arange(20_000, dtype=np.uint32)
    hashes = window_hashes(part_places(3, places), 0)
    assert len(np.unique(hashes)) == 20_000
    assert int(hashes.max()) < 1 << HASH_BITS
    counts = np.bincount((hashes >> np.uint64(HASH_BITS - 4)).astype(int), minlength=16)
    assert ((counts - 1250) ** 2 / 1250).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001
    assert not np.isin(hashes, window_hashes(part_places(4, places), 0)).any()
    assert (hashes != window_hashes(part_places(3, places), 1)).all()


def test_parts_are_grouped_in_order_and_empty_ones_left_out() -> None:
    def grouped(windows_per_part: list[int], run_bytes: int) -> list[tuple[int, ...]]:
        parts = [
            Part(number=number, num_windows=count, windows_key="", embeddings_key="", fingerprint="")
            for number, count in enumerate(windows_per_part)
        ]
        return [tuple(part.number for part in group) for group in group_parts(parts, 2, run_bytes=run_bytes)]

    assert grouped([10, 0, 10, 30, 5, 5], 40) == [(0, 2), (3,), (4, 5)]
    assert grouped([0, 0], 40) == []
