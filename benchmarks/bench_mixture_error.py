"""Total variation between the asked mixture and the first T samples: systematic against multinomial, in one run.

    python benchmarks/bench_mixture_error.py

Log-normal (sigma 2) proportions, 50 windows per leaf; the median over five seeds, and the worst of them. Prints
Markdown rows.
"""

from __future__ import annotations

import statistics

import numpy as np
from numpy.typing import NDArray

from crisp_stream.order import SampleOrder

SAMPLES = (10_000, 100_000, 1_000_000)
SEEDS = range(5)
WINDOWS_PER_LEAF = 50


def proportions_of(num_leaves: int, num_drawn: int) -> NDArray[np.float64]:
    """[num_leaves] log-normal proportions on `num_drawn` leaves chosen at random."""
    rng = np.random.default_rng(0)
    proportions = np.zeros(num_leaves)
    proportions[rng.permutation(num_leaves)[:num_drawn]] = np.exp(2 * rng.normal(size=num_drawn))
    return proportions / proportions.sum()


def errors(proportions: NDArray[np.float64], draw: str, seed: int) -> list[float]:
    """Total variation after each of SAMPLES."""
    windows = np.full(len(proportions), WINDOWS_PER_LEAF)
    order = SampleOrder(np.arange(len(proportions)), windows, [(proportions, None)], seed=seed, draw=draw)  # pyright: ignore[reportArgumentType]
    rows = order.window_ids(np.arange(SAMPLES[-1])) // WINDOWS_PER_LEAF
    counts = [np.bincount(rows[:samples], minlength=len(proportions)) / samples for samples in SAMPLES]
    return [0.5 * float(np.abs(count - proportions).sum()) for count in counts]


def main() -> None:
    """Print the table."""
    print(
        "| leaves, non-zero | draw | "
        + " | ".join(f"T = {samples:,}" for samples in SAMPLES)
        + " | ratio at the last T |"
    )
    print("|---|---|" + "---|" * (len(SAMPLES) + 1))
    for num_leaves, num_drawn in ((4_096, 3_000), (4_096, 4_096), (262_144, 60_000)):
        proportions = proportions_of(num_leaves, num_drawn)
        medians = {}
        for draw in ("systematic", "multinomial"):
            runs = np.array([errors(proportions, draw, seed) for seed in SEEDS])
            medians[draw] = statistics.median(runs[:, -1])
            cells = [f"{np.median(column):.4f} ({column.max():.4f})" for column in runs.T]
            ratio = f"{medians['multinomial'] / medians['systematic']:.1f}x" if draw == "multinomial" else ""
            print(f"| {num_leaves:,}, {num_drawn:,} | {draw} | " + " | ".join(cells) + f" | {ratio} |")


if __name__ == "__main__":
    main()
