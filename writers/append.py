"""`crisp-stream append`: add documents to a dataset, with its tokenizer, encoder and tree.

The new windows are cut, embedded and sorted as `write` does it, in parts that are numbered on from the dataset's. Then
every level-1 cluster that gets windows merges its old ones and its new ones by key into new shards; the other shards
stay as they are. So the windows and their order are those of one write of all documents (with the same tree, and
parts that end where the old dataset ends), but only the new documents cost a pass through the encoder. Inserting
windows into existing shards in place was rejected: runs that read them would see their data change.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from crisp_stream.errors import ConflictError, CrispError, InputError, require_extra
from crisp_stream.examples.sketch import TextSketch
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.ledger import LedgerRow, read_ledger
from crisp_stream.format.listed_files import FILES, digests_of, files_parquet, shared_digests
from crisp_stream.format.manifest import DROPPED, MANIFEST, Manifest, places_path
from crisp_stream.format.provenance import has_provenance, source_listings
from crisp_stream.format.tables import generation_path
from crisp_stream.format.terms import TERMS
from crisp_stream.format.text_sketch import read_text_sketch
from crisp_stream.processes import Log
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.writers.cleaning.dropped import dropped_tables
from crisp_stream.writers.documents.drops import merged_counts
from crisp_stream.writers.embedding.given_models import Models, models_of_dataset
from crisp_stream.writers.engine.tasks import Runner
from crisp_stream.writers.engine.workspace import opened
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.claim import ClaimLostError, Hold, requests_of, standing_claim
from crisp_stream.writers.publishing.claimed import claimed
from crisp_stream.writers.publishing.generations import has_older, indexes_are_of, settle, withdraw
from crisp_stream.writers.publishing.publish import DatasetChangedError, begin, publish, system_errors
from crisp_stream.writers.publishing.request import Request, listed_as
from crisp_stream.writers.publishing.work import (
    delete_other_stages,
    is_left_over,
    mark_publishing,
    staged_root,
    work_folder,
)
from crisp_stream.writers.report import AppendReport
from crisp_stream.writers.stages.dataset import check_windows, forget_lost, table_digests, tree_provenance
from crisp_stream.writers.stages.documents import ReadDocuments
from crisp_stream.writers.stages.pipeline import Assembly, Corpus, Growth, assemble_in_stages, embed_in_stages
from crisp_stream.writers.stages.provenance import (
    ledger_facts,
    provenance_record,
    shard_facts,
    sources_table,
    table_files,
    terms_of,
)
from crisp_stream.writers.stages.removal.dropped import DroppedList, dropped_list
from crisp_stream.writers.stages.shards import ShardsSummary
from crisp_stream.writers.write import QUICK_EXTRAS, engine_of

_SUMS = ("documents", "characters", "tokens", "parts")
_OF_LEDGER = ("skipped_paths", "bad_records", "ledger")
_KEPT_KEYS = ("tree", "tokenizer", "levels", "ledger")


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
    with system_errors(options.out):
        dataset = open_dataset(options.out)
        _check_dataset(dataset)
        options = _options_like(options, dataset)
        models = models_of_dataset(dataset)
        try:
            generation = _grown(options, models, dataset, prune, log)
        except (ClaimLostError, DatasetChangedError, ConflictError):
            generation = None
            with contextlib.suppress(CrispError):  # the first error says more
                generation = _done_in(open_dataset(options.out), Request.of(options, models, base=""))
            if generation is None:
                raise
            log(f"published: {options.out}, generation {generation}, by another run of the same request")
        return _report(open_dataset(options.out), generation, log, started)


def _grown(options: WriteOptions, models: Models, dataset: Dataset, prune: bool, log: Log) -> int:
    """Add the documents, or finish what an interrupted run left; the generation that has them."""
    request = Request.of(options, models, base=dataset.manifest.fingerprint)
    done = _done_in(dataset, request)
    if done is not None:
        return _finish(options, dataset, done, prune, log)
    with work_folder(options, log) as workspace, claimed(options, request, log) as hold:
        _settle_other(options, dataset, hold, log)
        base = dataset.store.get(MANIFEST)
        if Manifest.from_json(base) != dataset.manifest:
            raise DatasetChangedError(f"{dataset.root}: the dataset changed meanwhile. Run the command again.")
        delete_other_stages(options, workspace, request.fingerprint)
        grown = _Grown(options, models, dataset, request, base, hold)
        with contextlib.closing(engine_of(options)) as engine:
            manifest = grown.publish(Runner(engine, workspace, log=log))
        settle(options.out, hold, prune=prune, log=log)
        log(f"published: {options.out}, generation {manifest.generation}")
    return manifest.generation


def _done_in(dataset: Dataset, request: Request) -> int | None:
    """The generation that has the documents of a request already, whatever it grew from; None where none has.

    Raises:
        InputError: it was made with other versions of libraries, so that this request would give other windows.
    """
    for generation, made in enumerate(requests_of(dataset.manifest)):
        if made is not None and made.asks_the_same(request):
            if made.libraries != request.libraries:
                differs = "; ".join(replace(request, base=made.base).differences(made))
                raise InputError(
                    f"{dataset.root}: generation {generation} holds these documents already, but {differs}. Nothing "
                    "was added. To add them a second time on purpose, copy them under other names."
                )
            return generation
    return None


def _finish(options: WriteOptions, dataset: Dataset, generation: int, prune: bool, log: Log) -> int:
    """What remains after the manifest of a request stands: indexes, pruning, claim and work folder."""
    request = requests_of(dataset.manifest)[generation]
    assert request is not None, "it was found by it"
    claim, _ = standing_claim(dataset.store)
    has_claim = claim is not None and claim.request.fingerprint == request.fingerprint
    log(f"already done: {options.out} has these documents since generation {generation}; nothing was added")
    if has_claim or (prune and has_older(dataset)):
        with claimed(options, request, log) as hold:
            settle(options.out, hold, prune=prune, log=log)
    if is_left_over(options, request.fingerprint):
        with work_folder(options, log):
            pass  # deletes it
    return generation


def _settle_other(options: WriteOptions, dataset: Dataset, hold: Hold, log: Log) -> None:
    """Finish the indexes of an append that was interrupted after its manifest stood."""
    if dataset.manifest.generation and not indexes_are_of(dataset):
        log(f"append: finishing the interrupted append that made generation {dataset.manifest.generation}")
        settle(options.out, hold, prune=False, log=log)


def _check_dataset(dataset: Dataset) -> None:
    dataset.store.list("claim.json")  # a web server, which cannot be written to, refuses this already
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
        fit_windows=None,
        seed=manifest.sort_seed,
        part_characters=provenance.get("part_characters") or WriteOptions.part_characters,
        shard_level=provenance.get("shard_level") or 1,
    )


def _report(dataset: Dataset, generation: int, log: Log, started: float) -> AppendReport:
    manifest = dataset.manifest
    [entry] = [entry for entry in manifest.provenance["appended"] if entry["generation"] == generation]
    later = [entry for entry in manifest.provenance["appended"] if entry["generation"] > generation]
    report = AppendReport.of(
        dataset.root,
        manifest,
        entry,
        time.monotonic() - started,
        windows=entry["windows"],
        generation=generation,
        windows_before=manifest.num_windows - sum(one["windows"] for one in [entry, *later]),
        new_shards=entry["new_shards"],
    )
    log(report.table())
    return report


class _Grown:
    """The stages of an append."""

    def __init__(
        self, options: WriteOptions, models: Models, dataset: Dataset, request: Request, base: bytes, hold: Hold
    ) -> None:
        self._options, self._models, self._dataset, self._request = options, models, dataset, request
        self._base, self._hold = base, hold
        self._growth = Growth.of(dataset)
        self._generation = dataset.manifest.generation + 1

    def publish(self, runner: Runner) -> Manifest:
        """Make the new generation and put it into the root; if another writer was first, take its files back.

        Raises:
            ClaimLostError, DatasetChangedError: another writer was first.
        """
        options, dataset = self._options, self._dataset
        corpus = embed_in_stages(runner, options, self._models, first_part=self._growth.next_part)
        self._request.require_read(corpus.read.files)
        staged = staged_root(options, runner.workspace, self._request.fingerprint)
        in_root = self._hold if is_remote(options.out) else None
        assembly = assemble_in_stages(
            runner, options, corpus, staged, self._growth, request=self._request, hold=in_root
        )
        try:
            if in_root is not None:
                begin(options.out, in_root, self._base)
            forget_lost(runner, assembly.shards, assembly.tables, [staged, dataset.root])
            shards = assembly.make(runner)
            check_windows(shards, corpus.embedded.parts, more=dataset.manifest.num_windows)
            manifest, names = self._small_files(runner, corpus, shards, assembly, staged)
            mark_publishing(options, runner.workspace, self._request.fingerprint)
            publish(staged, options.out, names, manifest, base=self._base, hold=self._hold)
        except (ClaimLostError, DatasetChangedError, ConflictError):
            claim, _ = standing_claim(dataset.store)
            if claim is None or not claim.request.may_share_files(self._request) or self._hold.is_own(claim):
                withdraw(dataset.store, assembly.mark)
            self._hold.release()
            raise
        return manifest

    def _small_files(
        self, runner: Runner, corpus: Corpus, shards: ShardsSummary, assembly: Assembly, staged: str
    ) -> tuple[Manifest, set[str]]:
        """Write the tables of the new generation beside its shards; its manifest, and the paths of its new files."""
        ledger = self._ledger(corpus.read)
        provenance = self._provenance(corpus, shards, tree_provenance(assembly.tree, shards, None), ledger)
        tables = self._tables(shards, corpus, assembly, ledger)
        tables[TERMS] = terms_of(runner, assembly, shards, [staged, self._dataset.root])
        files = {generation_path(name, self._generation, assembly.mark): table for name, table in tables.items()}
        store = open_store(staged)
        digests = {**shared_digests(self._dataset), **digests_of(files), **table_digests(runner, assembly.tables)}
        new_names = {*files}
        with self._dropped(runner, corpus) as dropped:
            if dropped is not None:
                path = generation_path(DROPPED, self._generation, assembly.mark)
                store.put_file(path, dropped.path)
                digests[path] = dropped.sha256
                new_names.add(path)
        listed = files_parquet(digests)
        files[generation_path(FILES, self._generation, assembly.mark)] = listed
        manifest = replace(
            self._dataset.manifest,
            generation=self._generation,
            mark=assembly.mark,
            files_sha256=hashlib.sha256(listed).hexdigest(),
            provenance=provenance,
            **shard_facts(shards),
        )
        self._hold.check(now=True)
        for name, content in files.items():
            store.put(name, content)
        old = {row.path for row in self._dataset.shards}
        new = [row.path for row in shards.rows if row.path not in old]
        return manifest, {*files, *new_names, *new, *map(places_path, new), *(task.table for task in assembly.tables)}

    def _ledger(self, read: ReadDocuments) -> list[LedgerRow]:
        """The ledger of the new generation: rows of the old one, then what was not read now."""
        names = dict(zip((f.name for f in read.files), _new_names(read, self._growth.sources), strict=True))
        new = [replace(row, file=names.get(row.file, row.file)) for row in read.ledger.rows]
        return [*read_ledger(self._dataset), *new]

    def _provenance(
        self, corpus: Corpus, shards: ShardsSummary, levels: list[dict[str, Any]], ledger: list[LedgerRow]
    ) -> dict[str, Any]:
        """Provenance of the new generation: sums over all generations, and an account of what was added now."""
        old = self._dataset.manifest.provenance
        record = provenance_record(self._options, corpus, [], None)
        entry = {name: value for name, value in record.items() if name not in _KEPT_KEYS}
        old_paths = {row.path for row in self._dataset.shards}
        entry |= {
            "generation": self._generation,
            "windows": corpus.embedded.summary.num_windows,
            "new_shards": sum(row.path not in old_paths for row in shards.rows),
        }
        joined = {**old, "levels": levels, "appended": [*old.get("appended", []), entry]}
        joined["requests"] = [*_known_requests(self._dataset), self._request.to_json()]
        for name in _SUMS:
            joined[name] = int(old.get(name) or 0) + entry[name]
        joined["parts"] = self._growth.next_part + len(corpus.embedded.parts)
        for name in ("dropped_documents", "dropped_tokens"):
            joined[name] = merged_counts([old.get(name) or {}, entry[name]])
        for name in ("skipped_paths", "bad_records"):
            joined[name] = merged_counts([old.get(name) or {}, entry.get(name) or {}])
        joined["ledger"] = ledger_facts(ledger)
        return {name: value for name, value in joined.items() if value or name not in _OF_LEDGER}

    @contextlib.contextmanager
    def _dropped(self, runner: Runner, corpus: Corpus) -> Iterator[DroppedList | None]:
        """The list of removed documents of the new generation: rows of the old one, then what was removed now."""
        names = _new_names(corpus.read, self._growth.sources)
        path, store = self._dataset.own_path(DROPPED), self._dataset.store
        with contextlib.ExitStack() as stack:
            before = dropped_tables(stack.enter_context(opened(store, path))) if store.exists(path) else ()
            yield stack.enter_context(dropped_list(runner, corpus.read, corpus.embedded, names, before=before))

    def _tables(
        self, shards: ShardsSummary, corpus: Corpus, assembly: Assembly, ledger: list[LedgerRow]
    ) -> dict[str, bytes]:
        """The small tables of the new generation, by path."""
        read, growth = corpus.read, self._growth
        names = _new_names(read, growth.sources)
        sources = sources_table(
            [*_old_sources(self._dataset, growth), *zip(names, map(listed_as, read.files), strict=True)]
        )
        tables = [*growth.tables, *(task.table for task in assembly.tables)]
        first_parts = [*growth.first_parts, *assembly.first_parts]
        texts = _joined_texts(self._dataset, assembly.texts)
        return table_files(shards, sources, tables, first_parts, ledger, texts)


def _known_requests(dataset: Dataset) -> list[dict[str, Any] | None]:
    """The requests of a dataset; one that was written without gets an empty place for each generation."""
    known = dataset.manifest.provenance.get("requests", [])
    return [*known, *[None] * (dataset.manifest.generation + 1 - len(known))]


def _joined_texts(dataset: Dataset, new: TextSketch) -> TextSketch:
    old = read_text_sketch(dataset)
    assert old is not None, "a dataset that grows has provenance"
    return TextSketch.joined([old, new])


def _old_sources(dataset: Dataset, growth: Growth) -> list[tuple[str, int | None]]:
    return [*source_listings(dataset)] or [(name, None) for name in growth.sources]


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
