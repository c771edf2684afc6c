"""A folder for the embeddings of all windows of a dataset, while it is filled.

    embeddings.npy    f16[num_windows, dim], L2 norm 1, in the dataset's numbering
    embeddings.json   written last: fingerprint of the dataset, encoder
    work              a folder: records of what is done, while it is not all

Tasks write their rows in their places of the one file, so joining costs nothing; their records, written after the rows
are on disk, say what is done. So a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.format.embeddings import EMBEDDINGS, EMBEDDINGS_VERSION, FACTS
from crisp_stream.format.manifest import Manifest
from crisp_stream.storage.store import is_remote
from crisp_stream.writers.engine.workspace import Workspace


def embeddings_folder(path: str, *, option: str) -> Path:
    """Resolve the path of the folder. Raises InputError, which names `option`, for one in object storage."""
    if is_remote(path):
        raise InputError(
            f"{option}: must be a folder, got {path}: the rows are written in place. Copy it there afterwards."
        )
    return Path(path).resolve()


def records_of(folder: Path) -> Workspace:
    """Workspace with the records of tasks that wrote their rows."""
    return Workspace(folder / "work")


def is_complete(folder: Path) -> bool:
    """Say whether all rows are there."""
    return (folder / FACTS).is_file()


def refuse_others(folder: Path, fingerprints: Collection[str]) -> None:
    """Raises InputError: the folder holds the embeddings of another dataset than one of these."""
    if not is_complete(folder):
        return
    try:
        of = str(json.loads((folder / FACTS).read_text())["dataset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: the embeddings are damaged ({error}). Delete the folder.") from error
    if of not in fingerprints:
        raise InputError(
            f"{folder}: must not hold embeddings of another dataset, but has those of {of[:12]}. "
            "Name another folder, or delete this one."
        )


def rows_file(folder: Path, num_windows: int, dim: int) -> Path:
    """The file of all rows, of zeros where it is new; of another size, it is made anew with all records forgotten."""
    path = folder / EMBEDDINGS
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if np.load(path, mmap_mode="r").shape == (num_windows, dim):
            return path
    except (OSError, ValueError, EOFError):
        pass
    shutil.rmtree(folder / "work", ignore_errors=True)
    temporary = folder / f".{EMBEDDINGS}.{uuid.uuid4().hex[:12]}.tmp"
    rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(num_windows, dim))
    rows.flush()
    os.replace(temporary, path)  # noqa: PTH105 - read by other processes from now on
    return path


def complete(folder: Path, manifest: Manifest) -> None:
    """Say that all rows of a dataset are there, and forget what was done when."""
    facts = {
        "embeddings_version": EMBEDDINGS_VERSION,
        "dataset": manifest.fingerprint,
        "num_windows": manifest.num_windows,
        "encoder": dataclasses.asdict(manifest.encoder),
    }
    temporary = folder / f".{FACTS}.{uuid.uuid4().hex[:12]}.tmp"
    temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    temporary.replace(folder / FACTS)
    shutil.rmtree(folder / "work", ignore_errors=True)
