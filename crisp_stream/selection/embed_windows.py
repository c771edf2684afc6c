"""Embed all windows of an existing dataset by its encoder, into one .npy file that is read as it lies on disk.

A dataset needs no embeddings: a write deletes those of its work folder in the end. Methods that score single windows
need them. `write --embeddings` keeps them (kept_embeddings.py); for a dataset that was written without, this module
makes them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.embeddings import WindowEmbeddings
from crisp_stream.loading.reader import read_windows
from crisp_stream.processes import Log, preload
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.embedding.embeddings_folder import (
    complete,
    embeddings_folder,
    is_complete,
    records_of,
    rows_file,
)
from crisp_stream.writers.engine.engine import open_engine
from crisp_stream.writers.engine.tasks import Kind, Record, Runner, Task
from crisp_stream.writers.engine.workspace import remote_or_absolute
from crisp_stream.writers.stages import windows as parts

TASK_WINDOWS = 1024
"""Windows of a task: a minute of one core with the default encoder, which is lost when a run is stopped."""
_ROWS_AT_ONCE = 128


@lru_cache(maxsize=2)
def _opened(root: str, generation: int) -> Dataset:
    return open_dataset(root, generation=generation)


@dataclass(frozen=True, kw_only=True)
class WindowEmbeddingsTask(Task):
    """Embed TASK_WINDOWS consecutive windows of a dataset, from `number` x TASK_WINDOWS on."""

    stage: ClassVar[str] = "window-embeddings"
    title: ClassVar[str] = "embedding windows"

    root: str
    generation: int
    num_windows: int
    """Windows of the dataset."""
    target: Path
    """File of all embeddings, made before."""
    choice: EncoderChoice

    @property
    def kind(self) -> Kind:
        """Kind of work: an LSI and a static encoder are light."""
        return "light" if self.choice.is_light else "encoder"

    def settings(self) -> Any:
        """Settings besides the input, which is the dataset's fingerprint and covers its windows and its encoder."""
        return [TASK_WINDOWS]

    def make(self) -> Record:
        """Read, decode and embed the windows; put the rows in their place."""
        dataset = _opened(self.root, self.generation)
        first = self.number * TASK_WINDOWS
        stop = min(first + TASK_WINDOWS, self.num_windows)
        tokens = read_windows(dataset, np.arange(first, stop))["tokens"]
        tokenizer = parts.load_tokenizer(dataset.tokenizer_path(), False)
        encoder = parts.load_encoder(self.choice, None if self.choice.is_light else parts.worker_device())
        at_once = _ROWS_AT_ONCE if self.choice.fitted else TASK_WINDOWS
        rows = [
            encoder.embed_pieces(parts.window_pieces(self.choice, encoder, tokens[start : start + at_once], tokenizer))
            for start in range(0, len(tokens), at_once)
        ]
        target = np.load(self.target, mmap_mode="r+")
        target[first:stop] = np.concatenate(rows)
        target.flush()
        return {"num_units": stop - first}


def embed_windows(
    root: str,
    out: str,
    *,
    generation: int | None = None,
    encoder: str | None = None,
    engine: str = "local",
    address: str | None = None,
    processes: int | None = None,
    log: Log = print,
) -> WindowEmbeddings:
    """Embed every window of a dataset. The work of an earlier run of the same is kept.

    Args:
        out: folder to write; with Ray, one that all machines see.
        generation: generation of a dataset that has grown; the newest when None.
        encoder: folder or hub name of the dataset's encoder, where its recorded name does not lead to it.
        engine: local processes, or ray.
        processes: worker processes; one per core when None.

    Raises:
        InputError: an encoder with other weights, a folder that holds embeddings of another dataset.
        FormatError, CorruptDataError: the dataset is damaged. StorageError: the storage refused or failed.
    """
    folder, dataset = embeddings_folder(out, option="out"), open_dataset(root, generation=generation)
    manifest = dataset.manifest
    if is_complete(folder):
        embeddings = WindowEmbeddings.load(folder, dataset)
        log(f"{out} holds the embeddings of {manifest.num_windows:,} windows already")
        return embeddings
    choice = matching_encoder(manifest.encoder, encoder, root)
    target = rows_file(folder, manifest.num_windows, manifest.encoder.dim)
    tasks = [
        WindowEmbeddingsTask(
            workspace=records_of(folder),
            number=number,
            inputs=(manifest.fingerprint,),
            root=remote_or_absolute(root),
            generation=manifest.generation,
            num_windows=manifest.num_windows,
            target=target,
            choice=choice,
        )
        for number in range(-(-manifest.num_windows // TASK_WINDOWS))
    ]
    if not choice.is_light:
        preload("sentence_transformers")
    running = open_engine(engine, processes=processes, memory_bytes=None, address=address)
    try:
        windows = [min(TASK_WINDOWS, manifest.num_windows - task.number * TASK_WINDOWS) for task in tasks]
        Runner(running, tasks[0].workspace, log=log).run(tasks, unit="windows", num_units=windows)
    finally:
        running.close()
    complete(folder, manifest)
    return WindowEmbeddings.load(folder, dataset)
