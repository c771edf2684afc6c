"""Embeddings of all windows of a dataset, as `crisp-stream embed` wrote them: one array, mapped from disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

EMBEDDINGS_VERSION = 1
EMBEDDINGS = "embeddings.npy"
FACTS = "embeddings.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowEmbeddings:
    """Embeddings of all windows of a dataset."""

    rows: NDArray[np.float16]
    """[num_windows, dim], L2 norm 1 up to rounding, in the dataset's numbering; mapped, read-only."""

    @classmethod
    def load(cls, folder: str | Path, dataset: Dataset) -> WindowEmbeddings:
        """Open a folder of `crisp-stream embed`.

        Raises:
            InputError: there are none, or not all, or they are of another dataset or generation.
            FormatError: they are damaged.
        """
        path, manifest = Path(folder), dataset.manifest
        remedy = f"Make them with: crisp-stream embed {dataset.root} --out {folder}"
        if not (path / FACTS).is_file():
            begun = "not all embeddings are there" if (path / EMBEDDINGS).is_file() else "holds no embeddings"
            raise InputError(f"{folder}: {begun}. {remedy}")
        try:
            facts: Any = json.loads((path / FACTS).read_text())
            version, of = facts["embeddings_version"], facts["dataset"]
            rows = np.load(path / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise FormatError(f"{folder}: the embeddings are damaged ({error}). Delete the folder. {remedy}") from error
        if version != EMBEDDINGS_VERSION:
            raise FormatError(
                f"{folder}: embeddings_version {version} is not {EMBEDDINGS_VERSION}. Upgrade crisp-stream."
            )
        if of != manifest.fingerprint:
            raise InputError(
                f"{folder}: the embeddings are of dataset {str(of)[:12]}, {dataset.root} is "
                f"{manifest.fingerprint[:12]}. Name another folder. {remedy}"
            )
        if rows.dtype != np.float16 or rows.shape != (manifest.num_windows, manifest.encoder.dim):
            raise FormatError(
                f"{folder}: {EMBEDDINGS} must be {manifest.num_windows} rows of {manifest.encoder.dim} float16, got "
                f"{rows.shape} of {rows.dtype}. Delete the folder. {remedy}"
            )
        return cls(rows=rows)
