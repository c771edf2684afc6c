"""The stages of a write. Each leaves its outcome in the work folder under a final name, whole or not at all, and does
nothing when it finds it there; so a run that was stopped anywhere goes on by running all of them again.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from crisp_stream.errors import InputError
from crisp_stream.format import (
    CLUSTERS,
    SHARDS,
    Manifest,
    Packing,
    clusters_fingerprint,
    clusters_parquet,
    shards_fingerprint,
    shards_parquet,
)
from crisp_stream.mds import index_bytes
from crisp_stream.tree import ClusterTree
from crisp_stream.writers.documents import DropCounts, read_documents
from crisp_stream.writers.fit_tree import fit_tree
from crisp_stream.writers.parts import PartsSummary, PartTask, WindowSettings, make_part, split_in_parts
from crisp_stream.writers.pool import Log, Progress, map_unordered
from crisp_stream.writers.shards import (
    HASH_BITS,
    DirectoryRecord,
    DirectoryTask,
    RunTask,
    group_parts,
    part_path,
    run_files,
    sort_run,
    window_hashes,
    write_directory,
)
from crisp_stream.writers.windows import DocumentTokenizer, copy_tokenizer, train_tokenizer

_PROBE_DOCUMENTS = 64
_PROBE_CHARACTERS = 1 << 20
_SAMPLE_SALT = 1


class WorkFolder:
    """Where each stage leaves its outcome."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / "lock"
        self.tokenizer = folder / "tokenizer"
        self.parts = folder / "parts"
        self.parts_summary = folder / "parts.json"
        self.tree = folder / "tree"
        self.runs = folder / "runs"
        self.records = folder / "records"
        self.staged = folder / "staged"
        self.manifest = folder / "manifest.json"
        """Written when the staged dataset is complete; from then on only publishing is left."""

    def holds_progress(self) -> bool:
        """Whether any part is finished."""
        return self.parts_summary.exists() or any(self.parts.glob("*.json"))


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Which documents are written."""

    inputs: tuple[str, ...]
    text_column: str
    limit: int | None
    sample: float | None

    def read(self, counts: DropCounts) -> Iterator[str]:
        """Stream the texts from the start."""
        return read_documents(
            self.inputs, text_column=self.text_column, limit=self.limit, sample=self.sample, counts=counts
        )


def publish_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder under a temporary name, then rename it."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    temporary.rename(target)


def make_tokenizer(
    work: WorkFolder, documents: Documents, *, given: str | None, vocab_size: int, window_tokens: int, log: Log
) -> None:
    """Train a tokenizer on the first documents, or bring the given one. Raises InputError."""
    if work.tokenizer.exists():
        return
    if given is not None:
        publish_folder(work.tokenizer, lambda folder: copy_tokenizer(given, folder, window_tokens=window_tokens))
        return
    texts = documents.read(DropCounts())
    publish_folder(
        work.tokenizer,
        lambda folder: train_tokenizer(texts, folder, vocab_size=vocab_size, window_tokens=window_tokens),
    )
    log(f"tokenizer: trained, {DocumentTokenizer(work.tokenizer).vocab_size:,} entries")


def probe_texts(texts: Iterator[str]) -> list[str]:
    """The first documents, on which tiktoken is compared with the tokenizer."""
    probed, characters = [], 0
    for text in itertools.islice(texts, _PROBE_DOCUMENTS):
        probed.append(text)
        characters += len(text)
        if characters >= _PROBE_CHARACTERS:
            break
    return probed


def window_settings(
    work: WorkFolder,
    documents: Documents,
    *,
    window_tokens: int,
    packing: Packing,
    encoder: str | None,
    max_length: int | None,
    log: Log,
) -> WindowSettings:
    """Settle how workers make windows; whether tiktoken is used is decided here, once, for all of them."""
    tokenizer = DocumentTokenizer(work.tokenizer)
    return WindowSettings(
        tokenizer_folder=work.tokenizer,
        fast_tokenizer=tokenizer.equals_tiktoken(probe_texts(documents.read(DropCounts())), log=log),
        window_tokens=window_tokens,
        packing=packing,
        encoder=encoder,
        max_length=max_length,
    )


def make_parts(
    work: WorkFolder, documents: Documents, settings: WindowSettings, part_characters: int, *, processes: int, log: Log
) -> PartsSummary:
    """Tokenise, cut and embed every document. Raises InputError when there are no windows."""
    if work.parts_summary.exists():
        return PartsSummary.load(work.parts_summary)
    work.parts.mkdir(exist_ok=True)
    counts = DropCounts()
    num_parts = num_found = 0

    def tasks() -> Iterator[PartTask]:
        nonlocal num_parts, num_found
        for part, texts in enumerate(split_in_parts(documents.read(counts), part_characters)):
            num_parts = part + 1
            if part_path(work.parts, part, "json").exists():
                num_found += 1
            else:
                yield PartTask(part=part, texts=texts, folder=work.parts, settings=settings)

    progress = Progress("windows", "windows", log=log)
    for num_windows in map_unordered(make_part, tasks(), processes=processes):
        progress.add(num_windows)
    progress.finish()
    if num_found:
        log(f"windows: {num_found} of {num_parts} parts were there from an earlier run")
    summary = PartsSummary.of_parts(work.parts, num_parts, counts.as_dict())
    if summary.num_windows == 0:
        raise InputError(
            f"inputs: must fill at least one window of {settings.window_tokens} tokens, got "
            f"{sum(summary.dropped_tokens.values())} tokens in {summary.num_documents} documents. "
            "Give more text, a smaller --window-tokens, or --packing document."
        )
    summary.save(work.parts_summary)
    return summary


def make_tree(
    work: WorkFolder,
    summary: PartsSummary,
    *,
    arity: int,
    depth: int,
    min_examples_to_split: int | None,
    seed: int,
    fit_windows: int,
    log: Log,
) -> None:
    """Fit the tree on all windows, or on about `fit_windows` of them chosen by hash. Raises InputError."""
    if work.tree.exists():
        return
    sample_path = work.folder / "sample.npy"
    sample = _sample_embeddings(work, summary, sample_path, fit_windows=fit_windows, seed=seed)
    if len(sample) < arity:
        raise InputError(
            f"inputs: must give at least {arity} windows to split the root in {arity}, got {summary.num_windows}. "
            "Give more text, a smaller --window-tokens, or a smaller --arity."
        )
    progress = Progress("tree", "nodes", log=log)
    tree = fit_tree(
        sample,
        arity=arity,
        depth=depth,
        min_examples_to_split=min_examples_to_split,
        seed=seed,
        progress=lambda level, done, total: progress.add(1),
    )
    progress.finish()
    log(f"tree: {tree.num_leaves:,} leaves, fitted on {len(sample):,} windows")
    publish_folder(work.tree, tree.save)
    del sample
    sample_path.unlink()


def _sample_embeddings(work: WorkFolder, summary: PartsSummary, path: Path, *, fit_windows: int, seed: int) -> Any:
    """[num_sampled, dim] float16, memory-mapped."""
    share = min(1.0, fit_windows / summary.num_windows)
    threshold = np.uint64(round(share * (1 << HASH_BITS)))

    def chosen(part: int) -> Any:
        return window_hashes(part, summary.windows_per_part[part], seed + _SAMPLE_SALT) < threshold

    parts = range(len(summary.windows_per_part))
    num_sampled = sum(int(np.count_nonzero(chosen(part))) for part in parts)
    sample = open_memmap(path, mode="w+", dtype=np.float16, shape=(num_sampled, summary.encoder.dim))
    filled = 0
    for part in parts:
        if summary.windows_per_part[part]:
            rows = np.load(part_path(work.parts, part, "embeddings.npy"), mmap_mode="r")[chosen(part)]
            sample[filled : filled + len(rows)] = rows
            filled += len(rows)
    return sample


def sort_runs(
    work: WorkFolder, summary: PartsSummary, settings: WindowSettings, *, seed: int, processes: int, log: Log
) -> None:
    """Assign every window to its leaf and sort the parts into runs."""
    work.runs.mkdir(exist_ok=True)
    token_bytes = np.dtype(DocumentTokenizer(settings.tokenizer_folder).token_dtype).itemsize
    groups = group_parts(summary.windows_per_part, settings.window_tokens * token_bytes)
    tasks = [
        RunTask(
            parts=parts, parts_folder=work.parts, tree_folder=work.tree, run=work.runs / f"run-{number:05d}", seed=seed
        )
        for number, parts in enumerate(groups)
    ]
    progress = Progress("sort", "windows", log=log, total=summary.num_windows)
    for num_windows in map_unordered(sort_run, tasks, processes=min(processes, len(tasks))):
        progress.add(num_windows)
    progress.finish()


def write_shards(
    work: WorkFolder, *, shard_bytes: int, shard_level: int, memory_bytes: int, processes: int, log: Log
) -> dict[int, DirectoryRecord]:
    """Write the directories of all level-1 clusters; the records of those that hold windows, by node."""
    work.records.mkdir(exist_ok=True)
    work.staged.mkdir(exist_ok=True)
    tree = ClusterTree.load(work.tree)
    leaves_per_node = tree.arity ** (tree.depth - 1)
    runs = tuple(work.runs / path.name.removesuffix(".keys.npy") for path in sorted(work.runs.glob("*.keys.npy")))
    num_windows = sum(len(np.load(run_files(run)[0], mmap_mode="r")) for run in runs)
    tasks = [
        DirectoryTask(
            node=node,
            first_leaf=node * leaves_per_node,
            end_leaf=(node + 1) * leaves_per_node,
            runs=runs,
            root=work.staged,
            record=work.records / f"{node:02d}.json",
            shard_bytes=shard_bytes,
            memory_bytes=memory_bytes,
            leaves_per_shard_node=tree.arity ** (tree.depth - shard_level),
        )
        for node in range(tree.arity)
    ]
    progress = Progress("shards", "windows", log=log, total=num_windows)
    for written in map_unordered(write_directory, tasks, processes=processes):
        progress.add(written)
    progress.finish()
    records = {task.node: DirectoryRecord.load(task.record) for task in tasks}
    return {node: record for node, record in records.items() if record.rows}


def stage_dataset(
    work: WorkFolder,
    records: dict[int, DirectoryRecord],
    summary: PartsSummary,
    settings: WindowSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
) -> None:
    """Complete the staged dataset: merged index, tables, tree, tokenizer; then its manifest, beside it."""
    tree = ClusterTree.load(work.tree)
    tokenizer = DocumentTokenizer(settings.tokenizer_folder)
    rows = [row for record in records.values() for row in record.rows]
    leaves = np.concatenate([record.leaves for record in records.values()])
    windows_per_leaf = np.concatenate([record.windows_per_leaf for record in records.values()])
    if int(windows_per_leaf.sum()) != summary.num_windows or (np.diff(leaves.astype(np.int64)) <= 0).any():
        raise AssertionError(f"{windows_per_leaf.sum()} windows were sorted of {summary.num_windows}")
    staged = work.staged
    index = index_bytes(rows, below="shards", window_tokens=settings.window_tokens, token_dtype=tokenizer.token_dtype)
    (staged / "shards" / "index.json").write_bytes(index)
    (staged / CLUSTERS).write_bytes(clusters_parquet(leaves, windows_per_leaf))
    (staged / SHARDS).write_bytes(shards_parquet(rows))
    for folder in (work.tree, work.tokenizer):
        shutil.copytree(folder, staged / folder.name, dirs_exist_ok=True)
    manifest = Manifest(
        window_tokens=settings.window_tokens,
        token_dtype=tokenizer.token_dtype,
        packing=settings.packing,
        num_windows=summary.num_windows,
        num_leaves=len(leaves),
        num_shards=len(rows),
        arity=tree.arity,
        depth=tree.depth,
        sort_seed=seed,
        clusters_fingerprint=clusters_fingerprint(leaves, windows_per_leaf),
        shards_fingerprint=shards_fingerprint(rows),
        tree_fingerprint=tree.fingerprint,
        tokenizer=tokenizer.record(),
        encoder=summary.encoder,
        provenance=provenance,
    )
    temporary = work.manifest.with_name(work.manifest.name + ".tmp")
    temporary.write_bytes(manifest.to_json())
    temporary.replace(work.manifest)
