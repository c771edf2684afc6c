"""The list of removed documents that is published with a dataset: which, and why."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import FormatError
from crisp_stream.format.manifest import MAX_WINDOWS
from crisp_stream.format.parquet import read_parquet
from crisp_stream.writers.cleaning.array_files import ArrayFiles
from crisp_stream.writers.cleaning.duplicates import Removals
from crisp_stream.writers.cleaning.near_duplicates import NearDuplicates

DropReason = Literal["exact duplicate", "near duplicate", "contaminated"]

DROPPED_DOCUMENT = np.dtype(
    [("document", "<i8"), ("kept_file", "<u4"), ("kept_row", "<i8"), ("similarity", "<f4"), ("near", "?")]
)
"""A duplicate: its number among all documents, the place of the kept document, and their similarity (1 when exact)."""

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
    """The document's id, where there is an id column."""
    reason: DropReason
    detail: str
    """The document that was kept, or what it shares with an evaluation set."""


def dropped_documents(exact: Removals, near: NearDuplicates | None, places: ArrayFiles) -> NDArray[np.void]:
    """Join the outcome of both searches; the document named as kept is always one that is kept.

    A document is an exact duplicate when the kept one has its text, and a near duplicate when the kept one is similar
    (also where a third one has its text, but goes as well).

    Args:
        exact: of `find_duplicates`; empty where only near-duplicates were looked for.
        near: of `find_near_duplicates` over the same documents.
        places: per document its `file` and `row`.

    Returns:
        [num_removed] of DROPPED_DOCUMENT, sorted by document.
    """
    if near is None:
        removals, similarity = exact, np.ones(len(exact))
    else:
        # Documents without words are like no other, but may have the same text.
        only_exact = exact[~np.isin(exact[:, 0], near.removals[:, 0])]
        removals = np.concatenate([near.removals, only_exact])
        similarity = np.concatenate([near.similarity, np.ones(len(only_exact))])
    order = np.argsort(removals[:, 0])
    removals = removals[order]
    at = np.searchsorted(exact[:, 0], removals[:, 0])
    is_exact = np.zeros(len(removals), np.bool_)
    inside = at < len(exact)
    is_exact[inside] = np.all(exact[at[inside]] == removals[inside], axis=1)
    kept = places.take(removals[:, 1])[:, 0]
    dropped = np.zeros(len(removals), DROPPED_DOCUMENT)
    dropped["document"], dropped["similarity"], dropped["near"] = removals[:, 0], similarity[order], ~is_exact
    dropped["kept_file"], dropped["kept_row"] = kept["file"], kept["row"]
    return dropped


def dropped_parquet(rows: Sequence[Dropped]) -> bytes:
    """The rows as a Parquet file, in their order; the same rows give the same bytes."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
        for start in range(0, len(rows) + 1, _ROWS_PER_GROUP):
            group = [vars(row) for row in rows[start : start + _ROWS_PER_GROUP]]
            writer.write_table(pa.Table.from_pylist(group, schema=_SCHEMA))
    return sink.getvalue()


def read_dropped(content: bytes) -> list[Dropped]:
    """The rows of a file that `dropped_parquet` made; further columns are ignored.

    Raises:
        FormatError: not such a file.
    """
    try:
        table = read_parquet(content, max_rows=MAX_WINDOWS)
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
