"""Judgements of a study's record as a Parquet table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crisp_stream.errors import FormatError
from crisp_stream.format.parquet import numbers, parquet_bytes, read_parquet

if TYPE_CHECKING:
    from crisp_stream.study.record.values import Judgement

_SCHEMA = pa.schema(
    {
        "method": pa.string(),
        "specialist": pa.string(),
        "seed": pa.int64(),
        "fraction": pa.float64(),
        "set": pa.string(),
        "kind": pa.string(),
        "values": pa.list_(pa.float32()),
        "fingerprint": pa.string(),
    }
)
_FIELDS = ["set_name" if name == "set" else name for name in _SCHEMA.names]


def judgements_parquet(judgements: Sequence[Judgement]) -> bytes:
    """Write a row per model and set. Bytes of floats are split by place, which stores a loss in 2.8 bytes."""
    columns = [[getattr(row, field) for row in judgements] for field in _FIELDS]
    table = pa.table(dict(zip(_SCHEMA.names, columns, strict=True)), schema=_SCHEMA)
    texts = [column.name for column in _SCHEMA if column.type == pa.string()]
    options: dict[str, Any] = {"use_dictionary": texts, "use_byte_stream_split": ["values.list.element"]}
    return parquet_bytes(table, compression_level=19, **options)


def judgements_of_parquet(content: bytes, *, place: str, most: int) -> list[dict[str, Any]]:
    """Read the fields of each row. Raises FormatError: not such a table, or more than `most` rows."""
    try:
        table = read_parquet(content, max_rows=most)
        missing = [name for name in _SCHEMA.names if name not in table.column_names]
        if missing:
            raise FormatError(f"{place}: column {missing[0]} is missing, it has {table.column_names}.")
        table = table.select(_SCHEMA.names).cast(_SCHEMA).rename_columns(_FIELDS)
        if any(column.null_count for column in table.columns):
            raise FormatError(f"{place}: every row must be complete, but some are not. Restore it.")
        values = [np.array(numbers(row.values, pa.float32())) for row in table["values"]]
        rows = table.drop_columns(["values"]).to_pylist()
    except FormatError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{place}: is not a readable table of results ({error}). Restore it.") from error
    return [row | {"values": figures} for row, figures in zip(rows, values, strict=True)]
