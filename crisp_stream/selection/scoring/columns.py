"""A column of the documents as a score of windows: the mean over a window's tokens of its documents' values.

A dataset keeps no columns, so the records that it was written from are read again: provenance names file and number of
every document. Files are read in parallel, one task each, and keep 8 bytes per record; then one pass over the tables of
documents and the places of windows brings the values to the windows, 8 bytes per window in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.provenance import DocumentsTable, PartSpans, documents_tables, read_places, source_names
from crisp_stream.processes import Log
from crisp_stream.selection.scoring.scorers import ArrayScorer
from crisp_stream.writers.documents.documents import read_field
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile, Layout
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.engine.tasks import Record, Runner, Task
from crisp_stream.writers.engine.workspace import Workspace

_VALUES = "values.npy"


@dataclass(frozen=True, kw_only=True)
class ColumnTask(Task):
    """Read a column of one file of records."""

    stage: ClassVar[str] = "columns"
    title: ClassVar[str] = "reading the column"

    input_file: InputFile
    document_settings: DocumentSettings

    def settings(self) -> Any:
        """The file with its version, and how it is read."""
        return [asdict(self.input_file), asdict(self.document_settings)]

    def make(self) -> Record:
        """Write a number for each record, NaN where it has none."""
        values = [_number(value) for value in read_field(self.input_file, self.document_settings)]
        self.workspace.save_array(self.file(_VALUES), np.array(values, np.float64))
        size = self.workspace.store.object_bytes(self.file(_VALUES))
        return {"num_units": len(values), "files": {self.file(_VALUES): size}}


def _number(value: Any) -> float:
    """A value as a number: of a list of one [start, end, number], as quality signals of RedPajama-v2 are, the last of
    them; NaN where it is none."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and len(value[0]) == 3:
        value = value[0][2]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool | int | float):
        with contextlib.suppress(OverflowError):
            return float(value) if math.isfinite(value) else math.nan
    return math.nan


def column_scorer(
    dataset: Dataset,
    column: str,
    records: Sequence[str],
    *,
    layout: Layout,
    missing: float | None,
    runner: Runner,
    workspace: Workspace,
    log: Log,
) -> ArrayScorer:
    """Read a column of the records that a dataset was written from, and bring it to the windows.

    Args:
        records: inputs of the write (and of appends), or copies of them under the same names.
        missing: number of documents that have none; None: they are an error.

    Raises:
        InputError: files that are not those of the dataset, documents without a number. FormatError, StorageError.
    """
    tables, names = documents_tables(dataset), source_names(dataset)
    settings = DocumentSettings(text_field=column, layout=layout)
    listed = {file.name: file for file in list_input_files(records, settings)}
    tasks: dict[int, ColumnTask] = {
        number: ColumnTask(
            workspace=workspace, number=number, inputs=(), input_file=listed[name], document_settings=settings
        )
        for number, name in enumerate(names)
        if name in listed
    }
    if not tasks:
        raise InputError(
            f"--records: must be the files that {dataset.root} was written from, which are called "
            f"{', '.join(names[:3])}{' …' * (len(names) > 3)}, got {', '.join(list(listed)[:3])}. Name those."
        )
    runner.run(list(tasks.values()), unit="records")
    values = _Values(column=column, names=names, tasks=tasks, missing=missing, root=dataset.root)
    scores = _by_window(dataset, values, tables)
    log(f"column {column}: {values.num_documents:,} documents, {values.num_missing:,} of them without a number")
    name = f"columns/{hashlib.sha256(scores.tobytes()).hexdigest()[:16]}.scores.npy"
    workspace.save_array(name, scores)
    [path] = workspace.kept(name)
    return ArrayScorer(
        path=str(path),
        name=column,
        method="column",
        sha256=hashlib.sha256(scores.tobytes()).hexdigest(),
        settings=() if missing is None else (("missing", missing),),
    )


class _Values:
    """The values of documents, by their place in the input; files are read when their first document comes."""

    def __init__(
        self, *, column: str, names: list[str], tasks: dict[int, ColumnTask], missing: float | None, root: str
    ) -> None:
        self._column, self._names, self._tasks, self._missing, self._root = column, names, tasks, missing, root
        self._files: dict[int, NDArray[np.float64]] = {}
        self.num_documents = self.num_missing = 0

    def of(self, spans: PartSpans) -> NDArray[np.float64]:
        """[num_documents] of a part."""
        values = np.empty(len(spans.rows))
        for file in np.unique(spans.files).tolist():
            own = spans.files == file
            values[own] = self._of_file(file, spans.rows[own])
        self.num_documents += len(values)
        without = np.isnan(values)
        if without.any():
            at = int(np.argmax(without))
            if self._missing is None:
                raise InputError(
                    f"document {spans.rows[at]:,} of {self._names[int(spans.files[at])]}: must have a number in the "
                    f"column {self._column!r}, but has none. Name another column, or give a number for such documents "
                    "with --missing."
                )
            self.num_missing += int(without.sum())
            values[without] = self._missing
        return values

    def _of_file(self, file: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        name = self._names[file]
        task = self._tasks.get(file)
        if task is None:
            raise InputError(
                f"--records: must hold all files that {self._root} was written from, but {name} is missing. Name it."
            )
        if file not in self._files:
            self._files = {file: task.workspace.load_array(task.file(_VALUES))}
        known = self._files[file]
        if rows.max() >= len(known):
            raise InputError(
                f"--records: {name} must be the file that {self._root} was written from, but holds {len(known):,} "
                f"records, and the dataset has document {int(rows.max()):,} of it. Name the right one."
            )
        return known[rows]


def _by_window(dataset: Dataset, values: _Values, tables: Sequence[DocumentsTable]) -> NDArray[np.float64]:
    """[num_windows], the mean of the values over the tokens of each window."""
    window_tokens = dataset.manifest.window_tokens
    pieces: dict[int, NDArray[np.float64]] = {}
    for table in tables:
        with contextlib.closing(table):
            for spans in table.parts():
                pieces[spans.part] = _by_place(spans, values.of(spans), window_tokens)
    scores = np.empty(dataset.manifest.num_windows)
    numbers = np.array(sorted(pieces), np.int64)
    firsts = np.cumsum([0, *(len(pieces[number]) for number in numbers.tolist())])
    joined = np.concatenate([pieces.pop(number) for number in numbers.tolist()])
    for shard, row in enumerate(dataset.shards):
        places = read_places(dataset, shard, 0, row.num_windows)
        at = np.searchsorted(numbers, places["part"].astype(np.int64))
        first = int(dataset.first_window_per_shard[shard])
        known = numbers[np.minimum(at, len(numbers) - 1)] == places["part"]
        index = firsts[np.minimum(at, len(numbers) - 1)] + places["place"]
        if not known.all() or (index >= firsts[np.minimum(at, len(numbers) - 1) + 1]).any():
            raise FormatError(f"{dataset.root}: windows of {row.path} stand in no table of documents. Restore it.")
        scores[first : first + row.num_windows] = joined[index]
    return scores


def _by_place(spans: PartSpans, values: NDArray[np.float64], window_tokens: int) -> NDArray[np.float64]:
    """[num_places] of a part, the mean of its documents' values over the tokens of each place; NaN without any."""
    first, count = spans.first_tokens, spans.num_tokens
    begins, ends = first // window_tokens, (first + np.maximum(count, 1) - 1) // window_tokens
    repeats = ends - begins + 1
    document = np.repeat(np.arange(len(first)), repeats)
    place = np.arange(len(document)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + begins[document]
    start = np.maximum(first[document], place * window_tokens)
    stop = np.minimum(first[document] + count[document], (place + 1) * window_tokens)
    weights = np.maximum(stop - start, 0).astype(np.float64)
    num_places = int(ends.max()) + 1
    sums = np.bincount(place, weights=weights * values[document], minlength=num_places)
    tokens = np.bincount(place, weights=weights, minlength=num_places)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / tokens
