"""A task's few examples to a histogram over the clusters of a dataset (paper, Section 3.4).

The examples go the way of the corpus: the dataset's tokenizer and window length, its encoder, its tree. By default an
example never shares a window with another, so that a short question is embedded alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format import Dataset, Packing, open_dataset
from crisp_stream.histogram import Histogram
from crisp_stream.tree import ClusterTree
from crisp_stream.writers.documents import DropCounts, read_documents
from crisp_stream.writers.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.parts import load_encoder, load_tokenizer, worker_device
from crisp_stream.writers.pool import Log, Progress, map_unordered, num_processes
from crisp_stream.writers.preparation import probe_texts
from crisp_stream.writers.windows import DocumentTokenizer, cut_documents, window_texts

BATCH_CHARACTERS = 1 << 18
"""Text of one task; a set of examples that fits in one is embedded in this process, which saves starting others."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    tokenizer_folder: Path
    fast_tokenizer: bool
    window_tokens: int
    packing: Packing
    encoder: EncoderChoice


@dataclass(frozen=True, kw_only=True)
class _Batch:
    texts: list[str]
    settings: _Settings


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    num_examples: int
    embeddings: NDArray[np.float16]
    dropped_tokens: dict[str, int]


def count_examples(
    inputs: Sequence[str],
    *,
    data: str,
    level: int,
    text_column: str = "text",
    limit: int | None = None,
    packing: Packing = "document",
    encoder: str | None = None,
    processes: int | None = None,
    log: Log = print,
) -> Histogram:
    """Count in which clusters a task's examples fall.

    Args:
        inputs: files, folders, prefixes or globs of examples, as for `write`.
        data: root of the dataset whose tree is meant.
        level: of the tree, 1 to its depth.
        text_column: key or column of the text.
        limit: read at most this many examples.
        packing: document, or joined to let examples share windows.
        encoder: folder or hub name of the dataset's encoder, where it cannot be found by its recorded name.
        processes: worker processes; one per core when None.
        log: receives progress.

    Returns:
        Window counts per node at `level`; an example longer than a window counts once per window.

    Raises:
        InputError: a level the tree does not have, an encoder with other weights, nothing to count, broken input.
        FormatError: the root holds no dataset.
        StorageError: the storage refused or failed.
    """
    dataset = open_dataset(data)
    manifest = dataset.manifest
    if not 1 <= level <= manifest.depth:
        raise InputError(
            f"level: must be 1 to {manifest.depth}, the depth of the tree of {data}, got {level}. Choose one of these."
        )
    if packing not in get_args(Packing):
        raise InputError(f"packing: must be joined or document, got {packing!r}.")
    counts = DropCounts()
    settings = _settings(
        dataset, matching_encoder(manifest.encoder, encoder, data), packing, inputs, text_column, limit, log
    )
    tree = dataset.tree
    texts = read_documents(inputs, text_column=text_column, limit=limit, counts=counts)
    leaves: list[NDArray[np.uint32]] = []
    num_examples, dropped_tokens = 0, DropCounts()
    progress = Progress("examples", "windows", log=log)
    for done in _embed_all(texts, settings, num_processes(processes)):
        leaves.append(_assign(tree, done.embeddings))
        num_examples += done.num_examples
        dropped_tokens.merge(done.dropped_tokens)
        progress.add(len(done.embeddings))
    progress.finish()
    all_leaves = np.concatenate(leaves)
    if not len(all_leaves):
        raise InputError(
            f"{', '.join(inputs)}: must fill at least one window of {manifest.window_tokens} tokens, got none from "
            f"{num_examples} examples. Use --packing document, or give more examples."
        )
    provenance: dict[str, Any] = {
        "inputs": [PurePosixPath(source.rstrip("/")).name for source in inputs],
        "examples": num_examples,
        "windows": len(all_leaves),
        "packing": packing,
        "dropped_examples": counts.as_dict(),
        "dropped_tokens": dropped_tokens.as_dict(),
    }
    return Histogram.from_leaves(all_leaves, tree, level, provenance)


def _settings(
    dataset: Dataset,
    encoder: EncoderChoice,
    packing: Packing,
    inputs: Sequence[str],
    text_column: str,
    limit: int | None,
    log: Log,
) -> _Settings:
    folder: Path = dataset.tokenizer_path()
    probed = probe_texts(read_documents(inputs, text_column=text_column, limit=limit, counts=DropCounts()))
    return _Settings(
        tokenizer_folder=folder,
        fast_tokenizer=DocumentTokenizer(folder).equals_tiktoken(probed, log=log),
        window_tokens=dataset.manifest.window_tokens,
        packing=packing,
        encoder=encoder,
    )


def split_in_batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Consecutive texts, at least `characters` of them together (the last batch may have fewer)."""
    held: list[str] = []
    num_characters = 0
    for text in texts:
        held.append(text)
        num_characters += len(text)
        if num_characters >= characters:
            yield held
            held, num_characters = [], 0
    if held:
        yield held


def _embed_all(texts: Iterator[str], settings: _Settings, processes: int) -> Iterator[_Embedded]:
    batches = split_in_batches(texts, BATCH_CHARACTERS)
    first = list(next(batches))
    second = next(batches, None)
    if second is None:
        yield _embed(_Batch(texts=first, settings=settings))
        return

    def tasks() -> Iterator[_Batch]:
        yield _Batch(texts=first, settings=settings)
        yield _Batch(texts=second, settings=settings)
        for batch in batches:
            yield _Batch(texts=batch, settings=settings)

    yield from map_unordered(_embed, tasks(), processes=processes)


def _embed(batch: _Batch) -> _Embedded:
    settings = batch.settings
    tokenizer = load_tokenizer(settings.tokenizer_folder, settings.fast_tokenizer)
    cut = cut_documents(
        tokenizer.encode(batch.texts),
        packing=settings.packing,
        window_tokens=settings.window_tokens,
        eot_id=tokenizer.eot_id,
        token_dtype=tokenizer.token_dtype,
    )
    texts = window_texts(cut.tokens, tokenizer, tokenizer.eot_id)
    embeddings = load_encoder(settings.encoder, worker_device()).embed(texts)
    return _Embedded(num_examples=len(batch.texts), embeddings=embeddings, dropped_tokens=cut.dropped_tokens)


def _assign(tree: ClusterTree, embeddings: NDArray[np.float16]) -> NDArray[np.uint32]:
    return tree.assign(embeddings) if len(embeddings) else np.zeros(0, np.uint32)
