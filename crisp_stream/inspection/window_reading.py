"""All windows of a dataset, read once in parallel: some of a shard at a time, verified, without a cache folder.

A part is a few MB of one shard, so that processes share also a single shard. What does not match its checksum is read
again by the dataset's reader, which mends or explains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.checksums import damaged, window_seeds
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.mds import sample_dtype
from crisp_stream.inspection.window_texts import WindowDecoder
from crisp_stream.loading.reader import read_windows

_PART_BYTES = 8 << 20
_DECODED_WINDOWS = 256


class DatasetKey(NamedTuple):
    """Name by which other processes open a dataset."""

    root: str
    generation: int
    fingerprint: str

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetKey:
        """Make the key of an opened dataset."""
        return cls(dataset.root, dataset.manifest.generation, dataset.manifest.fingerprint)


class ShardPart(NamedTuple):
    """Some consecutive windows of a shard: the work of one task."""

    dataset: DatasetKey
    shard: int
    start: int
    """First window, counted in the shard."""
    num_windows: int


class DecodedWindows(NamedTuple):
    """The text of a few windows."""

    first: int
    """Row of the first window among those that were decoded."""
    num_windows: int
    texts: list[str]
    """[num_texts], see `WindowDecoder.documents`."""
    owners: NDArray[np.int64]
    """[num_texts], the window of each text, counted from `first`."""
    text_bytes: int
    """UTF-8 bytes of the texts."""


def parts_of(dataset: Dataset) -> Iterator[ShardPart]:
    """Cut all windows of a dataset into parts of a few MB."""
    key, most = DatasetKey.of(dataset), max(1, _PART_BYTES // dataset.manifest.sample_bytes)
    for shard, row in enumerate(dataset.shards):
        for start in range(0, row.num_windows, most):
            yield ShardPart(key, shard, start, min(most, row.num_windows - start))


def parts_between(dataset: Dataset, first: int, stop: int) -> Iterator[ShardPart]:
    """Cut the windows `first` to `stop` - 1 into parts of a few MB, in their order."""
    key, most = DatasetKey.of(dataset), max(1, _PART_BYTES // dataset.manifest.sample_bytes)
    while first < stop:
        shard = int(np.searchsorted(dataset.first_window_per_shard, first, side="right")) - 1
        start = first - int(dataset.first_window_per_shard[shard])
        count = min(most, stop - first, dataset.shards[shard].num_windows - start)
        yield ShardPart(key, shard, start, count)
        first += count


def decoded(decoder: WindowDecoder, tokens: NDArray[Any]) -> Iterator[DecodedWindows]:
    """Decode windows [num_windows, window_tokens], a few at a time."""
    for first in range(0, len(tokens), _DECODED_WINDOWS):
        windows = tokens[first : first + _DECODED_WINDOWS]
        texts, owners = decoder.documents(windows)
        yield DecodedWindows(first, len(windows), texts, owners, _utf8_bytes(texts))


def _utf8_bytes(texts: Sequence[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)


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


def read_tokens(dataset: Dataset, part: ShardPart) -> NDArray[Any]:
    """The tokens of the windows of a part, verified.

    Returns:
        [part.num_windows, window_tokens].

    Raises:
        CorruptDataError, StorageError: they cannot be read.
    """
    row = dataset.shards[part.shard]
    dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
    size = part.num_windows * dtype.itemsize
    content = dataset.store.get_range(row.path, row.first_sample_offset + part.start * dtype.itemsize, size)
    if len(content) == size:
        samples = np.frombuffer(content, dtype)
        if not damaged(samples, window_seeds(row.checksum_seed, part.start, part.num_windows)).any():
            return samples["tokens"]
    first = first_window(dataset, part)
    return read_windows(dataset, np.arange(first, first + part.num_windows))["tokens"]


def first_window(dataset: Dataset, part: ShardPart) -> int:
    """The first window of a part, counted in the dataset."""
    return int(dataset.first_window_per_shard[part.shard]) + part.start
