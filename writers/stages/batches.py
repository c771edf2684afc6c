"""Stage `documents`: input files to batches of documents, the unit of all later work.

A task takes a group of consecutive input files (small ones together, a large one alone), reads them once, drops what
the filters, the sample and the evaluation sets exclude, and leaves batches of about 2 million characters. What is
needed to find duplicates among all documents is computed on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.hashing import splitmix64_finalise
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.dropped import contaminated_rows, save_listed
from crisp_stream.writers.cleaning.duplicates import packed_places, text_digests
from crisp_stream.writers.cleaning.excluded_ids import ExcludedIds
from crisp_stream.writers.cleaning.near_duplicates import NearSettings, Sketches, sketch_texts
from crisp_stream.writers.documents.bad_records import BadRecords, Budget
from crisp_stream.writers.documents.documents import Document, LargeDocumentError, check_unchanged, read_input
from crisp_stream.writers.documents.drops import NOT_SAMPLED, DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile
from crisp_stream.writers.engine.memory_limit import DRIVER_BYTES
from crisp_stream.writers.engine.tasks import Record, Task, file_sizes
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.excluded import excluded_ids

GROUP_FILES = 4096
BAD_RECORDS = "bad.json"
"""Kind of the file of a task's bad records: [number of the file, line, reason, text] of each that is listed."""
DROPPED_LIST = "dropped.arrow"
"""Kind of the file of a task's contaminated documents, where there are any."""
CORRUPT_FILE = "file that cannot be read to its end"
"""Reason of skipped files in the ledger."""
EXCLUDED = "id in a list of excluded ids"
CONTAMINATED = "shares an n-gram with an evaluation set"
_BATCH = pa.schema([("file", pa.uint32()), ("row", pa.int64()), ("id", pa.string()), ("text", pa.large_string())])
PLACE = np.dtype([("file", "<u4"), ("row", "<i8")])
"""Place of a document: number of its file, and its number there."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Choice of documents of a file, beyond the filters of its settings."""

    sample: float | None = None
    """Share of the documents to take, about, chosen by a hash of their place."""
    evaluation: str | None = None
    """Task key of the n-grams that no document may share."""
    excluded: str | None = None
    """Task key of the ids that are left out."""
    exact: bool = False
    """Leave digests, for the search for equal documents."""
    near: NearSettings | None = None
    """Leave sketches, for the search for similar documents."""


def group_files(files: Sequence[InputFile], *, group_bytes: int) -> list[tuple[int, int]]:
    """Ranges (start, stop) of consecutive files: small ones together, large ones alone."""
    groups: list[tuple[int, int]] = []
    start = held = 0
    for number, file in enumerate(files):
        file_bytes = group_bytes if file.kind == "hub" else file.num_bytes  # a shard of unknown size
        if number > start and (held + file_bytes > group_bytes or number - start == GROUP_FILES):
            groups.append((start, number))
            start, held = number, 0
        held += file_bytes
    return [*groups, (start, len(files))] if files else []


@dataclass(frozen=True, kw_only=True)
class DocumentsTask(Task):
    """Read a group of files into batches."""

    stage: ClassVar[str] = "documents"
    title: ClassVar[str] = "reading documents"
    version: ClassVar[int] = 2

    files: tuple[InputFile, ...]
    first_file: int
    """Number of the first of them among all."""
    documents: DocumentSettings
    selection: Selection
    batch_characters: int
    max_bad: Budget
    """Bad records that the whole run may leave out. Not one of the settings: files that could be read stay read."""
    limit: int | None = None
    """Read at most this many documents, dropped ones and bad records included."""
    room_bytes: int | None = None
    """Memory that a document may take; None where it is not limited. Not one of the settings."""

    def settings(self) -> Any:
        """Values that determine the batches."""
        files = [vars(file) for file in self.files]
        return [files, self.first_file, self.documents, self.selection, self.batch_characters, self.limit]

    def batch_file(self, batch: int) -> str:
        """Name of the file of a batch."""
        return self.file(f"{batch:06d}.arrow")

    def make(self) -> Record:
        """Read; with skip_corrupt, begin again without a file that turns out to be corrupt."""
        corrupt: dict[int, str] = {}
        while True:
            try:
                return self._read(corrupt)
            except _CorruptFileError as error:
                if not self.documents.skip_corrupt:
                    raise error.cause from None
                file = self.files[error.number]
                corrupt[error.number] = str(error.cause).removeprefix(f"{file.url}: ").replace(file.url, file.name)

    def _read(self, corrupt: dict[int, str]) -> Record:
        made = _Made(self, counts=DropCounts(), ngrams=self._ngrams(), bad=BadRecords(self.max_bad))
        for number, document in self._documents(corrupt, made):
            made.add(number, document)
        return made.finish(corrupt)

    def _ngrams(self) -> EvaluationNgrams | None:
        if self.selection.evaluation is None:
            return None
        return EvaluationNgrams.load(self.workspace.kept(*map(str, EvaluationNgrams.files(self.selection.evaluation))))

    def _excluded(self) -> ExcludedIds | None:
        return None if self.selection.excluded is None else excluded_ids(self.workspace, self.selection.excluded)

    def _documents(self, corrupt: dict[int, str], made: _Made) -> Iterator[tuple[int, Document]]:
        excluded = self._excluded()
        for number, file in enumerate(self.files):
            if number in corrupt:
                continue
            place = self.first_file + number
            try:
                for document in read_input(
                    file, self.documents, made.reading, made.bad, number=place, room_bytes=self.room_bytes
                ):
                    if self.limit is not None and made.num_read >= self.limit:
                        return
                    made.num_taken += 1
                    if excluded is not None and _name(document, file) in excluded:
                        made.counts.add(EXCLUDED)
                    elif self._sampled(number, document.row):
                        yield number, document
                    else:
                        made.counts.add(NOT_SAMPLED)
                    if self.limit is not None and made.num_read >= self.limit:
                        check_unchanged(file)
                        return
            except LargeDocumentError as error:
                raise _no_room(error, self.room_bytes or 0) from error
            except CorruptInputError as error:
                raise _CorruptFileError(number, error) from error

    def _sampled(self, number: int, row: int) -> bool:
        if self.selection.sample is None:
            return True
        place = np.array([(self.first_file + number) << 40 | row], np.uint64)
        return float(splitmix64_finalise(place + np.uint64(1))[0]) / 2**64 < self.selection.sample


def _no_room(error: LargeDocumentError, room_bytes: int) -> InputError:
    least = -(-(DRIVER_BYTES + error.needed_bytes) >> 20)
    return InputError(
        f"memory: the document at {error.place} has {-(-error.num_bytes >> 20)} MB and takes "
        f"{-(-error.needed_bytes >> 20)} MB of memory while it is read, got {room_bytes >> 20} MB for the data of a "
        f"process. Give more (at least {least} MB with --processes 1), or cut the document or take it out."
    )


def _name(document: Document, file: InputFile) -> str:
    if document.id is None:
        raise InputError(
            f"{file.url}: exclude_ids needs ids of the documents, got none. Name their column with --id-column."
        )
    return document.id


class _CorruptFileError(Exception):
    def __init__(self, number: int, cause: CorruptInputError) -> None:
        super().__init__(str(cause))
        self.number, self.cause = number, cause


@dataclass
class _Made:
    """Batches and counts of a task so far."""

    task: DocumentsTask
    counts: DropCounts
    ngrams: EvaluationNgrams | None
    bad: BadRecords
    reading: DropCounts = field(default_factory=DropCounts)
    """Documents that the reader dropped."""
    num_taken: int = 0
    """Documents that the reader gave."""
    _contaminated: list[pa.Table] = field(default_factory=list)
    _held: list[tuple[int, Document]] = field(default_factory=list)
    _held_characters: int = 0
    _documents_per_batch: list[int] = field(default_factory=list)
    _characters_per_batch: list[int] = field(default_factory=list)
    _longest_per_batch: list[int] = field(default_factory=list)
    """Characters of the longest document of each."""
    _places: list[NDArray[Any]] = field(default_factory=list)
    _digests: list[NDArray[Any]] = field(default_factory=list)
    _sketches: list[Sketches] = field(default_factory=list)

    @property
    def num_read(self) -> int:
        """Documents so far, dropped ones included."""
        return self.num_taken + self.reading.total() + self.bad.counts.total()

    def add(self, number: int, document: Document) -> None:
        """Take a document; a batch that is full is written."""
        self._held.append((number, document))
        self._held_characters += len(document.text)
        if self._held_characters >= self.task.batch_characters:
            self._write_batch()

    def _write_batch(self) -> None:
        if self.ngrams is not None:
            self._decontaminate(self.ngrams)
        if not self._held:
            self._held_characters = 0
            return
        files = [self.task.first_file + number for number, _ in self._held]
        rows = [document.row for _, document in self._held]
        texts = [document.text for _, document in self._held]
        table = pa.table([files, rows, [document.id for _, document in self._held], texts], schema=_BATCH)
        with self.task.workspace.created(self.task.batch_file(len(self._documents_per_batch))) as path:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _BATCH, options=options) as writer:
                writer.write_table(table)
        del table
        self._documents_per_batch.append(len(texts))
        self._characters_per_batch.append(sum(map(len, texts)))
        self._longest_per_batch.append(max(map(len, texts)))
        self._places.append(np.array(list(zip(files, rows, strict=True)), PLACE))
        if self.task.selection.exact:
            self._digests.append(text_digests(texts))
        if self.task.selection.near is not None:
            self._sketches.append(sketch_texts(texts, self.task.selection.near))
        self._held, self._held_characters = [], 0

    def _decontaminate(self, ngrams: EvaluationNgrams) -> None:
        clean: list[tuple[int, Document]] = []
        found: list[tuple[int, int, str | None, str]] = []
        matches = ngrams.find_all([document.text for _, document in self._held])
        for (number, document), match in zip(self._held, matches, strict=True):
            if match is None:
                clean.append((number, document))
                continue
            self.counts.add(CONTAMINATED)
            found.append((self.task.first_file + number, document.row, document.id, match.describe()))
        if found:
            self._contaminated.append(contaminated_rows(*zip(*found, strict=True)))
        self._held = clean

    def finish(self, corrupt: dict[int, str]) -> Record:
        """Write what is held and the arrays over all documents; the record of the task."""
        if self._held:
            self._write_batch()
        self.counts.update(self.reading)
        kinds = [f"{batch:06d}.arrow" for batch in range(len(self._documents_per_batch))]
        arrays: dict[str, NDArray[Any]] = {}
        if self._places:
            arrays["places"] = np.concatenate(self._places)
        if self._digests:
            arrays["digests"] = np.concatenate(self._digests)
        if self._sketches:
            joined = Sketches.joined(self._sketches)
            arrays |= {"bands": joined.keys, "minima": joined.minima}
        if self.bad.counts:
            places = [[file, place.line, place.reason, place.text] for file, place in self.bad.places]
            self.task.workspace.write(self.task.file(BAD_RECORDS), json.dumps(places).encode())
            kinds.append(BAD_RECORDS)
        if self._contaminated:
            with self.task.workspace.created(self.task.file(DROPPED_LIST)) as path:
                save_listed(path, self._contaminated)
            kinds.append(DROPPED_LIST)
        for name, array in arrays.items():
            self.task.workspace.save_array(self.task.file(f"{name}.npy"), array)
            kinds.append(f"{name}.npy")
        return {
            "num_units": sum(self._documents_per_batch),
            "num_read": self.num_read,
            "bad": dict(sorted(self.bad.counts.items())),
            "bad_shown": self.bad.shown(),
            "documents_per_batch": self._documents_per_batch,
            "characters_per_batch": self._characters_per_batch,
            "longest_per_batch": self._longest_per_batch,
            "dropped": self.counts.as_dict(),
            "num_contaminated": sum(map(len, self._contaminated)),
            "corrupt": [[self.task.files[number].name, reason] for number, reason in sorted(corrupt.items())],
            "files": file_sizes(self.task, *map(self.task.file, kinds)),
        }


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Documents of a batch, as arrays of one length."""

    files: NDArray[np.uint32]
    rows: NDArray[np.int64]
    ids: list[str | None]
    texts: list[str]

    def removed(self, removed: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """Positions of the documents that are among `removed` (of REMOVED, sorted), and what is said of each."""
        places = packed_places(self.files, self.rows)
        first, stop = np.searchsorted(removed["place"], places[[0, -1]] + np.array([0, 1], np.uint64))
        return np.searchsorted(places, removed["place"][first:stop]), removed[first:stop]

    def without(self, dropped: NDArray[np.int64]) -> Batch:
        """The batch without the documents at these positions."""
        kept = np.setdiff1d(np.arange(len(self.texts)), dropped)
        return Batch(
            files=self.files[kept],
            rows=self.rows[kept],
            ids=[self.ids[at] for at in kept],
            texts=[self.texts[at] for at in kept],
        )


def read_batch(workspace: Workspace, name: str) -> Batch:
    """Read a batch that a `DocumentsTask` wrote."""
    with workspace.opened(name) as path, pa.OSFile(str(path), "rb") as source:
        table = pa.ipc.open_file(source).read_all()
    return Batch(
        files=table["file"].to_numpy().astype(np.uint32),
        rows=table["row"].to_numpy().astype(np.int64),
        ids=table["id"].to_pylist(),
        texts=table["text"].to_pylist(),
    )
