"""Window ids -> verified samples.

Local roots are read in place (shard_files.py). Remote roots are read in runs, neighbouring runs in one request of at
most 8 MB, kept in a cache folder that the processes of a machine share (run_cache.py). Every window that leaves this
file has had its checksum and its cluster compared; a remote run that does not match is fetched again, then the failure
is raised.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError, InputError, StorageError
from crisp_stream.format.mds import checksums, sample_dtype
from crisp_stream.loading.run_cache import CLAIM_SECONDS, Run, RunCache
from crisp_stream.loading.runs import RunPlan
from crisp_stream.loading.shard_files import ShardFile, open_shard
from crisp_stream.storage.store import cache_folder, local_path

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

REQUEST_BYTES = 8 << 20
REQUESTS_IN_FLIGHT = 64
FETCH_ATTEMPTS = 3
_OPEN_SHARDS = 256
_GROUPS_AHEAD = 64
_STALL_MARGIN = 6.0  # seconds beyond the timeout, for the client to give up by itself
_FIRST_POLL = 0.001

Int64s = NDArray[np.int64]
T = TypeVar("T")


def read_windows(dataset: Dataset, window_ids: NDArray[np.int64]) -> NDArray[Any]:
    """Read verified samples of any windows: [num_windows] of `mds.sample_dtype`, in the order of `window_ids`.

    Raises:
        CorruptDataError, StorageError, InputError: an id outside the dataset.
    """
    if len(window_ids) and not 0 <= min(window_ids) <= max(window_ids) < dataset.manifest.num_windows:
        raise InputError(f"{dataset.root}: window ids must be 0 to {dataset.manifest.num_windows - 1}.")
    with WindowReader(dataset) as reader:
        return reader.read(np.asarray(window_ids, np.int64))


class WindowReader:
    """Reads any windows of a dataset. Close it, or use it as a context manager."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        local: str | Path | None = None,
        cache_limit: int | None = None,
        timeout: float = 120.0,
        runs: RunPlan | None = None,
    ) -> None:
        """Args:
        dataset: the opened dataset.
        local: cache folder for a remote root; the user's cache folder when None. Unused for a local root.
        cache_limit: bytes that the cache may hold; no limit when None.
        timeout: seconds after which a failing or stalled read is raised.
        runs: which windows to fetch together; runs of stored order when None.
        """
        self.dataset = dataset
        self._dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
        self._leaves = dataset.leaves if runs is None else runs.leaves
        self._source: _LocalShards | _FetchedRuns
        if dataset.store.is_local:
            self._source = _LocalShards(dataset)
        else:
            folder = Path(local) if local is not None else cache_folder()
            cache = RunCache(folder / dataset.manifest.fingerprint[:16] / "runs", cache_limit, self._dtype)
            self._source = _FetchedRuns(dataset, cache, runs or RunPlan(dataset), timeout)

    def prefetch(self, window_ids: Int64s, rows: Int64s | None = None) -> None:
        """Start fetching what these windows need; they will be asked for with `read`.

        Args:
            window_ids: [num_windows].
            rows: [num_windows], the row of each one's leaf in the cluster table, or of the table of the order that
                `runs` knows; looked up when None.
        """
        self._source.prefetch(window_ids, self._rows(window_ids, rows))

    def read(self, window_ids: Int64s, rows: Int64s | None = None) -> NDArray[Any]:
        """[num_windows] of `mds.sample_dtype`, verified, in the order asked. Arguments as of `prefetch`.

        Raises:
            CorruptDataError: a window does not match its checksum or cluster.
            StorageError: the storage refused, failed or stalled.
        """
        rows = self._rows(window_ids, rows)
        samples, leaves = np.empty(len(window_ids), self._dtype), self._leaves[rows]
        self._source.fill(window_ids, rows, samples)
        wrong = _wrong(samples, leaves)
        if wrong.any():
            self._source.mend(window_ids, rows, samples, wrong)
        return samples

    def _rows(self, window_ids: Int64s, rows: Int64s | None) -> Int64s:
        return self.dataset.row_of_windows(window_ids) if rows is None else rows

    @property
    def bytes_read(self) -> int:
        """Bytes asked of the root by this reader (not of the cache)."""
        return self._source.bytes_read

    @property
    def requests(self) -> int:
        """Requests to a remote root by this reader; 0 for a local one."""
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


class _LocalShards:
    """Shards of a local root, read in place."""

    requests = 0

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._offset_per_shard = np.array([row.first_sample_offset for row in dataset.shards], np.int64)
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self.bytes_read = 0

    def prefetch(self, window_ids: Int64s, rows: Int64s) -> None:
        """The page cache does this."""

    def fill(self, window_ids: Int64s, rows: Int64s, samples: NDArray[Any]) -> None:
        dataset, size, files = self._dataset, samples.itemsize, self._files
        shards = np.searchsorted(dataset.first_window_per_shard, window_ids, side="right") - 1
        offsets = self._offset_per_shard[shards] + (window_ids - dataset.first_window_per_shard[shards]) * size
        raw, place = samples.view(np.uint8).data, 0
        for shard, offset in zip(shards.tolist(), offsets.tolist(), strict=True):
            file = files.get(shard)
            if file is None:
                file = self._open(shard)
            content = file[offset : offset + size]
            if len(content) != size:
                raise self._truncated(shard)
            raw[place : place + size] = content
            place += size
        self.bytes_read += samples.nbytes

    def _open(self, shard: int) -> ShardFile:
        path = self._path(shard)
        try:
            if path.stat().st_size != self._dataset.shards[shard].shard_bytes:
                raise self._truncated(shard)
            file = self._files[shard] = open_shard(path)
        except OSError as error:
            raise StorageError(
                f"{path}: {error.strerror}. Restore the shard; crisp-stream verify finds others."
            ) from error
        if len(self._files) > _OPEN_SHARDS:
            self._files.popitem(last=False)
        return file

    def _path(self, shard: int) -> Path:
        return local_path(self._dataset.root) / self._dataset.shards[shard].path

    def _truncated(self, shard: int) -> CorruptDataError:
        path = self._path(shard)
        return CorruptDataError(
            f"{path}: the shard table says {self._dataset.shards[shard].shard_bytes} bytes, got {path.stat().st_size}. "
            "The shard is truncated or was replaced: restore it from a copy or write the dataset again."
        )

    def mend(self, window_ids: Int64s, rows: Int64s, samples: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
        """A local file is not healed by reading it again."""
        raise _corrupt(self._dataset, int(window_ids[wrong][0]))

    def close(self) -> None:
        self._files.clear()


class _FetchedRuns:
    """Runs of a remote root: fetched ahead, cached on disk."""

    def __init__(self, dataset: Dataset, cache: RunCache, runs: RunPlan, timeout: float) -> None:
        self._dataset, self._cache, self._plan, self._timeout = dataset, cache, runs, timeout
        self._sample_bytes = dataset.manifest.sample_bytes
        self._pending: dict[Run, Future[None]] = {}
        self._ahead: OrderedDict[int, tuple[Int64s, list[Run], list[NDArray[np.intp]]]] = OrderedDict()
        self._pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="crisp-stream-fetch")
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.requests = 0

    def _runs(self, window_ids: Int64s, rows: Int64s) -> tuple[list[Run], list[NDArray[np.intp]]]:
        """The runs of some windows, sorted, and for each the places of its windows."""
        found = self._plan.runs(window_ids, rows)
        order = np.argsort(found.keys, kind="stable")
        at = np.unique(found.keys[order], return_index=True)[1]
        runs = map(Run, *(column[order[at]].tolist() for column in found))
        return list(runs), np.split(order, at[1:])

    def prefetch(self, window_ids: Int64s, rows: Int64s) -> None:
        runs, places_of_run = self._runs(window_ids, rows)
        self._ahead[id(window_ids)] = (window_ids, runs, places_of_run)  # held, so that no other array gets its id
        if len(self._ahead) > _GROUPS_AHEAD:
            self._ahead.popitem(last=False)
        self._start_fetching(runs)

    def _start_fetching(self, runs: list[Run]) -> None:
        """Fetch those of some runs, sorted by window, that are neither here nor on their way."""
        cache, pending = self._cache, self._pending
        missing = [run for run in runs if run not in pending and not cache.holds(run) and cache.claim(run)]
        for group in self._coalesced(missing):
            self._pending.update(dict.fromkeys(group, self._pool.submit(self._fetch_into_cache, group)))

    def _coalesced(self, runs: list[Run]) -> list[list[Run]]:
        """Neighbouring runs of a shard in groups of at most REQUEST_BYTES; `runs` is sorted by window."""
        groups: list[list[Run]] = []
        limit = max(1, REQUEST_BYTES // self._sample_bytes)
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

    def _fetch(self, group: list[Run]) -> dict[Run, memoryview]:
        row, size = self._dataset.shards[group[0].shard], self._sample_bytes
        first, stop = group[0].first, group[-1].first + group[-1].num_windows
        start = row.first_sample_offset + (first - int(self._dataset.first_window_per_shard[group[0].shard])) * size
        content = memoryview(self._dataset.store.get_range(row.path, start, (stop - first) * size))
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
        try:
            for run, content in self._fetch(group).items():
                self._cache.store(run, content)
        finally:
            for run in group:
                self._cache.release(run)

    def fill(self, window_ids: Int64s, rows: Int64s, samples: NDArray[Any]) -> None:
        _, runs, places_of_run = self._ahead.pop(id(window_ids), None) or (None, *self._runs(window_ids, rows))
        absent = []
        for run, places in zip(runs, places_of_run, strict=True):
            pending = self._pending.pop(run, None)
            if pending is not None:
                self._wait(pending, run)
            if not self._cache.read(run, window_ids[places], samples, places):
                absent.append((run, places))
        self._start_fetching([run for run, _ in absent])
        for run, places in absent:
            pending = self._pending.pop(run, None)
            if pending is not None:
                self._wait(pending, run)
            if pending is None or not self._cache.read(run, window_ids[places], samples, places):
                self._fetch_now(run, window_ids[places], samples, places)

    def _fetch_now(self, run: Run, windows: Int64s, samples: NDArray[Any], places: NDArray[np.intp]) -> None:
        """Get a run that is not in the cache: being fetched by another process, or evicted, or damaged."""
        until, pause = time.monotonic() + min(CLAIM_SECONDS, self._timeout / 4), _FIRST_POLL
        while self._cache.claimed(run) and time.monotonic() < until:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            if self._cache.read(run, windows, samples, places):
                return
        # Straight from the root, so that reading always advances, whatever happens to the cache.
        content = self._wait(self._pool.submit(self._fetch, [run]), run)[run]
        samples[places] = np.frombuffer(content, samples.dtype)[windows - run.first]
        self._cache.store(run, content)

    def _wait(self, future: Future[T], run: Run) -> T:
        try:
            return future.result(timeout=self._timeout + _STALL_MARGIN)
        except FutureTimeoutError as error:
            path = self._dataset.shards[run.shard].path
            raise StorageError(
                f"{self._dataset.root}/{path}: no answer within {self._timeout:.0f} s for windows {run.first} to "
                f"{run.first + run.num_windows - 1}. Check the network, or raise timeout=."
            ) from error

    def mend(self, window_ids: Int64s, rows: Int64s, samples: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
        """Fetch the runs of wrong windows again, from the root, a few times."""
        for attempt in range(FETCH_ATTEMPTS):
            if attempt:
                time.sleep(0.1 * 2**attempt)
            bad = np.flatnonzero(wrong)
            for run in self._runs(window_ids[bad], rows[bad])[0]:
                self._pending.pop(run, None)
                self._cache.drop(run)
            again = np.empty(len(bad), samples.dtype)
            self.fill(window_ids[bad], rows[bad], again)
            samples[bad] = again
            wrong[bad] = _wrong(again, self._plan.leaves[rows[bad]])
            if not wrong.any():
                return
        for run in self._runs(window_ids[wrong], rows[wrong])[0]:
            self._cache.drop(run)
        raise _corrupt(self._dataset, int(window_ids[wrong][0]))

    def close(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # of the interpreter: an iterator that was left open; the modules that this needs may be gone
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for run, future in self._pending.items():
            if future.cancelled():
                self._cache.release(run)
