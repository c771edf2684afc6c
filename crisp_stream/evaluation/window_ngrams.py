"""Which n-grams of evaluation sets stand in which window of a dataset, or across the border of two.

One pass over the shards, in parallel (`window_reading`), then one over the borders (`window_borders`) where they are
known.
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

from crisp_stream.evaluation.window_borders import WindowBorders, can_join, edges_of
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.provenance import read_places
from crisp_stream.inspection.window_reading import DatasetKey, opened, read_tokens
from crisp_stream.inspection.window_texts import WindowDecoder
from crisp_stream.processes import Progress, map_unordered
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams

NOT_FOUND = np.iinfo(np.int64).max
_TASK_BYTES = 8 << 20
_DECODED_WINDOWS = 256


@dataclass(frozen=True, kw_only=True)
class NgramPlaces:
    """Where n-grams stand in a dataset."""

    first_window: NDArray[np.int64]
    """[num_ngrams], the first window that holds each; of those in no window, the first in which one begins that ends
    in the next; `NOT_FOUND` where there is none."""
    num_windows: int
    """Windows read."""
    text_bytes: int
    """UTF-8 bytes of their text."""
    num_borders: int
    """Borders of windows that were looked across; 0 where it is not known which windows followed one another."""


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What is looked for, and where."""

    dataset: DatasetKey
    index: tuple[Path, Path]
    """Files of the n-grams."""
    with_edges: bool
    """Whether windows are to be joined afterwards."""


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Some windows of a shard."""

    scan: _Scan
    shard: int
    start: int
    """Window of the shard."""
    count: int


@dataclass(frozen=True, kw_only=True)
class _Borders:
    """Some borders of windows."""

    scan: _Scan
    windows: NDArray[np.int64]
    """[num_borders], the window before each."""
    tokens: NDArray[Any]
    """[num_borders, 2 · edge_tokens]."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    ngrams: list[int]
    windows: list[int]
    num_windows: int
    text_bytes: int = 0
    first: int = 0
    edges: tuple[NDArray[Any], NDArray[Any]] | None = None
    """`edges_of` the windows from `first` on, and their places."""


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
    across = first_window.copy()
    num_windows = text_bytes = num_borders = 0
    with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
        scan = _prepared(dataset, ngrams, Path(scratch))
        borders = WindowBorders(dataset, Path(scratch)) if scan.with_edges else None
        progress = Progress("contamination", "windows", log=log, total=dataset.manifest.num_windows)
        for done in map_unordered(_look_in_windows, _tasks(dataset, scan), processes=processes):
            np.minimum.at(first_window, done.ngrams, done.windows)
            num_windows += done.num_windows
            text_bytes += done.text_bytes
            if borders is not None and done.edges is not None:
                borders.add(done.first, *done.edges)
            progress.add(done.num_windows)
        progress.finish()
        if borders is not None:
            progress = Progress("across borders", "borders", log=log)
            tasks = (_Borders(scan=scan, windows=windows, tokens=tokens) for windows, tokens in borders.joined())
            for done in map_unordered(_look_across, tasks, processes=processes):
                np.minimum.at(across, done.ngrams, done.windows)
                num_borders += done.num_windows
                progress.add(done.num_windows)
            progress.finish()
    return NgramPlaces(
        first_window=np.where(first_window == NOT_FOUND, across, first_window),
        num_windows=num_windows,
        text_bytes=text_bytes,
        num_borders=num_borders,
    )


def _prepared(dataset: Dataset, ngrams: EvaluationNgrams, folder: Path) -> _Scan:
    first, second = EvaluationNgrams.files("evaluation")
    index = (folder / first, folder / second)
    ngrams.save(index)
    return _Scan(
        dataset=DatasetKey.of(dataset),
        index=index,
        with_edges=can_join(dataset),
    )


def _tasks(dataset: Dataset, scan: _Scan) -> Iterator[_Windows]:
    windows_per_task = max(1, _TASK_BYTES // dataset.manifest.sample_bytes)
    for shard, row in enumerate(dataset.shards):
        for start in range(0, row.num_windows, windows_per_task):
            yield _Windows(scan=scan, shard=shard, start=start, count=min(windows_per_task, row.num_windows - start))


def _look_in_windows(task: _Windows) -> _Found:
    dataset, decoder = opened(task.scan.dataset)
    tokens = read_tokens(dataset, task.shard, task.start, task.count)
    first = int(dataset.first_window_per_shard[task.shard]) + task.start
    found, text_bytes = _look(decoder, _ngrams(task.scan.index), tokens, np.arange(first, first + task.count))
    edges = None
    if task.scan.with_edges:
        edges = (edges_of(tokens), read_places(dataset, task.shard, task.start, task.count))
    return _Found(
        ngrams=list(found),
        windows=list(found.values()),
        num_windows=task.count,
        text_bytes=text_bytes,
        first=first,
        edges=edges,
    )


def _look_across(task: _Borders) -> _Found:
    _, decoder = opened(task.scan.dataset)
    found, _ = _look(decoder, _ngrams(task.scan.index), task.tokens, task.windows)
    return _Found(ngrams=list(found), windows=list(found.values()), num_windows=len(task.windows))


def _look(
    decoder: WindowDecoder, ngrams: EvaluationNgrams, tokens: NDArray[Any], windows: NDArray[np.int64]
) -> tuple[dict[int, int], int]:
    """N-grams with the first of the ascending windows that hold them, and the UTF-8 bytes of all text."""
    found: dict[int, int] = {}
    text_bytes = 0
    for start in range(0, len(tokens), _DECODED_WINDOWS):
        texts, owners = decoder.documents(tokens[start : start + _DECODED_WINDOWS])
        text_bytes += sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)
        for ngram, text in ngrams.find_ngrams(texts).items():
            found.setdefault(ngram, int(windows[start + int(owners[text])]))
    return found, text_bytes


@lru_cache(maxsize=1)
def _ngrams(index: tuple[Path, Path]) -> EvaluationNgrams:
    return EvaluationNgrams.load(index)
