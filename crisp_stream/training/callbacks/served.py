"""Compare the mixture that was served with the mixture of the recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from crisp_stream.format.sources import Sources
from crisp_stream.histograms.mixture import Mixture

if TYPE_CHECKING:
    from crisp_stream.histograms.mixture import Data


def total_variation(served_per_leaf: NDArray[np.int64], proportions: NDArray[np.float64]) -> float:
    """Half the L1 distance between served leaf frequencies and the proportions of a mixture, in [0, 1].

    Args:
        served_per_leaf: [num_leaves], windows.
        proportions: [num_leaves], sums to 1.
    """
    total = int(served_per_leaf.sum())
    return math.nan if total == 0 else float(np.abs(served_per_leaf / total - proportions).sum() / 2)


FEW_LEAVES = 1 << 20
"""Up to here the mixture error is computed at every log_interval (10 to 30 ms at 2^20 leaves), beyond it at every
sixteenth."""


class ServedMixture:
    """Distance of the windows served from the mixture of the recipe: since the start, and within each phase.

    Total variation between leaf frequencies, in [0, 1].
    """

    def __init__(self, mixture: Mixture, data: Data, *, position: int = 0) -> None:
        """Args:
        mixture: of the recipe.
        data: the dataset, or the sources; leaves are those of one after the other.
        position: place in the order of samples where the run began; nothing was served here of phases before it.
        """
        self._mixture, self._sources = mixture, Sources.of(data)
        self.position = position
        """Place in the order of samples where the counts begin."""
        self._served_before = np.zeros(int(self._sources.first_rows[-1]), np.int64)
        self._wanted_before: NDArray[np.float64] | None = None
        self._proportions: tuple[int, NDArray[np.float64]] | None = None
        ends = np.cumsum([phase.samples or 0 for phase in mixture.phases]).tolist()
        self._ends = [end if phase.samples else None for phase, end in zip(mixture.phases, ends, strict=True)]
        self._finished: list[float | None] = [None for end in self._ends if end is not None and end <= position]

    @property
    def phase(self) -> int:
        """Number of the phase that is being served, from 0."""
        return min(len(self._finished), len(self._ends) - 1)

    def advance(self, served_per_leaf: NDArray[np.int64], samples: int) -> None:
        """Note the ends of phases. Called at the start and after every batch: phases end between batches.

        Args:
            served_per_leaf: [num_leaves], windows since the start of the run.
            samples: their sum.
        """
        while (end := self._next_end()) is not None and end <= self.position + samples:
            # Beyond its end a phase can only be where a checkpoint of other phases is continued.
            self._finished.append(self._phase_error(served_per_leaf) if end == self.position + samples else None)
            self._served_before = served_per_leaf.copy()
            self._wanted_before = None

    def _next_end(self) -> int | None:
        """Position at which the phase that is being served ends; None: at no known one, or it was the last."""
        return self._ends[len(self._finished)] if len(self._finished) < len(self._ends) else None

    def error(self, served_per_leaf: NDArray[np.int64]) -> float:
        """Error since the start of the run: distance from the sum of the phases' mixtures so far."""
        samples = int(served_per_leaf.sum())
        per_phase = samples_per_phase(self._mixture, self.position, samples)
        current = self.phase
        if self._wanted_before is None:
            self._wanted_before = np.zeros(len(served_per_leaf))
            for index in range(current):
                self._wanted_before += per_phase[index] * self._proportions_of(index)
        wanted = self._wanted_before + per_phase[current] * self._proportions_of(current)
        return float(np.abs(served_per_leaf - wanted).sum() / (2 * max(samples, 1)))

    def errors_of_phases(self, served_per_leaf: NDArray[np.int64]) -> dict[int, float]:
        """Error of every phase that was served from, by its number; of the last one, the error so far."""
        errors = {index: error for index, error in enumerate(self._finished) if error is not None}
        if len(self._finished) < len(self._ends) and not np.array_equal(served_per_leaf, self._served_before):
            errors[self.phase] = self._phase_error(served_per_leaf)
        return errors

    def _phase_error(self, served_per_leaf: NDArray[np.int64]) -> float:
        served = served_per_leaf - self._served_before
        samples = max(int(served.sum()), 1)
        return float(np.abs(served - samples * self._proportions_of(self.phase)).sum() / (2 * samples))

    def _proportions_of(self, index: int) -> NDArray[np.float64]:
        if self._proportions is None or self._proportions[0] != index:
            self._proportions = (index, self._mixture.proportions_of_phase(index, self._sources))
        return self._proportions[1]

    def state_dict(self) -> dict[str, Any]:
        """Finished phases, and what had been served when the last of them ended."""
        rows = np.flatnonzero(self._served_before)
        leaves, source = self._sources.leaves_of(rows)
        return {
            "finished": list(self._finished),
            "leaves": torch.from_numpy(leaves),
            "served_before": torch.from_numpy(self._served_before[rows]),
            **({"sources": torch.from_numpy(source)} if self._sources.is_named else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._finished = list(state["finished"])
        source = state["sources"].numpy() if "sources" in state else None  # None: of one dataset, the first
        rows = self._sources.rows_of(state["leaves"].numpy(), source)
        self._served_before[:] = 0
        self._served_before[rows] = state["served_before"].numpy()


def drawable_per_leaf(mixture: Mixture, sources: Sources) -> NDArray[np.int64]:
    """[num_leaves], the windows of each leaf that can be drawn, of one source after the other: all, or of a source of
    which all components have one selection, the selected ones. (Of several selections all windows are counted.)"""
    drawable = []
    for index, dataset in enumerate(sources.datasets):
        own = [part for part in mixture.components if sources.index(part.source, what="a component") == index]
        selections = {part.windows for part in own}
        only = selections.pop() if len(selections) == 1 else None
        drawable.append(dataset.windows_per_leaf if only is None else only.selected_per_leaf(dataset))
    return drawable[0] if len(drawable) == 1 else np.concatenate(drawable)


def samples_per_phase(mixture: Mixture, position: int, samples: int) -> list[int]:
    """Split the samples from a position on among the phases: the number of each."""
    served, phase_start, end = [], 0, position + samples
    for phase in mixture.phases:
        phase_end = end if phase.samples is None else phase_start + phase.samples
        served.append(max(0, min(phase_end, end) - max(phase_start, position)))
        phase_start = phase_end
    return served
