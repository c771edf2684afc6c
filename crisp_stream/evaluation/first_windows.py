"""Texts as single points in the space of a dataset's encoder: the first window of each, embedded as examples are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.counting.embedded_examples import Example, ExampleSources, embed_examples, embedding_settings
from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.sketch import SketchBuilder
from crisp_stream.format.dataset import open_dataset
from crisp_stream.processes import Log, Progress, num_processes
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.embedding.embed import matching_encoder


@dataclass(frozen=True, kw_only=True)
class FirstWindows:
    """Where examples lie in the space of the dataset's encoder: the first window of each."""

    examples: NDArray[np.uint64]
    """[num_examples], `example_hash` of each text; those without a window are not among them."""
    embeddings: NDArray[np.float32]
    """[num_examples, dim], norm 1."""


def embed_first_windows(
    inputs: Sequence[str],
    *,
    data: str,
    text_column: str = "text",
    limit: int | None = None,
    questions: bool = False,
    encoder: str | None = None,
    processes: int | None = None,
    log: Log = print,
) -> FirstWindows:
    """Embed examples as `count_examples` does, each by its first window alone.

    Args:
        inputs: files, folders, prefixes or globs of examples, as for `write`.
        data: root of the dataset whose tokenizer, window length and encoder are meant.
        text_column: key or column of the text.
        limit: read at most this many examples.
        questions: the inputs are multiple-choice questions, each of them its prompt with the right answer.
        encoder: folder or hub name of the dataset's encoder, where it cannot be found by its recorded name.
        processes: worker processes; one per core when None.
        log: receives progress.

    Raises:
        InputError: an encoder with other weights, nothing to embed, broken input.
        FormatError: the root holds no dataset.
        StorageError: the storage refused or failed.
    """
    dataset = open_dataset(data)
    answers = "right" if questions else None
    sources = ExampleSources(tuple(inputs), text_column, limit, answers, (), "files", test_halves=True)
    choice = matching_encoder(dataset.manifest.encoder, encoder, data)
    settings = embedding_settings(dataset, choice, "document", sources, log)
    hashes: list[int] = []

    def hashed() -> Iterator[Example]:
        for number, text in sources.read(DropCounts(), SketchBuilder()):
            hashes.append(example_hash(text))
            yield number, text

    found: dict[int, NDArray[Any]] = {}
    progress = Progress("examples", "windows", log=log)
    for done in embed_examples(hashed(), settings, num_processes(processes)):
        numbers, rows = np.unique(done.examples, return_index=True)
        found.update(zip(numbers.tolist(), done.embeddings[rows], strict=True))
        progress.add(len(done.embeddings))
    progress.finish()
    if not found:
        raise InputError(f"{', '.join(inputs)}: must hold an example with text, got none. Check the files.")
    numbers = sorted(found)
    embeddings = np.stack([found[number] for number in numbers]).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return FirstWindows(examples=np.array(hashes, np.uint64)[numbers], embeddings=embeddings)
