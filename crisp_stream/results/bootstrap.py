"""How far a figure would move with other examples of the same kind: percentile bootstrap over examples.

Examples are resampled, not tokens: the tokens of a text are not independent. The interval speaks of the choice of the
examples alone; another training seed moves a figure, too.
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
    """Percentile interval of a statistic of the examples, at 95 %, from 1,000 resamples. Equal input, equal bounds.

    Args:
        statistic: of the columns, reducing them along the keyword argument `axis`.
        columns: each [num_examples]; an example is drawn with all its columns.
        seed: of the resampling.
    """
    num_examples = len(columns[0])
    if num_examples < 2:
        return Interval(math.nan, math.nan)
    stats = import_extra("scipy.stats", extra="eval", purpose="confidence intervals")
    found = stats.bootstrap(
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
    return Interval(float(found.low), float(found.high))


def exp_mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """exp of the mean: a perplexity of losses, a ratio of perplexities of differences."""
    return np.exp(values.mean(axis=axis))


def ratio_of_sums(above: NDArray[np.float64], below: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Sum over sum, such as the loss of all examples over their bytes."""
    return above.sum(axis=axis) / below.sum(axis=axis)
