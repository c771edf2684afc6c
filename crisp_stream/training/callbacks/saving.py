"""Save checkpoints when they are due, and upload them to object storage while training goes on.

The files are those of Composer's saver, which gives a file its name before it is written: what a full disk or a kill
left of one was taken for a checkpoint. It also removes the link to the newest one before it makes it again.
Composer's uploader looks every 30 seconds whether its processes are done before it names a checkpoint the latest
one, copies every checkpoint once more on the local disk, keeps all of them in the store, and its processes die of a
signal that is sent to the whole process group, as a batch system does to stop a run: the last checkpoint was lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist, reproducibility

from crisp_stream.config.durations import batches_of
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import StorageError
from crisp_stream.models.checkpoint import CHECKPOINT_NAME, LATEST, checkpoints_by_batch
from crisp_stream.ranks import together
from crisp_stream.storage.store import file_name, is_remote, local_path, open_store
from crisp_stream.training.callbacks.divergence import Divergence
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


class Checkpoints(CheckpointSaver):
    """Composer's saver for a local folder, with files that have their name once all of them is on the disk.

    A checkpoint is named, then linked to as the newest, then older ones are deleted, so a run that is killed at any
    moment leaves one that is whole.
    """

    def __init__(
        self, address: str, folder: Path, *, divergence: Divergence, save_interval: SaveDue, overwrite: bool, keep: int
    ) -> None:
        """Args:
        address: the run's `save_folder`.
        folder: local; checkpoints are written there.
        divergence: looks at the weights before they are saved, and is told of every checkpoint.
        save_interval: as Composer's.
        overwrite: whether checkpoints of the same name may be replaced.
        keep: newest checkpoints kept in `address`; below 0 all, and never less than one.
        """
        super().__init__(
            folder,
            "ep{epoch}-ba{batch}-rank0.pt",  # on all ranks, of which the first one saves
            remote_file_name=None,
            latest_filename=None,
            latest_remote_file_name=None,
            save_interval=save_interval,
            overwrite=overwrite,
        )
        self._store, self._address = open_store(address), address
        self._divergence, self._keep = divergence, keep

    def fit_start(self, state: State, logger: Logger) -> None:
        """Raises StorageError, on all ranks: the run would come to a checkpoint that it may not replace."""
        together(lambda: self._check_later(int(state.timestamp.batch)))

    def _check_later(self, batch: int) -> None:
        if dist.get_global_rank() == 0:
            for number, url in checkpoints_by_batch(self._address).items():
                if number > batch:
                    self._check_replaceable(file_name(url))

    def _check_replaceable(self, name: str) -> None:
        if not self.overwrite and self._store.exists(name):
            raise StorageError(
                f"{self._address}/{name} exists already. Add autoresume=true, or name another save_folder."
            )

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        """All ranks gather the state, rank 0 writes it, and all of them fail where it cannot."""
        self.last_checkpoint_batch = state.timestamp.batch
        self._divergence.check_weights(state)
        torch.cuda.empty_cache()
        path = Path(self.filename.format(state))
        contents = {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}
        together(lambda: self._save(contents, path))
        self.saved_checkpoints.append(str(path))
        self._divergence.last_good = f"{self._address}/{path.name}"

    def _save(self, contents: dict[str, Any], path: Path) -> None:
        if dist.get_global_rank() == 0:
            self._check_replaceable(path.name)
            _write(contents, path)
            self._publish(path)

    def _publish(self, path: Path) -> None:
        """Make a saved checkpoint the newest, and delete older ones."""
        link = path.with_name(f".{LATEST}.tmp")
        with _explained(path):
            link.unlink(missing_ok=True)
            link.symlink_to(path.name)
            link.replace(path.with_name(LATEST))
        self._delete_older(path.name)

    def _delete_older(self, newest: str) -> None:
        if self._keep < 0:
            return
        batches = {name: int(match[1]) for name, _ in self._store.list() if (match := CHECKPOINT_NAME.fullmatch(name))}
        older = sorted((name for name in batches if batches[name] < batches[newest]), key=batches.__getitem__)
        for name in older[: max(len(older) + 1 - max(self._keep, 1), 0)]:
            self._store.delete(name)


class UploadedCheckpoints(Checkpoints):
    """Checkpoints that are moved to an object store, in order, in the background.

    `latest-rank0.pt.symlink` names a checkpoint once all of it is there. At most one upload is under way: the next
    checkpoint waits for it.
    """

    def __init__(self, address: str, folder: Path, **options: Any) -> None:
        super().__init__(address, folder, **options)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crisp-stream-checkpoint")
        self._pending: Future[None] | None = None

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._pending is not None and self._pending.done():
            self._wait()

    def fit_end(self, state: State, logger: Logger) -> None:
        self._wait()

    def close(self, state: State, logger: Logger) -> None:
        self._wait()

    def _publish(self, path: Path) -> None:
        self._wait()
        self._pending = self._thread.submit(self._upload, path)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _upload(self, path: Path) -> None:
        self._store.put_file(path.name, path)
        key = f"{self._address.partition('://')[2].partition('/')[2]}/{path.name}".lstrip("/")  # as Composer spells it
        self._store.put(f"{LATEST}.symlink", key.encode())
        path.unlink()
        self._delete_older(path.name)


def _write(contents: dict[str, Any], path: Path) -> None:
    """Save as PyTorch does, under another name until all of it is on the disk. One name for all of them: what a kill
    leaves is written over."""
    temporary = path.with_name(".checkpoint.tmp")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                torch.save(contents, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raises StorageError for an error of the file system, which `torch.save` may hide behind one of its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise StorageError(
            f"{path} cannot be saved: {cause.strerror or cause}. Check the space and the permissions there, and "
            "continue with autoresume=true."
        ) from error
