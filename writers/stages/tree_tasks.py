"""The tasks by which a tree grows; tree.py has their order.

A `tree-draws` task takes a group of parts, about 128 MB of vectors. It places its windows on the level, from where they
were on the level above, counts them, and writes the examples that it draws for each node, sorted by node. Then every
node of the level is fitted apart, from its stretch of all these files. So each level reads the embeddings once, no file
holds more than a group's examples, a process holds a group or the examples of one node, and no task's description
grows with the corpus but the two of a level that join (100 bytes per group, a GB of it for 8 GB of vectors).

Every node asks every file for its stretch, 4,096 nodes times 6,000 files for 10^9 windows. So where there are many
draws, `tree-merges` tasks first join the examples of neighbours, which gives the same nodes.

Where all windows of a level are examples, as in small nodes, they are copied once: the work folder grows by up to a
copy of the embeddings for each such level. Nodes that read single rows of the parts were rejected, because neighbours
in a node come from any part: from an object store each row would be a request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import import_extra
from crisp_stream.format.keys import HASH_BITS, window_hashes
from crisp_stream.tree.families import cuts
from crisp_stream.writers.engine.tasks import Record, Task, file_sizes, write_files
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.runs import part_places
from crisp_stream.writers.stages.windows import Part, forget_encoders
from crisp_stream.writers.tree.balanced_kmeans import one_thread, search_device
from crisp_stream.writers.tree.fit_tree import tree_of_levels
from crisp_stream.writers.tree.growth import LevelPlan
from crisp_stream.writers.tree.levels import SETTLED, Level, Splits, draw_keys, split_nodes, window_ids
from crisp_stream.writers.tree.settings import TreeSettings

_NODES_PER_BUNDLE = 256
_ROWS_PER_WRITE = 1 << 14
_READ_AT_ONCE = 16
"""Requests for files of draws that are under way."""
_READ_BYTES = 64 << 20
"""Examples of draws that are read at once, unless those of one are more."""
_NPY_HEADER_BYTES = 128
"""Bytes before the rows of the files of a draw, as numpy pads them."""
_SAMPLE_SALT = 1
_ROWS_SHARE = 16
"""Rows read per row used, about, where the tree is fitted on some windows: parts are chosen before rows."""
EXAMPLE = np.dtype([("row", "<u4"), ("key", "<u8")])
"""Of an example: row of its node on the level, and key by which it was drawn."""


@dataclass(frozen=True, kw_only=True)
class FitWindows:
    """Windows that the tree is fitted on: all, or about so many chosen by a hash."""

    at_most: int | None
    total: int
    """Windows that there are."""
    seed: int

    @property
    def expected(self) -> int:
        """About so many."""
        return self.total if self.at_most is None else min(self.at_most, self.total)

    @property
    def are_all(self) -> bool:
        """True where none is left out."""
        return self.expected == self.total

    @property
    def _shares(self) -> tuple[float, float]:
        """(share of the parts, share of the rows of these)."""
        share = self.expected / self.total
        of_parts = min(1.0, share * _ROWS_SHARE)
        return of_parts, share / of_parts

    def has_part(self, part: Part) -> bool:
        """Say whether some of a part's windows may be used."""
        hashed = window_hashes(np.array([[part.number, 1 << 31]], np.uint32), self.seed + _SAMPLE_SALT)
        return self.are_all or bool(hashed[0] < _threshold(self._shares[0]))

    def rows_at_root(self, part: Part) -> NDArray[np.int32]:
        """[num_windows], 0 for windows that are used, `SETTLED` for others."""
        if self.are_all:
            return np.zeros(part.num_windows, np.int32)
        places = part_places(part.number, np.arange(part.num_windows, dtype=np.uint32))
        used = window_hashes(places, self.seed + _SAMPLE_SALT) < _threshold(self._shares[1])
        return np.where(used, 0, SETTLED).astype(np.int32)


def _threshold(share: float) -> np.uint64:
    return np.uint64(round(share * (1 << HASH_BITS)))


@dataclass(frozen=True, kw_only=True)
class LevelFiles:
    """Where a level is found; the root has no files."""

    number: int
    key: str | None

    def name(self, kind: str) -> str:
        """Name of one of its files."""
        return f"{self.key}.{kind}"

    def load(self, workspace: Workspace, windows: FitWindows, settings: TreeSettings) -> Level:
        """The level; arrays of a folder are mapped, so that all processes of a machine share them."""
        if self.key is None:
            return Level.root(windows.expected, settings, is_exact=windows.are_all)
        return _load_level(workspace.url, self)


@lru_cache(maxsize=1)
def _load_level(url: str, files: LevelFiles) -> Level:
    kinds = ("nodes", "centroids", "families", "thresholds")
    paths = Workspace(url).kept(*(files.name(f"{kind}.npy") for kind in kinds))
    nodes, centroids, families, thresholds = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    return Level(number=files.number, nodes=nodes, centroids=centroids, families=families, thresholds=thresholds)


@dataclass(frozen=True, kw_only=True)
class _LevelTask(Task):
    tree: TreeSettings
    windows: FitWindows
    level: LevelFiles
    """The level whose nodes are to be split."""

    def settings(self) -> Any:
        """Settings of the tree, the windows and the level."""
        return [self.tree, self.windows, self.level.number]


@dataclass(frozen=True, kw_only=True)
class TreeDrawTask(_LevelTask):
    """Place the windows of some parts on a level, count them, and write the examples of each node."""

    stage: ClassVar[str] = "tree-draws"
    title: ClassVar[str] = "drawing examples for the tree"
    version: ClassVar[int] = 2

    parts: Sequence[Part]
    above: str | None
    """Name of the array of rows on the level above; None where that is the root."""

    def make(self) -> Record:
        """Write the row of every window, the counts of every node, and the examples with their keys."""
        forget_encoders()  # of the stage before
        level = self.level.load(self.workspace, self.windows, self.tree)
        numbers = [window_ids(part.number, part.num_windows) for part in self.parts]
        keys = draw_keys(np.concatenate(numbers), self.tree.seed, level.number)
        names = [self.file(kind) for kind in ("counts.npy", "keys.npy", "examples.npy")]
        if level.number == 0:
            rows = np.concatenate([self.windows.rows_at_root(part) for part in self.parts])
            drawn = level.drawn(rows, keys)
            embeddings = self._embeddings(drawn)
        else:
            embeddings = self._embeddings(None)
            rows = self._placed(level, embeddings)
            drawn = level.drawn(rows, keys)
            names.append(self.file("rows.npy"))
            self.workspace.save_array(names[-1], rows)
        self.workspace.save_array(names[0], _counted(rows, drawn, len(level.nodes)))
        examples = np.empty(len(drawn), EXAMPLE)
        examples["row"], examples["key"] = rows[drawn], keys[drawn]
        self.workspace.save_array(names[1], examples)
        pieces = (embeddings[drawn[piece]] for piece in cuts(len(drawn), _ROWS_PER_WRITE))
        _write_rows(self.workspace, names[2], (len(drawn), embeddings.shape[1]), "<f2", pieces)
        return {"num_units": len(rows), "num_examples": len(drawn), "files": file_sizes(self, *names)}

    def _placed(self, level: Level, embeddings: NDArray[np.float16]) -> NDArray[np.int32]:
        above = None
        if self.above is not None:
            above = self.workspace.load_array(self.above)
        elif not self.windows.are_all:
            above = np.concatenate([self.windows.rows_at_root(part) for part in self.parts])
        limits = import_extra("threadpoolctl", extra="write", purpose="fitting the tree").threadpool_limits
        with limits(1):  # a window's node must not depend on how many cores multiply
            return level.place(embeddings, above)

    def _embeddings(self, drawn: NDArray[np.int64] | None) -> NDArray[np.float16]:
        """[num_windows, dim]; parts without any window of `drawn`, unless None, are left unread, whatever is there."""
        starts = np.cumsum([0, *(part.num_windows for part in self.parts)]).tolist()
        in_order = None if drawn is None else np.sort(drawn)
        embeddings: NDArray[np.float16] | None = None
        for part, start in zip(self.parts, starts[:-1], strict=True):
            stop = start + part.num_windows
            if in_order is None or np.searchsorted(in_order, start) < np.searchsorted(in_order, stop):
                stored = self.workspace.load_array(f"{part.embeddings_key}.embeddings.npy")
                if embeddings is None:
                    embeddings = np.empty((starts[-1], stored.shape[1]), np.float16)
                embeddings[start:stop] = stored
        return np.empty((0, 0), np.float16) if embeddings is None else embeddings


def _write_rows(
    workspace: Workspace, name: str, shape: tuple[int, int], dtype: str, pieces: Iterable[NDArray[Any]]
) -> None:
    """Write a .npy file piece by piece; not through a map, because a full disk would end the process."""
    with workspace.created(name) as path, path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype).data)


def _counted(rows: NDArray[np.int32], drawn: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    """[num_present, 3]: row of each node that has windows, their number, and that of examples."""
    windows = np.bincount(rows[rows >= 0], minlength=num_nodes)
    examples = np.bincount(rows[drawn], minlength=num_nodes)
    present = np.flatnonzero(windows)
    return np.stack([present, windows[present], examples[present]], axis=1).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TreeMergeTask(_LevelTask):
    """Join the examples of consecutive draws, as if one task had drawn them."""

    stage: ClassVar[str] = "tree-merges"
    title: ClassVar[str] = "joining examples for the tree"

    draws: tuple[str, ...]
    """Keys of the draws."""
    dim: int

    def make(self) -> Record:
        """Write counts, keys and examples, sorted by node."""
        counts = np.concatenate(list(_loaded(self.workspace, self.draws, "counts")))
        present, node = np.unique(counts[:, 0], return_inverse=True)
        sums = np.zeros((len(present), 2), np.int64)
        np.add.at(sums, node, counts[:, 1:])
        keys = list(_loaded(self.workspace, self.draws, "keys"))
        starts = np.cumsum([0, *map(len, keys)])
        joined = np.concatenate(keys)
        order = np.argsort(joined["row"], kind="stable")
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        examples = np.empty((len(order), self.dim), np.float16)
        largest = 2 * self.dim * max(map(len, keys))
        at_once = max(1, min(_READ_AT_ONCE, _READ_BYTES // max(largest, 1)))
        for start, rows in zip(starts, _loaded(self.workspace, self.draws, "examples", at_once), strict=False):
            examples[places[start : start + len(rows)]] = rows.reshape(-1, self.dim)
        arrays = {"counts": np.column_stack([present, sums]), "keys": joined[order], "examples": examples}
        for name, array in arrays.items():
            self.workspace.save_array(self.file(f"{name}.npy"), array)
        return {"num_units": len(order), "files": file_sizes(self, *(self.file(f"{name}.npy") for name in arrays))}


def _loaded(
    workspace: Workspace, keys: Sequence[str], name: str, at_once: int = _READ_AT_ONCE
) -> Iterator[NDArray[Any]]:
    """An array of each of some tasks, in their order."""
    with ThreadPoolExecutor(at_once) as threads:
        for first in range(0, len(keys), at_once):
            some = keys[first : first + at_once]
            yield from threads.map(lambda key: workspace.load_array(f"{key}.{name}.npy"), some)


def _rows(workspace: Workspace, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Rows of a draw's file, in one request.

    Args:
        workspace: where it is.
        name: of the file.
        dtype: of it.
        shape: first row, number of rows, and length of a row where it is not a single value.
    """
    start, count, *row = shape
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(row, dtype=np.int64))
    content = workspace.store.get_range(name, _NPY_HEADER_BYTES + start * row_bytes, count * row_bytes)
    return np.frombuffer(content, dtype).reshape(count, *row)


@dataclass(frozen=True, kw_only=True)
class TreeCountsTask(_LevelTask):
    """Add up what was counted, say which nodes are split, and bundle them into tasks."""

    stage: ClassVar[str] = "tree-counts"
    title: ClassVar[str] = "counting windows of the tree"

    draws: tuple[str, ...]
    """Keys of the draws, in the order of their parts."""
    bundle_bytes: int
    """Examples of a bundle."""
    dim: int

    def settings(self) -> Any:
        """How nodes are bundled, too: it decides which files there are, and no byte of a tree."""
        return [super().settings(), self.bundle_bytes]

    def make(self) -> Record:
        """Write windows per node, bundles of nodes, and the stretch of each bundle in each draw."""
        num_nodes = len(self.level.load(self.workspace, self.windows, self.tree).nodes)
        totals = np.zeros((num_nodes, 2), np.int64)
        for counts in _loaded(self.workspace, self.draws, "counts"):
            totals[counts[:, 0]] += counts[:, 1:]
        split = np.flatnonzero((totals[:, 0] >= self.tree.least) | (self.level.number == 0))
        bundles = _bundles(split, totals[:, 1], self.bundle_bytes // (2 * self.dim))
        stretches = np.empty((len(bundles), len(self.draws), 2), np.uint32)
        for at, counts in enumerate(_loaded(self.workspace, self.draws, "counts")):
            ends = np.concatenate([[0], np.cumsum(counts[:, 2])])
            stretches[:, at] = ends[np.searchsorted(counts[:, 0], bundles)]
        arrays = {"windows": totals[:, 0], "split": split, "bundles": bundles, "stretches": stretches}
        for name, array in arrays.items():
            self.workspace.save_array(self.file(f"{name}.npy"), array)
        names = [self.file("draws.json"), *(self.file(f"{name}.npy") for name in arrays)]
        self.workspace.write(names[0], json.dumps(self.draws).encode())
        counted = [np.searchsorted(split, bundle) for bundle in bundles]
        plan = LevelPlan.of(self.level.number + 1, totals[:, 0], np.minimum(totals[:, 1], self.tree.quota), self.tree)
        return {
            "plan": plan.to_json(),
            "num_bundles": len(bundles),
            "nodes_per_bundle": [int(stop - start) for start, stop in counted],
            "files": file_sizes(self, *names),
        }


def _bundles(split: NDArray[np.int64], examples: NDArray[np.int64], most_examples: int) -> NDArray[np.int64]:
    """[num_bundles, 2]: ranges of consecutive rows, each with one of `split` or with few examples altogether."""
    ends = np.cumsum(examples)
    ends_of_split = ends[split]
    bundles: list[list[int]] = []
    first = 0
    while first < len(split):
        row = int(split[first])
        before = int(ends[row] - examples[row])
        stop = int(np.searchsorted(ends_of_split, before + most_examples, side="right"))
        stop = min(max(stop, first + 1), first + _NODES_PER_BUNDLE)
        bundles.append([row, int(split[stop - 1]) + 1])
        first = stop
    return np.array(bundles, np.int64).reshape(-1, 2)


@dataclass(frozen=True, kw_only=True)
class TreeNodesTask(_LevelTask):
    """Split the nodes of a bundle, whose number is the task's."""

    stage: ClassVar[str] = "tree-nodes"
    title: ClassVar[str] = "splitting nodes of the tree"

    counts: str
    """Key of the counts."""
    dim: int

    def make(self) -> Record:
        """Write the nodes that were split, centroids of their children, and examples of each child."""
        level = self.level.load(self.workspace, self.windows, self.tree)
        counts = f"{self.counts}.{{}}.npy"
        first, end = self.workspace.array(counts.format("bundles")).rows(self.number, self.number + 1)[0].tolist()
        split = np.asarray(self.workspace.load_array(counts.format("split")))
        split = split[np.searchsorted(split, first) : np.searchsorted(split, end)]
        windows = self.workspace.load_array(counts.format("windows"))[split]
        examples, embeddings = self._examples()
        order = np.lexsort((examples["key"], examples["row"]))
        bounds = np.searchsorted(examples["row"][order], [split, split + 1])
        per_node = [order[start:stop] for start, stop in bounds.T.tolist()]
        with one_thread():
            started = time.perf_counter()
            splits = split_nodes(embeddings, per_node, level, split, windows, self.tree)
            seconds = time.perf_counter() - started
        with self.workspace.created(self.file("npz")) as path, path.open("wb") as file:
            np.savez(file, **vars(splits))
        names = [self.file("npz")]
        if level.number == 0:
            names.append(self.file("examples.npy"))
            self.workspace.save_array(names[-1], embeddings[per_node[0][: self.tree.quota]])
        return {
            "num_units": len(split),
            "unsplit": len(split) - len(splits.rows),
            "seconds": seconds,
            "device": search_device(),
            "files": file_sizes(self, *names),
        }

    def _examples(self) -> tuple[NDArray[Any], NDArray[np.float16]]:
        """The examples of all nodes of the bundle, as they stand in the draws: [num_examples], [num_examples, dim]."""
        draws = json.loads(self.workspace.read(f"{self.counts}.draws.json"))
        stretches = self.workspace.array(f"{self.counts}.stretches.npy").rows(self.number, self.number + 1)[0]
        counts = np.diff(stretches.astype(np.int64), axis=1)[:, 0]
        ends = np.cumsum(counts)
        examples, embeddings = np.empty(int(counts.sum()), EXAMPLE), np.empty((int(counts.sum()), self.dim), np.float16)

        def read(at: int) -> None:
            start, here = int(stretches[at, 0]), slice(int(ends[at] - counts[at]), int(ends[at]))
            draw, count = draws[at], int(counts[at])
            examples[here] = _rows(self.workspace, f"{draw}.keys.npy", EXAMPLE, (start, count))
            embeddings[here] = _rows(self.workspace, f"{draw}.examples.npy", "<f2", (start, count, self.dim))

        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            for _ in threads.map(read, np.flatnonzero(counts).tolist()):
                pass
        return examples, embeddings


@dataclass(frozen=True, kw_only=True)
class TreeLevelTask(_LevelTask):
    """Join the children of the nodes that were split to the next level; `level` is the one above it."""

    stage: ClassVar[str] = "tree-levels"
    title: ClassVar[str] = "making a level of the tree"

    bundles: tuple[str, ...]
    """Files of the bundles."""
    dim: int

    def make(self) -> Record:
        """Write the files of the level; none where no node was split."""
        above = self.level.load(self.workspace, self.windows, self.tree)
        kinds = ("rows", "windows", "examples_per_child")
        parts = [self._arrays(bundle, *kinds) for bundle in self.bundles]
        joined = {kind: np.concatenate([part[kind] for part in parts]) for kind in kinds}
        splits = Splits(**joined, centroids=np.zeros((0, self.dim), np.float32))
        num_nodes = len(splits.rows) * self.tree.arity
        if not num_nodes:
            return {"num_nodes": 0}
        below = Level.below(above, splits, self.tree)
        names = [self.file(f"{kind}.npy") for kind in ("nodes", "families", "thresholds", "centroids")]
        for name, array in zip(names, (below.nodes, below.families, below.thresholds), strict=False):
            self.workspace.save_array(name, array)
        centroids = (self._arrays(bundle, "centroids")["centroids"] for bundle in self.bundles)
        _write_rows(self.workspace, names[-1], (num_nodes, self.dim), "<f4", centroids)
        record: Record = {"num_nodes": num_nodes, "files": file_sizes(self, *names)}
        if (
            below.number < self.tree.depth and not below.thresholds.any()
        ):  # the examples were all windows, and no child has enough of them
            windows = splits.examples_per_child.reshape(-1)
            record["end"] = LevelPlan.of(below.number + 1, windows, windows, self.tree).to_json()
        return record

    def _arrays(self, bundle: str, *kinds: str) -> dict[str, NDArray[Any]]:
        with self.workspace.opened(bundle) as path, path.open("rb") as file, np.load(file) as arrays:
            return {kind: arrays[kind] for kind in kinds}


@dataclass(frozen=True, kw_only=True)
class TreeTask(Task):
    """Join the levels to a tree."""

    stage: ClassVar[str] = "tree"
    title: ClassVar[str] = "making the tree"
    version: ClassVar[int] = 2

    tree: TreeSettings
    levels: tuple[str, ...]
    """Keys of the levels, from the first on."""
    dim: int

    def settings(self) -> Any:
        """All settings of the tree."""
        return self.tree

    def make(self) -> Record:
        """Write the tree's files below the task's key."""
        names = [self.workspace.kept(f"{key}.nodes.npy", f"{key}.centroids.npy") for key in self.levels]
        levels = [(np.load(nodes), np.load(centroids, mmap_mode="r")) for nodes, centroids in names]
        tree = tree_of_levels(levels, self.tree, self.dim)
        return write_files(self, tree.to_files(), num_leaves=tree.num_leaves)
