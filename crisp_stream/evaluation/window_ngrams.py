"""The windows of a dataset in which n-grams of evaluation sets stand, or across whose border they stand.

One pass over the shards, in parallel (`window_reading`), then one over the borders (`window_borders`) where they are
known.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.evaluation.window_borders import WindowBorders, can_join, edges_of
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.provenance import read_places
from crisp_stream.inspection.window_reading import (
    DatasetKey,
    ShardPart,
    decoded,
    first_window,
    opened,
    parts_of,
    read_tokens,
)
from crisp_stream.inspection.window_texts import WindowDecoder
from crisp_stream.processes import Log, Progress, map_unordered
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams

NOT_FOUND = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class NgramPlaces:
    """Windows of a dataset that hold n-grams."""

    first_window: NDArray[np.int64]
    """[num_ngrams], the first window that holds each n-gram; of an n-gram in no window, the first window in which it
    begins that ends in the next; `NOT_FOUND` where there is none."""
    num_windows: int
    """Windows read."""
    text_bytes: int
    """UTF-8 bytes of their text."""
    num_borders: int
    """Borders of windows that were searched; 0 where the dataset does not say which windows followed one another."""


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Task: search the windows of a part."""

    index: tuple[Path, Path]
    """Files of the n-grams that are searched for."""
    part: ShardPart
    with_edges: bool
    """Whether windows are joined afterwards."""


@dataclass(frozen=True, kw_only=True)
class _Borders:
    """Task: search some borders of windows."""

    index: tuple[Path, Path]
    dataset: DatasetKey
    windows: NDArray[np.int64]
    """[num_borders], the window before each."""
    tokens: NDArray[Any]
    """[num_borders, 2 · edge_tokens]."""


@dataclass(frozen=True, kw_only=True)
class _Matches:
    first_windows: dict[int, int]
    """First window of each n-gram, by the n-gram's number."""
    num_windows: int
    text_bytes: int = 0
    first: int = 0
    edges: tuple[NDArray[Any], NDArray[Any]] | None = None
    """`edges_of` the windows from `first` on, and their places."""


def find_in_windows(dataset: Dataset, ngrams: EvaluationNgrams, *, processes: int, log: Log) -> NgramPlaces:
    """Search every window of a dataset for n-grams.

    Raises:
        CorruptDataError, StorageError: a window cannot be read.
        InputError: the dataset was replaced meanwhile.
    """
    within = np.full(ngrams.num_ngrams, NOT_FOUND, np.int64)
    across = within.copy()
    num_windows = text_bytes = num_borders = 0
    with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
        first, second = (Path(scratch, name) for name in EvaluationNgrams.files("evaluation"))
        ngrams.save(index := (first, second))
        borders = WindowBorders(dataset, Path(scratch)) if can_join(dataset) else None
        progress = Progress("contamination", "windows", log=log, total=dataset.manifest.num_windows)
        tasks = (_Windows(index=index, part=part, with_edges=borders is not None) for part in parts_of(dataset))
        for done in map_unordered(_search_windows, tasks, processes=processes):
            np.minimum.at(within, list(done.first_windows), list(done.first_windows.values()))
            num_windows += done.num_windows
            text_bytes += done.text_bytes
            if borders is not None and done.edges is not None:
                borders.add(done.first, *done.edges)
            progress.add(done.num_windows)
        progress.finish()
        if borders is not None:
            progress = Progress("across borders", "borders", log=log)
            key = DatasetKey.of(dataset)
            joined = (_Borders(index=index, dataset=key, windows=before, tokens=of) for before, of in borders.joined())
            for done in map_unordered(_search_borders, joined, processes=processes):
                np.minimum.at(across, list(done.first_windows), list(done.first_windows.values()))
                num_borders += done.num_windows
                progress.add(done.num_windows)
            progress.finish()
    return NgramPlaces(
        first_window=np.where(within == NOT_FOUND, across, within),
        num_windows=num_windows,
        text_bytes=text_bytes,
        num_borders=num_borders,
    )


def _search_windows(task: _Windows) -> _Matches:
    part = task.part
    dataset, decoder = opened(part.dataset)
    tokens = read_tokens(dataset, part)
    first = first_window(dataset, part)
    windows = np.arange(first, first + part.num_windows)
    first_windows, text_bytes = _search(decoder, _load_ngrams(task.index), tokens, windows)
    done = _Matches(first_windows=first_windows, num_windows=part.num_windows, text_bytes=text_bytes, first=first)
    if not task.with_edges:
        return done
    places = read_places(dataset, part.shard, part.start, part.num_windows)
    return replace(done, edges=(edges_of(tokens), places))


def _search_borders(task: _Borders) -> _Matches:
    _, decoder = opened(task.dataset)
    first_windows, _ = _search(decoder, _load_ngrams(task.index), task.tokens, task.windows)
    return _Matches(first_windows=first_windows, num_windows=len(task.windows))


def _search(
    decoder: WindowDecoder, ngrams: EvaluationNgrams, tokens: NDArray[Any], windows: NDArray[np.int64]
) -> tuple[dict[int, int], int]:
    """Match n-grams with the first of the ascending windows that hold them; count the UTF-8 bytes of all text."""
    first_windows: dict[int, int] = {}
    text_bytes = 0
    for batch in decoded(decoder, tokens):
        text_bytes += batch.text_bytes
        for ngram, text in ngrams.find_ngrams(batch.texts).items():
            first_windows.setdefault(ngram, int(windows[batch.first + int(batch.owners[text])]))
    return first_windows, text_bytes


@lru_cache(maxsize=1)
def _load_ngrams(index: tuple[Path, Path]) -> EvaluationNgrams:
    return EvaluationNgrams.load(index)
