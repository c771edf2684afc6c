"""shards.parquet, the table of shards: columns, because there may be a hundred thousand rows."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import FormatError
from crisp_stream.format.mds import ShardRow, header_bytes
from crisp_stream.format.parquet import checked_batches, numbers, parquet_bytes
from crisp_stream.format.tables import check_fingerprint, generation_path

if TYPE_CHECKING:
    from crisp_stream.format.manifest import Manifest

SHARDS = "shards.parquet"
_NAMES = tuple(field.name for field in dataclasses.fields(ShardRow))
_TEXTS = ("path", "shard_hash")
_NUMBERS = {"num_windows": "int64", "shard_bytes": "int64", "first_sample_offset": "int64", "checksum_seed": "uint64"}
_PATH = re.compile(r"shards/[0-9]{2}/shard\.[0-9]{5,9}\.mds")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTable(Sequence[ShardRow]):
    """The shards of a dataset in window order. The fields are columns of what `ShardRow` describes."""

    path: list[str]
    num_windows: NDArray[np.int64]
    shard_bytes: NDArray[np.int64]
    first_sample_offset: NDArray[np.int64]
    shard_hash: list[str]
    checksum_seed: NDArray[np.uint64]

    @classmethod
    def of(cls, rows: Iterable[ShardRow]) -> ShardTable:
        """Make columns of rows."""
        columns = [list(column) for column in zip(*map(dataclasses.astuple, rows), strict=True)] or [[] for _ in _NAMES]
        return cls(**{name: _column(name, values) for name, values in zip(_NAMES, columns, strict=True)})

    def __len__(self) -> int:
        return len(self.path)

    @overload
    def __getitem__(self, index: int) -> ShardRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardRow]: ...
    def __getitem__(self, index: int | slice) -> ShardRow | list[ShardRow]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return ShardRow(
            path=self.path[index],
            num_windows=int(self.num_windows[index]),
            shard_bytes=int(self.shard_bytes[index]),
            first_sample_offset=int(self.first_sample_offset[index]),
            shard_hash=self.shard_hash[index],
            checksum_seed=int(self.checksum_seed[index]),
        )

    def to_parquet(self) -> bytes:
        """The bytes of shards.parquet: one row per shard."""
        return parquet_bytes(pa.table({name: getattr(self, name) for name in _NAMES}, schema=_SCHEMA))

    @property
    def fingerprint(self) -> str:
        """sha256 of the rows as a JSON list of lists."""
        columns = [self.path, *(getattr(self, name).tolist() for name in _NAMES[1:4])]
        rows = zip(*columns, self.shard_hash, self.checksum_seed.tolist(), strict=True)
        # what json.dumps writes of paths and hex digits, in half the time
        texts = [f'["{path}", {a}, {b}, {c}, "{digest}", {seed}]' for path, a, b, c, digest, seed in rows]
        return hashlib.sha256(f"[{', '.join(texts)}]".encode()).hexdigest()


_SCHEMA = pa.schema([(name, pa.string() if name in _TEXTS else pa.type_for_alias(_NUMBERS[name])) for name in _NAMES])


def _column(name: str, values: list[Any]) -> Any:
    return values if name in _TEXTS else np.array(values, _NUMBERS[name])


def read_shards(content: bytes, manifest: Manifest) -> ShardTable:
    """Read shards.parquet.

    Raises:
        FormatError: the table is not readable, breaks MUST 5, or is not the manifest's.
    """
    name = generation_path(SHARDS, manifest.generation)
    table = _decoded(content, name, manifest)
    for path in table.path:
        if not _PATH.fullmatch(path):
            raise FormatError(f"{name}: path must look like shards/07/shard.00000.mds below the root, got {path!r}.")
    if len(set(table.path)) != len(table):
        raise FormatError(f"{name}: every path must stand once.")
    if len(np.unique(table.checksum_seed)) != len(table):
        raise FormatError(f"{name}: every checksum_seed must stand once. Restore the file.")
    counts = table.num_windows
    if counts.min() < 1 or counts.max() > manifest.num_windows:
        raise FormatError(f"{name}: num_windows must be 1 to {manifest.num_windows} everywhere. Restore the file.")
    offsets = len(header_bytes(0, manifest.window_tokens, manifest.token_dtype)) + 4 * counts
    ends = offsets + counts * manifest.sample_bytes
    wrong = (table.first_sample_offset != offsets) | (table.shard_bytes != ends)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise FormatError(
            f"{name}: {table.path[at]}: {counts[at]} windows need offset and size {(int(offsets[at]), int(ends[at]))}, "
            f"got {(int(table.first_sample_offset[at]), int(table.shard_bytes[at]))}."
        )
    if int(counts.sum()) != manifest.num_windows:
        raise FormatError(f"{name}: num_windows must sum to {manifest.num_windows}, got {counts.sum()}.")
    check_fingerprint(name, table.fingerprint, manifest.shards_fingerprint)
    return table


def _decoded(content: bytes, name: str, manifest: Manifest) -> ShardTable:
    texts: dict[str, list[str]] = {column: [] for column in _TEXTS}
    parts: dict[str, list[NDArray[Any]]] = {column: [] for column in _NUMBERS}
    for batch in checked_batches(content, name, _NAMES, manifest.num_shards):
        try:
            if any(batch[column].null_count for column in _NAMES):
                raise FormatError(f"{name}: must have {manifest.num_shards} rows without nulls.")
            for column, kind in _NUMBERS.items():
                parts[column].append(numbers(batch[column], pa.type_for_alias(kind)))
            for column in _TEXTS:
                texts[column] += _texts(batch[column])
        except pa.ArrowException as error:
            raise FormatError(
                f"{name}: columns must be texts and whole numbers ({error}). Restore the file."
            ) from error
    return ShardTable(**texts, **{column: np.concatenate(arrays) for column, arrays in parts.items()})


def _texts(column: pa.Array) -> list[str]:
    """Each text of the dictionary once, whatever the number of rows that repeat it."""
    encoded = column.cast(pa.dictionary(pa.int32(), pa.string()))
    values = encoded.dictionary.to_pylist()
    return [values[index] for index in encoded.indices.to_pylist()]
