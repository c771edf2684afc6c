"""Digests of input files, so that the outcome of a job is named after what it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from crisp_stream.storage.store import is_remote, local_path


def digest_of(inputs: Sequence[str]) -> str:
    """sha256 over the files behind inputs: of local ones the content, of others address and version.

    Raises:
        InputError: an input that matches nothing. StorageError: the storage cannot be listed.
    """
    from crisp_stream.writers.documents.drops import DropCounts
    from crisp_stream.writers.documents.inputs import DocumentSettings
    from crisp_stream.writers.documents.listing import list_input_files

    found = hashlib.sha256()
    for file in list_input_files(inputs, DocumentSettings(), DropCounts()):
        local = not is_remote(file.url) and local_path(file.url).is_file()
        own = _content_digest(file.url, file.num_bytes, file.version) if local else f"{file.url} {file.version}"
        found.update(f"{own} {file.shard}\n".encode())
    return found.hexdigest()


@lru_cache(maxsize=64)
def fingerprint_of(root: str) -> str:
    """Of the dataset at a root, as it was when this process first asked.

    Raises:
        FormatError: there is none. StorageError: the storage refused or failed.
    """
    from crisp_stream.format.dataset import open_dataset

    return open_dataset(root).manifest.fingerprint


@lru_cache(maxsize=1024)
def _content_digest(path: str, num_bytes: int, version: str) -> str:
    """Size and version are there to be keys: a file that changed is read again."""
    with local_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
