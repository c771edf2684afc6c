"""Figures with their intervals, as tables show them and as CSV files hold them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.results.bootstrap import Interval

NO_INTERVAL = Interval(math.nan, math.nan)
NONE = "-"
"""Cell of a figure that does not exist."""
PICTURES = (".svg", ".png", ".pdf")
"""What plots are written as."""


@dataclass(frozen=True)
class Estimate:
    """A figure of a set of examples."""

    value: float
    interval: Interval = NO_INTERVAL

    def cell(self, decimals: int, *, scale: float = 1.0, signed: bool = False) -> str:
        """`12.3 [11.9, 12.8]`; `-` where there is no figure, and no bounds where there are none."""
        if math.isnan(self.value):
            return NONE
        sign = "+" if signed else ""
        value, low, high = (f"{scale * number:{sign},.{decimals}f}" for number in (self.value, *self.interval))
        return value if math.isnan(self.interval.low) else f"{value} [{low}, {high}]"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 2) -> str:
    """Rows under their headings, the first `left` columns flush left and the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV with a header; figures in full precision, empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if _is_missing(value) else value for key, value in row.items()})
    return text.getvalue()


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a CSV file, with the folder that it is in."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(csv_text(rows), encoding="utf-8")
    return target


def check_picture(path: str | Path) -> Path:
    """Raises InputError: not a kind of picture that plots are written as."""
    if Path(path).suffix.lower() not in PICTURES:
        raise InputError(f"--plot: must end in {', '.join(PICTURES)}, got {path}.")
    return Path(path)


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a matplotlib figure, with the folder that it is in; the same figure gives the same SVG."""
    target = check_picture(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix.lower() == ".svg" else None)
    return target
