"""A task's few examples to a histogram over the clusters of a dataset (paper, Section 3.4).

The examples go the way of the corpus: the dataset's tokenizer and window length, its encoder, its tree. By default an
example never shares a window with another, so that a short question is embedded alone. Which example a window came
from is kept with the histogram, because windows of one example belong together when a part is held out. Of examples
that are alike (`alike.py`) the first is kept for all, so they belong together, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.counting.embedded_examples import Answers, Embedded, EmbeddedTask, ExampleSources, embedded_task
from crisp_stream.counting.task_vectors import embeddings_of
from crisp_stream.errors import InputError
from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import Packing
from crisp_stream.histograms.histogram import ALIKE_KEY, Histogram
from crisp_stream.histograms.unlike import unlike_warnings
from crisp_stream.processes import Log, Progress
from crisp_stream.records.readers import TxtDocuments
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import Layout
from crisp_stream.writers.tree.quality import leaf_cosines


def count_examples(
    inputs: Sequence[str],
    *,
    data: str | Dataset,
    level: int | None = None,
    text_column: str = "text",
    limit: int | None = None,
    packing: Packing = "document",
    answers: Answers | None = None,
    filters: Sequence[str] = (),
    text_template: str | None = None,
    txt_documents: TxtDocuments = "file",
    layout: Layout = "files",
    question_keys: QuestionKeys | None = None,
    encoder: str | None = None,
    processes: int | None = None,
    keep_embeddings: str | Path | None = None,
    log: Log = print,
) -> Histogram:
    """Count in which clusters a task's examples fall.

    Args:
        inputs: files, folders, prefixes or globs of examples, as for `write`; or .npy files of their embeddings,
            [num_windows, dim], by the dataset's encoder and of norm 1.
        data: the dataset whose tree is meant, or its root.
        level: of the tree, 1 to its depth; the leaves when None.
        text_column: key or column of the text.
        limit: read at most this many examples.
        packing: document, or joined to let examples share windows.
        answers: the inputs are multiple-choice questions (`learnable_questions`): each is counted as the prompt of the
            paper's Table 7 with its right answer, or once with all of its choices.
        filters: only documents where all of them hold, as for `write`.
        text_template: text of several fields, as for `write`.
        txt_documents: documents of a .txt file, as for `write`.
        layout: of the inputs, as for `write`.
        question_keys: keys of questions in a layout that is not known.
        encoder: folder or hub name of the dataset's encoder, where it cannot be found by its recorded name.
        processes: worker processes; one per core when None.
        keep_embeddings: file to write with the embeddings as they were counted (`TaskEmbeddings`); none when None.
        log: receives progress, and warnings of examples that are unlike the corpus.

    Returns:
        Window counts per node at `level`; an example longer than a window counts once per window. The provenance has
        the mean cosine between the windows and the centroids of their leaves, and that of the corpus; the share of
        letters in words that the corpus does not have (`unknown_words`); and which examples these were, as hashes
        (`example_sketch`).

    Raises:
        InputError: a level the tree does not have, an encoder with other weights, nothing to count, broken input.
        FormatError: the root holds no dataset.
        StorageError: the storage refused or failed.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    level = dataset.manifest.depth if level is None else level
    check_level(level, dataset)
    sources = ExampleSources(
        tuple(inputs),
        text_column,
        limit,
        answers,
        tuple(filters),
        layout,
        text_template=text_template,
        txt_documents=txt_documents,
        question_keys=question_keys,
    )
    task = embedded_task(sources, dataset, packing=packing, encoder=encoder, processes=processes, log=log)
    if keep_embeddings is None:
        return count_embedded(task, dataset, level, log=log)
    kept: list[Embedded] = []
    histogram = count_embedded(replace(task, batches=_kept(task.batches, kept)), dataset, level, log=log)
    alike = None if task.alike is None else task.alike()
    embeddings_of(kept, histogram, alike).save(keep_embeddings)
    return histogram


def _kept(batches: Iterable[Embedded], kept: list[Embedded]) -> Iterator[Embedded]:
    for batch in batches:
        kept.append(batch)
        yield batch


def check_level(level: int, dataset: Dataset) -> None:
    """Raises InputError: a level the tree does not have."""
    depth = dataset.manifest.depth
    if not 1 <= level <= depth:
        raise InputError(
            f"level: must be 1 to {depth}, the depth of the tree of {dataset.root}, got {level}. Choose one of these."
        )


def count_embedded(task: EmbeddedTask, dataset: Dataset, level: int, *, log: Log = print) -> Histogram:
    """Count in which clusters examples fall that were embedded by the dataset's encoder.

    Raises:
        InputError: nothing to count.
    """
    manifest = dataset.manifest
    counted = _assign_all(dataset.tree, task.batches, log)
    if not len(counted.leaves):
        raise InputError(
            f"{', '.join(task.provenance['inputs'])}: must fill at least one window of {manifest.window_tokens} "
            f"tokens, got none from {counted.num_examples} examples. Use --packing document, or give more examples."
        )
    corpus = _corpus_cosine(dataset)
    provenance = {
        **task.provenance,
        "examples": counted.num_examples,
        "windows": len(counted.leaves),
        "dropped_tokens": counted.dropped_tokens.as_dict(),
        "encoder": manifest.encoder.weights_sha256,
        "cosine": round(counted.cosine, 4),
        "corpus_cosine": None if corpus is None else round(corpus, 4),
    }
    provenance |= task.late_provenance()
    examples = counted.examples if task.alike is None else task.alike()[counted.examples]
    warn_of_examples(provenance, log)
    _warn_of_many(len(counted.leaves), manifest.num_windows, log)
    return Histogram.from_leaves(counted.leaves, dataset.tree, level, provenance, examples=examples)


def warn_of_examples(provenance: Mapping[str, Any], log: Log) -> None:
    """Say what makes examples doubtful: how many are like others, and whether they are unlike the corpus."""
    for warning in unlike_warnings(provenance):
        log(warning)
    alike = provenance.get(ALIKE_KEY)
    if alike and alike["exact"] + alike["near"]:
        log(
            f"{alike['exact'] + alike['near']:,} of {provenance['examples']:,} examples are like an earlier one "
            f"({alike['exact']:,} of the same words, {alike['near']:,} near-duplicates). They count, and are held out "
            "together."
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
        dropped.update(done.dropped_tokens)
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


def _warn_of_many(num_windows: int, of_corpus: int, log: Log) -> None:
    """Say that a task is larger than the corpus, if it is."""
    if num_windows > of_corpus:
        log(
            f"warning: the examples fill {num_windows:,} windows, more than the {of_corpus:,} of the corpus. "
            "With so much text of the task, train on it; or were task and corpus exchanged?"
        )
