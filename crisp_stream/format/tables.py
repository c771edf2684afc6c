"""clusters.parquet, the table of leaves, and the names of tables: bytes, fingerprint, validated reading.

Tables are input: row counts are compared with the manifest before anything is decoded, so that a table cannot make
its reader allocate more than the manifest admits, which itself is bounded.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import FormatError
from crisp_stream.format.parquet import checked_batches, numbers, parquet_bytes

if TYPE_CHECKING:
    from crisp_stream.format.manifest import Manifest

CLUSTERS = "clusters.parquet"


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
    check_fingerprint(name, clusters_fingerprint(leaves, counts), manifest.clusters_fingerprint)
    return {"leaf": leaves, "num_windows": counts, "first_window": first}


def check_fingerprint(name: str, fingerprint: str, expected: str) -> None:
    """Refuse a table that is not the manifest's. Raises FormatError."""
    if fingerprint != expected:
        raise FormatError(
            f"{name}: fingerprint {fingerprint[:12]} is not the manifest's {expected[:12]}. Restore the file."
        )
