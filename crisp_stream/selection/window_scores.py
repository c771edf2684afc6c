"""Scores of all windows of a dataset, by which windows were selected, kept for inspection.

They are float32: 4 bytes per window before compression, seven digits. The provenance names the method, without which a
score says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.parquet import RecordKind, load_record, numbers, save_record

_RECORD = RecordKind(
    name="scores of windows",
    key=b"crisp_stream.window_scores",
    version_key="scores_version",
    version=1,
    remedy="Write them again.",
    max_rows=1 << 36,
    options={"use_dictionary": False, "use_byte_stream_split": True, "write_page_checksum": True},
)


@dataclass(frozen=True, kw_only=True)
class WindowScores:
    """Scores of all windows of one dataset.

    Raises:
        InputError: no scores, or some that are not finite.
    """

    dataset_fingerprint: str
    """Fingerprint of the dataset's manifest."""
    scores: NDArray[np.float32]
    """[num_windows], in the dataset's numbering."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the scores: `method`, and its inputs and settings."""

    def __post_init__(self) -> None:
        scores = np.array(self.scores, np.float32)
        if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
            raise InputError(
                f"scores must be finite numbers, one per window, got shape {scores.shape} with "
                f"{int((~np.isfinite(scores)).sum())} that are not. Make them again."
            )
        scores.flags.writeable = False
        object.__setattr__(self, "scores", scores)

    def save(self, path: str | Path) -> None:
        """Write one Parquet file, whole or not at all. Raises StorageError."""
        facts = {
            "dataset_fingerprint": self.dataset_fingerprint,
            "num_windows": len(self.scores),
            "provenance": self.provenance,
        }
        save_record(path, _RECORD, {"score": pa.array(self.scores, pa.float32())}, facts)

    @classmethod
    def load(cls, path: str | Path) -> WindowScores:
        """Read what `save` wrote. Raises FormatError: something else, or damaged. StorageError: the storage failed."""
        with load_record(path, _RECORD) as record:
            facts, scores = record.facts, numbers(record.table()["score"], pa.float32())
            if len(scores) != facts["num_windows"]:
                raise FormatError(f"{facts['num_windows']:,} windows must have a score, got {len(scores):,}.")
            return cls(
                dataset_fingerprint=str(facts["dataset_fingerprint"]),
                scores=scores,
                provenance=dict(facts["provenance"]),
            )
