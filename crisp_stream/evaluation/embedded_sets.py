"""Distances of texts to a specialist set, from the texts: embedded as the writers embed a task's examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from crisp_stream.format.dataset import open_dataset
from crisp_stream.results.distances import Distances, nearest_distances, sorted_once


@dataclass(frozen=True, kw_only=True)
class DistanceInputs:
    """What is measured, and how it is read."""

    texts: Sequence[str]
    """Files of generalist text, that models are judged on."""
    specialist: Sequence[str]
    """Files of the specialist set, which the histogram was counted of."""
    specialist_test: Sequence[str] = ()
    """Files of specialist examples kept for testing."""
    questions: bool = False
    """Whether the specialist files are multiple-choice questions."""
    text_column: str = "text"
    limit: int | None = None
    """Most texts read, as for judging them."""


def measure_distances(
    inputs: DistanceInputs,
    *,
    data: str,
    encoder: str | None = None,
    processes: int | None = None,
    log: Callable[[str], None] = print,
) -> Distances:
    """Embed all, and find the nearest specialist example of each text.

    Args:
        data: root of the dataset whose encoder, tokenizer and window length are meant.
        encoder: folder or hub name of that encoder, where it cannot be found by its recorded name.
        processes: worker processes; one per core when None.
        log: receives progress.

    Raises:
        InputError: an encoder with other weights, nothing to embed, broken input.
        FormatError: the root holds no dataset.
        StorageError: the storage refused or failed.
    """
    from crisp_stream.evaluation.first_windows import FirstWindows, embed_first_windows

    def embed(files: Sequence[str], *, questions: bool, limit: int | None = None) -> FirstWindows:
        log(f"embedding {', '.join(_names(files))}")
        return embed_first_windows(
            files,
            data=data,
            text_column=inputs.text_column,
            limit=limit,
            questions=questions,
            encoder=encoder,
            processes=processes,
            log=log,
        )

    specialist = embed(inputs.specialist, questions=inputs.questions).embeddings
    texts = embed(inputs.texts, questions=False, limit=inputs.limit)
    examples, distances = sorted_once(texts.examples, nearest_distances(texts.embeddings, specialist))
    of_test = np.empty(0)
    if inputs.specialist_test:
        test = embed(inputs.specialist_test, questions=inputs.questions)
        of_test = np.sort(nearest_distances(test.embeddings, specialist))
    manifest = open_dataset(data).manifest
    return Distances(
        examples=examples,
        distances=distances,
        test_distances=of_test,
        facts={
            "dataset": manifest.fingerprint,
            "encoder": manifest.encoder.name,
            "specialist_examples": len(specialist),
            "texts": _names(inputs.texts),
            "specialist": _names(inputs.specialist),
            "test": _names(inputs.specialist_test),
        },
    )


def _names(files: Sequence[str]) -> list[str]:
    return [PurePosixPath(file.rstrip("/")).name for file in files]
