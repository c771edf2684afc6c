"""One colour for each task and each run, the same in every part of the page; base and the corpus are grey.

Colours are named by classes of the style sheet, which holds their shades for light and dark.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

NUM_COLOURS = 8
"""Colours of the style sheet besides the grey of base. Further tasks and runs use them again, dashed."""

BASE = "base"
"""Class of the grey, and the histogram of a phase that draws the corpus as it is."""

_CALLED_BASE = re.compile(r"(?<![a-z])base(?![a-z])")

RunKey = tuple[str, int | None, str | None, int | None]
"""Name, parameters, fingerprint of the mixture, seed: equal for all checkpoints of a run; None where not known."""


@dataclass(frozen=True)
class Colours:
    """Classes of the tasks and runs of a page."""

    tasks: dict[str, str]
    """Name of a task to its class."""
    runs: Sequence[tuple[RunKey, str]]
    """Runs and their classes."""

    def of_run(self, key: RunKey) -> str:
        """Class of a run of the page."""
        return next(colour for known, colour in self.runs if same_run(known, key))

    def of_set(self, set_name: str) -> str | None:
        """Class of the task whose examples a set holds; None for a set of no task."""
        return self.tasks.get(task_of_set(set_name, list(self.tasks)) or "")


def assign_colours(tasks: Sequence[str], runs: Sequence[tuple[RunKey, Sequence[str]]]) -> Colours:
    """Give tasks, then runs, a colour each in their order.

    `runs` has a key, and the histograms of the mixture where they are known; one run may come several times.
    """
    greys = itertools.chain([BASE], itertools.repeat(f"{BASE} dashed"))
    shades = (f"colour{n % NUM_COLOURS}" + " dashed" * (n >= NUM_COLOURS) for n in itertools.count())
    of_tasks = {task: next(greys if is_base(task) else shades) for task in tasks}
    of_runs: list[tuple[RunKey, str]] = []
    for key, histograms in runs:
        if not any(same_run(known, key) for known, _ in of_runs):
            of_runs.append((key, next(greys if is_base(key[0], histograms) else shades)))
    return Colours(tasks=of_tasks, runs=of_runs)


def is_base(name: str, histograms: Sequence[str] = ()) -> bool:
    """Tell whether a run draws the corpus as it is: by its histograms, or by its name where they are not known."""
    return all(histogram == BASE for histogram in histograms) if histograms else bool(_CALLED_BASE.search(name.lower()))


def same_run(first: RunKey, second: RunKey) -> bool:
    """Compare what is known of both."""
    return all(a == b or a is None or b is None for a, b in zip(first, second, strict=True))


def task_of_set(set_name: str, tasks: Sequence[str]) -> str | None:
    """Find the task of a set by its name: `medicine` of `medicine` and of `medicine.test`."""
    matches = [task for task in tasks if set_name == task or set_name.startswith(task + ".")]
    return max(matches, key=len, default=None)
