"""`write --embeddings`: the embeddings by which windows were placed, kept in the numbering of the dataset.

They are in the workspace by part. Each run of windows gets its rows in the run's order, and then every range of keys
takes its stretch of all runs, in the order of its shards, into its place in the one file. The price is a copy of the
embeddings in the work folder while it lasts. Taking single rows from the parts was rejected: neighbours in
a dataset come from any parts, so from an object store each would be a request.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.embeddings import EMBEDDINGS
from crisp_stream.writers.embedding.embeddings_folder import embeddings_folder, is_complete, records_of, rows_file
from crisp_stream.writers.engine.task_list import TaskList
from crisp_stream.writers.engine.tasks import Record, Runner, Task, file_sizes
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.sorting.key_sources import Sources, read_rows, run_of
from crisp_stream.writers.sorting.range_windows import Column, InPlace, RangeWindows
from crisp_stream.writers.sorting.ranges import KeyRange, Ranges
from crisp_stream.writers.stages.dataset import Sorted
from crisp_stream.writers.stages.models import EmbeddedParts
from crisp_stream.writers.stages.windows import Part


@dataclass(frozen=True, kw_only=True)
class RunEmbeddingsTask(Task):
    """Bring the embeddings of some parts in the order of their run; `number` is the run's."""

    stage: ClassVar[str] = "run-embeddings"
    title: ClassVar[str] = "sorting embeddings"

    run: str
    """Key of the run."""
    parts: Sequence[Part]
    """Parts of the run."""
    dim: int

    def settings(self) -> Any:
        """The run's fingerprint covers its parts and their embeddings."""
        return []

    @property
    def key(self) -> str:
        """Follows from the run's: tasks that read many runs are not told a name for each."""
        return embeddings_of(self.run)

    def make(self) -> Record:
        """Write [num_windows, dim] float16."""
        places = self.workspace.load_array(f"{self.run}.places.npy")
        by_part = np.argsort(places[:, 0], kind="stable")
        rows = np.empty((len(places), self.dim), np.float16)
        for part in self.parts:
            first, stop = np.searchsorted(places[by_part, 0], [part.number, part.number + 1])
            at = by_part[first:stop]
            of_part = self.workspace.load_array(f"{part.windows_key}.places.npy")
            embeddings = self.workspace.load_array(f"{part.embeddings_key}.embeddings.npy")
            rows[at] = embeddings[np.searchsorted(of_part, places[at, 1])]
        self.workspace.save_array(self.file("embeddings.npy"), rows)
        return {"num_units": len(rows), "files": file_sizes(self, self.file("embeddings.npy"))}


def embeddings_of(run: str) -> str:
    """Key of the embeddings of a run."""
    return f"{RunEmbeddingsTask.stage}/{run.rpartition('/')[2]}.{RunEmbeddingsTask.version}"


@dataclass(frozen=True, kw_only=True)
class KeptEmbeddingsTask(Task):
    """Put the embeddings of one range of keys in their place; `number` is the range's."""

    stage: ClassVar[str] = "kept-embeddings"
    title: ClassVar[str] = "keeping embeddings"
    version: ClassVar[int] = 2

    source: Workspace
    """Workspace of the write; `workspace`, for the task's record, is in the folder of the embeddings."""
    part: KeyRange
    first_window: int
    """Number of the range's first window in the dataset."""
    dim: int
    target: Path
    """The file of all embeddings, made before."""
    memory_bytes: int

    def settings(self) -> Any:
        """Values that determine the rows and their place beside the runs; memory does not."""
        return [self.part, self.first_window]

    def make(self) -> Record:
        """Read the rows as those of shards are read."""
        row_bytes = self.dim * np.dtype(np.float16).itemsize
        rows_at_once = max(1, self.memory_bytes // row_bytes)
        first_byte = int(np.load(self.target, mmap_mode="r").offset)
        windows = RangeWindows(Sources(workspace=self.source), self.part)
        with ExitStack() as stack, self.target.open("r+b") as file:
            embeddings: Column = InPlace(self._read)
            if self.source.folder is None:
                embeddings = stack.enter_context(windows.brought(self._read, np.float16, (self.dim,)))
            file.seek(first_byte + self.first_window * row_bytes)
            for start in range(0, len(windows), rows_at_once):
                stop = min(len(windows), start + rows_at_once)
                rows = np.empty((stop - start, self.dim), np.float16)
                windows.fill(start, stop, [(rows, embeddings)])
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        return {"num_units": len(windows)}

    def _read(self, source: Any, start: int, stop: int) -> NDArray[np.float16]:
        name = f"{embeddings_of(run_of(source))}.embeddings.npy"
        return read_rows(self.source.store, name, np.float16, (self.dim,), start, stop)


def keep_in_stages(
    runner: Runner, embedded: EmbeddedParts, ordered: Sorted, ranges: Ranges, out: str, *, memory_bytes: int
) -> None:
    """Put the embeddings of all windows in the folder `out`; what an earlier run did of it is kept.

    Without an engine nothing is made. `memory_bytes` are those of rows read at once.
    """
    folder = embeddings_folder(out, option="embeddings")
    if is_complete(folder):
        return
    dim = embedded.summary.encoder.dim

    def make(at: int) -> RunEmbeddingsTask:
        run = ordered.runs[at]
        return RunEmbeddingsTask(
            workspace=runner.workspace,
            number=run.number,
            inputs=(run.fingerprint,),
            run=run.key,
            parts=run.parts,
            dim=dim,
        )

    of_runs = TaskList(len(ordered.runs), make)
    runner.run(of_runs, unit="windows")
    target = folder / EMBEDDINGS
    if runner.engine is not None:
        target = rows_file(folder, embedded.summary.num_windows, dim)
    of_ranges = [
        KeptEmbeddingsTask(
            workspace=records_of(folder),
            number=number,
            inputs=(ranges.task.fingerprint,),
            source=runner.workspace,
            part=ranges.range(row, whole_shards=False),
            first_window=int(row["at"]),
            dim=dim,
            target=target,
            memory_bytes=memory_bytes,
        )
        for number, row in enumerate(ranges.rows)
    ]
    in_folder = Runner(runner.engine, records_of(folder), log=runner.log)
    try:
        in_folder.run(of_ranges, unit="windows")
    finally:
        runner.plan += in_folder.plan
