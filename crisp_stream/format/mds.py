"""The bytes of a shard: a valid MDS file whose samples all have the same size.

Written with numpy instead of `streaming.MDSWriter`: the bytes are equal (a test compares them), but importing that
writer costs 9 s and 750 MB in every process, it publishes its index before the shards are up, and it encodes sample
by sample.

    u32 num_windows | u32 offsets[num_windows + 1] | config JSON | samples

One sample, columns in MDS's alphabetical order, all fixed-size, so none has a header:

    checksum u32 | cluster u32 | tokens u16 or u32 [window_tokens]          little-endian, 2,056 bytes at 1,024 x u16
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.format.checksums import checksums, shard_seed, window_seeds

TokenDtype = Literal["uint16", "uint32"]
SHARD_HASH = "xxh3_128"
MAX_SHARD_BYTES = (1 << 32) - 1


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """One shard of a dataset."""

    path: str
    """Relative to the root, such as shards/07/shard.00000.mds."""
    num_windows: int
    """Windows in the shard, at least 1."""
    shard_bytes: int
    """Size of the file in bytes."""
    first_sample_offset: int
    """Byte at which the first sample starts."""
    shard_hash: str
    """Hex digest of the file, xxh3_128."""
    checksum_seed: int
    """64 bits: window i of the shard has a checksum with the seed checksum_seed + i."""


def sample_dtype(window_tokens: int, token_dtype: TokenDtype) -> np.dtype[Any]:
    """The packed layout of one sample, as a numpy structured dtype."""
    tokens = np.dtype(token_dtype).newbyteorder("<")
    return np.dtype([("checksum", "<u4"), ("cluster", "<u4"), ("tokens", tokens, (window_tokens,))])


def encode_samples(tokens: NDArray[Any], clusters: NDArray[Any]) -> NDArray[Any]:
    """Pack windows into samples, whose checksums `write_shard` fills in, because they depend on the place.

    Args:
        tokens: [num_windows, window_tokens], uint16 or uint32.
        clusters: [num_windows], leaf ids.

    Returns:
        [num_windows] of `sample_dtype`, checksums 0.
    """
    name: TokenDtype = "uint32" if tokens.dtype == np.uint32 else "uint16"
    if tokens.dtype != np.dtype(name):
        raise TypeError(f"tokens must be uint16 or uint32, got {tokens.dtype}")
    samples = np.empty(len(tokens), sample_dtype(tokens.shape[1], name))
    samples["tokens"] = tokens
    samples["cluster"] = clusters
    samples["checksum"] = 0
    return samples


def _columns(window_tokens: int, token_dtype: TokenDtype) -> dict[str, Any]:
    return {
        "column_encodings": ["uint32", "uint32", f"ndarray:{token_dtype}:{window_tokens}"],
        "column_names": ["checksum", "cluster", "tokens"],
        "column_sizes": [4, 4, window_tokens * np.dtype(token_dtype).itemsize],
        "compression": None,
        "format": "mds",
        "hashes": [SHARD_HASH],
        "size_limit": None,
        "version": 2,
    }


def header_bytes(num_windows: int, window_tokens: int, token_dtype: TokenDtype) -> bytes:
    """Make the bytes of a shard before its first sample."""
    config = json.dumps(_columns(window_tokens, token_dtype), sort_keys=True).encode()
    sample_bytes = sample_dtype(window_tokens, token_dtype).itemsize
    first_offset = 4 + 4 * (num_windows + 1) + len(config)
    offsets = first_offset + sample_bytes * np.arange(num_windows + 1, dtype=np.uint64)
    if offsets[-1] > MAX_SHARD_BYTES:
        raise ValueError(f"a shard of {num_windows} windows has {offsets[-1]} bytes; MDS allows {MAX_SHARD_BYTES}")
    return np.uint32(num_windows).tobytes() + offsets.astype("<u4").tobytes() + config


def max_windows_per_shard(shard_bytes: int, window_tokens: int, token_dtype: TokenDtype) -> int:
    """Count the windows that fit in a shard of at most `shard_bytes` (at least 1)."""
    config_bytes = len(header_bytes(0, window_tokens, token_dtype)) - 8
    per_window = sample_dtype(window_tokens, token_dtype).itemsize + 4
    return max(1, (shard_bytes - 8 - config_bytes) // per_window)


def write_shard(path: Path, samples: NDArray[Any], *, root: Path, identity: int) -> ShardRow:
    """Write one shard under its final name, whole or not at all, and fill the checksums of its samples in.

    Args:
        path: the file, below `root`.
        samples: [num_windows] of `sample_dtype`, in stored order.
        root: the dataset root that the returned path is relative to.
        identity: 64 bits that follow from all windows of the write.
    """
    name = path.relative_to(root).as_posix()
    seed = shard_seed(identity, name)
    samples["checksum"] = checksums(samples, window_seeds(seed, 0, len(samples)))
    token_dtype: TokenDtype = "uint32" if samples["tokens"].dtype.itemsize == 4 else "uint16"
    header = header_bytes(len(samples), samples["tokens"].shape[1], token_dtype)
    body = np.ascontiguousarray(samples).view(np.uint8).reshape(-1).data
    hasher = xxhash.xxh3_128(header)
    hasher.update(body)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(header)
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return ShardRow(
        path=name,
        num_windows=len(samples),
        shard_bytes=len(header) + len(body),
        first_sample_offset=len(header),
        shard_hash=hasher.hexdigest(),
        checksum_seed=seed,
    )


def index_bytes(rows: list[ShardRow], *, below: str, window_tokens: int, token_dtype: TokenDtype) -> bytes:
    """An MDS index.json over `rows`, with basenames relative to the folder `below` ("shards" or "shards/07")."""
    columns = _columns(window_tokens, token_dtype)
    shards = [
        {
            **columns,
            "raw_data": {
                "basename": row.path.removeprefix(below + "/"),
                "bytes": row.shard_bytes,
                "hashes": {SHARD_HASH: row.shard_hash},
            },
            "samples": row.num_windows,
            "zip_data": None,
        }
        for row in rows
    ]
    return json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()
