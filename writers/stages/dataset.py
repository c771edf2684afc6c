"""The stages from embedded parts to a dataset: sorted runs, shards and provenance."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crisp_stream.format.manifest import DOCUMENTS, places_path
from crisp_stream.format.mds import ShardRow
from crisp_stream.format.tables import marked
from crisp_stream.storage.store import open_store
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.engine.task_list import TaskList
from crisp_stream.writers.engine.tasks import Record, Runner, Task, finished, stored_records
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.claim import Hold
from crisp_stream.writers.sorting.key_sources import GrownDataset
from crisp_stream.writers.sorting.ranges import Nodes, Ranges
from crisp_stream.writers.stages.models import EmbeddedParts
from crisp_stream.writers.stages.runs import RunTask, group_parts
from crisp_stream.writers.stages.shards import (
    ShardSettings,
    ShardsSummary,
    ShardsTask,
    UnchangedShardsTask,
    next_shards,
)
from crisp_stream.writers.stages.tree import FittedTree
from crisp_stream.writers.stages.whole_corpus import BatchNames, GivenTreeTask
from crisp_stream.writers.stages.windows import SPANS, Part
from crisp_stream.writers.tree.quality import QualitySums, quality_of_counts

LEAST_SORT_BYTES = 4 << 20
_COPIES_IN_SORTING = 5
"""A process that sorts holds about so many times the tokens it sorts."""


@dataclass(frozen=True, kw_only=True)
class DocumentsTableTask(Task):
    """Write which documents are in the parts of a group; `number` is the group's."""

    stage: ClassVar[str] = "provenance"
    title: ClassVar[str] = "writing tables of documents"
    version: ClassVar[int] = 2

    root: str
    """Dataset root, or a folder in which it is staged."""
    spans: tuple[str, ...]
    """Names of the spans of the group's parts, in order."""
    first_file: int = 0
    """Added to the numbers of files; another than 0 where a dataset grows."""
    mark: str = ""
    """In the name of the table of a dataset that grows."""
    hold: Hold | None = None
    """Claim of a root that tables are put into as they are made."""

    def settings(self) -> Any:
        """Root of the table, and the numbering of files."""
        return [self.root, self.first_file, self.mark]

    @property
    def table(self) -> str:
        """Path below the root."""
        return marked(f"{DOCUMENTS}/{self.number:06d}.parquet", self.mark)

    def make(self) -> Record:
        """Write the table, a row group per part."""
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, SPANS, compression="zstd", write_page_checksum=True) as writer:
            for name in self.spans:
                with self.workspace.opened(name) as path, pa.OSFile(str(path), "rb") as source:
                    spans = pa.ipc.open_file(source).read_all()
                    numbered = pa.array(spans["file"].to_numpy() + np.uint32(self.first_file))
                    spans = spans.set_column(SPANS.get_field_index("file"), SPANS.field("file"), numbered)
                    writer.write_table(spans, row_group_size=1 << 20)
        if self.hold is not None:
            self.hold.check()
        content = sink.getvalue()
        open_store(self.root).put(self.table, content)
        return {"num_units": len(self.spans), "sha256": hashlib.sha256(content).hexdigest()}


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Sorted runs of all windows."""

    runs: Sequence[RunTask]

    def records(self) -> Iterator[Record]:
        """Records of the runs, which say something of each part, and so are read again instead of held."""
        return (record for _, record in stored_records(self.runs))

    @property
    def quality_sums(self) -> QualitySums:
        """Fit of the tree to all windows; added up part by part, whatever parts a run holds."""
        return QualitySums.merge(QualitySums.from_json(part) for record in self.records() for part in record["quality"])


def sort_in_stages(
    runner: Runner,
    options: WriteOptions,
    embedded: EmbeddedParts,
    tree: FittedTree | GivenTreeTask,
    *,
    work_bytes: int | None,
) -> Sorted:
    """Assign all windows to leaves and sort them into runs; `work_bytes`, if any, bound a run beside `run_bytes`."""
    window_bytes = embedded.window_tokens * np.dtype(embedded.summary.token_dtype).itemsize
    run_bytes = options.run_bytes
    if work_bytes is not None:
        run_bytes = min(run_bytes, max(work_bytes // _COPIES_IN_SORTING, 1))
    groups = group_parts(embedded.parts, window_bytes, run_bytes=run_bytes)
    tasks = TaskList(
        len(groups),
        lambda at: RunTask(
            workspace=runner.workspace,
            number=at,
            inputs=(tree.fingerprint, *(part.fingerprint for part in groups[at])),
            parts=groups[at],
            tree=tree.key,
            seed=options.seed,
        ),
    )
    windows_per_run = [sum(part.num_windows for part in parts) for parts in groups]
    runner.run_each(tasks, _ignore, unit="windows", num_units=windows_per_run)
    return Sorted(runs=tasks)


def _ignore(number: int, record: Record) -> None:
    """Of a task whose record is read again where it is needed."""


def shard_tasks(
    runner: Runner,
    ranges: Ranges,
    nodes: Nodes,
    settings: ShardSettings,
    *,
    memory_bytes: int,
    grown: GrownDataset | None = None,
    hold: Hold | None = None,
) -> list[ShardsTask | UnchangedShardsTask]:
    """One task per range, in their order; with `grown`, one for each level-1 node that stays as it is, too."""
    first_shards = {} if grown is None else next_shards(grown.dataset)
    tasks: list[tuple[int, ShardsTask | UnchangedShardsTask]] = []
    for number, row in enumerate(ranges.rows):
        node = int(row["node"])
        task = ShardsTask(
            workspace=runner.workspace,
            number=number,
            inputs=(ranges.task.fingerprint,),
            part=ranges.range(row, whole_shards=True),
            first_shard=first_shards.get(node, 0) + int(row["shard"]),
            shards=settings,
            memory_bytes=memory_bytes,
            grown=grown,
            hold=hold,
        )
        tasks.append((node, task))
    for node in ranges.unchanged if grown is not None else []:
        assert grown is not None
        task = UnchangedShardsTask(
            workspace=runner.workspace,
            number=len(tasks),
            inputs=(grown.fingerprint,),
            node=node,
            leaves=(node * nodes.leaves_per_node, (node + 1) * nodes.leaves_per_node),
            grown=grown,
        )
        tasks.append((node, task))
    return [task for _, task in sorted(tasks, key=lambda pair: pair[0])]


def sort_memory(memory_bytes: int, work_bytes: int | None) -> int:
    """Tokens sorted at once by a process that may hold `work_bytes`."""
    if work_bytes is None:
        return memory_bytes
    return min(memory_bytes, max(LEAST_SORT_BYTES, work_bytes // _COPIES_IN_SORTING))


def document_table_tasks(
    runner: Runner,
    embedded: EmbeddedParts,
    batches: BatchNames,
    root: str,
    *,
    first_group: int = 0,
    first_file: int = 0,
    mark: str = "",
    hold: Hold | None = None,
) -> TaskList[DocumentsTableTask]:
    """One task per group of input files that gave parts; the parts are those of the batches."""
    groups = batches.groups()

    def make(at: int) -> DocumentsTableTask:
        group, start, stop = groups[at]
        windows = embedded.windows[start:stop]
        return DocumentsTableTask(
            workspace=runner.workspace,
            number=first_group + group,
            inputs=tuple(task.fingerprint for task in windows),
            root=root,
            first_file=first_file,
            mark=mark,
            hold=hold,
            spans=tuple(task.file("spans.arrow") for task in windows),
        )

    return TaskList(len(groups), make)


def table_digests(runner: Runner, tables: Sequence[DocumentsTableTask]) -> dict[str, str]:
    """The sha256 of tables of documents that are made, by path."""
    records = finished(runner.workspace, tables)
    return {task.table: records[task.number]["sha256"] for task in tables}


def forget_lost(
    runner: Runner,
    shards: Sequence[ShardsTask | UnchangedShardsTask],
    tables: Sequence[DocumentsTableTask],
    roots: Sequence[str],
) -> None:
    """Let tasks run again whose files are in none of the roots (staged, published) any more."""
    done = finished(runner.workspace, shards)
    tables_done = finished(runner.workspace, tables)
    if not done and not tables_done:
        return
    there: dict[str, int] = {}
    for root in dict.fromkeys(roots):
        there |= dict(open_store(root).list())
    lost: list[Task] = [table for table in tables if table.number in tables_done and table.table not in there]
    for task in shards:
        rows = [ShardRow(**row) for row in done.get(task.number, {}).get("rows", [])]
        if any(there.get(row.path) != row.shard_bytes or places_path(row.path) not in there for row in rows):
            lost.append(task)
    for task in lost:
        runner.workspace.store.delete(task.record_name)


def forget_all(workspace: Workspace) -> None:
    """Let all tasks that put files into a root run again."""
    for stage in (ShardsTask.stage, DocumentsTableTask.stage):
        for name in workspace.sizes(stage):
            workspace.store.delete(name)


def check_windows(shards: ShardsSummary, parts: Sequence[Part], *, more: int = 0) -> None:
    """Raises AssertionError where the shards do not hold the windows of the parts, and `more`, sorted by leaf."""
    expected = sum(part.num_windows for part in parts) + more
    if int(shards.windows_per_leaf.sum()) != expected or (np.diff(shards.leaves.astype(np.int64)) <= 0).any():
        raise AssertionError(f"{shards.windows_per_leaf.sum()} windows were sorted of {expected}")


def tree_provenance(tree: ClusterTree, shards: ShardsSummary, sums: QualitySums | None) -> list[dict[str, Any]]:
    """Fit of the tree to all windows, level by level, for the manifest."""
    levels = quality_of_counts(tree, shards.leaves, shards.windows_per_leaf, sums=sums).levels
    known = [{name: value for name, value in vars(level).items() if value is not None} for level in levels]
    return [
        {name: round(value, 6) if isinstance(value, float) else value for name, value in level.items()}
        for level in known
    ]
