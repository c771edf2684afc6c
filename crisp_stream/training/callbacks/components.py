"""What each component of the mixture gave: windows, predicted tokens and loss, phase by phase.

A batch says the source, the cluster and the window of each sample. Components of different sources are told apart by
that exactly. Where several components of one source can draw a window, the sample is split between them by how often
each would draw it. The alternative, to look every position up in the order, would compute the order twice.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crisp_stream.format.sources import Sources
from crisp_stream.histograms.mixture import Mixture, Part

WEIGHTS = "component_weights"
"""Key of a batch: [batch, num_components of the phase], the part of each sample that each component gave."""


class ComponentWeights:
    """The part of each sample that each component of a phase gave."""

    def __init__(self, mixture: Mixture, sources: Sources) -> None:
        self._mixture, self._sources = mixture, sources
        self._phase: tuple[int, list[Part], list[_Rates | None]] | None = None

    def of(
        self,
        phase: int,
        source: NDArray[np.integer[Any]],
        cluster: NDArray[np.integer[Any]],
        window: NDArray[np.integer[Any]],
    ) -> NDArray[np.float64]:
        """[batch, num_components], sums to 1 over the components.

        Args:
            phase: number of the phase that the batch is of, from 0.
            source: [batch], index of each sample's source.
            cluster: [batch], its leaf there.
            window: [batch], its window id there.
        """
        parts, rates = self._of_phase(phase)
        weights = np.zeros((len(source), len(parts)))
        for number, (part, rate) in enumerate(zip(parts, rates, strict=True)):
            own = source == part.source
            weights[own, number] = 1.0 if rate is None else rate.of(cluster[own], window[own])
        totals = weights.sum(axis=1, keepdims=True)
        return np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)

    def _of_phase(self, phase: int) -> tuple[list[Part], list[_Rates | None]]:
        if self._phase is None or self._phase[0] != phase:
            parts = self._mixture.parts_of_phase(phase, self._sources)
            sources = [part.source for part in parts]
            rates = [
                _Rates(part, self._mixture.proportions_of_part(part, phase, number, self._sources))
                if sources.count(part.source) > 1
                else None
                for number, part in enumerate(parts)
            ]
            self._phase = phase, parts, rates
        return self._phase[1], self._phase[2]


class _Rates:
    """How often a component draws each window that it can draw, relative to the others of its source."""

    def __init__(self, part: Part, proportions: NDArray[np.float64]) -> None:
        self._leaves = part.counts.leaves
        self._rates = part.share * proportions / part.counts.windows
        windows = part.component.windows
        self._words = None if windows is None else windows.bits.words

    def of(self, cluster: NDArray[np.integer[Any]], window: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """[num_windows], 0 for windows that it does not draw."""
        rows = np.minimum(np.searchsorted(self._leaves, cluster), len(self._leaves) - 1)
        rates = np.where(self._leaves[rows] == cluster, self._rates[rows], 0.0)
        if self._words is not None:
            ids = window.astype(np.int64)
            rates *= (self._words[ids >> 6] >> (ids & 63).astype(np.uint64)) & np.uint64(1)
        return rates


@dataclass(frozen=True, kw_only=True)
class ComponentCounts:
    """What a component gave in a phase."""

    windows: float
    """Windows served; not whole where samples are split between components."""
    tokens: float
    """Predicted tokens; 0 where losses are not kept."""
    loss: float | None
    """Mean loss in nats per predicted token; None where losses are not kept, or nothing was served."""


class ComponentAccount:
    """Windows, tokens and losses by phase and component, over all ranks and resumed parts."""

    def __init__(self, mixture: Mixture) -> None:
        lengths = [len(phase.components) for phase in mixture.phases]
        self._first = np.cumsum([0, *lengths]).tolist()
        self._sums = np.zeros((self._first[-1], 3))
        self.most_components = max(lengths)
        """Components of the phase that has most."""

    def add(self, phase: int, sums: NDArray[np.float64]) -> None:
        """Add a batch: [num_components or more, 3] windows, predicted tokens, summed loss in nats."""
        first, stop = self._first[phase : phase + 2]
        self._sums[first:stop] += sums[: stop - first]

    def of_phase(self, phase: int) -> list[ComponentCounts]:
        """What each component of a phase gave."""
        first, stop = self._first[phase : phase + 2]
        return [
            ComponentCounts(windows=windows, tokens=tokens, loss=loss / tokens if tokens else None)
            for windows, tokens, loss in self._sums[first:stop].tolist()
        ]

    def state_dict(self) -> dict[str, Any]:
        """The sums of the phases, each a row for each of its components."""
        return {"sums": torch.from_numpy(self._sums.copy()), "first": list(self._first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, of a mixture whose phases up to there are the same."""
        saved = state["sums"].numpy()
        for phase, (first, stop) in enumerate(itertools.pairwise(state["first"])):
            if phase + 1 < len(self._first) and stop - first == self._first[phase + 1] - self._first[phase]:
                self._sums[self._first[phase] : self._first[phase + 1]] = saved[first:stop]
