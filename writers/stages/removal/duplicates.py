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
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.array_files import ArrayFile
from crisp_stream.writers.cleaning.dropped import REMOVED
from crisp_stream.writers.cleaning.duplicates import (
    BYTES_PER_HASH,
    PAIR,
    Firsts,
    hash_ranges,
    packed_places,
)
from crisp_stream.writers.cleaning.near_duplicates import Groups, NearSettings, similarities
from crisp_stream.writers.engine.engine import each_holding, holding
from crisp_stream.writers.engine.exchange import Exchange, ExchangeWriter
from crisp_stream.writers.engine.memory_limit import DRIVER_BYTES, LEAST_WORK_BYTES
from crisp_stream.writers.engine.tasks import Record, Runner, Task, file_sizes, fingerprint, finished
from crisp_stream.writers.engine.versions import stage_libraries
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.batches import PLACE, DocumentsTask
from crisp_stream.writers.stages.removal.bundles import Bundle, BundleArrays, Stretch, bundles_of, stretches_of_group

WORK_BYTES = 256 << 20
"""Memory of a task of the search, about, where no less is given."""
BUNDLE_DOCUMENTS = 1 << 20
_BYTES_PER_DOCUMENT = 256
"""Memory that a task takes per document of its bundle, where one in four is a candidate."""
_EDGES_AT_ONCE = 1 << 19
_JOINING_BYTES = 128 << 20
"""Memory that joining takes for the edges it reads at once."""
_BYTES_PER_JOINED = 128
"""Memory that joining takes beside per document that goes."""
_COMPARED_BYTES = 16 << 20
_CARRIED_AT_ONCE = 1 << 16

_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])
_KEY = np.dtype([("key", "<u8"), ("place", "<u8")])
_EDGE = np.dtype([("place", "<u8"), ("first", "<u8"), ("similarity", "<f4")])


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for duplicates, and how it is parted into tasks, which decides nothing of its outcome."""

    documents: str
    """Fingerprint of the documents."""
    num_documents: int
    near: NearSettings | None
    """None finds equal texts only."""
    bundle_documents: int
    num_bundles: int
    digest_ranges: int
    key_ranges: int
    """Of each band."""

    @property
    def num_bands(self) -> int:
        """Bands of the sketches."""
        assert self.near is not None
        return self.near.bands[0]

    @property
    def outcome(self) -> str:
        """Fingerprint of what is found, however it is parted."""
        return fingerprint(self.documents, self.near, OutcomeTask.version)

    @property
    def places_name(self) -> str:
        """Name of the array of the first place of each bundle."""
        return f"duplicates-bundles/{fingerprint(self.documents, self.bundle_documents)}.npy"

    def bundles(self, workspace: Workspace, places: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The bundles of documents."""
        firsts = _first_places(workspace.url, self.places_name)
        return np.searchsorted(firsts, places, side="right") - 1


@lru_cache(maxsize=1)
def _first_places(url: str, name: str) -> NDArray[np.uint64]:
    return Workspace(url).load_array(name)


@dataclass(frozen=True, kw_only=True)
class _SearchTask(Task):
    version: ClassVar[int] = 2
    unit: ClassVar[str] = "pairs"
    """What its records count."""

    inputs: tuple[str, ...] = field(init=False)
    search: Search

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", (self.search.documents,))
        super().__post_init__()

    def settings(self) -> Any:
        """The search."""
        return self.search

    @cached_property
    def fingerprint(self) -> str:
        """The same for all tasks of a stage, so that the names of their files need no list."""
        return self.leaves.fingerprint

    @property
    @abstractmethod
    def leaves(self) -> Exchange:
        """What the tasks of the stage leave."""

    @classmethod
    def _exchange(
        cls, search: Search, num_sources: int, num_destinations: int, dtype: np.dtype[Any], *flags: bool
    ) -> Exchange:
        return Exchange(
            stage=cls.stage,
            fingerprint=fingerprint(cls.stage, cls.version, stage_libraries(cls.stage, light=True), search, flags),
            num_sources=num_sources,
            num_destinations=num_destinations,
            dtype=dtype,
        )

    def _record(self, num_units: int, **known: Any) -> Record:
        return {"num_units": num_units, **known, "files": file_sizes(self, *self.leaves.names(self.number))}

    def _to_bundles(self, writer: ExchangeWriter, rows: NDArray[np.void]) -> None:
        """Write rows, which are sorted, for the bundles of their documents."""
        writer.add(rows, self.search.bundles(self.workspace, rows["place"]))


@dataclass(frozen=True, kw_only=True)
class BundleTask(_SearchTask):
    """A task of the search for one bundle, which has its number."""

    bundle: Bundle

    @property
    def arrays(self) -> BundleArrays:
        """The arrays of the bundle's documents."""
        return BundleArrays(self.workspace, self.bundle)


@dataclass(frozen=True, kw_only=True)
class DigestsTask(BundleTask):
    """Part the digests of a bundle into ranges."""

    stage: ClassVar[str] = "duplicates-digests"
    title: ClassVar[str] = "parting digests"
    unit: ClassVar[str] = "documents"

    @classmethod
    def of(cls, search: Search) -> Exchange:
        """Digests, for ranges."""
        return cls._exchange(search, search.num_bundles, search.digest_ranges, _DIGEST)

    @property
    def leaves(self) -> Exchange:
        """See `of`."""
        return self.of(self.search)

    def make(self) -> Record:
        """Write the digests by range, those of a range in document order."""
        digests, places = self.arrays.digests(), self.arrays.places()
        rows = np.empty(len(places), _DIGEST)
        rows["high"], rows["low"], rows["place"] = digests[:, 0], digests[:, 1], places
        with self.leaves.created(self.workspace, self.number) as writer:
            writer.add_unsorted(rows, hash_ranges(rows["high"], self.search.digest_ranges))
        return self._record(len(rows))


@dataclass(frozen=True, kw_only=True)
class ExactTask(_SearchTask):
    """Find the documents whose digests occurred before, in a range of them."""

    stage: ClassVar[str] = "duplicates-exact"
    title: ClassVar[str] = "finding equal documents"

    @classmethod
    def of(cls, search: Search) -> Exchange:
        """Pairs of equal documents, for the bundle of the later one."""
        return cls._exchange(search, search.digest_ranges, search.num_bundles, PAIR)

    @property
    def leaves(self) -> Exchange:
        """See `of`."""
        return self.of(self.search)

    def make(self) -> Record:
        """Write the pairs."""
        firsts = Firsts(self.search.num_documents // self.search.digest_ranges)
        with self.leaves.created(self.workspace, self.number) as writer:
            for rows in DigestsTask.of(self.search).pieces(self.workspace, self.number):
                self._to_bundles(writer, firsts.add([rows["high"], rows["low"]], rows["place"]))
            self._to_bundles(writer, firsts.finish())
        return self._record(writer.num_rows)


@dataclass(frozen=True, kw_only=True)
class BandsTask(BundleTask):
    """Part the keys of a bundle's documents, without exact duplicates, into ranges of each band."""

    stage: ClassVar[str] = "duplicates-bands"
    title: ClassVar[str] = "parting sketches"
    unit: ClassVar[str] = "documents"

    @classmethod
    def of(cls, search: Search) -> Exchange:
        """Keys, for ranges of bands."""
        num_ranges = search.num_bands * search.key_ranges
        return cls._exchange(search, search.num_bundles, num_ranges, _KEY)

    @property
    def leaves(self) -> Exchange:
        """See `of`."""
        return self.of(self.search)

    def make(self) -> Record:
        """Write the keys by band and range, those of a range in document order."""
        places = self.arrays.places()
        is_first = np.ones(len(places), np.bool_)
        for pairs in ExactTask.of(self.search).pieces(self.workspace, self.number):
            is_first[np.searchsorted(places, pairs["place"])] = False
        with self.leaves.created(self.workspace, self.number) as writer:
            for band, keys in enumerate(self.arrays.keys(self.search.num_bands)):
                at = np.flatnonzero(is_first & (keys != 0))  # a document without words is like no other
                rows = np.empty(len(at), _KEY)
                rows["key"], rows["place"] = keys[at], places[at]
                ranges = hash_ranges(rows["key"], self.search.key_ranges)
                writer.add_unsorted(rows, ranges + band * self.search.key_ranges)
        return self._record(int(np.count_nonzero(is_first)))


@dataclass(frozen=True, kw_only=True)
class CandidatesTask(_SearchTask):
    """Find the documents whose keys occurred before, in a range of a band."""

    stage: ClassVar[str] = "duplicates-candidates"
    title: ClassVar[str] = "finding candidates"

    @classmethod
    def of(cls, search: Search) -> Exchange:
        """Pairs that may be similar, for the bundle of the later one."""
        return cls._exchange(search, search.num_bands * search.key_ranges, search.num_bundles, PAIR)

    @property
    def leaves(self) -> Exchange:
        """See `of`."""
        return self.of(self.search)

    def make(self) -> Record:
        """Write the pairs."""
        firsts = Firsts(self.search.num_documents // self.search.key_ranges)
        with self.leaves.created(self.workspace, self.number) as writer:
            for rows in BandsTask.of(self.search).pieces(self.workspace, self.number):
                self._to_bundles(writer, firsts.add([rows["key"]], rows["place"]))
            self._to_bundles(writer, firsts.finish())
        return self._record(writer.num_rows)


@dataclass(frozen=True, kw_only=True)
class CarriedTask(BundleTask):
    """Send the minima of documents that are to be compared to the documents that they are compared with."""

    stage: ClassVar[str] = "duplicates-carried"
    title: ClassVar[str] = "carrying sketches"

    are_candidates: bool
    """Pairs are candidates; else they are documents with the first of their group, of which the similarity is not known
    yet."""

    @classmethod
    def of(cls, search: Search, *, are_candidates: bool) -> Exchange:
        """Pairs with the minima of the later document, for the bundle of the first one."""
        assert search.near is not None
        minima = ("minima", "u1", (search.near.num_minima,))
        return cls._exchange(
            search, search.num_bundles, search.num_bundles, np.dtype([*PAIR.descr, minima]), are_candidates
        )

    @property
    def leaves(self) -> Exchange:
        """See `of`."""
        return self.of(self.search, are_candidates=self.are_candidates)

    def make(self) -> Record:
        """Write every pair once."""
        leaves = self.leaves
        source = CandidatesTask.of(self.search) if self.are_candidates else JoinedTask.of(self.search)
        pairs = _different(source.pieces(self.workspace, self.number))
        if not self.are_candidates:
            edges = ComparedTask.of(self.search, are_candidates=True)
            pairs = pairs[_similarity_of(pairs, edges.pieces(self.workspace, self.number)) < 0]
        bundles = self.search.bundles(self.workspace, pairs["first"])
        order = np.argsort(bundles, kind="stable")
        documents, document_of_pair = np.unique(pairs["place"], return_inverse=True)
        positions = np.searchsorted(self.arrays.places(), documents) if len(documents) else np.empty(0, np.int64)
        minima = self.arrays.minima(positions, leaves.dtype["minima"].shape[0])
        with leaves.created(self.workspace, self.number) as writer:
            for start in range(0, len(order), _CARRIED_AT_ONCE):
                at = order[start : start + _CARRIED_AT_ONCE]
                rows = np.empty(len(at), leaves.dtype)
                rows["place"], rows["first"] = pairs["place"][at], pairs["first"][at]
                rows["minima"] = minima[document_of_pair[at]]
                writer.add(rows, bundles[at])
        return self._record(len(pairs))


def _different(pieces: Iterator[NDArray[np.void]]) -> NDArray[np.void]:
    """The pairs that are different, sorted."""
    pairs = np.empty(0, PAIR)
    for piece in pieces:
        joined = np.concatenate([pairs, piece])
        joined = joined[np.lexsort((joined["first"], joined["place"]))]
        is_new = np.ones(len(joined), np.bool_)
        is_new[1:] = (np.diff(joined["place"]) != 0) | (np.diff(joined["first"]) != 0)
        pairs = joined[is_new]
    return pairs


def _similarity_of(pairs: NDArray[np.void], edges: Iterator[NDArray[np.void]]) -> NDArray[np.float32]:
    """The similarity of each pair, -1 where no edge has it; `pairs` are sorted, with one for each document at most."""
    similarity = np.full(len(pairs), -1, np.float32)
    if not len(pairs):
        return similarity
    for piece in edges:
        at = np.minimum(np.searchsorted(pairs["place"], piece["place"]), len(pairs) - 1)
        fits = (pairs["place"][at] == piece["place"]) & (pairs["first"][at] == piece["first"])
        similarity[at[fits]] = piece["similarity"][fits]
    return similarity


@dataclass(frozen=True, kw_only=True)
class ComparedTask(BundleTask):
    """Compare the minima that were sent with those of the bundle's documents."""

    stage: ClassVar[str] = "duplicates-compared"
    title: ClassVar[str] = "comparing sketches"

    are_candidates: bool
    """Keep those alone that are similar enough."""

    @classmethod
    def of(cls, search: Search, *, are_candidates: bool) -> Exchange:
        """Pairs with their similarity, for the bundle of the later one."""
        return cls._exchange(search, search.num_bundles, search.num_bundles, _EDGE, are_candidates)

    @property
    def leaves(self) -> Exchange:
        """See `of`."""
        return self.of(self.search, are_candidates=self.are_candidates)

    def make(self) -> Record:
        """Write the pairs."""
        assert self.search.near is not None
        threshold = self.search.near.threshold if self.are_candidates else -1.0
        carried = CarriedTask.of(self.search, are_candidates=self.are_candidates)
        places: NDArray[np.uint64] | None = None
        with self.leaves.created(self.workspace, self.number) as writer:
            for rows in carried.pieces(self.workspace, self.number, piece_bytes=_COMPARED_BYTES):
                places = self.arrays.places() if places is None else places
                documents, document_of_pair = np.unique(rows["first"], return_inverse=True)
                minima = self.arrays.minima(np.searchsorted(places, documents), self.search.near.num_minima)
                similar = similarities(rows["minima"], minima[document_of_pair])
                at = np.flatnonzero(similar >= threshold)
                edges = np.empty(len(at), _EDGE)
                edges["place"], edges["first"], edges["similarity"] = rows["place"][at], rows["first"][at], similar[at]
                self._to_bundles(writer, edges)
        return self._record(writer.num_rows)


@dataclass(frozen=True, kw_only=True)
class JoinedTask(_SearchTask):
    """Join documents that edges connect, and find the first of each group; also for their exact duplicates."""

    stage: ClassVar[str] = "duplicates-joined"
    title: ClassVar[str] = "joining similar documents"

    @classmethod
    def of(cls, search: Search) -> Exchange:
        """Documents that go with the first of their group, for the bundles of the documents; source 0 has the members
        of groups, others have exact duplicates."""
        return cls._exchange(search, 1 + search.digest_ranges, search.num_bundles, PAIR)

    @property
    def leaves(self) -> Exchange:
        """See `of`."""
        return self.of(self.search)

    def make(self) -> Record:
        """Write the pairs."""
        edges, exact = ComparedTask.of(self.search, are_candidates=True), ExactTask.of(self.search)
        groups, held, num_held = Groups(), [np.empty(0, PAIR)], 0
        for source in range(edges.num_sources):
            for piece in edges.pieces_of_source(self.workspace, source):
                held.append(piece[["place", "first"]].astype(PAIR))
                num_held += len(piece)
                if num_held >= max(_EDGES_AT_ONCE, len(groups.pairs) // 4):  # each time all groups are copied
                    groups.join(np.concatenate(held))
                    held, num_held = [np.empty(0, PAIR)], 0
        groups.join(np.concatenate(held))
        leaves, num_rows = self.leaves, len(groups.pairs)
        with leaves.created(self.workspace, 0) as writer:
            self._to_bundles(writer, groups.pairs)
        for source in range(exact.num_sources):
            with leaves.created(self.workspace, 1 + source) as writer:
                for pairs in exact.pieces_of_source(self.workspace, source):
                    moved = pairs.copy()
                    moved["first"] = groups.first_of(pairs["first"])
                    self._to_bundles(writer, moved[moved["first"] != pairs["first"]])
            num_rows += writer.num_rows
        names = [name for source in range(leaves.num_sources) for name in leaves.names(source)]
        return {"num_units": num_rows, "files": file_sizes(self, *names)}


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
        return equal, similar, _similarity_of(similar, edges)


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
        if num_edges > _EDGES_AT_ONCE:
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

    def _by_range(self, kind: type[_SearchTask], num_ranges: int) -> list[_SearchTask]:
        workspace, search = self._runner.workspace, self._search
        return [kind(workspace=workspace, number=number, search=search) for number in range(num_ranges)]

    def _run(self, tasks: Sequence[_SearchTask]) -> int:
        """Run a stage; the sum of what its records count."""
        return sum(record["num_units"] for record in self._runner.run(tasks, unit=tasks[0].unit))


EXACT_STAGES = (DigestsTask.stage, ExactTask.stage)
"""Stages of every search before its outcome."""
NEAR_STAGES = (BandsTask.stage, CandidatesTask.stage, CarriedTask.stage, ComparedTask.stage, JoinedTask.stage)
"""Stages that a search for similar documents has beside them."""
