"""Figures of a study as cells of a table, as records of a CSV file, and as notes on their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crisp_stream.study.tables.comparisons import Column, Figure
from crisp_stream.table import NONE


def ratio_cell(figure: Figure | None) -> str:
    """Show a ratio of perplexities, or a difference of accuracies in points, with its interval."""
    if figure is None:
        return NONE
    return figure.estimate.cell(1, scale=100, signed=True) if figure.questions else figure.estimate.cell(3)


def value_cell(figure: Figure | None) -> str:
    """Show a perplexity, or an accuracy in per cent."""
    if figure is None:
        return NONE
    value = figure.estimate.value
    return f"{100 * value:.1f}" if figure.questions else f"{value:.2f}"


def figure_record(figure: Figure, column: Column, **first: Any) -> dict[str, Any]:
    """Make the line of a figure in a CSV file. `first`: columns before those of the figure."""
    return {
        **first,
        "column": column.title,
        "set": " ".join(dict.fromkeys(place.set_name for place in column.places)),
        "stage": column.stage,
        **figure.estimate.columns(),
        "seeds": " ".join(map(str, figure.seeds)),
        "seeds_left_out": " ".join(map(str, figure.left_out)),
        "examples": figure.num_examples,
    }


def seed_notes(figures: Mapping[str, Sequence[Figure | None]]) -> list[str]:
    """Note where there was only one seed, and which seeds were left out; figures by the name of what was compared."""
    present = {name: [figure for figure in row if figure is not None] for name, row in figures.items()}
    alone = [name for name, row in present.items() if any(len(figure.seeds) == 1 for figure in row)]
    notes = []
    if alone:
        whom = "all" if len(alone) == len(figures) else ", ".join(alone)
        notes.append(f"one seed, so intervals are over examples alone and say nothing of other seeds: {whom}")
    methods_of: dict[tuple[int, ...], list[str]] = {}
    for name, row in present.items():
        methods_of.setdefault(tuple(sorted({seed for figure in row for seed in figure.left_out})), []).append(name)
    for seeds in filter(None, methods_of):
        unpaired = f"seed {', '.join(map(str, seeds))}: {', '.join(methods_of[seeds])}"
        notes.append(f"without a pair and left out, {unpaired}")
    return notes
