"""`crisp-stream append`: add documents to a dataset, with its tokenizer, encoder and tree.

The new windows are cut, embedded and sorted as `write` does it, in parts that are numbered on from the dataset's. Then
every level-1 cluster that gets windows merges its old ones and its new ones by key into new shards; the other shards
stay as they are. So the windows and their order are those of one write of all documents (with the same tree, and
parts that end where the old dataset ends), but only the new documents cost a pass through the encoder. Inserting
windows into existing shards in place was rejected: runs that read them would see their data change.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, require_extra
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import DROPPED, MANIFEST, Manifest
from crisp_stream.format.provenance import has_provenance
from crisp_stream.format.tables import generation_path
from crisp_stream.processes import Log
from crisp_stream.storage.store import local_path, open_store
from crisp_stream.writers.cleaning.dropped import read_dropped
from crisp_stream.writers.documents.drops import DropCounts, merged_counts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.embedding.given_models import models_of_dataset
from crisp_stream.writers.engine.tasks import Runner, fingerprint
from crisp_stream.writers.engine.workspace import Workspace, remote_or_absolute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing import generations
from crisp_stream.writers.publishing.generations import Append
from crisp_stream.writers.publishing.work import work_folder
from crisp_stream.writers.report import AppendReport
from crisp_stream.writers.stages.dataset import check_windows, forget_lost, tree_provenance
from crisp_stream.writers.stages.documents import ReadDocuments
from crisp_stream.writers.stages.pipeline import Assembly, Corpus, Growth, assemble_in_stages, embed_in_stages
from crisp_stream.writers.stages.provenance import list_dropped, provenance_record, shard_facts, table_files
from crisp_stream.writers.stages.shards import ShardsSummary
from crisp_stream.writers.write import QUICK_EXTRAS, engine_of

_SUMS = ("documents", "characters", "tokens", "parts")
_KEPT_KEYS = ("tree", "tokenizer", "levels")


def append(options: WriteOptions, *, prune: bool = False, log: Log = print) -> AppendReport:
    """Add documents to a dataset: it becomes a new generation of itself. Goes on where an interrupted run stopped.

    Args:
        options: `out` is the dataset, from which window length, packing, tokenizer, encoder, tree, seed and size of
            parts are taken.
        prune: in the end delete the files that only older generations use; these can then not be opened any more.
        log: receives progress and the final table.

    Raises:
        InputError: bad input or options, a dataset without provenance, another append of it, or a dataset that changed
            meanwhile.
        FormatError, CorruptDataError: the dataset is damaged. StorageError: the storage refused or failed.
        MissingExtraError: a library of the write extra is not installed.
    """
    started = time.monotonic()
    for module in QUICK_EXTRAS:
        require_extra(module, extra="write", purpose="growing a dataset")
    store = open_store(options.out)
    unfinished, current = generations.append_in_progress(store), open_dataset(options.out)
    if unfinished is not None and unfinished.generation == current.manifest.generation:
        log(f"append: finishing the interrupted append that made generation {unfinished.generation}")
        current = generations.settle(options.out, prune=prune, log=log)
        is_done = unfinished.request == _request(_options_like(options, current))
        if is_done:
            with work_folder(options, log):
                pass
        generations.end(store, unfinished)
        if is_done:
            return _report(current, log, started)
    content, dataset = store.get(MANIFEST), open_dataset(options.out)
    _check_dataset(dataset, content)
    options = _options_like(options, dataset)
    generation = dataset.manifest.generation + 1
    claim = Append(generation=generation, base=dataset.manifest.fingerprint, request=_request(options))
    generations.check_free(store, claim)
    with contextlib.closing(engine_of(options)) as engine, work_folder(options, log) as workspace:
        grown = _Grown(options, dataset, Runner(engine, workspace, log=log), claim)
        manifest, files = grown.make()
        for name, small in files.items():
            store.put(name, small)
        try:
            generations.exchange_manifest(store, content, manifest)
        except InputError:
            generations.end(store, claim)
            raise
        dataset = generations.settle(options.out, prune=prune, log=log)
        log(f"published: {options.out}, generation {generation}")
    generations.end(store, claim)
    return _report(dataset, log, started)


def _check_dataset(dataset: Dataset, content: bytes) -> None:
    if Manifest.from_json(content) != dataset.manifest:
        raise InputError(f"{dataset.root}: the dataset changed meanwhile. Run the command again.")
    dataset.store.list(generations.APPENDING)  # a web server, which cannot be written to, refuses this already
    if not has_provenance(dataset):
        raise InputError(
            f"{dataset.root}: must say where its windows came from to grow, but was written without provenance. Write "
            f"all documents again, with its tree: crisp-stream write INPUT… --like {dataset.root} --out NEW"
        )


def _options_like(options: WriteOptions, dataset: Dataset) -> WriteOptions:
    """The options with everything that the dataset determines."""
    for name in ("like", "tree", "tokenizer"):
        if getattr(options, name) is not None:
            raise InputError(f"{name}: must be left out, because {dataset.root} has one. Leave it out.")
    if options.embeddings is not None:
        raise InputError(
            f"embeddings: must be left out, because append embeds new windows alone, got {options.embeddings}. Then "
            f"run: crisp-stream embed {dataset.root} --out {options.embeddings}"
        )
    manifest, provenance = dataset.manifest, dataset.manifest.provenance
    return replace(
        options,
        window_tokens=manifest.window_tokens,
        packing=manifest.packing,
        max_length=None,
        reads="first",
        arity=manifest.arity,
        depth=manifest.depth,
        fit_windows=max(options.fit_windows, manifest.arity),
        seed=manifest.sort_seed,
        part_characters=provenance.get("part_characters") or WriteOptions.part_characters,
        shard_level=provenance.get("shard_level") or 1,
    )


def _request(options: WriteOptions) -> str:
    """Fingerprint of the documents and of what determines the windows that they give."""
    files = list_input_files(options.inputs, options.documents, DropCounts())
    evaluation: list[Any] = []
    if options.decontaminate:
        evaluation = list_input_files(options.decontaminate, DocumentSettings(), DropCounts())
    return fingerprint(
        [asdict(file) for file in (*files, *evaluation)],
        len(files),
        options.documents,
        [options.limit, options.sample, options.skip_corrupt, options.dedup, options.near_threshold, options.ngram],
        [options.part_characters, options.group_bytes, options.shard_bytes, options.shard_level],
        *([options.question_keys] if options.question_keys else []),
    )


def _report(dataset: Dataset, log: Log, started: float) -> AppendReport:
    manifest = dataset.manifest
    entry = manifest.provenance["appended"][-1]
    report = AppendReport.of(
        dataset.root,
        manifest,
        entry,
        time.monotonic() - started,
        windows=entry["windows"],
        generation=manifest.generation,
        windows_before=manifest.num_windows - entry["windows"],
        new_shards=entry["new_shards"],
    )
    log(report.table())
    return report


class _Grown:
    """The stages of an append."""

    def __init__(self, options: WriteOptions, dataset: Dataset, runner: Runner, claim: Append) -> None:
        self._options, self._dataset, self._runner, self._claim = options, dataset, runner, claim
        self._growth = Growth.of(dataset)

    def make(self) -> tuple[Manifest, dict[str, bytes]]:
        """Put shards, places and documents of the new generation into the root.

        Returns:
            Its manifest and its other tables, which are not written yet.
        """
        options, runner, dataset, growth = self._options, self._runner, self._dataset, self._growth
        corpus = embed_in_stages(runner, options, models_of_dataset(dataset), first_part=growth.next_part)
        root, staged = remote_or_absolute(options.out), _staged_root(options, runner.workspace, self._claim)
        assembly = assemble_in_stages(runner, options, corpus, staged, growth)
        has_begun = generations.begin(dataset.store, self._claim)  # files may be in the root only if it has
        places = [*([staged] if staged != root else []), *([root] if has_begun else [])]
        forget_lost(runner, assembly.shards, assembly.tables, places)
        shards = assembly.make(runner)
        check_windows(shards, corpus.embedded.parts, more=dataset.manifest.num_windows)
        if staged != root:
            generations.move_staged_files(Path(staged), local_path(dataset.root))
        provenance = self._provenance(corpus, shards, tree_provenance(assembly.tree, shards, None))
        generation = self._claim.generation
        manifest = replace(dataset.manifest, generation=generation, provenance=provenance, **shard_facts(shards))
        tables = self._tables(shards, corpus, assembly)
        return manifest, {generation_path(name, generation): content for name, content in tables.items()}

    def _provenance(self, corpus: Corpus, shards: ShardsSummary, levels: list[dict[str, Any]]) -> dict[str, Any]:
        """Provenance of the new generation: sums over all generations, and an account of what was added now."""
        old = self._dataset.manifest.provenance
        record = provenance_record(self._options, corpus, [], None)
        entry = {name: value for name, value in record.items() if name not in _KEPT_KEYS}
        old_paths = {row.path for row in self._dataset.shards}
        entry |= {
            "generation": self._claim.generation,
            "windows": corpus.embedded.summary.num_windows,
            "new_shards": sum(row.path not in old_paths for row in shards.rows),
        }
        joined = {**old, "levels": levels, "appended": [*old.get("appended", []), entry]}
        for name in _SUMS:
            joined[name] = int(old.get(name) or 0) + entry[name]
        joined["parts"] = self._growth.next_part + len(corpus.embedded.parts)
        for name in ("dropped_documents", "dropped_tokens"):
            joined[name] = merged_counts([old.get(name) or {}, entry[name]])
        return joined

    def _tables(self, shards: ShardsSummary, corpus: Corpus, assembly: Assembly) -> dict[str, bytes]:
        """The small tables of the new generation, by path."""
        read, growth, store = corpus.read, self._growth, self._dataset.store
        names = _new_names(read, growth.sources)
        named = [replace(file, name=name) for file, name in zip(read.files, names, strict=True)]
        name_of = {file.name: name for file, name in zip(read.files, names, strict=True)}
        path = self._dataset.own_path(DROPPED)
        dropped = read_dropped(store.get(path)) if store.exists(path) else []
        for row in list_dropped(replace(read, files=named), corpus.embedded):
            dropped.append(replace(row, file=name_of[row.file]) if row.reason == "contaminated" else row)
        tables = [*growth.tables, *(task.table for task in assembly.tables)]
        first_parts = [*growth.first_parts, *assembly.first_parts]
        return table_files(shards, [*growth.sources, *names], tables, first_parts, dropped)


def _staged_root(options: WriteOptions, workspace: Workspace, claim: Append) -> str:
    """Folder for new files: the root itself on an object store, else one that only this append uses."""
    root = remote_or_absolute(options.out)
    if open_store(options.out).is_local and workspace.folder is not None:
        return str(workspace.folder / f"staged-{fingerprint(root, claim)}")
    return root


def _new_names(read: ReadDocuments, taken: Sequence[str]) -> list[str]:
    """Names of the new input files that no other has: a number is put behind those that are taken."""
    names, used = [], set(taken)
    for file in read.files:
        name, number = file.name, 1
        while name in used:
            number += 1
            name = f"{file.name}~{number}"
        used.add(name)
        names.append(name)
    return names
