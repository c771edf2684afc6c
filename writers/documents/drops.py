"""Counts of dropped documents by reason, which every stage hands on and the report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

EMPTY_TEXT = "empty text"
NULL_TEXT = "null text"
BROKEN_UNICODE = "text with an unpaired surrogate"
NOT_SAMPLED = "not in the sample"


class DropCounts(Counter[str]):
    """Counts of dropped documents, by reason."""

    def add(self, reason: str, count: int = 1) -> None:
        """Count `count` more under `reason`."""
        if count:
            self[reason] += int(count)

    def as_dict(self) -> dict[str, int]:
        """The counts, sorted by reason."""
        return dict(sorted(self.items()))


def merged_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up the counts of several stages or parts, sorted by reason."""
    merged = DropCounts()
    for part in parts:
        merged.update(part)
    return merged.as_dict()
