"""Mixtures: phases in order, and the components that each draws from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.component import (
    Component,
    Drawn,
    LeafCounts,
    drawn_within_repeats,
    has_windows,
    report_missing,
)
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.phase import Phase, Shape, scheduled

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.manifest import Manifest

    Data = Dataset | Mapping[str, Dataset] | Sources
    """One dataset, or several by name."""

Draw = Literal["systematic", "multinomial"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component as it is drawn: limits are kept, and what others cannot take is shared out."""

    component: Component
    source: int
    """Index of its source."""
    share: float
    histogram: Histogram
    counts: LeafCounts
    """The windows that its mass is spread over."""

    def proportions(self, *, what: str, max_missing_mass: float, dataset: Dataset) -> NDArray[np.float64]:
        """[num_leaves of `counts`], summing to 1. Raises InputError: more than `max_missing_mass` has no windows."""
        proportions, missing = self.histogram.expand(*self.counts)
        if missing > 0:
            report_missing(
                self.histogram,
                dataset,
                missing,
                limit=max_missing_mass,
                what=what,
                selection=self.component.windows,
            )
        return proportions / proportions.sum()


@dataclass(frozen=True)
class Mixture:
    """Phases in order; the last may be open-ended.

    Raises:
        InputError: no phases, an open-ended phase before the last, histograms of one source from different trees.
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
        trees: dict[str, set[str]] = {}
        for component in self.components:
            trees.setdefault(component.source, set()).add(component.histogram.tree_fingerprint)
        for source, found in trees.items():
            if len(found) != 1:
                of_source = f" of source {source}" if source else ""
                raise InputError(f"the phases' histograms{of_source} must come from one tree, got {len(found)}.")

    @classmethod
    def base(cls, manifest: Manifest) -> Mixture:
        """The generalist corpus in the proportions that it has."""
        return cls([Phase(Histogram.base(manifest))])

    @classmethod
    def from_histogram(cls, histogram: Histogram, *, draw: Draw = "systematic") -> Mixture:
        """One open-ended phase: CRISP training for one task."""
        return cls([Phase(histogram)], draw=draw)

    @classmethod
    def schedule(
        cls,
        from_: Histogram | Component | Sequence[Component],
        to: Histogram | Component | Sequence[Component],
        samples: int,
        steps: int,
        *,
        shape: Shape = "linear",
        draw: Draw = "systematic",
    ) -> Mixture:
        """Shares that go from one list of components to another in steps; arguments and errors as of `scheduled`."""
        return cls(scheduled(from_, to, samples, steps, shape=shape), draw=draw)

    @property
    def components(self) -> list[Component]:
        """Those of all phases."""
        return [component for phase in self.phases for component in phase.components]

    @property
    def num_samples(self) -> int | None:
        """Samples of all phases over all ranks; None when the last is open-ended."""
        return None if self.phases[-1].samples is None else sum(phase.samples or 0 for phase in self.phases)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over what decides the draws of the phases, and the way of drawing."""
        return hashlib.sha256(json.dumps([self.draw, [phase.identity for phase in self.phases]]).encode()).hexdigest()

    def check(self, data: Data) -> None:
        """Check that all phases fit their sources, by their nodes alone: nothing is spread over leaves.

        Raises:
            InputError: as `leaf_proportions`.
        """
        sources = Sources.of(data)
        checked: set[tuple[int, str]] = set()
        occupied: dict[tuple[int, int], NDArray[np.bool_]] = {}  # by source and level: whether each node has windows
        for index, phase in enumerate(self.phases):
            plain = {
                (self._source(component, sources, index), component.histogram.fingerprint)
                for component in phase.components
                if component.max_repeats is None and component.windows is None
            }
            if len(plain) == len(phase.components) and plain <= checked:
                continue
            for number, part in enumerate(self.parts_of_phase(index, sources)):
                histogram, selection = part.histogram, part.component.windows
                known = occupied if selection is None else {}
                present = has_windows(histogram, part.counts, known, key=(part.source, histogram.level))
                missing = float(histogram.proportions.sum(where=~present))
                if missing > 0:
                    report_missing(
                        histogram,
                        sources.datasets[part.source],
                        missing,
                        limit=self.max_missing_mass,
                        what=self._called(index, number),
                        selection=selection,
                    )
            checked |= plain

    def leaf_proportions(self, data: Data) -> list[NDArray[np.float64]]:
        """Proportions of every phase over the non-empty leaves of its sources.

        Returns:
            For each phase [num_leaves] float64, in the order of `dataset.leaves` (of several sources one after the
            other), summing to 1.

        Raises:
            InputError: a histogram of another tree, more than `max_missing_mass` on clusters without windows, or
                clusters beyond `max_repeats`.
        """
        sources = Sources.of(data)
        return [self.proportions_of_phase(index, sources) for index in range(len(self.phases))]

    def proportions_of_phase(self, index: int, data: Data) -> NDArray[np.float64]:
        """One item of `leaf_proportions`; `index` counts from 0, messages from 1."""
        sources = Sources.of(data)
        first_rows = np.cumsum([0, *(len(dataset.leaves) for dataset in sources.datasets)])
        parts = self.parts_of_phase(index, sources)
        joined = None if len(parts) == len(sources) == 1 else np.zeros(int(first_rows[-1]))
        for number, part in enumerate(parts):
            dataset = sources.datasets[part.source]
            proportions = self.proportions_of_part(part, index, number, sources)
            if joined is None and part.component.windows is None:
                return proportions
            joined = np.zeros(len(dataset.leaves)) if joined is None else joined
            rows = first_rows[part.source] + np.searchsorted(dataset.leaves, part.counts.leaves)
            joined[rows] += part.share * proportions
        assert joined is not None
        return joined

    def proportions_of_part(self, part: Part, index: int, number: int, sources: Sources) -> NDArray[np.float64]:
        """Proportions of a part of a phase over the leaves of its `counts`. Raises InputError as `leaf_proportions`."""
        return part.proportions(
            what=self._called(index, number),
            max_missing_mass=self.max_missing_mass,
            dataset=sources.datasets[part.source],
        )

    def parts_of_phase(self, index: int, data: Data) -> list[Part]:
        """Components of a phase as they are drawn.

        Raises:
            InputError: a histogram of another tree, a source that is not there, clusters beyond `max_repeats`.
        """
        sources, phase = Sources.of(data), self.phases[index]
        places = [self._source(component, sources, index) for component in phase.components]
        drawn, shares = self._within_limits(phase, [sources.datasets[place] for place in places], index)
        return [
            Part(
                component=component,
                source=place,
                share=share,
                histogram=each.histogram,
                counts=LeafCounts.of(sources.datasets[place], component.windows, what=self._called(index, number)),
            )
            for number, (component, place, each, share) in enumerate(
                zip(phase.components, places, drawn, shares, strict=True)
            )
        ]

    def _within_limits(self, phase: Phase, datasets: Sequence[Dataset], index: int) -> tuple[list[Drawn], list[float]]:
        """How each component is drawn, and at which share: what capped ones leave goes to the others."""
        total = sum(component.share for component in phase.components)
        shares = [component.share / total for component in phase.components]
        full: dict[int, Drawn] = {}
        while True:
            drawn = [
                full.get(number)
                or drawn_within_repeats(
                    dataclasses.replace(component, share=shares[number]),
                    dataset,
                    phase.samples,
                    what=self._called(index, number),
                )
                for number, (component, dataset) in enumerate(zip(phase.components, datasets, strict=True))
            ]
            short = {number: each for number, each in enumerate(drawn) if each.kept < 1 and number not in full}
            if not short:
                return drawn, shares
            for number, each in short.items():
                shares[number] *= each.kept
                full[number] = dataclasses.replace(each, kept=1.0)
            free = sum(share for number, share in enumerate(shares) if number not in full)
            left = 1.0 - sum(shares[number] for number in full)
            if not free:
                raise InputError(
                    f"phase {index + 1}: all its components are at their max_repeats, and {left:.2%} of its "
                    f"{phase.samples:,} samples are left. Use fewer samples, or a larger max_repeats."
                )
            shares = [share if number in full else min(1.0, share * left / free) for number, share in enumerate(shares)]

    def _source(self, component: Component, sources: Sources, index: int) -> int:
        return sources.index(component.source, what=f"phase {index + 1}")

    def _called(self, index: int, number: int) -> str:
        """A component in messages."""
        phase = self.phases[index]
        if len(phase.components) == 1:
            return f"phase {index + 1}"
        source = phase.components[number].source
        return f"phase {index + 1}, component {number + 1}{f' (source {source})' if source else ''}"
