"""Batches as torch tensors, and how they travel from a DataLoader worker: as they stood in the shard.

Tokens are 2 bytes in a shard and twice 8 as input_ids and labels. DataLoader moves each tensor through a shared memory
file, whose descriptor is handed over through an authenticated socket: measured, 40 µs of CPU time for a sample, and
where the path of TMPDIR is too long for a socket the batch is lost and the loader waits for ever. The samples as they
are, through mapped slots (slots.py), become tensors where they arrive.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data._utils.collate import default_collate_fn_map

from crisp_stream.errors import InputError
from crisp_stream.loading.slots import Place, Slots, taken

if TYPE_CHECKING:
    from crisp_stream.order.draws import Int64s

IGNORED_LABEL = -100
KEYS = ("input_ids", "labels", "cluster", "window")
SOURCE = "source"
"""Further key of the batches of several sources."""


class BatchLayout(NamedTuple):
    """What the batches of a stream need beside samples and window numbers."""

    masked_after: int | None = None
    """Labels after the first token of this id are ignored (document packing); None: none are."""
    first_windows: NDArray[np.int64] | None = None
    """[num_sources + 1], the number of each source's first window; None: one source, of which batches say nothing."""


class Batch(dict[str, torch.Tensor]):
    """A batch of a MixtureDataset: input_ids and labels [batch, window_tokens], cluster and window [batch]; of several
    sources also source [batch], the index of each sample's source, which cluster and window refer to."""


def tensors(numbers: Int64s, samples: NDArray[Any], layout: BatchLayout) -> Batch:
    """Make the tensors of a batch, all int64.

    Args:
        numbers: [batch], window numbers.
        samples: [batch] of `mds.sample_dtype`, verified.
        layout: of the stream.
    """
    tokens = samples["tokens"]
    input_ids = np.empty(tokens.shape, np.int64)
    input_ids[:] = tokens
    labels = input_ids.copy()
    if layout.masked_after is not None:
        is_end = tokens == layout.masked_after
        labels[np.cumsum(is_end, axis=1) - is_end > 0] = IGNORED_LABEL
    batch = Batch(
        {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "cluster": torch.from_numpy(samples["cluster"].astype(np.int64)),
            "window": torch.from_numpy(numbers.copy()),
        }
    )
    if layout.first_windows is not None:
        source = np.searchsorted(layout.first_windows, numbers, side="right") - 1
        batch[SOURCE] = torch.from_numpy(source)
        batch["window"] = torch.from_numpy(numbers - layout.first_windows[source])
    return batch


class PackedBatch:
    """A batch in a DataLoader worker; in the training process it arrives as the dict of `tensors`.

    Not a Mapping, which DataLoader would unpack in the worker. `batch[key]` and `dict(batch)` work for a `collate_fn`.
    """

    def __init__(
        self,
        numbers: Int64s,
        samples: NDArray[Any],
        layout: BatchLayout,
        slots: Slots | None = None,
        group: int | None = None,
    ) -> None:
        self._numbers, self._samples, self._layout = numbers, samples, layout
        self._slots, self._group = slots, group

    def keys(self) -> Iterable[str]:
        """Keys of the dict that `tensors` makes."""
        return KEYS if self._layout.first_windows is None else (*KEYS, SOURCE)

    def __getitem__(self, key: str) -> torch.Tensor:
        return tensors(self._numbers, self._samples, self._layout)[key]

    def __reduce__(self) -> tuple[Any, ...]:
        place = None
        if self._slots is not None and self._group is not None:
            place = self._slots.put(self._group, self._samples)
        content = self._samples.tobytes() if place is None else place
        return (_unpack, (self._numbers, content, self._samples.dtype, self._layout))


def _unpack(numbers: Int64s, content: bytes | Place, dtype: np.dtype[Any], layout: BatchLayout) -> Batch:
    if isinstance(content, bytes):
        return tensors(numbers, np.frombuffer(content, dtype), layout)
    placed, mark = taken(content)
    unpacked = tensors(numbers, placed.view(dtype), layout)
    mark[:] = 0
    return unpacked


def _refuse(batches: Any, **_: Any) -> Any:
    """For torch's `default_collate`, which would stack batches."""
    raise InputError(
        "a MixtureDataset yields whole batches, of its own batch_size, and a DataLoader puts them together once more. "
        "Iterate dataset.loader(num_workers=…), or DataLoader(dataset, batch_size=None)."
    )


default_collate_fn_map[Batch] = default_collate_fn_map[PackedBatch] = _refuse
