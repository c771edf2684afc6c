"""A task's few examples to a histogram over the clusters of a dataset (paper, Section 3.4).

The examples go the way of the corpus: the dataset's tokenizer and window length, its encoder, its tree. By default an
example never shares a window with another, so that a short question is embedded alone. Which example a window came
from is kept with the histogram, because windows of one example belong together when a part is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.questions import Question, learnable_questions, question_hash, read_questions
from crisp_stream.examples.sketch import PROVENANCE_KEY, SketchBuilder
from crisp_stream.format.dataset import Dataset, Packing, open_dataset
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.processes import Log, Progress, map_unordered, num_processes
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import Layout
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.stages.whole_corpus import probe_texts
from crisp_stream.writers.stages.windows import load_encoder, load_tokenizer, worker_device
from crisp_stream.writers.tree.quality import leaf_cosines
from crisp_stream.writers.windows import Cut, DocumentTokenizer, cut_documents, window_texts

BATCH_CHARACTERS = 1 << 18
"""Text of one task; a set of examples that fits in one is embedded in this process, which saves starting others."""
FAR_COSINE = 0.5
"""Share of the corpus's own mean cosine to its leaves' centroids below which examples are called far from it."""
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
class _Batch:
    examples: list[Example]
    settings: _Settings


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Windows of some examples."""

    embeddings: NDArray[Any]
    """[num_windows, dim]."""
    examples: NDArray[np.int64]
    """[num_windows], the example that each window begins in."""
    num_examples: int
    """So many examples are done with these, counted from the first of all."""
    dropped_tokens: dict[str, int]


def count_examples(
    inputs: Sequence[str],
    *,
    data: str,
    level: int | None = None,
    text_column: str = "text",
    limit: int | None = None,
    packing: Packing = "document",
    answers: Answers | None = None,
    filters: Sequence[str] = (),
    layout: Layout = "files",
    encoder: str | None = None,
    processes: int | None = None,
    log: Log = print,
) -> Histogram:
    """Count in which clusters a task's examples fall.

    Args:
        inputs: files, folders, prefixes or globs of examples, as for `write`; or .npy files of their embeddings,
            [num_windows, dim], by the dataset's encoder and of norm 1.
        data: root of the dataset whose tree is meant.
        level: of the tree, 1 to its depth; the leaves when None.
        text_column: key or column of the text.
        limit: read at most this many examples.
        packing: document, or joined to let examples share windows.
        answers: the inputs are multiple-choice questions (`learnable_questions`): each is counted as the prompt of the
            paper's Table 7 with its right answer, or once with all of its choices.
        filters: only documents where all of them hold, as for `write`.
        layout: of the inputs, as for `write`.
        encoder: folder or hub name of the dataset's encoder, where it cannot be found by its recorded name.
        processes: worker processes; one per core when None.
        log: receives progress, and warnings of examples that are unlike the corpus.

    Returns:
        Window counts per node at `level`; an example longer than a window counts once per window. The provenance has
        the mean cosine between the windows and the centroids of their leaves, and that of the corpus; and which
        examples these were, as hashes (`example_sketch`).

    Raises:
        InputError: a level the tree does not have, an encoder with other weights, nothing to count, broken input.
        FormatError: the root holds no dataset.
        StorageError: the storage refused or failed.
    """
    dataset = open_dataset(data)
    manifest = dataset.manifest
    level = manifest.depth if level is None else level
    check_level(level, dataset)
    if packing not in get_args(Packing):
        raise InputError(f"packing: must be joined or document, got {packing!r}.")
    dropped, sketch = DropCounts(), SketchBuilder()
    given = [source.endswith(".npy") for source in inputs]
    if any(given):
        if not all(given) or answers is not None:
            raise InputError("embeddings: must be given alone, got other inputs, too. Count them apart and average.")
        batches = read_embeddings(inputs, dataset.tree.dim, limit)
    else:
        sources = ExampleSources(tuple(inputs), text_column, limit, answers, tuple(filters), layout)
        choice = matching_encoder(manifest.encoder, encoder, data)
        settings = embedding_settings(dataset, choice, packing, sources, log)
        batches = embed_examples(sources.read(dropped, sketch), settings, num_processes(processes))
    told: dict[str, Any] = {"inputs": [PurePosixPath(source.rstrip("/")).name for source in inputs]}

    def more() -> dict[str, Any]:
        found = {"packing": "embeddings" if any(given) else packing, "dropped_examples": dropped.as_dict()}
        found |= {} if answers is None else {"answers": answers}
        return found if any(given) else found | {PROVENANCE_KEY: sketch.finish().to_json()}

    return count_embedded(batches, dataset, level, told, more=more, log=log)


def check_level(level: int, dataset: Dataset) -> None:
    """Raises InputError: a level the tree does not have."""
    depth = dataset.manifest.depth
    if not 1 <= level <= depth:
        raise InputError(
            f"level: must be 1 to {depth}, the depth of the tree of {dataset.root}, got {level}. Choose one of these."
        )


def count_embedded(
    batches: Iterable[Embedded],
    dataset: Dataset,
    level: int,
    provenance: dict[str, Any],
    *,
    more: Callable[[], dict[str, Any]] = dict,
    log: Log = print,
) -> Histogram:
    """Count in which clusters embedded examples fall.

    Args:
        batches: the examples, by the dataset's encoder.
        dataset: whose tree is meant.
        level: of the tree.
        provenance: with `inputs`, names of the files.
        more: further provenance, known once all examples were read.
        log: receives progress, and warnings of examples that are unlike the corpus.

    Raises:
        InputError: nothing to count.
    """
    manifest = dataset.manifest
    counted = _assign_all(dataset.tree, batches, log)
    if not len(counted.leaves):
        raise InputError(
            f"{', '.join(provenance['inputs'])}: must fill at least one window of {manifest.window_tokens} tokens, got "
            f"none from {counted.num_examples} examples. Use --packing document, or give more examples."
        )
    corpus = _corpus_cosine(dataset)
    _warn(counted, corpus, dataset, log)
    found = {
        **provenance,
        "examples": counted.num_examples,
        "windows": len(counted.leaves),
        "dropped_tokens": counted.dropped_tokens.as_dict(),
        "encoder": manifest.encoder.weights_sha256,
        "cosine": round(counted.cosine, 4),
        "corpus_cosine": None if corpus is None else round(corpus, 4),
    }
    return Histogram.from_leaves(counted.leaves, dataset.tree, level, found | more(), examples=counted.examples)


@dataclass(frozen=True)
class ExampleSources:
    """The texts of the examples, as often as they are asked for."""

    inputs: tuple[str, ...]
    text_column: str
    limit: int | None
    answers: Answers | None
    filters: tuple[str, ...]
    layout: Layout
    test_halves: bool = False
    """Questions that are kept to judge by may be read, too: nothing is learnt from them."""

    def read(self, dropped: DropCounts, sketch: SketchBuilder) -> Iterator[Example]:
        """Texts, numbered by example; `sketch` counts the examples."""
        if self.answers is None:
            return self._documents(dropped, sketch)
        if self.filters or self.layout != "files":
            raise InputError("questions: filters and layouts are for documents. Leave them out.")
        if self.answers not in get_args(Answers):
            raise InputError(f"answers: must be right or all, got {self.answers!r}.")
        read = read_questions if self.test_halves else learnable_questions
        return self._questions([question for path in self.inputs for question in read(path)], sketch)

    def _documents(self, dropped: DropCounts, sketch: SketchBuilder) -> Iterator[Example]:
        texts = read_documents(
            self.inputs,
            text_column=self.text_column,
            limit=self.limit,
            filters=self.filters,
            layout=self.layout,
            counts=dropped,
        )
        for number, text in enumerate(texts):
            sketch.add(example_hash(text))
            yield number, text

    def _questions(self, questions: list[Question], sketch: SketchBuilder) -> Iterator[Example]:
        for number, question in enumerate(questions[: self.limit]):
            sketch.add(question_hash(question))
            for choice in range(len(question.choices)) if self.answers == "all" else [question.answer]:
                yield number, question.text(choice)


def embedding_settings(
    dataset: Dataset, encoder: EncoderChoice, packing: Packing, sources: ExampleSources, log: Log
) -> _Settings:
    """How examples are embedded as the windows of a dataset were."""
    folder: Path = dataset.tokenizer_path()
    probed = probe_texts(text for _, text in sources.read(DropCounts(), SketchBuilder()))
    return _Settings(
        tokenizer_folder=folder,
        fast_tokenizer=DocumentTokenizer(folder).equals_tiktoken(probed, log=log),
        window_tokens=dataset.manifest.window_tokens,
        packing=packing,
        encoder=encoder,
    )


@dataclass(frozen=True, kw_only=True)
class _Counted:
    leaves: NDArray[np.uint32]
    examples: NDArray[np.int64]
    num_examples: int
    cosine: float
    dropped_tokens: DropCounts


def _assign_all(tree: ClusterTree, batches: Iterable[Embedded], log: Log) -> _Counted:
    leaves, examples, cosines = [np.empty(0, np.uint32)], [np.empty(0, np.int64)], 0.0
    num_examples, dropped = 0, DropCounts()
    progress = Progress("examples", "windows", log=log)
    for done in batches:
        if len(done.embeddings):
            leaves.append(tree.assign(done.embeddings))
            examples.append(done.examples)
            cosines += float(leaf_cosines(tree, done.embeddings, leaves[-1]).sum(dtype=np.float64))
        num_examples = max(num_examples, done.num_examples)
        dropped.merge(done.dropped_tokens)
        progress.add(len(done.embeddings))
    progress.finish()
    all_leaves = np.concatenate(leaves)
    return _Counted(
        leaves=all_leaves,
        examples=np.concatenate(examples),
        num_examples=num_examples,
        cosine=cosines / max(len(all_leaves), 1),
        dropped_tokens=dropped,
    )


def _corpus_cosine(dataset: Dataset) -> float | None:
    """Mean cosine between the corpus's windows and their leaves; None where the dataset does not say."""
    levels = dataset.manifest.provenance.get("levels")
    cosine = levels[-1].get("cosine") if isinstance(levels, list) and levels and isinstance(levels[-1], dict) else None
    return float(cosine) if isinstance(cosine, int | float) else None


def _warn(counted: _Counted, corpus: float | None, dataset: Dataset, log: Log) -> None:
    """Say what makes a histogram of these examples doubtful."""
    if corpus is not None and counted.cosine < FAR_COSINE * corpus:
        log(
            f"warning: the examples are far from the corpus: their mean cosine to the centroids of their leaves is "
            f"{counted.cosine:.2f}, that of the corpus {corpus:.2f}. Text of another language, or no text? If it is "
            "what you mean, the corpus has nothing like it, and the clusters found say little."
        )
    windows = dataset.manifest.num_windows
    if len(counted.leaves) > windows:
        log(
            f"warning: the examples fill {len(counted.leaves):,} windows, more than the {windows:,} of the corpus. "
            "With so much text of the task, train on it; or were task and corpus exchanged?"
        )


def read_embeddings(inputs: Sequence[str], dim: int, limit: int | None) -> Iterator[Embedded]:
    """The rows of .npy files, each an example of its own."""
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
            own = np.asarray(rows[start : min(start + _BATCH_ROWS, count)], np.float32)
            norms = np.linalg.norm(own, axis=1)
            bad = np.flatnonzero(~(np.abs(norms - 1) < _UNIT_TOLERANCE))
            if len(bad):
                raise InputError(
                    f"{path}: embeddings must have norm 1, got {norms[bad[0]]:.3f} in row {start + bad[0]}. "
                    "Divide them by their norms."
                )
            numbers = np.arange(first + start, first + start + len(own))
            yield Embedded(embeddings=own, examples=numbers, num_examples=first + start + len(own), dropped_tokens={})
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
    batches = split_in_batches(examples, BATCH_CHARACTERS)
    first = next(batches)
    second = next(batches, None)
    if second is None:
        yield _embed(_Batch(examples=first, settings=settings))
        return

    def tasks() -> Iterator[_Batch]:
        yield _Batch(examples=first, settings=settings)
        yield _Batch(examples=second, settings=settings)
        for batch in batches:
            yield _Batch(examples=batch, settings=settings)

    yield from map_unordered(_embed, tasks(), processes=processes)


def _embed(batch: _Batch) -> Embedded:
    settings = batch.settings
    tokenizer = load_tokenizer(settings.tokenizer_folder, settings.fast_tokenizer)
    tokens = tokenizer.encode([text for _, text in batch.examples])
    cut = cut_documents(
        tokens,
        packing=settings.packing,
        window_tokens=settings.window_tokens,
        eot_id=tokenizer.eot_id,
        token_dtype=tokenizer.token_dtype,
    )
    texts = window_texts(cut.tokens, tokenizer, tokenizer.eot_id)
    embeddings = load_encoder(settings.encoder, worker_device()).embed(texts)
    numbers = np.array([number for number, _ in batch.examples], np.int64)
    return Embedded(
        embeddings=embeddings,
        examples=numbers[_text_of_windows(cut, [len(own) for own in tokens], settings)],
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
