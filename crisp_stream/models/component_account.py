"""What each component of a mixture gave, as run.json holds it, brought together for a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crisp_stream import digits
from crisp_stream.table import NONE

COMPONENT_HEAD = ("phase", "source", "drawn by", "asked", "served", "windows", "repeats", "loss")
COMPONENT_NOTE = "windows: served; repeats: times that each of the component's windows was served, on average"


@dataclass(frozen=True, kw_only=True)
class ComponentGave:
    """A component of a phase of the recipe, the steps of a schedule together."""

    phase: int
    """Number of the recipe's phase, from 1."""
    source: str | None
    drawn_by: str
    asked: float
    """Share of the phase's samples that it was to give."""
    served: float
    """Windows that it gave."""
    served_share: float
    repeats: float
    """Windows that it gave for each that it can draw."""
    loss: float | None
    """Mean training loss in nats per predicted token; None where losses were not kept."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row below `COMPONENT_HEAD`."""
        return (
            str(self.phase),
            self.source or NONE,
            self.drawn_by,
            digits.share(self.asked),
            digits.share(self.served_share),
            f"{self.served:,.0f}",
            digits.times(self.repeats),
            NONE if self.loss is None else digits.loss(self.loss),
        )


def components_gave(phases: Sequence[dict[str, Any]]) -> list[ComponentGave]:
    """Read `phases` of run.json; empty where no phase that was served tells of components."""
    joined: dict[tuple[int, str | None, str], list[tuple[int, dict[str, Any]]]] = {}
    samples_of: dict[int, int] = {}
    for phase in phases:
        if "components" in phase and phase["samples"]:
            number = int(phase["recipe_phase"])
            samples_of[number] = samples_of.get(number, 0) + phase["samples"]
            for component in phase["components"]:
                key = number, component["source"], component["drawn_by"]
                joined.setdefault(key, []).append((phase["samples"], component))
    found = []
    for (number, source, drawn_by), parts in joined.items():
        served, tokens = (sum(part[key] for _, part in parts) for key in ("served", "tokens"))
        nats = sum(part["tokens"] * (part["loss"] or 0.0) for _, part in parts)
        found.append(
            ComponentGave(
                phase=number + 1,
                source=source,
                drawn_by=drawn_by,
                asked=sum(samples * part["share"] for samples, part in parts) / samples_of[number],
                served=served,
                served_share=served / samples_of[number],
                repeats=served / max(part["windows"] for _, part in parts),
                loss=nats / tokens if tokens else None,
            )
        )
    return found
