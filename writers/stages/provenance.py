"""The small files of a dataset: tables, models and the manifest with its provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from crisp_stream.examples.sketch import TextSketch
from crisp_stream.format.ledger import LedgerRow, ledger_fingerprint, ledger_parquet
from crisp_stream.format.listed_files import FILES, digests_of, files_parquet
from crisp_stream.format.manifest import DROPPED, LEDGER, SOURCES, TABLES, Manifest, places_path
from crisp_stream.format.mds import index_bytes
from crisp_stream.format.parquet import parquet_bytes
from crisp_stream.format.shards import SHARDS, ShardTable
from crisp_stream.format.tables import CLUSTERS, clusters_fingerprint, clusters_parquet
from crisp_stream.format.terms import TERMS
from crisp_stream.format.text_sketch import TEXTS, text_sketch_parquet
from crisp_stream.storage.inputs import printable
from crisp_stream.storage.store import open_store
from crisp_stream.writers.embedding.fitted import FITTED_FOLDER
from crisp_stream.writers.embedding.given_models import Models
from crisp_stream.writers.embedding.probe import ENCODER_FILE
from crisp_stream.writers.engine.tasks import Runner
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.request import listed_as
from crisp_stream.writers.stages.dataset import check_windows, table_digests, tree_provenance
from crisp_stream.writers.stages.pipeline import Assembly, Corpus
from crisp_stream.writers.stages.removal.dropped import dropped_list
from crisp_stream.writers.stages.shards import ShardsSummary, folder_indexes
from crisp_stream.writers.stages.terms import terms_table
from crisp_stream.writers.stages.windows import TOKENIZER_NAMES, tokenizer_of


def write_small_files(
    runner: Runner, options: WriteOptions, root: str, assembly: Assembly, shards: ShardsSummary, models: Models | None
) -> tuple[Manifest, set[str]]:
    """Write everything but shards and documents' tables to a root, and make the manifest, which is not written.

    Returns:
        The manifest, and the paths of all files of the dataset.
    """
    corpus, tree, workspace = assembly.corpus, assembly.tree, runner.workspace
    embedded = corpus.embedded
    summary = embedded.summary
    check_windows(shards, embedded.parts)
    tables = [task.table for task in assembly.tables]
    sources = sources_table([(file.name, listed_as(file)) for file in corpus.read.files])
    index = index_bytes(
        shards.rows, below="shards", window_tokens=embedded.window_tokens, token_dtype=summary.token_dtype
    )
    folders = folder_indexes(shards.rows, window_tokens=embedded.window_tokens, token_dtype=summary.token_dtype)
    files = {
        "shards/index.json": index,
        **folders,
        **table_files(
            shards,
            sources,
            tables,
            assembly.first_parts,
            corpus.read.ledger.rows,
            assembly.texts,
        ),
        **{f"tree/{name}": content for name, content in tree.to_files().items()},
    }
    for name in TOKENIZER_NAMES:
        content = workspace.read_if_there(f"{embedded.tokenizer.tokenizer}/{name}")
        if content is not None:
            files[f"tokenizer/{name}"] = content
    if embedded.fitted is not None:
        files |= {
            f"{FITTED_FOLDER}/{name}": workspace.read(f"{embedded.fitted}/{name}") for name in embedded.fitted_files
        }
    files[ENCODER_FILE] = embedded.encoder_file
    files[TERMS] = terms_of(runner, assembly, shards, [root, options.out])
    store = open_store(root)
    digests = {**digests_of(files), **table_digests(runner, assembly.tables)}
    with dropped_list(runner, corpus.read, embedded, [file.name for file in corpus.read.files]) as dropped:
        if dropped is not None:
            store.put_file(DROPPED, dropped.path)
            digests[DROPPED] = dropped.sha256
    listed = files_parquet(digests)
    files[FILES] = listed
    for name, content in files.items():
        store.put(name, content)
    names = {*files, *digests, *shard_names(shards)}
    levels = tree_provenance(tree, shards, assembly.ordered.quality_sums)
    manifest = Manifest(
        window_tokens=embedded.window_tokens,
        token_dtype=summary.token_dtype,
        packing=embedded.tokenizer.packing,
        arity=tree.arity,
        depth=tree.depth,
        sort_seed=options.seed,
        tree_fingerprint=tree.fingerprint,
        tokenizer=tokenizer_of(workspace, embedded.tokenizer).record(),
        encoder=summary.encoder,
        files_sha256=hashlib.sha256(listed).hexdigest(),
        provenance=provenance_record(options, corpus, levels, models),
        **shard_facts(shards),
    )
    return manifest, names


def terms_of(runner: Runner, assembly: Assembly, shards: ShardsSummary, roots: Sequence[str]) -> bytes:
    """The content of the table of terms; shards are in the first of the roots that has them."""
    embedded = assembly.corpus.embedded
    settings = embedded.tokenizer
    [tokenizer_json] = runner.workspace.kept(f"{settings.tokenizer}/{TOKENIZER_NAMES[0]}")
    return terms_table(
        shards,
        assembly.tree,
        roots=roots,
        tokenizer_json=tokenizer_json,
        eot_token=tokenizer_of(runner.workspace, settings).record().eot_token,
        window_tokens=settings.window_tokens,
        token_dtype=embedded.summary.token_dtype,
    )


def shard_names(shards: ShardsSummary) -> set[str]:
    """Paths of shards and their places."""
    return {name for row in shards.rows for name in (row.path, places_path(row.path))}


def sources_table(sources: Sequence[tuple[str, int | None]]) -> pa.Table:
    """The table of input files, numbered in the order of `sources`: name, and `listed_as` where it is known."""
    return pa.table(
        {
            "file": pa.array(range(len(sources)), pa.uint32()),
            "name": pa.array([name for name, _ in sources], pa.string()),
            "listed": pa.array([listed for _, listed in sources], pa.uint64()),
        }
    )


def table_files(
    shards: ShardsSummary,
    sources: pa.Table,
    tables: Sequence[str],
    first_parts: Sequence[int],
    ledger: Sequence[LedgerRow],
    texts: TextSketch,
) -> dict[str, bytes]:
    """Content of a dataset's tables, by path."""
    documents = {"table": list(tables), "first_part": pa.array(first_parts, pa.uint32())}
    files = {
        CLUSTERS: clusters_parquet(shards.leaves, shards.windows_per_leaf),
        SHARDS: ShardTable.of(shards.rows).to_parquet(),
        SOURCES: parquet_bytes(sources, write_page_checksum=True),
        TABLES: parquet_bytes(pa.table(documents), write_page_checksum=True),
        TEXTS: text_sketch_parquet(texts),
    }
    return files | ({LEDGER: ledger_parquet(ledger)} if ledger else {})


def ledger_facts(rows: Sequence[LedgerRow]) -> dict[str, Any] | None:
    """What the manifest says of the ledger; None where there is none."""
    return {"rows": len(rows), "fingerprint": ledger_fingerprint(rows)} if rows else None


def shard_facts(shards: ShardsSummary) -> dict[str, Any]:
    """Fields of the manifest that say which windows there are."""
    return {
        "num_windows": int(shards.windows_per_leaf.sum()),
        "num_leaves": len(shards.leaves),
        "num_shards": len(shards.rows),
        "clusters_fingerprint": clusters_fingerprint(shards.leaves, shards.windows_per_leaf),
        "shards_fingerprint": ShardTable.of(shards.rows).fingerprint,
    }


def provenance_record(
    options: WriteOptions, corpus: Corpus, levels: list[dict[str, Any]], models: Models | None
) -> dict[str, Any]:
    """Record where the windows came from: base names only, and no times, so that equal input gives equal bytes."""
    read, summary = corpus.read, corpus.embedded.summary
    fitted = {
        "fit_windows": options.fit_windows,
        "min_examples_to_split": options.min_examples_to_split,
        "seed": options.seed,
    }
    record: dict[str, Any] = {
        "inputs": [printable(PurePosixPath(source.rstrip("/")).name) for source in options.inputs],
        "text_column": options.text_column,
        "limit": options.limit,
        "sample": options.sample,
        "documents": summary.num_documents,
        "characters": summary.num_characters,
        "tokens": summary.num_tokens,
        "parts": len(corpus.embedded.parts),
        "dropped_documents": read.dropped,
        "dropped_tokens": summary.dropped_tokens,
        "tokenizer": next(iter(models.origin)) if models else "trained" if options.tokenizer is None else "given",
        "tree": models.origin if models else fitted,
        "levels": levels,
    }
    chosen = {
        "text_template": options.text_template,
        "txt_documents": options.txt_documents if options.txt_documents != "file" else None,
        "id_column": options.id_column,
        "filters": list(options.filters),
        "excluded_ids": [PurePosixPath(source.rstrip("/")).name for source in options.exclude_ids],
        "dedup": options.dedup,
        "near_threshold": options.near_threshold if options.dedup == "near" else None,
        "decontaminated": [printable(PurePosixPath(source.rstrip("/")).name) for source in options.decontaminate],
        "ngram": options.ngram if options.decontaminate else None,
        "question_keys": options.question_keys if options.decontaminate else None,
        "unchecked_examples": read.unchecked_examples,
        "part_characters": options.part_characters if options.part_characters != WriteOptions.part_characters else None,
        "shard_level": options.shard_level if options.shard_level > 1 else None,
        "missing": options.missing if options.missing != WriteOptions.missing else None,
        "skipped_paths": dict(sorted(read.ledger.paths.items())),
        "bad_records": dict(sorted(read.ledger.records.items())),
        "ledger": ledger_facts(read.ledger.rows),
    }
    return {**record, **{name: value for name, value in chosen.items() if value}}
