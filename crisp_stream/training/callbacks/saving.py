"""Save checkpoints when they are due, and upload them to object storage while training goes on.

Composer saves checkpoints; for an object store it saves them in a temporary folder, and they are uploaded from here.
Composer's uploader looks every 30 seconds whether its processes are done before it names a checkpoint the latest
one, copies every checkpoint once more on the local disk, keeps all of them in the store, and its processes die of a
signal that is sent to the whole process group, as a batch system does to stop a run: the last checkpoint was lost.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler

from crisp_stream.config.durations import batches_of
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import StorageError
from crisp_stream.models.checkpoint import CHECKPOINT_NAME, LATEST
from crisp_stream.storage.store import is_remote, local_path, open_store
from crisp_stream.training.prepare import PreparedRun


@contextlib.contextmanager
def working_folder(recipe: Recipe) -> Iterator[Path | None]:
    """Provide the folder that this process writes to: the local `save_folder`, for object storage a temporary folder,
    None where nothing is saved."""
    folder = recipe.checkpoint_folder
    if folder is None:
        yield None
    elif not is_remote(folder):
        yield local_path(folder)
    else:
        temporary = tempfile.mkdtemp(prefix="crisp-stream-run-")
        try:
            yield Path(temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


SaveDue = Callable[[State, Event], bool]
"""Whether a checkpoint is to be saved now: the form of Composer's `save_interval` that is a function."""


def save_due(interval: str, run: PreparedRun) -> SaveDue:
    """Make checkpoints due at an interval, as Composer writes it, at the end, and at the recipe's `save_at`."""
    regular = create_interval_scheduler(interval)
    tokens = run.recipe.global_train_batch_size * run.dataset.manifest.window_tokens
    save_at = run.recipe.save_at
    batches = {batches_of(text, tokens_per_batch=tokens, run_batches=run.num_batches) for text in save_at}

    def due(state: State, event: Event) -> bool:
        listed = event == Event.BATCH_CHECKPOINT and int(state.timestamp.batch) in batches
        return regular(state, event) or listed

    return due


class UploadedCheckpoints(CheckpointSaver):
    """Composer's saver with each checkpoint moved to an object store, in order, in the background.

    `latest-rank0.pt.symlink` names a checkpoint once all of it is there, so a run that is killed at any moment leaves
    the one before. At most one upload is under way: the next checkpoint waits for it.
    """

    def __init__(self, url: str, folder: Path, *, save_interval: SaveDue, overwrite: bool, keep: int) -> None:
        """Args:
        url: prefix in object storage.
        folder: local; a checkpoint stands there until it is uploaded.
        save_interval: as Composer's.
        overwrite: whether objects of the same name may be replaced.
        keep: newest checkpoints kept in the store; below 0 all, and never less than one.
        """
        super().__init__(
            folder,
            remote_file_name=None,
            latest_filename=None,
            latest_remote_file_name=None,
            save_interval=save_interval,
            overwrite=overwrite,
        )
        self._store, self._url = open_store(url), url
        self._keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crisp-stream-checkpoint")
        self._pending: Future[None] | None = None
        self._submitted = 0

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        super().batch_checkpoint(state, logger)
        self._submit()

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        super().epoch_checkpoint(state, logger)
        self._submit()

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._pending is not None and self._pending.done():
            self._wait()

    def fit_end(self, state: State, logger: Logger) -> None:
        self._wait()

    def close(self, state: State, logger: Logger) -> None:
        self._wait()

    def _submit(self) -> None:
        for path in self.saved_checkpoints[self._submitted :]:
            self._wait()
            self._pending = self._thread.submit(self._upload, Path(path))
            self._submitted += 1

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _upload(self, path: Path) -> None:
        if not self.overwrite and self._store.exists(path.name):
            raise StorageError(
                f"{self._url}/{path.name} exists already. Add autoresume=true, or name another save_folder."
            )
        self._store.put_file(path.name, path)
        key = f"{self._url.partition('://')[2].partition('/')[2]}/{path.name}".lstrip("/")  # as Composer spells it
        self._store.put(f"{LATEST}.symlink", key.encode())
        path.unlink()
        if self._keep >= 0:
            self._delete_older(path.name)

    def _delete_older(self, newest: str) -> None:
        batches = {name: int(match[1]) for name, _ in self._store.list() if (match := CHECKPOINT_NAME.fullmatch(name))}
        older = sorted((name for name in batches if batches[name] < batches[newest]), key=batches.__getitem__)
        for name in older[: max(len(older) + 1 - max(self._keep, 1), 0)]:
            self._store.delete(name)
