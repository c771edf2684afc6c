"""A table of a study, once as cells and once as figures: what text, Markdown and CSV are written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from crisp_stream.study.tables.comparisons import Column, Figure, Mark
from crisp_stream.table import NONE, aligned

_SIGNS: dict[Mark, str] = {"": "", "best": "*", "close": "≈"}
_BEST = "{best}: best of the column"
_CLOSE = "; ≈: cannot be told from it (the paired interval includes no difference)"


class Cell(NamedTuple):
    """What stands in a table."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A table with what must be said of it."""

    name: str
    """As its CSV file is called."""
    title: str
    caption: str
    """What its cells are."""
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    lines: Sequence[Mapping[str, Any]] = ()
    """Of the CSV file: a line per figure, in full precision; accuracies as shares."""
    left: int = 1
    """Columns of words, from the left."""

    def text(self) -> str:
        """For a terminal."""
        marked = [any(row[number].mark for row in self.rows) for number in range(len(self.head))]
        head = [title + " " * has for title, has in zip(self.head, marked, strict=True)]
        rows = [
            [cell.text + (_SIGNS[cell.mark] or " " * has) for cell, has in zip(row, marked, strict=True)]
            for row in self.rows
        ]
        parts = [f"{self.title}: {self.caption}", aligned(head, rows, left=self.left)]
        return "\n".join([*parts, *self._notes("*")])

    def markdown(self) -> str:
        """For a page; the best are bold."""
        bar = ["---"] * self.left + ["---:"] * (len(self.head) - self.left)
        rows = [[_markdown(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in (self.head, bar, *rows)]
        return "\n\n".join(
            [f"### {self.title}", f"{self.caption}.", "\n".join(lines), *(f"{note}." for note in self._notes("bold"))]
        )

    def _notes(self, best: str) -> list[str]:
        marks = {cell.mark for row in self.rows for cell in row}
        meaning = _BEST.format(best=best) + (_CLOSE if "close" in marks else "")
        return [*([meaning] if marks - {""} else []), *self.notes]


def _markdown(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|")
    if cell.mark == "best":
        return f"**{text}**"
    return f"{text} {_SIGNS[cell.mark]}".rstrip()


def ratio_cell(found: Figure | None, *, mark: Mark = "") -> Cell:
    """A ratio of perplexities, or a difference of accuracies in points, with its interval."""
    if found is None:
        return Cell(NONE)
    return Cell(found.estimate.cell(1, scale=100, signed=True) if found.questions else found.estimate.cell(3), mark)


def value_cell(found: Figure | None, *, mark: Mark = "") -> Cell:
    """A perplexity, or an accuracy in per cent."""
    if found is None:
        return Cell(NONE)
    value = found.estimate.value
    return Cell(f"{100 * value:.1f}" if found.questions else f"{value:.2f}", mark)


def figure_line(found: Figure, column: Column, **own: Any) -> dict[str, Any]:
    """A figure as a line of a CSV file."""
    return {
        **own,
        "column": column.title,
        "set": " ".join(dict.fromkeys(place.set_name for place in column.places)),
        "stage": column.stage,
        "value": found.estimate.value,
        "low": found.estimate.interval.low,
        "high": found.estimate.interval.high,
        "seeds": " ".join(map(str, found.seeds)),
        "seeds_left_out": " ".join(map(str, found.left_out)),
        "examples": found.num_examples,
    }


def seed_notes(figures: Mapping[str, Sequence[Figure | None]]) -> list[str]:
    """What is to be said of seeds: where there was only one, and which were left out.

    Args:
        figures: by the name of what was compared.
    """
    known = {name: [own for own in found if own is not None] for name, found in figures.items()}
    alone = [name for name, found in known.items() if any(len(own.seeds) == 1 for own in found)]
    notes = []
    if alone:
        whom = "all" if len(alone) == len(figures) else ", ".join(alone)
        notes.append(f"one seed, so intervals are over examples alone and say nothing of other seeds: {whom}")
    left_out = {name: sorted({seed for own in found for seed in own.left_out}) for name, found in known.items()}
    for seeds in dict.fromkeys(tuple(own) for own in left_out.values() if own):
        names = ", ".join(name for name, own in left_out.items() if tuple(own) == seeds)
        notes.append(f"without a pair and left out, seed {', '.join(map(str, seeds))}: {names}")
    return notes
