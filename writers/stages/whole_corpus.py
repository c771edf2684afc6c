"""Stages between documents and windows, which look at all documents at once: evaluation sets, duplicates, tokenizer;
and the LSI, which looks at all windows."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.format.keys import window_hashes
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.evaluation_texts import read_evaluation_texts
from crisp_stream.writers.documents.documents import check_unchanged
from crisp_stream.writers.documents.inputs import InputFile
from crisp_stream.writers.embedding.lsi import LSI_FILES, LsiEncoder
from crisp_stream.writers.embedding.probe import ENCODER_NAME, EncoderFile
from crisp_stream.writers.engine.tasks import Record, Task, file_sizes, write_files
from crisp_stream.writers.given_tokenizer import GivenTokenizer
from crisp_stream.writers.stages.batches import DocumentsTask, read_batch
from crisp_stream.writers.stages.removal.duplicates import Duplicates, RemovedDocuments
from crisp_stream.writers.stages.runs import part_places
from crisp_stream.writers.stages.windows import TOKENIZER_NAMES, Part, WindowSettings, texts_in_batches, tokenizer_of
from crisp_stream.writers.windows import train_tokenizer

PROBE_DOCUMENTS = 64
PROBE_CHARACTERS = 1 << 20
LSI_WINDOWS = 50_000
"""Windows that an LSI is fitted on at most, about; chosen by a hash where there are more."""
LSI_TOKENS = 20_000_000
"""Tokens of these windows at most, about: 20,000 windows of 1,024 tokens, whose text and words fit in 0.5 GB."""
_LSI_SALT = 2


@dataclass(frozen=True, kw_only=True)
class EvaluationTask(Task):
    """Index the n-grams of evaluation sets, which no document may share."""

    stage: ClassVar[str] = "evaluation"
    title: ClassVar[str] = "reading evaluation sets"
    version: ClassVar[int] = 2

    files: tuple[InputFile, ...]
    words_per_gram: int
    keys: str | None = None
    """Keys of questions in a layout that is not known, as `QuestionKeys.parse` reads them."""

    def settings(self) -> Any:
        """The files, and n; and keys where there are some."""
        return [[asdict(file) for file in self.files], self.words_per_gram, *([self.keys] if self.keys else [])]

    def make(self) -> Record:
        """Write the index."""
        keys = QuestionKeys.parse(self.keys)
        texts = (text for file in self.files for text in read_evaluation_texts(file.url, keys=keys))
        ngrams = EvaluationNgrams.build(texts, ngram=self.words_per_gram)
        for file in self.files:
            check_unchanged(file)
        names = list(map(str, EvaluationNgrams.files(self.key)))
        with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
            paths = [Path(scratch) / Path(name).name for name in names]
            ngrams.save(paths)
            for name, path in zip(names, paths, strict=True):
                self.workspace.write(name, path.read_bytes())
        return {"num_units": ngrams.num_ngrams, "unchecked": ngrams.unchecked, "files": file_sizes(self, *names)}


@dataclass(frozen=True, kw_only=True)
class BatchName:
    """A batch of documents, and what the selection drops of it."""

    name: str
    first_document: int
    """Number of its first document in its group."""
    num_documents: int
    num_characters: int
    group: int
    """Number of its `DocumentsTask`."""
    removed: RemovedDocuments | None
    """What the search for duplicates removes of it, and of documents before and after it."""


class BatchNames(Sequence[BatchName]):
    """All batches in document order, held as rows of 40 bytes; a name is made when it is needed."""

    _ROW = np.dtype(
        [
            *(("group", "<u4"), ("batch", "<u4"), ("first", "<i8")),
            *(("num_documents", "<i8"), ("num_characters", "<i8"), ("longest", "<i8")),
        ]
    )

    def __init__(
        self, tasks: Sequence[DocumentsTask], records: Sequence[Record], duplicates: Duplicates | None
    ) -> None:
        """`tasks` are numbered from 0, and `records` are theirs."""
        self._tasks, self._duplicates = tasks, duplicates
        per_group: list[NDArray[np.void]] = []
        for group, record in enumerate(records):
            documents = np.array(record["documents_per_batch"], np.int64)
            rows = np.zeros(len(documents), self._ROW)
            rows["group"], rows["batch"] = group, np.arange(len(rows))
            rows["first"], rows["num_documents"] = np.cumsum(documents) - documents, documents
            rows["num_characters"], rows["longest"] = record["characters_per_batch"], record["longest_per_batch"]
            per_group.append(rows)
        self._rows = np.concatenate([np.zeros(0, self._ROW), *per_group])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> BatchName: ...
    @overload
    def __getitem__(self, at: slice) -> list[BatchName]: ...
    def __getitem__(self, at: int | slice) -> BatchName | list[BatchName]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        group, batch, first_document, num_documents, num_characters, _ = self._rows[at].tolist()
        return BatchName(
            name=self._tasks[group].batch_file(batch),
            first_document=first_document,
            num_documents=num_documents,
            num_characters=num_characters,
            group=group,
            removed=self._duplicates.of_documents(group, first_document) if self._duplicates else None,
        )

    @property
    def num_characters(self) -> int:
        """Characters of all batches."""
        return int(self._rows["num_characters"].sum())

    def longest_document(self) -> tuple[int, int]:
        """Characters of the longest document of all, and the number of its batch; there is a batch."""
        batch = int(np.argmax(self._rows["longest"]))
        return int(self._rows["longest"][batch]), batch

    def groups(self) -> list[tuple[int, int, int]]:
        """(group, start, stop) of the batches of each group that has some."""
        groups, starts = np.unique(self._rows["group"], return_index=True)
        return list(zip(groups.tolist(), starts.tolist(), [*starts[1:].tolist(), len(self)], strict=True))


def spread(batches: BatchNames, characters: int) -> list[BatchName]:
    """Batches from all over the corpus that together hold about that many characters; all, where there are fewer."""
    total = batches.num_characters
    num_chosen = max(1, min(len(batches), -(-len(batches) * characters // max(total, 1))))
    return [batches[at] for at in sorted({round(at) for at in np.linspace(0, len(batches) - 1, num_chosen)})]


@dataclass(frozen=True, kw_only=True)
class TokenizerTask(Task):
    """Train a tokenizer on text from all over the corpus, or bring a given one; settle how it is used."""

    stage: ClassVar[str] = "tokenizer"
    title: ClassVar[str] = "making the tokenizer"

    given: GivenTokenizer | None
    """None trains."""
    vocab_size: int
    window_tokens: int
    batches: tuple[BatchName, ...]
    """Text to train on, or to compare tiktoken on."""

    def settings(self) -> Any:
        """Values that determine the tokenizer."""
        names = [batch.name for batch in self.batches]
        if self.given is None:
            return [None, self.vocab_size, self.window_tokens, names]
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self.given.files.items()}
        return [digests, names]

    def make(self) -> Record:
        """Write tokenizer.json and tokenizer_config.json below the task's key."""
        with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
            folder = Path(scratch)
            if self.given is not None:
                self.given.save(folder)
            else:
                train_tokenizer(self._texts(), folder, vocab_size=self.vocab_size, window_tokens=self.window_tokens)
            tokenizer = DocumentTokenizer(folder)
            reasons: list[str] = []
            fast = tokenizer.equals_tiktoken(probe_texts(self._texts()), log=reasons.append)
            reasons += filter(None, [tokenizer.unknown_characters()])
            files = {name: (folder / name).read_bytes() for name in TOKENIZER_NAMES if (folder / name).is_file()}
            token_dtype, vocab_size = tokenizer.token_dtype, tokenizer.vocab_size
            return write_files(self, files, vocab_size=vocab_size, token_dtype=token_dtype, fast=fast, reasons=reasons)

    def _texts(self) -> Iterator[str]:
        for batch in self.batches:
            yield from selected_texts(self, batch)


def probe_texts(texts: Iterable[str]) -> list[str]:
    """The first documents, on which tiktoken is compared with the tokenizer; of a large one its beginning."""
    probed, characters = [], 0
    for text in texts:
        probed.append(text[: PROBE_CHARACTERS - characters])
        characters += len(text)
        if characters >= PROBE_CHARACTERS or len(probed) == PROBE_DOCUMENTS:
            break
    return probed


def selected_texts(task: Task, batch: BatchName) -> list[str]:
    """The texts of a batch that the selection keeps."""
    documents = read_batch(task.workspace, batch.name)
    if batch.removed is None:
        return documents.texts
    return documents.without(documents.removed(batch.removed.load(task.workspace))[0]).texts


@dataclass(frozen=True, kw_only=True)
class SampleTask(Task):
    """A task that looks at a sample of all windows."""

    parts: Sequence[Part]
    """None of them where it runs: it reads their list from a file, because they may be millions."""
    windows: WindowSettings
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        """What a process gets that runs it."""
        return {**super().__getstate__(), "parts": ()}

    def write_parts(self) -> None:
        """Write the list of parts, before it runs."""
        keys = np.array([part.windows_key for part in self.parts], "S")
        parts = np.empty(len(keys), [("number", "<u4"), ("num_windows", "<u4"), ("windows_key", keys.dtype)])
        parts["number"] = [part.number for part in self.parts]
        parts["num_windows"] = [part.num_windows for part in self.parts]
        parts["windows_key"] = keys
        self.workspace.save_array(self.file("parts.npy"), parts)

    def part_rows(self) -> NDArray[Any]:
        """[num_parts], number, num_windows and windows_key of each, as `write_parts` wrote them."""
        return self.workspace.load_array(self.file("parts.npy"))

    def chosen_windows(self, share: float, salt: int) -> Iterator[tuple[NDArray[np.uint32], NDArray[Any]]]:
        """Places and tokens of the windows of each part that a hash chooses; parts without one are left out."""
        for part in self.part_rows():
            places = part_places(int(part["number"]), np.arange(part["num_windows"], dtype=np.uint32))
            chosen = window_hashes(places, self.seed + salt) < np.uint64(round(share * (1 << 40)))
            if chosen.any():
                yield places[chosen], self.workspace.load_array(f"{part['windows_key'].decode()}.tokens.npy")[chosen]


@dataclass(frozen=True, kw_only=True)
class LsiTask(SampleTask):
    """Fit an LSI, TF-IDF and SVD, on a sample of all windows."""

    stage: ClassVar[str] = "lsi"
    title: ClassVar[str] = "making the LSI"
    version: ClassVar[int] = 2

    def settings(self) -> Any:
        """Values that choose the windows."""
        return [self.seed, LSI_WINDOWS, LSI_TOKENS, [part.number for part in self.parts]]

    def make(self) -> Record:
        """Write the LSI's files below the task's key."""
        encoder = LsiEncoder.fit(self._texts(), seed=self.seed)
        with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
            encoder.save(Path(scratch))
            files = {name: (Path(scratch) / name).read_bytes() for name in LSI_FILES}
        files[ENCODER_NAME] = EncoderFile.of(encoder).to_json()
        return write_files(self, files, weights_sha256=encoder.weights_sha256)

    def _texts(self) -> list[str]:
        tokenizer = tokenizer_of(self.workspace, self.windows)
        num_windows = max(1, int(self.part_rows()["num_windows"].sum(dtype=np.int64)))
        share = min(1.0, min(LSI_WINDOWS, LSI_TOKENS / self.windows.window_tokens) / num_windows)
        texts: list[str] = []
        for _, tokens in self.chosen_windows(share, _LSI_SALT):
            for some in texts_in_batches(tokens, tokenizer):  # a part may be one large document
                texts += some
        return texts


@dataclass(frozen=True, kw_only=True)
class GivenFilesTask(Task):
    """Files that exist already, brought into the workspace."""

    digest: str
    """Fingerprint of their content."""
    files: dict[str, bytes]

    def settings(self) -> Any:
        """The fingerprint of the files."""
        return self.digest

    def make(self) -> Record:
        """Write them below the task's key."""
        return write_files(self, self.files, weights_sha256=self.digest)


@dataclass(frozen=True, kw_only=True)
class GivenLsiTask(GivenFilesTask):
    """An LSI that exists already."""

    stage: ClassVar[str] = "lsi"
    title: ClassVar[str] = "making the LSI"


@dataclass(frozen=True, kw_only=True)
class GivenTreeTask(GivenFilesTask):
    """A tree that exists already."""

    stage: ClassVar[str] = "tree"
    title: ClassVar[str] = "making the tree"
