"""The files that loggers write: flushed as the run goes on, and copied to a `save_folder` in object storage.

What has changed is copied at every checkpoint and at the end, also when the run fails or is stopped. Composer's
uploader would copy the file log and the TensorBoard events, but not what Weights & Biases keeps offline.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from composer.core import Callback, Event, State
from composer.loggers import Logger, LoggerDestination, TensorboardLogger
from composer.utils.misc import create_interval_scheduler

from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import StorageError
from crisp_stream.storage.store import Store, is_remote, open_store

_LOG = logging.getLogger(__name__)


class LogFiles(Callback):
    """Flushes at every `log_interval`, copies at every checkpoint. Each rank cares for the files of its loggers."""

    def __init__(
        self, recipe: Recipe, loggers: Sequence[LoggerDestination], folder: Path | None, *, copy_interval: str
    ) -> None:
        """Args:
        loggers: of this rank, writing below `logs/` of `folder`.
        folder: folder that this process writes to; None: nothing is saved.
        copy_interval: between copies, as Composer writes intervals; that of the checkpoints.
        """
        url = recipe.checkpoint_folder or ""
        self._log_interval = recipe.log_interval
        self._loggers = loggers
        self._due = create_interval_scheduler(copy_interval)
        self._copies = (
            None if folder is None or not loggers or not is_remote(url) else LogCopies(folder / "logs", f"{url}/logs")
        )

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) % self._log_interval == 0:
            self._flush()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._copies is not None and self._due(state, Event.BATCH_CHECKPOINT):
            self._flush()
            self._copies.start()

    def finish(self) -> None:
        """Copy what the loggers wrote last; called after they have ended."""
        if self._copies is not None:
            self._copies.finish()

    def _flush(self) -> None:
        """Bring what TensorBoard holds back to its file; the others write at once."""
        for destination in self._loggers:
            if isinstance(destination, TensorboardLogger) and destination.writer is not None:
                destination.writer.flush()


class LogCopies:
    """Copies of a local folder in an object store, made in the background."""

    def __init__(self, folder: Path, url: str) -> None:
        """Args:
        folder: local.
        url: prefix in object storage.
        """
        self._folder, self._store = folder, open_store(url, timeout=60.0)
        self._copied: dict[Path, tuple[int, int]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crisp-stream-logs")
        self._pending: Future[None] | None = None

    def start(self) -> None:
        """Copy what has changed, unless an earlier copy is still under way."""
        if self._pending is None or self._pending.done():
            self._pending = self._thread.submit(self._copy)

    def finish(self) -> None:
        """Copy what has changed and wait for it."""
        self._thread.submit(self._copy).result()

    def _copy(self) -> None:
        """A log that cannot be copied is reported and tried again next time: it is not worth the run."""
        for file in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            try:
                copy_if_changed(self._store, self._folder, file, self._copied)
            except (StorageError, OSError) as error:
                _LOG.warning("a log was not copied: %s", error)


def copy_if_changed(store: Store, folder: Path, file: Path, copied: dict[Path, tuple[int, int]]) -> None:
    """Copy a file unless its size and time are those in `copied`, which is brought up to date."""
    status = file.stat()
    version = (status.st_size, status.st_mtime_ns)
    if copied.get(file) != version:
        store.put_file(file.relative_to(folder).as_posix(), file)
        copied[file] = version
