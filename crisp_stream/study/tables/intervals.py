"""Confidence intervals of figures of several seeds and many examples, over both.

Values are v[seed, example] = mean + a[seed] + b[example] + c[seed, example]. The mean over both has a variance of
var(a)/S + var(b)/E + var(c)/SE. It is estimated by two terms,

    (s_seed^2 / S)        s_seed: standard deviation over seeds of the means over examples
    (s_example^2 / E)     s_example: standard deviation over examples of the means over seeds

and the interval is mean +- sqrt(t^2 s_seed^2/S + u^2 s_example^2/E), with t of S - 1 and u of E - 1 degrees of freedom
at 95 %. Quantiles combined so cover at least what they say for independent variances (Banerjee 1960).
Limits:

* c counts in both terms, once too often; with few seeds t is large (4.3 for three). Both make intervals too wide, so
  what they call different is. Satterthwaite's degrees of freedom make them too narrow instead: 0.92 of the intervals
  of three seeds hold the truth where seeds matter most, 0.88 of two.
* With one seed the first term is missing: the interval says nothing of other seeds, and tables say so.
* Seeds are of initial weights and order. The corpus, the specialist's training examples and candidates chosen with the
  first seed are the same in all.
* Intervals hold for each comparison alone: of twenty between equal methods one is expected to call them different.

Shares have Wilson's interval, whose width is set by the same two terms, so it stays between 0 and 1. Where all examples
agree the terms are 0, and as many examples of one seed stand for them.

A bootstrap over seeds is of no use here: of three seeds it never reaches beyond the lowest and highest mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import import_extra
from crisp_stream.results.bootstrap import CONFIDENCE, Interval, wilson
from crisp_stream.results.estimates import Estimate


def mean_over_sets(sets: Sequence[tuple[str, NDArray[np.float64]]]) -> Estimate:
    """Estimate the mean of the means of several sets, each of equal weight, with its interval.

    A seed's effect on all sets is taken together, as the sets may share a model. Where one set of examples stands more
    than once, as the generalist set of several models does, its values are averaged by example first.

    Args:
        sets: name and values of each, [num_seeds, num_examples], of equal seeds.
    """
    mean, squared, _ = _mean_and_half_width(sets)
    return Estimate(mean, Interval(mean - math.sqrt(squared), mean + math.sqrt(squared)))


def share_over_sets(sets: Sequence[tuple[str, NDArray[np.float64]]]) -> Estimate:
    """Estimate likewise the mean of values from 0 to 1, with an interval in this range."""
    mean, squared, of_unanimous = _mean_and_half_width(sets)
    spread = mean * (1 - mean)
    return Estimate(mean, wilson(mean, squared / spread if squared > 0 else of_unanimous))


def difference_over_sets(sets: Sequence[tuple[str, NDArray[np.float64]]]) -> Estimate:
    """Estimate likewise the mean of values from -1 to 1, with an interval in this range."""
    found = mean_over_sets(sets)
    return Estimate(found.value, Interval(*np.clip(found.interval, -1, 1).tolist()))


def _mean_and_half_width(sets: Sequence[tuple[str, NDArray[np.float64]]]) -> tuple[float, float, float]:
    """The mean, the squared half of its interval, and what stands for u^2/E of a share where all examples agree.

    The last two are NaN where a set has a single example.
    """
    weight = 1 / len(sets)
    by_seed = weight * np.sum([values.mean(axis=1) for _, values in sets], axis=0)
    by_set: dict[str, NDArray[np.float64]] = {}
    weights: dict[str, float] = {}
    for name, values in sets:
        by_set[name] = by_set.get(name, 0.0) + weight * values.mean(axis=0)
        weights[name] = weights.get(name, 0.0) + weight
    mean = float(by_seed.mean())
    if any(len(values) < 2 for values in by_set.values()):
        return mean, math.nan, math.nan
    special = import_extra("scipy.special", extra="eval", purpose="confidence intervals")
    at = (1 + CONFIDENCE) / 2
    of_examples = {
        name: float(special.stdtrit(len(values) - 1, at)) ** 2 / len(values) for name, values in by_set.items()
    }
    squared = sum(of_examples[name] * float(values.var(ddof=1)) for name, values in by_set.items())
    seeds = len(by_seed)
    if seeds > 1:
        squared += float(special.stdtrit(seeds - 1, at)) ** 2 * float(by_seed.var(ddof=1)) / seeds
    return mean, squared, sum(of_examples[name] * weights[name] ** 2 for name in by_set)


def exponential(estimate: Estimate) -> Estimate:
    """Turn nats into a perplexity, a difference of nats into a ratio of perplexities."""
    return Estimate(float(np.exp(estimate.value)), Interval(*(float(np.exp(bound)) for bound in estimate.interval)))
