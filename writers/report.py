"""The reports of a write and of an append."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from crisp_stream.format.manifest import LEDGER, Manifest
from crisp_stream.format.tables import generation_path
from crisp_stream.table import aligned


def not_read(paths: Mapping[str, int], records: Mapping[str, int]) -> list[tuple[str, str]]:
    """Rows of a table that say what was not read, by reason; none where all was."""
    kinds = [("paths not read", paths), ("bad records", records)]
    return [
        row
        for title, counts in kinds
        if counts
        for row in [
            (title, f"{sum(counts.values()):,}"),
            *((f"  {reason}", f"{count:,}") for reason, count in sorted(counts.items())),
        ]
    ]


@dataclass(frozen=True, kw_only=True)
class _Report:
    root: str
    fingerprint: str
    """Fingerprint of the dataset that is there now."""
    documents: int
    """Documents in windows or in dropped parts of windows; neither dropped documents nor bad records are counted."""
    windows: int
    tokens: int
    """Tokens in windows, without padding."""
    dropped_documents: dict[str, int]
    bad_records: dict[str, int]
    """Records that could not be used and were left out, by reason."""
    skipped_paths: dict[str, int]
    """Files and folders behind the inputs that were not read, by reason."""
    dropped_tokens: dict[str, int]
    leaves: int
    """Leaves of the dataset that hold a window."""
    shards: int
    """Shards of the dataset."""
    seconds: float
    """Duration of this run; tasks that an earlier run had finished cost nothing."""

    @classmethod
    def of(cls, root: str, manifest: Manifest, entry: dict[str, Any], seconds: float, **more: Any) -> Self:
        """Take the figures from a dataset's manifest, and from the entry of the documents in its provenance."""
        return cls(
            root=root,
            fingerprint=manifest.fingerprint,
            documents=entry["documents"],
            tokens=entry["tokens"],
            dropped_documents=entry["dropped_documents"],
            bad_records=entry.get("bad_records") or {},
            skipped_paths=entry.get("skipped_paths") or {},
            dropped_tokens=entry["dropped_tokens"],
            leaves=manifest.num_leaves,
            shards=manifest.num_shards,
            seconds=max(seconds, 1e-9),
            **more,
        )

    def _table(self, root: str, windows: tuple[str, str], shards: Sequence[tuple[str, str]]) -> str:
        left_out = sum(self.dropped_documents.values()) + sum(self.bad_records.values())
        rows = [
            ("dataset", root),
            ("documents in", f"{self.documents + left_out:,}"),
            *((f"  dropped: {reason}", f"{count:,}") for reason, count in self.dropped_documents.items()),
            *((f"  bad record: {reason}", f"{count:,}") for reason, count in self.bad_records.items()),
            windows,
            ("tokens in windows", f"{self.tokens:,}"),
            *((f"  tokens dropped: {reason}", f"{count:,}") for reason, count in self.dropped_tokens.items()),
            ("leaves with windows", f"{self.leaves:,}"),
            *shards,
            ("rate", f"{self.windows / self.seconds:,.1f} windows/s in {self.seconds:,.0f} s"),
        ]
        rows += not_read(self.skipped_paths, {})
        if self.bad_records or self.skipped_paths:
            rows.append(("listed in", self._ledger))
        return aligned(rows)

    @property
    def _ledger(self) -> str:
        return LEDGER


@dataclass(frozen=True, kw_only=True)
class WriteReport(_Report):
    """Result of a write."""

    dataset_bytes: int

    def table(self) -> str:
        """The report as aligned lines."""
        shards = [("shards", f"{self.shards:,}"), ("bytes", f"{self.dataset_bytes:,}")]
        return self._table(self.root, ("windows out", f"{self.windows:,}"), shards)


@dataclass(frozen=True, kw_only=True)
class AppendReport(_Report):
    """Result of an append; documents, windows and tokens are those that it added."""

    generation: int
    """Generation number after the append."""
    windows_before: int
    new_shards: int
    """Shards that this append wrote."""

    @property
    def _ledger(self) -> str:
        return generation_path(LEDGER, self.generation)

    def table(self) -> str:
        """The report as aligned lines."""
        windows = ("windows added", f"{self.windows:,} to {self.windows_before:,}")
        shards = [("shards", f"{self.shards:,}, {self.new_shards:,} of them new")]
        return self._table(f"{self.root}, generation {self.generation}", windows, shards)
