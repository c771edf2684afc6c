"""The dataset of a run, whose counts of samples are those of the schedule."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from crisp_stream.loading.mixture_dataset import MixtureDataset
from crisp_stream.training.start import START_KEY, RunStart


class RunStream(MixtureDataset):
    """A MixtureDataset that Composer saves and restores: its number of samples is that of the schedule."""

    def __init__(self, *args: Any, start: RunStart, **options: Any) -> None:
        """`start`: counts at which the run began; the others as of MixtureDataset."""
        super().__init__(*args, **options)
        self.start = start

    def state_dict(self, num_samples: int | None = None, from_beginning: bool = True) -> dict[str, Any]:
        """Composer calls this at every checkpoint, with the samples that it has counted."""
        position = None if num_samples is None else num_samples - self.start.samples + self.start.position
        return {**super().state_dict(position, from_beginning), START_KEY: asdict(self.start)}
