"""Put a staged dataset under its root: everything else first, the manifest last and only where none is.

Local roots get the staged files by rename, so a root never holds half a file; object stores get whole objects. A
crash leaves a root without a manifest, which no reader opens, and a work folder from which the same command goes on.
"""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crisp_stream.errors import InputError
from crisp_stream.format import CLUSTERS, MANIFEST, SHARDS
from crisp_stream.storage import Store, is_remote, local_path, open_store
from crisp_stream.writers.pool import Log, Progress

FOLDERS = ("shards", "tree", "tokenizer")
FILES = (CLUSTERS, SHARDS)
UPLOAD_THREADS = 8


def check_root(root: str, *, ours: bytes | None) -> None:
    """Refuse a root that is taken.

    Args:
        root: where the dataset shall be.
        ours: the manifest of this write, when an earlier run of it began to publish here, so that its files may be
        there.

    Raises:
        InputError: the root holds a dataset, or files under the names of one.
        StorageError: the storage refused or failed.
    """
    store = open_store(root)
    if store.is_local and Path(store.url).exists() and not Path(store.url).is_dir():
        raise InputError(f"{root}: the output root must be a folder, got a file. Choose another --out.")
    if store.exists(MANIFEST) and store.get(MANIFEST) != ours:
        raise InputError(
            f"{root}: the output root must not hold a dataset, but it has a {MANIFEST}. "
            "Choose another --out, or delete the old dataset first."
        )
    if ours is not None:
        return
    taken = _taken_name(store)
    if taken is not None:
        raise InputError(
            f"{root}: the output root must not hold files under a dataset's names, but it has {taken}. "
            "Choose another --out, or delete what is there."
        )


def _taken_name(store: Store) -> str | None:
    if store.is_local:
        return next((name for name in (*FOLDERS, *FILES) if (Path(store.url) / name).exists()), None)
    for name in FILES:
        if store.exists(name):
            return name
    return next((f"{name}/" for name in FOLDERS if store.list(name)), None)


def publish(staged: Path, root: str, manifest: bytes, *, log: Log) -> int:
    """Move or upload everything below `staged`, then create the manifest.

    Args:
        staged: folder with shards/, tree/, tokenizer/ and the two tables; local publishing empties it.
        root: local folder or object-store prefix.
        manifest: content of manifest.json.
        log: receives progress.

    Returns:
        Bytes of the dataset.

    Raises:
        StorageError: the storage refused or failed, or another writer's manifest appeared.
    """
    if is_remote(root):
        upload_staged(staged, root, log)
    else:
        move_staged(staged, local_path(root))
    store = open_store(root)
    if not (store.exists(MANIFEST) and store.get(MANIFEST) == manifest):
        store.put(MANIFEST, manifest, create=True)
    names = (MANIFEST, *FILES)
    return sum(
        num_bytes
        for path, num_bytes in store.list()
        if path in names or path.startswith(tuple(f"{f}/" for f in FOLDERS))
    )


def move_staged(staged: Path, root: Path) -> None:
    """Rename every staged folder and table into a local root; what an interrupted run moved is passed over."""
    root.mkdir(parents=True, exist_ok=True)
    for name in (*FOLDERS, *FILES):
        source = staged / name
        if not source.exists():
            continue  # moved before an interruption
        try:
            source.rename(root / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_across(source, root / name)


def _copy_across(source: Path, target: Path) -> None:
    """Copy from another file system under a temporary name, then rename."""
    incoming = target.with_name(f".incoming-{target.name}")
    if source.is_dir():
        shutil.rmtree(incoming, ignore_errors=True)
        shutil.copytree(source, incoming)
    else:
        shutil.copyfile(source, incoming)
    incoming.rename(target)
    shutil.rmtree(source) if source.is_dir() else source.unlink()


def upload_staged(staged: Path, root: str, log: Log) -> None:
    """Put every staged file into an object store, but those that an interrupted run put there. Raises StorageError."""
    store = open_store(root)
    there = dict(store.list())  # by an interrupted run: objects are whole and the bytes of a file never differ
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    missing = [path for path in files if there.get(path.relative_to(staged).as_posix()) != path.stat().st_size]
    progress = Progress("upload", "files", log=log, total=len(missing))
    with ThreadPoolExecutor(UPLOAD_THREADS) as threads:
        for _ in threads.map(lambda path: store.put_file(path.relative_to(staged).as_posix(), path), missing):
            progress.add(1)
    progress.finish()
