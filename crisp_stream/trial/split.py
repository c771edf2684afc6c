"""The texts of a trial: a sample of the corpus, examples of the task, and held-out documents of both.

The sha256 of a text decides, so the order of documents does not matter, and no text stands in two files. A corpus is
read in one pass, its files in an order that their names' hashes give, and of what was read by the time allowed the
texts with the smallest digests are kept, up to a number of characters.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crisp_stream.corpora.files import (
    Corpora,
    smallest_digests,
    text_digest,
    uniform_of_text,
    write_corpora,
)
from crisp_stream.errors import InputError
from crisp_stream.processes import Log
from crisp_stream.trial.sizes import EXAMPLES, HELD_OUT
from crisp_stream.writers.documents.bad_records import ANY_NUMBER, BadRecords
from crisp_stream.writers.documents.documents import read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files

_HELD_OUT_SHARE = 0.06
"""Share of the corpus that is held out; of the task it is up to a third."""
_FEWEST_EXAMPLES = 24
"""Documents of a task from which there is a verdict: 16 examples and 8 that are held out."""
_LEAST_CHARACTERS = 200_000
"""Characters of a corpus below which there are no clusters to choose from."""


@dataclass(frozen=True, kw_only=True)
class TrialInputs:
    """What a user names."""

    corpus: str
    """File, folder, prefix or glob of documents."""
    task: str
    """File of examples, or of multiple-choice questions."""
    text_column: str = "text"
    """Key or column of the text, of both."""
    questions: bool = False
    """Whether the task's file holds questions."""


@dataclass
class _Kept:
    """Texts with the smallest digests, up to a number of characters."""

    characters: int
    total: int = 0

    def __post_init__(self) -> None:
        self._largest: list[tuple[int, str]] = []
        self._digests: set[str] = set()

    def add(self, text: str) -> None:
        digest = text_digest(text)
        if digest in self._digests:
            return
        self._digests.add(digest)
        heapq.heappush(self._largest, (-int(digest, 16), text))
        self.total += len(text)
        while self.total > self.characters and len(self._largest) > 1:
            negated, gone = heapq.heappop(self._largest)
            self._digests.discard(f"{-negated:064x}")
            self.total -= len(gone)

    @property
    def texts(self) -> list[str]:
        """In the order of their digests."""
        return [text for _, text in sorted(self._largest, reverse=True)]


def split_texts(inputs: TrialInputs, folder: Path, *, characters: int, seconds: float, log: Log) -> Corpora:
    """Choose the texts of a trial and write them.

    Args:
        inputs: what the user named.
        folder: of the four files.
        characters: of the corpus, about.
        seconds: after which no more of the corpus is read.
        log: says what was read.

    Raises:
        InputError: too little text, or a bad file.
        StorageError: a file cannot be read.
    """
    task = _task_rows(inputs)
    tested = smallest_digests(task, min(HELD_OUT, len(task) // 3))
    learnt = smallest_digests(task.keys() - tested, EXAMPLES)
    held_out, kept, documents = _corpus(inputs, characters, seconds, log)
    if kept.total < _LEAST_CHARACTERS:
        raise InputError(
            f"{inputs.corpus}: must hold {_LEAST_CHARACTERS:,} characters of text at least, for clusters to choose "
            f"from, got {kept.total:,} in {documents:,} documents. Name a larger corpus."
        )
    return write_corpora(
        folder,
        {
            "generalist": [{"text": text} for text in kept.texts],
            "generalist_test": [{"text": text} for text in held_out.texts[:HELD_OUT]],
            "specialist": [row for text, row in task.items() if text in learnt],
            "specialist_test": [row for text, row in task.items() if text in tested],
        },
    )


def _task_rows(inputs: TrialInputs) -> dict[str, dict[str, object]]:
    """Rows of the task's files by their texts. Raises InputError: too few."""
    if inputs.questions:
        from crisp_stream.examples.question_files import read_questions

        asked = read_questions(inputs.task)
        rows: dict[str, dict[str, object]] = {
            each.text(each.answer): {
                "question": each.question,
                "choices": list(each.choices),
                "answer": each.answer,
                **({} if each.topic is None else {"topic": each.topic}),
            }
            for each in asked
        }
    else:
        rows = {text: {"text": text} for text in _documents(inputs.task, inputs.text_column)}
    if len(rows) < _FEWEST_EXAMPLES:
        what = "questions" if inputs.questions else "documents"
        raise InputError(
            f"{inputs.task}: must hold {_FEWEST_EXAMPLES} different {what} of the task at least, to learn from and to "
            f"judge by, got {len(rows)}. Add some."
        )
    return rows


def _documents(source: str, text_column: str) -> Iterator[str]:
    settings = DocumentSettings(text_field=text_column)
    for file in list_input_files([source], settings):
        yield from (document.text for document in read_input(file, settings, DropCounts()))


def _corpus(inputs: TrialInputs, characters: int, seconds: float, log: Log) -> tuple[_Kept, _Kept, int]:
    """Held-out texts, texts of the sample, and how many documents were read."""
    settings = DocumentSettings(text_field=inputs.text_column)
    files = sorted(list_input_files([inputs.corpus], settings), key=lambda file: text_digest(file.url))
    kept, held_out = _Kept(characters), _Kept(max(characters // 4, 1 << 20))
    documents, begun, read, is_all = 0, time.monotonic(), 0, True
    dropped, bad = DropCounts(), BadRecords(ANY_NUMBER)
    for file in files:
        read += 1
        for document in read_input(file, settings, dropped, bad):
            documents += 1
            (held_out if uniform_of_text(document.text) < _HELD_OUT_SHARE else kept).add(document.text)
            is_all = time.monotonic() - begun < seconds
            if not is_all:
                break
        if not is_all:
            break
    where = f"all {len(files):,} files" if is_all else f"the first {read:,} of {len(files):,} files"
    log(f"{inputs.corpus}: a sample of {documents:,} documents of {where}, read in {time.monotonic() - begun:.0f} s")
    if bad.counts:
        log(f"warning: {bad.counts.total():,} bad records were left out, such as\n{bad.shown()}")
    return held_out, kept, documents
