"""Stage `dropped`, and the list of removed documents that a dataset has.

Tasks that read and cut documents leave a list each of those that they removed. A task of this stage merges the lists of
some groups; the published list is made from theirs, a piece at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from crisp_stream.writers.cleaning.dropped import merge_listed, named_rows, read_listed, save_dropped, save_listed
from crisp_stream.writers.engine.tasks import Record, Runner, Task, file_sizes
from crisp_stream.writers.engine.workspace import Workspace, scratch_folder
from crisp_stream.writers.stages.batches import DROPPED_LIST
from crisp_stream.writers.stages.documents import ReadDocuments
from crisp_stream.writers.stages.models import EmbeddedParts

_LISTS_PER_TASK = 1024
_LIST = "arrow"


@dataclass(frozen=True, kw_only=True)
class GroupLists:
    """Names of the lists of a group's tasks."""

    contaminated: str | None
    repeated: tuple[str, ...]
    """Of its parts, in their order."""


@dataclass(frozen=True, kw_only=True)
class DroppedTask(Task):
    """Merge the lists of some groups."""

    stage: ClassVar[str] = "dropped"
    title: ClassVar[str] = "listing removed documents"

    groups: tuple[GroupLists, ...]

    def settings(self) -> Any:
        """The lists, whose names have the fingerprints of what decides them."""
        return self.groups

    def make(self) -> Record:
        """Write one list, by file and row."""
        with self.workspace.created(self.file(_LIST)) as path:
            num_rows = save_listed(path, itertools.chain.from_iterable(map(self._merged, self.groups)))
        return {"num_units": num_rows, "files": file_sizes(self, self.file(_LIST))}

    def _merged(self, group: GroupLists) -> Iterator[pa.Table]:
        repeated = itertools.chain.from_iterable(_read(self.workspace, name) for name in group.repeated)
        contaminated = () if group.contaminated is None else _read(self.workspace, group.contaminated)
        return merge_listed(repeated, contaminated)


def _read(workspace: Workspace, name: str) -> Iterator[pa.Table]:
    with workspace.opened(name) as path:
        yield from read_listed(path)


@dataclass(frozen=True, kw_only=True)
class DroppedList:
    """The file of a published list."""

    path: Path
    sha256: str


@contextlib.contextmanager
def dropped_list(
    runner: Runner,
    read: ReadDocuments,
    embedded: EmbeddedParts,
    names: Sequence[str],
    *,
    before: Iterable[pa.Table] = (),
) -> Iterator[DroppedList | None]:
    """Make the published list on local disk, where it is as long as the block; None where it would be empty.

    Args:
        runner: runs what is missing of the stage.
        read: the documents.
        embedded: their parts.
        names: published names of the input files.
        before: pieces of the list that the new one follows on.
    """
    tasks = [
        DroppedTask(workspace=runner.workspace, number=number, inputs=(), groups=groups)
        for number, groups in enumerate(_bundled(_group_lists(read, embedded)))
    ]
    runner.run(tasks, unit="documents")
    new = (named_rows(table, names) for task in tasks for table in _read(runner.workspace, task.file(_LIST)))
    with scratch_folder() as scratch:
        path = scratch / "dropped.parquet"
        if not save_dropped(path, itertools.chain(before, new)):
            yield None
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield DroppedList(path=path, sha256=digest)


def _group_lists(read: ReadDocuments, embedded: EmbeddedParts) -> Iterator[GroupLists]:
    """The lists of each group that has any."""
    of_groups = {group: range(start, stop) for group, start, stop in read.batches.groups()}
    for task, record in zip(read.tasks, read.records, strict=True):
        members = [at for at in of_groups.get(task.number, ()) if embedded.has_repeats[at]]
        lists = GroupLists(
            contaminated=task.file(DROPPED_LIST) if record["num_contaminated"] else None,
            repeated=tuple(embedded.windows[at].file(DROPPED_LIST) for at in members),
        )
        if lists.contaminated or lists.repeated:
            yield lists


def _bundled(groups: Iterable[GroupLists]) -> Iterator[tuple[GroupLists, ...]]:
    held: list[GroupLists] = []
    num_lists = 0
    for group in groups:
        held.append(group)
        num_lists += 1 + len(group.repeated)
        if num_lists >= _LISTS_PER_TASK:
            yield tuple(held)
            held, num_lists = [], 0
    if held:
        yield tuple(held)
