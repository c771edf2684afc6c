"""How often the intervals that are printed hold a truth that is known.

    python -m benchmarks.evaluation.interval_study

Prints the Markdown table of docs/judge/evaluation.md: for 10, 30, 100 and 300 examples the share of 2,000 trials whose
95 % interval holds the truth. Of shares it is the mean over 41 truths, since with few examples the coverage of a single
truth jumps with the whole numbers that can be counted: between 0.83 and 0.99 for any interval. Standard errors: 0.005.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from crisp_stream.results.bootstrap import (
    Interval,
    difference_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)
from crisp_stream.study.tables.intervals import mean_over_sets, share_over_sets

SIZES = (10, 30, 100, 300)
Trial = Callable[[np.random.Generator, int], tuple[Interval, float]]
"""One trial of so many examples: its interval, and the truth."""


def _mean_of(draw: Callable[[np.random.Generator, int], NDArray[np.float64]], truth: float) -> Trial:
    return lambda rng, examples: (mean_interval(draw(rng, examples)), truth)


def _ratio(rng: np.random.Generator, examples: int) -> tuple[Interval, float]:
    """Loss per token of texts of very different lengths; longer texts have lower losses."""
    tokens = np.ceil(rng.lognormal(5, 0.8, examples))
    losses = rng.normal(4.0, 0.5, examples) - 0.2 * (np.log(tokens) - 5)
    # Of tokens lognormal(5, 0.8): the mean loss by tokens is 4 - 0.2 * 0.8^2, whole numbers aside.
    return ratio_interval([losses * tokens], [tokens]), 4.0 - 0.2 * 0.64


def _share(rng: np.random.Generator, examples: int) -> tuple[Interval, float]:
    truth = float(rng.choice(np.linspace(0.02, 0.98, 41)))
    return share_interval(rng.random(examples) < truth), truth


def _difference(rng: np.random.Generator, examples: int) -> tuple[Interval, float]:
    """Paired accuracies: 5 to 25 % of the answers better, as many or fewer worse."""
    above = float(rng.uniform(0.05, 0.25))
    below = above * float(rng.uniform(0.2, 1))
    values = rng.choice([1, -1, 0], examples, p=[above, below, 1 - above - below])
    return difference_interval(values), above - below


def _better(rng: np.random.Generator, examples: int) -> tuple[Interval, float]:
    """Share of examples that are better, a tie half: 0 to 30 % ties."""
    above = float(rng.uniform(0.02, 0.98))
    ties = float(rng.uniform(0, 0.3))
    values = rng.choice([1, -1, 0], examples, p=[above * (1 - ties), (1 - above) * (1 - ties), ties])
    low, high = difference_interval(values)
    return Interval((1 + low) / 2, (1 + high) / 2), ties / 2 + above * (1 - ties)


def _study(rng: np.random.Generator, examples: int) -> tuple[Interval, float]:
    """A study's mean over three seeds, whose effects are as large as those of ten examples."""
    values = (
        0.13 * rng.normal(size=(3, 1)) + 0.4 * rng.normal(size=(1, examples)) + 0.1 * rng.normal(size=(3, examples))
    )
    return mean_over_sets([("", values)]).interval, 0.0


def _study_share(rng: np.random.Generator, examples: int) -> tuple[Interval, float]:
    """A study's share of three seeds that agree about most examples."""
    truth = float(rng.choice(np.linspace(0.02, 0.98, 41)))
    shared, own = rng.normal(size=(1, examples)), 0.5 * rng.normal(size=(3, examples))
    below = shared + own < np.sqrt(1.25) * stats.norm.ppf(truth)
    return share_over_sets([("", below.astype(np.float64))]).interval, truth


TRIALS: dict[str, Trial] = {
    "mean of losses, normal": _mean_of(lambda rng, examples: rng.normal(3, 0.5, examples), 3.0),
    "mean of losses, heavy tails (t of 4)": _mean_of(lambda rng, examples: rng.standard_t(4, examples), 0.0),
    "mean of losses, skewed (gamma of 2)": _mean_of(lambda rng, examples: rng.gamma(2, size=examples), 2.0),
    "mean of losses, very skewed (exponential)": _mean_of(lambda rng, examples: rng.exponential(size=examples), 1.0),
    "loss by tokens, lengths lognormal of 0.8": _ratio,
    "accuracy": _share,
    "difference of accuracies, paired": _difference,
    "share of examples that are better, with ties": _better,
    "study: mean over three seeds": _study,
    "study: share over three seeds": _study_share,
}


def coverage(trial: Trial, examples: int, trials: int) -> float:
    """The share of trials whose interval holds the truth."""
    rng = np.random.default_rng(examples)
    drawn = (trial(rng, examples) for _ in range(trials))
    return float(np.mean([low <= truth <= high for (low, high), truth in drawn]))


def table(trials: int, names: Sequence[str]) -> str:
    """The Markdown table."""
    lines = ["| interval | " + " | ".join(f"n = {size}" for size in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    for name in names:
        cells = " | ".join(f"{coverage(TRIALS[name], size, trials):.3f}" for size in SIZES)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, metavar="N")
    parser.add_argument("--only", action="append", choices=list(TRIALS), metavar="INTERVAL")
    asked = parser.parse_args()
    print(table(asked.trials, asked.only or list(TRIALS)))


if __name__ == "__main__":
    main()
