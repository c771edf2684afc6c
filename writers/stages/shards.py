"""Stage `shards`: every level-1 cluster takes its windows from all runs and writes them as MDS shards.

A cluster takes its key range a piece at a time: keys are cut so that a piece fits the memory budget, also inside one
huge leaf, because the hash is part of the key. Every piece is gathered in run order and sorted stably, so the bytes
depend neither on the budget nor on the number of processes. Runs of a local workspace are read in place; from an object
store a cluster first brings its slice of every run to local disk, one request each. Shards go to their root while the
next ones are made.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError
from crisp_stream.format.checksums import damaged, window_seeds
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.keys import HASH_BITS, window_keys
from crisp_stream.format.manifest import places_path
from crisp_stream.format.mds import (
    ShardRow,
    TokenDtype,
    encode_samples,
    index_bytes,
    max_windows_per_shard,
    sample_dtype,
    write_shard,
)
from crisp_stream.format.provenance import read_places
from crisp_stream.format.tables import marked
from crisp_stream.storage.store import is_remote, local_path, open_store
from crisp_stream.writers.engine.tasks import Record, Task
from crisp_stream.writers.engine.workspace import RowsOnDisk, StoredArray, scratch_folder
from crisp_stream.writers.publishing.claim import Hold
from crisp_stream.writers.stages.runs import SortedRun, key_ranges

UPLOADS_AHEAD = 3
"""Shards on their way to an object store while the next one is made."""
_SLICE_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The windows of one level-1 node in one run: on disk or in memory, [num_windows] each, sorted by key."""

    keys: NDArray[np.uint64]
    tokens: NDArray[Any] | RowsOnDisk
    places: NDArray[np.uint32]
    shard: NDArray[Any] | None = None
    """[num_windows] of `sample_dtype`, where they are a shard of a dataset: compared with their checksums before they
    are written again."""
    checksum_seed: int = 0
    """Of that shard."""


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


@dataclass(frozen=True, kw_only=True)
class ShardsTask(Task):
    """Write the shards of one level-1 cluster; `number` is the node."""

    stage: ClassVar[str] = "shards"
    title: ClassVar[str] = "writing shards"

    first_leaf: int
    end_leaf: int
    runs: tuple[SortedRun, ...]
    shards: ShardSettings
    memory_bytes: int
    grown: str | None = None
    """Root of a dataset whose windows are taken over."""
    grown_generation: int = 0
    """Generation of that dataset."""
    sort_seed: int = 0
    hold: Hold | None = None
    """Claim of a root that shards are put into as they are made."""

    def settings(self) -> Any:
        """Values that determine the shards beside the runs; memory does not."""
        return [self.first_leaf, self.end_leaf, self.shards, self.grown, self.sort_seed]

    def make(self) -> Record:
        """Write shards, places and index of the node; nothing, where a dataset grows by no window in it."""
        grown = None if self.grown is None else open_dataset(self.grown, generation=self.grown_generation)
        if grown is not None and not any(stop > start for _, start, stop in self._stretches()):
            return self._unchanged(grown)
        settings = self.shards
        windows_per_shard = max_windows_per_shard(settings.shard_bytes, settings.window_tokens, settings.token_dtype)
        token_bytes = settings.window_tokens * np.dtype(settings.token_dtype).itemsize
        windows_per_range = max(1, self.memory_bytes // token_bytes)
        windows_of_leaf: Counter[int] = Counter()
        with ExitStack() as stack:
            slices = stack.enter_context(self._slices(grown))
            first_shard = None if grown is None else self._first_shard(grown)
            sink = stack.enter_context(ShardSink(settings, self.number, first_shard=first_shard, hold=self.hold))
            pending = _Samples.none(settings)
            first_key, end_key = self.first_leaf << HASH_BITS, self.end_leaf << HASH_BITS
            for bounds in key_ranges([one.keys for one in slices], first_key, end_key, windows_per_range):
                samples = _gather(slices, bounds, self.grown)
                windows_of_leaf.update(samples.samples["cluster"].tolist())
                pending = pending.then(samples)
                ends = shard_ends(pending.samples["cluster"] // settings.leaves_per_shard_node, windows_per_shard)
                for start, stop in pairwise([0, *ends]):
                    sink.add(pending.samples[start:stop], pending.places[start:stop])
                pending = pending.after(ends[-1] if ends else 0)
            if len(pending.samples):
                sink.add(pending.samples, pending.places)
            rows = sink.finish(settings.window_tokens, settings.token_dtype)
        return {
            "num_units": sum(windows_of_leaf.values()),
            "rows": [asdict(row) for row in rows],
            "leaves": list(windows_of_leaf),
            "windows_per_leaf": list(windows_of_leaf.values()),
        }

    @contextmanager
    def _slices(self, grown: Dataset | None) -> Iterator[list[Slice]]:
        """The node's windows in every run; those of an object store are brought to local disk first."""
        present = [(run, start, stop) for run, start, stop in self._stretches() if stop > start]
        with ExitStack() as stack:
            remote = self.workspace.folder is None
            scratch = stack.enter_context(scratch_folder()) if remote else None
            old = [] if grown is None else self._grown_slices(grown, stack)
            with ThreadPoolExecutor(_SLICE_THREADS) as threads:
                new = threads.map(lambda one: self._slice(one[0], one[1], one[2], scratch), present)
                yield [*old, *new]

    def _stretches(self) -> list[tuple[SortedRun, int, int]]:
        return [(run, *run.slice_of(self.number)) for run in self.runs]

    def _slice(self, run: SortedRun, start: int, stop: int, scratch: Path | None) -> Slice:
        arrays = {kind: self.workspace.array(f"{run.key}.{kind}.npy") for kind in ("keys", "tokens", "places")}
        return Slice(
            keys=arrays["keys"].rows(start, stop),
            tokens=rows_on_disk(arrays["tokens"], start, stop, scratch, run.key),
            places=arrays["places"].rows(start, stop),
        )

    def _grown_slices(self, dataset: Dataset, stack: ExitStack) -> list[Slice]:
        """The node's shards of the dataset that grows."""
        folder = None if dataset.store.is_local else stack.enter_context(scratch_folder())
        dtype = sample_dtype(self.shards.window_tokens, self.shards.token_dtype)
        slices = []
        for shard, row in enumerate(dataset.shards):
            if self._node_of(row) != self.number:
                continue
            if folder is None:
                path = local_path(dataset.root) / row.path
            else:
                path = folder / row.path.rpartition("/")[2]
                path.write_bytes(dataset.store.get(row.path))
            samples = np.memmap(path, dtype, "r", row.first_sample_offset, row.num_windows)
            places = read_places(dataset, shard, 0, row.num_windows).view(np.uint32).reshape(-1, 2)
            keys = window_keys(np.asarray(samples["cluster"]), places, self.sort_seed)
            if (keys[1:] < keys[:-1]).any():
                raise CorruptDataError(
                    f"{self.grown}: the windows of {row.path} must stand in the order that {places_path(row.path)} "
                    "gives, but do not. Run crisp-stream verify --deep on it; nothing was added."
                )
            slices.append(
                Slice(
                    keys=keys, tokens=samples["tokens"], places=places, shard=samples, checksum_seed=row.checksum_seed
                )
            )
        return slices

    def _first_shard(self, grown: Dataset) -> int:
        """Shards of a generation never take the name of one of an older generation."""
        paths = [row.path for row in grown.shards if self._node_of(row) == self.number]
        return max((int(path.rpartition("/")[2].split(".")[1]) for path in paths), default=-1) + 1

    def _unchanged(self, grown: Dataset) -> Record:
        in_node = (grown.leaves >= self.first_leaf) & (grown.leaves < self.end_leaf)
        return {
            "num_units": int(grown.windows_per_leaf[in_node].sum()),
            "rows": [asdict(row) for row in grown.shards if self._node_of(row) == self.number],
            "leaves": grown.leaves[in_node].tolist(),
            "windows_per_leaf": grown.windows_per_leaf[in_node].tolist(),
        }

    @staticmethod
    def _node_of(row: ShardRow) -> int:
        return int(row.path.split("/")[1])


def rows_on_disk(array: StoredArray, start: int, stop: int, scratch: Path | None, key: str) -> RowsOnDisk:
    """Rows of a workspace's file; those of an object store are brought to a scratch folder first."""
    if scratch is None:
        return array.on_disk(start, stop)
    name = f"{key.replace('/', '-')}.npy"
    np.save(scratch / name, array.rows(start, stop), allow_pickle=False)
    return StoredArray(open_store(str(scratch)), name).on_disk(0, stop - start)


def directory_name(node: int) -> str:
    """Folder of a level-1 node below the root."""
    return f"shards/{node:02d}"


@dataclass(frozen=True, kw_only=True)
class _Samples:
    samples: NDArray[Any]
    places: NDArray[np.uint32]

    @classmethod
    def none(cls, settings: ShardSettings) -> _Samples:
        dtype = sample_dtype(settings.window_tokens, settings.token_dtype)
        return cls(samples=np.zeros(0, dtype), places=np.zeros((0, 2), np.uint32))

    def then(self, more: _Samples) -> _Samples:
        if not len(self.samples):
            return more
        return _Samples(
            samples=np.concatenate([self.samples, more.samples]), places=np.concatenate([self.places, more.places])
        )

    def after(self, start: int) -> _Samples:
        return _Samples(samples=self.samples[start:].copy(), places=self.places[start:].copy())


class ShardSink:
    """Writes the shards of a node below a root, in the background where that is an object store."""

    def __init__(
        self, settings: ShardSettings, node: int, *, first_shard: int | None = None, hold: Hold | None = None
    ) -> None:
        """Where a dataset grows, `first_shard` is the number of the first one: other shards of the folder stay, and its
        index is left to whoever publishes. `hold` is looked at before every file.
        """
        self._settings, self._hold = settings, hold
        self._root, self._below, self._next = settings.root, directory_name(node), first_shard or 0
        self._is_alone = first_shard is None
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
            if self._is_alone:
                shutil.rmtree(self._folder / self._below, ignore_errors=True)
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

    def finish(self, window_tokens: int, token_dtype: TokenDtype) -> list[ShardRow]:
        """Write the node's index once its shards are there, where they are all of them; the rows of the shard table."""
        for upload in self._uploads:
            upload.result()
        if self._rows and self._is_alone:
            index = index_bytes(self._rows, below=self._below, window_tokens=window_tokens, token_dtype=token_dtype)
            self._store.put(f"{self._below}/index.json", index)
        return self._rows


@dataclass(frozen=True, kw_only=True)
class ShardsSummary:
    """The shards of all nodes."""

    rows: list[ShardRow]
    leaves: NDArray[np.uint32]
    """[num_leaves], sorted, non-empty."""
    windows_per_leaf: NDArray[np.int64]

    @classmethod
    def of(cls, records: Sequence[Record]) -> ShardsSummary:
        """Join the records of all nodes, in order."""
        return cls(
            rows=[ShardRow(**row) for record in records for row in record["rows"]],
            leaves=np.array([leaf for record in records for leaf in record["leaves"]], np.uint32),
            windows_per_leaf=np.array([n for record in records for n in record["windows_per_leaf"]], np.int64),
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


def _gather(slices: Sequence[Slice], bounds: list[tuple[int, int]], grown: str | None) -> _Samples:
    """Samples of one range, sorted by key; ties stay in run order. Raises CorruptDataError for damaged old windows."""
    present = [(one, start, stop) for one, (start, stop) in zip(slices, bounds, strict=True) if stop > start]
    for one, start, stop in present:
        _check_taken(one, start, stop, grown)
    keys = np.concatenate([one.keys[start:stop] for one, start, stop in present])
    order = np.argsort(keys, kind="stable")
    tokens = np.concatenate([one.tokens[start:stop] for one, start, stop in present])
    places = np.concatenate([one.places[start:stop] for one, start, stop in present])
    samples = encode_samples(tokens[order], (keys[order] >> np.uint64(HASH_BITS)).astype(np.uint32))
    return _Samples(samples=samples, places=places[order])


def _check_taken(one: Slice, start: int, stop: int, grown: str | None) -> None:
    if one.shard is None:
        return
    samples = one.shard[start:stop]
    wrong = damaged(samples, window_seeds(one.checksum_seed, start, stop - start))
    if wrong.any():
        raise CorruptDataError(
            f"{grown}: a window of cluster {int(samples['cluster'][wrong][0])} does not match its checksum. "
            "Run crisp-stream verify on it; nothing was added."
        )
