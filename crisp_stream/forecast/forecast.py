"""What a run will read, before it is started: repeats, clusters, bytes, requests, mixture error.

Not a model of the loader but the loader's own order, counted: how often each leaf is drawn comes from `SampleOrder` in
one vectorised step per phase, and a leaf of n windows that is drawn d times serves d mod n of its windows once more
than the others. So for a seed the numbers are exact, at any length of the run, in memory for a slice of the leaves.
Requests depend on what is fetched together; they are found by walking the order through the reader's own plan of runs,
all of it when the run is short, else some of its blocks (`Reads.how`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.forecast.advice import Advice as Advice
from crisp_stream.forecast.advice import advise
from crisp_stream.forecast.counts import Counts, count
from crisp_stream.forecast.estimate import count_reads, estimate, moments, stretches
from crisp_stream.forecast.reads import Loader as Loader
from crisp_stream.forecast.reads import Plans, walk_all
from crisp_stream.forecast.reads import Reads as Reads
from crisp_stream.forecast.selected import count_selected
from crisp_stream.histograms.mixture import windows_per_node
from crisp_stream.loading.stream import Stream
from crisp_stream.order.draws import BLOCK_SAMPLES

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.mixture import Mixture

REQUEST_PRICE = 0.0004
"""US dollars for 1,000 GET requests: Amazon S3 Standard, US East (N. Virginia), from its public price list."""
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
MAX_BLOCKS = 16
"""Blocks that are walked for requests."""
_EXACT_BINS = 64
_BIN_GROWTH = 1.1
_SHOWN_QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, kw_only=True)
class PhaseForecast:
    """One phase of the mixture, as far as the run goes."""

    level: int
    """Of its histogram; 0: base."""
    samples: int
    clusters: int
    """Clusters of the histogram with mass and windows."""
    leaves: int
    """Leaves with mass."""
    windows: int
    """Windows in these leaves."""
    missing_mass: float
    """Share of the histogram on clusters without windows; redistributed."""
    selected: int | None = None
    """Windows of its window selection; None: it has a histogram."""


@dataclass(frozen=True, kw_only=True)
class OccurrenceBin:
    """How many windows are served at least `least` and at most `most` times. Up to 64, `least` equals `most`."""

    least: int
    most: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class ClusterRepeats:
    """A cluster and how often it is gone through."""

    cluster: int
    """Node id at `Forecast.level`."""
    windows: int
    draws: int

    @property
    def epochs(self) -> float:
        """Draws per window."""
        return self.draws / self.windows


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run of a mixture over a dataset will serve and read."""

    dataset: str
    """Root."""
    dataset_fingerprint: str
    mixture_fingerprint: str
    seed: int
    draw: str
    samples: int
    """Windows served over all ranks, repeats included."""
    tokens: int
    phases: tuple[PhaseForecast, ...]

    windows: int
    """Of the dataset."""
    windows_reachable: int
    """Windows in leaves with mass in some phase."""
    windows_served: int
    """Distinct windows served."""
    leaves_reachable: int
    leaves_hit: int

    level: int
    """Of the clusters below: the finest of the phases' histograms, at least 1."""
    clusters: int
    """Clusters of that level with windows."""
    clusters_reachable: int
    clusters_hit: int
    most_repeated: tuple[ClusterRepeats, ...]
    """Most epochs first."""

    quantiles_reachable: tuple[tuple[float, int], ...]
    """(quantile, occurrences) over reachable windows: that share of the windows is served at most so often."""
    quantiles_all: tuple[tuple[float, int], ...]
    """The same over all windows of the dataset."""
    distribution: tuple[OccurrenceBin, ...]
    """Over all windows of the dataset, in increasing order; no empty bins."""

    mixture_error: float
    """Total variation between the leaf proportions asked for and served, in [0, 1]."""
    mixture_error_bound: float
    """What it cannot exceed whatever the seed; for multinomial draws, what 99.9 % of seeds stay below."""

    reads: Reads
    warnings: tuple[Advice, ...] = field(default=())

    @property
    def mean_occurrences(self) -> float:
        """Of the windows that are served."""
        return self.samples / self.windows_served

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        content = dataclasses.asdict(self)
        content["mean_occurrences"] = self.mean_occurrences
        content["reads"] |= {"requests": self.reads.requests, "cost": self.reads.cost}
        return content

    def table(self, terms: Mapping[int, str] | None = None) -> str:
        """As lines of text.

        Args:
            terms: what the most repeated clusters are about.
        """
        rows = [
            ("run", f"{self.samples:,} samples, {self.tokens:,} tokens ({self.draw} draws, seed {self.seed})"),
            *((f"phase {number}", _phase_text(phase)) for number, phase in enumerate(self.phases, 1)),
            ("windows", _of(self.windows_served, self.windows, "served")),
            ("", _of(self.windows_reachable, self.windows, "within reach of the mixture")),
            (f"clusters L{self.level}", _of(self.clusters_hit, self.clusters_reachable, "with mass are drawn")),
            ("leaves", _of(self.leaves_hit, self.leaves_reachable, "with mass are drawn")),
            ("occurrences", f"{self.mean_occurrences:.2f} on average, of a window that is served"),
            ("", f"{_quantile_text(self.quantiles_reachable)}, of windows within reach"),
            ("", f"{_quantile_text(self.quantiles_all)}, of all windows"),
            ("mixture error", f"{self.mixture_error:.5f} total variation (bound {self.mixture_error_bound:.5f})"),
            *self.reads.rows(),
        ]
        lines = [f"{name:<14} {text}" for name, text in rows]
        lines += [
            "",
            f"{'cluster':>10} {'windows':>11} {'draws':>13} {'epochs':>9}   most repeated of level {self.level}",
        ]
        for entry in self.most_repeated:
            named = (terms or {}).get(entry.cluster, "")
            line = f"{entry.cluster:>10} {entry.windows:>11,} {entry.draws:>13,} {entry.epochs:>9.2f}   {named}"
            lines.append(line.rstrip())
        for warning in self.warnings:
            lines += ["", f"! {warning.finding}", f"  {warning.remedy}"]
        return "\n".join(lines)


def _phase_text(phase: PhaseForecast) -> str:
    name = "base" if phase.level == 0 else f"level {phase.level}, {phase.clusters:,} clusters"
    if phase.selected is not None:
        return f"{phase.samples:,} samples of a selection of {phase.selected:,} windows in {phase.leaves:,} leaves"
    return f"{phase.samples:,} samples of {name}: {phase.leaves:,} leaves, {phase.windows:,} windows"


def _of(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.1%}) {what}"


def _quantile_text(quantiles: tuple[tuple[float, int], ...]) -> str:
    shown = (f"{share:.0%} at most {times:,}" for share, times in quantiles if share in _SHOWN_QUANTILES)
    return ", ".join(shown)


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
        dataset: that is read; of a local one, reads are those of a copy in an object store.
        mixture: that is followed.
        samples: over all ranks; those of the mixture when None. The loader serves whole global batches: rounded up for
            a mixture that goes on, or else down.
        seed: of the order.
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
    level = max([1, *(phase.histogram.level for phase in mixture.phases if phase.windows is None)])
    order = stream.fresh_order()
    counting = count if order.table is None else count_selected
    counts = counting(dataset, order, served, draw=mixture.draw, level=level, top=top)
    known = stop if mixture.draw == "systematic" else None
    plans = Plans(dataset, stream.fresh_order, served, stop=known, draw=mixture.draw, loader=loader)
    found = Forecast(
        dataset=dataset.root,
        dataset_fingerprint=dataset.manifest.fingerprint,
        mixture_fingerprint=mixture.fingerprint,
        seed=seed,
        draw=mixture.draw,
        samples=served,
        tokens=served * dataset.manifest.window_tokens,
        phases=_phases(dataset, mixture, counts),
        windows=dataset.manifest.num_windows,
        level=level,
        **_counted(counts, dataset.manifest.num_windows, served),
        reads=_reads(plans, price_per_1000_requests, max_blocks),
    )
    left_out = 0 if samples is not None and mixture.num_samples is None else stop - served
    warnings = advise(found, loader, sample_bytes=dataset.manifest.sample_bytes, left_out=left_out)
    return dataclasses.replace(found, warnings=warnings)


def _check_numbers(top: int, max_blocks: int, price: float) -> None:
    for name, value, least in (("top", top, 1), ("max_blocks", max_blocks, 1)):
        if value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}.")
    if not (math.isfinite(price) and price >= 0):
        raise InputError(f"request price: must be a number of dollars >= 0, got {price}.")


def _counted(counts: Counts, num_windows: int, served: int) -> dict[str, Any]:
    """The fields that follow from how often windows are served."""
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
    """Position after the last sample that the loader may need."""
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
    found = []
    for phase, counted in zip(mixture.phases, counts.phases, strict=False):  # the run may end before the last phases
        windows = windows_per_node(phase.histogram, dataset)
        found.append(
            PhaseForecast(
                level=phase.histogram.level,
                samples=counted.samples,
                clusters=int((windows > 0).sum()),
                leaves=counted.leaves,
                windows=counted.windows,
                missing_mass=float(phase.histogram.proportions.sum(where=windows == 0)),
                selected=None if phase.windows is None else phase.windows.num_selected,
            )
        )
    return tuple(found)


def _quantiles(counts: Counts, num_windows: int) -> tuple[tuple[tuple[float, int], ...], ...]:
    """Over the reachable windows, and over all."""
    found = []
    for unreachable in (0, num_windows - counts.windows_reachable):
        occurrences = np.append(0, counts.occurrences)
        ends = np.cumsum(np.append(unreachable, counts.windows_per_occurrence))
        # The value of which at least that share of the windows is no larger: the smallest for quantile 0.
        places = [max(1, math.ceil(share * int(ends[-1]))) for share in QUANTILES]
        at = np.searchsorted(ends, places)
        found.append(tuple(zip(QUANTILES, occurrences[at].tolist(), strict=True)))
    return tuple(found)


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
    if plans.order.table is not None:
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
