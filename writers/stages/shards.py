"""Stage `shards`: the windows of every range of keys (sorting/ranges.py) are written as MDS shards.

A task writes the shards that begin in its range. Where the last one reaches into the next range, it reads the keys of
that one, too, and takes the windows that belong to it; so the bytes depend neither on the ranges nor on the number of
processes. Tokens are read straight into the samples of a shard, one stretch of each source after the other, so a task
holds a shard, 28 bytes per window of its range, and no file open. Runs of a local workspace are read in place; from an
object store a task first brings its stretch of every run to local disk. Shards go to their root while the next ones
are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import places_path
from crisp_stream.format.mds import ShardRow, TokenDtype, index_bytes, max_windows_per_shard, sample_dtype, write_shard
from crisp_stream.format.tables import marked
from crisp_stream.storage.store import is_remote, local_path, open_store
from crisp_stream.writers.engine.tasks import Record, Task
from crisp_stream.writers.engine.workspace import scratch_folder
from crisp_stream.writers.publishing.claim import Hold
from crisp_stream.writers.sorting.key_sources import GrownDataset, Sources
from crisp_stream.writers.sorting.range_windows import Column, InPlace, RangeWindows
from crisp_stream.writers.sorting.ranges import KeyRange

UPLOADS_AHEAD = 3
"""Shards on their way to an object store while the next one is made."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Settings by which shards are cut, and their root."""

    root: str
    """Dataset root, or a folder in which it is staged."""
    window_tokens: int
    token_dtype: TokenDtype
    shard_bytes: int
    leaves_per_shard_node: int
    """Leaf ids below a node whose border no shard crosses."""
    identity: int
    """64 bits that follow from all windows of the write (`identity_of`)."""
    mark: str = ""
    """In the names of the shards of a dataset that grows."""

    @property
    def window_bytes(self) -> int:
        """Bytes of the tokens of a window."""
        return self.window_tokens * np.dtype(self.token_dtype).itemsize

    @property
    def windows_per_shard(self) -> int:
        """Windows of a full shard."""
        return max_windows_per_shard(self.shard_bytes, self.window_tokens, self.token_dtype)


@dataclass(frozen=True, kw_only=True)
class ShardsTask(Task):
    """Write the shards that begin in one range of keys; `number` is the range's."""

    stage: ClassVar[str] = "shards"
    title: ClassVar[str] = "writing shards"
    version: ClassVar[int] = 2

    part: KeyRange
    first_shard: int
    """Number of its first shard in the folder of its level-1 node."""
    shards: ShardSettings
    memory_bytes: int
    """Tokens read at once, but for larger shards."""
    grown: GrownDataset | None = None
    """The dataset whose windows are taken over."""
    hold: Hold | None = None
    """Claim of a root that shards are put into as they are made."""

    def settings(self) -> Any:
        """Values that determine the shards beside the runs; memory does not."""
        return [self.part, self.first_shard, self.shards, self.grown]

    def make(self) -> Record:
        """Write shards and places."""
        settings = self.shards
        sources = Sources(workspace=self.workspace, grown=self.grown)
        dtype = sample_dtype(settings.window_tokens, settings.token_dtype)
        windows_of_leaf: Counter[int] = Counter()
        with ExitStack() as stack:
            windows = RangeWindows(sources, self.part)
            tokens, places = self._columns(windows, sources, stack)
            sink = stack.enter_context(ShardSink(settings, self.part.node, self.first_shard, hold=self.hold))
            for ends in self._groups(windows.leaves):
                samples = np.empty(ends[-1] - ends[0], dtype)
                held_places = np.empty((len(samples), 2), np.uint32)
                windows.fill(ends[0], ends[-1], [(samples["tokens"], tokens), (held_places, places)])
                samples["cluster"] = windows.leaves[ends[0] : ends[-1]]
                windows_of_leaf.update(samples["cluster"].tolist())
                for start, stop in pairwise(end - ends[0] for end in ends):
                    sink.add(samples[start:stop], held_places[start:stop])
            rows = sink.finish()
        return {
            "num_units": self.part.num_windows,
            "rows": [asdict(row) for row in rows],
            "leaves": list(windows_of_leaf),
            "windows_per_leaf": list(windows_of_leaf.values()),
        }

    def _groups(self, leaves: NDArray[np.uint32]) -> Iterator[list[int]]:
        """Borders of consecutive shards that are read together: more than one where they are small."""
        settings = self.shards
        ends = shard_ends(leaves // settings.leaves_per_shard_node, settings.windows_per_shard)
        borders = [0, *ends, *([len(leaves)] if not ends or ends[-1] < len(leaves) else [])]
        group = borders[:1]
        for border in borders[1:]:
            if len(group) > 1 and (border - group[0]) * settings.window_bytes > self.memory_bytes:
                yield group
                group = group[-1:]
            group.append(border)
        yield group

    def _columns(self, windows: RangeWindows, sources: Sources, stack: ExitStack) -> tuple[Column, Column]:
        """Tokens and places of the windows."""
        dtype, shape = self.shards.token_dtype, (self.shards.window_tokens,)
        read_tokens = sources.tokens(self.shards.window_tokens, dtype)
        places = windows.held(sources.places, np.uint32, (2,), alone=sources.are_local)
        if sources.are_local:
            return InPlace(read_tokens), places
        return stack.enter_context(windows.brought(read_tokens, dtype, shape)), places


@dataclass(frozen=True, kw_only=True)
class UnchangedShardsTask(Task):
    """Take over the shards of a level-1 node in which a dataset grows by no window; writes nothing."""

    stage: ClassVar[str] = ShardsTask.stage
    title: ClassVar[str] = ShardsTask.title
    version: ClassVar[int] = ShardsTask.version

    node: int
    leaves: tuple[int, int]
    """First and end of the node's."""
    grown: GrownDataset

    def settings(self) -> Any:
        """The node, and the dataset."""
        return [self.node, self.leaves, self.grown]

    def make(self) -> Record:
        """The shards as they are."""
        dataset = self.grown.dataset
        first, end = np.searchsorted(dataset.leaves, self.leaves)
        windows = dataset.windows_per_leaf[first:end]
        return {
            "num_units": int(windows.sum()),
            "rows": [asdict(row) for row in dataset.shards if node_of(row) == self.node],
            "leaves": dataset.leaves[first:end].tolist(),
            "windows_per_leaf": windows.tolist(),
        }


def node_of(row: ShardRow) -> int:
    """Level-1 node of a shard."""
    return int(row.path.split("/")[1])


def next_shards(grown: Dataset) -> dict[int, int]:
    """Number that the next shard of each level-1 node gets: shards of a generation never take the name of older ones.

    Nodes without shards are left out."""
    found: dict[int, int] = {}
    for row in grown.shards:
        number = int(row.path.rpartition("/")[2].split(".")[1])
        found[node_of(row)] = max(found.get(node_of(row), 0), number + 1)
    return found


def directory_name(node: int) -> str:
    """Folder of a level-1 node below the root."""
    return f"shards/{node:02d}"


def folder_indexes(rows: Sequence[ShardRow], *, window_tokens: int, token_dtype: TokenDtype) -> dict[str, bytes]:
    """Content of the MDS index of each level-1 folder, by path."""
    by_folder: dict[str, list[ShardRow]] = {}
    for row in rows:
        by_folder.setdefault(row.path.rpartition("/")[0], []).append(row)
    return {
        f"{folder}/index.json": index_bytes(own, below=folder, window_tokens=window_tokens, token_dtype=token_dtype)
        for folder, own in by_folder.items()
    }


class ShardSink:
    """Writes the shards of a node below a root, in the background where that is an object store."""

    def __init__(self, settings: ShardSettings, node: int, first_shard: int = 0, *, hold: Hold | None = None) -> None:
        """`first_shard` is the number of the first one; `hold` is looked at before every file."""
        self._settings, self._hold = settings, hold
        self._root, self._below, self._next = settings.root, directory_name(node), first_shard
        self._rows: list[ShardRow] = []
        self._uploads: list[Future[None]] = []
        self._remote = is_remote(self._root)

    def __enter__(self) -> ShardSink:
        self._stack = ExitStack()
        if self._remote:
            self._folder = self._stack.enter_context(scratch_folder())
            self._threads = self._stack.enter_context(ThreadPoolExecutor(UPLOADS_AHEAD))
        else:
            self._folder = local_path(self._root)
        self._store = open_store(self._root)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, samples: NDArray[Any], places: NDArray[np.uint32]) -> None:
        """Write the next shard; waits while as many as `UPLOADS_AHEAD` are on their way."""
        path = self._folder / self._below / marked(f"shard.{self._next:05d}.mds", self._settings.mark)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = write_shard(path, samples, root=self._folder, identity=self._settings.identity)
        self._next += 1
        self._rows.append(row)
        places_file = self._folder / places_path(row.path)
        places_file.parent.mkdir(parents=True, exist_ok=True)
        np.save(places_file, places, allow_pickle=False)
        if not self._remote:
            return
        while len(self._uploads) >= UPLOADS_AHEAD:
            self._uploads.pop(0).result()
        self._uploads.append(self._threads.submit(self._upload, path, places_file))

    def _upload(self, *files: Path) -> None:
        for file in files:
            if self._hold is not None:
                self._hold.check()
            self._store.put_file(file.relative_to(self._folder).as_posix(), file)
            file.unlink()

    def finish(self) -> list[ShardRow]:
        """Wait until all shards are there; their rows of the shard table."""
        for upload in self._uploads:
            upload.result()
        return self._rows


@dataclass(frozen=True, kw_only=True)
class ShardsSummary:
    """The shards of all ranges."""

    rows: list[ShardRow]
    leaves: NDArray[np.uint32]
    """[num_leaves], sorted, non-empty."""
    windows_per_leaf: NDArray[np.int64]

    @classmethod
    def of(cls, records: Sequence[Record]) -> ShardsSummary:
        """Join the records of all ranges, in order; two that follow one another may have the same leaf."""
        leaves = np.array([leaf for record in records for leaf in record["leaves"]], np.uint32)
        windows = np.array([count for record in records for count in record["windows_per_leaf"]], np.int64)
        starts = np.flatnonzero(np.diff(leaves.astype(np.int64), prepend=-1))
        return cls(
            rows=[ShardRow(**row) for record in records for row in record["rows"]],
            leaves=leaves[starts],
            windows_per_leaf=np.add.reduceat(windows, starts) if len(starts) else windows,
        )


def shard_ends(nodes: NDArray[Any], windows_per_shard: int) -> list[int]:
    """Cut windows of sorted `nodes`, of which more may follow, into shards: after each node, and when full.

    Returns:
        Ends in order; the windows after the last do not fill a shard yet.
    """
    borders = [0, *(np.flatnonzero(np.diff(nodes)) + 1).tolist()]
    ends: list[int] = []
    for start, stop in pairwise(borders):
        ends += [*range(start + windows_per_shard, stop, windows_per_shard), stop]
    return ends + list(range(borders[-1] + windows_per_shard, len(nodes) + 1, windows_per_shard))
