"""Components of a phase as recipes write them: what is drawn, from which source, at which share; and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from crisp_stream.config.checks import require
from crisp_stream.storage.store import file_name

CHECKPOINT = "checkpoint"
"""Histogram of a first phase that stands for what the checkpoint of `load_path` was served."""

_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class ComponentRecipe:
    """A part of a phase: windows of one source, at a share of the phase's samples."""

    source: str | None = None
    """Name of the source, one of `data.sources`. Nothing: the dataset of `data.remote`."""
    histogram: str | tuple[str, ...] | None = None
    """`base` (the frequencies of the source), the path of a histogram, or a list of paths (their plain average).
    Nothing: `windows` says what is drawn."""
    windows: str | None = None
    """Path of a window selection. Beside `histogram`: clusters by the histogram, and inside a cluster selected windows
    alone. Alone: its windows are drawn, each as often as any other."""
    share: float = 1.0
    """Share of the phase's samples, in (0, 1]. Those of a phase sum to 1."""
    max_repeats: float | None = None
    """Most draws of a window by the component during the phase, on average over its cluster. Nothing: no limit."""
    on_excess: Literal["error", "cap"] = "error"
    """Clusters beyond `max_repeats`: `error` names them before the run; `cap` gives what is left to the others."""

    @property
    def histograms(self) -> tuple[str, ...]:
        """`histogram` as a list of names."""
        return (self.histogram,) if isinstance(self.histogram, str) else self.histogram or ()

    @property
    def summary(self) -> str:
        """What it draws, by the names of the files: `base`, `task.parquet`, `task.parquet in good.windows.parquet`."""
        names = [file_name(path) for path in self.histograms]
        histogram = names[0] if len(names) == 1 else f"average of {', '.join(names)}" if names else ""
        windows = "" if self.windows is None else file_name(self.windows)
        return f"{histogram} in {windows}" if histogram and windows else histogram or windows


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """A change of shares during a phase: from its components to others, in steps."""

    to: tuple[ComponentRecipe, ...]
    """Components at the end of the phase. One that is also at the beginning goes from share to share."""
    steps: int = 20
    """Steps of equal length that the phase is cut into."""
    shape: Literal["linear", "cosine"] = "linear"
    """linear: the shares change evenly. cosine: slowly at both ends."""

    def check(self, begin: Sequence[ComponentRecipe], phase: str) -> None:
        """Check a schedule that begins with some components. Raises RecipeError; `phase` is the key of its phase."""
        key = f"{phase}.schedule"
        require(self.steps > 0, f"`{key}.steps` must be above 0; got {self.steps}.")
        check_shares(self.to, f"{key}.to")
        for place, components in ((f"{phase}.components", begin), (f"{key}.to", self.to)):
            for number, component in enumerate(components):
                require(
                    component.max_repeats is None,
                    f"`{place}.{number}.max_repeats` must be absent in a phase with a schedule, because it counts the "
                    f"draws of one step alone; got {component.max_repeats}. Drop it.",
                )


def check_drawn(component: ComponentRecipe, key: str) -> None:
    """Check what a component draws, and its limit. Raises RecipeError, with `key` as its place in the recipe."""
    require(
        component.histogram is not None or component.windows is not None,
        f"`{key}.histogram` names no histogram, nor `{key}.windows` a selection.",
    )
    require(
        component.histogram != () and "" not in component.histograms,
        f"`{key}.histogram` names no histogram; got {component.histogram!r}.",
    )
    require(component.windows != "", f"`{key}.windows` names no selection; got ''.")
    require(
        component.max_repeats is None or 0 < component.max_repeats < float("inf"),
        f"`{key}.max_repeats` must be above 0; got {component.max_repeats}.",
    )
    require(
        component.max_repeats is not None or component.on_excess == "error",
        f"`{key}.on_excess` is cap, but there is no `{key}.max_repeats` to cap at.",
    )


def check_shares(components: Sequence[ComponentRecipe], key: str) -> None:
    """Check a list of components. Raises RecipeError, with `key` as its place in the recipe."""
    require(len(components) > 0, f"`{key}` must hold at least one component; got none.")
    for number, component in enumerate(components):
        check_drawn(component, f"{key}.{number}")
        require(
            CHECKPOINT not in component.histograms,
            f"`{key}.{number}.histogram` is checkpoint, which only a phase of its own can be, the first: "
            "histogram: checkpoint",
        )
        require(
            0 < component.share <= 1,
            f"`{key}.{number}.share` must be above 0 and at most 1; got {component.share:g}.",
        )
    total = sum(component.share for component in components)
    shares = " + ".join(f"{component.share:g}" for component in components)
    require(
        abs(total - 1) <= _SUM_TOLERANCE,
        f"`{key}` must have shares that sum to 1; got {shares} = {total:g}. Change one of them.",
    )
