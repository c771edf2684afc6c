"""Which n-grams of evaluation sets stand in which window of a dataset: one pass over the shards, in parallel.

A task is a few MB of one shard, so that the processes share also a single shard; bytes go to no cache folder. What
does not match its checksum is read again by the dataset's own reader, which mends or explains it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.evaluation.window_texts import WindowDecoder
from crisp_stream.format import Dataset, open_dataset
from crisp_stream.mds import checksums, sample_dtype
from crisp_stream.writers.decontamination import EvaluationNgrams
from crisp_stream.writers.pool import Progress, map_unordered

NOT_FOUND = np.iinfo(np.int64).max
_TASK_BYTES = 8 << 20
_DECODED_WINDOWS = 256


@dataclass(frozen=True, kw_only=True)
class NgramPlaces:
    """Where n-grams stand in a dataset."""

    first_window: NDArray[np.int64]
    """[num_ngrams], the first window that holds each; `NOT_FOUND` where none does."""
    num_windows: int
    """Windows read."""
    text_bytes: int
    """UTF-8 bytes of their text."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    root: str
    generation: int
    fingerprint: str
    index: tuple[Path, Path]
    """Files of the n-grams."""
    shard: int
    start: int
    """Window of the shard."""
    count: int


@dataclass(frozen=True, kw_only=True)
class _Scanned:
    ngrams: list[int]
    windows: list[int]
    num_windows: int
    text_bytes: int


def find_in_windows(
    dataset: Dataset, ngrams: EvaluationNgrams, *, processes: int, log: Callable[[str], None]
) -> NgramPlaces:
    """Look for n-grams in every window of a dataset.

    Args:
        dataset: local or remote.
        ngrams: to look for.
        processes: worker processes, at least 1.
        log: receives progress.

    Raises:
        CorruptDataError, StorageError: a window cannot be read.
        InputError: the dataset was replaced meanwhile.
    """
    first_window = np.full(ngrams.num_ngrams, NOT_FOUND, np.int64)
    num_windows = text_bytes = 0
    progress = Progress("contamination", "windows", log=log, total=dataset.manifest.num_windows)
    with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
        first, second = EvaluationNgrams.files("evaluation")
        index = (Path(scratch) / first, Path(scratch) / second)
        ngrams.save(index)
        for done in map_unordered(_scan, _tasks(dataset, index), processes=processes):
            np.minimum.at(first_window, done.ngrams, done.windows)
            num_windows += done.num_windows
            text_bytes += done.text_bytes
            progress.add(done.num_windows)
    progress.finish()
    return NgramPlaces(first_window=first_window, num_windows=num_windows, text_bytes=text_bytes)


def _tasks(dataset: Dataset, index: tuple[Path, Path]) -> Iterator[_Task]:
    manifest = dataset.manifest
    windows_per_task = max(1, _TASK_BYTES // manifest.sample_bytes)
    for shard, row in enumerate(dataset.shards):
        for start in range(0, row.num_windows, windows_per_task):
            yield _Task(
                root=dataset.root,
                generation=manifest.generation,
                fingerprint=manifest.fingerprint,
                index=index,
                shard=shard,
                start=start,
                count=min(windows_per_task, row.num_windows - start),
            )


def _scan(task: _Task) -> _Scanned:
    dataset, decoder = _opened(task.root, task.generation, task.fingerprint)
    ngrams = _ngrams(task.index)
    tokens = _tokens(dataset, task)
    first = int(dataset.first_window_per_shard[task.shard]) + task.start
    found: dict[int, int] = {}
    text_bytes = 0
    for start in range(0, task.count, _DECODED_WINDOWS):
        texts, owners = decoder.documents(tokens[start : start + _DECODED_WINDOWS])
        text_bytes += sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)
        for ngram, text in ngrams.find_ngrams(texts).items():
            found.setdefault(ngram, first + start + int(owners[text]))
    return _Scanned(ngrams=list(found), windows=list(found.values()), num_windows=task.count, text_bytes=text_bytes)


def _tokens(dataset: Dataset, task: _Task) -> NDArray[Any]:
    """[count, window_tokens], verified."""
    row = dataset.shards[task.shard]
    dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
    size = task.count * dtype.itemsize
    content = dataset.store.get_range(row.path, row.first_sample_offset + task.start * dtype.itemsize, size)
    if len(content) == size:
        samples = np.frombuffer(content, dtype)
        if (checksums(samples) == samples["checksum"]).all():
            return samples["tokens"]
    first = int(dataset.first_window_per_shard[task.shard]) + task.start
    return dataset.read_windows(np.arange(first, first + task.count))["tokens"]


@lru_cache(maxsize=1)
def _opened(root: str, generation: int, fingerprint: str) -> tuple[Dataset, WindowDecoder]:
    """A dataset, kept for the next task of this process."""
    dataset = open_dataset(root, generation=generation)
    if dataset.manifest.fingerprint != fingerprint:
        raise InputError(f"{root}: the dataset was replaced while it was read. Check it again.")
    return dataset, WindowDecoder(dataset)


@lru_cache(maxsize=1)
def _ngrams(index: tuple[Path, Path]) -> EvaluationNgrams:
    return EvaluationNgrams.load(index)
