"""Figures with their intervals, as tables show them and as CSV files hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crisp_stream.results.bootstrap import Interval
from crisp_stream.table import NONE

_NO_INTERVAL = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class Estimate:
    """A figure of a set of examples."""

    value: float
    interval: Interval = _NO_INTERVAL

    def cell(self, decimals: int, *, scale: float = 1.0, signed: bool = False) -> str:
        """`12.3 [11.9, 12.8]`; `-` where there is no figure, and no bounds where there are none."""
        if math.isnan(self.value):
            return NONE
        sign = "+" if signed else ""
        value, low, high = (f"{scale * number:{sign},.{decimals}f}" for number in (self.value, *self.interval))
        return value if math.isnan(self.interval.low) else f"{value} [{low}, {high}]"

    def columns(self, name: str = "value") -> dict[str, float]:
        """Make the columns of a CSV file: the figure and the bounds of its interval."""
        return {name: self.value, "low": self.interval.low, "high": self.interval.high}
