"""Stages that cut the sort keys of all windows into ranges of about 4 GB of tokens, each of which one task writes.

    range-samples -> range-cuts -> range-counts -> ranges

Bundles of runs are sampled, evenly in each run; the samples of all bundles give the cuts. Then every bundle says where
its runs stand at each cut, and how many windows of it each node has whose borders no shard crosses. The sums of both
say how many windows a range has, the number of its first shard, and how many windows at its beginning belong to the
last shard of the range before. So shards do not depend on where the cuts are.

The keys (8 bytes a window) are read twice, one run at a time. Cuts are wanted, not exact: a range differs from its
share by some percent. Cutting at exact ranks was rejected: it takes a pass over all keys for every halving.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.keys import HASH_BITS
from crisp_stream.writers.engine.tasks import Record, Runner, Task, file_sizes, write_files
from crisp_stream.writers.sorting.key_sources import SOURCE, GrownDataset, whole_keys
from crisp_stream.writers.stages.runs import RunTask

MOST_RANGES = 4096
"""About so many ranges at most, so that larger corpora get larger ones: a range asks every run for its windows."""
MOST_RANGE_WINDOWS = 1 << 21
"""Windows of a range below that number: a task holds 28 bytes for each while it sorts their keys."""
RANGE_STAGES = ("range-samples", "range-cuts", "range-counts", "ranges")
_BYTES_PER_WINDOW = 64
_SAMPLES_PER_RANGE = 256
_LEAST_BUNDLE = 64
_READ_AT_ONCE = 8
_HELD_COUNTS = 1 << 18
NODE_COUNT = np.dtype([("node", "<u4"), ("windows", "<i8")])
RANGE = np.dtype(
    [(name, "<i8") for name in ("node", "first", "end", "next", "windows", "skip", "extra", "shard", "at")]
)
"""A row per range: level-1 node; its cuts, and the end of the next range of the node; windows between its cuts; of
these, those at its beginning that belong to an earlier shard; windows behind its end that belong to its last shard;
number of its first shard in the folder of the node; windows before it."""


def windows_per_range(range_bytes: int, window_bytes: int, num_windows: int, work_bytes: int | None) -> int:
    """Windows of a range, about; `work_bytes`, if any, bound what a task holds of them beside their tokens."""
    wanted = min(max(range_bytes // window_bytes, 1), MOST_RANGE_WINDOWS)
    if work_bytes is not None:
        wanted = min(wanted, max(work_bytes // _BYTES_PER_WINDOW, 1))
    return max(wanted, math.ceil(num_windows / MOST_RANGES))


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Level-1 nodes of a tree."""

    arity: int
    leaves_per_node: int

    @property
    def first_keys(self) -> NDArray[np.uint64]:
        """[arity]."""
        return np.arange(self.arity, dtype=np.uint64) * np.uint64(self.leaves_per_node) << np.uint64(HASH_BITS)


@dataclass(frozen=True, kw_only=True)
class _BundleTask(Task):
    """Reads the keys of some runs, or of some shards of the dataset that grows."""

    runs: tuple[str, ...]
    grown: GrownDataset | None
    shards: tuple[int, int] = (0, 0)
    """First and end."""
    nodes: Nodes

    def keys(self) -> Iterator[NDArray[np.uint64]]:
        """Sorted keys of each."""
        grown = self.grown
        if grown is not None:
            for shard in range(*self.shards):
                yield grown.keys(shard, 0, grown.dataset.shards[shard].num_windows)
            return
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            for first in range(0, len(self.runs), _READ_AT_ONCE):
                some = self.runs[first : first + _READ_AT_ONCE]
                yield from threads.map(lambda run: whole_keys(self.workspace, run), some)

    def sources(self) -> NDArray[Any]:
        """[num_sources] of SOURCE."""
        shards = [(shard, b"") for shard in range(*self.shards)]
        return np.array([*shards, *((-1, run.encode()) for run in self.runs)], SOURCE)


@dataclass(frozen=True, kw_only=True)
class RangeSamplesTask(_BundleTask):
    """Take every so many-th key of a bundle, and count the windows of each level-1 node."""

    stage: ClassVar[str] = "range-samples"
    title: ClassVar[str] = "sampling sort keys"

    stride: int

    def settings(self) -> Any:
        """Beside the runs."""
        return [self.shards, self.nodes, self.stride]

    def make(self) -> Record:
        """Write the sampled keys; the runs are sampled as if they followed one another."""
        sampled = [np.zeros(0, np.uint64)]
        seen, per_node = 0, np.zeros(self.nodes.arity, np.int64)
        for keys in self.keys():
            sampled.append(keys[(self.stride // 2 - seen) % self.stride :: self.stride])
            seen += len(keys)
            starts = np.searchsorted(keys, self.nodes.first_keys)
            per_node += np.diff(np.append(starts, len(keys)))
        self.workspace.save_array(self.file("keys.npy"), np.concatenate(sampled))
        return {
            "num_units": seen,
            "windows_per_node": per_node.tolist(),
            "files": file_sizes(self, self.file("keys.npy")),
        }


@dataclass(frozen=True, kw_only=True)
class RangeCutsTask(Task):
    """Choose the cuts: between ranges, and at every level-1 node."""

    stage: ClassVar[str] = "range-cuts"
    title: ClassVar[str] = "choosing ranges of sort keys"

    samples: tuple[str, ...]
    samples_per_range: int
    nodes: Nodes

    def settings(self) -> Any:
        """Beside the samples."""
        return [self.samples_per_range, self.nodes]

    def make(self) -> Record:
        """Write the keys of the cuts, sorted; ranges of a node get equal shares of its samples."""
        sampled = np.sort(np.concatenate([self.workspace.load_array(f"{key}.keys.npy") for key in self.samples]))
        first_keys = self.nodes.first_keys
        borders = np.append(np.searchsorted(sampled, first_keys), len(sampled)).tolist()
        cuts = [first_keys]
        for start, stop in pairwise(borders):
            num_ranges = -(-(stop - start) // self.samples_per_range)
            cuts.append(sampled[[start + (stop - start) * at // num_ranges for at in range(1, num_ranges)]])
        self.workspace.save_array(self.file("cuts.npy"), np.unique(np.concatenate(cuts)))
        return {"files": file_sizes(self, self.file("cuts.npy"))}


@dataclass(frozen=True, kw_only=True)
class RangeCountsTask(_BundleTask):
    """Find where the runs of a bundle stand at each cut, and count windows."""

    stage: ClassVar[str] = "range-counts"
    title: ClassVar[str] = "counting windows of ranges"

    cuts: str
    """Key of the cuts."""
    leaves_per_shard_node: int

    def settings(self) -> Any:
        """Beside runs and cuts."""
        return [self.shards, self.leaves_per_shard_node]

    def make(self) -> Record:
        """Write positions [cuts + 1, runs], whose last row are the ends; sums of these; windows of nodes; the runs."""
        cuts = self.workspace.load_array(f"{self.cuts}.cuts.npy")
        sources = self.sources()
        positions = np.empty((len(cuts) + 1, len(sources)), np.uint32)
        counts = NodeCounts()
        for number, keys in enumerate(self.keys()):
            positions[:-1, number] = np.searchsorted(keys, cuts)
            positions[-1, number] = len(keys)
            counts.add_sorted((keys >> np.uint64(HASH_BITS)) // np.uint64(self.leaves_per_shard_node))
        below = positions.sum(axis=1, dtype=np.int64)
        arrays = {"positions": positions, "below": below, "nodes": counts.total(), "sources": sources}
        for kind, array in arrays.items():
            self.workspace.save_array(self.file(f"{kind}.npy"), array)
        return {
            "num_units": int(below[-1]),
            "files": file_sizes(self, *(self.file(f"{kind}.npy") for kind in arrays)),
        }


class NodeCounts:
    """Windows of nodes, of which few may have any."""

    def __init__(self) -> None:
        self._held = [np.zeros(0, NODE_COUNT)]

    def add_sorted(self, nodes: NDArray[Any]) -> None:
        """Count windows by their nodes, which are sorted."""
        starts = np.flatnonzero(np.diff(nodes, prepend=nodes[:1] + np.uint64(1)))
        counts = np.empty(len(starts), NODE_COUNT)
        counts["node"], counts["windows"] = nodes[starts], np.diff(np.append(starts, len(nodes)))
        self.add(counts)

    def add(self, counts: NDArray[Any]) -> None:
        """Add [num_nodes] of NODE_COUNT."""
        self._held.append(counts)
        if sum(map(len, self._held[1:])) > max(_HELD_COUNTS, len(self._held[0])):
            self.total()

    def total(self) -> NDArray[Any]:
        """[num_nodes] of NODE_COUNT, sorted by node."""
        joined = np.concatenate(self._held)
        nodes, inverse = np.unique(joined["node"], return_inverse=True)
        total = np.zeros(len(nodes), NODE_COUNT)
        total["node"] = nodes
        np.add.at(total["windows"], inverse, joined["windows"])
        self._held = [total]
        return total


@dataclass(frozen=True, kw_only=True)
class RangesTask(Task):
    """Join what is known of all bundles to the list of ranges."""

    stage: ClassVar[str] = "ranges"
    title: ClassVar[str] = "listing ranges"

    cuts: str
    bundles: tuple[str, ...]
    """Keys of the counts, in the order in which equal keys are sorted."""
    nodes: Nodes
    leaves_per_shard_node: int
    windows_per_shard: int

    def settings(self) -> Any:
        """Beside the counts."""
        return [self.nodes, self.leaves_per_shard_node, self.windows_per_shard]

    def make(self) -> Record:
        """Write the ranges, and the names of the bundles."""
        cuts = self.workspace.load_array(f"{self.cuts}.cuts.npy")
        counts, below = NodeCounts(), np.zeros(len(cuts) + 1, np.int64)
        for key in self.bundles:
            below += self.workspace.load_array(f"{key}.below.npy")
            counts.add(self.workspace.load_array(f"{key}.nodes.npy"))
        ranges = list_ranges(
            cuts,
            below,
            counts.total(),
            self.nodes,
            leaves_per_shard_node=self.leaves_per_shard_node,
            windows_per_shard=self.windows_per_shard,
        )
        self.workspace.save_array(self.file("ranges.npy"), ranges)
        record = write_files(self, {"bundles.json": json.dumps(self.bundles).encode()})
        return {**record, "files": {**record["files"], **file_sizes(self, self.file("ranges.npy"))}}


def list_ranges(
    cuts: NDArray[np.uint64],
    below: NDArray[np.int64],
    counts: NDArray[Any],
    nodes: Nodes,
    *,
    leaves_per_shard_node: int,
    windows_per_shard: int,
) -> NDArray[Any]:
    """The ranges of all nodes that have windows.

    Args:
        cuts: [num_cuts], keys; the first ones of the nodes are among them.
        below: [num_cuts + 1], windows with smaller keys, and all.
        counts: [num_shard_nodes] of NODE_COUNT: windows of the nodes whose borders no shard crosses.
        nodes: of level 1.
        leaves_per_shard_node: leaves of these nodes.
        windows_per_shard: of a full shard.

    Returns:
        [num_ranges] of RANGE. Every one has the windows of a full shard, or is the only one of its node, so that no
        shard has windows of more than two ranges.
    """
    shards = _Shards(counts, leaves_per_shard_node, nodes.leaves_per_node, windows_per_shard)
    at_node = np.append(np.searchsorted(cuts, nodes.first_keys), len(cuts)).tolist()
    ranges: list[tuple[int, ...]] = []
    for node, (start, stop) in enumerate(pairwise(at_node)):
        chosen = _far_enough(below, start, stop, windows_per_shard)
        begins = [shards.at(int(cuts[cut]), int(below[cut])) for cut in chosen[:-1]]
        for number, (first, end) in enumerate(pairwise(chosen)):
            shard, skip = begins[number]
            extra = begins[number + 1][1] if number + 1 < len(begins) else 0
            following = chosen[min(number + 2, len(chosen) - 1)]
            windows = int(below[end] - below[first])
            if windows:
                ranges.append((node, first, end, following, windows, skip, extra, shard, int(below[first])))
    return np.array(ranges, RANGE)


def _far_enough(below: NDArray[np.int64], start: int, stop: int, least: int) -> list[int]:
    """Of the cuts start … stop, the outer ones, and inner ones with at least so many windows between."""
    chosen = [start]
    for cut in range(start + 1, stop):
        if below[cut] - below[chosen[-1]] >= least and below[stop] - below[cut] >= least:
            chosen.append(cut)
    return [*chosen, stop]


class _Shards:
    """Where shards begin."""

    def __init__(self, counts: NDArray[Any], leaves_per_node: int, leaves_per_folder: int, per_shard: int) -> None:
        self._nodes, self._windows = counts["node"].astype(np.int64), counts["windows"]
        self._first_windows = np.cumsum(self._windows) - self._windows
        full = -(-self._windows // per_shard)
        self._first_shards = np.append(0, np.cumsum(full))
        self._leaves_per_node, self._per_shard = leaves_per_node, per_shard
        self._nodes_per_folder = leaves_per_folder // leaves_per_node

    def at(self, key: int, below: int) -> tuple[int, int]:
        """Shards of the folder that begin before a key, and windows from there that belong to the last of them.

        Args:
            key: of a cut.
            below: windows with smaller keys.
        """
        node = (key >> HASH_BITS) // self._leaves_per_node
        first = np.searchsorted(self._nodes, node // self._nodes_per_folder * self._nodes_per_folder)
        row = int(np.searchsorted(self._nodes, node))
        before, skip = int(self._first_shards[row] - self._first_shards[first]), 0
        if row < len(self._nodes) and self._nodes[row] == node:
            inside = below - int(self._first_windows[row])
            before += -(-inside // self._per_shard)
            skip = min(-inside % self._per_shard, int(self._windows[row]) - inside)
        return before, skip


@dataclass(frozen=True, kw_only=True)
class KeyRange:
    """A range of keys, as its task knows it; see RANGE."""

    ranges: str
    """Key of the list of ranges."""
    node: int
    cuts: tuple[int, int, int]
    """First, end, and end of the next range of the node."""
    num_windows: int
    skip: int = 0
    extra: int = 0


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """All ranges of a write, and the level-1 nodes of a dataset that grows which get no windows."""

    task: RangesTask
    rows: NDArray[Any]
    """[num_ranges] of RANGE."""
    unchanged: list[int]

    def range(self, row: Any, *, whole_shards: bool) -> KeyRange:
        """A range; with the windows between its cuts, or with whole shards, of those that begin in it."""
        skip, extra = (int(row["skip"]), int(row["extra"])) if whole_shards else (0, 0)
        return KeyRange(
            ranges=self.task.key,
            node=int(row["node"]),
            cuts=(int(row["first"]), int(row["end"]), int(row["next"])),
            num_windows=int(row["windows"]) - skip + extra,
            skip=skip,
            extra=extra,
        )


def ranges_in_stages(
    runner: Runner,
    runs: Sequence[RunTask],
    nodes: Nodes,
    *,
    windows_per_range: int,
    windows_per_shard: int,
    leaves_per_shard_node: int,
    grown: GrownDataset | None = None,
) -> Ranges:
    """Cut the windows of sorted runs, and of the dataset that grows where it gets some, into ranges.

    Args:
        runner: of the write.
        runs: all of them.
        nodes: of level 1.
        windows_per_range: about.
        windows_per_shard, leaves_per_shard_node: by which shards are cut.
        grown: the dataset, if any.
    """
    stride = max(1, windows_per_range // _SAMPLES_PER_RANGE)
    size = max(_LEAST_BUNDLE, math.isqrt(len(runs)))
    bundles = [_Bundle.of_runs(runs[first : first + size]) for first in range(0, len(runs), size)]

    def sampled(bundles: Sequence[_Bundle], first: int) -> tuple[list[RangeSamplesTask], list[Record]]:
        tasks = [
            RangeSamplesTask(
                workspace=runner.workspace, number=first + number, nodes=nodes, stride=stride, **one.fields(grown)
            )
            for number, one in enumerate(bundles)
        ]
        return tasks, runner.run(tasks, unit="windows")

    samples, records = sampled(bundles, 0)
    unchanged: list[int] = []
    if grown is not None:
        per_node = np.sum([record["windows_per_node"] for record in records], axis=0)
        unchanged = np.flatnonzero(per_node == 0).tolist()
        old = _bundles_of_shards(grown, nodes, set(unchanged), size)
        of_old, _ = sampled(old, len(samples))
        bundles, samples = [*old, *bundles], [*of_old, *samples]
    cuts = RangeCutsTask(
        workspace=runner.workspace,
        number=0,
        inputs=tuple(task.fingerprint for task in samples),
        samples=tuple(task.key for task in samples),
        samples_per_range=windows_per_range // stride,
        nodes=nodes,
    )
    runner.run([cuts], unit="")
    counts = [
        RangeCountsTask(
            workspace=runner.workspace,
            number=number,
            nodes=nodes,
            cuts=cuts.key,
            leaves_per_shard_node=leaves_per_shard_node,
            **one.fields(grown, cuts.fingerprint),
        )
        for number, one in enumerate(bundles)
    ]
    runner.run(counts, unit="windows")
    task = RangesTask(
        workspace=runner.workspace,
        number=0,
        inputs=(cuts.fingerprint, *(one.fingerprint for one in counts)),
        cuts=cuts.key,
        bundles=tuple(one.key for one in counts),
        nodes=nodes,
        leaves_per_shard_node=leaves_per_shard_node,
        windows_per_shard=windows_per_shard,
    )
    runner.run([task], unit="")
    return Ranges(task=task, rows=runner.workspace.load_array(task.file("ranges.npy")), unchanged=unchanged)


@dataclass(frozen=True, kw_only=True)
class _Bundle:
    runs: tuple[RunTask, ...] = ()
    shards: tuple[int, int] = (0, 0)

    @classmethod
    def of_runs(cls, runs: Sequence[RunTask]) -> _Bundle:
        return cls(runs=tuple(runs))

    def fields(self, grown: GrownDataset | None, *inputs: str) -> dict[str, Any]:
        """Fields of a task of the bundle; `inputs` are those beside the runs."""
        of_old = grown if self.shards[1] else None
        own = (of_old.fingerprint,) if of_old is not None else tuple(run.fingerprint for run in self.runs)
        return {
            "inputs": (*inputs, *own),
            "runs": tuple(run.key for run in self.runs),
            "grown": of_old,
            "shards": self.shards,
        }


def _bundles_of_shards(grown: GrownDataset, nodes: Nodes, unchanged: set[int], size: int) -> list[_Bundle]:
    """The shards of the nodes that change, as bundles of neighbours."""
    of_shard = np.array([int(row.path.split("/")[1]) for row in grown.dataset.shards])
    bundles = []
    for node in range(nodes.arity):
        if node not in unchanged and len(own := np.flatnonzero(of_shard == node)):
            first, end = int(own[0]), int(own[-1]) + 1
            bundles += [_Bundle(shards=(start, min(end, start + size))) for start in range(first, end, size)]
    return bundles
