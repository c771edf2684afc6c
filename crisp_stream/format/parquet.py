"""Read and write Parquet: tables in memory, and records, which are a table with facts about it.

pq.read_table leaves reads to threads of Arrow, which may outlive the interpreter and then abort a finished process.
So every file is read by the thread that asks for it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import CrispError, FormatError, MissingObjectError, StorageError
from crisp_stream.storage.store import Store, is_remote, local_path, open_store

_BATCH_ROWS = 1 << 20
_ROW_BYTES = 512
"""No row of a table is longer: paths and hashes have fixed forms."""
DAMAGE = (
    pa.ArrowException,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""Errors of a file that is not what it should be."""


def read_parquet(content: bytes, *, max_rows: int) -> pa.Table:
    """Read a Parquet file in memory as a table. Raises ValueError beyond `max_rows` rows."""
    file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    if file.metadata.num_rows > max_rows:
        raise ValueError(f"at most {max_rows:,} rows, got {file.metadata.num_rows:,}")
    return file.read(use_threads=False)


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """Make a Parquet file of a table; `options` are those of `pq.write_table`."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", **options})
    return sink.getvalue()


@dataclass(frozen=True, kw_only=True)
class RecordKind:
    """A kind of record: a Parquet table with facts about it as JSON."""

    name: str
    """Name in messages, such as "scores of windows"."""
    key: bytes
    """Key of the facts in the file's metadata."""
    version_key: str
    """Name of the fact that holds the version."""
    version: int
    """Version that is written and read."""
    remedy: str
    """Last sentence about a missing or damaged file; `{path}` stands for its path."""
    max_rows: int = 1 << 31
    """Most rows that are read."""
    sort_keys: bool = False
    """Whether facts are written sorted by name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `pq.write_table`."""


@dataclass(frozen=True)
class Record:
    """A record being read."""

    facts: dict[str, Any]
    """The facts without the version."""
    content: bytes
    """The whole file."""
    file: pq.ParquetFile

    def table(self) -> pa.Table:
        """Read the table."""
        return self.file.read(use_threads=False)


def save_record(path: str | Path, kind: RecordKind, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write a record at a local path or an object URL, whole or not at all, replacing an older one.

    Facts are fit for JSON. Raises StorageError.
    """
    text = json.dumps({kind.version_key: kind.version, **facts}, sort_keys=kind.sort_keys)
    table = pa.table(dict(columns)).replace_schema_metadata({kind.key: text.encode()})
    store, name = _store_and_name(path)
    store.put(name, parquet_bytes(table, **kind.options))


@contextlib.contextmanager
def load_record(path: str | Path, kind: RecordKind) -> Iterator[Record]:
    """Open a record for the statements below `with`, whose errors count as damage of the file, too.

    Raises:
        FormatError: no such file, another kind or version, or damaged. StorageError: the storage refused or failed.
    """
    remedy = kind.remedy.format(path=path if str(path).endswith(".parquet") else "FILE.parquet")
    if not is_remote(str(path)) and local_path(str(path)).is_dir():
        raise FormatError(f"{path}: must be a file, {kind.name}, got a folder. {remedy}")
    store, name = _store_and_name(path)
    try:
        content = store.get(name)
    except MissingObjectError as error:
        raise FormatError(f"{path}: no such file. {remedy}") from error
    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, page_checksum_verification=True)
        facts = json.loads((file.schema_arrow.metadata or {})[kind.key])
        version = facts.pop(kind.version_key, None)
        if version != kind.version:
            raise FormatError(f"{kind.version_key} {version} is not {kind.version}. Upgrade crisp-stream.")
        if file.metadata.num_rows > kind.max_rows:
            raise FormatError(f"must have at most {kind.max_rows:,} rows, got {file.metadata.num_rows:,}. {remedy}")
        yield Record(facts, content, file)
    except StorageError:
        raise
    except CrispError as error:
        raise FormatError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise FormatError(f"{path}: not {kind.name}, or damaged ({error!r}). {remedy}") from error


def _store_and_name(path: str | Path) -> tuple[Store, str]:
    folder, slash, name = str(path).rpartition("/")
    return open_store(folder or slash or "."), name


_NUMPY_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""numpy's names of the types of Arrow, where they are others."""


def numbers(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> NDArray[Any]:
    """Convert a column without nulls to numpy, cast to a type of whole or floating numbers.

    The conversion of Arrow imports pandas (0.5 s, 50 MB), and older ones need it. Raises ArrowException where a value
    does not fit.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    dtype = np.dtype(_NUMPY_NAMES.get(str(kind), str(kind)))
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


def _check_bytes(name: str, num_bytes: int, num_rows: int) -> None:
    if num_bytes > (limit := _ROW_BYTES * num_rows + (1 << 20)):
        raise FormatError(f"{name}: {num_rows} rows must need at most {limit} bytes, got {num_bytes}. Restore it.")


def checked_batches(content: bytes, name: str, columns: tuple[str, ...], num_rows: int) -> Iterator[pa.RecordBatch]:
    """Read the columns of a table that must have `num_rows` rows, a million rows at a time."""
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
    finally:
        pa.default_memory_pool().release_unused()  # it would keep what decoding took, 70 MB for 100,000 shards
    if read != num_rows:
        raise FormatError(f"{name}: must have {num_rows} rows, got {read}.")
