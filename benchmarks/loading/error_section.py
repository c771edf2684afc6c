"""The section on exactness: total variation between the mixture asked for and the samples served. Counts, no data."""

from __future__ import annotations

import itertools
import random
import statistics
from bisect import bisect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.loading.inputs import Inputs
from benchmarks.support.measure import UnavailableError, run_task
from benchmarks.support.report import Column, Row, count


def _small(value: float) -> str:
    return f"{value:.4f}" if value >= 0.001 else f"{value:.5f}"


ERROR_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="leaves", key="leaves", show=count),
    Column(title="non-zero", key="nonzero", show=count),
    Column(title="T = 10^3", key="tv_3", show=_small),
    Column(title="T = 10^4", key="tv_4", show=_small),
    Column(title="T = 10^5", key="tv_5", show=_small),
    Column(title="T = 10^6", key="tv_6", show=_small),
    Column(title="T = 10^7", key="tv_7", show=_small),
]
WINDOWS_PER_LEAF = 50
_CHUNK = 1 << 20

Floats = NDArray[np.float64]


def proportions_of(num_leaves: int, num_drawn: int) -> Floats:
    """[num_leaves] log-normal (sigma 2) proportions on `num_drawn` leaves chosen at random."""
    rng = np.random.default_rng(0)
    proportions = np.zeros(num_leaves)
    proportions[rng.permutation(num_leaves)[:num_drawn]] = np.exp(2 * rng.normal(size=num_drawn))
    return proportions / proportions.sum()


def _variation(counts: NDArray[np.int64], proportions: Floats) -> float:
    return 0.5 * float(np.abs(counts / counts.sum() - proportions).sum())


def ours(*, leaves: int, nonzero: int, draw: str, seed: int, lengths: list[int]) -> dict[str, float]:
    """Task: the order's first T samples, for each T of `lengths`."""
    from crisp_stream.order.blocks import Blocks
    from crisp_stream.order.draw_table import DrawTable
    from crisp_stream.order.order import SampleOrder, phases_in_turn

    proportions = proportions_of(leaves, nonzero)
    windows = np.full(leaves, WINDOWS_PER_LEAF)
    blocks = Blocks(seed=seed, draw=draw)  # pyright: ignore[reportArgumentType]
    order = SampleOrder(DrawTable.of_leaves(np.arange(leaves), windows), phases_in_turn([(proportions, None)]), blocks)
    counts, errors, done = np.zeros(leaves, np.int64), {}, 0
    for length in lengths:
        while done < length:
            upto = min(length, (done // _CHUNK + 1) * _CHUNK)
            np.add.at(counts, order.window_ids(np.arange(done, upto)) // WINDOWS_PER_LEAF, 1)
            done = upto
        errors[str(length)] = _variation(counts, proportions)
    return errors


def streaming(*, leaves: int, nonzero: int, seed: int, lengths: list[int]) -> dict[str, float]:
    """Task: what StreamingDataset takes of each Stream in an epoch of T samples (its own function; no data is read)."""
    try:
        from streaming import Stream
    except ImportError as error:
        raise UnavailableError("mosaicml-streaming is not installed (pip install 'crisp-stream[train]')") from error

    proportions = proportions_of(leaves, nonzero)
    drawn = np.flatnonzero(proportions)
    errors = {}
    for length in lengths:
        streams = [Stream(local="unused", proportion=float(share)) for share in proportions[drawn]]
        Stream.apply_weights(streams, np.full(len(streams), WINDOWS_PER_LEAF, np.int64), length, seed)
        taken = np.array([stream.choose for stream in streams], np.int64)
        errors[str(length)] = _variation(taken, proportions[drawn])
    return errors


def litdata_choices(weights: list[float], seed: int, samples: int) -> list[int]:
    """What CombinedStreamingDataset draws, `random.Random(seed).choices(..., weights=weights)` for each sample, with
    the running sums made once instead of once per sample."""
    cumulative = list(itertools.accumulate(weights))
    uniform, last, total = random.Random(seed).random, len(weights) - 1, cumulative[-1] + 0.0
    return [bisect(cumulative, uniform() * total, 0, last) for _ in range(samples)]


def litdata(*, leaves: int, nonzero: int, seed: int, lengths: list[int]) -> dict[str, float]:
    """Task: LitData's random choices, for each T."""
    proportions = proportions_of(leaves, nonzero)
    drawn = proportions[proportions > 0]
    choices = np.array(litdata_choices(drawn.tolist(), seed, lengths[-1]))
    return {str(length): _variation(np.bincount(choices[:length], minlength=len(drawn)), drawn) for length in lengths}


def error(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """Total variation asked against served: clusters x samples x sides, the median over seeds."""
    largest = 4 if inputs.quick else 7
    cases = [(64, 64), (4_096, 3_000), (4_096, 4_096), (262_144, 60_000), (262_144, 262_144), (1 << 24, 1 << 24)]
    if inputs.quick:
        cases = [(512, 300)]
    sides: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        ("crisp-stream, systematic", ours, {"draw": "systematic"}),
        ("crisp-stream, multinomial", ours, {"draw": "multinomial"}),
        ("StreamingDataset, epoch of T", streaming, {}),
        ("LitData Combined", litdata, {}),
    ]
    rows: list[Row] = []
    for leaves, nonzero in cases:
        for side, task, options in sides:
            row: Row = {"side": side, "leaves": leaves, "nonzero": nonzero}
            if task is streaming and nonzero > 262_144:
                rows.append(row | {"unavailable": "needs one Stream object per cluster"})
                continue
            exponent = largest - 1 if task is litdata else largest
            lengths = [10**power for power in range(3, exponent + 1)]
            seeds = range(1 if nonzero > 262_144 or inputs.quick else repeats)
            row |= _medians(f"loading.error_section:{task.__name__}", seeds, lengths, leaves, nonzero, options)
            rows.append(row)
    notes = [
        f"Log-normal (sigma 2) proportions; median of {repeats} seeds, one at 16.7M. The plot has the bound L / (2T).",
        "StreamingDataset is asked for an epoch of exactly T, its best case: inside an epoch its order is a shuffle.",
        "LitData draws each sample independently; 10^7 of its draws are left out for time.",
    ]
    return rows, notes


def _medians(
    task: str, seeds: range, lengths: list[int], leaves: int, nonzero: int, options: dict[str, Any]
) -> dict[str, Any]:
    runs = []
    for seed in seeds:
        given = {"leaves": leaves, "nonzero": nonzero, "seed": seed, "lengths": lengths, **options}
        runs.append(run_task(task, given, timeout=600))
        if "unavailable" in runs[-1]:
            return runs[-1]
    values: dict[str, Any] = {}
    for power, length in enumerate(lengths, 3):
        found = [run[str(length)] for run in runs if str(length) in run]
        if found:
            values[f"tv_{power}"] = statistics.median(found)
    return values
