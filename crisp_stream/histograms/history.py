"""What was done to a histogram before: of which counted ones it is made, and whether they were smoothed.

Advice depends on it: a tuned histogram is not to be smoothed again, and an average has no counts that could be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from crisp_stream.histograms.histogram import Histogram

Smoothing = Literal["done", "possible", "of parts", "none"]
"""done: every counted histogram that it is made of was smoothed. possible: it has counts. of parts: it was computed
from counted ones, which can be smoothed first. none: it is not made of counts."""


def smoothing_of(histogram: Histogram) -> Smoothing:
    """Look up whether a histogram is smoothed, or can be, by its counts and its provenance."""
    if histogram.counts is not None:
        return "possible"
    smoothed = [is_smoothed for _, is_smoothed in counted_parts(histogram.provenance)]
    if not smoothed:
        return "none"
    return "done" if all(smoothed) else "of parts"


def counted_parts(provenance: Any) -> Iterator[tuple[dict[str, Any], bool]]:
    """Find the counted histograms that one is made of: the provenance of each, and whether it was smoothed."""
    if not isinstance(provenance, dict):
        return
    if "smooth" in provenance:
        inner = provenance["smooth"]
        yield (inner if isinstance(inner, dict) else {}), True
    elif "interpolate" in provenance or "carry" in provenance:
        yield from counted_parts(provenance.get("interpolate", provenance.get("carry")))
    elif isinstance(provenance.get("average"), list):
        for part in provenance["average"]:
            yield from counted_parts(part)
    elif "name" not in provenance:  # base, the corpus and DoGE's weights have one
        yield provenance, False
