"""The plan of each level of a tree: which nodes are split, on how many examples; foretold, or from what was counted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.tree.settings import TreeSettings

IMBALANCE_PER_LEVEL = 1.06
"""Imbalance factor that a level of balanced nodes multiplies that of the level above by (docs/write/tree.md)."""
_FEW_NODES = 0.5
"""Fewer nodes than this are none, where they are foretold."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Fewest, median and most of some counts; zeros where there are none."""

    fewest: int = 0
    median: int = 0
    most: int = 0

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> Sizes:
        """Those of an array."""
        if not len(counts):
            return cls()
        return cls(fewest=int(counts.min()), median=int(np.median(counts)), most=int(counts.max()))


@dataclass(frozen=True, kw_only=True)
class LevelPlan:
    """How the nodes of a level are made from those of the level above."""

    level: int
    """The level that is made, from 1."""
    windows: int
    """In all nodes of the level above."""
    num_nodes: int
    """Nodes of the level above."""
    num_split: int
    """Those of them that are split."""
    examples: Sizes
    """Different examples of a node that is split."""
    largest: int
    """Windows of the largest node of the level above."""
    unsplit: int = 0
    """Nodes that had enough windows, but too few different ones: known in the end."""

    @classmethod
    def of(
        cls, level: int, windows: NDArray[np.int64], examples: NDArray[np.int64], settings: TreeSettings
    ) -> LevelPlan:
        """The plan for nodes that have so many windows, [num_nodes], and examples, [num_nodes]."""
        split = (windows >= settings.least) | (level == 1)
        return cls(
            level=level,
            windows=int(windows.sum()),
            num_nodes=len(windows),
            num_split=int(np.count_nonzero(split)),
            examples=Sizes.of(examples[split]),
            largest=int(windows.max(initial=0)),
        )

    def done(self, unsplit: int) -> LevelPlan:
        """The plan, carried out but for some nodes."""
        return dataclasses.replace(self, unsplit=unsplit)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LevelPlan:
        """Read the result of `to_json` back."""
        return cls(**{**content, "examples": Sizes(**content["examples"])})

    def text(self, settings: TreeSettings, num_leaves: int) -> str:
        """A line for people; `num_leaves` are those of the tree without this level."""
        if not self.num_split:
            return f"level {self.level}: none of {_nodes(self.num_nodes)} to split"
        others = "" if self.num_split == self.num_nodes else f" (the others have fewer than {settings.least:,} windows)"
        leaves = num_leaves + self.num_split * (settings.arity - 1)
        return (
            f"level {self.level}: {self.num_split:,} of {_nodes(self.num_nodes)} to split{others}, on "
            f"{_examples_text(self.examples, settings)}; {leaves:,} leaves expected"
        )


def _examples_text(examples: Sizes, settings: TreeSettings) -> str:
    if examples.fewest >= settings.quota:
        return f"{settings.quota:,} fresh examples each"
    if examples.fewest == examples.most:
        number = f"{examples.most:,} examples each"
    else:
        number = f"{examples.fewest:,} to {examples.most:,} examples each, {examples.median:,} in the median"
    return f"{number}, {_uses(examples.median, settings)}"


def _uses(examples: int, settings: TreeSettings) -> str:
    times = settings.steps * min(examples, settings.examples_per_step) / max(examples, 1)
    return "fresh" if examples >= settings.quota else f"used {times:.3g} times"


def end_of_growth(plans: Sequence[LevelPlan], settings: TreeSettings, *, are_all: bool = True) -> list[str]:
    """Warnings for people about a tree that was grown so: levels that are missing, nodes that could not be split.

    Args:
        plans: of its levels, carried out or foretold.
        settings: of the tree.
        are_all: it was fitted on all windows.
    """
    lines = []
    unsplit = sum(plan.unsplit for plan in plans)
    if unsplit:
        lines.append(
            f"tree: warning: {_nodes(unsplit)} with enough windows cannot be split, because fewer than "
            f"{settings.arity} of them are different. Such windows stay together; --dedup leaves out equal documents."
        )
    made = sum(plan.num_split > plan.unsplit for plan in plans)
    if made == settings.depth:
        return lines
    stopped = plans[made] if made < len(plans) else None
    if stopped is not None and not stopped.num_split:
        smaller = f"a --min-split of at most {stopped.largest:,}, " if stopped.largest >= settings.arity else ""
        times = math.ceil(10 * settings.least / max(stopped.largest, 1)) / 10
        more = f"{times:,.1f} times the text" if are_all else f"{times:,.1f} times the --fit-windows"
        lines.append(
            f"tree: warning: it has {_levels(made)}, not {settings.depth}: the largest of {_nodes(stopped.num_nodes)} "
            f"of level {made} has {stopped.largest:,} windows, and a split needs {settings.least:,} (--min-split). For "
            f"one more level take {smaller}a smaller --arity or {more}; --depth {made} asks for what it has."
        )
    else:
        lines.append(
            f"tree: warning: it has {_levels(made)}, not {settings.depth}: no node of level {made} has "
            f"{settings.arity} different windows. --depth {made} asks for what it has."
        )
    return lines


def _nodes(number: int) -> str:
    return f"{number:,} node{'s' if number != 1 else ''}"


def _levels(number: int) -> str:
    return f"{number} level{'s' if number != 1 else ''}"


def foretold(num_windows: float, settings: TreeSettings) -> list[LevelPlan]:
    """The plans of the levels of a tree of so many windows; the last one splits nothing where the depth is not reached.

    Sizes of the nodes of a level are taken to be log-normal, as unequal as measured.
    """
    plans = []
    nodes, windows = 1.0, float(num_windows)
    for level in range(1, settings.depth + 1):
        mean = windows / max(nodes, 1)
        variance = (level - 1) * math.log(IMBALANCE_PER_LEVEL)
        deviation = math.sqrt(variance)
        share = 1.0 if level == 1 else _share_above(settings.least, mean, deviation)
        split = share * nodes if share * nodes >= _FEW_NODES else 0.0
        largest = mean * math.exp(deviation * _deviations_of_largest(nodes) - variance / 2)
        smallest = max(mean / math.exp(deviation * _deviations_of_largest(nodes)), settings.least if level > 1 else 0)
        sizes = [round(min(size, settings.quota)) for size in (smallest, max(mean, smallest), max(largest, smallest))]
        plans.append(
            LevelPlan(
                level=level,
                windows=round(windows),
                num_nodes=round(nodes),
                num_split=math.ceil(split),
                examples=Sizes(fewest=sizes[0], median=sizes[1], most=sizes[2]) if split else Sizes(),
                largest=round(largest),
            )
        )
        if not split:
            break
        kept = min(1.0, 1.0 if level == 1 else _share_above(settings.least, mean * math.exp(variance), deviation))
        nodes, windows = split * settings.arity, windows * kept
    return plans


def _share_above(least: float, mean: float, deviation: float) -> float:
    """Share of log-normal sizes of this mean, and deviation of their logarithm, that are at least so large."""
    if not deviation or mean <= 0:
        return float(mean >= least)
    median = mean * math.exp(-(deviation**2) / 2)
    return 0.5 * math.erfc(math.log(least / median) / deviation / math.sqrt(2))


def _deviations_of_largest(number: float) -> float:
    """How many deviations the largest of so many normal numbers lies above their mean, about."""
    return math.sqrt(2 * math.log(max(number, 1)))
