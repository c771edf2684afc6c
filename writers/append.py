"""`crisp-stream append`: more documents into a dataset, with its own tokenizer, encoder and tree.

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, require_extra
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import DROPPED, MANIFEST, SOURCES, TABLES, Manifest
from crisp_stream.format.provenance import documents_tables, has_provenance, source_names
from crisp_stream.format.tables import (
    CLUSTERS,
    SHARDS,
    clusters_fingerprint,
    clusters_parquet,
    generation_path,
    shards_fingerprint,
    shards_parquet,
)
from crisp_stream.processes import Log
from crisp_stream.storage.store import local_path, open_store
from crisp_stream.writers.append_report import AppendReport, report_of
from crisp_stream.writers.cleaning.dropped import Dropped, dropped_parquet, read_dropped
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.embedding.given_models import models_of_dataset
from crisp_stream.writers.engine.engine import LocalEngine, RayEngine
from crisp_stream.writers.engine.tasks import Runner, fingerprint
from crisp_stream.writers.engine.workspace import Workspace, remote_or_absolute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing import generations
from crisp_stream.writers.publishing.generations import Append
from crisp_stream.writers.publishing.work import work_folder
from crisp_stream.writers.stages import dataset as finish
from crisp_stream.writers.stages import models as stages
from crisp_stream.writers.stages.documents import ReadDocuments, read_documents_in_stages
from crisp_stream.writers.stages.models import EmbeddedParts
from crisp_stream.writers.stages.runs import tree_of
from crisp_stream.writers.stages.shards import ShardSettings, ShardsSummary
from crisp_stream.writers.write import QUICK_EXTRAS, dropped_documents, engine_of, provenance_record

_SUMS = ("documents", "characters", "tokens", "parts")
_OF_THE_DATASET = ("tree", "tokenizer", "levels")


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
    found, current = generations.append_in_progress(store), open_dataset(options.out)
    if found is not None and found.generation == current.manifest.generation:
        log(f"append: finishing the interrupted append that made generation {found.generation}")
        current = generations.settle(options.out, prune=prune, log=log)
        is_done = found.request == _request(_as_dataset(options, current))
        if is_done:
            with work_folder(options, log):
                pass
        generations.end(store, found)
        if is_done:
            return _report(current, log, started)
    content, dataset = store.get(MANIFEST), open_dataset(options.out)
    _check_dataset(dataset, content)
    asked = _as_dataset(options, dataset)
    generation = dataset.manifest.generation + 1
    own = Append(generation=generation, base=dataset.manifest.fingerprint, request=_request(asked))
    generations.check_free(store, own)
    with contextlib.closing(engine_of(asked)) as engine, work_folder(asked, log) as workspace:
        grown = _Grown(asked, dataset, Runner(engine, workspace, log=log), own)
        manifest, files = grown.make(engine)
        for name, small in files.items():
            store.put(name, small)
        try:
            generations.exchange_manifest(store, content, manifest)
        except InputError:
            generations.end(store, own)
            raise
        dataset = generations.settle(asked.out, prune=prune, log=log)
        log(f"published: {asked.out}, generation {generation}")
    generations.end(store, own)
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


def _as_dataset(options: WriteOptions, dataset: Dataset) -> WriteOptions:
    """The options with everything that the dataset determines."""
    for name in ("like", "tree", "tokenizer"):
        if getattr(options, name) is not None:
            raise InputError(f"{name}: must be left out, because {dataset.root} has one. Leave it out.")
    if options.embeddings is not None:
        raise InputError(
            f"embeddings: must be left out, because append embeds new windows alone, got {options.embeddings}. Then "
            f"run: crisp-stream embed {dataset.root} --out {options.embeddings}"
        )
    manifest, known = dataset.manifest, dataset.manifest.provenance
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
        part_characters=known.get("part_characters") or WriteOptions.part_characters,
        shard_level=known.get("shard_level") or 1,
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
    )


def _report(dataset: Dataset, log: Log, started: float) -> AppendReport:
    report = report_of(dataset, time.monotonic() - started)
    log(report.table())
    return report


@dataclass(frozen=True, kw_only=True)
class _Before:
    """What the numbers of new parts, groups and files follow on."""

    tables: list[str]
    first_parts: list[int]
    sources: list[str]
    next_part: int
    next_group: int

    @classmethod
    def of(cls, dataset: Dataset) -> _Before:
        tables = documents_tables(dataset)
        last = max((spans.part for spans in tables[-1].parts()), default=tables[-1].first_part) if tables else -1
        for table in tables:
            table.close()
        return cls(
            tables=[table.path for table in tables],
            first_parts=[table.first_part for table in tables],
            sources=source_names(dataset),
            next_part=max(last + 1, int(dataset.manifest.provenance.get("parts") or 0)),
            next_group=max((int(Path(table.path).stem) for table in tables), default=-1) + 1,
        )


class _Grown:
    """The stages of an append."""

    def __init__(self, options: WriteOptions, dataset: Dataset, runner: Runner, own: Append) -> None:
        self._options, self._dataset, self._runner, self._own = options, dataset, runner, own
        self._before = _Before.of(dataset)

    def make(self, engine: LocalEngine | RayEngine) -> tuple[Manifest, dict[str, bytes]]:
        """Put shards, places and documents of the new generation into the root.

        Returns:
            Its manifest and its other tables, which are not written yet.
        """
        options, runner, work_bytes = self._options, self._runner, engine.work_bytes()
        given = stages.given_by(runner, models_of_dataset(self._dataset), options)
        read = read_documents_in_stages(runner, options, memory_bytes=options.memory_bytes)
        tokenizer = stages.tokenizer_in_stages(runner, options, read, given)
        embedded = stages.parts_in_stages(
            runner,
            options,
            read,
            tokenizer,
            given,
            first_part=self._before.next_part,
            both_at_once=engine.has_gpus,
        )
        runner.run([given.tree], unit="trees")
        ordered = finish.sort_in_stages(
            runner,
            embedded,
            given.tree.key,
            given.tree.fingerprint,
            seed=options.seed,
            work_bytes=work_bytes,
            run_bytes=options.run_bytes,
        )
        tree = tree_of(runner.workspace, given.tree.key)
        root = _staged_root(options, runner.workspace, self._own)
        settings = ShardSettings(
            root=root,
            window_tokens=embedded.window_tokens,
            token_dtype=embedded.summary.token_dtype,
            shard_bytes=options.shard_bytes,
            leaves_per_shard_node=tree.arity ** (tree.depth - options.shard_level),
        )
        memory_bytes = finish.sort_memory(options.sort_memory_bytes, work_bytes)
        tasks = finish.shard_tasks(
            runner, ordered, tree, settings, seed=options.seed, memory_bytes=memory_bytes, grown=self._dataset
        )
        groups = [batch.group for batch in read.batches]
        tables = finish.documents_tables(
            runner,
            embedded,
            groups,
            root,
            first_group=self._before.next_group,
            first_file=len(self._before.sources),
        )
        finish.forget_lost(runner, tasks, tables, self._begin(root))
        shards = ShardsSummary.of(runner.run(tasks, unit="windows"))
        runner.run(tables, unit="parts")
        finish.check_windows(shards, embedded.parts, more=self._dataset.manifest.num_windows)
        if root != remote_or_absolute(options.out):
            generations.move_staged_files(Path(root), local_path(self._dataset.root))
        first_parts = [
            self._before.next_part + groups.index(table.number - self._before.next_group) for table in tables
        ]
        levels = finish.tree_provenance(tree, shards, None)
        manifest = self._manifest(shards, self._provenance(embedded, read, shards, levels))
        return manifest, self._tables(shards, embedded, read, [table.table for table in tables], first_parts)

    def _begin(self, staged: str) -> list[str]:
        """Where files of this append may stand: in the root only where an earlier run of it began."""
        root = remote_or_absolute(self._options.out)
        has_begun = generations.begin(self._dataset.store, self._own)
        return [*([staged] if staged != root else []), *([root] if has_begun else [])]

    def _manifest(self, shards: ShardsSummary, provenance: dict[str, Any]) -> Manifest:
        return replace(
            self._dataset.manifest,
            generation=self._own.generation,
            num_windows=int(shards.windows_per_leaf.sum()),
            num_leaves=len(shards.leaves),
            num_shards=len(shards.rows),
            clusters_fingerprint=clusters_fingerprint(shards.leaves, shards.windows_per_leaf),
            shards_fingerprint=shards_fingerprint(shards.rows),
            provenance=provenance,
        )

    def _provenance(
        self, embedded: EmbeddedParts, read: ReadDocuments, shards: ShardsSummary, levels: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """That of the dataset with sums over all generations, and an account of what was added now."""
        old = self._dataset.manifest.provenance
        record = provenance_record(self._options, embedded, read, [], None)
        entry = {name: value for name, value in record.items() if name not in _OF_THE_DATASET}
        old_paths = {row.path for row in self._dataset.shards}
        entry |= {
            "generation": self._own.generation,
            "windows": embedded.summary.num_windows,
            "new_shards": sum(row.path not in old_paths for row in shards.rows),
        }
        joined = {**old, "levels": levels, "appended": [*old.get("appended", []), entry]}
        for name in _SUMS:
            joined[name] = int(old.get(name) or 0) + entry[name]
        joined["parts"] = self._before.next_part + len(embedded.parts)
        for name in ("dropped_documents", "dropped_tokens"):
            counts = DropCounts(old.get(name))
            counts.merge(entry[name])
            joined[name] = counts.as_dict()
        return joined

    def _tables(
        self,
        shards: ShardsSummary,
        embedded: EmbeddedParts,
        read: ReadDocuments,
        tables: list[str],
        first_parts: list[int],
    ) -> dict[str, bytes]:
        before = self._before
        named = [
            replace(file, name=name) for file, name in zip(read.files, _new_names(read, before.sources), strict=True)
        ]
        files = {
            CLUSTERS: clusters_parquet(shards.leaves, shards.windows_per_leaf),
            SHARDS: shards_parquet(shards.rows),
            SOURCES: finish.sources_parquet([*before.sources, *(file.name for file in named)]),
            TABLES: finish.tables_parquet([*before.tables, *tables], [*before.first_parts, *first_parts]),
        }
        name_of = {file.name: now.name for file, now in zip(read.files, named, strict=True)}
        dropped = self._dropped_before()
        for row in dropped_documents(replace(read, files=named), embedded):
            dropped.append(replace(row, file=name_of[row.file]) if row.reason == "contaminated" else row)
        if dropped:
            files[DROPPED] = dropped_parquet(dropped)
        return {generation_path(name, self._own.generation): content for name, content in files.items()}

    def _dropped_before(self) -> list[Dropped]:
        path = self._dataset.own_path(DROPPED)
        return read_dropped(self._dataset.store.get(path)) if self._dataset.store.exists(path) else []


def _staged_root(options: WriteOptions, workspace: Workspace, own: Append) -> str:
    """Where new files are written: the root itself on an object store, else a folder of this very append."""
    root = remote_or_absolute(options.out)
    if open_store(options.out).is_local and workspace.folder is not None:
        return str(workspace.folder / f"staged-{fingerprint(root, own)}")
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
