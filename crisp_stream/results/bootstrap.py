"""Confidence intervals over examples, by percentile bootstrap.

They say how far a figure would move with other examples of the same kind; another training seed moves it, too. Examples
are resampled, not tokens: the tokens of a text are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import import_extra

CONFIDENCE = 0.95
RESAMPLES = 1000
_VALUES_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """Bounds of a confidence interval; NaN where there are fewer than two examples."""

    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[..., NDArray[np.float64]], *columns: NDArray[Any], seed: int = 0
) -> Interval:
    """Compute the 95 % interval of a statistic of examples, from 1,000 resamples. Equal input gives equal bounds.

    Args:
        statistic: a function of the columns that reduces them along the keyword argument `axis`.
        columns: each [num_examples]; an example is drawn with all its columns.
        seed: seed of the resampling.
    """
    num_examples = len(columns[0])
    if num_examples < 2:
        return Interval(math.nan, math.nan)
    stats = import_extra("scipy.stats", extra="eval", purpose="confidence intervals")
    interval = stats.bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _VALUES_AT_ONCE // num_examples),
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def exp_mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Take exp of the mean: the perplexity of losses, the ratio of perplexities of differences."""
    return np.exp(values.mean(axis=axis))


def ratio_of_sums(above: NDArray[np.float64], below: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Divide sum by sum, such as the loss of all examples by their bytes."""
    return above.sum(axis=axis) / below.sum(axis=axis)
