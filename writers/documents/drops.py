"""Counts of dropped documents by reason, which every stage hands on and the report shows."""

from __future__ import annotations

EMPTY_TEXT = "empty text"
NULL_TEXT = "null text"
BROKEN_UNICODE = "text with an unpaired surrogate"
OTHER_FILE = "file of another kind in a folder"
OTHER_BUCKET = "RedPajama-v2 file of another language or bucket"
NOT_SAMPLED = "not in the sample"


class DropCounts:
    """Counts of dropped documents, by reason."""

    def __init__(self, by_reason: dict[str, int] | None = None) -> None:
        self.by_reason: dict[str, int] = dict(by_reason or {})

    def add(self, reason: str, count: int = 1) -> None:
        """Count `count` more under `reason`."""
        if count:
            self.by_reason[reason] = self.by_reason.get(reason, 0) + int(count)

    def merge(self, other: dict[str, int]) -> None:
        """Add the counts of another stage or part."""
        for reason, count in other.items():
            self.add(reason, count)

    def as_dict(self) -> dict[str, int]:
        """The counts, sorted by reason."""
        return dict(sorted(self.by_reason.items()))

    @property
    def total(self) -> int:
        """Sum over the reasons."""
        return sum(self.by_reason.values())
