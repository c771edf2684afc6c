"""Growth of a dataset in place: a new generation is put beside the old one, then the manifest is exchanged.

Files of the old generation are never touched, so jobs that read it go on, and whoever opens the root sees the old
dataset or the new one, whole. While files are put there `append.json` says whose they are: of two appends the second
is refused, and one that was interrupted is gone on with by the same command alone.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from crisp_stream.errors import InputError, MissingObjectError, StorageError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import (
    DOCUMENTS,
    DROPPED,
    LEDGER,
    MANIFEST,
    SOURCES,
    TABLES,
    Manifest,
    kept_manifest,
    places_path,
)
from crisp_stream.format.mds import index_bytes
from crisp_stream.format.provenance import documents_tables
from crisp_stream.format.tables import CLUSTERS, SHARDS
from crisp_stream.processes import Log
from crisp_stream.storage.store import Store, local_path
from crisp_stream.writers.publishing.publish import move

APPENDING = "append.json"
"""File that is in a root while an append puts files there."""
_TABLES = (CLUSTERS, SHARDS, TABLES, SOURCES, DROPPED, LEDGER)
_OF_A_GENERATION = re.compile(
    r"manifest\.g\d+\.json"
    r"|(clusters|shards|provenance/tables|provenance/sources|provenance/dropped|provenance/ledger)(\.g\d+)?\.parquet"
    r"|shards/\d\d/shard\.\d+\.mds|provenance/\d\d/shard\.\d+\.npy"
    rf"|{DOCUMENTS}/\d+\.parquet"
)


@dataclass(frozen=True, kw_only=True)
class Append:
    """An append that puts files into a root."""

    generation: int
    """Generation that it makes."""
    base: str
    """Fingerprint of the dataset that grows."""
    request: str
    """Fingerprint of the documents, and of all that determines what becomes of them."""


def append_in_progress(store: Store) -> Append | None:
    """Read `append.json` of a root; None where there is none. Raises InputError where it cannot be read."""
    try:
        content = store.get(APPENDING)
    except MissingObjectError:
        return None
    try:
        return Append(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise InputError(f"{store.url}/{APPENDING}: must be what an append wrote, got: {error}. Delete it.") from error


def check_free(store: Store, claim: Append) -> bool:
    """Say whether an earlier run of this append may have put files there. Raises InputError for another append."""
    standing = append_in_progress(store)
    if standing is not None and standing != claim:
        raise InputError(
            f"{store.url}: must be grown by one append at a time, but another, with other inputs or options, is "
            "running or was interrupted. Wait for it, or run its command again to finish it; to give it up, delete "
            f"{store.url}/{APPENDING} and then run this command again."
        )
    return standing is not None


def begin(store: Store, claim: Append) -> bool:
    """Claim the root: from here on files may be put there. Raises InputError where another append has begun.

    Returns:
        Whether an earlier run of this append had begun, whose files are used again.
    """
    if check_free(store, claim):
        return True
    try:
        store.put(APPENDING, json.dumps(asdict(claim)).encode(), create=True)
    except StorageError:
        if not check_free(store, claim):
            raise
    return False


def end(store: Store, claim: Append) -> None:
    """Give up the claim: the append is over, and another may begin."""
    if append_in_progress(store) == claim:
        store.delete(APPENDING)


def move_staged_files(staged: Path, root: Path) -> None:
    """Rename the staged shards, places and tables of documents into a local root; those that an interrupted run moved
    are there already."""
    for file in sorted(staged.rglob("*")):
        if not file.is_file():
            continue
        target = root / file.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        move(file, target)


def exchange_manifest(store: Store, old: bytes, manifest: Manifest) -> None:
    """Keep the old manifest under its generation's name, then put the new one in its place, in one step.

    Raises:
        InputError: the root's manifest is not the old one any more.
    """
    if store.get(MANIFEST) != old:
        raise InputError(
            f"{store.url}: the dataset changed meanwhile, so nothing was added to it. Run the command again."
        )
    store.put(kept_manifest(manifest.generation - 1), old)
    store.put(MANIFEST, manifest.to_json())


def write_indexes(dataset: Dataset) -> None:
    """Let plain mosaicml-streaming read this generation: shards/index.json, and that of every folder below."""
    manifest, rows = dataset.manifest, dataset.shards
    for below in ["shards", *sorted({row.path.rpartition("/")[0] for row in rows})]:
        below_rows = [row for row in rows if row.path.startswith(f"{below}/")]
        index = index_bytes(
            below_rows, below=below, window_tokens=manifest.window_tokens, token_dtype=manifest.token_dtype
        )
        dataset.store.put(f"{below}/index.json", index)


def settle(root: str, *, prune: bool, log: Log) -> Dataset:
    """Finish an append whose new manifest stands, and open the newest generation. Doing it twice does no harm.

    With `prune`, the files that it does not use are deleted.
    """
    dataset = open_dataset(root)
    write_indexes(dataset)
    if prune:
        deleted = delete_older(dataset)
        log(f"pruned: {deleted:,} files of older generations")
    return dataset


def delete_older(dataset: Dataset) -> int:
    """Delete what only generations older than this one use, and what appends left that were given up; count it."""
    used = {dataset.own_path(path) for path in _TABLES}
    used |= {table.path for table in documents_tables(dataset)}
    for row in dataset.shards:
        used |= {row.path, places_path(row.path)}
    unused = [path for path, _ in dataset.store.list() if _OF_A_GENERATION.fullmatch(path) and path not in used]
    for path in sorted(unused, key=lambda path: not path.startswith("manifest.")):  # first, what opens them
        dataset.store.delete(path)
    if dataset.store.is_local:
        for folder in local_path(dataset.root).glob("shards/[0-9][0-9]"):
            with contextlib.suppress(OSError):
                if {path.name for path in folder.iterdir()} == {"index.json"}:
                    shutil.rmtree(folder)
    return len(unused)
