"""Window ids -> verified samples.

Local roots are memory-mapped in place. Remote roots are read in runs (up to 64 consecutive windows of a leaf, about
129 KB), neighbouring runs in one request of at most 8 MB, kept in a cache folder that the processes of a machine
share: entries are immutable, written to a temporary name and renamed, so no locks are needed. Every window that
leaves this file has had its checksum and its cluster compared; a remote run that does not match is fetched again,
then the failure is raised.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError, InputError, StorageError
from crisp_stream.mds import checksums, sample_dtype
from crisp_stream.storage import cache_folder, local_path

if TYPE_CHECKING:
    from crisp_stream.format import Dataset

RUN_WINDOWS = 64
REQUEST_BYTES = 8 << 20
REQUESTS_IN_FLIGHT = 16
FETCH_ATTEMPTS = 3
_MAPPED_SHARDS = 1024
_STALL_MARGIN = 15.0  # seconds beyond the timeout, for the client to give up by itself
_EVICTION_CHECK_BYTES = 16 << 20

Int64s = NDArray[np.int64]
T = TypeVar("T")


class Run(NamedTuple):
    """Consecutive windows of one leaf within one shard: the unit of reading and caching."""

    shard: int
    first: int
    """Id of its first window."""
    num_windows: int


def runs_of_windows(
    dataset: Dataset, window_ids: Int64s
) -> tuple[NDArray[np.int64], Int64s, Int64s, NDArray[np.uint32]]:
    """The run that each window belongs to.

    Args:
        dataset: the opened dataset.
        window_ids: [num_windows].

    Returns:
        Shard number, first window and number of windows of each one's run, and its leaf id; each [num_windows].
    """
    row = np.searchsorted(dataset.first_window_per_leaf, window_ids, side="right") - 1
    leaf_first = dataset.first_window_per_leaf[row]
    leaf_stop = leaf_first + dataset.windows_per_leaf[row]
    first = leaf_first + (window_ids - leaf_first) // RUN_WINDOWS * RUN_WINDOWS
    stop = np.minimum(first + RUN_WINDOWS, leaf_stop)
    shard = np.searchsorted(dataset.first_window_per_shard, window_ids, side="right") - 1
    shard_first = dataset.first_window_per_shard[shard]
    shard_stop = np.append(dataset.first_window_per_shard[1:], dataset.manifest.num_windows)[shard]
    first, stop = np.maximum(first, shard_first), np.minimum(stop, shard_stop)
    return shard, first, stop - first, dataset.leaves[row]


class WindowReader:
    """Reads any windows of a dataset. Close it, or use it as a context manager."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        local: str | Path | None = None,
        cache_limit: int | None = None,
        timeout: float = 120.0,
    ) -> None:
        """Args:
        dataset: the opened dataset.
        local: cache folder for a remote root; the user's cache folder when None. Unused for a local root.
        cache_limit: bytes that the cache may hold; no limit when None.
        timeout: seconds after which a failing or stalled read is raised.
        """
        self.dataset = dataset
        self._dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
        source = _MappedShards if dataset.store.is_local else _FetchedRuns
        self._source: _MappedShards | _FetchedRuns = source(dataset, local, cache_limit, timeout)

    def prefetch(self, window_ids: Int64s) -> None:
        """Start fetching what these windows need; they will be asked for with `read`."""
        self._source.prefetch(window_ids)

    def read(self, window_ids: Int64s) -> NDArray[Any]:
        """[num_windows] of `mds.sample_dtype`, verified, in the order asked.

        Raises:
            CorruptDataError: a window does not match its checksum or cluster.
            StorageError: the storage refused, failed or stalled.
        """
        samples = np.empty(len(window_ids), self._dtype)
        leaves = self.dataset.leaf_of_windows(window_ids)
        self._source.fill(window_ids, samples)
        wrong = _wrong(samples, leaves)
        if wrong.any():
            self._source.mend(window_ids, leaves, samples, wrong)
        return samples

    @property
    def bytes_read(self) -> int:
        """Bytes asked of the root by this reader (not of the cache)."""
        return self._source.bytes_read

    @property
    def requests(self) -> int:
        """Requests to the root by this reader (local: windows gathered are not requests, so 0)."""
        return self._source.requests

    def close(self) -> None:
        """Stop fetching."""
        self._source.close()

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wrong(samples: NDArray[Any], leaves: NDArray[np.uint32]) -> NDArray[np.bool_]:
    return (checksums(samples) != samples["checksum"]) | (samples["cluster"] != leaves)


def _corrupt(dataset: Dataset, window: int) -> CorruptDataError:
    shard = int(np.searchsorted(dataset.first_window_per_shard, window, side="right")) - 1
    row, size = dataset.shards[shard], dataset.manifest.sample_bytes
    start = row.first_sample_offset + (window - int(dataset.first_window_per_shard[shard])) * size
    return CorruptDataError(
        f"{dataset.root}/{row.path}: window {window} (bytes {start}-{start + size - 1}) does not match its checksum. "
        "The shard is damaged: run crisp-stream verify, and restore it from a copy or write the dataset again."
    )


class _MappedShards:
    """Shards of a local root, memory-mapped."""

    requests = 0

    def __init__(self, dataset: Dataset, local: str | Path | None, cache_limit: int | None, timeout: float) -> None:
        self._dataset = dataset
        self._mapped: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self.bytes_read = 0

    def prefetch(self, window_ids: Int64s) -> None:
        """The page cache does this."""

    def fill(self, window_ids: Int64s, samples: NDArray[Any]) -> None:
        shard_of = np.searchsorted(self._dataset.first_window_per_shard, window_ids, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        shards, starts = np.unique(shard_of[order], return_index=True)
        for shard, here in zip(shards, np.split(order, starts[1:]), strict=True):
            samples[here] = self._map(int(shard))[window_ids[here] - self._dataset.first_window_per_shard[shard]]
        self.bytes_read += samples.nbytes

    def _map(self, shard: int) -> NDArray[Any]:
        mapped = self._mapped.get(shard)
        if mapped is None:
            row, manifest = self._dataset.shards[shard], self._dataset.manifest
            path = local_path(self._dataset.root) / row.path
            try:
                if path.stat().st_size != row.shard_bytes:
                    raise CorruptDataError(
                        f"{path}: the shard table says {row.shard_bytes} bytes, got {path.stat().st_size}. "
                        "The shard is truncated or was replaced: restore it from a copy or write the dataset again."
                    )
                mapped = np.memmap(
                    path,
                    sample_dtype(manifest.window_tokens, manifest.token_dtype),
                    mode="r",
                    offset=row.first_sample_offset,
                    shape=(row.num_windows,),
                )
            except OSError as error:
                raise StorageError(
                    f"{path}: {error.strerror}. Restore the shard; crisp-stream verify finds others."
                ) from error
            self._mapped[shard] = mapped
            if len(self._mapped) > _MAPPED_SHARDS:
                self._mapped.popitem(last=False)
        else:
            self._mapped.move_to_end(shard)
        return mapped

    def mend(self, window_ids: Int64s, leaves: NDArray[Any], samples: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
        """A local file is not healed by reading it again."""
        raise _corrupt(self._dataset, int(window_ids[wrong][0]))

    def close(self) -> None:
        self._mapped.clear()


class _FetchedRuns:
    """Runs of a remote root: fetched ahead, cached on disk."""

    def __init__(self, dataset: Dataset, local: str | Path | None, cache_limit: int | None, timeout: float) -> None:
        self._dataset = dataset
        self._dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
        self._timeout = timeout
        folder = Path(local) if local is not None else cache_folder()
        self._cache = _RunCache(folder / dataset.manifest.fingerprint[:16] / "runs", cache_limit)
        self._pending: dict[Run, Future[None]] = {}
        self._pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="crisp-stream-fetch")
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.requests = 0

    def _runs(self, window_ids: Int64s) -> tuple[list[Run], NDArray[np.intp]]:
        shard, first, count, _ = runs_of_windows(self._dataset, window_ids)
        _, at, inverse = np.unique(first, return_index=True, return_inverse=True)
        return [Run(int(shard[i]), int(first[i]), int(count[i])) for i in at], inverse

    def prefetch(self, window_ids: Int64s) -> None:
        runs, _ = self._runs(window_ids)
        missing = [run for run in runs if run not in self._pending and not self._cache.holds(run)]
        for group in self._coalesced(missing):
            self._pending.update(dict.fromkeys(group, self._pool.submit(self._fetch_into_cache, group)))

    def _coalesced(self, runs: list[Run]) -> list[list[Run]]:
        """Neighbouring runs of a shard in groups of at most REQUEST_BYTES; `runs` is sorted by window."""
        groups: list[list[Run]] = []
        limit = max(1, REQUEST_BYTES // self._dtype.itemsize)
        for run in runs:
            last = groups[-1] if groups else None
            adjacent = (
                last is not None and last[-1].shard == run.shard and last[-1].first + last[-1].num_windows == run.first
            )
            if last is not None and adjacent and run.first + run.num_windows - last[0].first <= limit:
                last.append(run)
            else:
                groups.append([run])
        return groups

    def _fetch(self, group: list[Run]) -> dict[Run, bytes]:
        row, size = self._dataset.shards[group[0].shard], self._dtype.itemsize
        first, stop = group[0].first, group[-1].first + group[-1].num_windows
        start = row.first_sample_offset + (first - int(self._dataset.first_window_per_shard[group[0].shard])) * size
        content = self._dataset.store.get_range(row.path, start, (stop - first) * size)
        with self._lock:
            self.bytes_read += len(content)
            self.requests += 1
        if len(content) != (stop - first) * size:
            raise CorruptDataError(
                f"{self._dataset.root}/{row.path}: asked for bytes {start}-{start + (stop - first) * size - 1}, "
                f"got {len(content)} bytes. The shard is truncated: restore it or write the dataset again."
            )
        return {run: content[(run.first - first) * size :][: run.num_windows * size] for run in group}

    def _fetch_into_cache(self, group: list[Run]) -> None:
        for run, content in self._fetch(group).items():
            self._cache.store(run, content)

    def fill(self, window_ids: Int64s, samples: NDArray[Any]) -> None:
        self.prefetch(window_ids)
        runs, run_of = self._runs(window_ids)
        order = np.argsort(run_of, kind="stable")
        bounds = np.searchsorted(run_of[order], np.arange(len(runs) + 1))
        for number, run in enumerate(runs):
            here = order[bounds[number] : bounds[number + 1]]
            content = np.frombuffer(self._content(run), self._dtype)
            samples[here] = content[window_ids[here] - run.first]

    def _content(self, run: Run) -> bytes:
        pending = self._pending.pop(run, None)
        if pending is not None:
            self._wait(pending, run)
        cached = self._cache.load(run, run.num_windows * self._dtype.itemsize)
        if (
            cached is None
        ):  # evicted or damaged since it was looked up: straight from the root, so that reading always advances
            cached = self._wait(self._pool.submit(self._fetch, [run]), run)[run]
            self._cache.store(run, cached)
        return cached

    def _wait(self, future: Future[T], run: Run) -> T:
        try:
            return future.result(timeout=self._timeout + _STALL_MARGIN)
        except FutureTimeoutError as error:
            path = self._dataset.shards[run.shard].path
            raise StorageError(
                f"{self._dataset.root}/{path}: no answer within {self._timeout:.0f} s for windows {run.first} to "
                f"{run.first + run.num_windows - 1}. Check the network, or raise timeout=."
            ) from error

    def mend(self, window_ids: Int64s, leaves: NDArray[Any], samples: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
        """Fetch the runs of wrong windows again, from the root, a few times."""
        for attempt in range(FETCH_ATTEMPTS):
            if attempt:
                time.sleep(0.1 * 2**attempt)
            bad = np.flatnonzero(wrong)
            for run in self._runs(window_ids[bad])[0]:
                self._pending.pop(run, None)
                self._cache.drop(run)
            self._refill(window_ids, samples, bad)
            wrong[bad] = _wrong(samples[bad], leaves[bad])
            if not wrong.any():
                return
        for run in self._runs(window_ids[wrong])[0]:
            self._cache.drop(run)
        raise _corrupt(self._dataset, int(window_ids[wrong][0]))

    def _refill(self, window_ids: Int64s, samples: NDArray[Any], rows: NDArray[np.intp]) -> None:
        again = np.empty(len(rows), self._dtype)
        self.fill(window_ids[rows], again)
        samples[rows] = again

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _RunCache:
    """Runs on disk, one file each, shared by any number of processes."""

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        if limit_bytes is not None and limit_bytes < 1:
            raise InputError(f"cache_limit must be a positive number of bytes, got {limit_bytes}.")
        self._folder, self._limit = folder, limit_bytes
        self._written_since_check = 0
        self._lock = threading.Lock()

    def _path(self, run: Run) -> Path:
        return self._folder / f"{run.first >> 16:06d}" / f"{run.first:012d}-{run.num_windows}.run"

    def holds(self, run: Run) -> bool:
        return self._path(run).exists()

    def load(self, run: Run, expected_bytes: int) -> bytes | None:
        path = self._path(run)
        try:
            content = path.read_bytes()
            if self._limit is not None:
                os.utime(path)  # least recently used goes first
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"{path}: {error.strerror}. Check the cache folder, or choose another with local=."
            ) from error
        return content if len(content) == expected_bytes else None

    def store(self, run: Run, content: bytes) -> None:
        path = self._path(run)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StorageError(
                f"{path.parent}: cannot write to the cache ({error.strerror}). Free space, set cache_limit=, or choose "
                "another folder with local=."
            ) from error
        self._evict(len(content))

    def drop(self, run: Run) -> None:
        self._path(run).unlink(missing_ok=True)

    def _evict(self, written: int) -> None:
        if self._limit is None:
            return
        with self._lock:
            self._written_since_check += written
            if self._written_since_check < min(_EVICTION_CHECK_BYTES, self._limit // 8):
                return
            self._written_since_check = 0
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*/*.run"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in entries) - self._limit
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
