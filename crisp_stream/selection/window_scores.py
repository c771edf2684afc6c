"""Scores of all windows of a dataset, by which windows were selected, kept for inspection.

They are float32: 4 bytes per window before compression, seven digits. The provenance names the method, without which a
score says nothing.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.parquet import numbers, read_parquet
from crisp_stream.storage.store import open_store

SCORES_VERSION = 1
_METADATA_KEY = b"crisp_stream.window_scores"
_MOST_WINDOWS = 1 << 36


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
            "scores_version": SCORES_VERSION,
            "dataset_fingerprint": self.dataset_fingerprint,
            "num_windows": len(self.scores),
            "provenance": self.provenance,
        }
        table = pa.table({"score": pa.array(self.scores, pa.float32())})
        sink = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata({_METADATA_KEY: json.dumps(facts).encode()}),
            sink,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=True,
            write_page_checksum=True,
        )
        folder, _, name = str(path).rpartition("/")
        open_store(folder or ("/" if str(path).startswith("/") else ".")).put(name, sink.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> WindowScores:
        """Read what `save` wrote. Raises FormatError: something else, or damaged. StorageError: the storage failed."""
        folder, _, name = str(path).rpartition("/")
        content = open_store(folder or ("/" if str(path).startswith("/") else ".")).get(name)
        try:
            table = read_parquet(content, max_rows=_MOST_WINDOWS)
            facts = json.loads((table.schema.metadata or {})[_METADATA_KEY])
            if facts["scores_version"] == SCORES_VERSION:
                scores = numbers(table["score"], pa.float32())
                if len(scores) != facts["num_windows"]:
                    raise ValueError(f"{facts['num_windows']:,} windows must have a score, got {len(scores):,}")
                return cls(
                    dataset_fingerprint=str(facts["dataset_fingerprint"]),
                    scores=scores,
                    provenance=dict(facts["provenance"]),
                )
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path}: not scores of windows, or damaged ({error!r}). Write them again.") from error
        raise FormatError(
            f"{path}: scores_version {facts['scores_version']} is not {SCORES_VERSION}. Upgrade crisp-stream."
        )
