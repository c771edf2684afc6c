"""The work folder of a write: its place, its owner, and when it is deleted."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import MANIFEST, Manifest
from crisp_stream.processes import Log
from crisp_stream.storage.store import cache_folder, is_remote, local_path, open_store
from crisp_stream.writers.embedding.embeddings_folder import embeddings_folder, refuse_others
from crisp_stream.writers.engine.tasks import fingerprint
from crisp_stream.writers.engine.workspace import Workspace, remote_or_absolute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.publish import MADE, check_root, made_manifests

_PUBLISHING = "publishing.json"
_LAST = (_PUBLISHING, MADE, "lock")
"""Deleted last: while they are there, a published dataset is known to be the one of this folder."""
_NEUTRAL = (
    *("engine", "address", "processes", "memory_bytes", "work", "keep_work", "embeddings"),
    *("group_bytes", "run_bytes", "sort_memory_bytes"),
)


def work_url(options: WriteOptions) -> str:
    """Folder or prefix of the intermediate files of a write."""
    if options.work is not None:
        return remote_or_absolute(options.work)
    if not is_remote(options.out):
        root = local_path(options.out).resolve()
        return str(root.parent / f".{root.name}.write")
    if options.engine == "ray":
        return f"{options.out.rstrip('/')}.write"
    return str(cache_folder() / "work" / hashlib.sha256(options.out.rstrip("/").encode()).hexdigest()[:12])


def staged_root(options: WriteOptions, workspace: Workspace) -> str:
    """Folder for shards: the root itself on an object store, else one that is moved there when it is whole."""
    if is_remote(options.out) or workspace.folder is None:
        return remote_or_absolute(options.out)
    return str(workspace.folder / f"staged-{fingerprint(remote_or_absolute(options.out))[:8]}")


def begin_publishing(options: WriteOptions, workspace: Workspace, content: str) -> None:
    """Remember whose files stand in a remote root from here on, so that only the same write takes them over."""
    record = {"root": remote_or_absolute(options.out), "content": content, "options": _identity(options)}
    earlier = _begun(workspace)
    others = earlier.get("root") == record["root"] and earlier != record
    if others and is_remote(options.out) and open_store(options.out).list("shards"):
        raise InputError(
            f"{options.out}: the output root must not hold files of another write, but an unfinished one with other "
            "options or inputs left shards there. Delete them, finish that write, or choose another --out."
        )
    workspace.write(_PUBLISHING, json.dumps(record).encode())


def _begun(workspace: Workspace) -> dict[str, Any]:
    """What `begin_publishing` remembered; empty where nothing began."""
    return json.loads(workspace.read_if_there(_PUBLISHING) or b"{}")


def _identity(options: WriteOptions) -> str:
    chosen = {name: value for name, value in vars(options).items() if name not in _NEUTRAL}
    return fingerprint({name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()})


def check_taken(options: WriteOptions) -> None:
    """Refuse a root that is taken, but not by an earlier run of this write. Raises InputError, StorageError."""
    workspace = Workspace(work_url(options))
    record = _begun(workspace)
    same = record.get("options") == _identity(options)
    manifests = made_manifests(workspace) if same else []
    if options.embeddings is not None:
        _check_embeddings(options.embeddings, options.out, manifests)
    check_root(options.out, ours=record.get("root") == remote_or_absolute(options.out), manifests=manifests)


def _check_embeddings(folder: str, out: str, manifests: Sequence[bytes]) -> None:
    """Raises InputError: a folder that is taken, or a dataset whose embeddings cannot be had from this write."""
    store, here = open_store(out), embeddings_folder(folder, option="embeddings")
    if store.exists(MANIFEST) and store.get(MANIFEST) not in manifests:
        raise InputError(
            f"{out}: the output root must not hold a dataset, but it has a {MANIFEST}, and no work of this write is "
            f"left to take its embeddings from. Embed its windows with: crisp-stream embed {out} --out {folder}"
        )
    refuse_others(here, {Manifest.from_json(manifest).fingerprint for manifest in manifests})


def published_before(options: WriteOptions) -> bool:
    """Say whether an earlier run with these options published the dataset in the root, and was stopped then."""
    workspace, store = Workspace(work_url(options)), open_store(options.out)
    return (
        _begun(workspace).get("options") == _identity(options)
        and store.exists(MANIFEST)
        and store.get(MANIFEST) in made_manifests(workspace)
    )


@contextlib.contextmanager
def work_folder(options: WriteOptions, log: Log) -> Iterator[Workspace]:
    """The workspace of a write, locked where it is a folder of this machine; deleted on success, and on a failure that
    left nothing to go on from."""
    url = work_url(options)
    workspace = Workspace(url)
    folder = workspace.folder
    is_new = folder is not None and not folder.exists()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(options, folder):
        try:
            yield workspace
        except BaseException:
            if folder is None or any(folder.glob("*/*.json")):
                log(f"work: kept in {url}; run the same command again to go on")
            elif is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if options.keep_work:
            log(f"work: kept in {url}")
        elif folder is not None:
            _delete_folder(folder)
        else:
            names = [name for name, _ in workspace.store.list()]
            for name in sorted(names, key=lambda name: name.partition("/")[0] in _LAST):
                workspace.store.delete(name)


def _delete_folder(folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name in _LAST):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):  # a mount point stays
        folder.rmdir()


@contextlib.contextmanager
def _locked(options: WriteOptions, folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{options.out}: must be written by one process at a time, but the same write is running. "
                "Wait for it to end."
            ) from error
        yield
