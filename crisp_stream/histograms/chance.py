"""What sampling alone makes of a histogram: the figures of as many random windows of the corpus.

A few windows over many clusters are far from the corpus, sit in few clusters and have large w(c) even if they are drawn
from the corpus itself: 50 random windows over 4,096 clusters are more than 90 % "off the corpus". So beside these
figures stands their mean over `DRAWS` random sets of as many windows. Windows are drawn apart from one another; those
of one long example are alike, so for these the figures by chance are a little too small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError

DRAWS = 20
FEW_WINDOWS = 5
"""Windows per cluster below which shares of single clusters, and w(c), are mostly chance."""
_HEAVIEST = 10
_PERMUTED_AT_MOST = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Figures of random sets of windows of the corpus, means over `DRAWS` sets."""

    num_windows: int
    """Windows of each set."""
    off_corpus: float
    """Total variation from the corpus, 0 to 1."""
    effective_clusters: float
    largest_weight: float
    """Largest w(c) among the ten heaviest clusters."""
    windows_per_cluster: float
    """Windows by clusters that hold windows of the corpus."""

    @property
    def warning(self) -> str | None:
        """What to say where there are few windows for so many clusters; None otherwise."""
        if self.windows_per_cluster >= FEW_WINDOWS:
            return None
        return (
            f"warning: {self.windows_per_cluster:.2g} windows per cluster, below {FEW_WINDOWS}: shares of single "
            "clusters and w(c) are mostly chance. Count at a coarser level, or smooth: crisp-stream histogram tune."
        )


def by_chance(shares: NDArray[np.float64], num_windows: int, *, draws: int = DRAWS, seed: int = 0) -> Chance:
    """Draw random sets of windows of a corpus.

    Args:
        shares: [num_clusters], of the corpus, positive, summing to 1.
        num_windows: of each set, at least 1.
        draws: sets.
        seed: of the draws.

    Raises:
        InputError: no windows.
    """
    if num_windows < 1:
        raise InputError(f"by chance: needs at least 1 window, got {num_windows}.")
    rng, ends = np.random.default_rng(seed), np.cumsum(shares)
    figures = []
    for _ in range(draws):
        # Only clusters that are hit are looked at: 50 windows over 10^5 clusters are 50 numbers.
        places = np.searchsorted(ends, rng.random(num_windows) * ends[-1], side="right").clip(0, len(shares) - 1)
        hit, counts = np.unique(places, return_counts=True)
        own = counts / num_windows
        heaviest = np.argsort(-own, kind="stable")[:_HEAVIEST]
        figures.append(
            (
                1 - float(np.minimum(own, shares[hit]).sum()),
                float(np.exp(-(own * np.log(own)).sum())),
                float((own[heaviest] / shares[hit[heaviest]]).max()),
            )
        )
    off, effective, weight = np.mean(figures, axis=0).tolist()
    return Chance(
        num_windows=num_windows,
        off_corpus=off,
        effective_clusters=effective,
        largest_weight=weight,
        windows_per_cluster=num_windows / len(shares),
    )


def distance_by_chance(
    first: NDArray[np.int64], second: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0
) -> float:
    """Total variation between two sets of windows if both were of one mixture: the mean over random exchanges.

    Args:
        first: [num_clusters], windows counted.
        second: likewise; of many more windows it is taken for the mixture itself.
    """
    rng, pooled, num_first = np.random.default_rng(seed), first + second, int(first.sum())
    found = []
    for _ in range(draws):
        if pooled.sum() <= _PERMUTED_AT_MOST:
            drawn = rng.multivariate_hypergeometric(pooled, num_first, method="marginals")
            others = pooled - drawn
        else:
            drawn, others = rng.multinomial(num_first, pooled / pooled.sum()), pooled
        found.append(np.abs(drawn / num_first - others / others.sum()).sum() / 2)
    return float(np.mean(found))
