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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.forecast.advice import advise
from crisp_stream.forecast.counts import Counts, count
from crisp_stream.forecast.estimate import count_reads, estimate, moments, stretches
from crisp_stream.forecast.reads import Plans, Reading, walk_all
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
    SourceForecast,
)
from crisp_stream.forecast.selected import count_selected
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.component import windows_per_node
from crisp_stream.histograms.history import smoothing_of
from crisp_stream.loading.stream import Stream
from crisp_stream.order.blocks import BLOCK_SAMPLES

if TYPE_CHECKING:
    from crisp_stream.histograms.mixture import Data, Mixture
    from crisp_stream.order.order import SampleOrder

MAX_BLOCKS = 16
"""Most blocks that are walked for requests."""
_EXACT_BINS = 64
_BIN_GROWTH = 1.1


def forecast(
    data: Data,
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
        data: the dataset that is read, or several by name; of a local one, reads are those of a copy in an object
            store.
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
        InputError: the mixture does not fit the data, has no end and `samples` is None, or is shorter than
            `samples`; or a number is out of range.
    """
    loader = Loader() if loader is None else loader
    _check_numbers(top, max_blocks, price_per_1000_requests)
    stop = _stop(mixture, samples, loader.global_batch_size)
    served = stop // loader.global_batch_size * loader.global_batch_size
    sources = Sources.of(data)
    stream = Stream(sources, mixture, seed=seed)
    serving = forecast_serving(sources, mixture, stream.fresh_order(), samples=served, seed=seed, top=top)
    known = stop if mixture.draw == "systematic" else None
    plans = [
        Plans(dataset, stream.fresh_order, served, stop=known, draw=mixture.draw, loader=loader, source=source)
        for source, dataset in enumerate(sources.datasets)
    ]
    result = Forecast(**vars(serving), reads=_reads(plans, price_per_1000_requests, max_blocks))
    left_out = 0 if samples is not None and mixture.num_samples is None else stop - served
    warnings = advise(result, loader, sample_bytes=sources.manifest.sample_bytes, left_out=left_out)
    return dataclasses.replace(result, warnings=warnings)


def forecast_serving(
    data: Data, mixture: Mixture, order: SampleOrder, *, samples: int, seed: int, top: int = 10
) -> Serving:
    """Count what a run will serve, and nothing of how it is read: no block of the order is walked.

    Args:
        data: the dataset, or several by name.
        mixture: the mixture that is followed.
        order: of the mixture and the seed; its caches are used.
        samples: samples over all ranks, at least 1.
        seed: that of the order.
        top: how many of the most repeated clusters are named.
    """
    sources = Sources.of(data)
    levels = [1] * len(sources)
    for each in mixture.components:
        if each.windows is None:
            source = sources.index(each.source, what="the mixture")
            levels[source] = max(levels[source], each.histogram.level)
    counting = count_selected if order.table.parts else count
    counts = counting(sources, order, samples, draw=mixture.draw, levels=levels, top=top)
    return Serving(
        sources=tuple(
            SourceForecast(
                name=name,
                dataset=dataset.root,
                fingerprint=dataset.manifest.fingerprint,
                windows=dataset.manifest.num_windows,
                **vars(counted),
            )
            for (name, dataset), counted in zip(sources, counts.sources, strict=True)
        ),
        mixture_fingerprint=mixture.fingerprint,
        seed=seed,
        draw=mixture.draw,
        samples=samples,
        tokens=samples * sources.manifest.window_tokens,
        phases=_phases(sources, mixture, counts),
        **_counted(counts, sources, samples),
    )


def _check_numbers(top: int, max_blocks: int, price: float) -> None:
    for name, value, least in (("top", top, 1), ("max_blocks", max_blocks, 1)):
        if value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}.")
    if not (math.isfinite(price) and price >= 0):
        raise InputError(f"request price: must be a number of dollars >= 0, got {price}.")


def _counted(counts: Counts, sources: Sources, served: int) -> dict[str, Any]:
    """Fill the fields that follow from how often windows are served."""
    num_windows = int(sources.first_windows[-1])
    unreachable = num_windows - sum(source.windows_reachable for source in counts.sources)
    reachable, every = _quantiles(counts, unreachable)
    repeats = (
        ClusterRepeats(
            source=sources.names[source],
            level=counts.sources[source].level,
            cluster=cluster,
            windows=windows,
            draws=draws,
        )
        for source, cluster, windows, draws in counts.top.tolist()
    )
    return {
        "most_repeated": tuple(repeats),
        "quantiles_reachable": reachable,
        "quantiles_all": every,
        "distribution": _bins(counts, unreachable),
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


def _phases(sources: Sources, mixture: Mixture, counts: Counts) -> tuple[PhaseForecast, ...]:
    phases = []
    for phase, counted in zip(mixture.phases, counts.phases, strict=False):  # the run may end before the last phases
        datasets = [sources.datasets[sources.index(each.source, what="a phase")] for each in phase.components]
        of_components = zip(phase.components, datasets, strict=True)
        present = [windows_per_node(each.histogram, dataset) > 0 for each, dataset in of_components]
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


def _quantiles(counts: Counts, unreachable: int) -> tuple[tuple[tuple[float, int], ...], ...]:
    """Compute quantiles over the reachable windows, and over all."""
    quantiles = []
    for never in (0, unreachable):
        occurrences = np.append(0, counts.occurrences)
        ends = np.cumsum(np.append(never, counts.windows_per_occurrence))
        # The value of which at least that share of the windows is no larger: the smallest for quantile 0.
        places = [max(1, math.ceil(share * int(ends[-1]))) for share in QUANTILES]
        at = np.searchsorted(ends, places)
        quantiles.append(tuple(zip(QUANTILES, occurrences[at].tolist(), strict=True)))
    return tuple(quantiles)


def _bins(counts: Counts, unreachable: int) -> tuple[OccurrenceBin, ...]:
    values, windows = counts.occurrences, counts.windows_per_occurrence
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


def _reads(all_plans: Sequence[Plans], price: float, max_blocks: int) -> Reads:
    """Join the reads of the sources: each has a reader of its own in every process."""
    loader = all_plans[0].loader
    found = [_reading(plans, max_blocks) for plans in all_plans]
    readings = [reading for reading, _ in found]
    sample_bytes = [plans.dataset.manifest.sample_bytes for plans in all_plans]
    bytes_per_reader = sum(each.windows_per_reader * size for each, size in zip(readings, sample_bytes, strict=True))
    requests_per_reader = sum(each.requests_per_reader for each in readings)
    working_set = sum(kept * size for (_, kept), size in zip(found, sample_bytes, strict=True))
    walked = all(each.walked for each in readings)
    nodes_per_reader = loader.nodes // loader.num_readers
    return Reads(
        how="walked" if walked else "sampled",
        blocks=readings[0].blocks,
        bytes_exact=all(each.windows_exact for each in readings),
        requests_exact=walked and loader.processes_per_node == 1,
        bytes_per_node=tuple(np.repeat(bytes_per_reader, nodes_per_reader).tolist()),
        requests_per_node=tuple(np.repeat(requests_per_reader, nodes_per_reader).tolist()),
        working_set_bytes=math.ceil(np.max(working_set)),
        cache_limit=loader.cache_limit,
        price_per_1000_requests=price,
    )


def _reading(plans: Plans, max_blocks: int) -> tuple[Reading, NDArray[np.float64]]:
    """Reading of a source, and windows of its working set at some moments, [num_moments], the same for all sources."""
    if plans.order.table.parts:
        reading = walk_all(plans)  # the runs of a selection lie as its windows do: only a walk finds them
        return reading, np.array([reading.windows_per_reader.max()], np.float64)
    borders = stretches(plans, max_blocks)
    counted = count_reads(plans, np.unique(np.concatenate([borders, moments(plans)])))
    walked = plans.samples <= max_blocks * BLOCK_SAMPLES
    reading = walk_all(plans) if walked else estimate(plans, counted, borders)
    share = int(reading.windows_per_reader.max()) / max(1, counted.windows)
    return reading, counted.windows_kept.astype(np.float64) * share
