"""`write --embeddings`: the embeddings by which windows were placed, kept in the numbering of the dataset.

They are in the workspace by part. Each run of windows gets its rows in the run's order, and then every level-1
cluster merges its stretch of all runs, by the same keys as its shards, into its place in the one file. The price is a
copy of the embeddings in the work folder while it lasts. Taking single rows from the parts was rejected: neighbours in
a dataset come from any parts, so from an object store each would be a request.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.embeddings import EMBEDDINGS
from crisp_stream.format.keys import HASH_BITS
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.embedding.embeddings_folder import embeddings_folder, is_complete, records_of, rows_file
from crisp_stream.writers.engine.task_list import TaskList
from crisp_stream.writers.engine.tasks import Record, Runner, Task, file_sizes
from crisp_stream.writers.engine.workspace import RowsOnDisk, Workspace, scratch_folder
from crisp_stream.writers.stages.dataset import Sorted
from crisp_stream.writers.stages.models import EmbeddedParts
from crisp_stream.writers.stages.runs import SortedRun, key_ranges
from crisp_stream.writers.stages.shards import rows_on_disk
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


@dataclass(frozen=True, kw_only=True)
class KeptEmbeddingsTask(Task):
    """Put the embeddings of one level-1 cluster in their place; `number` is the node."""

    stage: ClassVar[str] = "kept-embeddings"
    title: ClassVar[str] = "keeping embeddings"

    source: Workspace
    """Workspace of the write; `workspace`, for the task's record, is in the folder of the embeddings."""
    runs: tuple[SortedRun, ...]
    embeddings: tuple[str, ...]
    """Key of the embeddings of each run."""
    keys: tuple[int, int]
    """Range (first, end) of the node's window keys."""
    first_window: int
    """Number of the node's first window in the dataset."""
    dim: int
    target: Path
    """The file of all embeddings, made before."""
    memory_bytes: int

    def settings(self) -> Any:
        """Values that determine the rows and their place beside the runs; memory does not."""
        return [self.keys, self.first_window]

    def make(self) -> Record:
        """Merge the node's stretch of every run, as its shards are made."""
        row_bytes = self.dim * np.dtype(np.float16).itemsize
        rows_at_once = max(1, self.memory_bytes // row_bytes)
        first_byte = int(np.load(self.target, mmap_mode="r").offset)
        num_rows = 0
        with self._slices() as slices, self.target.open("r+b") as file:
            file.seek(first_byte + self.first_window * row_bytes)
            for bounds in key_ranges([keys for keys, _ in slices], *self.keys, rows_at_once):
                present = [(*one, slice(*bound)) for one, bound in zip(slices, bounds, strict=True)]
                order = np.argsort(np.concatenate([keys[bound] for keys, _, bound in present]), kind="stable")
                rows = np.concatenate([rows[bound] for _, rows, bound in present])[order]
                file.write(rows.data)
                num_rows += len(rows)
            file.flush()
            os.fsync(file.fileno())
        return {"num_units": num_rows}

    @contextmanager
    def _slices(self) -> Iterator[list[tuple[NDArray[np.uint64], RowsOnDisk]]]:
        """Keys and embeddings of the node's windows in every run that has some."""
        slices: list[tuple[NDArray[np.uint64], RowsOnDisk]] = []
        with ExitStack() as stack:
            scratch = None if self.source.folder is not None else stack.enter_context(scratch_folder())
            for run, key in zip(self.runs, self.embeddings, strict=True):
                start, stop = run.slice_of(self.number)
                if stop > start:
                    keys = self.source.array(f"{run.key}.keys.npy").rows(start, stop)
                    stored = self.source.array(f"{key}.embeddings.npy")
                    slices.append((keys, rows_on_disk(stored, start, stop, scratch, key)))
            yield slices


def keep_in_stages(
    runner: Runner, embedded: EmbeddedParts, ordered: Sorted, tree: ClusterTree, out: str, *, memory_bytes: int
) -> None:
    """Put the embeddings of all windows in the folder `out`; what an earlier run did of it is kept.

    Without an engine nothing is made. `memory_bytes` are those of rows sorted at once.
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
    runs = ordered.sorted_runs
    leaves_per_node = tree.arity ** (tree.depth - 1)
    target = folder / EMBEDDINGS
    if runner.engine is not None:
        target = rows_file(folder, embedded.summary.num_windows, dim)
    of_nodes = [
        KeptEmbeddingsTask(
            workspace=records_of(folder),
            number=node,
            inputs=tuple(task.fingerprint for task in of_runs),
            source=runner.workspace,
            runs=runs,
            embeddings=tuple(task.key for task in of_runs),
            keys=(node * leaves_per_node << HASH_BITS, (node + 1) * leaves_per_node << HASH_BITS),
            first_window=sum(run.offsets[node] for run in runs),
            dim=dim,
            target=target,
            memory_bytes=memory_bytes,
        )
        for node in range(tree.arity)
    ]
    in_folder = Runner(runner.engine, records_of(folder), log=runner.log)
    try:
        in_folder.run(of_nodes, unit="windows")
    finally:
        runner.plan += in_folder.plan
