"""The work folder of a write: its place, its owner, and when it is deleted."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crisp_stream.errors import InputError
from crisp_stream.processes import Log
from crisp_stream.storage.store import Store, cache_folder, is_remote, local_path
from crisp_stream.writers.engine.tasks import fingerprint
from crisp_stream.writers.engine.workspace import Workspace, remote_or_absolute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.publish import system_errors

_PUBLISHING = "publishing.json"
_LAST = (_PUBLISHING, "lock")
"""Deleted last: while they are there, the folder is known to be left over."""
_DELETED_AT_ONCE = 64
"""Objects of a remote work place, of which there may be millions."""


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


def staged_root(options: WriteOptions, workspace: Workspace, request: str) -> str:
    """Folder for new files of a request: the root itself on an object store, else one that only this request uses."""
    root = remote_or_absolute(options.out)
    if is_remote(options.out) or workspace.folder is None:
        return root
    of_root = f"staged-{fingerprint(root)[:8]}"
    return str(workspace.folder / f"{of_root}-{fingerprint(request)[:8]}")


def delete_other_stages(options: WriteOptions, workspace: Workspace, request: str) -> None:
    """Delete what earlier requests for the same root staged; their tasks run again if they are asked for again."""
    staged = Path(staged_root(options, workspace, request))
    if workspace.folder is not None and staged.parent == workspace.folder:
        for other in workspace.folder.glob(f"{staged.name.rpartition('-')[0]}-*"):
            if other != staged:
                shutil.rmtree(other, ignore_errors=True)


def mark_publishing(options: WriteOptions, workspace: Workspace, request: str) -> None:
    """Remember whose the work is: once its request is published, what is left of it can be deleted."""
    if options.keep_work:
        return
    workspace.write(_PUBLISHING, json.dumps({"request": request}).encode())


def is_left_over(options: WriteOptions, request: str) -> bool:
    """Whether a run that published this request was stopped before its work folder was deleted."""
    content = Workspace(work_url(options)).read_if_there(_PUBLISHING)
    return content is not None and json.loads(content) == {"request": request}


@contextlib.contextmanager
def work_folder(options: WriteOptions, log: Log) -> Iterator[Workspace]:
    """The workspace of a write, locked where it is a folder of this machine; deleted on success, and on a failure that
    left nothing to go on from."""
    url = work_url(options)
    workspace = Workspace(url)
    folder = workspace.folder
    is_new = folder is not None and not folder.exists()
    if folder is not None:
        with system_errors(str(folder)):
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
            _delete_objects(workspace.store)


def _delete_objects(store: Store) -> None:
    names = [name for name, _ in store.list()]
    last = [name for name in names if name.partition("/")[0] in _LAST]
    with ThreadPoolExecutor(_DELETED_AT_ONCE) as threads:
        for some in (set(names).difference(last), last):
            for _ in threads.map(store.delete, some):
                pass


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
    with contextlib.ExitStack() as stack:
        with system_errors(str(folder)):
            lock = stack.enter_context((folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{options.out}: must be written by one process at a time, but the same write is running. "
                "Wait for it to end."
            ) from error
        yield
