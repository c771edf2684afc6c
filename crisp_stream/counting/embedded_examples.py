"""Examples of a task as vectors: embedded here, or read from a file of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.counting.alike import AlikeBuilder, AlikeExamples
from crisp_stream.counting.unknown_words import CorpusWords, UnknownWordsCounter
from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.question_files import learnable_questions, open_questions, read_questions
from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.examples.questions import Question, question_hash
from crisp_stream.examples.sketch import PROVENANCE_KEY, SketchBuilder
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import Packing
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.histograms.histogram import ALIKE_KEY
from crisp_stream.histograms.unlike import UNKNOWN_WORDS_KEY
from crisp_stream.processes import Log, map_unordered, num_processes
from crisp_stream.records.readers import TxtDocuments
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import Layout
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.stages.whole_corpus import probe_texts
from crisp_stream.writers.stages.windows import load_encoder, load_tokenizer, window_pieces, worker_device
from crisp_stream.writers.windows import Cut, cut_documents

EXAMPLE_BATCH_CHARACTERS = 1 << 18
"""Text of one task; a set of examples that fits in one is embedded in this process, which saves starting others."""
_UNIT_TOLERANCE = 0.01
_BATCH_ROWS = 1 << 14
Answers = Literal["right", "all"]
Example = tuple[int, str]
"""Number of an example, from 0, and a text of it."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    tokenizer_folder: Path
    fast_tokenizer: bool
    window_tokens: int
    packing: Packing
    encoder: EncoderChoice


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Windows of some examples."""

    embeddings: NDArray[Any]
    """[num_windows, dim]."""
    examples: NDArray[np.int64]
    """[num_windows], the example that each window begins in."""
    num_examples: int
    """Examples done so far, these included."""
    dropped_tokens: dict[str, int]


@dataclass(frozen=True)
class ExampleSources:
    """The inputs of a task, whose examples can be read several times."""

    inputs: tuple[str, ...]
    text_column: str
    limit: int | None
    answers: Answers | None
    filters: tuple[str, ...]
    layout: Layout
    test_halves: bool = False
    """Questions that are kept to judge by may be read, too: nothing is learnt from them."""
    text_template: str | None = None
    txt_documents: TxtDocuments = "file"
    question_keys: QuestionKeys | None = None
    """Keys of questions in a layout that is not known."""

    def read(self, dropped: DropCounts, sketch: SketchBuilder, alike: AlikeBuilder | None = None) -> Iterator[Example]:
        """Texts, numbered by example; `sketch` counts the examples, `alike` finds those that are like others."""
        if self.answers is None:
            return self._documents(dropped, sketch, alike)
        if self.filters or self.layout != "files" or self.text_template is not None:
            raise InputError("questions: filters, templates and layouts are for documents. Leave them out.")
        if self.answers not in get_args(Answers):
            raise InputError(f"answers: must be right or all, got {self.answers!r}.")
        read = read_questions if self.test_halves else learnable_questions
        questions = (question for path in self.inputs for question in read(path, keys=self.question_keys))
        return self._questions(list(questions), sketch, alike)

    def read_as(self) -> list[str]:
        """How the answers of questions were understood, where that had to be told; a sentence each."""
        if self.answers is None:
            return []
        return [note for path in self.inputs for note in open_questions(path, keys=self.question_keys).notes]

    def _documents(self, dropped: DropCounts, sketch: SketchBuilder, alike: AlikeBuilder | None) -> Iterator[Example]:
        texts = read_documents(
            self.inputs,
            text_column=self.text_column,
            limit=self.limit,
            filters=self.filters,
            text_template=self.text_template,
            txt_documents=self.txt_documents,
            layout=self.layout,
            counts=dropped,
        )
        for number, text in enumerate(texts):
            sketch.add(example_hash(text))
            if alike is not None:
                alike.add(text)
            yield number, text

    def _questions(
        self, questions: list[Question], sketch: SketchBuilder, alike: AlikeBuilder | None
    ) -> Iterator[Example]:
        for number, question in enumerate(questions[: self.limit]):
            sketch.add(question_hash(question))
            if alike is not None:
                alike.add_question(question)
            for choice in range(len(question.choices)) if self.answers == "all" else [question.answer]:
                yield number, question.text(choice)


@dataclass(frozen=True, kw_only=True)
class EmbeddedTask:
    """The windows of a task's examples as they are embedded, and their provenance."""

    batches: Iterable[Embedded]
    provenance: dict[str, Any]
    late_provenance: Callable[[], dict[str, Any]]
    """Further provenance, known once all batches were taken."""
    alike: Callable[[], NDArray[np.int64]] | None = None
    """[num_examples], the first example that each is like, known once all batches were taken; None: not known."""


def embedded_task(
    sources: ExampleSources,
    dataset: Dataset,
    *,
    packing: Packing,
    encoder: str | None,
    processes: int | None,
    log: Log,
) -> EmbeddedTask:
    """Embed a task's examples by a dataset's encoder, or read their embeddings where the inputs are .npy files.

    The other arguments are those of `count_examples`.

    Raises:
        InputError: an encoder with other weights, text beside embeddings, broken input.
    """
    if packing not in get_args(Packing):
        raise InputError(f"packing: must be joined or document, got {packing!r}.")
    names = {"inputs": [PurePosixPath(source.rstrip("/")).name for source in sources.inputs]}
    are_embeddings = [source.endswith(".npy") for source in sources.inputs]
    if any(are_embeddings):
        if not all(are_embeddings) or sources.answers is not None:
            raise InputError("embeddings: must be given alone, got other inputs, too. Name .npy files only, or none.")
        equal = _EqualRows()
        batches = equal.watched(read_embeddings(sources.inputs, dataset.manifest.encoder.dim, sources.limit))
        provenance = {**names, "packing": "embeddings", "dropped_examples": {}}
        return EmbeddedTask(
            batches=batches,
            provenance=provenance,
            late_provenance=lambda: {ALIKE_KEY: equal.alike.to_json()},
            alike=lambda: equal.alike.first,
        )
    dropped, sketch, builder = DropCounts(), SketchBuilder(), AlikeBuilder()
    for note in sources.read_as():
        log(note)
    choice = matching_encoder(dataset.manifest.encoder, encoder, dataset.root)
    settings = embedding_settings(dataset, choice, packing, sources, log)
    words = UnknownWordsCounter(CorpusWords.of_dataset(dataset))
    examples = words.watched(sources.read(dropped, sketch, builder))
    batches = embed_examples(examples, settings, num_processes(processes))

    @cache
    def alike() -> AlikeExamples:
        return builder.finish()

    def late_provenance() -> dict[str, Any]:
        answers = {} if sources.answers is None else {"answers": sources.answers}
        unknown = words.finish()
        return {
            "packing": packing,
            "dropped_examples": dropped.as_dict(),
            ALIKE_KEY: alike().to_json(),
            **({} if unknown is None else {UNKNOWN_WORDS_KEY: unknown.to_json()}),
            PROVENANCE_KEY: sketch.finish().to_json(),
            **answers,
        }

    return EmbeddedTask(batches=batches, provenance=names, late_provenance=late_provenance, alike=lambda: alike().first)


class _EqualRows:
    """Finds equal embeddings in batches that pass."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._first: list[int] = []

    def watched(self, batches: Iterable[Embedded]) -> Iterator[Embedded]:
        for batch in batches:
            for row in np.ascontiguousarray(batch.embeddings, np.float32):
                self._first.append(self._seen.setdefault(xxhash.xxh3_128_intdigest(row.tobytes()), len(self._first)))
            yield batch

    @property
    def alike(self) -> AlikeExamples:
        first = np.array(self._first, np.int64)
        return AlikeExamples(first=first, exact=len(first) - len(self._seen), near=0)


def embedding_settings(
    dataset: Dataset, encoder: EncoderChoice, packing: Packing, sources: ExampleSources, log: Log
) -> _Settings:
    """Settings that embed examples as the windows of the dataset were."""
    folder: Path = dataset.tokenizer_path()
    probed = probe_texts(text for _, text in sources.read(DropCounts(), SketchBuilder()))
    return _Settings(
        tokenizer_folder=folder,
        fast_tokenizer=DocumentTokenizer(folder).equals_tiktoken(probed, log=log),
        window_tokens=dataset.manifest.window_tokens,
        packing=packing,
        encoder=encoder,
    )


def read_embeddings(inputs: Sequence[str], dim: int, limit: int | None) -> Iterator[Embedded]:
    """The rows of .npy files, each row an example."""
    first = 0
    for path in inputs:
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path}: must be a .npy file of embeddings, got: {error}. Save them by numpy.save."
            ) from error
        if rows.ndim != 2 or rows.shape[1] != dim or not np.issubdtype(rows.dtype, np.floating):
            raise InputError(
                f"{path}: must be [num_windows, {dim}] numbers of the dataset's encoder, got "
                f"{list(rows.shape)} of {rows.dtype}. Embed with the dataset's encoder."
            )
        count = len(rows) if limit is None else max(0, min(len(rows), limit - first))
        for start in range(0, count, _BATCH_ROWS):
            vectors = np.asarray(rows[start : min(start + _BATCH_ROWS, count)], np.float32)
            norms = np.linalg.norm(vectors, axis=1)
            bad = np.flatnonzero(~(np.abs(norms - 1) < _UNIT_TOLERANCE))
            if len(bad):
                raise InputError(
                    f"{path}: embeddings must have norm 1, got {norms[bad[0]]:.3f} in row {start + bad[0]}. "
                    "Divide them by their norms."
                )
            end = first + start + len(vectors)
            numbers = np.arange(first + start, end)
            yield Embedded(embeddings=vectors, examples=numbers, num_examples=end, dropped_tokens={})
        first += count


def split_in_batches(examples: Iterable[Example], characters: int) -> Iterator[list[Example]]:
    """Consecutive examples, at least `characters` of them together (the last batch may have fewer)."""
    held: list[Example] = []
    num_characters = 0
    for example in examples:
        held.append(example)
        num_characters += len(example[1])
        if num_characters >= characters:
            yield held
            held, num_characters = [], 0
    if held:
        yield held


def embed_examples(examples: Iterator[Example], settings: _Settings, processes: int) -> Iterator[Embedded]:
    """The windows of all examples, in batches; these in any order with several processes."""
    batches = split_in_batches(examples, EXAMPLE_BATCH_CHARACTERS)
    first = list(islice(batches, 2))
    processes = processes if len(first) == 2 else 1
    yield from map_unordered(partial(_embed, settings), chain(first, batches), processes=processes)


def _embed(settings: _Settings, examples: list[Example]) -> Embedded:
    tokenizer = load_tokenizer(settings.tokenizer_folder, settings.fast_tokenizer)
    tokens = tokenizer.encode([text for _, text in examples])
    cut = cut_documents(
        tokens,
        packing=settings.packing,
        window_tokens=settings.window_tokens,
        eot_id=tokenizer.eot_id,
        token_dtype=tokenizer.token_dtype,
    )
    encoder = load_encoder(settings.encoder, None if settings.encoder.is_light else worker_device())
    embeddings = encoder.embed_pieces(window_pieces(settings.encoder, encoder, cut.tokens, tokenizer))
    numbers = np.array([number for number, _ in examples], np.int64)
    return Embedded(
        embeddings=embeddings,
        examples=numbers[_text_of_windows(cut, [len(ids) for ids in tokens], settings)],
        num_examples=int(numbers.max()) + 1,
        dropped_tokens=cut.dropped_tokens,
    )


def _text_of_windows(cut: Cut, lengths: Sequence[int], settings: _Settings) -> NDArray[np.int64]:
    """[num_windows], which text each window begins in; lengths in tokens, without end-of-text."""
    with_end = np.asarray(lengths, np.int64) + 1
    if settings.packing == "document":
        return np.searchsorted(np.cumsum(-(-with_end // settings.window_tokens)), cut.places, side="right")
    first_tokens = cut.places.astype(np.int64) * settings.window_tokens
    return np.searchsorted(np.cumsum(with_end), first_tokens, side="right")
