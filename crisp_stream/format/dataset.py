"""Format v1 in code; FORMAT.md is the specification and its MUST numbers stand here in the comments.

Everything read from a root is input: it is validated before it is used (numbers that do not add up, paths that leave
the root).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.mds import TokenDtype, sample_dtype
from crisp_stream.format.tables import CLUSTERS, SHARDS, read_clusters, read_shards
from crisp_stream.format.tables import clusters_fingerprint as clusters_fingerprint
from crisp_stream.format.tables import clusters_parquet as clusters_parquet
from crisp_stream.format.tables import generation_path as generation_path
from crisp_stream.format.tables import shards_fingerprint as shards_fingerprint
from crisp_stream.format.tables import shards_parquet as shards_parquet
from crisp_stream.storage.shared_arrays import SHARED_ROWS, SharedArrays, shared_arrays
from crisp_stream.storage.store import MissingObjectError, Store, cache_folder, local_path, open_store

if TYPE_CHECKING:
    from crisp_stream.tree.tree import ClusterTree

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MAX_LEAVES = 1 << 24  # 64 ** 4
MAX_WINDOWS = 1 << 48
MAX_SHARDS = 1 << 24
MAX_ARITY = 64
MAX_GENERATION = 999_999

DOCUMENTS = "provenance/documents"
SOURCES = "provenance/sources.parquet"
TABLES = "provenance/tables.parquet"
DROPPED = "provenance/dropped.parquet"
_SHA256 = re.compile(r"[0-9a-f]{64}")

Packing = Literal["joined", "document"]
Reads = Literal["first", "all"]


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """Which tokenizer made the windows."""

    fingerprint: str
    """sha256 of tokenizer/tokenizer.json."""
    vocab_size: int
    """Number of ids, special tokens included."""
    eot_token: str
    """The end-of-text token that stands between documents."""
    eot_id: int
    """Its id."""


def kept_manifest(generation: int) -> str:
    """Where the manifest of an older generation is kept: manifest.g0.json, …"""
    return f"manifest.g{generation}.json"


def places_path(shard_path: str) -> str:
    """Where a shard's windows came from: shards/07/shard.00000.mds -> provenance/07/shard.00000.npy."""
    return "provenance/" + shard_path.removeprefix("shards/").removesuffix(".mds") + ".npy"


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """Which model embedded the windows; specialist examples must be embedded by the same."""

    name: str
    """Hub name or base name of the folder."""
    weights_sha256: str
    """sha256 of the weights file."""
    max_length: int
    """Word pieces read from the start of a window; the rest of it is not seen."""
    pooling: str
    """How token vectors become one vector, such as mean."""
    dim: int
    """Width of an embedding."""
    reads: Reads = field(default="first", metadata={"optional": True})
    """first: max_length word pieces. all: the mean over the whole window, read in stretches of max_length."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json: what a dataset is. It is written last, so its absence means that the dataset is incomplete."""

    format_version: int = FORMAT_VERSION
    """Version of the layout. Readers refuse newer ones."""
    window_tokens: int
    """Tokens in every window."""
    token_dtype: TokenDtype
    """uint16, or uint32 for vocabularies over 65,536."""
    packing: Packing
    """joined: documents joined by eot, then cut. document: a window never crosses a document."""
    num_windows: int
    """Windows in the dataset."""
    num_leaves: int
    """Leaves that hold at least one window: rows of clusters.parquet."""
    num_shards: int
    """Rows of shards.parquet."""
    arity: int
    """Children of a tree node, 2 to 64."""
    depth: int
    """Levels of the tree below its root."""
    sort_seed: int
    """Seed of the hash that orders the windows of a leaf."""
    clusters_fingerprint: str
    """sha256 over the columns of clusters.parquet."""
    shards_fingerprint: str
    """sha256 over the columns of shards.parquet, which hold the shards' own hashes."""
    tree_fingerprint: str
    """sha256 over the tree's shape and centroids."""
    tokenizer: TokenizerRecord
    encoder: EncoderRecord
    generation: int = field(default=0, metadata={"optional": True})
    """How often the dataset has grown; its tables have names of their own, see `generation_path`."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the windows came from and what was dropped; not part of the fingerprint."""

    def __post_init__(self) -> None:
        _check_manifest(self)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything but the provenance: two datasets that share it hold the same windows in the same
        order."""
        identity = self._as_json()
        del identity["provenance"]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def sample_bytes(self) -> int:
        """Size of one sample in a shard."""
        return sample_dtype(self.window_tokens, self.token_dtype).itemsize

    def _as_json(self) -> dict[str, Any]:
        record = dataclasses.asdict(self)
        if self.encoder.reads == "first":  # optional keys are written only where they say something
            del record["encoder"]["reads"]
        if self.generation == 0:
            del record["generation"]
        return record

    def to_json(self) -> bytes:
        """The bytes of manifest.json."""
        return (json.dumps(self._as_json(), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Parse and validate manifest.json.

        Raises:
            FormatError: not JSON, a newer version, keys missing or unknown, values of the wrong type or range.
        """
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{MANIFEST}: not valid JSON ({error}). Write the dataset again.") from error
        if not isinstance(record, dict):
            raise FormatError(f"{MANIFEST}: must be a JSON object, got {type(record).__name__}.")
        version = record.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise FormatError(f"{MANIFEST}: format_version must be a positive integer, got {version!r}.")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{MANIFEST}: format_version {version} is newer than this reader ({FORMAT_VERSION}). "
                "Upgrade crisp-stream."
            )
        record["tokenizer"] = _typed(TokenizerRecord, record.get("tokenizer"), "tokenizer.")
        record["encoder"] = _typed(EncoderRecord, record.get("encoder"), "encoder.")
        return cast(Manifest, _typed(cls, record, ""))


_TYPE_BY_ANNOTATION = {"int": int, "str": str, "TokenDtype": str, "Packing": str, "Reads": str, "dict[str, Any]": dict}


def _typed(record_type: Any, record: Any, prefix: str) -> Any:
    if not isinstance(record, dict):
        raise FormatError(f"{MANIFEST}: {prefix.rstrip('.')} must be an object, got {type(record).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(record_type)}
    for name in sorted(record.keys() - fields.keys()):
        raise FormatError(f"{MANIFEST}: {prefix}{name} is not a key of format version {FORMAT_VERSION}.")
    for name, entry in fields.items():
        if name not in record:
            if entry.metadata.get("optional"):
                continue
            raise FormatError(f"{MANIFEST}: {prefix}{name} is missing. The file is damaged; write the dataset again.")
        expected = _TYPE_BY_ANNOTATION.get(str(entry.type))
        got = record[name]
        if expected is not None and (not isinstance(got, expected) or isinstance(got, bool)):
            raise FormatError(f"{MANIFEST}: {prefix}{name} must be {expected.__name__}, got {got!r}.")
    return record_type(**record)


def _check_manifest(manifest: Manifest) -> None:
    def require(holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise FormatError(f"{MANIFEST}: {key} {rule}, got {getattr(manifest, key)!r}.")

    require(1 <= manifest.window_tokens <= 1 << 20, "window_tokens", "must be 1 to 1,048,576")
    require(manifest.token_dtype in ("uint16", "uint32"), "token_dtype", "must be uint16 or uint32")
    require(manifest.packing in ("joined", "document"), "packing", "must be joined or document")
    if manifest.encoder.reads not in ("first", "all"):
        raise FormatError(f"{MANIFEST}: encoder.reads must be first or all, got {manifest.encoder.reads!r}.")
    require(2 <= manifest.arity <= MAX_ARITY, "arity", f"must be 2 to {MAX_ARITY}")
    require(1 <= manifest.depth <= 24, "depth", "must be 1 to 24")
    require(manifest.arity**manifest.depth <= MAX_LEAVES, "depth", f"must keep arity ** depth <= {MAX_LEAVES:,}")
    require(1 <= manifest.num_windows <= MAX_WINDOWS, "num_windows", f"must be 1 to {MAX_WINDOWS:,}")
    require(1 <= manifest.num_leaves <= manifest.arity**manifest.depth, "num_leaves", "must be 1 to arity ** depth")
    require(
        1 <= manifest.num_shards <= min(manifest.num_windows, MAX_SHARDS),
        "num_shards",
        f"must be 1 to num_windows and at most {MAX_SHARDS:,}",
    )
    require(0 <= manifest.generation <= MAX_GENERATION, "generation", f"must be 0 to {MAX_GENERATION:,}")
    for key in ("clusters_fingerprint", "shards_fingerprint", "tree_fingerprint"):
        require(_SHA256.fullmatch(getattr(manifest, key)) is not None, key, "must be a sha256 hex digest")
    vocab_size, eot_id = manifest.tokenizer.vocab_size, manifest.tokenizer.eot_id
    if not 0 <= eot_id < vocab_size:
        raise FormatError(f"{MANIFEST}: tokenizer.eot_id must be below vocab_size {vocab_size}, got {eot_id}.")
    if manifest.token_dtype == "uint16" and vocab_size > 1 << 16:
        raise FormatError(f"{MANIFEST}: a vocabulary of {vocab_size} ids needs token_dtype uint32, got uint16.")


class Dataset:
    """An opened dataset root: manifest, cluster table, shard table; windows are read on demand."""

    def __init__(self, root: str, *, generation: int | None = None, timeout: float = 120.0) -> None:
        """Args:
            root: local folder or object-store prefix.
            generation: 0 is the dataset before it first grew; the newest when None.
            timeout: seconds after which a failing request is given up.

        Raises:
            FormatError: the root holds no dataset, or one that breaks FORMAT.md.
            InputError: there is no such generation.
            StorageError: the storage refused or failed.
        """
        self.store: Store = open_store(root, timeout=timeout)
        self._timeout = timeout
        self.root = self.store.url
        self.manifest = self._manifest_of(generation)
        self._clusters = self._cluster_table()
        self.shards = read_shards(self._required(self.own_path(SHARDS)), self.manifest)
        windows_per_shard = np.array([row.num_windows for row in self.shards], np.int64)
        self.first_window_per_shard: NDArray[np.int64] = np.cumsum(windows_per_shard) - windows_per_shard

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
        """Which other generation of this root has that fingerprint, if it is there."""
        newest = Manifest.from_json(self._required(MANIFEST)).generation
        for generation in range(newest, -1, -1):
            try:
                if self._manifest_of(generation).fingerprint == fingerprint != self.manifest.fingerprint:
                    return generation
            except InputError:
                continue  # pruned
        return None

    def own_path(self, path: str) -> str:
        """Where this generation has one of its tables, such as `TABLES`."""
        return generation_path(path, self.manifest.generation)

    def _cluster_table(self) -> SharedArrays | dict[str, NDArray[Any]]:
        def read() -> dict[str, NDArray[Any]]:
            return read_clusters(self._required(self.own_path(CLUSTERS)), self.manifest)

        if self.manifest.num_leaves < SHARED_ROWS:
            return read()
        return shared_arrays(self.table_folder / f"clusters-{self.manifest.clusters_fingerprint[:16]}.arrays", read)

    @property
    def table_folder(self) -> Path:
        """Where large tables of this dataset are kept for all processes of the machine."""
        return cache_folder() / self.manifest.fingerprint[:16] / "tables"

    @property
    def leaves(self) -> NDArray[np.uint32]:
        """[num_leaves], sorted ids of the non-empty leaves."""
        return self._clusters["leaf"]

    @property
    def windows_per_leaf(self) -> NDArray[np.int64]:
        """[num_leaves]."""
        return self._clusters["num_windows"]

    @property
    def first_window_per_leaf(self) -> NDArray[np.int64]:
        """[num_leaves], the window id at which each leaf begins."""
        return self._clusters["first_window"]

    def _required(self, path: str) -> bytes:
        try:
            return self.store.get(path)
        except MissingObjectError as error:
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
            FormatError: the tokenizer is not the one of the manifest.
            StorageError: it cannot be read, or kept in the cache folder.
        """
        if self.store.is_local:
            folder = local_path(self.root) / "tokenizer"
        else:
            folder = cache_folder() / self.manifest.fingerprint[:16] / "tokenizer"
            cached = open_store(str(folder))
            for name in TOKENIZER_FILES:
                cached.put(name, self._required(f"tokenizer/{name}"))
        found = hashlib.sha256((folder / TOKENIZER_FILES[0]).read_bytes()).hexdigest()
        if found != self.manifest.tokenizer.fingerprint:
            raise FormatError(
                f"{folder}: tokenizer.json has sha256 {found[:12]}, the manifest says "
                f"{self.manifest.tokenizer.fingerprint[:12]}. The tokenizer was replaced; restore it."
            )
        return folder

    def leaf_of_windows(self, window_ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Leaf id of each window."""
        return self.leaves[self.row_of_windows(window_ids)]

    def row_of_windows(self, window_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the cluster table of each window's leaf."""
        return np.searchsorted(self.first_window_per_leaf, window_ids, side="right") - 1

    def read_windows(self, window_ids: NDArray[np.int64]) -> NDArray[Any]:
        """Verified samples of any windows: [num_windows] of `mds.sample_dtype`, in the order asked.

        Raises:
            CorruptDataError, StorageError, InputError: an id outside the dataset.
        """
        from crisp_stream.loading.reader import WindowReader

        if len(window_ids) and not 0 <= min(window_ids) <= max(window_ids) < self.manifest.num_windows:
            raise InputError(f"{self.root}: window ids must be 0 to {self.manifest.num_windows - 1}.")
        with WindowReader(self) as reader:
            return reader.read(np.asarray(window_ids, np.int64))


def open_dataset(root: str | Path, *, generation: int | None = None, timeout: float = 120.0) -> Dataset:
    """Open the dataset at `root`, a local folder or s3://, gs://, az://, https:// prefix.

    Args:
        root: where it is.
        generation: of a dataset that has grown (`crisp-stream append`); the newest when None.
        timeout: seconds after which a failing request is given up.

    Raises:
        FormatError: the root holds no dataset, or one that breaks FORMAT.md.
        InputError: there is no such generation.
        StorageError: the storage refused or failed.
    """
    return Dataset(str(root), generation=generation, timeout=timeout)
