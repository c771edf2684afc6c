"""The tasks that find pairs of equal and of similar documents; duplicates.py says how they follow each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.duplicates import (
    PAIR,
    Firsts,
    hash_ranges,
)
from crisp_stream.writers.cleaning.near_duplicates import Groups, similarities
from crisp_stream.writers.engine.exchange import Exchange
from crisp_stream.writers.engine.tasks import Record, file_sizes
from crisp_stream.writers.stages.removal.search import BundleTask, Search, SearchTask

EDGES_AT_ONCE = 1 << 19
"""Edges that joining takes in at once."""
_COMPARED_BYTES = 16 << 20
_CARRIED_AT_ONCE = 1 << 16

_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])
_KEY = np.dtype([("key", "<u8"), ("place", "<u8")])
_EDGE = np.dtype([("place", "<u8"), ("first", "<u8"), ("similarity", "<f4")])


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
class ExactTask(SearchTask):
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
class CandidatesTask(SearchTask):
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
            pairs = pairs[similarity_of(pairs, edges.pieces(self.workspace, self.number)) < 0]
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


def similarity_of(pairs: NDArray[np.void], edges: Iterator[NDArray[np.void]]) -> NDArray[np.float32]:
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
class JoinedTask(SearchTask):
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
                if num_held >= max(EDGES_AT_ONCE, len(groups.pairs) // 4):  # each time all groups are copied
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
