"""Contaminated examples: those of evaluation sets that have a part in a dataset, kept as a small Parquet file.

An example is contaminated when any 13 consecutive words of it stand in a window of the dataset. This is the rule of
GPT-3 (Brown et al. 2020, Appendix C) by which the writer removes documents (`writers.cleaning.decontamination`), turned
round. Every match is confirmed word by word. Examples shorter than 13 words are searched for as a whole; below 8 words
they are not searched for, and count as unchecked. Words are case folded, without punctuation.

Windows cut documents. Where the dataset has provenance, and not too many windows for that to be cheap, the text across
their borders is searched, too (`window_borders`). Elsewhere words across a border are missed. A copy of at least 26
words is still detected, because at least 13 of them stand on one side. A single run of 13 words is missed with a chance
of about 12 in the number of words of a window (1.6 % at 1,024 tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import InputError
from crisp_stream.evaluation.question_sets import TASKS, open_question_set
from crisp_stream.evaluation.window_ngrams import NOT_FOUND, find_in_windows
from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.parquet import RecordKind, load_record, numbers, save_record
from crisp_stream.processes import Log, num_processes
from crisp_stream.storage.store import file_name
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.evaluation_texts import EvaluationExample, read_evaluation_examples
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import DropCounts

_RECORD = RecordKind(
    name="a file of contaminated examples",
    key=b"crisp_stream.contamination",
    version_key="contamination_version",
    version=1,
    remedy="`crisp-stream contamination` writes them.",
    max_rows=1 << 28,
)
_BATCH_EXAMPLES = 4096
_FACTS = ("dataset", "fingerprint", "ngram", "min_words", "num_windows", "text_bytes", "num_borders", "files")
_COLUMNS = {
    "file_number": ("file", pa.int64()),
    "row": ("row", pa.int64()),
    "example": ("example_ids", pa.uint64()),
    "checked": ("checked", pa.bool_()),
    "contaminated": ("contaminated", pa.bool_()),
    "share": ("shares", pa.float64()),
    "words": ("words", pa.string()),
    "window": ("windows", pa.int64()),
}
"""Columns of the file, the fields of `Contamination` that they hold, and their types."""


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """Examples of evaluation files, and whether a part of each stands in a dataset."""

    dataset: str
    """Name of the dataset's folder."""
    fingerprint: str
    """Fingerprint of the dataset."""
    ngram: int
    """Words of a match."""
    min_words: int
    """Words that a text shorter than a match must have to be searched for as a whole."""
    num_windows: int
    """Windows read."""
    text_bytes: int
    """UTF-8 bytes of their text."""
    num_borders: int
    """Borders of windows that were searched; 0 where only windows were."""
    files: list[str]
    """Names of the evaluation files and tasks, in the order of the command."""
    file: NDArray[np.int64]
    """[num_examples], index into `files`."""
    row: NDArray[np.int64]
    """[num_examples], line of a JSONL file, row of a Parquet file, question of a task, from 1."""
    example_ids: NDArray[np.uint64]
    """[num_examples], `example_hash` of a document, `question_hash` of a question."""
    checked: NDArray[np.bool_]
    """[num_examples], False where the example is too short to be searched for."""
    contaminated: NDArray[np.bool_]
    """[num_examples], whether any of its n-grams stands in the dataset."""
    shares: NDArray[np.float64]
    """[num_examples], share of its different n-grams that stand in the dataset."""
    words: list[str | None]
    """[num_examples], the first n-gram of the example that stands in the dataset."""
    windows: NDArray[np.int64]
    """[num_examples], the first window with these words, or in which they begin; -1 without any."""

    @property
    def num_examples(self) -> int:
        """Number of examples of all files."""
        return len(self.example_ids)

    def flags(self, example_ids: ArrayLike) -> NDArray[np.bool_]:
        """Look up whether each example is contaminated; those too short to be searched for are not.

        Raises:
            InputError: an example that is in none of the evaluation files.
        """
        judged = np.asarray(example_ids, np.uint64)
        known, at = np.unique(self.example_ids, return_inverse=True)
        contaminated = np.zeros(len(known), np.bool_)
        np.logical_or.at(contaminated, at, self.contaminated)
        place = np.minimum(np.searchsorted(known, judged), len(known) - 1)
        missing = int((known[place] != judged).sum())
        if missing:
            raise InputError(
                f"contamination: every judged example must have been searched for in {self.dataset}, got {missing:,} "
                f"of {len(judged):,} that are in none of {', '.join(self.files)}. Search for their file, too: "
                "crisp-stream contamination ROOT FILE… --out contamination.parquet"
            )
        return contaminated[place]

    def dataset_warning(self, *fingerprints: str) -> str | None:
        """Warn of a model that was trained on other datasets (their fingerprints); None where it is this one alone."""
        others = [fingerprint[:12] for fingerprint in fingerprints if fingerprint != self.fingerprint]
        if fingerprints and not others:
            return None
        also = "also " if len(others) < len(fingerprints) else ""
        trained = f"{also}on dataset {', '.join(others)}" if others else "on a dataset it does not name"
        return (
            f"warning: contamination was measured in {self.dataset} ({self.fingerprint[:12]}), but the model was "
            f"trained {trained}. Its contaminated examples may be others. If that is an older generation of the same "
            "dataset, search it: crisp-stream contamination ROOT FILE… --generation N."
        )

    def save(self, path: str) -> None:
        """Write the file, whole or not at all, replacing an older one. Raises StorageError, InputError."""
        check_path(path)
        columns = {"file": pa.array([self.files[file] for file in self.file.tolist()], pa.string())}
        columns |= {column: pa.array(getattr(self, name), kind) for column, (name, kind) in _COLUMNS.items()}
        save_record(path, _RECORD, columns, {key: getattr(self, key) for key in _FACTS})

    @classmethod
    def load(cls, path: str) -> Contamination:
        """Read a file that `save` wrote.

        Raises:
            FormatError: another file, of a newer version, or damaged. StorageError: the storage failed.
        """
        check_path(path)
        with load_record(path, _RECORD) as record:
            table = record.table()
            values = {name: _values(table[column], kind) for column, (name, kind) in _COLUMNS.items()}
            return cls(**{key: record.facts[key] for key in _FACTS}, **values)


def _values(column: pa.ChunkedArray, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return column.to_pylist()
    return np.array(column.to_pylist(), np.bool_) if pa.types.is_boolean(kind) else numbers(column, kind)


def check_contamination(
    root: str,
    files: Sequence[str],
    *,
    text_column: str = "text",
    keys: QuestionKeys | None = None,
    ngram: int = 13,
    generation: int | None = None,
    processes: int | None = None,
    log: Log = print,
) -> Contamination:
    """Search all windows of a dataset for the examples of evaluation files.

    Args:
        files: documents or questions, see `read_evaluation_examples`; or tasks, TASK or TASK=FILE, as
            `open_question_set` reads them.
        keys: keys of questions in a layout that is not known.
        ngram: words of a match, 2 to 64; texts that are shorter are searched for as a whole from 8 words on.
        generation: generation of a dataset that has grown; the newest when None.
        processes: worker processes; one per core when None.

    Raises:
        InputError: a file that cannot be read, no example long enough to be searched for, a number out of range.
        FormatError, CorruptDataError: the dataset is damaged. StorageError: the storage refused or failed.
    """
    workers = num_processes(processes)
    dataset = open_dataset(root, generation=generation)
    if not files:
        raise InputError("contamination: at least one evaluation file is needed, got none. Name one.")
    numbered = [
        (number, example) for number, file in enumerate(files) for example in _examples(file, text_column, keys)
    ]
    examples = [example for _, example in numbered]
    texts = ((example.source, example.row, text) for example in examples for text in example.texts)
    ngrams = EvaluationNgrams.build(texts, ngram=ngram)
    places = find_in_windows(dataset, ngrams, processes=workers, log=log)
    distinct, matched, first = np.array(list(_match(examples, ngrams, places.first_window))).reshape(-1, 3).T
    return Contamination(
        dataset=file_name(dataset.root.rstrip("/")),
        fingerprint=dataset.manifest.fingerprint,
        ngram=ngrams.ngram,
        min_words=ngrams.min_words,
        num_windows=places.num_windows,
        text_bytes=places.text_bytes,
        num_borders=places.num_borders,
        files=[file.partition("=")[0] if _is_task(file) else file_name(file) for file in files],
        file=np.array([number for number, _ in numbered], np.int64),
        row=np.array([example.row for example in examples], np.int64),
        example_ids=np.array([example.example_id for example in examples], np.uint64),
        checked=distinct > 0,
        contaminated=first >= 0,
        shares=matched / np.maximum(distinct, 1),
        words=[ngrams.words_of_ngram(ngram) if ngram >= 0 else None for ngram in first.tolist()],
        windows=np.where(first >= 0, places.first_window[first], -1),
    )


def _examples(source: str, text_column: str, keys: QuestionKeys | None) -> Iterator[EvaluationExample]:
    """Read the examples of a file, or of a task of the paper.

    Plain text comes in the pieces in which it is read as documents everywhere else.
    """
    if _is_task(source):
        task = open_question_set(source, keys=keys)
        for row, question in enumerate(task.questions, start=1):
            yield EvaluationExample.of_question(task.name, row, question)
    elif ".txt" in PurePosixPath(source).suffixes:
        for row, text in enumerate(read_documents([source], counts=DropCounts()), start=1):
            yield EvaluationExample(file_name(source), row, [text], None)
    else:
        yield from read_evaluation_examples(source, text_column=text_column, keys=keys)


def _is_task(source: str) -> bool:
    task, separator, _ = source.partition("=")
    return task in TASKS and (bool(separator) or not Path(source).exists())


def _match(
    examples: list[EvaluationExample], ngrams: EvaluationNgrams, first_window: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """Count the different n-grams of each example, those of them in the dataset, and name the first; -1 without any."""
    for start in range(0, len(examples), _BATCH_EXAMPLES):
        batch = examples[start : start + _BATCH_EXAMPLES]
        of_text = iter(ngrams.ngrams_of([text for example in batch for text in example.texts]))
        for example in batch:
            numbers = np.concatenate([next(of_text) for _ in example.texts])
            matched = numbers[first_window[numbers] != NOT_FOUND]
            yield len(np.unique(numbers)), len(np.unique(matched)), int(matched[0]) if len(matched) else -1


def check_path(path: str) -> None:
    """Raise InputError where `Contamination.save` cannot write to the path by its name."""
    if not path.endswith(".parquet"):
        raise InputError(f"{path}: contaminated examples are kept in a file ending in .parquet. Name one.")
