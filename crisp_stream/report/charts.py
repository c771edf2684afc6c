"""Line charts as inline SVG: colours come from the page's CSS variables, so they follow light, dark and print.

The SVG of a plotting library brings fonts and colours with it, and weighs ten times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_POINTS = 240
"""Points of a drawn curve; more cannot be distinguished at the width of a page."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 18, 8, 40
_LABEL = 18
_CHARACTER = 7.5
"""Width of a character of a tick, at most: a tick that is cut would be another number."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    points: NDArray[np.float64]
    """[num_points, 2]: x and y."""
    colour: str
    """CSS class of its colour, such as `base`."""
    label: str = ""
    """Text of the legend; empty for a curve that is not in it."""
    style: str = "curve"
    """CSS classes of the line besides its colour."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a chart."""

    low: float
    """Value at the left or lower end."""
    high: float
    """Value at the other end."""
    ticks: Sequence[float]
    """Values with a label, and a line across the chart where the axis is vertical."""
    label: str = ""
    """Name and unit of the values."""
    logarithmic: bool = False
    """Whether equal ratios take equal lengths."""
    write: Callable[[float], str] = "{:,g}".format
    """Writes a tick as text."""

    def place(self, values: ArrayLike) -> NDArray[np.float64]:
        """Places of values along the axis: 0 at `low`, 1 at `high`."""
        if self.logarithmic:
            return np.log(np.asarray(values, np.float64) / self.low) / np.log(self.high / self.low)
        return (np.asarray(values, np.float64) - self.low) / (self.high - self.low)


def linear_axis(values: ArrayLike, *, count: int, label: str = "", margin: float = 0.0) -> Axis:
    """An axis that holds all values, with a margin on both sides as a share of their range."""
    low, high = float(np.min(values)), float(np.max(values))
    beyond = margin * (high - low) or (0.0 if high > low else 1.0)
    low, high = low - beyond, high + beyond
    return Axis(low=low, high=high, ticks=ticks(low, high, count), label=label)


def percent(value: float) -> str:
    """Write a share as a tick: `12.5%`."""
    return f"{100 * value:g}%"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Choose at most `count` + 1 round numbers inside [low, high]."""
    step = 10 ** np.floor(np.log10(max(high - low, 1e-9) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    return [float(value) for value in np.arange(np.ceil(low / step), np.floor(high / step + 1e-9) + 1) * step]


def thinned(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep at most MAX_POINTS of the rows, evenly spaced, the ends included."""
    keep = np.unique(np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).round().astype(int))
    return points[keep]


def smoothed(points: ArrayLike) -> NDArray[np.float64]:
    """Average y over about a thirtieth of the run around each point: [num_points, 2]."""
    rows = np.asarray(points, np.float64)
    half = max(1, len(rows) // 60)
    sums = np.concatenate([[0.0], np.cumsum(rows[:, 1])])
    first = np.maximum(np.arange(len(rows)) - half, 0)
    last = np.minimum(np.arange(len(rows)) + half + 1, len(rows))
    return np.column_stack([rows[:, 0], (sums[last] - sums[first]) / (last - first)])


def line_chart(curves: Sequence[Curve], x: Axis, y: Axis, *, width: int, height: int, described: str) -> str:
    """Draw curves as an SVG element of `width` times `height` pixels, later ones over earlier ones.

    `described` is the text for a reader who cannot see the chart, empty for a second drawing of the same.
    """
    top = _TOP + _LABEL * bool(y.label)
    left = max(_LEFT, 6 + _CHARACTER * max((len(y.write(value)) for value in y.ticks), default=0))
    right = max(_RIGHT, _CHARACTER / 2 * max((len(x.write(value)) for value in x.ticks), default=0))
    inner_width, inner_height = width - left - right, height - top - _BOTTOM

    def across(values: ArrayLike) -> NDArray[np.float64]:
        return left + x.place(values) * inner_width

    def down(values: ArrayLike) -> NDArray[np.float64]:
        return top + (1 - y.place(values)) * inner_height

    parts = [f'<text x="0" y="12">{escape(y.label)}</text>'] if y.label else []
    for value, at in zip(y.ticks, down(y.ticks), strict=True):
        parts.append(f'<line class="grid" x1="{left:g}" x2="{width - right:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 6:g}" y="{at + 4:.1f}" text-anchor="end">{escape(y.write(value))}</text>')
    for value, at in zip(x.ticks, across(x.ticks), strict=True):
        label = escape(x.write(value))
        parts.append(f'<text x="{at:.1f}" y="{height - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 4}" text-anchor="middle">{escape(x.label)}</text>')
    for curve in curves:
        rows = np.column_stack([across(curve.points[:, 0]), down(curve.points[:, 1])])
        placed = " ".join(f"{a:.1f},{b:.1f}" for a, b in rows.tolist())
        parts.append(f'<polyline class="{curve.style} {curve.colour}" points="{placed}"/>')
    label = f'role="img" aria-label="{escape(described)}"' if described else 'aria-hidden="true"'
    size = "wide" if described else "narrow"
    return f'<svg class="chart {size}" viewBox="0 0 {width} {height}" {label}>{"".join(parts)}</svg>'
