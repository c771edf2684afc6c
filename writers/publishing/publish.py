"""Put a staged dataset, or a new generation of one, under its root: all other files first, the manifest last.

One way for write and append. Files go to a local root one by one, by rename, or from another file system by a copy
under a temporary name and a rename; so a root never holds half a file, and whoever is stopped goes on with the files
that are left. On an object store shards were put there as they were made, as whole objects. Then the manifest is
created where none is, or exchanged for the one that was read, in one step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from crisp_stream.errors import ConflictError, CrispError, InputError, MissingObjectError, StorageError
from crisp_stream.format.manifest import MANIFEST, Manifest, kept_manifest
from crisp_stream.format.shards import SHARDS
from crisp_stream.format.tables import CLUSTERS
from crisp_stream.storage.store import Store, explain_os_error, local_path, open_store, temporary_beside
from crisp_stream.writers.publishing.claim import Hold

FOLDERS = ("shards", "tree", "tokenizer", "encoder", "provenance")
FILES = (CLUSTERS, SHARDS)
_TEMPORARY = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{32}\.tmp")
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG)


class DatasetChangedError(InputError):
    """The root's manifest is not the one any more that an append began with."""


@contextlib.contextmanager
def system_errors(where: str) -> Iterator[None]:
    """Turn what the system refuses (permissions, a read-only or full disk) into one line.

    Raises:
        StorageError: names the path, or `where` if the system names none.
    """
    try:
        yield
    except CrispError:
        raise
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(explain_os_error(str(error.filename2 or error.filename or where), error)) from error


def dataset_files(store: Store) -> list[str]:
    """What stands in a root under the names of a dataset, without manifests and claim; with what killed runs left."""
    below = tuple(f"{folder}/" for folder in FOLDERS)
    return [
        path
        for path, _ in store.list()
        if path in FILES or path.startswith(below) or (_TEMPORARY.fullmatch(path) and not path.startswith(".claim"))
    ]


def require_empty(store: Store) -> None:
    """Raises InputError: the root, which nobody has claimed, holds files under a dataset's names, or is a file."""
    if store.is_local and local_path(store.url).exists() and not local_path(store.url).is_dir():
        raise InputError(f"{store.url}: the output root must be a folder, got a file. Choose another --out.")
    taken = _taken_name(store)
    if taken is not None:
        raise InputError(
            f"{store.url}: the output root must not hold files under a dataset's names, but it has {taken}. "
            "Choose another --out, or delete what is there."
        )


def _taken_name(store: Store) -> str | None:
    if store.is_local:
        return next((name for name in (*FOLDERS, *FILES) if (local_path(store.url) / name).exists()), None)
    for name in FILES:
        if store.exists(name):
            return name
    return next((f"{name}/" for name in FOLDERS if store.list(name)), None)


def begin(root: str, hold: Hold, base: bytes | None) -> None:
    """Say that files are put into the root from here on; before the first of them the manifest is compared.

    Args:
        root: claimed by `hold`.
        hold: the claim.
        base: the manifest that an append began with; None for a write.

    Raises:
        DatasetChangedError: it is another one. ConflictError: a write finds one. ClaimLostError.
    """
    store = open_store(root)
    _require_base(store, base)
    hold.begin()


def _standing(store: Store) -> bytes | None:
    try:
        return store.get(MANIFEST)
    except MissingObjectError:
        return None


def _require_base(store: Store, base: bytes | None) -> None:
    if _standing(store) == base:
        return
    if base is None:
        raise ConflictError(
            f"{store.url}/{MANIFEST} already exists and is not overwritten: another writer was first. Choose another "
            "root, or delete it first."
        )
    raise DatasetChangedError(
        f"{store.url}: the dataset changed meanwhile, so nothing was added to it. Run the command again."
    )


def publish(
    staged: str, root: str, names: Iterable[str], manifest: Manifest, *, base: bytes | None, hold: Hold
) -> None:
    """Bring files to their root, then the manifest.

    Args:
        staged: where they are; the root itself on an object store.
        root: claimed by `hold`.
        names: paths of all files of the dataset, or of all new ones of a generation.
        manifest: the one that is made.
        base: bytes of the manifest that it replaces; None for a write, which then also deletes what is not in `names`.
        hold: the claim.

    Raises:
        ClaimLostError, ConflictError, DatasetChangedError: another writer was first; StorageError.
    """
    store, wanted = open_store(root), sorted(set(names))
    content = manifest.to_json()
    if _standing(store) == content:
        return  # by a process with the same request
    begin(root, hold, base)
    if staged != root:
        _move_files(Path(staged), local_path(root), wanted, hold)
    _require_all(store, wanted)
    if base is None:
        _delete_others(store, wanted)
    hold.check(now=True)
    if base is None:
        _create_manifest(store, content)
    else:
        _exchange_manifest(store, base, manifest)


def _move_files(staged: Path, root: Path, names: Collection[str], hold: Hold) -> None:
    for name in names:
        hold.check()
        with contextlib.suppress(FileNotFoundError):  # moved by an earlier run
            move(staged / name, root / name)


def _require_all(store: Store, names: Collection[str]) -> None:
    missing = sorted(set(names) - {path for path, _ in store.list()})
    if missing:
        raise StorageError(
            f"{store.url}/{missing[0]} is missing: it was deleted while it was published. Run the command again."
        )


def move(source: Path, target: Path) -> None:
    """Rename a file; from another file system, copy it under a temporary name, then rename. Raises FileNotFoundError.

    Raises:
        StorageError: the system refuses.
    """
    with system_errors(str(target)):
        if not source.exists():
            raise FileNotFoundError(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.replace(target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    with system_errors(str(target)), temporary_beside(target) as incoming:
        shutil.copyfile(source, incoming)
        with incoming.open("rb") as file:
            os.fsync(file.fileno())
        incoming.replace(target)
    source.unlink()


def _delete_others(store: Store, names: Collection[str]) -> None:
    """Delete what earlier runs left: other versions of this package cut other shards, and killed ones leave copies."""
    for name in sorted(set(dataset_files(store)) - set(names)):
        with contextlib.suppress(MissingObjectError):
            store.delete(name)


def delete_temporaries(store: Store) -> None:
    """Delete the copies that killed runs left in a local root."""
    if store.is_local:
        for path, _ in store.list():
            if _TEMPORARY.fullmatch(path):
                with contextlib.suppress(MissingObjectError):
                    store.delete(path)


def _create_manifest(store: Store, content: bytes) -> None:
    try:
        store.put(MANIFEST, content, create=True)
    except ConflictError:
        if store.get(MANIFEST) != content:
            raise


def _exchange_manifest(store: Store, base: bytes, manifest: Manifest) -> None:
    """Keep the old manifest under its generation's name, then put the new one in its place."""
    kept, content = kept_manifest(manifest.generation - 1), manifest.to_json()
    standing, version = store.get_versioned(MANIFEST)
    if standing != base:
        _require_base(store, base)
    had_kept = store.exists(kept)
    if not had_kept or store.get(kept) != base:
        store.put(kept, base)
    try:
        store.replace(MANIFEST, content, version)
    except ConflictError:
        if _standing(store) == content:
            return
        if not had_kept and _generation(store) < manifest.generation:
            store.delete(kept)
        _require_base(store, base)
        raise


def _generation(store: Store) -> int:
    """That of the manifest that stands; -1 where it cannot be read."""
    try:
        return Manifest.from_json(store.get(MANIFEST)).generation
    except CrispError:
        return -1


def published_bytes(root: str) -> int:
    """Size of the dataset at a root. Raises StorageError."""
    names = (MANIFEST, *FILES)
    below = tuple(f"{folder}/" for folder in FOLDERS)
    return sum(size for path, size in open_store(root).list() if path in names or path.startswith(below))
