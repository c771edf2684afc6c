"""Verify every byte of a dataset: shards and tables against each other, and with `deep` against the provenance.

One pass over the shards, a few MB at a time. A deep verification reads 8 bytes more per window; it recomputes the key
by which every window was sorted from where the window came from, so a leaf whose windows were put in another order is
found even where all checksums, hashes and tables were made to fit. And it reads every small file (`verify_files`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.errors import CrispError
from crisp_stream.format.checksums import damaged, window_seeds
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.ledger import read_ledger
from crisp_stream.format.mds import index_bytes, sample_dtype
from crisp_stream.inspection.verify_files import file_problems
from crisp_stream.inspection.verify_places import PlacesCheck

VERIFY_CHUNK_BYTES = 8 << 20


@dataclass(kw_only=True)
class VerifyReport:
    """Problems of a dataset, and how much of it was read."""

    num_windows: int = 0
    """Windows whose checksum and cluster were compared."""
    num_bytes: int = 0
    """Bytes of shards read."""
    problems: list[str] = field(default_factory=list)
    """One line each; empty when the dataset is whole."""


def verify_dataset(
    root: str,
    *,
    deep: bool = False,
    generation: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read the whole dataset and compare everything that can be compared (FORMAT.md, "Verification").

    Args:
        root: dataset root.
        deep: also compare the order of all windows, and their number per leaf, with their provenance, the ledger with
            the manifest, and every other file with the list of files.
        generation: generation of a dataset that has grown, the newest when None; indexes are the newest's alone.
        progress: called with (shards done, shards).

    Raises:
        FormatError, StorageError, InputError: the dataset cannot be opened at all.
    """
    dataset = open_dataset(root, generation=generation)
    report = VerifyReport()
    for check in (lambda: dataset.tree, dataset.tokenizer_path):
        try:
            check()
        except CrispError as error:
            report.problems.append(str(error))
    if generation is None or open_dataset(root).manifest.generation == generation:
        report.problems += _wrong_indexes(dataset)
    places = PlacesCheck(dataset) if deep else None
    if places is not None:
        report.problems += places.read_tables() + _ledger_problems(dataset)
    for shard in range(len(dataset.shards)):
        try:
            problem = _shard_problem(dataset, shard, report, places)
        except CrispError as error:
            problem = str(error)
        if problem:
            report.problems.append(problem)
            if places is not None:
                places.leave_out(shard)
        if progress is not None:
            progress(shard + 1, len(dataset.shards))
    if places is not None:
        report.problems += places.finish()
        report.problems += file_problems(dataset, report.problems)
    return report


def _shard_problem(dataset: Dataset, shard: int, report: VerifyReport, places: PlacesCheck | None) -> str | None:
    row, manifest = dataset.shards[shard], dataset.manifest
    object_bytes = dataset.store.object_bytes(row.path)
    if object_bytes != row.shard_bytes:
        return f"{row.path}: has {object_bytes} bytes, the shard table says {row.shard_bytes}"
    dtype = sample_dtype(manifest.window_tokens, manifest.token_dtype)
    header = dataset.store.get_range(row.path, 0, row.first_sample_offset)
    hasher = xxhash.xxh3_128(header)
    problem = None if places is None else places.begin(shard)
    windows_per_chunk = max(1, VERIFY_CHUNK_BYTES // dtype.itemsize)
    for start in range(0, row.num_windows, windows_per_chunk):
        count = min(windows_per_chunk, row.num_windows - start)
        content = dataset.store.get_range(
            row.path, row.first_sample_offset + start * dtype.itemsize, count * dtype.itemsize
        )
        hasher.update(content)
        samples = np.frombuffer(content, dtype)
        problem = problem or _sample_problem(dataset, shard, start, samples, counted=places is not None)
        if places is not None:
            problem = problem or places.add(shard, start, samples)
        report.num_windows += count
        report.num_bytes += len(content)
    if problem is None and hasher.hexdigest() != row.shard_hash:
        problem = f"{row.path}: its hash is {hasher.hexdigest()}, the shard table says {row.shard_hash}"
    return problem


def _sample_problem(dataset: Dataset, shard: int, start: int, samples: NDArray[Any], *, counted: bool) -> str | None:
    """Name the first problem of consecutive samples of a shard, `start` being their first in it; None without any.

    `counted`: windows of each leaf are counted and compared in the end, which says more than where a leaf begins.
    """
    path, first = dataset.shards[shard].path, int(dataset.first_window_per_shard[shard]) + start
    window_ids = np.arange(first, first + len(samples))
    wrong = damaged(samples, window_seeds(dataset.shards[shard].checksum_seed, start, len(samples)))
    if wrong.any():
        return f"{path}: window {window_ids[wrong][0]} does not match its checksum ({int(wrong.sum())} such windows)"
    clusters = samples["cluster"]
    misplaced = clusters != dataset.leaf_of_windows(window_ids)
    if misplaced.any() and not counted:
        window = int(window_ids[misplaced][0])
        return (
            f"{path}: window {window} is of cluster {clusters[misplaced][0]}, the cluster table says "
            f"{dataset.leaf_of_windows(np.array([window]))[0]}"
        )
    folder = clusters // dataset.manifest.arity ** (dataset.manifest.depth - 1)
    if not (folder == int(path.split("/")[1])).all():
        return f"{path}: holds windows of the level-1 clusters {sorted(set(folder.tolist()))}"
    return None


def _ledger_problems(dataset: Dataset) -> list[str]:
    try:
        read_ledger(dataset)
    except CrispError as error:
        return [str(error)]
    return []


def _wrong_indexes(dataset: Dataset) -> list[str]:
    manifest = dataset.manifest
    folders = sorted({row.path.rpartition("/")[0] for row in dataset.shards})
    problems = []
    for below in ["shards", *folders]:
        rows = [row for row in dataset.shards if row.path.startswith(below + "/")]
        expected = index_bytes(
            rows, below=below, window_tokens=manifest.window_tokens, token_dtype=manifest.token_dtype
        )
        try:
            if dataset.store.get(f"{below}/index.json") != expected:
                problems.append(f"{below}/index.json: does not list the shards of the shard table")
        except CrispError as error:
            problems.append(str(error))
    return problems
