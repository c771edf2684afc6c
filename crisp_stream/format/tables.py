"""The two tables of a dataset, clusters.parquet and shards.parquet: bytes, fingerprints, validated reading.

Tables are input: row counts are compared with the manifest before anything is decoded, so that a table cannot make
its reader allocate more than the manifest admits, which itself is bounded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import FormatError
from crisp_stream.format.mds import ShardRow, header_bytes
from crisp_stream.format.parquet import checked_batches, numbers, parquet_bytes

if TYPE_CHECKING:
    from crisp_stream.format.manifest import Manifest

CLUSTERS = "clusters.parquet"
SHARDS = "shards.parquet"

_SHARD_COLUMNS = tuple(field.name for field in dataclasses.fields(ShardRow))
_SHARD_PATH = re.compile(r"shards/[0-9]{2}/shard\.[0-9]{5,9}(\.[0-9a-f]{8})?\.mds")


def generation_path(path: str, generation: int, mark: str = "") -> str:
    """The name of a table of a generation: clusters.parquet, and from generation 1 on clusters.g1.3f2a9c01.parquet."""
    return path if generation == 0 else marked(path, f"g{generation}", mark)


def marked(path: str, *marks: str) -> str:
    """A path with marks before its suffix; empty ones are left out."""
    stem, _, suffix = path.rpartition(".")
    return ".".join([stem, *filter(None, marks), suffix])


def clusters_parquet(leaves: NDArray[np.uint32], windows_per_leaf: NDArray[np.int64]) -> bytes:
    """Write clusters.parquet: one row per non-empty leaf, in leaf order."""
    return parquet_bytes(pa.table({"leaf": leaves.astype(np.uint32), "num_windows": windows_per_leaf.astype(np.int64)}))


def clusters_fingerprint(leaves: NDArray[np.uint32], windows_per_leaf: NDArray[np.int64]) -> str:
    """sha256 over the columns, so that it does not depend on how Parquet encodes them."""
    digest = hashlib.sha256(np.ascontiguousarray(leaves, "<u4").data)
    digest.update(np.ascontiguousarray(windows_per_leaf, "<i8").data)
    return digest.hexdigest()


def shards_parquet(rows: list[ShardRow]) -> bytes:
    """Write shards.parquet: one row per shard, in window order."""
    types = (pa.string(), pa.int64(), pa.int64(), pa.int64(), pa.string(), pa.uint64())
    schema = pa.schema(zip(_SHARD_COLUMNS, types, strict=True))
    return parquet_bytes(pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema))


def shards_fingerprint(rows: list[ShardRow]) -> str:
    """sha256 over the rows as JSON."""
    return hashlib.sha256(json.dumps([dataclasses.astuple(row) for row in rows]).encode()).hexdigest()


def read_clusters(content: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Read leaf u32, num_windows i64 and first_window i64 of every non-empty leaf, each [num_leaves].

    Raises:
        FormatError: the table is not readable, breaks MUST 4, or is not the manifest's.
    """
    name = generation_path(CLUSTERS, manifest.generation, manifest.mark)
    leaves, counts = np.empty(manifest.num_leaves, np.uint32), np.empty(manifest.num_leaves, np.int64)
    at = 0
    for batch in checked_batches(content, name, ("leaf", "num_windows"), manifest.num_leaves):
        try:
            if batch["leaf"].null_count or batch["num_windows"].null_count:
                raise FormatError(f"{name}: must have {manifest.num_leaves} rows without nulls.")
            leaves[at : at + len(batch)] = numbers(batch["leaf"], pa.uint32())
            counts[at : at + len(batch)] = numbers(batch["num_windows"], pa.int64())
        except pa.ArrowException as error:
            raise FormatError(f"{name}: columns must be uint32 and int64 ({error}).") from error
        at += len(batch)
    if (leaves[1:] <= leaves[:-1]).any() or int(leaves[-1]) >= manifest.arity**manifest.depth:
        raise FormatError(f"{name}: leaf must be strictly increasing and below arity ** depth.")
    first = np.cumsum(counts)
    if (counts < 1).any() or (counts > manifest.num_windows).any() or int(first[-1]) != manifest.num_windows:
        raise FormatError(f"{name}: num_windows must be positive and sum to {manifest.num_windows}, got {first[-1]}.")
    first -= counts
    _check_fingerprint(name, clusters_fingerprint(leaves, counts), manifest.clusters_fingerprint)
    return {"leaf": leaves, "num_windows": counts, "first_window": first}


def read_shards(content: bytes, manifest: Manifest) -> list[ShardRow]:
    """Read the rows of shards.parquet.

    Raises:
        FormatError: the table is not readable, breaks MUST 5, or is not the manifest's.
    """
    table = generation_path(SHARDS, manifest.generation, manifest.mark)
    batches = checked_batches(content, table, _SHARD_COLUMNS, manifest.num_shards)
    rows = []
    for record in [record for batch in batches for record in batch.to_pylist()]:
        path = record["path"]
        if not isinstance(path, str) or not _SHARD_PATH.fullmatch(path):
            raise FormatError(f"{table}: path must look like shards/07/shard.00000.mds below the root, got {path!r}.")
        if any(not isinstance(record[name], int) for name in _SHARD_COLUMNS[1:4]) or record["num_windows"] < 1:
            raise FormatError(f"{table}: {path}: counts and sizes must be positive integers, got {record}.")
        seed = record["checksum_seed"]
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise FormatError(f"{table}: {path}: checksum_seed must be 0 to 2^64 - 1, got {seed!r}. Restore the file.")
        rows.append(ShardRow(**record))
    if len({row.path for row in rows}) != len(rows):
        raise FormatError(f"{table}: every path must stand once.")
    if len({row.checksum_seed for row in rows}) != len(rows):
        raise FormatError(f"{table}: every checksum_seed must stand once. Restore the file.")
    header_0 = len(header_bytes(0, manifest.window_tokens, manifest.token_dtype))
    for row in rows:
        offset = header_0 + 4 * row.num_windows
        expected = (offset, offset + row.num_windows * manifest.sample_bytes)
        if (row.first_sample_offset, row.shard_bytes) != expected:
            raise FormatError(
                f"{table}: {row.path}: {row.num_windows} windows need offset and size {expected}, "
                f"got {(row.first_sample_offset, row.shard_bytes)}."
            )
    if sum(row.num_windows for row in rows) != manifest.num_windows:
        raise FormatError(f"{table}: num_windows must sum to {manifest.num_windows}.")
    _check_fingerprint(table, shards_fingerprint(rows), manifest.shards_fingerprint)
    return rows


def _check_fingerprint(name: str, fingerprint: str, expected: str) -> None:
    if fingerprint != expected:
        raise FormatError(
            f"{name}: fingerprint {fingerprint[:12]} is not the manifest's {expected[:12]}. Restore the file."
        )
