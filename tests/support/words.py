"""Datasets of real text with provenance, written in a second by an encoder that counts words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.writers.append import append
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.write import write
from tests.support.written_dataset import TOPICS, WordEncoder, small_options


def write_texts(folder: Path, num_files: int = 3, characters: int = 1500) -> list[str]:
    """Files of documents, each with an id of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(num_files):
        rows = [{"id": f"d{number}-{row}", "text": text[:characters]} for row, text in enumerate(TOPICS[number::3])]
        paths.append(folder / f"{'abcdef'[number]}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in paths]


def _with_words(patch: pytest.MonkeyPatch) -> None:
    encoder = WordEncoder()
    patch.setattr("crisp_stream.writers.stages.windows.load_encoder", lambda choice, device: encoder)
    patch.setattr("crisp_stream.writers.stages.windows.worker_device", lambda: "cpu")
    patch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )


def write_words(inputs: Sequence[str], out: Path | str, **changes: Any) -> Dataset:
    """Write a dataset."""
    with pytest.MonkeyPatch.context() as patch:
        _with_words(patch)
        write(small_options(Path(inputs[0]), out, **{"inputs": list(inputs), **changes}), log=lambda line: None)
    return open_dataset(out)


def append_words(inputs: Sequence[str], root: Path | str, **changes: Any) -> Dataset:
    """Let it grow."""
    with pytest.MonkeyPatch.context() as patch:
        _with_words(patch)
        append(small_options(Path(inputs[0]), root, **{"inputs": list(inputs), **changes}), log=lambda line: None)
    return open_dataset(root)
