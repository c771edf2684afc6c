"""All windows of a dataset, read once in parallel: some of a shard at a time, verified, without a cache folder.

A part is a few MB of one shard, so that processes share also a single shard. What does not match its checksum is read
again by the dataset's reader, which mends or explains it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.mds import checksums, sample_dtype
from crisp_stream.inspection.window_texts import WindowDecoder
from crisp_stream.loading.reader import read_windows


class DatasetKey(NamedTuple):
    """Name by which other processes open a dataset."""

    root: str
    generation: int
    fingerprint: str

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetKey:
        """Make the key of an opened dataset."""
        return cls(dataset.root, dataset.manifest.generation, dataset.manifest.fingerprint)


@lru_cache(maxsize=1)
def opened(key: DatasetKey) -> tuple[Dataset, WindowDecoder]:
    """Open a dataset and its decoder, and keep both for the next task of this process.

    Raises:
        InputError: the dataset is no longer the one of the key. FormatError, StorageError: as `open_dataset`.
    """
    dataset = open_dataset(key.root, generation=key.generation)
    if dataset.manifest.fingerprint != key.fingerprint:
        raise InputError(f"{key.root}: the dataset was replaced while it was read. Check it again.")
    return dataset, WindowDecoder(dataset)


def read_tokens(dataset: Dataset, shard: int, start: int, count: int) -> NDArray[Any]:
    """Read and verify `count` windows of a row of the shard table, from its window `start` on: [count, window_tokens].

    Raises:
        CorruptDataError, StorageError: they cannot be read.
    """
    row = dataset.shards[shard]
    dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
    size = count * dtype.itemsize
    content = dataset.store.get_range(row.path, row.first_sample_offset + start * dtype.itemsize, size)
    if len(content) == size:
        samples = np.frombuffer(content, dtype)
        if (checksums(samples) == samples["checksum"]).all():
            return samples["tokens"]
    first = int(dataset.first_window_per_shard[shard]) + start
    return read_windows(dataset, np.arange(first, first + count))["tokens"]
