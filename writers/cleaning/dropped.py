"""The list of removed documents that is published with a dataset: which, and why.

Each task that removes documents leaves a table of them (LISTED), which names files by their numbers. The published list
(provenance/dropped.parquet) is made from these tables piece by piece, in the order of (number of the file, row).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import FormatError
from crisp_stream.format.parquet import DAMAGE
from crisp_stream.writers.cleaning.duplicates import unpacked_places

DropReason = Literal["exact duplicate", "near duplicate", "contaminated"]

REMOVED = np.dtype([("place", "<u8"), ("kept", "<u8"), ("similarity", "<f4"), ("near", "?")])
"""A duplicate: its place, that of the kept document, and their similarity (1 when exact)."""

LISTED = pa.schema(
    [
        pa.field("file", pa.uint32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("kept_file", pa.uint32()),
        pa.field("kept_row", pa.int64()),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""A removed document. `detail` follows on the place of the kept document, where there is one."""

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


_ROWS_PER_BATCH = 1 << 14


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


def contaminated_rows(
    files: Sequence[int], rows: Sequence[int], ids: Sequence[str | None], details: Sequence[str]
) -> pa.Table:
    """Contaminated documents as LISTED."""
    nothing = pa.nulls(len(rows))
    return _listed(files, rows, ids, ["contaminated"] * len(rows), nothing, nothing, details)


def repeated_rows(
    files: NDArray[np.uint32], rows: NDArray[np.int64], ids: Sequence[str | None], removed: NDArray[np.void]
) -> pa.Table:
    """Duplicates as LISTED; `removed` is of REMOVED and says which are kept instead."""
    reasons = [get_args(DropReason)[int(near)] for near in removed["near"].tolist()]
    details = [
        f", similarity {similarity:.2f}" if near else ""
        for near, similarity in zip(removed["near"].tolist(), removed["similarity"].tolist(), strict=True)
    ]
    kept_files, kept_rows = unpacked_places(removed["kept"])
    return _listed(files, rows, ids, reasons, kept_files, kept_rows, details)


def _listed(*columns: Any) -> pa.Table:
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, LISTED, strict=True)]
    return pa.Table.from_arrays(arrays, schema=LISTED)


def save_listed(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write tables of LISTED to an Arrow file; the number of their rows."""
    num_rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, LISTED) as writer:
        for table in tables:
            writer.write_table(table, max_chunksize=_ROWS_PER_BATCH)
            num_rows += len(table)
    return num_rows


def read_listed(path: Path) -> Iterator[pa.Table]:
    """The rows of an Arrow file of `save_listed`, in pieces."""
    with pa.OSFile(str(path), "rb") as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield pa.Table.from_batches([file.get_batch(number)], LISTED)


def merge_listed(first: Iterable[pa.Table], second: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Merge two lists, each sorted by (file, row) and in pieces, into one; holds a piece of each."""
    others = (table for table in second if len(table))
    other = next(others, None)
    for table in first:
        taken = [table]
        while other is not None and len(table):
            count = _num_before(other, table)
            taken.append(other.slice(0, count))
            if count < len(other):
                other = other.slice(count)
                break
            other = next(others, None)
        joined = pa.concat_tables(taken)
        yield joined.take(np.lexsort((joined["row"].to_numpy(), joined["file"].to_numpy())))
    if other is not None:
        yield other
        yield from others


def _num_before(other: pa.Table, table: pa.Table) -> int:
    """The rows of `other` before the last one of `table`."""
    last_file, last_row = table["file"][-1].as_py(), table["row"][-1].as_py()
    files, rows = other["file"].to_numpy(), other["row"].to_numpy()
    return int(np.count_nonzero((files < last_file) | ((files == last_file) & (rows < last_row))))


def named_rows(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Rows of LISTED as they are published; `names` are those of the files."""
    all_names = pa.array(names, pa.string())
    compute: Any = pc
    kept = compute.binary_join_element_wise(
        "row ", table["kept_row"].cast(pa.string()), " of ", all_names.take(table["kept_file"]), table["detail"], ""
    )
    columns = [all_names.take(table["file"]), *(table[name] for name in ("row", "id", "reason"))]
    return pa.Table.from_arrays([*columns, compute.coalesce(kept, table["detail"])], schema=_SCHEMA)


def save_dropped(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write the published list; the same rows give the same bytes, however they come in pieces. The number of rows."""
    held: list[pa.Table] = []
    num_held = num_rows = 0
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for table in tables:
            held.append(table)
            num_held += len(table)
            num_rows += len(table)
            while num_held >= _ROWS_PER_GROUP:
                joined = pa.concat_tables(held)
                writer.write_table(joined.slice(0, _ROWS_PER_GROUP).combine_chunks())
                held, num_held = [joined.slice(_ROWS_PER_GROUP)], num_held - _ROWS_PER_GROUP
        if num_held:
            writer.write_table(pa.concat_tables(held).combine_chunks())
    return num_rows


def dropped_table(rows: Sequence[Dropped]) -> pa.Table:
    """Rows of the published list as a table."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=_SCHEMA)


def dropped_tables(source: Path | pa.Buffer) -> Iterator[pa.Table]:
    """The published list, one row group after another; further columns are ignored.

    Raises:
        FormatError: not such a file.
    """
    try:
        file = pq.ParquetFile(source if isinstance(source, Path) else pa.BufferReader(source), pre_buffer=False)
        with contextlib.closing(file):
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns=_SCHEMA.names, use_threads=False).cast(_SCHEMA)
    except DAMAGE as error:
        raise FormatError(
            f"list of dropped documents: must be Parquet with the columns {', '.join(_SCHEMA.names)}, got: {error}. "
            "Write the dataset again."
        ) from error


def read_dropped(source: Path | bytes) -> Iterator[Dropped]:
    """The rows of the published list, from a file or its content, read in pieces.

    Raises:
        FormatError: not such a file.
    """
    for table in dropped_tables(source if isinstance(source, Path) else pa.py_buffer(source)):
        for record in table.to_pylist():
            if record["reason"] not in get_args(DropReason):
                raise FormatError(
                    f"list of dropped documents: a reason must be one of {', '.join(get_args(DropReason))}, got "
                    f"{record['reason']!r}. Upgrade crisp-stream, or write the dataset again."
                )
            yield Dropped(**record)
