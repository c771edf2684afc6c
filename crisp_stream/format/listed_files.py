"""provenance/files.parquet: the sha256 of every small file of a dataset, which `verify --deep` compares.

Shards stand in shards.parquet with their hashes, and the places of their windows follow from the tables of documents;
so the list has a row for each of the other files alone, some tens, and one for each table of documents. It is a table
of its own because manifest.json is read by whoever opens the dataset, and nothing but verification needs the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pyarrow as pa

from crisp_stream.errors import FormatError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import DOCUMENTS
from crisp_stream.format.parquet import parquet_bytes, read_parquet

FILES = "provenance/files.parquet"
SHARED = ("tree/", "tokenizer/", "encoder/", f"{DOCUMENTS}/")
"""Where files stand that all generations of a dataset share."""
_MAX_FILES = 1 << 26


def files_parquet(sha256_per_path: Mapping[str, str]) -> bytes:
    """Make the table, a row per file in the order of their paths."""
    paths = sorted(sha256_per_path)
    return parquet_bytes(pa.table({"path": paths, "sha256": [sha256_per_path[path] for path in paths]}))


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 of files by their path, of all that the list shall have: indexes change, and list shards only."""
    return {
        path: hashlib.sha256(content).hexdigest() for path, content in files.items() if not path.endswith("/index.json")
    }


def listed_files(dataset: Dataset) -> dict[str, str]:
    """Read the list of a dataset: the sha256 of each file by its path.

    Raises:
        FormatError: the list is not the one of the manifest, or there is none. StorageError.
    """
    path, expected = dataset.own_path(FILES), dataset.manifest.files_sha256
    if not expected:
        raise FormatError(f"{path}: missing, because the dataset was written without it: its files cannot be compared")
    content = dataset.store.get(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise FormatError(f"{path}: has sha256 {digest[:12]}, the manifest says {expected[:12]}. Restore it.")
    columns = read_parquet(content, max_rows=_MAX_FILES).to_pydict()
    return dict(zip(columns["path"], columns["sha256"], strict=True))


def shared_digests(dataset: Dataset) -> dict[str, str]:
    """The sha256 of the files that a later generation shares with this one; from the files where there is no list."""
    if dataset.manifest.files_sha256:
        return {path: sha256 for path, sha256 in listed_files(dataset).items() if path.startswith(SHARED)}
    paths = [path for folder in SHARED for path, _ in dataset.store.list(folder.rstrip("/"))]
    return digests_of({path: dataset.store.get(path) for path in paths})
