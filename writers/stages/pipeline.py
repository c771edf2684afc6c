"""The sequence of stages that write, append and `tree fit` share.

    encoder -> evaluation, excluded -> documents -> duplicates -> tokenizer -> windows -> embeddings -> tree -> runs ->
    ranges -> texts -> sketch -> shards, provenance -> dropped

`embed_in_stages` comes as far as embeddings, `assemble_in_stages` as far as sketch; `Assembly.make` runs shards and
provenance, after the caller has had tasks forgotten whose files are lost; `dropped` runs with the small files. The
search for duplicates has stages of its own (removal/duplicates.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crisp_stream.examples.sketch import TextSketch
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.provenance import documents_tables, source_names
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.embedding.given_models import Models
from crisp_stream.writers.engine.tasks import Runner
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.claim import Hold
from crisp_stream.writers.publishing.request import Request
from crisp_stream.writers.sorting.key_sources import GrownDataset
from crisp_stream.writers.sorting.ranges import Nodes, Ranges, ranges_in_stages, windows_per_range
from crisp_stream.writers.stages.dataset import (
    DocumentsTableTask,
    Sorted,
    document_table_tasks,
    shard_tasks,
    sort_in_stages,
    sort_memory,
)
from crisp_stream.writers.stages.documents import ReadDocuments, read_documents_in_stages
from crisp_stream.writers.stages.models import (
    EmbeddedParts,
    Given,
    check_encoder,
    check_tokenizer,
    given_by,
    parts_in_stages,
    tokenizer_in_stages,
    tree_in_stages,
)
from crisp_stream.writers.stages.runs import identity_of, tree_of
from crisp_stream.writers.stages.shards import ShardSettings, ShardsSummary, ShardsTask, UnchangedShardsTask
from crisp_stream.writers.stages.texts import sketch_in_stages


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents that were read, cut into windows and embedded."""

    read: ReadDocuments
    given: Given | None
    """Tokenizer, encoder and tree that exist already; None where they are made."""
    embedded: EmbeddedParts
    work_bytes: int | None
    """Data that a process may hold; None where memory is not limited."""


def embed_in_stages(runner: Runner, options: WriteOptions, models: Models | None, *, first_part: int = 0) -> Corpus:
    """Read the documents, cut them into windows and embed these, with the tokenizer and encoder of `models` if any.

    A tokenizer and an encoder that are given are tried before the first document is read.

    Raises:
        InputError: bad input, or not one window. PlanEnds: without an engine, at tasks that are not done.
    """
    engine = runner.engine
    work_bytes = None if engine is None else engine.work_bytes()  # before shards and encoders are counted
    given = None if models is None else given_by(runner, models, options)
    source = check_tokenizer(options, given)
    encoder = check_encoder(runner, options, given)
    read = read_documents_in_stages(runner, options)
    tokenizer = tokenizer_in_stages(runner, options, read, given, source)
    embedded = parts_in_stages(
        runner,
        options,
        read,
        tokenizer,
        encoder,
        given,
        first_part=first_part,
        both_at_once=engine is not None and engine.has_gpus,
    )
    return Corpus(read=read, given=given, embedded=embedded, work_bytes=work_bytes)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The dataset that an append grows, and the numbers that new parts, groups and files follow on."""

    dataset: Dataset
    tables: list[str]
    """Paths of its tables of documents."""
    first_parts: list[int]
    """First part of each of these tables."""
    sources: list[str]
    """Names of its input files."""
    next_part: int
    next_group: int

    @classmethod
    def of(cls, dataset: Dataset) -> Growth:
        """Read them from the dataset's provenance."""
        tables = documents_tables(dataset)
        last = max((spans.part for spans in tables[-1].parts()), default=tables[-1].first_part) if tables else -1
        for table in tables:
            table.close()
        return cls(
            dataset=dataset,
            tables=[table.path for table in tables],
            first_parts=[table.first_part for table in tables],
            sources=source_names(dataset),
            next_part=max(last + 1, int(dataset.manifest.provenance.get("parts") or 0)),
            next_group=max((int(Path(table.path).name.partition(".")[0]) for table in tables), default=-1) + 1,
        )

    def named(self, sort_seed: int) -> GrownDataset:
        """The dataset as tasks name it."""
        manifest = self.dataset.manifest
        return GrownDataset(
            root=self.dataset.root,
            generation=manifest.generation,
            fingerprint=manifest.fingerprint,
            sort_seed=sort_seed,
        )


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Sorted windows, and the tasks that make a dataset's shards and tables of documents from them."""

    corpus: Corpus
    tree: ClusterTree
    ordered: Sorted
    ranges: Ranges
    """Ranges of their sort keys."""
    shards: list[ShardsTask | UnchangedShardsTask]
    """One per range."""
    tables: Sequence[DocumentsTableTask]
    first_parts: list[int]
    """First part of each table."""
    texts: TextSketch
    """Text of the new documents."""
    sort_memory_bytes: int
    """Bytes of tokens, or of embeddings, that a process sorts at once."""
    mark: str
    """In the names of new files, where a dataset grows; else empty."""

    def make(self, runner: Runner) -> ShardsSummary:
        """Write shards and tables below the root. Raises PlanEnds without an engine, at tasks that are not done."""
        shards = ShardsSummary.of(runner.run(self.shards, unit="windows"))
        parts_per_table = [len(table.spans) for table in self.tables]
        runner.run(self.tables, unit="parts", num_units=parts_per_table)
        return shards


def assemble_in_stages(
    runner: Runner,
    options: WriteOptions,
    corpus: Corpus,
    root: str,
    growth: Growth | None = None,
    *,
    request: Request | None = None,
    hold: Hold | None = None,
) -> Assembly:
    """Make the tree, or bring the one that exists, sort all windows into runs by it, and sketch the documents' text.

    Shards and tables of documents will be put in `root`, together with the windows of the dataset of `growth`; then
    `request` gives the mark of their names. `hold` is the claim of a root that they are put into as they are made.
    """
    given, embedded = corpus.given, corpus.embedded
    if given is not None:
        runner.run_here(given.tree)
    fitted = given.tree if given is not None else tree_in_stages(runner, options, embedded.parts)
    ordered = sort_in_stages(runner, options, embedded, fitted, work_bytes=corpus.work_bytes)
    duplicates = corpus.read.duplicates
    texts = sketch_in_stages(runner, corpus.read.batches, duplicates.fingerprint if duplicates else None)
    tree = tree_of(runner.workspace, fitted.key)
    identity = identity_of(ordered.records(), growth.dataset.manifest.fingerprint if growth else None)
    mark = "" if growth is None or request is None else request.mark(identity)
    settings = ShardSettings(
        root=root,
        window_tokens=embedded.window_tokens,
        token_dtype=embedded.summary.token_dtype,
        shard_bytes=options.shard_bytes,
        leaves_per_shard_node=tree.arity ** (tree.depth - options.shard_level),
        identity=identity,
        mark=mark,
    )
    sort_memory_bytes = sort_memory(options.sort_memory_bytes, corpus.work_bytes)
    grown = None if growth is None else growth.named(options.seed)
    nodes = Nodes(arity=tree.arity, leaves_per_node=tree.arity ** (tree.depth - 1))
    ranges = ranges_in_stages(
        runner,
        ordered.runs,
        nodes,
        windows_per_range=windows_per_range(
            options.range_bytes,
            settings.window_bytes,
            embedded.summary.num_windows + (growth.dataset.manifest.num_windows if growth else 0),
            corpus.work_bytes,
        ),
        windows_per_shard=settings.windows_per_shard,
        leaves_per_shard_node=settings.leaves_per_shard_node,
        grown=grown,
    )
    shards = shard_tasks(runner, ranges, nodes, settings, memory_bytes=sort_memory_bytes, grown=grown, hold=hold)
    first_group, first_part, first_file = 0, 0, 0
    if growth is not None:
        first_group, first_part, first_file = growth.next_group, growth.next_part, len(growth.sources)
    batches = corpus.read.batches
    tables = document_table_tasks(
        runner, embedded, batches, root, first_group=first_group, first_file=first_file, mark=mark, hold=hold
    )
    return Assembly(
        corpus=corpus,
        tree=tree,
        ordered=ordered,
        ranges=ranges,
        shards=shards,
        tables=tables,
        first_parts=[first_part + start for _, start, _ in batches.groups()],
        texts=texts,
        sort_memory_bytes=sort_memory_bytes,
        mark=mark,
    )
