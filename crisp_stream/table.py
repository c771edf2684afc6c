"""Tables as aligned text, Markdown and CSV: every result is made into a `Table` once, and shown from it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NONE = "-"
"""Cell of a figure that does not exist."""

Mark = Literal["", "best", "close"]
_SIGNS: dict[Mark, str] = {"": "", "best": "*", "close": "≈"}


class Marked(str):
    """A cell that stands out: the best of its column, or one that cannot be told from the best."""

    mark: Mark

    def __new__(cls, text: str, mark: Mark) -> Marked:
        cell = super().__new__(cls, text)
        cell.mark = mark
        return cell


def mark_of(cell: str) -> Mark:
    """Return the mark of a cell; empty for a plain string."""
    return cell.mark if isinstance(cell, Marked) else ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells under their headings, with what must be said of them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Cells as they are shown; `Marked` where one stands out."""
    words: Sequence[int] = (0,)
    """Columns of words, flush left; negative numbers count from the right. Columns of figures are flush right."""
    name: str = ""
    """Name of its CSV file, without the suffix."""
    title: str = ""
    caption: str = ""
    """Meaning of the cells."""
    notes: Sequence[str] = ()
    """Lines below the table."""
    records: Sequence[Mapping[str, Any]] = ()
    """Lines of the CSV file, of equal keys: figures in full precision, accuracies as shares."""

    def text(self) -> str:
        """Format for a terminal."""
        return "\n".join([self.body(), *self.legend("*"), *self.notes])

    def body(self) -> str:
        """Format for a terminal, without legend and notes."""
        marked = [any(mark_of(row[number]) for row in self.rows) for number in range(len(self.head))]
        head = [heading + " " * has for heading, has in zip(self.head, marked, strict=True)]
        rows = [
            [cell + (_SIGNS[mark_of(cell)] or " " * has) for cell, has in zip(row, marked, strict=True)]
            for row in self.rows
        ]
        title = [": ".join(filter(None, (self.title, self.caption)))] if self.title else []
        return "\n".join([*title, aligned([head, *rows], words=self.words)])

    def markdown(self) -> str:
        """Format for a page; the best are bold."""
        words = [number % len(self.head) for number in self.words]
        bar = ["---" if number in words else "---:" for number in range(len(self.head))]
        rows = [[_markdown(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in (self.head, bar, *rows)]
        notes = [f"{note}." for note in (*self.legend("bold"), *self.notes)]
        return "\n\n".join([f"### {self.title}", f"{self.caption}.", "\n".join(lines), *notes])

    def legend(self, best: str) -> list[str]:
        """Explain the marks, in one line if there are any. `best`: how the best are shown."""
        marks = {mark_of(cell) for row in self.rows for cell in row}
        close = "; ≈: cannot be told from it (the paired interval includes no difference)" if "close" in marks else ""
        return [f"{best}: best of the column{close}"] if marks - {""} else []


@dataclass(frozen=True, kw_only=True)
class TableGroup:
    """Tables that share their notes and one CSV file."""

    tables: Sequence[Table]
    notes: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] = ()
    """Lines of the CSV file, as of a `Table`."""

    def text(self) -> str:
        """Format for a terminal, notes last."""
        legend = dict.fromkeys(line for table in self.tables for line in table.legend("*"))
        return "\n\n".join([*(table.body() for table in self.tables), "\n".join([*legend, *self.notes])])


def _markdown(cell: str) -> str:
    text = cell.replace("|", "\\|")
    return f"**{text}**" if mark_of(cell) == "best" else f"{text} {_SIGNS[mark_of(cell)]}".rstrip()


def aligned(rows: Sequence[Sequence[str]], *, words: Sequence[int] = (0, 1)) -> str:
    """Set rows of equal length in columns, those of `words` flush left and the others right."""
    left = {number % len(rows[0]) for number in words}
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if number in left else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Format records of equal keys as CSV with a header; figures in full precision, empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: "" if _is_missing(value) else value for key, value in record.items()})
    return text.getvalue()


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def write_csv(path: str | Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records as a CSV file, with the folder that it is in."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(csv_text(records), encoding="utf-8")
    return target


def format_bytes(count: float) -> str:
    """`1.3 MB`: decimal units, as storage is sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
