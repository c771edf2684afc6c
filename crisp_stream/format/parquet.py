"""Read Parquet without threads that may outlive the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import FormatError

_BATCH_ROWS = 1 << 20
_ROW_BYTES = 512
"""No row of a table is longer: paths and hashes have fixed forms."""


def read_parquet(content: bytes, *, max_rows: int) -> pa.Table:
    """A Parquet file in memory as a table, read by this thread alone. Raises ValueError beyond `max_rows` rows.

    pq.read_table leaves reads to threads of Arrow, which may outlive the interpreter and then abort a finished process.
    """
    file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    if file.metadata.num_rows > max_rows:
        raise ValueError(f"at most {max_rows:,} rows, got {file.metadata.num_rows:,}")
    return file.read(use_threads=False)


def numbers(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> NDArray[Any]:
    """A column without nulls as numpy, cast to a type of whole or floating numbers.

    Arrow's own conversion imports pandas, 0.5 s and 50 MB in every process. Raises ArrowException when it does not fit.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    dtype = np.dtype(kind.to_pandas_dtype())
    arrays = []
    for chunk in chunks:
        cast = chunk.cast(kind)
        if len(cast):
            arrays.append(np.frombuffer(cast.buffers()[1], dtype, len(cast), cast.offset * dtype.itemsize))
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, dtype), *arrays])


def _column_bytes(metadata: pq.FileMetaData, columns: tuple[str, ...]) -> int:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    parts = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema in columns)


def _check_bytes(name: str, found: int, num_rows: int) -> None:
    if found > (limit := _ROW_BYTES * num_rows + (1 << 20)):
        raise FormatError(f"{name}: {num_rows} rows must need at most {limit} bytes, they need {found}. Restore it.")


def checked_batches(content: bytes, name: str, columns: tuple[str, ...], num_rows: int) -> Iterator[pa.RecordBatch]:
    """The columns of a table that must have `num_rows` rows, a million rows at a time."""
    try:
        # strings stay in their dictionary, so that one long string of a small file is not copied to every row
        strings = [column for column in ("path", "shard_hash") if column in columns]
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, read_dictionary=strings)
        missing = [column for column in columns if column not in file.schema_arrow.names]
        if missing:
            raise FormatError(f"{name}: column {missing[0]} is missing, it has {file.schema_arrow.names}.")
        if file.metadata.num_rows != num_rows:
            raise FormatError(f"{name}: must have {num_rows} rows, got {file.metadata.num_rows}.")
        _check_bytes(name, _column_bytes(file.metadata, columns), num_rows)
        read = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns), use_threads=False):
            read += len(batch)
            if read > num_rows:
                break
            _check_bytes(name, batch.nbytes, num_rows)
            yield batch
    except (pa.ArrowException, OSError, KeyError) as error:
        raise FormatError(f"{name}: not a readable Parquet file ({error}). Restore it.") from error
    if read != num_rows:
        raise FormatError(f"{name}: must have {num_rows} rows, got {read}.")
