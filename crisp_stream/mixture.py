"""Mixtures: which histogram decides the samples, and for how long."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histogram import Histogram

if TYPE_CHECKING:
    from crisp_stream.format import Dataset, Manifest

Draw = Literal["systematic", "multinomial"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one histogram."""

    histogram: Histogram
    """Whose proportions the samples follow. (A Mixture of one phase stands for its histogram.)"""
    samples: int | None = None
    """How many samples over all ranks; None: until training stops."""

    def __post_init__(self) -> None:
        if isinstance(self.histogram, Mixture):
            if len(self.histogram.phases) != 1:
                raise InputError(f"a phase needs one histogram, got a mixture of {len(self.histogram.phases)} phases.")
            object.__setattr__(self, "histogram", self.histogram.phases[0].histogram)
        if self.samples is not None and self.samples < 1:
            raise InputError(f"a phase needs at least 1 sample, got {self.samples}. Leave the phase out.")


@dataclass(frozen=True)
class Mixture:
    """Phases in order; the last may be open-ended.

    Raises:
        InputError: no phases, an open-ended phase before the last, histograms of different trees.
    """

    phases: Sequence[Phase]
    draw: Draw = field(default="systematic", kw_only=True)
    """systematic: counts per block within 1 of their share. multinomial: the i.i.d. draws of Algorithm 1."""
    max_missing_mass: float = field(default=0.05, kw_only=True)
    """The largest share of a histogram that may stand on clusters without windows; it is redistributed in
    proportion."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        if not self.phases:
            raise InputError("a mixture needs at least one phase, got none.")
        if self.draw not in ("systematic", "multinomial"):
            raise InputError(f"draw must be systematic or multinomial, got {self.draw!r}.")
        for number, phase in enumerate(self.phases[:-1], 1):
            if phase.samples is None:
                raise InputError(
                    f"phase {number} of {len(self.phases)} has no number of samples; only the last may be open."
                )
        trees = {phase.histogram.tree_fingerprint for phase in self.phases}
        if len(trees) != 1:
            raise InputError(f"the phases' histograms must come from one tree, got {len(trees)}.")

    @classmethod
    def base(cls, manifest: Manifest) -> Mixture:
        """The generalist corpus in its own proportions."""
        return cls([Phase(Histogram.base(manifest))])

    @classmethod
    def from_histogram(cls, histogram: Histogram, *, draw: Draw = "systematic") -> Mixture:
        """One open-ended phase: CRISP training for one task."""
        return cls([Phase(histogram)], draw=draw)

    @property
    def num_samples(self) -> int | None:
        """Samples of all phases over all ranks; None when the last is open-ended."""
        return None if self.phases[-1].samples is None else sum(phase.samples or 0 for phase in self.phases)

    @property
    def fingerprint(self) -> str:
        """sha256 over the histograms, their samples and the way of drawing."""
        parts = [[phase.histogram.fingerprint, phase.samples] for phase in self.phases]
        return hashlib.sha256(json.dumps([self.draw, parts]).encode()).hexdigest()

    def leaf_proportions(self, dataset: Dataset) -> list[NDArray[np.float64]]:
        """Proportions of every phase over the dataset's non-empty leaves.

        Args:
            dataset: an opened dataset.

        Returns:
            For each phase [num_leaves] float64, in the order of `dataset.leaves`, summing to 1.

        Raises:
            InputError: a histogram of another tree, or more than `max_missing_mass` on clusters without windows.
        """
        return [self._expand(number, phase, dataset) for number, phase in enumerate(self.phases, 1)]

    def _expand(self, number: int, phase: Phase, dataset: Dataset) -> NDArray[np.float64]:
        histogram = phase.histogram
        if histogram.tree_fingerprint != dataset.manifest.tree_fingerprint:
            raise InputError(
                f"phase {number}: the histogram was counted with tree {histogram.tree_fingerprint[:12]}, "
                f"{dataset.root} has {dataset.manifest.tree_fingerprint[:12]}. "
                f"Count it again with --data {dataset.root}"
            )
        proportions, missing = histogram.expand(dataset.leaves, dataset.windows_per_leaf)
        if missing > 0:
            nodes = histogram.missing_nodes(dataset.leaves)
            what = (
                f"phase {number}: {missing:.1%} of the histogram stands on {len(nodes)} clusters of level "
                f"{histogram.level} without windows in {dataset.root} (such as cluster {nodes[0]})"
            )
            if missing > self.max_missing_mass:
                raise InputError(
                    f"{what}; the limit is {self.max_missing_mass:.1%}. Use a coarser level, or write more documents."
                )
            log.warning("%s; it is redistributed over the others in proportion.", what)
        return proportions / proportions.sum()
