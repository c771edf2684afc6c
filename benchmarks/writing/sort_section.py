"""Sections of the write benchmark that move windows: sorting them into shards, and shards to an object store."""

from __future__ import annotations

import importlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.support.measure import UnavailableError, cpu_of_all, descendants, medians_of, run_task
from benchmarks.support.report import Column, Row, count, digits, mega
from crisp_stream.format.keys import HASH_BITS, window_keys
from crisp_stream.format.mds import encode_samples, write_shard
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.engine.tasks import Record, Runner
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.sorting.ranges import RANGE_STAGES, Nodes, ranges_in_stages, windows_per_range
from crisp_stream.writers.stages.dataset import shard_tasks
from crisp_stream.writers.stages.runs import RunTask, group_parts, identity_of, part_places
from crisp_stream.writers.stages.shards import ShardSettings, ShardSink
from crisp_stream.writers.stages.windows import Part

WINDOW_TOKENS = 1024
WINDOW_BYTES = WINDOW_TOKENS * 2
DIM, ARITY, DEPTH = 384, 64, 2
WINDOWS_PER_PART = 500
SHARD_BYTES = 64 << 20
PROCESSES = 2
UPLOAD_SHARD_BYTES = 16 << 20
SORT_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="MB", key="mb", show=count),
    Column(title="MB/s", key="rate", show=digits(0)),
    Column(title="range of the runs", key="rate_spread", show=lambda pair: f"{pair[0]:,.0f} to {pair[1]:,.0f}"),
    Column(title="MB per CPU second", key="per_cpu", show=digits(0)),
    Column(title="peak memory of all processes, MB", key="peak", show=mega),
]
UPLOAD_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="MB", key="mb", show=count),
    Column(title="MB/s", key="rate", show=digits(0)),
    Column(title="range of the runs", key="rate_spread", show=lambda pair: f"{pair[0]:,.0f} to {pair[1]:,.0f}"),
    Column(title="against raw puts", key="ratio", show=digits(2)),
]


def synthetic_tree() -> ClusterTree:
    """A full tree of random unit centroids."""
    rng = np.random.default_rng(0)
    nodes = [np.arange(ARITY**level, dtype=np.uint32) for level in range(1, DEPTH + 1)]
    centroids = [rng.normal(size=(len(own), DIM)).astype(np.float32) for own in nodes]
    unit = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in centroids]
    return ClusterTree(arity=ARITY, depth=DEPTH, nodes_per_level=nodes, centroids_per_level=unit)


def make_parts(folder: Path, num_bytes: int) -> list[Part]:
    """Parts of random windows and embeddings, written unless they are there."""
    workspace = Workspace(folder)
    parts = [
        Part(
            number=number,
            num_windows=WINDOWS_PER_PART,
            windows_key=f"windows/{number:06d}",
            embeddings_key=f"embeddings/{number:06d}",
            fingerprint=f"{number}",
        )
        for number in range(max(4, num_bytes // (WINDOWS_PER_PART * WINDOW_BYTES)))
    ]
    if workspace.sizes("whole"):
        return parts
    for name, content in synthetic_tree().to_files().items():
        workspace.write(f"tree/{name}", content)
    rng = np.random.default_rng(1)
    for part in parts:
        tokens = rng.integers(0, 32_000, (part.num_windows, WINDOW_TOKENS), np.uint16)
        workspace.save_array(f"{part.windows_key}.tokens.npy", tokens)
        workspace.save_array(f"{part.windows_key}.places.npy", np.arange(part.num_windows, dtype=np.uint32))
        vectors = rng.normal(size=(part.num_windows, DIM)).astype(np.float16)
        workspace.save_array(f"{part.embeddings_key}.embeddings.npy", vectors)
    workspace.write("whole/mark", b"")
    return parts


def run_tasks(workspace: Workspace, parts: list[Part], *, run_bytes: int = WriteOptions.run_bytes) -> list[RunTask]:
    """The tasks that sort the parts into runs."""
    return [
        RunTask(workspace=workspace, number=number, inputs=(), parts=members, tree="tree", seed=0)
        for number, members in enumerate(group_parts(parts, WINDOW_BYTES, run_bytes=run_bytes))
    ]


def write_shards(
    runner: Runner, runs: list[RunTask], records: list[Record], num_windows: int, root: str, *, memory_bytes: int
) -> None:
    """Write shards from runs, by ranges of keys."""
    leaves_per_node = ARITY ** (DEPTH - 1)
    nodes = Nodes(arity=ARITY, leaves_per_node=leaves_per_node)
    settings = ShardSettings(
        root=root,
        window_tokens=WINDOW_TOKENS,
        token_dtype="uint16",
        shard_bytes=SHARD_BYTES,
        leaves_per_shard_node=leaves_per_node,
        identity=identity_of(records, None),
    )
    ranges = ranges_in_stages(
        runner,
        runs,
        nodes,
        windows_per_range=windows_per_range(WriteOptions.range_bytes, WINDOW_BYTES, num_windows, None),
        windows_per_shard=settings.windows_per_shard,
        leaves_per_shard_node=leaves_per_node,
    )
    runner.run(shard_tasks(runner, ranges, nodes, settings, memory_bytes=memory_bytes), unit="windows")


def sorted_by_tasks(folder: str, num_bytes: int, processes: int, memory_bytes: int | None = None) -> dict[str, Any]:
    """Ours: runs, then shards, in worker processes that have started."""
    from crisp_stream.writers.engine.engine import LocalEngine

    parts = make_parts(Path(folder), num_bytes)
    workspace = Workspace(folder)
    out = Path(folder) / "out"
    stages = [Path(folder) / stage for stage in ("runs", *RANGE_STAGES, "shards")]
    with _clean(out, *stages), _tree_memory() as peak:
        engine = LocalEngine(processes=processes)
        runner = Runner(engine, workspace, log=lambda line: None)
        warm = [
            RunTask(workspace=workspace, number=n, inputs=(), parts=(parts[0],), tree="tree", seed=9) for n in (90, 91)
        ]
        runner.run(warm, unit="windows")
        started, cpu = time.perf_counter(), cpu_of_all()
        runs = run_tasks(workspace, parts, run_bytes=memory_bytes or WriteOptions.run_bytes)
        records = runner.run(runs, unit="windows")
        sorting = time.perf_counter() - started
        memory = memory_bytes or WriteOptions.sort_memory_bytes
        write_shards(runner, runs, records, len(parts) * WINDOWS_PER_PART, str(out), memory_bytes=memory)
        seconds, cpu_seconds = time.perf_counter() - started, cpu_of_all() - cpu
        engine.close()
    return {"seconds": seconds, "cpu": cpu_seconds, "peak": peak[0], "runs_seconds": sorting, "parts": len(parts)}


def sorted_in_memory(folder: str, num_bytes: int) -> dict[str, Any]:
    """Everything read, sorted and written at once with numpy."""
    parts = make_parts(Path(folder), num_bytes)
    workspace, out = Workspace(folder), Path(folder) / "out"
    tree = ClusterTree.load(Path(folder) / "tree")
    with _clean(out), _tree_memory() as peak:
        started, cpu = time.perf_counter(), cpu_of_all()
        embeddings = np.concatenate([workspace.load_array(f"{part.embeddings_key}.embeddings.npy") for part in parts])
        tokens = np.concatenate([workspace.load_array(f"{part.windows_key}.tokens.npy") for part in parts])
        places = np.concatenate([part_places(part.number, _numbers(part)) for part in parts])
        keys = window_keys(tree.assign(embeddings), places, 0)
        order = np.argsort(keys, kind="stable")
        leaves = (keys[order] >> np.uint64(HASH_BITS)).astype(np.uint32)
        samples = encode_samples(tokens[order], leaves)
        _write_shards(samples, out)
        seconds, cpu_seconds = time.perf_counter() - started, cpu_of_all() - cpu
    return {"seconds": seconds, "cpu": cpu_seconds, "peak": peak[0], "parts": len(parts)}


def sorted_by_ray_data(folder: str, num_bytes: int, processes: int) -> dict[str, Any]:
    """Ray Data's own sort of the same windows by the same keys; its blocks become shards."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray, ray_data = (importlib.import_module(name) for name in ("ray", "ray.data"))
    except ImportError as error:
        raise UnavailableError(f"not installed: {error.name}") from error
    parts = make_parts(Path(folder), num_bytes)
    out = Path(folder) / "out"
    out.mkdir(parents=True, exist_ok=True)

    def load(rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
        tree, workspace = ClusterTree.load(Path(folder) / "tree"), Workspace(folder)
        for number in rows["id"]:
            part = parts[int(number)]
            leaves = tree.assign(workspace.load_array(f"{part.embeddings_key}.embeddings.npy"))
            keys = window_keys(leaves, part_places(part.number, _numbers(part)), 0)
            tokens = workspace.load_array(f"{part.windows_key}.tokens.npy")
            yield {"key": keys.view(np.int64), "tokens": tokens}

    def save(rows: dict[str, Any]) -> dict[str, Any]:
        leaves = (rows["key"].view(np.uint64) >> np.uint64(HASH_BITS)).astype(np.uint32)
        samples = encode_samples(np.ascontiguousarray(rows["tokens"], np.uint16), leaves)
        path = out / f"{int(rows['key'][0]):020d}.mds"
        write_shard(path, samples, root=out, identity=0)
        return {"windows": [len(samples)]}

    with _clean(out), _tree_memory() as peak:
        ray.init(
            address="local", num_cpus=processes, include_dashboard=False, log_to_driver=False, logging_level="error"
        )
        ray_data.range(2).map_batches(lambda batch: batch).materialize()  # workers have started
        started, cpu = time.perf_counter(), cpu_of_all()
        blocks = max(8, len(parts) * WINDOWS_PER_PART * WINDOW_BYTES // (64 << 20))
        windows = ray_data.range(len(parts), override_num_blocks=blocks).map_batches(load, batch_size=None)
        written = windows.sort("key").map_batches(save, batch_size=None).sum("windows")
        seconds, cpu_seconds = time.perf_counter() - started, cpu_of_all() - cpu
        ray.shutdown()
    if written != len(parts) * WINDOWS_PER_PART:
        raise RuntimeError(f"Ray Data wrote {written} windows")
    return {"seconds": seconds, "cpu": cpu_seconds, "peak": peak[0], "parts": len(parts)}


def sort(folder: Path, num_bytes: int, repeats: int) -> tuple[list[Row], list[str]]:
    """Each side in fresh processes, in turns."""
    options = {"folder": str(folder / "sort"), "num_bytes": num_bytes}
    make_parts(folder / "sort", num_bytes)
    sides = {
        "crisp-stream, runs and shards, 2 processes": ("sorted_by_tasks", {"processes": PROCESSES}),
        "crisp-stream, runs and shards, 1 process": ("sorted_by_tasks", {"processes": 1}),
        "numpy, all in memory, 1 process": ("sorted_in_memory", {}),
        "Ray Data sort, 2 CPUs": ("sorted_by_ray_data", {"processes": PROCESSES}),
    }
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (task, more) in sides.items():
            found[side].append(run_task(f"writing.sort_section:{task}", {**options, **more}))
    rows: list[Row] = []
    for side, results in found.items():
        if "unavailable" in results[0]:
            rows.append({"side": side, **results[0]})
            continue
        medians = medians_of(results)
        total = medians["parts"] * WINDOWS_PER_PART * WINDOW_BYTES / 1e6
        spread = medians["seconds_spread"]
        rows.append(
            {
                "side": side,
                "mb": total,
                "rate": total / medians["seconds"],
                "rate_spread": (total / spread[1], total / spread[0]),
                "per_cpu": total / medians["cpu"],
                "peak": medians["peak"],
            }
        )
    notes = [
        f"MB are those of the tokens; a window is {WINDOW_TOKENS:,} tokens of 2 bytes. Every side reads tokens and "
        f"{DIM}-number embeddings, assigns windows to a tree of {ARITY}^{DEPTH}, and writes shards with checksums.",
        "Processes have started before the clock does. Memory is proportional (pages that processes share count once).",
    ]
    return rows, notes


def upload(folder: Path, num_bytes: int, repeats: int, root: str) -> tuple[list[Row], list[str]]:
    """Shards through `ShardSink`, made while others go out, against bare puts of the same objects, in turns.

    Args:
        folder: unused files stand below it.
        num_bytes: to put, each time.
        repeats: turns.
        root: prefix of an object store.
    """
    from crisp_stream.storage.store import open_store
    from crisp_stream.writers.stages.shards import UPLOADS_AHEAD

    store = open_store(root)
    per_shard = UPLOAD_SHARD_BYTES // WINDOW_BYTES
    rng = np.random.default_rng(0)
    samples = encode_samples(rng.integers(0, 32_000, (per_shard, WINDOW_TOKENS), np.uint16), np.zeros(per_shard, "u4"))
    places = np.zeros((per_shard, 2), np.uint32)
    num_shards = max(2, num_bytes // UPLOAD_SHARD_BYTES)
    settings = ShardSettings(
        root=root,
        window_tokens=WINDOW_TOKENS,
        token_dtype="uint16",
        shard_bytes=UPLOAD_SHARD_BYTES,
        leaves_per_shard_node=1,
        identity=0,
    )

    def ours() -> None:
        with ShardSink(settings, 0) as sink:
            for _ in range(num_shards):
                sink.add(samples, places)
            sink.finish()

    def bare() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch, ThreadPoolExecutor(UPLOADS_AHEAD) as threads:
            path = Path(scratch) / "object"
            path.write_bytes(samples.tobytes())
            started[0] = time.perf_counter()
            list(threads.map(lambda number: store.put_file(f"raw/{number}", path), range(num_shards)))

    started = [0.0]
    seconds: dict[str, list[float]] = {"shards made and put by ShardSink": [], "bare puts of a ready file": []}
    for turn in range(repeats + 1):
        for side, work in zip(seconds, (ours, bare), strict=True):
            started[0] = time.perf_counter()
            work()
            if turn:
                seconds[side].append(time.perf_counter() - started[0])
            for name, _ in store.list():
                store.delete(name)
    total = num_shards * samples.nbytes / 1e6
    rows: list[Row] = [
        {
            "side": side,
            "mb": total,
            "rate": total / statistics.median(of_side),
            "rate_spread": (total / max(of_side), total / min(of_side)),
        }
        for side, of_side in seconds.items()
    ]
    own, raw = seconds.values()
    rows[0]["ratio"] = statistics.median(bare_one / one for one, bare_one in zip(own, raw, strict=True))
    return rows, [
        f"Objects of {samples.nbytes / 1e6:.0f} MB, {UPLOADS_AHEAD} at once, to SeaweedFS on the same machine."
    ]


def _numbers(part: Part) -> NDArray[np.uint32]:
    return np.arange(part.num_windows, dtype=np.uint32)


def _write_shards(samples: NDArray[Any], out: Path) -> None:
    per_shard = SHARD_BYTES // samples.dtype.itemsize
    nodes = samples["cluster"] // ARITY ** (DEPTH - 1)
    borders = [0, *(np.flatnonzero(np.diff(nodes)) + 1).tolist(), len(samples)]
    for node, (start, stop) in enumerate(pairwise(borders)):
        for number, first in enumerate(range(start, stop, per_shard)):
            path = out / "shards" / f"{node:02d}" / f"shard.{number:05d}.mds"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_shard(path, samples[first : min(stop, first + per_shard)], root=out, identity=0)


@contextmanager
def _clean(*folders: Path) -> Iterator[None]:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _tree_memory() -> Iterator[list[int]]:
    """Largest proportional memory of this process and all below it, in one number, sampled five times a second."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], sum(map(_proportional, (os.getpid(), *descendants(os.getpid())))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _proportional(pid: int) -> int:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) << 10
    return 0
