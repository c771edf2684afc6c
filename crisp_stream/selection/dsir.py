"""DSIR: windows selected by importance resampling on hashed n-grams (Xie et al. 2023, arXiv:2302.03169).

Two bags of hashed n-grams are fitted, one to the task's examples and one to the corpus. A window's importance weight
is the ratio of its likelihoods under the two, and N windows are drawn without replacement in proportion to the weights.
As in the paper and its authors' code the weight is a product over all n-grams of the window. With windows of 1,024
tokens the log weights lie hundreds of nats apart, so the draw is almost the choice of the heaviest; `heaviest_share`
says how nearly.

That holds for packing `joined`, whose windows are all full. With packing `document` some windows are tails of a few
tokens. The log weight of most windows is below 0, and the fewer n-grams, the nearer to 0, so a product prefers tails:
82 % of the windows that it selected had under 32 tokens, of the corpus 12 %. There a window's log weight is the mean
over its n-grams, times those of an average full window: what the window would weigh if it went on like this. And
windows of less than a quarter of a window are left out, since a mean of a few n-grams is easily extreme (`min_tokens`;
the authors leave documents of less than 40 words out).

The corpus is read twice, for its distribution and for the weights: 42 MB of text per second and core each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from crisp_stream.counting.embedded_examples import ExampleSources, split_in_batches
from crisp_stream.errors import InputError
from crisp_stream.examples.sketch import PROVENANCE_KEY, SketchBuilder
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.inspection.window_reading import (
    DatasetKey,
    DecodedWindows,
    ShardPart,
    decoded,
    first_window,
    opened,
    parts_of,
    read_tokens,
)
from crisp_stream.processes import Log, Progress, map_unordered, num_processes
from crisp_stream.selection.hashed_ngrams import NUM_BUCKETS, SMOOTHING, count_ngrams, log_ratios, log_weights
from crisp_stream.selection.lengths import at_least, text_tokens
from crisp_stream.writers.documents.drops import DropCounts

FITTED_NGRAMS = 100_000 * NUM_BUCKETS
"""N-grams that the distribution of the corpus is fitted on, about: a billion, as the authors do. Of a corpus beyond
488,000 windows of 1,024 tokens a sample is counted."""
_RUN_WINDOWS = 64
_TASK_CHARACTERS = 1 << 20
_GUMBEL_KEY = 0x4753_4952


@dataclass(frozen=True, kw_only=True)
class DsirSelection:
    """The windows that were drawn, and the weights that they were drawn by."""

    selection: WindowSelection
    log_weights: NDArray[np.float64]
    """[num_windows], nats, of every window of the dataset."""


def select_dsir(
    task: ExampleSources,
    *,
    data: str,
    num_windows: int,
    seed: int = 0,
    fitted_windows: int | None = None,
    min_tokens: int | None = None,
    generation: int | None = None,
    processes: int | None = None,
    log: Log = print,
) -> DsirSelection:
    """Draw windows of a dataset that are like a task.

    Args:
        seed: seed of the draw; weights do not depend on it.
        fitted_windows: windows that the corpus's distribution is fitted on; as many as have FITTED_NGRAMS when None.
        min_tokens: shorter windows are not selected; a quarter of a window where the packing is document, and 0 where
            all windows are full, when None.
        generation: generation of a dataset that has grown; the newest when None.
        processes: worker processes; one per core when None. The result does not depend on it.

    Raises:
        InputError: a number out of range, a corpus without a word, broken input.
        FormatError, CorruptDataError: the dataset is damaged. StorageError: the storage refused or failed.
    """
    started, workers = time.monotonic(), num_processes(processes)
    dataset = open_dataset(data, generation=generation)
    all_windows = dataset.manifest.num_windows
    if not 1 <= num_windows <= all_windows:
        raise InputError(
            f"windows: must be 1 to {all_windows:,}, those of {data}, got {num_windows:,}. Choose another number."
        )
    # No token has more than two n-grams: itself, and it with the one before.
    fitted = FITTED_NGRAMS // (2 * dataset.manifest.window_tokens) if fitted_windows is None else fitted_windows
    if fitted < 1:
        raise InputError(f"fitted windows: must be at least 1, got {fitted}. Leave it out for the authors' number.")
    dropped, sketch = DropCounts(), SketchBuilder()
    of_task, num_examples = _count_task(task, dropped, sketch)
    of_corpus, fitted = _count_corpus(dataset, min(fitted, all_windows), workers, log)
    floor = default_floor(dataset) if min_tokens is None else min_tokens
    weighed = _weigh(dataset, log_ratios(of_task, of_corpus), workers, log)
    allowed = at_least(weighed.lengths, floor, dataset)
    if num_windows > np.count_nonzero(allowed):
        raise InputError(
            f"windows: must be at most {np.count_nonzero(allowed):,}, those of {floor} tokens or more, got "
            f"{num_windows:,}. Choose fewer, or a lower floor (--min-tokens)."
        )
    weights = weighed.log_weights(dataset)
    drawn_from = np.where(allowed, weights, -np.inf)
    chosen = gumbel_top_k(drawn_from, num_windows, seed=seed)
    provenance = {
        "method": "dsir",
        "inputs": [PurePosixPath(source.rstrip("/")).name for source in task.inputs],
        "answers": task.answers,
        "buckets": NUM_BUCKETS,
        "smoothing": SMOOTHING,
        "examples": num_examples,
        "dropped_examples": dropped.as_dict(),
        "task_ngrams": int(of_task.sum()),
        "corpus_ngrams": int(of_corpus.sum()),
        "fitted_windows": fitted,
        "seed": seed,
        "min_tokens": floor,
        "heaviest_share": heaviest_share(drawn_from, chosen),
        "text_bytes": weighed.text_bytes,
        "seconds": round(time.monotonic() - started, 1),
        "processes": workers,
        PROVENANCE_KEY: sketch.finish().to_json(),
    }
    selection = WindowSelection(
        dataset_fingerprint=dataset.manifest.fingerprint,
        windows=chosen,
        num_windows=all_windows,
        provenance=provenance,
    )
    return DsirSelection(selection=selection, log_weights=weights)


def gumbel_top_k(weights: NDArray[np.float64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Draw windows without replacement, each in proportion to the weights of those that are left.

    The `count` largest of log w + Gumbel noise are such a draw (Kool et al. 2019, arXiv:1903.06059).

    Args:
        weights: [num_windows], natural logarithms of weights, which need not be normalised.
        count: 1 to num_windows.
        seed: seed of the noise; another seed gives an independent draw.

    Returns:
        [count], sorted.
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, _GUMBEL_KEY], np.uint64)
    bits = np.random.Philox(key=key).random_raw(len(weights))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0 or 1
    return _largest(weights - np.log(-np.log(uniform)), count)


def heaviest_share(weights: NDArray[np.float64], chosen: NDArray[np.int64]) -> float:
    """Measure which share of the chosen windows is among as many heaviest windows."""
    return len(np.intersect1d(chosen, _largest(weights, len(chosen)), assume_unique=True)) / len(chosen)


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """[count], sorted places of the largest values."""
    places = np.argpartition(values, len(values) - count)[len(values) - count :]
    return np.sort(places).astype(np.int64)


def _count_task(task: ExampleSources, dropped: DropCounts, sketch: SketchBuilder) -> tuple[NDArray[np.int64], int]:
    """Count the n-grams of the examples, [NUM_BUCKETS], and the examples."""
    counts, num_examples = np.zeros(NUM_BUCKETS, np.int64), 0
    for batch in split_in_batches(task.read(dropped, sketch), _TASK_CHARACTERS):
        counts += count_ngrams([text for _, text in batch])
        num_examples = batch[-1][0] + 1
    return counts, num_examples


def _count_corpus(dataset: Dataset, fitted: int, processes: int, log: Log) -> tuple[NDArray[np.int64], int]:
    """Count the n-grams, [NUM_BUCKETS], of about `fitted` windows of the dataset, and these windows exactly."""
    parts = parts_of(dataset) if fitted == dataset.manifest.num_windows else _sampled_parts(dataset, fitted)
    counts, num_windows = np.zeros(NUM_BUCKETS, np.int64), 0
    progress = Progress("n-grams", "windows", log=log, total=fitted)
    for part_windows, part_counts in map_unordered(_count_part, parts, processes=processes):
        counts += part_counts
        num_windows += part_windows
        progress.add(part_windows)
    progress.finish()
    if not counts.any():
        raise InputError(f"{dataset.root}: must hold at least one word, got none in {num_windows:,} windows.")
    return counts, num_windows


def default_floor(dataset: Dataset) -> int:
    """The shortest windows that are drawn unless another number is given, in tokens."""
    return 0 if dataset.manifest.packing == "joined" else dataset.manifest.window_tokens // 4


@dataclass(frozen=True, kw_only=True)
class _Weighed:
    sums: NDArray[np.float64]
    """[num_windows], nats."""
    ngrams: NDArray[np.int64]
    """[num_windows]"""
    lengths: NDArray[np.int64]
    """[num_windows], tokens of text."""
    text_bytes: int

    def log_weights(self, dataset: Dataset) -> NDArray[np.float64]:
        """[num_windows], nats: sums where all windows are full, else as if all went on to be."""
        if dataset.manifest.packing == "joined":
            return self.sums
        means = self.sums / np.maximum(self.ngrams, 1)
        return means * (self.ngrams.sum() / max(int(self.lengths.sum()), 1) * dataset.manifest.window_tokens)


def _weigh(dataset: Dataset, ratios: NDArray[np.float64], processes: int, log: Log) -> _Weighed:
    """Weigh all windows."""
    num_windows, text_bytes = dataset.manifest.num_windows, 0
    sums = np.zeros(num_windows)
    ngrams, lengths = np.zeros(num_windows, np.int64), np.zeros(num_windows, np.int64)
    progress = Progress("weights", "windows", log=log, total=num_windows)
    tasks = ((part, ratios) for part in parts_of(dataset))
    for first, part in map_unordered(_weigh_part, tasks, processes=processes):
        at = slice(first, first + len(part.sums))
        sums[at], ngrams[at], lengths[at] = part.sums, part.ngrams, part.lengths
        text_bytes += part.text_bytes
        progress.add(len(part.sums))
    progress.finish()
    return _Weighed(sums=sums, ngrams=ngrams, lengths=lengths, text_bytes=text_bytes)


def _sampled_parts(dataset: Dataset, fitted: int) -> Iterator[ShardPart]:
    """Cut runs of windows at even distances; one that a shard's end cuts is shorter.

    Windows lie in leaf order, so the sample is stratified over the tree.
    """
    key, length = DatasetKey.of(dataset), min(_RUN_WINDOWS, fitted)
    num_runs = fitted // length
    firsts = ((np.arange(num_runs) + 0.5) * (dataset.manifest.num_windows / num_runs) - length / 2).astype(np.int64)
    shards = np.searchsorted(dataset.first_window_per_shard, firsts, side="right") - 1
    for shard, first in zip(shards.tolist(), firsts.tolist(), strict=True):
        start = first - int(dataset.first_window_per_shard[shard])
        count = min(length, dataset.shards[shard].num_windows - start)
        yield ShardPart(key, shard, start, count)


def _count_part(part: ShardPart) -> tuple[int, NDArray[np.int64]]:
    counts = np.zeros(NUM_BUCKETS, np.int64)
    for batch in _decoded_part(part):
        counts += count_ngrams(batch.texts)
    return part.num_windows, counts


def _weigh_part(task: tuple[ShardPart, NDArray[np.float64]]) -> tuple[int, _Weighed]:
    """Return the first window of a part in the dataset, and the weights of its windows."""
    part, ratios = task
    dataset, decoder = opened(part.dataset)
    tokens = read_tokens(dataset, part)
    found, text_bytes = [], 0
    for batch in decoded(decoder, tokens):
        found.append(log_weights(batch.texts, batch.owners, batch.num_windows, ratios))
        text_bytes += batch.text_bytes
    full = dataset.manifest.packing == "joined"
    weighed = _Weighed(
        sums=np.concatenate([sums for sums, _ in found]),
        ngrams=np.concatenate([ngrams for _, ngrams in found]),
        lengths=np.full(len(tokens), tokens.shape[1])
        if full
        else text_tokens(tokens, dataset.manifest.tokenizer.eot_id),
        text_bytes=text_bytes,
    )
    return first_window(dataset, part), weighed


def _decoded_part(part: ShardPart) -> Iterator[DecodedWindows]:
    dataset, decoder = opened(part.dataset)
    return decoded(decoder, read_tokens(dataset, part))
