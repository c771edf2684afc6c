"""Batches as torch tensors, and how they travel from a DataLoader worker: as they stood in the shard.

Tokens are 2 bytes in a shard and twice 8 as input_ids and labels. DataLoader moves each tensor through a shared memory
file of its own; a batch that travels as one block of samples and is unpacked where it arrives costs a quarter of the
CPU time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from crisp_stream.draws import Int64s

IGNORED_LABEL = -100


class Batch(dict[str, torch.Tensor]):
    """input_ids and labels [batch, window_tokens], cluster and window [batch], all int64."""

    def __init__(self, window_ids: Int64s, samples: NDArray[Any], masked_after: int | None) -> None:
        """Args:
        window_ids: [batch].
        samples: [batch] of `mds.sample_dtype`, verified.
        masked_after: labels after the first token of this id are ignored (document packing); None: none are.
        """
        super().__init__(_tensors(window_ids, samples, masked_after))
        self._packed = (window_ids, samples, masked_after)
        self._made = dict(self)

    def __copy__(self) -> Batch:
        return self  # DataLoader copies a batch before it sends it, and would make a plain dict of it

    def __reduce__(self) -> tuple[Any, ...]:
        if self.keys() != self._made.keys() or any(self[key] is not made for key, made in self._made.items()):
            return (dict, (dict(self),))  # somebody replaced a part
        window_ids, samples, masked_after = self._packed
        block = np.concatenate([samples.view(np.uint8), window_ids.view(np.uint8)])
        return (_received, (torch.from_numpy(block), len(window_ids), samples.dtype, masked_after))

    def sample(self, row: int) -> dict[str, Any]:
        """One sample, its numbers as int."""
        return {
            "input_ids": self["input_ids"][row],
            "labels": self["labels"][row],
            "cluster": int(self["cluster"][row]),
            "window": int(self["window"][row]),
        }


def _received(
    block: torch.Tensor, batch_size: int, dtype: np.dtype[Any], masked_after: int | None
) -> dict[str, torch.Tensor]:
    content = block.numpy()
    samples = content[: batch_size * dtype.itemsize].view(dtype)
    return _tensors(content[batch_size * dtype.itemsize :].view(np.int64), samples, masked_after)


def _tensors(window_ids: Int64s, samples: NDArray[Any], masked_after: int | None) -> dict[str, torch.Tensor]:
    tokens = samples["tokens"]
    input_ids = np.empty(tokens.shape, np.int64)
    input_ids[:] = tokens
    labels = input_ids.copy()
    if masked_after is not None:
        is_end = tokens == masked_after
        labels[np.cumsum(is_end, axis=1) - is_end > 0] = IGNORED_LABEL
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "cluster": torch.from_numpy(samples["cluster"].astype(np.int64)),
        "window": torch.from_numpy(window_ids.copy()),
    }
