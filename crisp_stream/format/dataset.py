"""Format v2 in code; FORMAT.md is the specification and its MUST numbers stand here in the comments.

Everything read from a root is input: it is validated before it is used (numbers that do not add up, paths that leave
the root).
"""

from __future__ import annotations

import contextlib
import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CrispError, FormatError, InputError, MissingObjectError
from crisp_stream.format.manifest import MANIFEST, TOKENIZER_FILES, Manifest, kept_manifest
from crisp_stream.format.shards import SHARDS, read_shards
from crisp_stream.format.tables import CLUSTERS, generation_path, read_clusters
from crisp_stream.storage.shared_arrays import SHARED_ROWS, SharedArrays, shared_arrays
from crisp_stream.storage.store import Store, cache_folder, is_remote, local_path, open_store

if TYPE_CHECKING:
    from crisp_stream.tree.tree import ClusterTree


class Dataset:
    """An opened dataset root: manifest, cluster table, shard table; windows are read on demand."""

    def __init__(self, root: str, *, generation: int | None = None, timeout: float = 120.0) -> None:
        """Arguments and errors as of `open_dataset`."""
        self.store: Store = open_store(root, timeout=timeout)
        self._timeout = timeout
        self.root = self.store.url
        self.manifest = self._manifest_of(generation)
        self._clusters = self._cluster_table()
        self.shards = read_shards(self._required(self.own_path(SHARDS)), self.manifest)
        windows_per_shard = self.shards.num_windows
        self.first_window_per_shard: NDArray[np.int64] = np.cumsum(windows_per_shard) - windows_per_shard
        self._seed_of_window_0 = self.shards.checksum_seed - self.first_window_per_shard.astype(np.uint64)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tree out: a DataLoader worker would get all its centroids, and reads no windows by them."""
        return {name: value for name, value in self.__dict__.items() if name != "tree"}

    def _manifest_of(self, generation: int | None) -> Manifest:
        newest = Manifest.from_json(self._required(MANIFEST))
        if generation is None or generation == newest.generation:
            return newest
        try:
            kept = Manifest.from_json(self.store.get(kept_manifest(generation)))
        except MissingObjectError as error:
            raise InputError(
                f"{self.root}: generation must be one that is there, got {generation}; the newest is "
                f"{newest.generation}, and {kept_manifest(generation)} is missing (append --prune deletes older ones)."
            ) from error
        if kept.generation != generation:
            raise FormatError(f"{self.root}: {kept_manifest(generation)} is of generation {kept.generation}.")
        return kept

    def generation_with(self, fingerprint: str) -> int | None:
        """Find another generation of this root by its fingerprint; None where it is not there."""
        newest = Manifest.from_json(self._required(MANIFEST)).generation
        for generation in range(newest, -1, -1):
            try:
                if self._manifest_of(generation).fingerprint == fingerprint != self.manifest.fingerprint:
                    return generation
            except InputError:
                continue  # pruned
        return None

    def explain_missing(self, error: MissingObjectError) -> MissingObjectError:
        """The error for a file of the dataset that is not there: it names a generation that was deleted meanwhile."""
        with contextlib.suppress(CrispError):
            newest = Manifest.from_json(self.store.get(MANIFEST)).generation
            gone = self.manifest.generation < newest and not self.store.exists(kept_manifest(self.manifest.generation))
            if gone:
                return MissingObjectError(
                    f"{self.root}: generation {self.manifest.generation}, which is being read, was deleted: the "
                    f"dataset has grown to generation {newest}, and append --prune deletes older ones ({error}) Start "
                    f"anew with generation {newest}, whose windows stand in another order. To keep generations that "
                    "are in use, append without --prune."
                )
        return error

    def is_replaced(self) -> bool:
        """Whether another dataset was written to the root since this one was opened.

        Raises:
            FormatError, InputError, StorageError: its manifest cannot be read now.
        """
        return self._manifest_of(self.manifest.generation).fingerprint != self.manifest.fingerprint

    def own_path(self, path: str) -> str:
        """Path of a table of this generation, such as `TABLES`."""
        return generation_path(path, self.manifest.generation, self.manifest.mark)

    def _cluster_table(self) -> SharedArrays | dict[str, NDArray[Any]]:
        def read() -> dict[str, NDArray[Any]]:
            return read_clusters(self._required(self.own_path(CLUSTERS)), self.manifest)

        if self.manifest.num_leaves < SHARED_ROWS:
            return read()
        return shared_arrays(self.table_folder / f"clusters-{self.manifest.clusters_fingerprint[:16]}.arrays", read)

    @property
    def table_folder(self) -> Path:
        """Folder that keeps large tables of this dataset for all processes of the machine."""
        return cache_folder() / self.manifest.fingerprint[:16] / "tables"

    @property
    def leaves(self) -> NDArray[np.uint32]:
        """[num_leaves], sorted ids of the non-empty leaves."""
        return self._clusters["leaf"]

    @property
    def windows_per_leaf(self) -> NDArray[np.int64]:
        """[num_leaves], windows of each leaf."""
        return self._clusters["num_windows"]

    @property
    def first_window_per_leaf(self) -> NDArray[np.int64]:
        """[num_leaves], the window id at which each leaf begins."""
        return self._clusters["first_window"]

    def _required(self, path: str) -> bytes:
        try:
            return self.store.get(path)
        except MissingObjectError as error:
            if not is_remote(self.root) and local_path(self.root).is_file():
                raise FormatError(
                    f"{self.root}: must be the root of a dataset, a folder or prefix, got a file. Write one with: "
                    "crisp-stream write INPUT… --out ROOT"
                ) from error
            reason = "it holds no dataset, or one whose writing did not finish" if path == MANIFEST else "it is damaged"
            raise FormatError(
                f"{self.root}: {path} is missing; {reason}. Write it with: crisp-stream write INPUT… --out {self.root}"
            ) from error

    @cached_property
    def tree(self) -> ClusterTree:
        """The clustering tree, checked against the manifest. Raises FormatError."""
        from crisp_stream.tree.tree import ClusterTree

        tree = ClusterTree.load(f"{self.root}/tree", timeout=self._timeout)
        if tree.fingerprint != self.manifest.tree_fingerprint:
            raise FormatError(
                f"{self.root}/tree: fingerprint {tree.fingerprint[:12]} is not the manifest's "
                f"{self.manifest.tree_fingerprint[:12]}. The tree was replaced; restore it."
            )
        return tree

    def tokenizer_path(self) -> Path:
        """A local folder that `transformers.AutoTokenizer.from_pretrained` loads (downloaded once for a remote root).

        Raises:
            FormatError: the tokenizer is not the one of the manifest, or missing.
            StorageError: it cannot be read, or kept in the cache folder.
        """
        if self.store.is_local:
            folder = local_path(self.root) / "tokenizer"
            content = self._required(f"tokenizer/{TOKENIZER_FILES[0]}")
        else:
            folder = cache_folder() / self.manifest.fingerprint[:16] / "tokenizer"
            cached = open_store(str(folder))
            for name in TOKENIZER_FILES:
                cached.put(name, self._required(f"tokenizer/{name}"))
            content = cached.get(TOKENIZER_FILES[0])
        fingerprint = hashlib.sha256(content).hexdigest()
        if fingerprint != self.manifest.tokenizer.fingerprint:
            raise FormatError(
                f"{folder}: tokenizer.json has sha256 {fingerprint[:12]}, the manifest says "
                f"{self.manifest.tokenizer.fingerprint[:12]}. The tokenizer was replaced; restore it."
            )
        return folder

    def leaf_of_windows(self, window_ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Leaf id of each window."""
        return self.leaves[self.row_of_windows(window_ids)]

    def shard_of_windows(self, window_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the shard table of each window's shard."""
        return np.searchsorted(self.first_window_per_shard, window_ids, side="right") - 1

    def checksum_seeds(self, window_ids: NDArray[np.int64], shards: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Seed of each window's checksum; `shards` are those of `shard_of_windows`."""
        return self._seed_of_window_0[shards] + window_ids.astype(np.uint64)

    def row_of_windows(self, window_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the cluster table of each window's leaf."""
        return np.searchsorted(self.first_window_per_leaf, window_ids, side="right") - 1


def open_dataset(root: str | Path, *, generation: int | None = None, timeout: float = 120.0) -> Dataset:
    """Open the dataset at `root`, a local folder, s3://, gs://, az://, https:// prefix or
    hf://datasets/OWNER/NAME.

    Args:
        root: where it is.
        generation: of a dataset that has grown (`crisp-stream append`): 0 is the first, None the newest.
        timeout: seconds after which a failing request becomes an error.

    Raises:
        FormatError: the root holds no dataset, or one that breaks FORMAT.md.
        InputError: there is no such generation.
        StorageError: the storage refused or failed.
    """
    return Dataset(str(root), generation=generation, timeout=timeout)
