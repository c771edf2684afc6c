"""Forecast of a run before it is started: repeats, clusters, bytes, requests, mixture error.

Not a model of the loader but its order, counted: how often each leaf is drawn comes from `SampleOrder` in
one vectorised step per phase, and a leaf of n windows that is drawn d times serves d mod n of its windows once more
than the others. So for a seed the numbers are exact, at any length of the run, in memory for a slice of the leaves.
Requests depend on what is fetched together; they are found by walking the order through the plan of runs of the reader,
all of it when the run is short, else some of its blocks (`Reads.how`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.forecast.advice import advise
from crisp_stream.forecast.counts import Counts, count
from crisp_stream.forecast.estimate import count_reads, estimate, moments, stretches
from crisp_stream.forecast.reads import Plans, walk_all
from crisp_stream.forecast.result import (
    QUANTILES,
    REQUEST_PRICE,
    ClusterRepeats,
    Forecast,
    Loader,
    OccurrenceBin,
    PhaseForecast,
    Reads,
    Serving,
)
from crisp_stream.forecast.selected import count_selected
from crisp_stream.histograms.component import windows_per_node
from crisp_stream.histograms.history import smoothing_of
from crisp_stream.loading.stream import Stream
from crisp_stream.order.blocks import BLOCK_SAMPLES

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.mixture import Mixture
    from crisp_stream.order.order import SampleOrder

MAX_BLOCKS = 16
"""Most blocks that are walked for requests."""
_EXACT_BINS = 64
_BIN_GROWTH = 1.1


def forecast(
    dataset: Dataset,
    mixture: Mixture,
    *,
    samples: int | None = None,
    seed: int = 0,
    loader: Loader | None = None,
    price_per_1000_requests: float = REQUEST_PRICE,
    top: int = 10,
    max_blocks: int = MAX_BLOCKS,
) -> Forecast:
    """Count what a run will serve and read.

    Args:
        dataset: the dataset that is read; of a local one, reads are those of a copy in an object store.
        mixture: the mixture that is followed.
        samples: samples over all ranks; those of the mixture when None. The loader serves whole global batches: rounded
            up for a mixture that goes on, or else down.
        seed: seed of the order.
        loader: the processes that read; a single one when None.
        price_per_1000_requests: US dollars for 1,000 GET requests.
        top: how many of the most repeated clusters are named.
        max_blocks: a longer run, in blocks of 2^18 samples, is not walked as a whole to count its requests, unless a
            phase has a window selection.

    Raises:
        InputError: the mixture does not fit the dataset, has no end and `samples` is None, or is shorter than
            `samples`; or a number is out of range.
    """
    loader = Loader() if loader is None else loader
    _check_numbers(top, max_blocks, price_per_1000_requests)
    stop = _stop(mixture, samples, loader.global_batch_size)
    served = stop // loader.global_batch_size * loader.global_batch_size
    stream = Stream(dataset, mixture, seed=seed)
    serving = forecast_serving(dataset, mixture, stream.fresh_order(), samples=served, seed=seed, top=top)
    known = stop if mixture.draw == "systematic" else None
    plans = Plans(dataset, stream.fresh_order, served, stop=known, draw=mixture.draw, loader=loader)
    result = Forecast(**vars(serving), reads=_reads(plans, price_per_1000_requests, max_blocks))
    left_out = 0 if samples is not None and mixture.num_samples is None else stop - served
    warnings = advise(result, loader, sample_bytes=dataset.manifest.sample_bytes, left_out=left_out)
    return dataclasses.replace(result, warnings=warnings)


def forecast_serving(
    dataset: Dataset, mixture: Mixture, order: SampleOrder, *, samples: int, seed: int, top: int = 10
) -> Serving:
    """Count what a run will serve, and nothing of how it is read: no block of the order is walked.

    Args:
        order: of the mixture and the seed; its caches are used.
        samples: samples over all ranks, at least 1.
    """
    level = max([1, *(each.histogram.level for each in mixture.components if each.windows is None)])
    counting = count_selected if order.table.parts else count
    counts = counting(dataset, order, samples, draw=mixture.draw, level=level, top=top)
    return Serving(
        dataset=dataset.root,
        dataset_fingerprint=dataset.manifest.fingerprint,
        mixture_fingerprint=mixture.fingerprint,
        seed=seed,
        draw=mixture.draw,
        samples=samples,
        tokens=samples * dataset.manifest.window_tokens,
        phases=_phases(dataset, mixture, counts),
        windows=dataset.manifest.num_windows,
        level=level,
        **_counted(counts, dataset.manifest.num_windows, samples),
    )


def _check_numbers(top: int, max_blocks: int, price: float) -> None:
    for name, value, least in (("top", top, 1), ("max_blocks", max_blocks, 1)):
        if value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}.")
    if not (math.isfinite(price) and price >= 0):
        raise InputError(f"request price: must be a number of dollars >= 0, got {price}.")


def _counted(counts: Counts, num_windows: int, served: int) -> dict[str, Any]:
    """Fill the fields that follow from how often windows are served."""
    reachable, every = _quantiles(counts, num_windows)
    repeats = (
        ClusterRepeats(cluster=cluster, windows=windows, draws=draws) for cluster, windows, draws in counts.top.tolist()
    )
    return {
        "windows_reachable": counts.windows_reachable,
        "windows_served": counts.windows_served,
        "leaves_reachable": counts.leaves_reachable,
        "leaves_hit": counts.leaves_hit,
        "clusters": counts.clusters,
        "clusters_reachable": counts.clusters_reachable,
        "clusters_hit": counts.clusters_hit,
        "most_repeated": tuple(repeats),
        "quantiles_reachable": reachable,
        "quantiles_all": every,
        "distribution": _bins(counts, num_windows),
        "mixture_error": counts.misplaced / served,
        "mixture_error_bound": min(1.0, sum(phase.error_bound for phase in counts.phases) / served),
    }


def _stop(mixture: Mixture, samples: int | None, global_batch: int) -> int:
    """Find the position after the last sample that the loader may need."""
    end = mixture.num_samples
    if samples is None:
        if end is None:
            raise InputError("the mixture has no end: say how long the run is, with samples= (--samples or --tokens).")
        wanted = end
    else:
        if samples < 1:
            raise InputError(f"samples: must be at least 1, got {samples}.")
        if end is not None and samples > end:
            raise InputError(
                f"samples: the phases of the mixture have {end:,}, got {samples:,}. Ask for no more, or leave the last "
                "phase open."
            )
        wanted = -(-samples // global_batch) * global_batch
    stop = wanted if end is None else min(wanted, end)
    if stop < global_batch:
        raise InputError(
            f"samples: {stop:,} do not fill a global batch of {global_batch:,}, so nothing would be served. "
            "Train longer, or with a smaller batch."
        )
    return stop


def _phases(dataset: Dataset, mixture: Mixture, counts: Counts) -> tuple[PhaseForecast, ...]:
    phases = []
    for phase, counted in zip(mixture.phases, counts.phases, strict=False):  # the run may end before the last phases
        present = [windows_per_node(each.histogram, dataset) > 0 for each in phase.components]
        pairs = list(zip(phase.components, present, strict=True))
        missing = (each.share * each.histogram.proportions.sum(where=~has_windows) for each, has_windows in pairs)
        selected = [each.windows.num_selected for each in phase.components if each.windows is not None]
        only = phase.components[0] if len(phase.components) == 1 else None
        phases.append(
            PhaseForecast(
                components=len(phase.components),
                level=max(each.histogram.level for each in phase.components),
                samples=counted.samples,
                clusters=sum(int(has_windows.sum()) for has_windows in present),
                leaves=counted.leaves,
                windows=counted.windows,
                missing_mass=float(sum(missing)),
                selected=sum(selected) if len(selected) == len(phase.components) else None,
                smoothing="none" if only is None or only.windows is not None else smoothing_of(only.histogram),
                max_repeats=only.max_repeats if only is not None and only.on_excess == "cap" else None,
            )
        )
    return tuple(phases)


def _quantiles(counts: Counts, num_windows: int) -> tuple[tuple[tuple[float, int], ...], ...]:
    """Compute quantiles over the reachable windows, and over all."""
    quantiles = []
    for unreachable in (0, num_windows - counts.windows_reachable):
        occurrences = np.append(0, counts.occurrences)
        ends = np.cumsum(np.append(unreachable, counts.windows_per_occurrence))
        # The value of which at least that share of the windows is no larger: the smallest for quantile 0.
        places = [max(1, math.ceil(share * int(ends[-1]))) for share in QUANTILES]
        at = np.searchsorted(ends, places)
        quantiles.append(tuple(zip(QUANTILES, occurrences[at].tolist(), strict=True)))
    return tuple(quantiles)


def _bins(counts: Counts, num_windows: int) -> tuple[OccurrenceBin, ...]:
    values, windows = counts.occurrences, counts.windows_per_occurrence
    unreachable = num_windows - counts.windows_reachable
    if len(values) and values[0] == 0:
        windows = np.append(windows[0] + unreachable, windows[1:])
    elif unreachable:
        values, windows = np.append(0, values), np.append(unreachable, windows)
    above = np.log(np.maximum(values, _EXACT_BINS) / _EXACT_BINS) / math.log(_BIN_GROWTH)
    keys = np.where(values <= _EXACT_BINS, values, _EXACT_BINS + 1 + above.astype(np.int64))
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    last = np.append(first[1:], len(keys)) - 1
    sums = np.add.reduceat(windows, first)
    return tuple(
        OccurrenceBin(least=least, most=most, windows=total)
        for least, most, total in zip(values[first].tolist(), values[last].tolist(), sums.tolist(), strict=True)
    )


def _reads(plans: Plans, price: float, max_blocks: int) -> Reads:
    loader, sample_bytes = plans.loader, plans.dataset.manifest.sample_bytes
    if plans.order.table.parts:
        reading = walk_all(plans)  # the runs of a selection lie as its windows do: only a walk finds them
        working_set = int(reading.windows_per_reader.max())
    else:
        borders = stretches(plans, max_blocks)
        counted = count_reads(plans, np.unique(np.concatenate([borders, moments(plans)])))
        walked = plans.samples <= max_blocks * BLOCK_SAMPLES
        reading = walk_all(plans) if walked else estimate(plans, counted, borders)
        working_set = int(counted.windows_kept.max()) * (float(reading.windows_per_reader.max()) / counted.windows)
    nodes_per_reader = loader.nodes // loader.num_readers
    windows = reading.windows_per_reader.repeat(nodes_per_reader)
    return Reads(
        how="walked" if reading.walked else "sampled",
        blocks=reading.blocks,
        bytes_exact=reading.windows_exact,
        requests_exact=reading.walked and loader.processes_per_node == 1,
        bytes_per_node=tuple((windows * sample_bytes).tolist()),
        requests_per_node=tuple(reading.requests_per_reader.repeat(nodes_per_reader).tolist()),
        working_set_bytes=math.ceil(working_set * sample_bytes),
        cache_limit=loader.cache_limit,
        price_per_1000_requests=price,
    )
