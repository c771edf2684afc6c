"""The examples of a task in the space of a dataset's encoder: all their windows, embedded as histograms count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import Packing
from crisp_stream.format.parquet import RecordKind, load_record, save_record
from crisp_stream.histograms.histogram import Histogram

if TYPE_CHECKING:
    from crisp_stream.counting.embedded_examples import Answers, EmbeddedTask
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.processes import Log


_RECORD = RecordKind(
    name="embeddings of a task",
    key=b"crisp_stream.task_embeddings",
    version_key="version",
    version=1,
    remedy="Embed the task again.",
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


def embed_task(
    inputs: Sequence[str],
    dataset: Dataset,
    *,
    text_column: str = "text",
    limit: int | None = None,
    packing: Packing = "document",
    answers: Answers | None = None,
    encoder: str | None = None,
    processes: int | None = None,
    log: Log = print,
) -> TaskEmbeddings:
    """Embed a task's examples; arguments and errors are those of `count_examples`."""
    from crisp_stream.counting.count_examples import warn_of_examples
    from crisp_stream.counting.embedded_examples import ExampleSources, embedded_task

    sources = ExampleSources(tuple(inputs), text_column, limit, answers, (), "files")
    task = embedded_task(sources, dataset, packing=packing, encoder=encoder, processes=processes, log=log)
    collected = _collected(task, dataset)
    warn_of_examples(collected.provenance, log)
    return collected


def histogram_of_task(task: TaskEmbeddings, dataset: Dataset, level: int, *, log: Log = print) -> Histogram:
    """Count the histogram of embedded examples: the one that `count_examples` counts of their text.

    Raises:
        InputError: a level the tree does not have.
    """
    from crisp_stream.counting.count_examples import check_level, count_embedded
    from crisp_stream.counting.embedded_examples import Embedded, EmbeddedTask

    check_level(level, dataset)
    batch = Embedded(
        embeddings=task.embeddings,
        examples=task.groups,
        num_examples=task.provenance["examples"],
        dropped_tokens=task.provenance["dropped_tokens"],
    )
    examples = EmbeddedTask(batches=[batch], provenance=task.provenance, late_provenance=dict)
    return count_embedded(examples, dataset, level, log=log)


def _collected(task: EmbeddedTask, dataset: Dataset) -> TaskEmbeddings:
    from crisp_stream.writers.documents.drops import merged_counts

    done = list(task.batches)
    embeddings = [np.asarray(batch.embeddings, np.float32) for batch in done]
    rows = np.concatenate([np.empty((0, dataset.manifest.encoder.dim), np.float32), *embeddings])
    examples = np.concatenate([np.empty(0, np.int64), *(batch.examples for batch in done)])
    if not len(rows):
        raise InputError(
            f"{', '.join(task.provenance['inputs'])}: must fill at least one window of "
            f"{dataset.manifest.window_tokens} tokens, got none. Use --packing document, or give more examples."
        )
    in_order = np.argsort(examples, kind="stable")  # batches come in any order
    provenance = {
        **task.provenance,
        "examples": max(batch.num_examples for batch in done),
        "windows": len(rows),
        "dropped_tokens": merged_counts(batch.dropped_tokens for batch in done),
        **task.late_provenance(),
    }
    rows = rows[in_order] / np.linalg.norm(rows[in_order], axis=1, keepdims=True)
    examples = examples[in_order]
    alike = None if task.alike is None else task.alike()[examples]
    return TaskEmbeddings(embeddings=rows, examples=examples, alike=alike, provenance=provenance)
