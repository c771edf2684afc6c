"""Judging models on sets of texts and of questions: all sets by one model, then the next model.

Everything that can be wrong with the inputs is found before the first forward pass. Results are saved as soon as a
model is done with a set, so that an interruption loses one set of one model at most.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.checkpoint import checkpoints_by_batch
from crisp_stream.errors import InputError, import_extra
from crisp_stream.evaluation.models import JudgedModel, open_model
from crisp_stream.evaluation.perplexity import Progress, judge_texts
from crisp_stream.evaluation.results import QuestionResults, TextResults, example_hash
from crisp_stream.ranks import join_ranks, together

if TYPE_CHECKING:
    from crisp_stream.writers.inputs import Layout

Log = Callable[[str], None]
ProgressFor = Callable[[str, int], Progress]
"""Given what is judged and its number of examples, takes how many more are done."""


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """Held-out documents that are judged as one set."""

    inputs: tuple[str, ...]
    """Files, folders or globs, as for `crisp-stream write`."""
    text_column: str = "text"
    limit: int | None = None
    filters: tuple[str, ...] = ()
    layout: Layout = "files"

    @property
    def name(self) -> str:
        """The first input's name without its endings, and how many others there are."""
        rest = len(self.inputs) - 1
        return set_name(self.inputs[0]) + (f"+{rest}" if rest else "")

    def read(self) -> Iterator[str]:
        """The documents, in the order of their files."""
        from crisp_stream.writers.documents import DropCounts, read_documents

        return read_documents(
            self.inputs,
            text_column=self.text_column,
            limit=self.limit,
            filters=self.filters,
            layout=self.layout,
            counts=DropCounts(),
        )


def set_name(path: str) -> str:
    """`medicine.test` of `corpora/medicine.test.jsonl.zst`."""
    name = PurePosixPath(path.rstrip("/")).name
    for ending in (".zst", ".gz", ".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".arrow"):
        name = name.removesuffix(ending)
    return name or path


def each_checkpoint(folders: Sequence[str]) -> list[str]:
    """All checkpoints of runs, in order. Raises InputError: a folder without any."""
    found = []
    for folder in folders:
        checkpoints = list(checkpoints_by_batch(folder).values())
        if not checkpoints:
            raise InputError(f"{folder}: holds no checkpoints of a run (ep…-ba…-rank0.pt). Name a run's save_folder.")
        found += checkpoints
    return found
