"""The provenance of a write for its manifest, and the list of the documents that it dropped."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from crisp_stream.writers.cleaning.dropped import Dropped
from crisp_stream.writers.embedding.given_models import Models
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.documents import ReadDocuments
from crisp_stream.writers.stages.models import EmbeddedParts
from crisp_stream.writers.stages.pipeline import Corpus


def list_dropped(read: ReadDocuments, embedded: EmbeddedParts) -> list[Dropped]:
    """List what the evaluation sets and the search for duplicates removed, by file and row."""
    names = [file.name for file in read.files]
    dropped = [Dropped(**row) for record in read.records for row in record["dropped_list"]]
    for record in embedded.records:
        for file, row, document_id, kept_file, kept_row, similarity, near in record["repeats"]:
            dropped.append(
                Dropped(
                    file=names[file],
                    row=row,
                    id=document_id,
                    reason="near duplicate" if near else "exact duplicate",
                    detail=f"row {kept_row} of {names[kept_file]}" + (f", similarity {similarity:.2f}" if near else ""),
                )
            )
    return sorted(dropped, key=lambda row: (row.file, row.row))


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
        "inputs": [PurePosixPath(source.rstrip("/")).name for source in options.inputs],
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
        "id_column": options.id_column,
        "filters": list(options.filters),
        "dedup": options.dedup,
        "near_threshold": options.near_threshold if options.dedup == "near" else None,
        "decontaminated": [PurePosixPath(source.rstrip("/")).name for source in options.decontaminate],
        "ngram": options.ngram if options.decontaminate else None,
        "unchecked_examples": read.unchecked_examples,
        "part_characters": options.part_characters if options.part_characters != WriteOptions.part_characters else None,
        "shard_level": options.shard_level if options.shard_level > 1 else None,
        "corrupt_files": [name for name, _ in read.corrupt],
    }
    return {**record, **{name: value for name, value in chosen.items() if value}}
