"""The report of an append."""

from __future__ import annotations

from dataclasses import dataclass

from crisp_stream.format.dataset import Dataset
from crisp_stream.table import aligned


@dataclass(frozen=True, kw_only=True)
class AppendReport:
    """Result of an append."""

    root: str
    generation: int
    """Generation number after the append."""
    fingerprint: str
    """Fingerprint of the dataset after the append."""
    documents: int
    """Documents added."""
    windows: int
    """Windows added."""
    tokens: int
    """Tokens added, in windows."""
    dropped_documents: dict[str, int]
    dropped_tokens: dict[str, int]
    windows_before: int
    leaves: int
    """Leaves that hold a window after the append."""
    shards: int
    """Shards of the new generation."""
    new_shards: int
    """Shards that this append wrote."""
    seconds: float
    """Duration of this run."""

    def table(self) -> str:
        """The report as aligned lines."""
        rows = [
            ("dataset", f"{self.root}, generation {self.generation}"),
            ("documents in", f"{self.documents + sum(self.dropped_documents.values()):,}"),
            *((f"  dropped: {reason}", f"{count:,}") for reason, count in self.dropped_documents.items()),
            ("windows added", f"{self.windows:,} to {self.windows_before:,}"),
            ("tokens in windows", f"{self.tokens:,}"),
            *((f"  tokens dropped: {reason}", f"{count:,}") for reason, count in self.dropped_tokens.items()),
            ("leaves with windows", f"{self.leaves:,}"),
            ("shards", f"{self.shards:,}, {self.new_shards:,} of them new"),
            ("rate", f"{self.windows / self.seconds:,.1f} windows/s in {self.seconds:,.0f} s"),
        ]
        return aligned(rows)


def report_of(dataset: Dataset, seconds: float) -> AppendReport:
    """The account of the append that made the generation, from its manifest."""
    manifest = dataset.manifest
    entry = manifest.provenance["appended"][-1]
    return AppendReport(
        root=dataset.root,
        generation=manifest.generation,
        fingerprint=manifest.fingerprint,
        documents=entry["documents"],
        windows=entry["windows"],
        tokens=entry["tokens"],
        dropped_documents=entry["dropped_documents"],
        dropped_tokens=entry["dropped_tokens"],
        windows_before=manifest.num_windows - entry["windows"],
        leaves=manifest.num_leaves,
        shards=manifest.num_shards,
        new_shards=entry["new_shards"],
        seconds=max(seconds, 1e-9),
    )
