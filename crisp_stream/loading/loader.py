"""MixtureLoader: a DataLoader that says where iterations begin, and knows what it has delivered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from crisp_stream.errors import StorageError


class CountedDataset(Protocol):
    """What a loader needs of its dataset, a MixtureDataset."""

    def begin_iteration(self, num_workers: int) -> int: ...

    def delivered(self, position: int) -> int: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, obj: dict[str, Any]) -> None: ...

    def __len__(self) -> int: ...


class MixtureLoader(DataLoader[dict[str, torch.Tensor]]):
    """Batches of a MixtureDataset, from where it stands to the end of the pass. Made by `MixtureDataset.loader`."""

    dataset: Any
    """What is iterated: a `CountedDataset`."""

    _is_accelerate_prepared = True
    """Accelerate leaves such loaders alone. It would deal the batches to the ranks, and these are dealt already."""

    waited = 0.0
    """Seconds that this process has spent in `next`, in all iterations."""

    def __init__(self, dataset: CountedDataset, **options: Any) -> None:
        super().__init__(dataset, batch_size=None, **options)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        position = self.dataset.begin_iteration(self.num_workers) if self.num_workers else None
        return self._delivered(position, super().__iter__())

    def _delivered(self, position: int | None, batches: Any) -> Iterator[dict[str, torch.Tensor]]:
        """`position` is that of the first batch; None: the dataset itself takes note of what it delivers."""
        number = 0
        while True:
            started = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                raise self._late(number % self.num_workers, batches) from error
            finally:
                self.waited += time.monotonic() - started
            number += 1
            if position is not None:
                position = self.dataset.delivered(position)
            yield batch

    def _late(self, worker: int, batches: Any) -> StorageError:
        process = getattr(batches, "_workers", [None] * self.num_workers)[worker]
        how = "" if process is None else f" (process {process.pid}, {_condition(process)})"
        return StorageError(
            f"no batch from DataLoader worker {worker} of {self.num_workers}{how} within {self.timeout:.0f} s. Its "
            "reads stall, or what it made was lost on the way: see its messages above, or raise timeout=."
        )

    def __len__(self) -> int:
        """Number of batches of a whole pass. Raises TypeError: the mixture has no end."""
        return len(self.dataset)

    def __bool__(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        """Say where the stream stands after what was delivered: `MixtureDataset.state_dict()`."""
        return self.dataset.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, at the next iteration: `MixtureDataset.load_state_dict`. Raises ResumeError."""
        self.dataset.load_state_dict(state_dict)


def _condition(process: Any) -> str:
    return "still running" if process.is_alive() else f"ended with exit code {process.exitcode}"
