"""The list of removed documents that is published with a dataset: which, and why."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from crisp_stream.errors import FormatError

DropReason = Literal["exact duplicate", "near duplicate", "contaminated"]

_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
_ROWS_PER_GROUP = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A document that was removed."""

    file: str
    row: int
    """Number of the document in its file, as documents are numbered there."""
    id: str | None
    """From the id column, where there is one."""
    reason: DropReason
    detail: str
    """The document that was kept, or what it shares with an evaluation set."""


def dropped_parquet(rows: Iterable[Dropped]) -> bytes:
    """The rows as a Parquet file, in their order; the same rows give the same bytes."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
        held: list[Dropped] = []
        for row in rows:
            held.append(row)
            if len(held) == _ROWS_PER_GROUP:
                writer.write_table(_table(held))
                held = []
        writer.write_table(_table(held))
    return sink.getvalue()


def read_dropped(content: bytes) -> list[Dropped]:
    """The rows of a file that `dropped_parquet` made; further columns are ignored.

    Raises:
        FormatError: not such a file.
    """
    try:
        table = pq.read_table(io.BytesIO(content), use_threads=False)
        records: list[dict[str, Any]] = table.select(_SCHEMA.names).cast(_SCHEMA).to_pylist()
    except (pa.ArrowException, KeyError) as error:
        raise FormatError(
            f"list of dropped documents: must be Parquet with the columns {', '.join(_SCHEMA.names)}, got: {error}. "
            "Write the dataset again."
        ) from error
    for record in records:
        if record["reason"] not in get_args(DropReason):
            raise FormatError(
                f"list of dropped documents: a reason must be one of {', '.join(get_args(DropReason))}, got "
                f"{record['reason']!r}. Upgrade crisp-stream, or write the dataset again."
            )
    return [Dropped(**record) for record in records]


def _table(rows: list[Dropped]) -> pa.Table:
    return pa.table({name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}, schema=_SCHEMA)
