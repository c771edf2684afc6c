"""provenance/texts.parquet: a bounded sketch of the text of a dataset, by which a text is known again.

It stays with a checkpoint, so that a model can be asked whether it was trained on the text that it is judged on
(`evaluation/seen.py`). What a text is hashed by stands in FORMAT.md, "Text".
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, MissingObjectError
from crisp_stream.examples.sketch import MAX_DOCUMENTS, MAX_NGRAMS, ExampleSketch, TextSketch
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.parquet import DAMAGE, numbers, parquet_bytes
from crisp_stream.format.provenance import has_provenance

TEXTS = "provenance/texts.parquet"
_KEY = b"crisp_stream.texts"
_VERSION = 1
_KINDS = ("documents", "ngrams")
_MAX_HASHES = {"documents": MAX_DOCUMENTS, "ngrams": MAX_NGRAMS}


def text_sketch_parquet(sketch: TextSketch) -> bytes:
    """Make the table: the hashes of documents, then those of n-grams, each ascending."""
    sets = {kind: getattr(sketch, kind) for kind in _KINDS}
    facts = {kind: {"number": one.num_examples, "exact": one.exact} for kind, one in sets.items()}
    columns = {
        "kind": pa.array([kind for kind, one in sets.items() for _ in range(len(one.hashes))], pa.string()),
        "hash": pa.array(np.concatenate([one.hashes for one in sets.values()]), pa.uint64()),
    }
    text = json.dumps({"texts_version": _VERSION, **facts}, sort_keys=True)
    table = pa.table(columns).replace_schema_metadata({_KEY: text.encode()})
    return parquet_bytes(table, use_dictionary=["kind"], write_page_checksum=True)


def parse_text_sketch(content: bytes, path: str) -> TextSketch:
    """Read what `text_sketch_parquet` made; `path` names it in errors. Raises FormatError."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, page_checksum_verification=True)
        facts = json.loads((file.schema_arrow.metadata or {})[_KEY])
        if facts.pop("texts_version") != _VERSION:
            raise FormatError(f"{path}: must be of version {_VERSION}. Upgrade crisp-stream.")
        if file.metadata.num_rows > sum(_MAX_HASHES.values()):
            raise ValueError(f"{file.metadata.num_rows:,} rows")
        table = file.read(use_threads=False)
        kinds = np.array(table["kind"].to_pylist())
        hashes = numbers(table["hash"], pa.uint64())
        return TextSketch(**{kind: _sketch(hashes[kinds == kind], facts[kind], kind) for kind in _KINDS})
    except FormatError:
        raise
    except DAMAGE as error:
        raise FormatError(
            f"{path}: not a sketch of a dataset's text, or damaged ({error}). Restore the file."
        ) from error


def _sketch(hashes: NDArray[np.uint64], facts: dict[str, Any], kind: str) -> ExampleSketch:
    if (hashes[1:] <= hashes[:-1]).any() or len(hashes) > _MAX_HASHES[kind] or not (len(hashes) or facts["exact"]):
        raise ValueError(f"hashes of {kind} are not sorted, or too many or too few")
    return ExampleSketch(hashes=hashes, num_examples=int(facts["number"]), exact=bool(facts["exact"]))


def read_text_sketch(dataset: Dataset) -> TextSketch | None:
    """Read the sketch of a dataset; None where it was written without provenance.

    Raises:
        FormatError: missing or damaged. StorageError: the storage failed.
    """
    path = dataset.own_path(TEXTS)
    try:
        content = dataset.store.get(path)
    except MissingObjectError as error:
        if not has_provenance(dataset):
            return None
        raise FormatError(
            f"{dataset.root}: {path} is missing, the sketch of its text. Restore it, or write the dataset again."
        ) from error
    return parse_text_sketch(content, path)
