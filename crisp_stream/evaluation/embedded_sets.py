"""Distances of texts to a specialist set, in the space of a dataset's encoder.

Each text is one point: its first window, embedded as the examples of a task are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.counting.embedded_examples import Example, ExampleSources, embed_examples, embedding_settings
from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.sketch import SketchBuilder
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.processes import Log, Progress, num_processes
from crisp_stream.results.distances import Distances, nearest_distances, sorted_once
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder


@dataclass(frozen=True, kw_only=True)
class DistanceInputs:
    """Files of the texts and of the specialist set, and how they are read."""

    texts: Sequence[str]
    """Files of generalist text that models are judged on."""
    specialist: Sequence[str]
    """Files of the specialist set that the histogram was counted from."""
    specialist_test: Sequence[str] = ()
    """Files of specialist examples kept for testing."""
    questions: bool = False
    """Whether the specialist files are multiple-choice questions, each its prompt with the right answer."""
    text_column: str = "text"
    """Key or column of the text."""
    limit: int | None = None
    """Most texts read, as for judging them."""


@dataclass(frozen=True, kw_only=True)
class FirstWindows:
    """The first window of each text as a point in the space of the dataset's encoder."""

    examples: NDArray[np.uint64]
    """[num_examples], `example_hash` of each text that has a window."""
    embeddings: NDArray[np.float32]
    """[num_examples, dim], norm 1."""


def measure_distances(
    inputs: DistanceInputs,
    *,
    data: str,
    encoder: str | None = None,
    processes: int | None = None,
    log: Log = print,
) -> Distances:
    """Embed all files, and measure the distance of each text to the nearest specialist example.

    Args:
        data: root of the dataset whose encoder, tokenizer and window length are used.
        encoder: folder or hub name of that encoder, where its recorded name does not lead to it.
        processes: worker processes; one per core when None.

    Raises:
        InputError: an encoder with other weights, nothing to embed, broken input.
        FormatError: the root holds no dataset.
        StorageError: the storage refused or failed.
    """
    dataset, workers = open_dataset(data), num_processes(processes)
    choice = matching_encoder(dataset.manifest.encoder, encoder, data)

    def embed(files: Sequence[str], *, questions: bool = inputs.questions, limit: int | None = None) -> FirstWindows:
        log(f"embedding {', '.join(_names(files))}")
        answers = "right" if questions else None
        # Nothing is learnt from these examples, so test halves of questions are allowed.
        sources = ExampleSources(tuple(files), inputs.text_column, limit, answers, (), "files", test_halves=True)
        return embed_first_windows(sources, dataset, choice, processes=workers, log=log)

    specialist = embed(inputs.specialist).embeddings
    texts = embed(inputs.texts, questions=False, limit=inputs.limit)
    examples, distances = sorted_once(texts.examples, nearest_distances(texts.embeddings, specialist))
    test_distances = np.empty(0)
    if inputs.specialist_test:
        test_distances = np.sort(nearest_distances(embed(inputs.specialist_test).embeddings, specialist))
    return Distances(
        examples=examples,
        distances=distances,
        test_distances=test_distances,
        facts={
            "dataset": dataset.manifest.fingerprint,
            "encoder": dataset.manifest.encoder.name,
            "specialist_examples": len(specialist),
            "texts": _names(inputs.texts),
            "specialist": _names(inputs.specialist),
            "test": _names(inputs.specialist_test),
        },
    )


def embed_first_windows(
    sources: ExampleSources, dataset: Dataset, encoder: EncoderChoice, *, processes: int, log: Log = print
) -> FirstWindows:
    """Embed texts as `count_examples` does, each by its first window alone.

    Raises:
        InputError: nothing to embed, broken input.
    """
    settings = embedding_settings(dataset, encoder, "document", sources, log)
    hashes: list[int] = []

    def hashed() -> Iterator[Example]:
        for number, text in sources.read(DropCounts(), SketchBuilder()):
            hashes.append(example_hash(text))
            yield number, text

    first_rows: dict[int, NDArray[Any]] = {}
    progress = Progress("examples", "windows", log=log)
    for done in embed_examples(hashed(), settings, processes):
        numbers, rows = np.unique(done.examples, return_index=True)
        first_rows.update(zip(numbers.tolist(), done.embeddings[rows], strict=True))
        progress.add(len(done.embeddings))
    progress.finish()
    if not first_rows:
        raise InputError(f"{', '.join(sources.inputs)}: must hold an example with text, got none. Check the files.")
    numbers = sorted(first_rows)
    embeddings = np.stack([first_rows[number] for number in numbers]).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return FirstWindows(examples=np.array(hashes, np.uint64)[numbers], embeddings=embeddings)


def _names(files: Sequence[str]) -> list[str]:
    return [PurePosixPath(file.rstrip("/")).name for file in files]
