"""The stages that find duplicates among all documents:

    duplicates-digests -> duplicates-exact -> duplicates-bands -> duplicates-candidates -> duplicates-carried ->
    duplicates-compared -> duplicates-joined -> duplicates-carried -> duplicates-compared -> duplicates

or, where texts must be equal, duplicates-digests -> duplicates-exact -> duplicates.

Documents stand in bundles, hashes are parted into ranges. Tasks by bundles send hashes to tasks by ranges, which find
the first document of each hash and send pairs back (engine/exchange.py says how). The minima of a pair come together
like this: the bundle of the later document sends its minima to the bundle of the first one, which compares. Edges are
joined by one task. Then the documents whose first one is none that they were compared with, because others join the
two, are sent once more, so that the list can say how similar they are.

An exact duplicate takes no part in the search for similar ones: it has the sketch of the document it repeats, and goes
where that goes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.array_files import ArrayFile
from crisp_stream.writers.cleaning.dropped import REMOVED
from crisp_stream.writers.cleaning.duplicates import (
    BYTES_PER_HASH,
    PAIR,
    packed_places,
)
from crisp_stream.writers.engine.engine import each_holding, holding
from crisp_stream.writers.engine.exchange import Exchange
from crisp_stream.writers.engine.memory_limit import DRIVER_BYTES, LEAST_WORK_BYTES
from crisp_stream.writers.engine.tasks import Record, Runner, fingerprint, finished
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.batches import PLACE, DocumentsTask
from crisp_stream.writers.stages.removal.bundles import Bundle, Stretch, bundles_of, stretches_of_group
from crisp_stream.writers.stages.removal.pairs import (
    EDGES_AT_ONCE,
    BandsTask,
    CandidatesTask,
    CarriedTask,
    ComparedTask,
    DigestsTask,
    ExactTask,
    JoinedTask,
    similarity_of,
)
from crisp_stream.writers.stages.removal.search import BundleTask, Search, SearchTask

WORK_BYTES = 256 << 20
"""Memory of a task of the search, about, where no less is given."""
BUNDLE_DOCUMENTS = 1 << 20
_BYTES_PER_DOCUMENT = 256
"""Memory that a task takes per document of its bundle, where one in four is a candidate."""
_JOINING_BYTES = 128 << 20
"""Memory that joining takes for the edges it reads at once."""
_BYTES_PER_JOINED = 128
"""Memory that joining takes beside per document that goes."""


@dataclass(frozen=True, kw_only=True)
class OutcomeTask(BundleTask):
    """Say of every document of a bundle that is removed which one is kept, and why."""

    stage: ClassVar[str] = "duplicates"
    title: ClassVar[str] = "finding duplicates"
    unit: ClassVar[str] = "duplicates"

    @property
    def leaves(self) -> Exchange:
        """Removed documents, by the stretches of the bundle."""
        return self._exchange(self.search, self.search.num_bundles, len(self.bundle), REMOVED)

    def make(self) -> Record:
        """Write the removed documents of each stretch, in document order."""
        equal, similar, similarity = self._pairs()
        # A document is an exact duplicate when the kept one has its text, and a near duplicate when the kept one is
        # similar (also where a third one has its text, but goes as well).
        equal = equal[~np.isin(equal["place"], similar["place"])]
        removed = np.empty(len(similar) + len(equal), REMOVED)
        removed["place"] = np.concatenate([similar["place"], equal["place"]])
        removed["kept"] = np.concatenate([similar["first"], equal["first"]])
        removed["similarity"][: len(similar)], removed["similarity"][len(similar) :] = similarity, 1
        removed["near"] = np.arange(len(removed)) < len(similar)
        removed = removed[np.argsort(removed["place"])]
        firsts = np.array([stretch.first_place for stretch in self.bundle], np.uint64)
        with self.leaves.created(self.workspace, self.number) as writer:
            writer.add(removed, np.searchsorted(firsts, removed["place"], side="right") - 1)
        return self._record(len(removed), exact=len(equal), near=len(similar))

    def _pairs(self) -> tuple[NDArray[np.void], NDArray[np.void], NDArray[np.float32]]:
        """Equal documents; and sorted similar ones, with the similarity of each pair."""
        equal = ExactTask.of(self.search).rows(self.workspace, self.number)
        if self.search.near is None:
            return equal, np.empty(0, PAIR), np.empty(0, np.float32)
        similar = JoinedTask.of(self.search).rows(self.workspace, self.number)
        similar = similar[np.argsort(similar["place"])]
        compared = [ComparedTask.of(self.search, are_candidates=flag) for flag in (True, False)]
        edges = itertools.chain.from_iterable(one.pieces(self.workspace, self.number) for one in compared)
        return equal, similar, similarity_of(similar, edges)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedDocuments:
    """Where the removed documents of a stretch are found."""

    outcome: Exchange
    bundle: int
    stretch: int

    def load(self, workspace: Workspace) -> NDArray[np.void]:
        """[num_removed] of REMOVED, in document order."""
        return self.outcome.rows_of(workspace, self.bundle, self.stretch)


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Outcome of a search."""

    fingerprint: str
    """Of what was found."""
    counts: dict[str, int]
    """Documents that are removed, `exact` and `near`."""
    of_group: dict[int, list[tuple[int, RemovedDocuments]]]
    """Of each group with documents, its stretches: where each ends in the group, and what is removed of it."""

    def of_documents(self, group: int, document: int) -> RemovedDocuments:
        """What is removed of the stretch that has a document, by its number in its group."""
        return next(removed for stop, removed in self.of_group[group] if document < stop)


def duplicates_in_stages(
    runner: Runner, options: WriteOptions, tasks: Sequence[DocumentsTask], records: Sequence[Record]
) -> Duplicates:
    """Find the duplicates among all documents.

    Raises:
        InputError: more files than can be compared, or not enough memory. PlanEnds: without an engine, at tasks that
        are not done.
    """
    work_bytes = _work_bytes(options)
    bundle_documents = _power_of_two(min(BUNDLE_DOCUMENTS, work_bytes // _BYTES_PER_DOCUMENT))
    bundles = list(bundles_of(_stretches(runner.workspace, tasks, records, bundle_documents), bundle_documents))
    num_documents = sum(sum(record["documents_per_batch"]) for record in records)
    search = Search(
        documents=fingerprint([task.fingerprint for task in tasks]),
        num_documents=num_documents,
        near=options.sketches,
        bundle_documents=bundle_documents,
        num_bundles=len(bundles),
        digest_ranges=-(-num_documents * BYTES_PER_HASH[2] // work_bytes),
        key_ranges=-(-num_documents * BYTES_PER_HASH[1] // work_bytes),
    )
    return search_in_stages(runner, search, bundles, work_bytes=work_bytes)


def search_in_stages(runner: Runner, search: Search, bundles: Sequence[Bundle], *, work_bytes: int) -> Duplicates:
    """Run what is missing of a search, in tasks that hold about `work_bytes`. Raises InputError, PlanEnds."""
    stages = _Stages(runner, search, bundles, work_bytes)
    outcome = stages.by_bundle(OutcomeTask)
    if len(finished(runner.workspace, outcome)) < len(outcome):
        stages.run()
    with stages.bounded():
        records = runner.run(outcome, unit=OutcomeTask.unit)
    of_group: dict[int, list[tuple[int, RemovedDocuments]]] = {}
    for task in outcome:
        leaves = task.leaves
        for number, stretch in enumerate(task.bundle):
            removed = RemovedDocuments(outcome=leaves, bundle=task.number, stretch=number)
            of_group.setdefault(stretch.group, []).append((stretch.stop, removed))
    counts = {kind: sum(record[kind] for record in records) for kind in ("exact", "near")}
    return Duplicates(fingerprint=search.outcome, counts=counts, of_group=of_group)


def _work_bytes(options: WriteOptions) -> int:
    if options.memory_bytes is None:
        return WORK_BYTES
    return min(WORK_BYTES, max(options.memory_bytes - DRIVER_BYTES, LEAST_WORK_BYTES))


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _stretches(
    workspace: Workspace, tasks: Sequence[DocumentsTask], records: Sequence[Record], bundle_documents: int
) -> Iterator[Stretch]:
    for task, record in zip(tasks, records, strict=True):
        stretches = stretches_of_group(record["documents_per_batch"], bundle_documents)
        key = task.key
        for start, stop in stretches:
            if start == 0:
                first = packed_places(np.array([task.first_file], np.uint32), np.zeros(1, np.int64))
            else:
                place = ArrayFile(workspace.store, f"{key}.places.npy", PLACE, shape=(None,)).read(start, 1)
                first = packed_places(place["file"], place["row"])
            yield Stretch(group=task.number, key=key, start=start, stop=stop, first_place=int(first[0]))


class _Stages:
    """The stages of a search before the outcome."""

    def __init__(self, runner: Runner, search: Search, bundles: Sequence[Bundle], work_bytes: int) -> None:
        self._runner, self._search, self._bundles = runner, search, bundles
        self._task_bytes = min(work_bytes, search.num_documents * _BYTES_PER_DOCUMENT)

    def run(self) -> None:
        """Run what is missing."""
        runner, search = self._runner, self._search
        if runner.engine is not None:
            firsts = np.array([bundle[0].first_place for bundle in self._bundles], np.uint64)
            runner.workspace.save_array(search.places_name, firsts)
        with self.bounded():
            self._run(self.by_bundle(DigestsTask))
            self._run(self._by_range(ExactTask, search.digest_ranges))
            if search.near is None:
                return
            self._run(self.by_bundle(BandsTask))
            self._run(self._by_range(CandidatesTask, search.num_bands * search.key_ranges))
            self._run(self.by_bundle(CarriedTask, are_candidates=True))
            num_edges = self._run(self.by_bundle(ComparedTask, are_candidates=True))
        joined_bytes = _JOINING_BYTES + _BYTES_PER_JOINED * min(num_edges, search.num_documents)
        within: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if num_edges > EDGES_AT_ONCE:
            within = holding(runner.engine, "joining similar documents", joined_bytes, remedy="Give more.")
        with within:
            self._run(self._by_range(JoinedTask, 1))
        with self.bounded():
            self._run(self.by_bundle(CarriedTask, are_candidates=False))
            self._run(self.by_bundle(ComparedTask, are_candidates=False))

    def bounded(self) -> contextlib.AbstractContextManager[int | None]:
        """Run no more processes than may hold what a task of the search does."""
        return each_holding(self._runner.engine, "finding duplicates", self._task_bytes)

    def by_bundle(self, kind: type[BundleTask], **known: bool) -> list[BundleTask]:
        """The tasks of a stage that has one for each bundle."""
        workspace, search = self._runner.workspace, self._search
        return [
            kind(workspace=workspace, number=number, search=search, bundle=bundle, **known)
            for number, bundle in enumerate(self._bundles)
        ]

    def _by_range(self, kind: type[SearchTask], num_ranges: int) -> list[SearchTask]:
        workspace, search = self._runner.workspace, self._search
        return [kind(workspace=workspace, number=number, search=search) for number in range(num_ranges)]

    def _run(self, tasks: Sequence[SearchTask]) -> int:
        """Run a stage; the sum of what its records count."""
        return sum(record["num_units"] for record in self._runner.run(tasks, unit=tasks[0].unit))


EXACT_STAGES = (DigestsTask.stage, ExactTask.stage)
"""Stages of every search before its outcome."""
NEAR_STAGES = (BandsTask.stage, CandidatesTask.stage, CarriedTask.stage, ComparedTask.stage, JoinedTask.stage)
"""Stages that a search for similar documents has beside them."""
