"""How a study's record stands in its two files: dataclasses from JSON, examples as a Parquet table."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from crisp_stream.errors import FormatError
from crisp_stream.format.parquet import numbers, parquet_bytes, read_parquet

if TYPE_CHECKING:
    from crisp_stream.study.record.values import Judgement

Record = TypeVar("Record")

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
"""Where a column is not called as the field."""


def judgements_parquet(judgements: Iterable[Judgement]) -> bytes:
    """A row per model and set. Bytes of floats are split by place, which stores a loss in 2.8 bytes."""
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
    """Fields of each row. Raises FormatError: not such a table, or more than `most` rows."""
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
    found: list[dict[str, Any]] = []
    for row, own in zip(rows, values, strict=True):
        fields = {_FIELDS.get(str(name), str(name)): value for name, value in row.items()}
        found.append({**fields, "values": np.array(own)})
    return found


def _unreadable(place: str, error: Exception) -> FormatError:
    return FormatError(f"{place}: is not a readable table of results ({error}). Restore it.")


def made(kind: type[Record], tree: Any, *, place: str, given: Mapping[str, Any] | None = None) -> Record:
    """A dataclass from JSON, those within it included.

    Args:
        kind: the dataclass.
        tree: its fields.
        place: where it stands, for errors.
        given: fields that do not stand in the tree.

    Raises:
        FormatError: a field is missing, unknown, or of another type.
    """
    given = dict(given or {})
    if not isinstance(tree, dict):
        raise FormatError(f"{place}: must be a mapping of keys, got {type(tree).__name__}.")
    fields = {own.name: own for own in dataclasses.fields(kind) if own.name not in given}  # pyright: ignore[reportArgumentType]
    for name in tree:
        if name not in fields:
            raise FormatError(f"{place}: `{name}` is not a key of {kind.__name__}. Upgrade crisp-stream.")
    for name, own in fields.items():
        required = own.default is dataclasses.MISSING and own.default_factory is dataclasses.MISSING
        if required and name not in tree:
            raise FormatError(f"{place}: `{name}` is missing. Run the study again.")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, f"{place}: `{name}`") for name, value in tree.items()}, **given)


def _value(hint: Any, value: Any, place: str) -> Any:
    """A value as its annotation wants it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is types.UnionType:  # only with None
        return None if value is None else _value(args[0], value, place)
    if origin is typing.Literal:
        return _of_type(value, value in args, f"one of {', '.join(map(str, args))}", place)
    if origin is tuple:
        _of_type(value, isinstance(value, list), "a list", place)
        return tuple(_value(args[0], own, f"{place}, item {number}") for number, own in enumerate(value))
    if origin is dict:
        _of_type(value, isinstance(value, dict), "a mapping of keys", place)
        return {name: _value(args[1], own, f"{place}, {name}") for name, own in value.items()}
    if dataclasses.is_dataclass(hint):
        return made(typing.cast("type[Any]", hint), value, place=place)
    if hint is float and type(value) is int:
        return float(value)
    return _of_type(value, type(value) is hint, f"of type {hint.__name__}", place)


def _of_type(value: Any, holds: bool, wanted: str, place: str) -> Any:
    if not holds:
        raise FormatError(f"{place} must be {wanted}, got {value!r}. Run the study again.")
    return value
