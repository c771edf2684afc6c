"""Advice before a run: what may be wrong with it, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from crisp_stream.forecast.result import Advice
from crisp_stream.order.blocks import NUM_LANES
from crisp_stream.table import format_bytes

if TYPE_CHECKING:
    from crisp_stream.forecast.result import Forecast, Loader, Serving

MANY_TIMES = 4
"""Times up to which repeating is nearly as good as new text (Muennighoff et al., 2023)."""
_MANY_SAMPLES = 0.1
_FEW_CLUSTERS = 0.9
_LARGE_ERROR = 0.02
_SHARED_READS = 1.2
_FEW_WINDOWS = 2.0
_MANY_REQUESTS = 100_000
_SELECT_MORE = "Train for fewer samples, or select more windows (a lower quantile)."


def advise(forecast: Forecast, loader: Loader, *, sample_bytes: int, left_out: int) -> tuple[Advice, ...]:
    """Look for what may be wrong with a run. `left_out`: samples at the end that do not fill a global batch."""
    advice = list(_of_reads(forecast, loader, sample_bytes))
    if left_out:
        finding = f"The last {left_out:,} samples do not fill a global batch of {loader.global_batch_size:,}."
        advice.append((finding, "They are left out; give the phases a multiple of the batch."))
    return (*advise_serving(forecast), *(Advice(finding=finding, remedy=remedy) for finding, remedy in advice))


def advise_serving(serving: Serving) -> tuple[Advice, ...]:
    """Look for what may be wrong with what a run serves, however it is read."""
    advice = [*_of_repeats(serving), *_of_proportions(serving)]
    return tuple(Advice(finding=finding, remedy=remedy) for finding, remedy in advice)


def _number(times: float) -> str:
    return f"{times:,.1f}" if times < 100 else f"{times:,.0f}"


def _of_repeats(serving: Serving) -> Iterator[tuple[str, str]]:
    samples, reachable = serving.samples, serving.windows_reachable
    selects = any(phase.selected is not None for phase in serving.phases)
    if samples > reachable:
        everything = "the whole corpus" if len(serving.sources) == 1 else "all sources"
        of_corpus = everything if reachable == serving.windows else "what the mixture can reach"
        yield (
            f"{samples:,} samples are {_number(samples / reachable)} times the {reachable:,} windows of {of_corpus}, "
            "so windows must repeat.",
            "Train for fewer samples, or write more documents."
            if reachable == serving.windows
            else _SELECT_MORE
            if selects
            else "Train for fewer samples, or let the mixture reach more: by a coarser level, or a share of base.",
        )
    seldom = sum(entry.least * entry.windows for entry in serving.distribution if entry.most <= MANY_TIMES)
    share = 1 - seldom / samples
    if share > _MANY_SAMPLES:
        worst = serving.most_repeated[0]
        yield (
            f"{share:.0%} of the samples are windows that are served more than {MANY_TIMES} times; cluster "
            f"{worst.cluster} of level {worst.level}{f' of {worst.source}' * bool(worst.source)} is gone through "
            f"{_number(worst.epochs)} times ({worst.windows:,} window{'s' * (worst.windows > 1)}).",
            _SELECT_MORE if selects else _fewer_repeats(serving),
        )


def _fewer_repeats(serving: Serving) -> str:
    """Advise what is still open: no smoothing of what is smoothed, no limit where there is one."""
    phases = [phase for phase in serving.phases if phase.level]
    if not phases:
        return "Train for fewer samples, or write more documents."
    states = {phase.smoothing for phase in phases}
    ways = []
    if "possible" in states:
        ways.append("smoothing (histogram tune)")
    elif "of parts" in states:
        ways.append("smoothing of the histograms that it was computed from (histogram tune)")
    if max(phase.level for phase in phases) > 1:
        ways.append("a coarser level")
    ways += ["a histogram closer to base (histogram interpolate)", "fewer samples"]
    limited = all(phase.max_repeats is not None for phase in phases)
    ways.append("a lower max_repeats" if limited else "a limit with max_repeats and on_excess=cap")
    known = "The histogram is smoothed already. " if states == {"done"} else ""
    return f"{known}Use {', '.join(ways[:-1])}, or {ways[-1]}."


def _of_proportions(serving: Serving) -> Iterator[tuple[str, str]]:
    for number, phase in enumerate(serving.phases, 1):
        if phase.missing_mass > 0:
            yield (
                f"Phase {number}: {phase.missing_mass:.2%} of the histogram stands on clusters without windows; the "
                "others get it in proportion.",
                "Use a coarser level, or write more documents.",
            )
    # Smoothing gives every cluster a share, however small: which of these are drawn says nothing of the run's length.
    smoothed = any(phase.smoothing == "done" for phase in serving.phases)
    for source in serving.sources:
        few = source.clusters_hit < _FEW_CLUSTERS * source.clusters_reachable
        if few and not (smoothed and serving.mixture_error <= _LARGE_ERROR):
            missed = source.clusters_reachable - source.clusters_hit
            yield (
                f"{missed:,} of {source.clusters_reachable:,} clusters{f' of {source.name}' * bool(source.name)} with "
                f"mass are never drawn: the run is short for level {source.level}.",
                "Use a coarser level, or train longer.",
            )
    if serving.mixture_error > _LARGE_ERROR:
        remedy = "Use a coarser level, or train longer."
        if serving.draw == "multinomial":
            remedy = "Draw systematically, which is more exact, or train longer."
        yield (
            f"The proportions served are {serving.mixture_error:.1%} (total variation) off those of the mixture.",
            remedy,
        )


def _of_reads(forecast: Forecast, loader: Loader, sample_bytes: int) -> Iterator[tuple[str, str]]:
    reads, limit = forecast.reads, loader.cache_limit
    if limit is not None and reads.working_set_bytes > limit:
        yield (
            f"A node reads again up to {format_bytes(reads.working_set_bytes)} of what it has read; its cache holds "
            f"{format_bytes(limit)}, so runs of windows will be fetched more than once.",
            f"Raise cache_limit to {format_bytes(reads.working_set_bytes)} or more; bytes and requests are more than "
            "said here.",
        )
    needed = forecast.windows_served * sample_bytes
    per_reader = sum(reads.bytes_per_node) / (loader.nodes / loader.num_readers)
    if NUM_LANES % loader.num_readers and per_reader > _SHARED_READS * needed:
        yield (
            f"{loader.num_readers} nodes do not divide the {NUM_LANES} lanes of the order: together they read "
            f"{per_reader / needed:.2g} times what they serve.",
            "Use 2, 4, 8, 16, 32 or 64 nodes.",
        )
    windows = sum(reads.bytes_per_node) / sample_bytes
    if reads.requests > _MANY_REQUESTS and windows < _FEW_WINDOWS * reads.requests:
        yield (
            f"A request brings {windows / reads.requests:.2g} windows: leaves are drawn too seldom for runs to form.",
            "Storage that answers many requests at once serves this as fast; else add DataLoader workers, or copy the "
            "dataset to a local disk.",
        )
