"""The terms of a dataset's clusters, from its shards, before its manifest stands."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError, MissingObjectError
from crisp_stream.format.checksums import damaged, window_seeds
from crisp_stream.format.mds import TokenDtype, sample_dtype
from crisp_stream.storage.store import open_store
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.stages.shards import ShardsSummary
from crisp_stream.writers.tree.terms import Layout, TextSource, find_terms

_REQUESTS_AT_ONCE = 16


def terms_table(
    shards: ShardsSummary,
    tree: ClusterTree,
    *,
    roots: Sequence[str],
    tokenizer_json: Path,
    eot_token: str,
    window_tokens: int,
    token_dtype: TokenDtype,
) -> bytes:
    """The content of provenance/terms.parquet.

    Args:
        shards: all shards of the dataset.
        tree: that their windows are sorted by.
        roots: where shards are: each in the first of them that has it.
        tokenizer_json: of the dataset.
        eot_token: its end-of-text token.
        window_tokens, token_dtype: of a window.

    Raises:
        CorruptDataError: a window does not match its checksum. StorageError.
    """
    layout = Layout(leaves=shards.leaves, windows_per_leaf=shards.windows_per_leaf, arity=tree.arity, depth=tree.depth)
    reader = _ShardReader(shards, roots, sample_dtype(window_tokens, token_dtype))
    source = TextSource(read_tokens=reader.read, tokenizer_json=tokenizer_json, eot_token=eot_token)
    return find_terms(layout, source).to_parquet()


class _Stretch(NamedTuple):
    """Consecutive windows of a shard."""

    shard: int
    start: int
    """First window, counted in the shard."""
    num_windows: int


class _ShardReader:
    """Reads windows of shards that are not published yet, or of several roots."""

    def __init__(self, shards: ShardsSummary, roots: Sequence[str], dtype: np.dtype[Any]) -> None:
        self._rows, self._dtype = shards.rows, dtype
        self._stores = [open_store(root) for root in dict.fromkeys(roots)]
        counts = np.array([row.num_windows for row in shards.rows], np.int64)
        self._first_per_shard = np.cumsum(counts) - counts

    def read(self, windows: NDArray[np.int64]) -> NDArray[Any]:
        """[num_windows, window_tokens] of sorted windows, neighbours in one request."""
        shard = np.searchsorted(self._first_per_shard, windows, side="right") - 1
        begins = np.flatnonzero(np.append(True, (np.diff(windows) != 1) | (np.diff(shard) != 0)))
        ends = np.append(begins[1:], len(windows))
        starts = windows[begins] - self._first_per_shard[shard[begins]]
        stretches = map(_Stretch, shard[begins].tolist(), starts.tolist(), (ends - begins).tolist())
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            return np.concatenate(list(pool.map(self._stretch, stretches)))

    def _stretch(self, stretch: _Stretch) -> NDArray[Any]:
        row, size = self._rows[stretch.shard], self._dtype.itemsize
        content = self._bytes(row.path, row.first_sample_offset + stretch.start * size, stretch.num_windows * size)
        seeds = window_seeds(row.checksum_seed, stretch.start, stretch.num_windows)
        if len(content) == stretch.num_windows * size:
            samples = np.frombuffer(content, self._dtype)
            if not damaged(samples, seeds).any():
                return samples["tokens"]
        raise CorruptDataError(
            f"{row.path}: windows {stretch.start} to {stretch.start + stretch.num_windows - 1} do not match their "
            "checksums. Restore the file."
        )

    def _bytes(self, path: str, start: int, length: int) -> bytes:
        *others, last = self._stores
        for store in others:
            try:
                return store.get_range(path, start, length)
            except MissingObjectError:
                continue
        return last.get_range(path, start, length)
