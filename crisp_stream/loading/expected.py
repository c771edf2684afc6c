"""What the windows of some places must be, and the error where they are not."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crisp_stream.errors import CorruptDataError, CrispError
from crisp_stream.format.checksums import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crisp_stream.format.dataset import Dataset


class Expected(NamedTuple):
    """The places of some windows, and what follows from them; arrays of [num_windows]."""

    window_ids: NDArray[np.int64]
    shards: NDArray[np.int64]
    """Rows of the shard table."""
    seeds: NDArray[np.uint64]
    """Of the checksums."""
    leaves: NDArray[np.uint32]

    @classmethod
    def of(cls, dataset: Dataset, window_ids: NDArray[np.int64], leaves: NDArray[np.uint32]) -> Expected:
        """Look up the places of windows whose leaves are known."""
        shards = dataset.shard_of_windows(window_ids)
        return cls(window_ids, shards, dataset.checksum_seeds(window_ids, shards), leaves)

    def at(self, windows: NDArray[np.intp]) -> Expected:
        """Some of the windows."""
        return Expected(self.window_ids[windows], self.shards[windows], self.seeds[windows], self.leaves[windows])

    def wrong(self, samples: NDArray[Any]) -> NDArray[np.bool_]:
        """Where samples [num_windows] are not these windows, whole and in their places."""
        return damaged(samples, self.seeds) | (samples["cluster"] != self.leaves)

    def error(self, dataset: Dataset, wrong: NDArray[np.bool_]) -> CorruptDataError:
        """Make the error that names the first wrong window, and why it may be wrong."""
        window, shard = int(self.window_ids[wrong][0]), int(self.shards[wrong][0])
        row, size = dataset.shards[shard], dataset.manifest.sample_bytes
        start = row.first_sample_offset + (window - int(dataset.first_window_per_shard[shard])) * size
        where = f"{dataset.root}/{row.path}: window {window} (bytes {start}-{start + size - 1})"
        if _is_replaced(dataset):
            return CorruptDataError(
                f"{where} is of another dataset: {dataset.root} was replaced while it was read. Restore the dataset "
                "that was opened, or start anew with the other one."
            )
        return CorruptDataError(
            f"{where} does not match its checksum. The shard is damaged: run crisp-stream verify, and restore it from "
            "a copy or write the dataset again."
        )


def _is_replaced(dataset: Dataset) -> bool:
    with contextlib.suppress(CrispError):
        return dataset.is_replaced()
    return False
