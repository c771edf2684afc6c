"""The ledger of a dataset: what was not read of its inputs, which paths and which records, and why.

At most LISTED_PER_REASON rows of a reason come from one write or append; the manifest counts all, by reason.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crisp_stream.errors import FormatError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import LEDGER, MANIFEST, MAX_WINDOWS
from crisp_stream.format.parquet import parquet_bytes
from crisp_stream.storage.inputs import printable

LISTED_PER_REASON = 10_000
"""Rows of a reason that one write or append lists: the first, in the order of reading."""
TEXT_CHARACTERS = 300
"""Length of a row's text at most."""
_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("text", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A path or a record that was not read."""

    reason: str
    file: str
    """Name of the input file as in sources.parquet, or of a path that is none, below its input."""
    line: int | None
    """Number of the line or record in its file, from 1; None for a path."""
    text: str


@dataclass(kw_only=True)
class Ledger:
    """What was not read so far: counted, and listed up to LISTED_PER_REASON of each reason."""

    rows: list[LedgerRow] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)
    """Skipped paths by reason."""
    records: Counter[str] = field(default_factory=Counter)
    """Bad records by reason."""
    _listed: Counter[str] = field(default_factory=Counter)

    def skip(self, reason: str, path: str, text: str = "") -> None:
        """Take note of a path that is not read."""
        self.paths[reason] += 1
        self._list(LedgerRow(reason, path, None, text))

    def add_records(self, counts: dict[str, int], rows: Iterable[LedgerRow]) -> None:
        """Take note of bad records, of which `rows` are at least the first LISTED_PER_REASON of each reason."""
        self.records.update(counts)
        for row in rows:
            self._list(row)

    def is_full(self, reason: str) -> bool:
        """Whether no more rows of a reason are listed."""
        return self._listed[reason] >= LISTED_PER_REASON

    def _list(self, row: LedgerRow) -> None:
        if not self.is_full(row.reason):
            self._listed[row.reason] += 1
            self.rows.append(LedgerRow(row.reason, row.file, row.line, printable(row.text)[:TEXT_CHARACTERS]))

    def __bool__(self) -> bool:
        return bool(self.paths or self.records)


def ledger_parquet(rows: Sequence[LedgerRow]) -> bytes:
    """The rows as a Parquet file with page checksums, in their order; the same rows give the same bytes."""
    columns = [list(column) for column in zip(*map(astuple, rows), strict=True)] or [[], [], [], []]
    return parquet_bytes(pa.table(columns, schema=_SCHEMA), write_page_checksum=True)


def ledger_fingerprint(rows: Sequence[LedgerRow]) -> str:
    """sha256 over the rows as JSON."""
    return hashlib.sha256(json.dumps([astuple(row) for row in rows]).encode()).hexdigest()


def read_ledger(dataset: Dataset) -> list[LedgerRow]:
    """The ledger of a dataset, empty where the manifest names none.

    Raises:
        FormatError: it is missing, damaged, or not the one that the manifest names. StorageError: the storage failed.
    """
    expected: Any = dataset.manifest.provenance.get("ledger")
    if expected is None:
        return []
    path = dataset.own_path(LEDGER)
    if not isinstance(expected, dict):
        raise FormatError(f"{MANIFEST}: provenance.ledger must be an object, got {expected!r}. Restore the file.")
    content = dataset.store.get(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, page_checksum_verification=True)
        if file.metadata.num_rows > MAX_WINDOWS:
            raise FormatError(f"{path}: has {file.metadata.num_rows:,} rows, which cannot be. Restore the file.")
        table = file.read(use_threads=False).select(_SCHEMA.names).cast(_SCHEMA)
        rows = [LedgerRow(**record) for record in table.to_pylist()]
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{path}: must be Parquet with the columns {', '.join(_SCHEMA.names)}, got: {error}. Restore the file."
        ) from error
    if ledger_fingerprint(rows) != expected.get("fingerprint"):
        raise FormatError(
            f"{path}: its {len(rows):,} rows are not the {expected.get('rows')} that the manifest names. "
            "Restore the file."
        )
    return rows
