"""Format v1 in code; FORMAT.md is the specification and its MUST numbers stand here in the comments.

Everything read from a root is input: it is validated before it is used (numbers that do not add up, paths that leave
the root).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.mds import ShardRow, TokenDtype, header_bytes, sample_dtype
from crisp_stream.storage import MissingObjectError, Store, cache_folder, local_path, open_store

if TYPE_CHECKING:
    from crisp_stream.tree import ClusterTree

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CLUSTERS = "clusters.parquet"
SHARDS = "shards.parquet"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MAX_LEAVES = 1 << 24  # 64 ** 4
MAX_ARITY = 64

_SHARD_PATH = re.compile(r"shards/[0-9]{2}/shard\.[0-9]{5,9}\.mds")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Packing = Literal["joined", "document"]


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
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the windows came from and what was dropped; not part of the fingerprint."""

    def __post_init__(self) -> None:
        _check_manifest(self)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything but the provenance: two datasets that share it hold the same windows in the same
        order."""
        identity = dataclasses.asdict(self)
        del identity["provenance"]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def sample_bytes(self) -> int:
        """Size of one sample in a shard."""
        return sample_dtype(self.window_tokens, self.token_dtype).itemsize

    def to_json(self) -> bytes:
        """The bytes of manifest.json."""
        return (json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Parse and validate manifest.json.

        Raises:
            FormatError: not JSON, a newer version, keys missing or unknown, values of the wrong type or range.
        """
        try:
            record = json.loads(content)
        except ValueError as error:
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


_TYPE_BY_ANNOTATION = {"int": int, "str": str, "TokenDtype": str, "Packing": str, "dict[str, Any]": dict}


def _typed(record_type: Any, record: Any, prefix: str) -> Any:
    if not isinstance(record, dict):
        raise FormatError(f"{MANIFEST}: {prefix.rstrip('.')} must be an object, got {type(record).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(record_type)}
    for name in sorted(record.keys() - fields.keys()):
        raise FormatError(f"{MANIFEST}: {prefix}{name} is not a key of format version {FORMAT_VERSION}.")
    for name, entry in fields.items():
        if name not in record:
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
    require(2 <= manifest.arity <= MAX_ARITY, "arity", f"must be 2 to {MAX_ARITY}")
    require(1 <= manifest.depth <= 24, "depth", "must be 1 to 24")
    require(manifest.arity**manifest.depth <= MAX_LEAVES, "depth", f"must keep arity ** depth <= {MAX_LEAVES:,}")
    require(manifest.num_windows >= 1, "num_windows", "must be at least 1")
    require(1 <= manifest.num_leaves <= manifest.arity**manifest.depth, "num_leaves", "must be 1 to arity ** depth")
    require(1 <= manifest.num_shards <= manifest.num_windows, "num_shards", "must be 1 to num_windows")
    for key in ("clusters_fingerprint", "shards_fingerprint", "tree_fingerprint"):
        require(_SHA256.fullmatch(getattr(manifest, key)) is not None, key, "must be a sha256 hex digest")
    vocab_size, eot_id = manifest.tokenizer.vocab_size, manifest.tokenizer.eot_id
    if not 0 <= eot_id < vocab_size:
        raise FormatError(f"{MANIFEST}: tokenizer.eot_id must be below vocab_size {vocab_size}, got {eot_id}.")
    if manifest.token_dtype == "uint16" and vocab_size > 1 << 16:
        raise FormatError(f"{MANIFEST}: a vocabulary of {vocab_size} ids needs token_dtype uint32, got uint16.")


def _table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def clusters_parquet(leaves: NDArray[np.uint32], windows_per_leaf: NDArray[np.int64]) -> bytes:
    """clusters.parquet: one row per non-empty leaf, in leaf order."""
    return _table_bytes(pa.table({"leaf": leaves.astype(np.uint32), "num_windows": windows_per_leaf.astype(np.int64)}))


def clusters_fingerprint(leaves: NDArray[np.uint32], windows_per_leaf: NDArray[np.int64]) -> str:
    """sha256 over the columns, so that it does not depend on how Parquet encodes them."""
    return hashlib.sha256(leaves.astype("<u4").tobytes() + windows_per_leaf.astype("<i8").tobytes()).hexdigest()


def shards_parquet(rows: list[ShardRow]) -> bytes:
    """shards.parquet: one row per shard, in window order."""
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("num_windows", pa.int64()),
            ("shard_bytes", pa.int64()),
            ("first_sample_offset", pa.int64()),
            ("shard_hash", pa.string()),
        ]
    )
    return _table_bytes(pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema))


def shards_fingerprint(rows: list[ShardRow]) -> str:
    """sha256 over the rows as JSON."""
    return hashlib.sha256(json.dumps([dataclasses.astuple(row) for row in rows]).encode()).hexdigest()


class Dataset:
    """An opened dataset root: manifest, cluster table, shard table; windows are read on demand."""

    def __init__(self, root: str, *, timeout: float = 120.0) -> None:
        """Args:
            root: local folder or object-store prefix.
            timeout: seconds after which a failing request is given up.

        Raises:
            FormatError: the root holds no dataset, or one that breaks FORMAT.md.
            StorageError: the storage refused or failed.
        """
        self.store: Store = open_store(root, timeout=timeout)
        self.root = self.store.url
        self.manifest = Manifest.from_json(self._required(MANIFEST))
        self.leaves, self.windows_per_leaf = _read_clusters(self._required(CLUSTERS), self.manifest)
        self.shards = _read_shards(self._required(SHARDS), self.manifest)
        self.first_window_per_leaf: NDArray[np.int64] = np.cumsum(self.windows_per_leaf) - self.windows_per_leaf
        windows_per_shard = np.array([row.num_windows for row in self.shards], np.int64)
        self.first_window_per_shard: NDArray[np.int64] = np.cumsum(windows_per_shard) - windows_per_shard

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
        from crisp_stream.tree import ClusterTree

        tree = ClusterTree.load(f"{self.root}/tree")
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
        """
        if self.store.is_local:
            folder = local_path(self.root) / "tokenizer"
        else:
            folder = cache_folder() / self.manifest.fingerprint[:16] / "tokenizer"
            folder.mkdir(parents=True, exist_ok=True)
            for name in TOKENIZER_FILES:
                temporary = folder / f".{name}.{id(self)}"
                temporary.write_bytes(self._required(f"tokenizer/{name}"))
                temporary.replace(folder / name)
        found = hashlib.sha256((folder / TOKENIZER_FILES[0]).read_bytes()).hexdigest()
        if found != self.manifest.tokenizer.fingerprint:
            raise FormatError(
                f"{folder}: tokenizer.json has sha256 {found[:12]}, the manifest says "
                f"{self.manifest.tokenizer.fingerprint[:12]}. The tokenizer was replaced; restore it."
            )
        return folder

    def leaf_of_windows(self, window_ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Leaf id of each window."""
        return self.leaves[np.searchsorted(self.first_window_per_leaf, window_ids, side="right") - 1]

    def read_windows(self, window_ids: NDArray[np.int64]) -> NDArray[Any]:
        """Verified samples of any windows: [num_windows] of `mds.sample_dtype`, in the order asked.

        Raises:
            CorruptDataError, StorageError, InputError: an id outside the dataset.
        """
        from crisp_stream.reader import WindowReader

        if len(window_ids) and not 0 <= min(window_ids) <= max(window_ids) < self.manifest.num_windows:
            raise InputError(f"{self.root}: window ids must be 0 to {self.manifest.num_windows - 1}.")
        with WindowReader(self) as reader:
            return reader.read(np.asarray(window_ids, np.int64))


def open_dataset(root: str | Path, *, timeout: float = 120.0) -> Dataset:
    """Open the dataset at `root`, a local folder or s3://, gs://, az://, https:// prefix.

    Raises:
        FormatError: the root holds no dataset, or one that breaks FORMAT.md.
        StorageError: the storage refused or failed.
    """
    return Dataset(str(root), timeout=timeout)


def read_parquet(content: bytes) -> pa.Table:
    """A Parquet file in memory as a table, read by this thread alone.

    pq.read_table leaves reads to threads of Arrow, which may outlive the interpreter and then abort a finished process.
    """
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)


def _parquet_columns(content: bytes, name: str, columns: tuple[str, ...]) -> pa.Table:
    try:
        table = read_parquet(content)
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{name}: not a readable Parquet file ({error}). Restore it.") from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise FormatError(f"{name}: column {missing[0]} is missing, it has {table.column_names}.")
    return table


def _read_clusters(content: bytes, manifest: Manifest) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    table = _parquet_columns(content, CLUSTERS, ("leaf", "num_windows"))
    try:
        leaves = table["leaf"].combine_chunks().cast(pa.uint32()).to_numpy(zero_copy_only=False)
        counts = table["num_windows"].combine_chunks().cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise FormatError(f"{CLUSTERS}: columns must be uint32 and int64 ({error}).") from error
    if len(leaves) != manifest.num_leaves or table["leaf"].null_count or table["num_windows"].null_count:
        raise FormatError(f"{CLUSTERS}: must have {manifest.num_leaves} rows without nulls, got {len(leaves)}.")
    if (np.diff(leaves.astype(np.int64)) <= 0).any() or int(leaves[-1]) >= manifest.arity**manifest.depth:
        raise FormatError(f"{CLUSTERS}: leaf must be strictly increasing and below arity ** depth.")
    if (counts < 1).any() or int(counts.sum()) != manifest.num_windows:
        raise FormatError(
            f"{CLUSTERS}: num_windows must be positive and sum to {manifest.num_windows}, got {counts.sum()}."
        )
    _check_fingerprint(CLUSTERS, clusters_fingerprint(leaves, counts), manifest.clusters_fingerprint)
    return leaves, counts


def _read_shards(content: bytes, manifest: Manifest) -> list[ShardRow]:
    names = tuple(f.name for f in dataclasses.fields(ShardRow))
    records = _parquet_columns(content, SHARDS, names).select(names).to_pylist()
    if len(records) != manifest.num_shards:
        raise FormatError(f"{SHARDS}: must have {manifest.num_shards} rows, got {len(records)}.")
    rows = []
    for record in records:
        path = record["path"]
        if not isinstance(path, str) or not _SHARD_PATH.fullmatch(path):
            raise FormatError(f"{SHARDS}: path must look like shards/07/shard.00000.mds below the root, got {path!r}.")
        if any(not isinstance(record[name], int) for name in names[1:4]) or record["num_windows"] < 1:
            raise FormatError(f"{SHARDS}: {path}: counts and sizes must be positive integers, got {record}.")
        rows.append(ShardRow(**record))
    if len({row.path for row in rows}) != len(rows):
        raise FormatError(f"{SHARDS}: every path must stand once.")
    header_0 = len(header_bytes(0, manifest.window_tokens, manifest.token_dtype))
    for row in rows:
        offset = header_0 + 4 * row.num_windows
        expected = (offset, offset + row.num_windows * manifest.sample_bytes)
        if (row.first_sample_offset, row.shard_bytes) != expected:
            raise FormatError(
                f"{SHARDS}: {row.path}: {row.num_windows} windows need offset and size {expected}, "
                f"got {(row.first_sample_offset, row.shard_bytes)}."
            )
    if sum(row.num_windows for row in rows) != manifest.num_windows:
        raise FormatError(f"{SHARDS}: num_windows must sum to {manifest.num_windows}.")
    _check_fingerprint(SHARDS, shards_fingerprint(rows), manifest.shards_fingerprint)
    return rows


def _check_fingerprint(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise FormatError(f"{name}: fingerprint {found[:12]} is not the manifest's {expected[:12]}. Restore the file.")
