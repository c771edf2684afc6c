"""Which examples of evaluation sets have a part in a dataset: found by n-grams, kept as a small Parquet file.

An example is contaminated when any 13 consecutive words of it stand in a window of the dataset: the rule of GPT-3
(Brown et al. 2020, Appendix C) by which the writer removes documents (`writers.decontamination`), asked the other way
round. Every match is confirmed word by word. Examples shorter than 13 words are looked for as a whole; below 8 words
they are not looked for, and said to be unchecked. Words: case folded, without punctuation.

Windows cut documents. Where the dataset has provenance, and not too many windows for that to be cheap, the text across
their borders is looked through, too (`window_borders`). Elsewhere words across a border are not seen: of a copy of at
least 26 words at least 13 stand on one side, so it is found; a single run of 13 words is missed with a chance of about
12 in the number of words of a window (1.6 % at 1,024 tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import InputError
from crisp_stream.evaluation.question_sets import TASKS, open_question_set
from crisp_stream.evaluation.window_ngrams import NOT_FOUND, find_in_windows
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.parquet import RecordKind, load_record, numbers, save_record
from crisp_stream.processes import num_processes
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
_MIN_WORDS = 8
_BATCH_EXAMPLES = 4096
_FACTS = ("dataset", "fingerprint", "ngram", "min_words", "num_windows", "text_bytes", "num_borders", "files")


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """The examples of some evaluation files, and whether a part of each stands in a dataset."""

    dataset: str
    """Name of the dataset's folder."""
    fingerprint: str
    """Of the dataset."""
    ngram: int
    """Words of a match."""
    min_words: int
    """Words that a shorter text must have to be looked for as a whole."""
    num_windows: int
    """Windows read."""
    text_bytes: int
    """UTF-8 bytes of their text."""
    num_borders: int
    """Borders of windows that were looked across; 0 where only windows were looked through."""
    files: list[str]
    """Names of the evaluation files and tasks, in the order given."""
    file: NDArray[np.int64]
    """[num_examples], index into `files`."""
    row: NDArray[np.int64]
    """[num_examples], line of a JSONL file, row of a Parquet file, question of a task, from 1."""
    example_ids: NDArray[np.uint64]
    """[num_examples], `example_hash` of a document, `question_hash` of a question."""
    checked: NDArray[np.bool_]
    """[num_examples], False where the example is too short to be looked for."""
    contaminated: NDArray[np.bool_]
    """[num_examples], whether any of its n-grams stands in the dataset."""
    shares: NDArray[np.float64]
    """[num_examples], share of its different n-grams that do."""
    words: list[str | None]
    """[num_examples], the first n-gram of the example that does."""
    windows: NDArray[np.int64]
    """[num_examples], the first window with these words, or in which they begin; -1 without any."""

    @property
    def num_examples(self) -> int:
        """Examples of all files."""
        return len(self.example_ids)

    def flags(self, example_ids: ArrayLike) -> NDArray[np.bool_]:
        """Whether each example is contaminated; those too short to be looked for are not.

        Args:
            example_ids: [num_asked], uint64, as results hold them.

        Raises:
            InputError: an example that was not among those looked for.
        """
        return self._look_up(example_ids, self.contaminated)

    def too_short(self, example_ids: ArrayLike) -> NDArray[np.bool_]:
        """Whether each example is too short to be looked for; arguments and errors as of `flags`."""
        return ~self._look_up(example_ids, self.checked)

    def _look_up(self, example_ids: ArrayLike, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
        asked = np.asarray(example_ids, np.uint64)
        known, at = np.unique(self.example_ids, return_inverse=True)
        combined = np.zeros(len(known), np.bool_)
        np.logical_or.at(combined, at, values)
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        missing = int((known[place] != asked).sum())
        if missing:
            raise InputError(
                f"contamination: every example must be among those that were looked for in {self.dataset}, got "
                f"{missing:,} of {len(asked):,} that are in none of {', '.join(self.files)}. Check their file: "
                "crisp-stream contamination ROOT FILE --out contamination.parquet"
            )
        return combined[place]

    def dataset_warning(self, fingerprint: str | None) -> str | None:
        """What to say of a model that was trained on the dataset with this fingerprint; None where it is this one."""
        if fingerprint == self.fingerprint:
            return None
        trained = "on a dataset it does not name" if fingerprint is None else f"on dataset {fingerprint[:12]}"
        return (
            f"warning: contamination was looked for in {self.dataset} ({self.fingerprint[:12]}), but the model was "
            f"trained {trained}. Its contaminated examples may be others."
        )

    def save(self, path: str) -> None:
        """Write the file, whole or not at all, replacing an older one. Raises StorageError, InputError."""
        check_path(path)
        columns = {
            "file": pa.array([self.files[file] for file in self.file.tolist()], pa.string()),
            "file_number": pa.array(self.file, pa.int64()),
            "row": pa.array(self.row, pa.int64()),
            "example": pa.array(self.example_ids, pa.uint64()),
            "checked": pa.array(self.checked, pa.bool_()),
            "contaminated": pa.array(self.contaminated, pa.bool_()),
            "share": pa.array(self.shares, pa.float64()),
            "words": pa.array(self.words, pa.string()),
            "window": pa.array(self.windows, pa.int64()),
        }
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
            return cls(
                **{key: record.facts[key] for key in _FACTS},
                file=numbers(table["file_number"], pa.int64()),
                row=numbers(table["row"], pa.int64()),
                example_ids=numbers(table["example"], pa.uint64()),
                checked=np.array(table["checked"].to_pylist(), np.bool_),
                contaminated=np.array(table["contaminated"].to_pylist(), np.bool_),
                shares=numbers(table["share"], pa.float64()),
                words=table["words"].to_pylist(),
                windows=numbers(table["window"], pa.int64()),
            )


def check_contamination(
    root: str,
    files: Sequence[str],
    *,
    text_column: str = "text",
    ngram: int = 13,
    generation: int | None = None,
    processes: int | None = None,
    log: Callable[[str], None] = print,
) -> Contamination:
    """Look for the examples of evaluation files in all windows of a dataset.

    Args:
        root: of the dataset, local or in object storage.
        files: of documents or questions, see `read_evaluation_examples`; or tasks, TASK or TASK=FILE, as
            `open_question_set` reads them.
        text_column: key or column of documents.
        ngram: words of a match, 2 to 64; texts that are shorter are looked for as a whole from 8 words on.
        generation: of a dataset that has grown; the newest when None.
        processes: worker processes; one per core when None.
        log: receives progress.

    Raises:
        InputError: a file that cannot be read, no example long enough to be looked for, a number out of range.
        FormatError, CorruptDataError: the dataset is damaged. StorageError: the storage refused or failed.
    """
    workers = num_processes(processes)
    dataset = open_dataset(root, generation=generation)
    if not files:
        raise InputError("contamination: at least one evaluation file is needed, got none. Name it.")
    held = [(number, example) for number, file in enumerate(files) for example in _examples(file, text_column)]
    texts = ((example.source, example.row, text) for _, example in held for text in example.texts)
    ngrams = EvaluationNgrams.build(texts, ngram=ngram, min_words=min(_MIN_WORDS, ngram))
    places = find_in_windows(dataset, ngrams, processes=workers, log=log)
    judged = list(_judged([example for _, example in held], ngrams, places.first_window))
    return Contamination(
        dataset=file_name(dataset.root.rstrip("/")),
        fingerprint=dataset.manifest.fingerprint,
        ngram=ngrams.ngram,
        min_words=ngrams.min_words,
        num_windows=places.num_windows,
        text_bytes=places.text_bytes,
        num_borders=places.num_borders,
        files=[file.partition("=")[0] if _is_task(file) else file_name(file) for file in files],
        file=np.array([number for number, _ in held], np.int64),
        row=np.array([example.row for _, example in held], np.int64),
        example_ids=np.array([example.example_id for _, example in held], np.uint64),
        checked=np.array([each.num_ngrams > 0 for each in judged], np.bool_),
        contaminated=np.array([each.words is not None for each in judged], np.bool_),
        shares=np.array([each.num_found / max(each.num_ngrams, 1) for each in judged], np.float64),
        words=[each.words for each in judged],
        windows=np.array([each.window for each in judged], np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class _Judged:
    num_ngrams: int
    num_found: int
    words: str | None
    window: int


def _examples(source: str, text_column: str) -> Iterator[EvaluationExample]:
    """The examples of a file, or of a task of the paper.

    Plain text comes in the pieces in which it is read as documents everywhere else.
    """
    if _is_task(source):
        found = open_question_set(source)
        for row, question in enumerate(found.questions, start=1):
            yield EvaluationExample.of_question(found.name, row, question)
    elif ".txt" in PurePosixPath(source).suffixes:
        for row, text in enumerate(read_documents([source], counts=DropCounts()), start=1):
            yield EvaluationExample(file_name(source), row, [text], None)
    else:
        yield from read_evaluation_examples(source, text_column=text_column)


def _is_task(source: str) -> bool:
    task, separator, _ = source.partition("=")
    return task in TASKS and (bool(separator) or not Path(source).exists())


def _judged(
    examples: list[EvaluationExample], ngrams: EvaluationNgrams, first_window: NDArray[np.int64]
) -> Iterator[_Judged]:
    for start in range(0, len(examples), _BATCH_EXAMPLES):
        batch = examples[start : start + _BATCH_EXAMPLES]
        of_text = iter(ngrams.ngrams_of([text for example in batch for text in example.texts]))
        for example in batch:
            own = np.concatenate([next(of_text) for _ in example.texts])
            found = own[first_window[own] != NOT_FOUND]
            yield _Judged(
                num_ngrams=len(np.unique(own)),
                num_found=len(np.unique(found)),
                words=ngrams.words_of_ngram(int(found[0])) if len(found) else None,
                window=int(first_window[found[0]]) if len(found) else -1,
            )


def check_path(path: str) -> None:
    """Raise InputError where `Contamination.save` cannot write to the path by its name."""
    if not path.endswith(".parquet"):
        raise InputError(f"{path}: contaminated examples are kept in a file ending in .parquet. Name one.")
