"""Ids of documents that are left out, such as the duplicates that RedPajama-v2 lists: very many, in bounded memory.

An id is held as its XXH3-128, 16 bytes: 10^9 ids and as many documents share a hash with probability 10^-20. The hashes
stand sorted on disk, in files of about 4 million, which are mapped: a look-up is two binary searches that read a few
pages, and the processes of a machine share them. A Python set would take 100 bytes an id in each process; a Bloom
filter would take 2, but leave out documents that nobody named.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.records.compression import Damage, opened
from crisp_stream.storage.inputs import describe_inputs, open_input
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.writers.documents.inputs import InputFile, file_kind

ID_COLUMN = "doc_id"
"""Column of a Parquet file, as RedPajama-v2 names it; the only column where there is one."""
HASHES_PER_FILE = 4 << 20
_PARTITIONS = 256
_IDS_AT_ONCE = 1 << 18


def list_id_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files of ids behind `inputs`: .parquet, and .txt of one id per line, also compressed.

    Raises:
        InputError: an input that matches no such file. StorageError: the storage cannot be listed.
    """
    files: list[InputFile] = []
    for source in inputs:
        listed = describe_inputs(source if is_remote(source) else str(local_path(source).absolute()))
        found = [
            InputFile(url=file.url, name=file.path, kind=kind, num_bytes=file.num_bytes, version=file.version)
            for file in listed
            if (kind := file_kind(file.path)) in ("parquet", "text")
        ]
        if not found:
            raise InputError(
                f"{source}: ids come from .parquet files with a column {ID_COLUMN!r}, or from .txt files of one id per "
                f"line, also .gz, .bz2, .xz or .zst; got {PurePosixPath(listed[0].path).name}. Convert the file."
            )
        files += found
    return files


def read_ids(file: InputFile) -> Iterator[str]:
    """The ids of one file.

    Raises:
        InputError: no such column, or ids that are no texts or whole numbers. CorruptInputError: a damaged file.
        StorageError: the storage refused or failed.
    """
    return _parquet_ids(file.url) if file.kind == "parquet" else _line_ids(file.url)


def _line_ids(url: str) -> Iterator[str]:
    with opened(url) as stream:
        for line in stream:
            if name := line.decode("utf-8-sig").strip():
                yield name


def _parquet_ids(url: str) -> Iterator[str]:
    import pyarrow.parquet as pq
    import pyarrow.types as types

    with Damage(url, "a readable Parquet file"), open_input(url) as raw:
        parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        schema = parquet.schema_arrow
        names = schema.names
        column = ID_COLUMN if ID_COLUMN in names else names[0]
        kind = schema.field(column).type
        is_id = types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)
        if (len(names) > 1 and column != ID_COLUMN) or not is_id:
            raise InputError(
                f"{url}: ids must stand in a column {ID_COLUMN!r} of texts or whole numbers, or in the only column, "
                f"got: {', '.join(f'{name} ({schema.field(name).type})' for name in names)}. Rename the column."
            )
        for batch in parquet.iter_batches(batch_size=_IDS_AT_ONCE, columns=[column], use_threads=False):
            for name in batch.column(0).to_pylist():
                if name is not None:
                    yield str(name)


def save_hashes(ids: Iterable[str], scratch: Path, save: Callable[[int, NDArray[np.uint64]], None]) -> list[int]:
    """Sort the hashes of `ids`, each once, through files on disk.

    Args:
        ids: in any order, any number.
        scratch: an empty folder, for 16 bytes an id.
        save: takes the number of a file and its hashes, [2, num_hashes]: their high and their low halves.

    Returns:
        For each file its smallest high half, strictly increasing; empty where there are no ids.
    """
    paths = [scratch / f"{number:03d}" for number in range(_PARTITIONS)]
    remaining = iter(ids)
    while held := list(islice(remaining, _IDS_AT_ONCE)):
        hashes = _hashes(held)
        order = np.argsort(hashes[:, 0], kind="stable")
        hashes = hashes[order]
        cuts = np.searchsorted(hashes[:, 0] >> np.uint64(56), np.arange(_PARTITIONS + 1, dtype=np.uint64))
        for path, start, stop in zip(paths, cuts[:-1], cuts[1:], strict=True):
            if stop > start:
                with path.open("ab") as file:
                    file.write(hashes[start:stop].tobytes())
    firsts: list[int] = []
    waiting: list[NDArray[np.uint64]] = []
    for number, path in enumerate(paths):
        if path.exists():
            waiting.append(_sorted_once(np.fromfile(path, np.uint64).reshape(-1, 2)))
            path.unlink()
        if waiting and (number == _PARTITIONS - 1 or sum(map(len, waiting)) >= HASHES_PER_FILE):
            joined = np.ascontiguousarray(np.concatenate(waiting).T)
            save(len(firsts), joined)
            firsts.append(int(joined[0, 0]))
            waiting = []
    return firsts


def _hashes(ids: Sequence[str]) -> NDArray[np.uint64]:
    """[num_ids, 2]: high and low halves."""
    content = b"".join(xxhash.xxh3_128_digest(name.encode("utf-8", "surrogatepass")) for name in ids)
    return np.frombuffer(content, ">u8").astype(np.uint64).reshape(-1, 2)


def _sorted_once(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    hashes = hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))]
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    return hashes[is_new]


class ExcludedIds:
    """The ids that `save_hashes` saved."""

    def __init__(self, firsts: Sequence[int], load: Callable[[int], NDArray[Any]]) -> None:
        """`load` gives the hashes of a file, mapped; it is called once for each file that is needed."""
        self._firsts, self._load = list(firsts), load
        self._files: dict[int, NDArray[Any]] = {}

    def __contains__(self, name: str) -> bool:
        digest = xxhash.xxh3_128_digest(name.encode("utf-8", "surrogatepass"))
        high, low = (np.uint64(int.from_bytes(digest[at : at + 8], "big")) for at in (0, 8))
        number = bisect_right(self._firsts, int(high)) - 1
        if number < 0:
            return False
        if number not in self._files:
            self._files[number] = self._load(number)
        highs, lows = self._files[number]
        at = int(np.searchsorted(highs, high))
        while at < len(highs) and highs[at] == high:
            if lows[at] == low:
                return True
            at += 1
        return False
