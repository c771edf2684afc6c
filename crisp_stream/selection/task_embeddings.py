"""The examples of a task in the space of a dataset's encoder: all their windows, embedded as histograms count them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.example_sketch import PROVENANCE_KEY, SketchBuilder
from crisp_stream.format import Packing
from crisp_stream.training_record import file_name

if TYPE_CHECKING:
    from crisp_stream.format import Dataset
    from crisp_stream.writers.examples import Answers, Embedded
    from crisp_stream.writers.pool import Log


@dataclass(frozen=True, kw_only=True)
class TaskEmbeddings:
    """The windows of a task's examples."""

    embeddings: NDArray[np.float32]
    """[num_windows, dim], norm 1."""
    examples: NDArray[np.int64]
    """[num_windows], number of the example that each begins in; those of one example belong together."""
    provenance: dict[str, Any]
    """What a selection says of them, as histograms do: files, numbers, hashes of the examples."""


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
    """Embed a task's examples; arguments and errors as of `writers.examples.count_examples`."""
    from crisp_stream.writers.documents import DropCounts
    from crisp_stream.writers.embed import matching_encoder
    from crisp_stream.writers.examples import ExampleSources, embed_examples, embedding_settings, read_embeddings
    from crisp_stream.writers.pool import num_processes

    provenance: dict[str, Any] = {"inputs": [file_name(path.rstrip("/")) for path in inputs]}
    given = [path.endswith(".npy") for path in inputs]
    if any(given):
        if not all(given) or answers is not None:
            raise InputError("embeddings: must be given alone, got other inputs, too. Embed these apart.")
        batches: Iterable[Embedded] = read_embeddings(inputs, dataset.manifest.encoder.dim, limit)
        return _collected(batches, dataset, provenance)
    sources = ExampleSources(tuple(inputs), text_column, limit, answers, (), "files")
    choice = matching_encoder(dataset.manifest.encoder, encoder, dataset.root)
    settings = embedding_settings(dataset, choice, packing, sources, log)
    sketch = SketchBuilder()
    batches = embed_examples(sources.read(DropCounts(), sketch), settings, num_processes(processes))
    found = _collected(batches, dataset, provenance)
    return TaskEmbeddings(
        embeddings=found.embeddings,
        examples=found.examples,
        provenance={
            **found.provenance,
            "packing": packing,
            PROVENANCE_KEY: sketch.finish().to_json(),
            **({} if answers is None else {"answers": answers}),
        },
    )


def _collected(batches: Iterable[Embedded], dataset: Dataset, provenance: dict[str, Any]) -> TaskEmbeddings:
    done = list(batches)
    embeddings = [np.asarray(batch.embeddings, np.float32) for batch in done]
    rows = np.concatenate([np.empty((0, dataset.manifest.encoder.dim), np.float32), *embeddings])
    examples = np.concatenate([np.empty(0, np.int64), *(batch.examples for batch in done)])
    if not len(rows):
        raise InputError(
            f"{', '.join(provenance['inputs'])}: must fill at least one window of {dataset.manifest.window_tokens} "
            "tokens, got none. Use --packing document, or give more examples."
        )
    in_order = np.argsort(examples, kind="stable")  # batches come in any order
    counted = {"examples": max(batch.num_examples for batch in done), "windows": len(rows)}
    rows = rows[in_order] / np.linalg.norm(rows[in_order], axis=1, keepdims=True)
    return TaskEmbeddings(embeddings=rows, examples=examples[in_order], provenance={**provenance, **counted})
