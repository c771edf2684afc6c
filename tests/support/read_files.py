"""Documents of files on this machine, read as `write` reads them."""

from __future__ import annotations

import json
from pathlib import Path

from crisp_stream.writers.documents.documents import Document, read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files


def read_files(path: Path | str, counts: DropCounts | None = None, **options: object) -> list[Document]:
    settings = DocumentSettings(**options)  # type: ignore[arg-type]
    counts = DropCounts() if counts is None else counts
    files = list_input_files([str(path)], settings)
    return [document for file in files for document in read_input(file, settings, counts)]


def texts_of(path: Path | str, counts: DropCounts | None = None, **options: object) -> list[str]:
    return [document.text for document in read_files(path, counts, **options)]


def jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
