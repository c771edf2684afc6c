"""Components: what a phase mixes. A histogram of one source, perhaps of selected windows only, at a share.

Repeats are limited per node of the histogram, not per leaf: a node spreads its draws over its leaves by size, so all
its windows are drawn equally often, and a limit costs memory per node even where nodes hold many of 16.7M leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.window_selection import WindowSelection

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

OnExcess = Literal["error", "cap"]

_ROUNDING = 1e-9
"""Relative error below which a sum of proportions counts as equal to its limit."""
_NAMED_CLUSTERS = 3
_SEARCHED_PER_LEAF = 16
"""Leaves that are marked in the time in which one node is looked for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Component:
    """A part of a phase: windows of one source in the proportions of a histogram, at a share of the samples."""

    histogram: Histogram
    """Histogram whose proportions the component's samples follow."""
    _: dataclasses.KW_ONLY
    share: float = 1.0
    """Share of the phase's samples, in (0, 1]; those of a phase sum to 1."""
    source: str = ""
    """Name of the source; left out where there is one."""
    windows: WindowSelection | None = None
    """The windows that are drawn: the mass of each node is spread over its selected windows alone. None: all."""
    max_repeats: float | None = None
    """Most draws of a window by the component during the phase, on average over its cluster: samples of the component
    x proportion / windows. (A cluster's draws are whole, so single windows are drawn that often rounded up or down.)
    None: no limit."""
    on_excess: OnExcess = "error"
    """Treatment of clusters beyond `max_repeats`. error: InputError, which names them. cap: they get `max_repeats`,
    and what is left goes to the component's other clusters in proportion; where these are at the limit, too, to the
    other components. Reported as a warning."""

    def __post_init__(self) -> None:
        histogram: Any = self.histogram
        if not isinstance(histogram, Histogram):
            raise InputError(
                f"a phase needs a Histogram, got {type(histogram).__name__} {str(histogram)[:80]!r}. "
                "A file of one is opened by Histogram.load(path)."
            )
        share: Any = self.share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"share of a component must be above 0 and at most 1, got {share!r}.")
        if self.on_excess not in ("error", "cap"):
            raise InputError(f"on_excess must be error or cap, got {self.on_excess!r}.")
        if self.max_repeats is None:
            if self.on_excess == "cap":
                raise InputError("on_excess='cap' needs max_repeats, the limit to cap at; there is none.")
        elif not (math.isfinite(self.max_repeats) and self.max_repeats > 0):
            raise InputError(
                f"max_repeats must be a number above 0, got {self.max_repeats}. Leave it out for no limit."
            )

    @classmethod
    def of_windows(cls, windows: WindowSelection, dataset: Dataset, **options: Any) -> Component:
        """All windows of a selection, each as often as any other; options as of a component.

        Raises:
            InputError: the selection is of another dataset, or of another generation of it.
        """
        return cls(windows.histogram(dataset), windows=windows, **options)

    @property
    def is_plain(self) -> bool:
        """Whether it is all of a phase, of the only source."""
        return self.share == 1 and not self.source

    @property
    def identity(self) -> list[Any]:
        """What decides the draws beside the number of samples, fit for JSON."""
        limit = [] if self.max_repeats is None else [float(self.max_repeats), self.on_excess]
        windows = [] if self.windows is None else ["windows", self.windows.fingerprint]
        return [self.histogram.fingerprint, *limit, *windows]

    @property
    def drawn_by(self) -> str:
        """What tells it from the others of a phase: all but its share."""
        return str([self.source, *self.identity])


class LeafCounts(NamedTuple):
    """Windows per leaf: all of a dataset, or those of a selection."""

    leaves: NDArray[np.uint32]
    """[num_leaves], sorted ids of the leaves that have any."""
    windows: NDArray[np.int64]
    """[num_leaves]."""

    @classmethod
    def of(cls, dataset: Dataset, selection: WindowSelection | None, *, what: str = "the phase") -> LeafCounts:
        """Those of a dataset, or of a selection of its windows. Raises InputError: a selection of another dataset."""
        if selection is None:
            return cls(dataset.leaves, dataset.windows_per_leaf)
        selection.check_dataset(dataset, what=f"{what}: the window selection")
        selected = selection.histogram(dataset)
        assert selected.counts is not None
        return cls(selected.nodes, selected.counts)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How a component is drawn: its histogram within the limit of repeats, and what share of its samples it keeps."""

    histogram: Histogram
    kept: float = 1.0
    """1, unless it is capped and all its windows are at the limit."""


def check_tree(histogram: Histogram, dataset: Dataset, *, what: str) -> None:
    """Raise InputError if the histogram was counted with another tree; `what` names it in the message."""
    if histogram.tree_fingerprint != dataset.manifest.tree_fingerprint:
        raise InputError(
            f"{what}: the histogram was counted with tree {histogram.tree_fingerprint[:12]}, "
            f"{dataset.root} has {dataset.manifest.tree_fingerprint[:12]}. "
            f"Count it again with --data {dataset.root}"
        )


def report_missing(
    histogram: Histogram,
    dataset: Dataset,
    missing: float,
    *,
    limit: float,
    what: str,
    selection: WindowSelection | None = None,
) -> None:
    """Report mass on clusters without windows (of a selection, if any): InputError above the limit, else a warning."""
    nodes = histogram.missing_nodes(LeafCounts.of(dataset, selection).leaves)
    missing_text = (
        f"{what}: {missing:.1%} of the histogram stands on {len(nodes)} clusters of level "
        f"{histogram.level} without {'selected ' if selection else ''}windows in {dataset.root} "
        f"(such as cluster {nodes[0]})"
    )
    if missing > limit:
        more = "select more windows" if selection else "write more documents"
        raise InputError(f"{missing_text}; the limit is {limit:.1%}. Use a coarser level, or {more}.")
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


def has_windows(
    histogram: Histogram,
    counts: LeafCounts,
    occupied: dict[tuple[int, int], NDArray[np.bool_]],
    *,
    key: tuple[int, int],
) -> NDArray[np.bool_]:
    """[num_nodes]: whether each node of a histogram has windows.

    Args:
        histogram: with the nodes.
        counts: the windows.
        occupied: for each source and level whether each node of the level has windows; filled where that is cheaper
            than to look for few nodes in many leaves.
        key: source and level of the histogram.
    """
    nodes, leaves = histogram.nodes, counts.leaves
    span = histogram.arity ** (histogram.depth - histogram.level)
    if span == 1 and np.array_equal(nodes, leaves):
        return np.ones(len(nodes), bool)
    if key not in occupied:
        if len(nodes) * _SEARCHED_PER_LEAF < len(leaves):
            first = nodes.astype(np.int64) * span
            # The needles have the type of the haystack, or numpy would copy all leaves.
            start, stop = (np.searchsorted(leaves, border.astype(np.uint32)) for border in (first, first + span))
            return stop > start
        occupied[key] = np.zeros(histogram.arity**histogram.level, bool)
        occupied[key][leaves // np.uint32(span)] = True
    return occupied[key][nodes]


def selected_per_node(histogram: Histogram, dataset: Dataset, selection: WindowSelection) -> NDArray[np.int64]:
    """Count the selected windows of each node of a histogram, [num_nodes]."""
    leaves, counts = LeafCounts.of(dataset, selection)
    leaves_per_node = histogram.arity ** (histogram.depth - histogram.level)
    first_leaf = histogram.nodes.astype(np.int64) * leaves_per_node
    before = np.append(0, np.cumsum(counts))
    start, stop = (np.searchsorted(leaves, border) for border in (first_leaf, first_leaf + leaves_per_node))
    return before[stop] - before[start]


def drawn_within_repeats(component: Component, dataset: Dataset, samples: int | None, *, what: str) -> Drawn:
    """The component's histogram where no cluster exceeds `max_repeats`: itself, or capped if it asks for that.

    Mass on clusters without windows keeps its share; the limit is checked as if it were redistributed already.

    Args:
        component: with its limit.
        dataset: its source.
        samples: of the phase; None where it is open-ended.
        what: names the component in messages.

    Raises:
        InputError: a histogram of another tree; clusters beyond the limit; or, capping a component that is alone in its
            phase, fewer windows than the samples need.
    """
    histogram, limit = component.histogram, component.max_repeats
    check_tree(histogram, dataset, what=what)
    if limit is None:
        return Drawn(histogram=histogram)
    if samples is None:
        raise InputError(
            f"{what}: max_repeats {limit:g} needs the number of samples of its phase, got an open-ended one. "
            "Give samples=, the length of training x the global batch."
        )
    wanted_samples = samples * component.share
    if component.windows is None:
        windows, kind = windows_per_node(histogram, dataset), ""
    else:
        windows, kind = selected_per_node(histogram, dataset, component.windows), "selected "
    present = windows > 0
    if not present.any():
        return Drawn(histogram=histogram)  # all mass is missing, which is reported as that
    share = float(histogram.proportions.sum(where=present))
    wanted = np.where(present, histogram.proportions / share, 0.0)
    limits = np.asarray(windows * (limit / wanted_samples), np.float64)
    excess = wanted > limits * (1 + _ROUNDING)
    if not excess.any():
        return Drawn(histogram=histogram)
    worst = _worst(wanted, windows, excess, histogram, wanted_samples)
    what = f"{what}: {int(excess.sum()):,} of {int(present.sum()):,} clusters of level {histogram.level}"
    available = int(windows.sum())
    kept = limit * available / wanted_samples
    is_short = kept < 1 / (1 + _ROUNDING)
    if is_short and (component.on_excess == "error" or component.share == 1):
        raise InputError(
            f"{what} would be drawn more than max_repeats {limit:g} times ({worst}), and the others cannot "
            f"take the rest: {wanted_samples:,.0f} samples of {available:,} {kind}windows repeat each "
            f"{wanted_samples / available:.3g} times. Use fewer samples, a larger max_repeats, or "
            f"{'select more windows' if kind else 'a coarser level'}."
        )
    if component.on_excess == "error":
        raise InputError(
            f"{what} would be drawn more than max_repeats {limit:g} times: {worst}. Use a coarser level, "
            'fewer samples, or a histogram closer to base; or cap and redistribute with on_excess="cap".'
        )
    if is_short:
        _warn_once(
            f"{what} would be drawn more than max_repeats {limit:g} times: {worst}. All {available:,} {kind}windows "
            f"are drawn as often as the limit allows, and the {1 - kept:.2%} of the component's samples that are left "
            "go to the other components in proportion."
        )
        capped = limits / limits.sum()
    else:
        kept = 1.0
        capped, is_capped = water_fill(wanted, limits)
        # Both counts are said: what those beyond the limit leave can fill others up to it.
        left, filled = float((wanted - capped).sum(where=excess)), int(is_capped.sum()) - int(excess.sum())
        at_limit = f" Of these, {filled:,} reach the limit by that, so {int(is_capped.sum()):,} are at it."
        _warn_once(
            f"{what} would be drawn more than max_repeats {limit:g} times: {worst}. They are capped, and the "
            f"{left:.2%} of the samples that they leave goes to the others in proportion.{at_limit if filled else ''}"
        )
    proportions = np.where(present, capped * share, histogram.proportions)
    return Drawn(histogram=dataclasses.replace(histogram, proportions=proportions, counts=None), kept=kept)


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


def _worst(
    wanted: NDArray[np.float64],
    windows: NDArray[np.int64],
    excess: NDArray[np.bool_],
    histogram: Histogram,
    samples: float,
) -> str:
    """The clusters with most repeats, as text."""
    beyond = np.flatnonzero(excess)
    repeats = samples * wanted[beyond] / windows[beyond]
    order = np.argsort(-repeats, kind="stable")[:_NAMED_CLUSTERS]
    named = [
        f"cluster {histogram.nodes[beyond[at]]} ({windows[beyond[at]]:,} windows, "
        f"{samples * wanted[beyond[at]]:,.0f} draws, {repeats[at]:.3g} repeats)"
        for at in order
    ]
    return ", ".join(named) + (", …" if len(beyond) > len(named) else "")


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    """Report to the log, once per process: the same mixture is opened by the loader and by the account of the run."""
    log.warning("%s", message)
