"""What belongs to a new generation beside its publication: indexes of the newest, and what older ones leave.

Files of the old generation are never touched, so jobs that read it go on, and whoever opens the root sees the old
dataset or the new one, whole. New files have the mark of their content in their names, so no append touches those of
another one.
"""

from __future__ import annotations

import contextlib
import re
import shutil

from crisp_stream.errors import CrispError, MissingObjectError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.listed_files import FILES
from crisp_stream.format.manifest import (
    DOCUMENTS,
    DROPPED,
    LEDGER,
    SOURCES,
    TABLES,
    kept_manifest,
    places_path,
)
from crisp_stream.format.mds import index_bytes
from crisp_stream.format.provenance import documents_tables, has_provenance
from crisp_stream.format.shards import SHARDS
from crisp_stream.format.tables import CLUSTERS
from crisp_stream.format.terms import TERMS
from crisp_stream.format.text_sketch import TEXTS
from crisp_stream.processes import Log
from crisp_stream.storage.store import Store, local_path
from crisp_stream.writers.publishing.claim import Hold, manifest_of

_TABLES = (CLUSTERS, SHARDS, TABLES, SOURCES, DROPPED, LEDGER, TERMS, TEXTS, FILES)
_OF_A_GENERATION = re.compile(
    r"manifest\.g\d+\.json"
    r"|(clusters|shards|provenance/(tables|sources|dropped|ledger|terms|texts|files))(\.g\d+)?(\.[0-9a-f]{8})?\.parquet"
    r"|shards/\d\d/shard\.\d+(\.[0-9a-f]{8})?\.mds|provenance/\d\d/shard\.\d+(\.[0-9a-f]{8})?\.npy"
    rf"|{DOCUMENTS}/\d+(\.[0-9a-f]{{8}})?\.parquet"
)


def write_indexes(dataset: Dataset, hold: Hold | None = None) -> None:
    """Let plain mosaicml-streaming read this generation: shards/index.json, and that of every folder below.

    Raises:
        ClaimLostError: the root is not claimed any more.
    """
    for below in sorted({row.path.rpartition("/")[0] for row in dataset.shards}):
        _write_index(dataset, below, hold)
    _write_index(dataset, "shards", hold)  # last: it says that the others are there


def _write_index(dataset: Dataset, below: str, hold: Hold | None) -> None:
    if hold is not None:
        hold.check()
    dataset.store.put(f"{below}/index.json", _index(dataset, below))


def _index(dataset: Dataset, below: str) -> bytes:
    manifest = dataset.manifest
    rows = [row for row in dataset.shards if row.path.startswith(f"{below}/")]
    return index_bytes(rows, below=below, window_tokens=manifest.window_tokens, token_dtype=manifest.token_dtype)


def indexes_are_of(dataset: Dataset) -> bool:
    """Whether the indexes describe this generation."""
    try:
        return dataset.store.get("shards/index.json") == _index(dataset, "shards")
    except MissingObjectError:
        return False


def has_older(dataset: Dataset) -> bool:
    """Whether an older generation can be opened."""
    return any(dataset.store.exists(kept_manifest(number)) for number in range(dataset.manifest.generation))


def settle(root: str, hold: Hold, *, prune: bool, log: Log) -> Dataset:
    """Finish an append whose new manifest stands, and open the newest generation. Doing it twice does no harm.

    With `prune`, the files that it does not use are deleted.
    """
    dataset = open_dataset(root)
    write_indexes(dataset, hold)
    if prune:
        hold.check(now=True)
        deleted = delete_older(dataset)
        log(f"pruned: {deleted:,} files of older generations")
    return dataset


def withdraw(store: Store, mark: str) -> None:
    """Delete the files that an append put which was not the first, but for those that a generation uses."""
    used: set[str] = set()
    with contextlib.suppress(CrispError):
        found = manifest_of(store)
        for generation in range(found[0].generation + 1 if found else 0):
            with contextlib.suppress(CrispError):
                used |= used_files(open_dataset(store.url, generation=generation))
    for path, _ in store.list():
        if f".{mark}." in path.rpartition("/")[2] and path not in used:
            with contextlib.suppress(MissingObjectError):
                store.delete(path)
    if store.is_local:
        for folder in sorted(local_path(store.url).glob("*/**/"), reverse=True):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def used_files(dataset: Dataset) -> set[str]:
    """Paths of the tables, shards, places and documents of a generation."""
    used = {dataset.own_path(path) for path in _TABLES}
    if has_provenance(dataset):
        used |= {table.path for table in documents_tables(dataset)}
    for row in dataset.shards:
        used |= {row.path, places_path(row.path)}
    return used


def delete_older(dataset: Dataset) -> int:
    """Delete what only generations older than this one use, and what appends left that were given up; count it."""
    used = used_files(dataset)
    unused = [path for path, _ in dataset.store.list() if _OF_A_GENERATION.fullmatch(path) and path not in used]
    for path in sorted(unused, key=lambda path: not path.startswith("manifest.")):  # first, what opens them
        dataset.store.delete(path)
    if dataset.store.is_local:
        for folder in local_path(dataset.root).glob("shards/[0-9][0-9]"):
            with contextlib.suppress(OSError):
                if {path.name for path in folder.iterdir()} == {"index.json"}:
                    shutil.rmtree(folder)
    return len(unused)
