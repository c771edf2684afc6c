"""The specialist text as windows, cut as the corpus was, and the choice of windows for each step of a run."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.sketch import PROVENANCE_KEY, SketchBuilder
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.windows import cut_documents

_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class TargetText:
    """Windows of the specialist text."""

    tokens: NDArray[Any]
    """[num_windows, window_tokens], in the type of the dataset's tokens."""
    provenance: dict[str, Any]
    """`inputs`, `documents`, `windows`, and the hashes of the documents, under the keys of a counted histogram."""

    @property
    def fingerprint(self) -> str:
        """sha256 over the tokens."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens).data).hexdigest()

    def rows_of_step(self, step: int, num_rows: int, *, seed: int) -> NDArray[np.int64]:
        """Choose the windows of a step: all in a random order, then all again in another order.

        The choice depends on its arguments alone, so a run can go on anywhere.

        Returns:
            [num_rows], numbers of windows.
        """
        positions = np.arange(step * num_rows, (step + 1) * num_rows)
        rounds, places = np.divmod(positions, len(self.tokens))
        rows = np.empty(num_rows, np.int64)
        for number in np.unique(rounds):
            order = np.random.Generator(np.random.Philox(key=[seed, int(number)])).permutation(len(self.tokens))
            rows[rounds == number] = order[places[rounds == number]]
        return rows


def read_target_text(
    inputs: Sequence[str], dataset: Dataset, *, text_column: str = "text", limit: int | None = None
) -> TargetText:
    """Read the specialist documents and cut them into windows by the dataset's tokenizer, length and packing.

    Raises:
        InputError: nothing to read, or less text than a window.
        StorageError: the storage refused or failed.
    """
    manifest = dataset.manifest
    tokenizer = DocumentTokenizer(dataset.tokenizer_path())
    sketch = SketchBuilder()

    def documents() -> Iterator[str]:
        for text in read_documents(inputs, text_column=text_column, limit=limit, counts=DropCounts()):
            sketch.add(example_hash(text))
            yield text

    encoded: list[NDArray[Any]] = []
    remaining = documents()
    while texts := list(itertools.islice(remaining, _TEXTS_AT_ONCE)):
        encoded += tokenizer.encode(texts)
    cut = cut_documents(
        encoded,
        packing=manifest.packing,
        window_tokens=manifest.window_tokens,
        eot_id=manifest.tokenizer.eot_id,
        token_dtype=manifest.token_dtype,
    )
    if not len(cut.tokens):
        num_tokens = sum(len(ids) for ids in encoded)
        raise InputError(
            f"the specialist text must fill a window of {manifest.window_tokens} tokens, got {num_tokens} tokens in "
            f"{len(encoded)} documents. Name more documents."
        )
    return TargetText(
        tokens=cut.tokens,
        provenance={
            "inputs": list(inputs),
            "documents": len(encoded),
            "windows": len(cut.tokens),
            PROVENANCE_KEY: sketch.finish().to_json(),
        },
    )
