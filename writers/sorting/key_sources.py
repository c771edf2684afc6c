"""What windows are sorted from: sorted runs, and the shards of a dataset that grows. Each is a source, sorted by key.

Rows are read by range, with one file open at a time and no memory map: a write has as many sources as 64 MB fit into
its tokens, and a process may open 1,024 files and map 65,530.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError, StorageError
from crisp_stream.format.checksums import damaged, window_seeds
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.keys import HASH_BITS, window_keys
from crisp_stream.format.manifest import places_path
from crisp_stream.format.mds import ShardRow, sample_dtype
from crisp_stream.format.provenance import read_places
from crisp_stream.storage.store import Store
from crisp_stream.writers.engine.workspace import Workspace

NPY_HEADER_BYTES = 128
"""Bytes before the first row of the .npy files of runs and ranges (numpy pads headers; all are read as if so)."""
SOURCE = np.dtype([("shard", "<i8"), ("run", "S40")])
"""A source: key of a run, or number of a shard of the dataset that grows; -1 for a run."""
Read = Callable[[Any, int, int], NDArray[Any]]
"""Reads rows start … stop - 1 of a source."""


def read_rows(store: Store, name: str, dtype: Any, row_shape: tuple[int, ...], start: int, stop: int) -> NDArray[Any]:
    """Rows start … stop - 1 of a .npy file, in one request. Raises StorageError."""
    row_bytes = int(np.prod(row_shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    num_bytes = (stop - start) * row_bytes
    content = store.get_range(name, NPY_HEADER_BYTES + start * row_bytes, num_bytes)
    if len(content) != num_bytes:
        raise StorageError(f"{store.url}/{name}: ends before row {stop}. Delete it and run the command again.")
    return np.frombuffer(content, dtype).reshape(stop - start, *row_shape)


@dataclass(frozen=True, kw_only=True)
class GrownDataset:
    """A dataset that grows, as tasks name it: its windows are sorted before new ones of the same key."""

    root: str
    generation: int
    fingerprint: str
    sort_seed: int

    @property
    def dataset(self) -> Dataset:
        """The dataset."""
        return _opened(self.root, self.generation, self.fingerprint)

    def keys(self, shard: int, start: int, stop: int) -> NDArray[np.uint64]:
        """Keys of windows start … stop - 1 of a shard. Raises CorruptDataError: they are not sorted."""
        dataset = self.dataset
        first = int(dataset.first_window_per_shard[shard])
        places = self.places(shard, start, stop)
        leaves = dataset.leaf_of_windows(np.arange(first + start, first + stop))
        keys = window_keys(leaves, places, self.sort_seed)
        if (keys[1:] < keys[:-1]).any():
            path = dataset.shards[shard].path
            raise CorruptDataError(
                f"{self.root}: the windows of {path} must stand in the order that {places_path(path)} gives, but do "
                "not. Run crisp-stream verify --deep on it; nothing was added."
            )
        return keys

    def places(self, shard: int, start: int, stop: int) -> NDArray[np.uint32]:
        """[num_windows, 2] of (part, place)."""
        return read_places(self.dataset, shard, start, stop - start).view(np.uint32).reshape(-1, 2)

    def tokens(self, shard: int, start: int, stop: int) -> NDArray[Any]:
        """Tokens of windows of a shard. Raises CorruptDataError: one does not match its checksum, or its cluster."""
        dataset = self.dataset
        row: ShardRow = dataset.shards[shard]
        dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
        content = dataset.store.get_range(
            row.path, row.first_sample_offset + start * dtype.itemsize, (stop - start) * dtype.itemsize
        )
        if len(content) != (stop - start) * dtype.itemsize:
            raise CorruptDataError(
                f"{self.root}: {row.path} is cut short. Run crisp-stream verify on it; nothing was added."
            )
        samples = np.frombuffer(content, dtype)
        first = int(dataset.first_window_per_shard[shard]) + start
        leaves = dataset.leaf_of_windows(np.arange(first, first + len(samples)))
        wrong = damaged(samples, window_seeds(row.checksum_seed, start, len(samples))) | (samples["cluster"] != leaves)
        if wrong.any():
            raise CorruptDataError(
                f"{self.root}: a window of cluster {int(leaves[wrong][0])} does not match its checksum. "
                "Run crisp-stream verify on it; nothing was added."
            )
        return samples["tokens"]


@lru_cache(maxsize=1)
def _opened(root: str, generation: int, fingerprint: str) -> Dataset:
    return open_dataset(root, generation=generation)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the rows of sources are read from."""

    workspace: Workspace
    grown: GrownDataset | None = None

    @property
    def are_local(self) -> bool:
        """Whether all of them are files of this machine, or of a file system that it shares."""
        return self.workspace.folder is not None and (self.grown is None or self.grown.dataset.store.is_local)

    def keys(self, source: Any, start: int, stop: int) -> NDArray[np.uint64]:
        """Sort keys."""
        if self.grown is not None and source["shard"] >= 0:
            return self.grown.keys(int(source["shard"]), start, stop)
        return self.rows(source, "keys", np.uint64, (), start, stop)

    def places(self, source: Any, start: int, stop: int) -> NDArray[np.uint32]:
        """[num_windows, 2] of (part, place)."""
        if self.grown is not None and source["shard"] >= 0:
            return self.grown.places(int(source["shard"]), start, stop)
        return self.rows(source, "places", np.uint32, (2,), start, stop)

    def tokens(self, window_tokens: int, token_dtype: str) -> Read:
        """Tokens, [num_windows, window_tokens]."""

        def read(source: Any, start: int, stop: int) -> NDArray[Any]:
            if self.grown is not None and source["shard"] >= 0:
                return self.grown.tokens(int(source["shard"]), start, stop)
            return self.rows(source, "tokens", token_dtype, (window_tokens,), start, stop)

        return read

    def rows(
        self, source: Any, kind: str, dtype: Any, row_shape: tuple[int, ...], start: int, stop: int
    ) -> NDArray[Any]:
        """Rows of a file of a run."""
        return read_rows(self.workspace.store, f"{run_of(source)}.{kind}.npy", dtype, row_shape, start, stop)


def run_of(source: Any) -> str:
    """Key of the run that is a source."""
    return bytes(source["run"]).decode()


def whole_keys(workspace: Workspace, run: str) -> NDArray[np.uint64]:
    """All keys of a run, in one request."""
    return np.frombuffer(workspace.read(f"{run}.keys.npy"), np.uint64, offset=NPY_HEADER_BYTES)


def leaves_of(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Leaf of each key."""
    return (keys >> np.uint64(HASH_BITS)).astype(np.uint32)
