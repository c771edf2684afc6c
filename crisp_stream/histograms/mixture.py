"""Mixtures: the histograms that decide the samples, the lengths of their phases, and limits of repeats.

Repeats are limited per node of the histogram, not per leaf: a node spreads its draws over its leaves by size, so all
its windows are drawn equally often, and a limit costs memory per node even where nodes hold many of 16.7M leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.typed import whole_number

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.manifest import Manifest

Draw = Literal["systematic", "multinomial"]
OnExcess = Literal["error", "cap"]

_ROUNDING = 1e-9
"""Relative error below which a sum of proportions counts as equal to its limit."""
_NAMED_CLUSTERS = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one histogram, or by one selection of windows (`of_windows`)."""

    histogram: Histogram
    """Histogram whose proportions the samples follow. (A Mixture of one phase stands for its histogram.)"""
    samples: int | None = None
    """Samples over all ranks; None: until training stops."""
    max_repeats: float | None = None
    """Most draws of a window during the phase, on average over its cluster: samples x proportion / windows.
    (A cluster's draws are whole, so single windows are drawn that often rounded up or down.) None: no limit."""
    on_excess: OnExcess = "error"
    """Treatment of clusters beyond `max_repeats`. error: InputError, which names them. cap: they get `max_repeats`,
    and what is left goes to the others in proportion; reported as a warning."""
    windows: WindowSelection | None = None
    """The windows that are drawn, each as often as any other; `histogram` then counts them per leaf. None: all, in the
    proportions of the histogram."""

    def __post_init__(self) -> None:
        histogram: Any = self.histogram
        if not isinstance(histogram, Histogram | Mixture):
            raise InputError(
                f"a phase needs a Histogram, got {type(histogram).__name__} {str(histogram)[:80]!r}. "
                "A file of one is opened by Histogram.load(path)."
            )
        if self.samples is not None:
            object.__setattr__(self, "samples", whole_number(self.samples, "samples of a phase"))
        self._check_repeats()
        if isinstance(self.histogram, Mixture):
            if len(self.histogram.phases) != 1:
                raise InputError(f"a phase needs one histogram, got a mixture of {len(self.histogram.phases)} phases.")
            object.__setattr__(self, "histogram", self.histogram.phases[0].histogram)
        if self.samples is not None and self.samples < 1:
            raise InputError(f"a phase needs at least 1 sample, got {self.samples}. Leave the phase out.")
        counts, level, depth = self.histogram.counts, self.histogram.level, self.histogram.depth
        if self.windows is not None and (
            counts is None or level != depth or int(counts.sum()) != self.windows.num_selected
        ):
            raise InputError("a phase has a histogram or a window selection, not both. Use Phase.of_windows.")

    @classmethod
    def of_windows(
        cls,
        windows: WindowSelection,
        dataset: Dataset,
        samples: int | None = None,
        *,
        max_repeats: float | None = None,
        on_excess: OnExcess = "error",
    ) -> Phase:
        """A phase that draws the windows of a selection, each as often as any other; arguments as of a phase.

        Raises:
            InputError: the selection is of another dataset, or of another generation of it.
        """
        return cls(
            windows.histogram(dataset),
            samples,
            max_repeats=max_repeats,
            on_excess=on_excess,
            windows=windows,
        )

    def _check_repeats(self) -> None:
        if self.on_excess not in ("error", "cap"):
            raise InputError(f"on_excess must be error or cap, got {self.on_excess!r}.")
        if self.max_repeats is None:
            if self.on_excess == "cap":
                raise InputError("on_excess='cap' needs max_repeats, the limit to cap at; there is none.")
            return
        if not (math.isfinite(self.max_repeats) and self.max_repeats > 0):
            raise InputError(
                f"max_repeats must be a number above 0, got {self.max_repeats}. Leave it out for no limit."
            )
        if self.samples is None:
            raise InputError(
                f"max_repeats {self.max_repeats:g} needs the number of samples of its phase, got an open-ended one. "
                "Give samples=, the length of training x the global batch."
            )


@dataclass(frozen=True)
class Mixture:
    """Phases in order; the last may be open-ended.

    Raises:
        InputError: no phases, an open-ended phase before the last, histograms of different trees.
    """

    phases: Sequence[Phase]
    draw: Draw = field(default="systematic", kw_only=True)
    """systematic: counts per block within 1 of their share. multinomial: the i.i.d. draws of Algorithm 1."""
    max_missing_mass: float = field(default=0.05, kw_only=True)
    """The largest share of a histogram that may stand on clusters without windows; it is redistributed in
    proportion."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        if not self.phases:
            raise InputError("a mixture needs at least one phase, got none.")
        if self.draw not in ("systematic", "multinomial"):
            raise InputError(f"draw must be systematic or multinomial, got {self.draw!r}.")
        for number, phase in enumerate(self.phases[:-1], 1):
            if phase.samples is None:
                raise InputError(
                    f"phase {number} of {len(self.phases)} has no number of samples; only the last may be open."
                )
        trees = {phase.histogram.tree_fingerprint for phase in self.phases}
        if len(trees) != 1:
            raise InputError(f"the phases' histograms must come from one tree, got {len(trees)}.")

    @classmethod
    def base(cls, manifest: Manifest) -> Mixture:
        """The generalist corpus in the proportions that it has."""
        return cls([Phase(Histogram.base(manifest))])

    @classmethod
    def from_histogram(cls, histogram: Histogram, *, draw: Draw = "systematic") -> Mixture:
        """One open-ended phase: CRISP training for one task."""
        return cls([Phase(histogram)], draw=draw)

    @property
    def num_samples(self) -> int | None:
        """Samples of all phases over all ranks; None when the last is open-ended."""
        return None if self.phases[-1].samples is None else sum(phase.samples or 0 for phase in self.phases)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the histograms, samples, limits and window selections, where set, and the way of drawing."""
        parts = [
            [phase.histogram.fingerprint, phase.samples]
            + ([] if phase.max_repeats is None else [float(phase.max_repeats), phase.on_excess])
            + ([] if phase.windows is None else ["windows", phase.windows.fingerprint])
            for phase in self.phases
        ]
        return hashlib.sha256(json.dumps([self.draw, parts]).encode()).hexdigest()

    def check(self, dataset: Dataset) -> None:
        """Check that all phases fit a dataset, by their nodes alone: nothing is spread over leaves.

        Raises:
            InputError: as `leaf_proportions`.
        """
        checked: set[str] = set()
        occupied: dict[int, NDArray[np.bool_]] = {}  # by level: whether each node has windows
        for number, phase in enumerate(self.phases, 1):
            level = phase.histogram.level
            if phase.max_repeats is None and phase.windows is None and phase.histogram.fingerprint in checked:
                continue
            histogram, what = within_repeats(phase, dataset, what=f"phase {number}"), f"phase {number}"
            if level not in occupied:
                tree = dataset.manifest
                occupied[level] = np.zeros(tree.arity**level, bool)
                occupied[level][dataset.leaves // np.uint32(tree.arity ** (tree.depth - level))] = True
            missing = float(histogram.proportions.sum(where=~occupied[level][histogram.nodes]))
            if missing > 0:
                report_missing(histogram, dataset, missing, limit=self.max_missing_mass, what=what)
            checked.add(histogram.fingerprint)

    def leaf_proportions(self, dataset: Dataset) -> list[NDArray[np.float64]]:
        """Proportions of every phase over the dataset's non-empty leaves.

        Returns:
            For each phase [num_leaves] float64, in the order of `dataset.leaves`, summing to 1.

        Raises:
            InputError: a histogram of another tree, more than `max_missing_mass` on clusters without windows, or
                clusters beyond `max_repeats`.
        """
        return [self.proportions_of_phase(index, dataset) for index in range(len(self.phases))]

    def proportions_of_phase(self, index: int, dataset: Dataset) -> NDArray[np.float64]:
        """One item of `leaf_proportions`; `index` counts from 0, messages from 1."""
        histogram, what = self.histogram_of_phase(index, dataset), f"phase {index + 1}"
        proportions, missing = histogram.expand(dataset.leaves, dataset.windows_per_leaf)
        if missing > 0:
            report_missing(histogram, dataset, missing, limit=self.max_missing_mass, what=what)
        return proportions / proportions.sum()

    def histogram_of_phase(self, index: int, dataset: Dataset) -> Histogram:
        """Histogram that is drawn by: the phase's, capped where the phase says so. Raises as above."""
        return within_repeats(self.phases[index], dataset, what=f"phase {index + 1}")


def check_tree(histogram: Histogram, dataset: Dataset, *, what: str) -> None:
    """Raise InputError if the histogram was counted with another tree; `what` names it in the message."""
    if histogram.tree_fingerprint != dataset.manifest.tree_fingerprint:
        raise InputError(
            f"{what}: the histogram was counted with tree {histogram.tree_fingerprint[:12]}, "
            f"{dataset.root} has {dataset.manifest.tree_fingerprint[:12]}. "
            f"Count it again with --data {dataset.root}"
        )


def report_missing(histogram: Histogram, dataset: Dataset, missing: float, *, limit: float, what: str) -> None:
    """Report mass on clusters without windows: InputError above the limit, else a warning."""
    nodes = histogram.missing_nodes(dataset.leaves)
    missing_text = (
        f"{what}: {missing:.1%} of the histogram stands on {len(nodes)} clusters of level "
        f"{histogram.level} without windows in {dataset.root} (such as cluster {nodes[0]})"
    )
    if missing > limit:
        raise InputError(f"{missing_text}; the limit is {limit:.1%}. Use a coarser level, or write more documents.")
    _warn_once(f"{missing_text}; it is redistributed over the others in proportion.")


def windows_per_node(histogram: Histogram, dataset: Dataset) -> NDArray[np.int64]:
    """Count the windows of each node, [num_nodes]: two binary searches per node, no array as long as the leaves."""
    leaves_per_node = histogram.arity ** (histogram.depth - histogram.level)
    if leaves_per_node == 1 and np.array_equal(histogram.nodes, dataset.leaves):
        return dataset.windows_per_leaf  # every leaf: nothing to look for
    first_leaf = histogram.nodes.astype(np.int64) * leaves_per_node
    # The needles have the type of the haystack, or numpy would copy all leaves.
    start = np.searchsorted(dataset.leaves, first_leaf.astype(np.uint32))
    stop = np.searchsorted(dataset.leaves, (first_leaf + leaves_per_node).astype(np.uint32))
    return _windows_before(dataset, stop) - _windows_before(dataset, start)


def _windows_before(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Windows of all leaves before a row of the cluster table; a row may be one past the end."""
    last = len(dataset.leaves) - 1
    return np.where(rows > last, dataset.manifest.num_windows, dataset.first_window_per_leaf[np.minimum(rows, last)])


def within_repeats(phase: Phase, dataset: Dataset, *, what: str) -> Histogram:
    """The phase's histogram where no cluster exceeds `max_repeats`: itself, or capped if the phase asks for that.

    Mass on clusters without windows keeps its share; the limit is checked as if it were redistributed already. `what`
    names the phase in messages.

    Raises:
        InputError: a histogram of another tree, clusters beyond the limit, or, capping, fewer windows than the samples
            need.
    """
    histogram = phase.histogram
    check_tree(histogram, dataset, what=what)
    if phase.max_repeats is None:
        return histogram
    assert phase.samples is not None
    if phase.windows is not None:
        _check_repeats_of_selection(phase, phase.windows, what)
        return histogram
    windows = windows_per_node(histogram, dataset)
    present = windows > 0
    if not present.any():
        return histogram  # all mass is missing, which is reported as that
    share = float(histogram.proportions.sum(where=present))
    wanted = np.where(present, histogram.proportions / share, 0.0)
    limits = np.asarray(windows * (phase.max_repeats / phase.samples), np.float64)
    excess = wanted > limits * (1 + _ROUNDING)
    if not excess.any():
        return histogram
    worst = _worst(wanted, windows, excess, phase)
    what = f"{what}: {int(excess.sum()):,} of {int(present.sum()):,} clusters of level {histogram.level}"
    available = int(windows.sum())
    if phase.samples > phase.max_repeats * available * (1 + _ROUNDING):
        raise InputError(
            f"{what} would be drawn more than max_repeats {phase.max_repeats:g} times ({worst}), and the others cannot "
            f"take the rest: {phase.samples:,} samples of {available:,} windows repeat each "
            f"{phase.samples / available:.3g} times. Use fewer samples, a larger max_repeats, or a coarser level."
        )
    if phase.on_excess == "error":
        raise InputError(
            f"{what} would be drawn more than max_repeats {phase.max_repeats:g} times: {worst}. Use a coarser level, "
            'fewer samples, or a histogram closer to base; or cap and redistribute with on_excess="cap".'
        )
    capped, is_capped = water_fill(wanted, limits)
    # Both counts are said: what those beyond the limit leave can fill others up to it.
    left, filled = float((wanted - capped).sum(where=excess)), int(is_capped.sum()) - int(excess.sum())
    at_limit = f" Of these, {filled:,} reach the limit by that, so {int(is_capped.sum()):,} are at it."
    _warn_once(
        f"{what} would be drawn more than max_repeats {phase.max_repeats:g} times: {worst}. They are capped, and the "
        f"{left:.2%} of the samples that they leave goes to the others in proportion.{at_limit if filled else ''}"
    )
    return dataclasses.replace(
        histogram, proportions=np.where(present, capped * share, histogram.proportions), counts=None
    )


def _check_repeats_of_selection(phase: Phase, selection: WindowSelection, what: str) -> None:
    """All windows of a selection are drawn equally often, so that there is nobody to cap, and nobody to give to."""
    assert phase.max_repeats is not None
    assert phase.samples is not None
    repeats = phase.samples / selection.num_selected
    if repeats > phase.max_repeats * (1 + _ROUNDING):
        raise InputError(
            f"{what}: {phase.samples:,} samples of the {selection.num_selected:,} selected windows repeat each "
            f"{repeats:.3g} times, more than max_repeats {phase.max_repeats:g}. Use fewer samples, a larger "
            "max_repeats, or select more windows."
        )


def water_fill(
    proportions: NDArray[np.float64], limits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The proportions closest in ratio to `proportions` that stay below limits: min(scale x p, limit), summing to 1.

    The scale is found by Newton's method on the concave, piecewise linear sum; each step caps at least one more, and
    halves what is missing or the mass that may still grow, so a few dozen steps suffice.

    Args:
        proportions: [num_nodes], not negative, summing to 1.
        limits: [num_nodes], summing to 1 or more where the proportions are positive.

    Returns:
        [num_nodes] proportions, and [num_nodes] whether each was capped.
    """
    capped = proportions > limits
    while True:
        free = float(proportions.sum(where=~capped))
        scale = max(1.0, (1.0 - float(limits.sum(where=capped))) / free) if free > 0 else 1.0
        exceeding = ~capped & (proportions * scale > limits)
        if not exceeding.any():
            break
        capped |= exceeding
    filled = np.where(capped, limits, proportions * scale)
    return filled / filled.sum(), capped


def _worst(wanted: NDArray[np.float64], windows: NDArray[np.int64], excess: NDArray[np.bool_], phase: Phase) -> str:
    """The clusters with most repeats, as text."""
    assert phase.samples is not None
    beyond = np.flatnonzero(excess)
    repeats = phase.samples * wanted[beyond] / windows[beyond]
    order = np.argsort(-repeats, kind="stable")[:_NAMED_CLUSTERS]
    named = [
        f"cluster {phase.histogram.nodes[beyond[at]]} ({windows[beyond[at]]:,} windows, "
        f"{phase.samples * wanted[beyond[at]]:,.0f} draws, {repeats[at]:.3g} repeats)"
        for at in order
    ]
    return ", ".join(named) + (", …" if len(beyond) > len(named) else "")


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    """Report to the log, once per process: the same mixture is opened by the loader and by the account of the run."""
    log.warning("%s", message)
