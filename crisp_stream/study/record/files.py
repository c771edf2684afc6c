"""Judgements of a study's record as a Parquet table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crisp_stream.errors import FormatError
from crisp_stream.format.parquet import numbers, parquet_bytes, read_parquet

if TYPE_CHECKING:
    from crisp_stream.study.record.values import Judgement

_COLUMNS = {
    "method": pa.string(),
    "specialist": pa.string(),
    "seed": pa.int64(),
    "fraction": pa.float64(),
    "set": pa.string(),
    "kind": pa.string(),
    "values": pa.list_(pa.float32()),
    "fingerprint": pa.string(),
}
_FIELDS = {"set": "set_name"}
"""Field of a column where the names differ."""


def judgements_parquet(judgements: Iterable[Judgement]) -> bytes:
    """Write a row per model and set. Bytes of floats are split by place, which stores a loss in 2.8 bytes."""
    rows = list(judgements)
    columns = {name: [getattr(row, _FIELDS.get(name, name)) for row in rows] for name in _COLUMNS}
    table = pa.table(
        {name: pa.array(columns[name], kind) for name, kind in _COLUMNS.items()},
        schema=pa.schema(list(_COLUMNS.items())),
    )
    texts = [name for name, kind in _COLUMNS.items() if kind == pa.string()]
    options: dict[str, Any] = {"use_dictionary": texts, "use_byte_stream_split": ["values.list.element"]}
    return parquet_bytes(table, compression_level=19, **options)


def judgements_of_parquet(content: bytes, *, place: str, most: int) -> list[dict[str, Any]]:
    """Read the fields of each row. Raises FormatError: not such a table, or more than `most` rows."""
    try:
        table = read_parquet(content, max_rows=most)
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise FormatError(f"{place}: column {missing[0]} is missing, it has {table.column_names}.")
        table = table.select(list(_COLUMNS)).cast(pa.schema(list(_COLUMNS.items())))
        if any(column.null_count for column in table.columns):
            raise FormatError(f"{place}: every row must be complete, but some are not. Restore it.")
        values = [numbers(row.values, pa.float32()) for row in table["values"]]
        rows = table.drop_columns(["values"]).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise error if isinstance(error, FormatError) else _unreadable(place, error) from error
    records: list[dict[str, Any]] = []
    for row, figures in zip(rows, values, strict=True):
        fields = {_FIELDS.get(str(name), str(name)): value for name, value in row.items()}
        records.append({**fields, "values": np.array(figures)})
    return records


def _unreadable(place: str, error: Exception) -> FormatError:
    return FormatError(f"{place}: is not a readable table of results ({error}). Restore it.")
