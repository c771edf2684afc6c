"""The embeddings of a task's examples as a file: kept beside a histogram, or embedded once for several methods.

A histogram knows how many windows fell into each cluster of one tree. In another tree the same windows fall elsewhere,
so who may want to carry it there keeps what was counted: 1.5 kB per window at 384 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.format.parquet import RecordKind, load_record, save_record
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.storage.store import open_store

if TYPE_CHECKING:
    from crisp_stream.counting.embedded_examples import Embedded

HISTOGRAM_KEY = "histogram"
"""Key in the provenance of embeddings that are kept beside a histogram: its fingerprint."""
_KIND = ".parquet"


_RECORD = RecordKind(
    name="embeddings of a task",
    key=b"crisp_stream.task_embeddings",
    version_key="version",
    version=1,
    remedy="Count the examples again: crisp-stream histogram count TASK… --keep-embeddings --out HISTOGRAM",
    options={"write_page_checksum": True},
)


@dataclass(frozen=True, kw_only=True)
class TaskEmbeddings:
    """The windows of a task's examples."""

    embeddings: NDArray[np.float32]
    """[num_windows, dim], norm 1."""
    examples: NDArray[np.int64]
    """[num_windows], number of the example that each begins in; those of one example belong together."""
    provenance: dict[str, Any]
    """Files, numbers and hashes of the examples, as in the provenance of histograms."""
    alike: NDArray[np.int64] | None = None
    """[num_windows], the first example that the example of each is like; None: not known."""

    @property
    def groups(self) -> NDArray[np.int64]:
        """[num_windows], windows of one group are held out together."""
        return self.examples if self.alike is None else self.alike

    def of(self, histogram: Histogram) -> TaskEmbeddings:
        """The same, to be kept beside another histogram of these examples."""
        return replace(self, provenance={**histogram.provenance, HISTOGRAM_KEY: histogram.fingerprint})

    def save(self, path: str | Path) -> None:
        """Write a Parquet file, whole or not at all, replacing an older one. Raises StorageError."""
        dim = self.embeddings.shape[1]
        rows = pa.FixedSizeListArray.from_arrays(pa.array(self.embeddings.ravel(), pa.float32()), dim)
        columns = {"example": pa.array(self.examples, pa.int64()), "embedding": rows}
        if self.alike is not None:
            columns["alike"] = pa.array(self.alike, pa.int64())
        save_record(path, _RECORD, columns, self.provenance)

    @classmethod
    def load(cls, path: str | Path) -> TaskEmbeddings:
        """Read what `save` wrote. Raises FormatError for any other file, StorageError."""
        with load_record(path, _RECORD) as record:
            table = record.table()
            column = table["embedding"].combine_chunks()
            rows = column.flatten().to_numpy().reshape(len(column), -1)
            return cls(
                embeddings=np.asarray(rows, np.float32),
                examples=table["example"].to_numpy(),
                alike=table["alike"].to_numpy() if "alike" in table.column_names else None,
                provenance=record.facts,
            )


def embeddings_beside(histogram: str | Path, named: str | Path | None) -> TaskEmbeddings | None:
    """Load the named file of embeddings, or the one beside a histogram; None where there is none beside it.

    Raises:
        FormatError: not such a file, or a damaged one; the named one is missing. StorageError.
    """
    if named is not None:
        return TaskEmbeddings.load(named)
    path = beside(histogram)
    folder, slash, name = path.rpartition("/")
    return TaskEmbeddings.load(path) if open_store(folder or slash or ".").exists(name) else None


def beside(histogram: str | Path) -> str:
    """Name of the file of embeddings beside a histogram file: task.parquet -> task.examples.parquet."""
    return str(histogram).removesuffix(_KIND) + ".examples.parquet"


def embeddings_of(counted: Sequence[Embedded], histogram: Histogram, alike: NDArray[np.int64] | None) -> TaskEmbeddings:
    """The vectors that a histogram was counted from, in the order of their examples.

    Args:
        counted: all batches, in any order.
        histogram: what was counted from them.
        alike: [num_examples], the first example that each is like; None: not known.
    """
    examples = np.concatenate([batch.examples for batch in counted])
    rows = np.concatenate([np.asarray(batch.embeddings, np.float32) for batch in counted])
    in_order = np.argsort(examples, kind="stable")
    examples = examples[in_order]
    return TaskEmbeddings(
        embeddings=rows[in_order],
        examples=examples,
        alike=None if alike is None else alike[examples],
        provenance={**histogram.provenance, HISTOGRAM_KEY: histogram.fingerprint},
    )
