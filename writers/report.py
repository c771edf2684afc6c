"""The reports of a write and of an append."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from crisp_stream.format.manifest import Manifest
from crisp_stream.table import aligned


@dataclass(frozen=True, kw_only=True)
class _Report:
    root: str
    fingerprint: str
    """Fingerprint of the dataset that is there now."""
    documents: int
    """Documents in windows or in dropped parts of windows; dropped documents are not counted."""
    windows: int
    tokens: int
    """Tokens in windows, without padding."""
    dropped_documents: dict[str, int]
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
            dropped_tokens=entry["dropped_tokens"],
            leaves=manifest.num_leaves,
            shards=manifest.num_shards,
            seconds=max(seconds, 1e-9),
            **more,
        )

    def _table(self, root: str, windows: tuple[str, str], shards: Sequence[tuple[str, str]]) -> str:
        rows = [
            ("dataset", root),
            ("documents in", f"{self.documents + sum(self.dropped_documents.values()):,}"),
            *((f"  dropped: {reason}", f"{count:,}") for reason, count in self.dropped_documents.items()),
            windows,
            ("tokens in windows", f"{self.tokens:,}"),
            *((f"  tokens dropped: {reason}", f"{count:,}") for reason, count in self.dropped_tokens.items()),
            ("leaves with windows", f"{self.leaves:,}"),
            *shards,
            ("rate", f"{self.windows / self.seconds:,.1f} windows/s in {self.seconds:,.0f} s"),
        ]
        return aligned(rows)


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

    def table(self) -> str:
        """The report as aligned lines."""
        windows = ("windows added", f"{self.windows:,} to {self.windows_before:,}")
        shards = [("shards", f"{self.shards:,}, {self.new_shards:,} of them new")]
        return self._table(f"{self.root}, generation {self.generation}", windows, shards)
