"""Window ids -> verified samples.

Local roots are read in place (shard_files.py). Remote roots are read in runs, neighbouring runs in one request of at
most 8 MB, kept in a cache folder that the processes of a machine share (run_cache.py). Every window that leaves this
file has had its checksum and its cluster compared with those of its place (expected.py); a remote run that does not
match is fetched again, then the failure is raised.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.config.sizes import parse_bytes
from crisp_stream.errors import CorruptDataError, InputError, MissingObjectError, StorageError
from crisp_stream.format.mds import sample_dtype
from crisp_stream.loading.expected import Expected
from crisp_stream.loading.run_cache import CLAIM_SECONDS, RunCache, WindowRun
from crisp_stream.loading.runs import RunPlan
from crisp_stream.loading.shard_files import ShardFile, ShardFiles, wrong_length
from crisp_stream.storage.store import cache_folder, local_path

if TYPE_CHECKING:
    from crisp_stream.config.sections import DataRecipe
    from crisp_stream.format.dataset import Dataset

REQUEST_BYTES = 8 << 20
REQUESTS_IN_FLIGHT = 64
FETCH_ATTEMPTS = 3
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


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Settings of reading: the cache of a remote root, patience, and how far to plan ahead."""

    local: str | Path | None = None
    """Cache folder for a remote root; the user's cache folder when None. A local root is read in place."""

    cache_limit: str | int | None = None
    """Most bytes that the cache may hold, as a number or a size such as `200gb` (10^9 bytes each). None: no limit."""

    timeout: float = 120.0
    """Seconds after which a failing or stalled read is raised."""

    lookahead: int = 4096
    """Windows that each process plans, and fetches from a remote root, before they are used."""

    def __post_init__(self) -> None:
        if self.lookahead < 1:
            raise InputError(f"lookahead must be at least 1, got {self.lookahead}.")
        if self.cache_limit is not None and (self.cache_limit_bytes or 0) < 1:
            raise InputError(
                f"cache_limit must be a positive number of bytes, or a size such as 200gb; got {self.cache_limit!r}."
            )

    @property
    def cache_limit_bytes(self) -> int | None:
        """`cache_limit` as a number of bytes."""
        return None if self.cache_limit is None else parse_bytes(self.cache_limit)

    @classmethod
    def of(cls, data: DataRecipe) -> ReadOptions:
        """Take the options from the section `data` of a recipe."""
        return cls(local=data.local, cache_limit=data.cache_limit, timeout=data.timeout, lookahead=data.lookahead)

    @classmethod
    def of_sources(cls, data: DataRecipe) -> dict[str, ReadOptions]:
        """Take the options of each source by its name; of a dataset alone by the name ``."""
        return {
            name: cls(
                local=source.local or data.local,
                cache_limit=data.cache_limit if source.cache_limit is None else source.cache_limit,
                timeout=data.timeout,
                lookahead=data.lookahead,
            )
            for name, source in data.as_sources.items()
        }


class Ticket(NamedTuple):
    """Windows to read, and the runs that hold them: `prefetch` returns it, `read_ticket` takes it."""

    window_ids: Int64s
    rows: Int64s
    """[num_windows], row of each one's leaf."""
    runs: Sequence[WindowRun] = ()
    """Sorted by window; none for a local root, where every window is read by itself."""
    places_of_run: Sequence[NDArray[np.intp]] = ()
    """For each run, the indices of its windows in `window_ids`."""


class WindowReader:
    """Reads any windows of a dataset. Close it, or use it as a context manager."""

    def __init__(self, dataset: Dataset, reading: ReadOptions | None = None, *, runs: RunPlan | None = None) -> None:
        """Args:
        dataset: the opened dataset.
        reading: cache and timeout; the defaults when None.
        runs: which windows to fetch together; runs of stored order when None.
        """
        reading = ReadOptions() if reading is None else reading
        self.dataset = dataset
        self._taken = (0, 0)
        self.dtype = sample_dtype(dataset.manifest.window_tokens, dataset.manifest.token_dtype)
        """Of the samples."""
        self._leaves = dataset.leaves if runs is None else runs.leaves
        self._source: _LocalShards | _FetchedRuns
        if dataset.store.is_local:
            self._source = _LocalShards(dataset)
        else:
            folder = cache_folder() if reading.local is None else Path(reading.local)
            cache = RunCache(folder / dataset.manifest.fingerprint[:16] / "runs", reading.cache_limit_bytes, self.dtype)
            self._source = _FetchedRuns(dataset, cache, runs or RunPlan(dataset), reading.timeout)

    def prefetch(self, window_ids: Int64s, rows: Int64s | None = None) -> Ticket:
        """Start fetching what some windows need.

        Args:
            window_ids: [num_windows].
            rows: [num_windows], the row of each one's leaf in the cluster table, or in the table of the order that
                `runs` knows; looked up when None.

        Returns:
            A ticket to read them with.
        """
        ticket = self.ticket(window_ids, rows)
        self._source.prefetch(ticket)
        return ticket

    def read(self, window_ids: Int64s, rows: Int64s | None = None) -> NDArray[Any]:
        """[num_windows] of `mds.sample_dtype`, verified, in the order of `window_ids`. Arguments as of `prefetch`.

        Raises:
            CorruptDataError: a window does not match the checksum or the cluster of its place.
            StorageError: the storage refused, failed or stalled.
        """
        return self.read_ticket(self.ticket(window_ids, rows))

    def read_ticket(self, ticket: Ticket) -> NDArray[Any]:
        """Read windows whose fetching has begun. Returns and raises as `read`."""
        samples = np.empty(len(ticket.window_ids), self.dtype)
        expected = Expected.of(self.dataset, ticket.window_ids, self._leaves[ticket.rows])
        self._source.fill(ticket, expected, samples)
        wrong = expected.wrong(samples)
        if wrong.any():
            self._source.mend(ticket, expected, samples, wrong)
        return samples

    def ticket(self, window_ids: Int64s, rows: Int64s | None = None) -> Ticket:
        """As `prefetch`, without fetching anything."""
        return self._source.ticket(window_ids, self.dataset.row_of_windows(window_ids) if rows is None else rows)

    @property
    def bytes_read(self) -> int:
        """Bytes that this reader has read from the root (not from the cache)."""
        return self._source.bytes_read

    @property
    def requests(self) -> int:
        """Requests to a remote root by this reader; 0 for a local one."""
        return self._source.requests

    def take_counts(self) -> tuple[int, int]:
        """Bytes and requests since the last call."""
        before, self._taken = self._taken, (self.bytes_read, self.requests)
        return self._taken[0] - before[0], self._taken[1] - before[1]

    def close(self) -> None:
        """Stop fetching."""
        self._source.close()

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LocalShards:
    """Shards of a local root, read in place."""

    requests = 0

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._files = ShardFiles(local_path(dataset.root), dataset.shards)
        self.bytes_read = 0

    def ticket(self, window_ids: Int64s, rows: Int64s) -> Ticket:
        return Ticket(window_ids, rows)

    def prefetch(self, ticket: Ticket) -> None:
        """Nothing to do: the page cache reads ahead."""

    def fill(self, ticket: Ticket, expected: Expected, samples: NDArray[Any]) -> None:
        size, opened, shards = samples.itemsize, self._files.opened, expected.shards
        in_shard = ticket.window_ids - self._dataset.first_window_per_shard[shards]
        offsets = self._dataset.shards.first_sample_offset[shards] + in_shard * size
        raw, place = samples.view(np.uint8).data, 0
        for shard, offset in zip(shards.tolist(), offsets.tolist(), strict=True):
            file = opened.get(shard)
            if file is None:
                file = self._open(shard)
            content = file[offset : offset + size]
            if len(content) != size:
                raise self._truncated(shard)
            raw[place : place + size] = content
            place += size
        self.bytes_read += samples.nbytes

    def _open(self, shard: int) -> ShardFile:
        try:
            return self._files.open(shard)
        except MissingObjectError as error:
            raise self._dataset.explain_missing(error) from error

    def _truncated(self, shard: int) -> CorruptDataError:
        row = self._dataset.shards[shard]
        path = local_path(self._dataset.root) / row.path
        return wrong_length(str(path), row.shard_bytes, path.stat().st_size)

    def mend(self, ticket: Ticket, expected: Expected, samples: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
        """Give up: reading a local file again does not heal it."""
        raise expected.error(self._dataset, wrong)

    def close(self) -> None:
        self._files.close()


class _FetchedRuns:
    """Runs of a remote root: fetched ahead, cached on disk."""

    def __init__(self, dataset: Dataset, cache: RunCache, runs: RunPlan, timeout: float) -> None:
        self._dataset, self._cache, self._plan, self._timeout = dataset, cache, runs, timeout
        self._sample_bytes = dataset.manifest.sample_bytes
        self._pending: dict[WindowRun, Future[None]] = {}
        self._pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="crisp-stream-fetch")
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.requests = 0

    def ticket(self, window_ids: Int64s, rows: Int64s) -> Ticket:
        planned = self._plan.runs(window_ids, rows)
        order = np.argsort(planned.keys, kind="stable")
        begins = np.unique(planned.keys[order], return_index=True)[1]
        runs = list(map(WindowRun, *(column[order[begins]].tolist() for column in planned)))
        return Ticket(window_ids, rows, runs, np.split(order, begins[1:]))

    def prefetch(self, ticket: Ticket) -> None:
        self._start_fetching(ticket.runs)

    def _start_fetching(self, runs: Sequence[WindowRun]) -> None:
        """Fetch those of some runs, sorted by window, that are neither in the cache nor on their way."""
        cache, pending = self._cache, self._pending
        missing = [run for run in runs if run not in pending and not cache.holds(run) and cache.claim(run)]
        for group in self._coalesced(missing):
            self._pending.update(dict.fromkeys(group, self._pool.submit(self._fetch_into_cache, group)))

    def _coalesced(self, runs: list[WindowRun]) -> list[list[WindowRun]]:
        """Neighbouring runs of a shard in groups of at most REQUEST_BYTES; `runs` is sorted by window."""
        groups: list[list[WindowRun]] = []
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

    def _fetch(self, group: list[WindowRun]) -> dict[WindowRun, memoryview]:
        row, size = self._dataset.shards[group[0].shard], self._sample_bytes
        first, stop = group[0].first, group[-1].first + group[-1].num_windows
        start = row.first_sample_offset + (first - int(self._dataset.first_window_per_shard[group[0].shard])) * size
        try:
            content = memoryview(self._dataset.store.get_range(row.path, start, (stop - first) * size))
        except MissingObjectError as error:
            raise self._dataset.explain_missing(error) from error
        with self._lock:
            self.bytes_read += len(content)
            self.requests += 1
        if len(content) != (stop - first) * size:
            raise CorruptDataError(
                f"{self._dataset.root}/{row.path}: asked for bytes {start}-{start + (stop - first) * size - 1}, "
                f"got {len(content)} bytes. The shard is truncated: restore it or write the dataset again."
            )
        return {run: content[(run.first - first) * size :][: run.num_windows * size] for run in group}

    def _fetch_into_cache(self, group: list[WindowRun]) -> None:
        try:
            for run, content in self._fetch(group).items():
                self._cache.store(run, content)
        finally:
            for run in group:
                self._cache.release(run)

    def fill(self, ticket: Ticket, expected: Expected, samples: NDArray[Any]) -> None:
        window_ids, absent = ticket.window_ids, []
        for run, places in zip(ticket.runs, ticket.places_of_run, strict=True):
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

    def _fetch_now(self, run: WindowRun, windows: Int64s, samples: NDArray[Any], places: NDArray[np.intp]) -> None:
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

    def _wait(self, future: Future[T], run: WindowRun) -> T:
        try:
            return future.result(timeout=self._timeout + _STALL_MARGIN)
        except FutureTimeoutError as error:
            path = self._dataset.shards[run.shard].path
            raise StorageError(
                f"{self._dataset.root}/{path}: no answer within {self._timeout:.0f} s for windows {run.first} to "
                f"{run.first + run.num_windows - 1}. Check the network, or raise timeout=."
            ) from error

    def mend(self, ticket: Ticket, expected: Expected, samples: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
        """Fetch the runs of wrong windows again, from the root, a few times."""
        for attempt in range(FETCH_ATTEMPTS):
            if attempt:
                time.sleep(0.1 * 2**attempt)
            bad = np.flatnonzero(wrong)
            again = self.ticket(ticket.window_ids[bad], ticket.rows[bad])
            for run in again.runs:
                self._pending.pop(run, None)
                self._cache.drop(run)
            fetched, of_bad = np.empty(len(bad), samples.dtype), expected.at(bad)
            self.fill(again, of_bad, fetched)
            samples[bad] = fetched
            wrong[bad] = of_bad.wrong(fetched)
            if not wrong.any():
                return
        for run in self.ticket(ticket.window_ids[wrong], ticket.rows[wrong]).runs:
            self._cache.drop(run)
        raise expected.error(self._dataset, wrong)

    def close(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # of the interpreter: an iterator that was left open; the modules that this needs may be gone
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for run, future in self._pending.items():
            if future.cancelled():
                self._cache.release(run)
