"""Examples that stand in the training data, in part: counted and left out of a second figure in every view alike.

Which they are stands in the results (`eval --contamination`). Every view shows the figure of all examples, as the paper
does, how many of them are contaminated, and the figure without these; where nobody looked, it shows neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet
from crisp_stream.table import NONE

HEAD, WITHOUT = "contaminated", "without them"
"""Headings of the number of contaminated examples, and of the figure without them."""


def contaminated_examples(*results: AnyResults) -> NDArray[np.bool_] | None:
    """[num_examples], of results of one set: contaminated by what any of them knows; None where nobody looked."""
    known = [one.contaminated for one in results if one.contaminated is not None]
    return np.logical_or.reduce(known) if known else None


def contaminated_columns(
    counts: Sequence[int | None], without: Sequence[str], *, zeros: bool = False
) -> dict[str, list[str]]:
    """Columns of a table by heading; none where no row has contaminated examples.

    Args:
        counts: contaminated examples of each row; None: nobody looked.
        without: cells of the figures without them.
        zeros: have the columns also where somebody looked and found none.
    """
    if not any(counts) and not (zeros and any(count is not None for count in counts)):
        return {}
    return {HEAD: [NONE if count is None else f"{count:,}" for count in counts], WITHOUT: list(without)}


def contaminated_record(count: int | None, without: Estimate | None) -> dict[str, float | int | None]:
    """Columns of a CSV file: how many, and the figure without them with its bounds; empty where nobody looked."""
    clean = Estimate(math.nan) if without is None else without
    return {
        "contaminated": count,
        "without_contaminated": clean.value,
        "without_contaminated_low": clean.interval.low,
        "without_contaminated_high": clean.interval.high,
    }


def contamination_notes(sets: Sequence[JudgedSet]) -> list[str]:
    """Say which sets have contaminated examples, a line each, and which were looked at and have none."""
    notes, clean = [], []
    for judged in {judged.name: judged for judged in sets}.values():
        flags = contaminated_examples(*judged.results)
        if flags is not None and flags.any():
            notes.append(
                f"WARNING: {judged.name}: {flags.mean():.1%} of the examples stand in the training data, in part; "
                "trust the figure without them"
            )
        elif flags is not None:
            clean.append(judged.name)
    return [*notes, *([f"{', '.join(clean)}: no example stands in the training data"] if clean else [])]


def name_in_figures(judged: JudgedSet) -> str:
    """Name of a set on a plot, which shows all examples: with the number of those that are contaminated."""
    flags = contaminated_examples(*judged.results)
    return judged.name if flags is None or not flags.any() else f"{judged.name} ({int(flags.sum()):,} contaminated)"


def names_in_figures(sets: Sequence[JudgedSet]) -> Mapping[str, str]:
    """Names of sets on a plot by their names."""
    return {judged.name: name_in_figures(judged) for judged in sets}
