"""Confidence intervals over examples: studentised bootstrap of means and their ratios, score intervals of shares.

They say how far a figure would move with other examples of the same kind; another training seed moves it, too. Examples
are resampled, not tokens: the tokens of a text are not independent.

* Means and ratios: each resample gives its distance from the figure in standard errors of its own, and the quantiles of
  these take the place of Student's, where they are wider. So means of skewed losses of few examples are covered about
  as often as the interval says (percentiles of resamples cover 0.89 at 10 examples, BCa 0.87 to 0.90). Standard errors
  are those of the jackknife; texts of very different lengths count as the number of equal ones that says as much
  (Kish). Below 8 examples, and where resamples have no spread, Student's t stands alone.
* Shares: Wilson's interval. Differences of paired shares, and shares with ties: Tango's score interval. Both stay in
  the range, and have a width where all examples agree.

How often each covers a known truth: `python -m benchmarks.evaluation.interval_study`, docs/judge/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import import_extra

CONFIDENCE = 0.95
RESAMPLES = 1000
_VALUES_AT_ONCE = 4_000_000
_FEWEST_RESAMPLED = 8
"""Examples below which too many resamples are one example repeated."""
_NORMAL_QUANTILE = 1.959963984540054
_BISECTIONS = 60


class Interval(NamedTuple):
    """Bounds of a confidence interval; NaN where there are fewer than two examples."""

    low: float
    high: float


def mean_interval(values: NDArray[Any], *, seed: int = 0) -> Interval:
    """Compute the 95 % interval of a mean, from 1,000 resamples. Equal input gives equal bounds.

    Args:
        values: [num_examples].
        seed: of the resampling.
    """

    def mean(columns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return columns[0].mean(axis=-1), columns[0]

    return _studentised(mean, [values], seed)


def ratio_interval(above: Sequence[NDArray[Any]], below: Sequence[NDArray[Any]], *, seed: int = 0) -> Interval:
    """Compute the 95 % interval of a ratio of sums, such as loss by bytes, or of products of sums.

    Args:
        above: columns, [num_examples] each and not negative, whose sums are multiplied.
        below: columns whose sums it is divided by; an example is drawn with all its columns.
        seed: of the resampling.
    """

    def ratio(columns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        means = columns.mean(axis=-1, keepdims=True)
        products = [np.prod(part[..., 0], axis=0) for part in (means[: len(above)], means[len(above) :])]
        shares = columns / means
        parts = shares[: len(above)].sum(axis=0) - shares[len(above) :].sum(axis=0)
        found = products[0] / products[1]
        return found, found[..., None] * parts

    weights = np.mean([np.asarray(column, np.float64) / np.sum(column) for column in below], axis=0)
    low, high = _studentised(ratio, [*above, *below], seed, weights=weights)
    return Interval(low if math.isnan(low) else max(low, 0.0), high)


def share_interval(values: NDArray[np.bool_]) -> Interval:
    """Compute Wilson's 95 % interval of the share of true values."""
    if len(values) < 2:
        return Interval(math.nan, math.nan)
    return wilson(float(np.mean(values)), _NORMAL_QUANTILE**2 / len(values))


def wilson(share: float, squared: float) -> Interval:
    """Wilson's interval; `squared` is that of the quantile by the number of examples, or what stands for it."""
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(squared * share * (1 - share) + squared**2 / 4) / (1 + squared)
    # In exact numbers the bounds hold the share itself; rounding must not lose that.
    return Interval(max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0))


def difference_interval(values: NDArray[Any]) -> Interval:
    """Compute Tango's 95 % interval of the mean of values -1, 0 and 1: a difference of paired shares."""
    if len(values) < 2:
        return Interval(math.nan, math.nan)
    above, below = int(np.count_nonzero(values > 0)), int(np.count_nonzero(values < 0))
    high = _tango_bound(above, below, len(values))
    return Interval(-_tango_bound(below, above, len(values)), high)


def _tango_bound(above: int, below: int, num_examples: int) -> float:
    """The largest difference of which these counts are not too improbable (Tango, Statistics in Medicine 1998)."""
    n, difference = num_examples, (above - below) / num_examples

    def is_within(delta: float) -> bool:
        linear = -above - below + (2 * n - above + below) * delta
        root = math.sqrt(max(linear**2 + 8 * n * below * delta * (1 - delta), 0.0))
        share_below = max((root - linear) / (4 * n), 0.0)
        variance = n * (2 * share_below + delta * (1 - delta))
        return (n * delta - above + below) ** 2 <= _NORMAL_QUANTILE**2 * variance

    low, high = difference, 1.0
    if is_within(high):
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_within(middle) else (low, middle)
    return low


_Statistic = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Of [columns, …, num_examples] the figure, […], and what each example does to it, […, num_examples]."""


def _studentised(
    statistic: _Statistic, columns: Sequence[NDArray[Any]], seed: int, *, weights: NDArray[np.float64] | None = None
) -> Interval:
    rows = np.stack([np.asarray(column, np.float64) for column in columns])
    num_examples = rows.shape[1]
    if num_examples < 2:
        return Interval(math.nan, math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        figure, error = _with_jackknife_error(statistic, rows)
        if not math.isfinite(figure) or error <= 1e-12 * max(abs(figure), 1.0):
            return Interval(float(figure), float(figure))
        special = import_extra("scipy.special", extra="eval", purpose="confidence intervals")
        effective = num_examples if weights is None else weights.sum() ** 2 / np.square(weights).sum()
        below = above = float(special.stdtrit(max(effective - 1, 1.0), (1 + CONFIDENCE) / 2))
        if num_examples >= _FEWEST_RESAMPLED:
            tail = (1 - CONFIDENCE) / 2
            low, high = np.quantile(_distances(statistic, rows, figure, seed), [tail, 1 - tail], method="nearest")
            if math.isfinite(low) and math.isfinite(high):
                below, above = max(below, high), max(above, -low)
    return Interval(float(figure - below * error), float(figure + above * error))


def _with_jackknife_error(
    statistic: _Statistic, rows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The figure and its standard error by leaving out each example; of a mean the usual one.

    The linear part of a ratio is too small for an example that makes up much of the sum below.
    """
    num_examples = rows.shape[-1]
    without = (rows.sum(axis=-1, keepdims=True) - rows) / (num_examples - 1)
    figures, _ = statistic(without[..., None])
    return statistic(rows)[0], figures.std() * math.sqrt(num_examples - 1)


def _distances(
    statistic: _Statistic, rows: NDArray[np.float64], figure: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """[RESAMPLES], how far each resample's figure is off, in its own standard errors."""
    rng, num_examples, found = np.random.default_rng(seed), rows.shape[1], []
    at_once = max(1, _VALUES_AT_ONCE // rows.size)
    for start in range(0, RESAMPLES, at_once):
        drawn = rng.integers(0, num_examples, (min(at_once, RESAMPLES - start), num_examples))
        figures, errors = _with_error(statistic, rows[:, drawn])
        off = figures - figure
        found.append(np.where(errors > 0, off / errors, np.copysign(np.inf, off)))
    return np.nan_to_num(np.concatenate(found), nan=np.inf, posinf=np.inf, neginf=-np.inf)


def _with_error(statistic: _Statistic, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The figure and its standard error, by the linear part of what each example does to it."""
    figure, parts = statistic(rows)
    return figure, parts.std(axis=-1, ddof=1) / math.sqrt(rows.shape[-1])
