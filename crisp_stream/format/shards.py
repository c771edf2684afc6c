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
_HASH = re.compile(r"[0-9a-f]{32}")
_PATH_EXAMPLE = "shards/07/shard.00000.mds below the root"
_ROWS_AT_ONCE = 4_096
_PATH = re.compile(r"shards/[0-9]{2}/shard\.[0-9]{5,9}(\.[0-9a-f]{8})?\.mds")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTable(Sequence[ShardRow]):
    """The shards of a dataset in window order. The fields are columns of what `ShardRow` describes."""

    path: NDArray[np.bytes_]
    num_windows: NDArray[np.int64]
    shard_bytes: NDArray[np.int64]
    first_sample_offset: NDArray[np.int64]
    shard_hash: NDArray[np.bytes_]
    checksum_seed: NDArray[np.uint64]

    @classmethod
    def of(cls, rows: Iterable[ShardRow]) -> ShardTable:
        """Make columns of rows."""
        given = list(rows)
        return cls(**{name: _column(name, [getattr(row, name) for row in given]) for name in _NAMES})

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
            path=self.path[index].decode(),
            num_windows=int(self.num_windows[index]),
            shard_bytes=int(self.shard_bytes[index]),
            first_sample_offset=int(self.first_sample_offset[index]),
            shard_hash=self.shard_hash[index].decode(),
            checksum_seed=int(self.checksum_seed[index]),
        )

    def to_parquet(self) -> bytes:
        """The bytes of shards.parquet: one row per shard."""
        columns = {name: getattr(self, name) for name in _NAMES}
        return parquet_bytes(pa.table({**columns, **{name: columns[name].tolist() for name in _TEXTS}}, schema=_SCHEMA))

    @property
    def fingerprint(self) -> str:
        """sha256 of the rows as a JSON list of lists."""
        digest, columns = hashlib.sha256(b"["), [getattr(self, name) for name in _NAMES]
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = zip(*(column[start : start + _ROWS_AT_ONCE].tolist() for column in columns), strict=True)
            # what json.dumps writes of paths, whole numbers and hex digits, in half the time
            texts = [b'["%b", %d, %d, %d, "%b", %d]' % row for row in rows]
            digest.update((b", " if start else b"") + b", ".join(texts))
        digest.update(b"]")
        return digest.hexdigest()


_SCHEMA = pa.schema([(name, pa.string() if name in _TEXTS else pa.type_for_alias(_NUMBERS[name])) for name in _NAMES])


def _column(name: str, values: list[Any]) -> NDArray[Any]:
    return np.array(values, "S" if name in _TEXTS else _NUMBERS[name])


def read_shards(content: bytes, manifest: Manifest) -> ShardTable:
    """Read shards.parquet.

    Raises:
        FormatError: the table is not readable, breaks MUST 5, or is not the manifest's.
    """
    name = generation_path(SHARDS, manifest.generation, manifest.mark)
    table = _decoded(content, name, manifest)
    if len(set(table.path.tolist())) != len(table):
        raise FormatError(f"{name}: every path must stand once.")
    if not np.diff(np.sort(table.checksum_seed)).all():
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
            f"{name}: {table[at].path}: {counts[at]} windows need offset and size {(int(offsets[at]), int(ends[at]))}, "
            f"got {(int(table.first_sample_offset[at]), int(table.shard_bytes[at]))}."
        )
    if int(counts.sum()) != manifest.num_windows:
        raise FormatError(f"{name}: num_windows must sum to {manifest.num_windows}, got {counts.sum()}.")
    check_fingerprint(name, table.fingerprint, manifest.shards_fingerprint)
    return table


def _decoded(content: bytes, name: str, manifest: Manifest) -> ShardTable:
    parts: dict[str, list[NDArray[Any]]] = {column: [] for column in _NAMES}
    for batch in checked_batches(content, name, _NAMES, manifest.num_shards):
        try:
            if any(batch[column].null_count for column in _NAMES):
                raise FormatError(f"{name}: must have {manifest.num_shards} rows without nulls.")
            for column, kind in _NUMBERS.items():
                parts[column].append(numbers(batch[column], pa.type_for_alias(kind)))
            parts["path"].append(_texts(batch["path"], _PATH, f"{name}: path must look like {_PATH_EXAMPLE}"))
            parts["shard_hash"].append(_texts(batch["shard_hash"], _HASH, f"{name}: shard_hash must be hex digits"))
        except pa.ArrowException as error:
            raise FormatError(f"{name}: columns must be texts and whole numbers ({error}). Restore it.") from error
    return ShardTable(**{column: np.concatenate(arrays) for column, arrays in parts.items()})


def _texts(column: pa.Array, pattern: re.Pattern[str], rule: str) -> NDArray[np.bytes_]:
    """Texts of a pattern, which bounds their length."""
    encoded = column.cast(pa.dictionary(pa.int32(), pa.string()))
    distinct: list[NDArray[np.bytes_]] = []
    for start in range(0, len(encoded.dictionary), _ROWS_AT_ONCE):
        texts = encoded.dictionary.slice(start, _ROWS_AT_ONCE).to_pylist()
        for text in texts:
            if not pattern.fullmatch(text):
                raise FormatError(f"{rule}, got {text[:80]!r}.")
        distinct.append(np.array(texts, "S"))
    return np.concatenate(distinct)[numbers(encoded.indices, pa.int32())]
