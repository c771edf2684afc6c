"""Put a staged dataset under its root: everything else first, the manifest last and only where none is.

A local root gets the staged folders by rename, so it never holds half a file; on an object store shards were put there
as they were made, as whole objects. A crash leaves a root without a manifest, which no reader opens, and a work folder
from which the same command goes on.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import MANIFEST
from crisp_stream.format.shards import SHARDS
from crisp_stream.format.tables import CLUSTERS
from crisp_stream.processes import Log
from crisp_stream.storage.store import Store, is_remote, local_path, open_store
from crisp_stream.writers.engine.workspace import Workspace

FOLDERS = ("shards", "tree", "tokenizer", "encoder", "provenance")
FILES = (CLUSTERS, SHARDS)
MADE = "made"
"""Folder of the workspace with the manifests of whole datasets."""


def check_root(root: str, *, ours: bool, manifests: Sequence[bytes] = ()) -> None:
    """Refuse a root that is taken.

    Args:
        root: where the dataset shall be.
        ours: whether an earlier run of this write began to put files there.
        manifests: that it made, when it came so far.

    Raises:
        InputError: the root holds a dataset, or files under the names of one.
        StorageError: the storage refused or failed.
    """
    store = open_store(root)
    if store.is_local and Path(store.url).exists() and not Path(store.url).is_dir():
        raise InputError(f"{root}: the output root must be a folder, got a file. Choose another --out.")
    if store.exists(MANIFEST) and store.get(MANIFEST) not in manifests:
        raise InputError(
            f"{root}: the output root must not hold a dataset, but it has a {MANIFEST}. "
            "Choose another --out, or delete the old dataset first."
        )
    if ours:
        return
    taken = _taken_name(store)
    if taken is not None:
        raise InputError(
            f"{root}: the output root must not hold files under a dataset's names, but it has {taken}. "
            "Choose another --out, or delete what is there."
        )


def made_manifests(workspace: Workspace) -> list[bytes]:
    """The manifests that earlier runs were about to publish."""
    return [workspace.read(name) for name in workspace.sizes(MADE)]


def _taken_name(store: Store) -> str | None:
    if store.is_local:
        return next((name for name in (*FOLDERS, *FILES) if (Path(store.url) / name).exists()), None)
    for name in FILES:
        if store.exists(name):
            return name
    return next((f"{name}/" for name in FOLDERS if store.list(name)), None)


def publish(staged: str, root: str, manifest: bytes, *, log: Log) -> None:
    """Move what is staged to its root (or is there already), then create the manifest.

    Raises:
        StorageError: the storage refused or failed, or another writer's manifest appeared.
    """
    if not is_remote(root):
        move_staged(Path(staged), local_path(root))
    store = open_store(root)
    if not (store.exists(MANIFEST) and store.get(MANIFEST) == manifest):
        store.put(MANIFEST, manifest, create=True)
    log(f"published: {root}")


def published_bytes(root: str) -> int:
    """Size of the dataset at a root. Raises StorageError."""
    names = (MANIFEST, *FILES)
    below = tuple(f"{folder}/" for folder in FOLDERS)
    return sum(size for path, size in open_store(root).list() if path in names or path.startswith(below))


def move_staged(staged: Path, root: Path) -> None:
    """Rename every staged folder and table into a local root; what an interrupted run moved is passed over."""
    root.mkdir(parents=True, exist_ok=True)
    left_by_killed = [file for name in FOLDERS for file in (staged / name).rglob("*.tmp")]
    for file in (*left_by_killed, *(file for name in FILES for file in staged.glob(f".{name}.*.tmp"))):
        file.unlink()
    for name in (*FOLDERS, *FILES):
        source = staged / name
        if not source.exists():
            continue  # moved before an interruption
        move(source, root / name)


def move(source: Path, target: Path) -> None:
    """Rename; from another file system, copy under a temporary name, then rename."""
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    incoming = target.with_name(f".incoming-{target.name}")
    if source.is_dir():
        shutil.rmtree(incoming, ignore_errors=True)
        shutil.copytree(source, incoming)
    else:
        shutil.copyfile(source, incoming)
    incoming.rename(target)
    shutil.rmtree(source) if source.is_dir() else source.unlink()
