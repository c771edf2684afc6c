"""The examples of a task in the space of a dataset's encoder: all their windows, embedded as histograms count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from crisp_stream.counting.task_vectors import TaskEmbeddings
from crisp_stream.errors import InputError
from crisp_stream.format.manifest import Packing
from crisp_stream.histograms.histogram import Histogram

if TYPE_CHECKING:
    from crisp_stream.counting.embedded_examples import Answers, EmbeddedTask
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.processes import Log

__all__ = ["TaskEmbeddings", "embed_task", "histogram_of_task"]


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
