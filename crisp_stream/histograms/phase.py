"""Phases: stretches of training with one mixture of components; and schedules, phases that lead from one to another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from crisp_stream.errors import InputError
from crisp_stream.histograms.component import Component, OnExcess
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.typed import whole_number

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

Shape = Literal["linear", "cosine"]

_SUM_TOLERANCE = 1e-6


class OfPhases(Protocol):
    """A Mixture."""

    @property
    def phases(self) -> Sequence[Phase]: ...


@dataclass(frozen=True, init=False)
class Phase:
    """A stretch of training under one histogram, or under several components."""

    components: tuple[Component, ...]
    """What is drawn, at shares that sum to 1."""
    samples: int | None
    """Samples over all ranks; None: until training stops."""

    def __init__(
        self,
        components: Histogram | OfPhases | Component | Sequence[Component],
        samples: int | None = None,
        *,
        max_repeats: float | None = None,
        on_excess: OnExcess = "error",
    ) -> None:
        """Args:
            components: a histogram alone (a Mixture of one phase stands for what it draws), or components.
            samples: of the phase, over all ranks; None: until training stops.
            max_repeats, on_excess: of the only component (see Component).

        Raises:
            InputError: shares that do not sum to 1, or an argument of the wrong kind or out of range.
        """
        made = components_of(components)
        if max_repeats is not None or on_excess != "error":
            only, *others = made
            if others:
                raise InputError(f"max_repeats of a phase of {len(made)} components: give it to the components.")
            made = (dataclasses.replace(only, max_repeats=max_repeats, on_excess=on_excess),)
        if samples is not None:
            samples = whole_number(samples, "samples of a phase")
            if samples < 1:
                raise InputError(f"a phase needs at least 1 sample, got {samples}. Leave the phase out.")
        object.__setattr__(self, "components", made)
        object.__setattr__(self, "samples", samples)
        for component in made if samples is None else ():
            if component.max_repeats is not None:
                raise InputError(
                    f"max_repeats {component.max_repeats:g} needs the number of samples of its phase, got an "
                    "open-ended one. Give samples=, the length of training x the global batch."
                )

    @classmethod
    def of_windows(
        cls,
        windows: WindowSelection,
        dataset: Dataset,
        samples: int | None = None,
        *,
        max_repeats: float | None = None,
        on_excess: OnExcess = "error",
    ) -> Phase:
        """A phase that draws the windows of a selection, each as often as any other; arguments as of a phase.

        Raises:
            InputError: the selection is of another dataset, or of another generation of it.
        """
        return cls(Component.of_windows(windows, dataset, max_repeats=max_repeats, on_excess=on_excess), samples)

    @property
    def is_plain(self) -> bool:
        """Whether it draws from one component of the only source."""
        return len(self.components) == 1 and self.components[0].is_plain

    @property
    def histogram(self) -> Histogram:
        """Histogram of the only component."""
        return self._only.histogram

    @property
    def windows(self) -> WindowSelection | None:
        """Window selection of the only component."""
        return self._only.windows

    @property
    def max_repeats(self) -> float | None:
        """Limit of the only component."""
        return self._only.max_repeats

    @property
    def on_excess(self) -> OnExcess:
        """Treatment of what exceeds the limit, of the only component."""
        return self._only.on_excess

    @property
    def _only(self) -> Component:
        first, *others = self.components
        if others:
            raise ValueError(f"a phase of {len(self.components)} components has no histogram of its own")
        return first

    @property
    def identity(self) -> list[Any]:
        """What decides its draws, fit for JSON."""
        if self.is_plain:
            fingerprint, *more = self.components[0].identity
            return [fingerprint, self.samples, *more]
        return [[[each.share, each.source, *each.identity] for each in self.components], self.samples]


def scheduled(
    from_: Histogram | Component | Sequence[Component],
    to: Histogram | Component | Sequence[Component],
    samples: int,
    steps: int,
    *,
    shape: Shape = "linear",
) -> list[Phase]:
    """Phases in which the shares go from those of one list of components to those of another.

    In step i of n, `to` has the share t and `from_` 1 - t, where t is x = (i + 1/2) / n (linear) or (1 - cos(pi x)) / 2
    (cosine). A component of both lists gets the sum of its shares.

    Args:
        from_: components at the beginning.
        to: components at the end.
        samples: of the whole schedule, over all ranks.
        steps: phases that it is cut into; their lengths differ by at most one sample.
        shape: of the change.

    Raises:
        InputError: fewer samples than steps, or components with `max_repeats`, which belongs to one phase.
    """
    before, after = components_of(from_), components_of(to)
    samples = whole_number(samples, "samples of a schedule", least=1)
    steps = whole_number(steps, "steps of a schedule", least=1, most=samples)
    if shape not in ("linear", "cosine"):
        raise InputError(f"shape of a schedule must be linear or cosine, got {shape!r}.")
    if any(component.max_repeats is not None for component in (*before, *after)):
        raise InputError("components of a schedule have no max_repeats: it counts the draws of one phase alone.")
    ends = [samples * (step + 1) // steps for step in range(steps)]
    phases = []
    for step, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        place = (step + 0.5) / steps
        weight = place if shape == "linear" else (1 - math.cos(math.pi * place)) / 2
        phases.append(Phase(_between(before, after, weight), end - start))
    return phases


def _between(before: Sequence[Component], after: Sequence[Component], weight: float) -> list[Component]:
    joined: dict[str, Component] = {}
    for components, factor in ((before, 1 - weight), (after, weight)):
        for component in components:
            key = component.drawn_by
            share = component.share * factor + (joined[key].share if key in joined else 0.0)
            joined[key] = dataclasses.replace(component, share=min(1.0, share))
    return list(joined.values())


def components_of(components: Any) -> tuple[Component, ...]:
    phases = getattr(components, "phases", None)
    if phases is not None:  # a mixture
        if len(phases) != 1:
            raise InputError(f"a phase needs one histogram, got a mixture of {len(phases)} phases.")
        return phases[0].components
    if isinstance(components, Component):
        components = (components,)
    if not isinstance(components, list | tuple):
        return (Component(components),)  # refuses what is no histogram
    if not components:
        raise InputError("a phase needs at least one component, got none.")
    for component in components:
        if not isinstance(component, Component):
            raise InputError(
                f"components of a phase: must be Component(histogram, share=…), got {type(component).__name__}."
            )
    total = sum(component.share for component in components)
    if abs(total - 1) > _SUM_TOLERANCE:
        shares = " + ".join(f"{component.share:g}" for component in components)
        raise InputError(f"components of a phase: shares must sum to 1, got {shares} = {total:g}. Change one of them.")
    return tuple(components)
