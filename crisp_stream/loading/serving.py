"""One iteration in one process: which batches it makes, planned ahead, read, in order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import StorageError
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.readers import Numbered, Readers
from crisp_stream.loading.runs import RunPlan

if TYPE_CHECKING:
    from crisp_stream.format.sources import Sources
    from crisp_stream.loading.control import Control
    from crisp_stream.loading.stream import Stream
    from crisp_stream.loading.topology import Topology
    from crisp_stream.order.draws import Int64s

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """How a pass is cut into batches."""

    batch_size: int
    """Samples of a batch of one rank."""
    num_replicas: int
    """Groups of ranks that get different samples."""
    drop_last: bool
    """Whether a last global batch that is not full is left out."""

    @property
    def of_all(self) -> int:
        """Samples of a batch over all ranks."""
        return self.batch_size * self.num_replicas

    def at(self, position: int, end: int | None) -> int:
        """Samples of each rank in the global batch at a position of a pass that ends at `end`; 0 where none is left."""
        left = self.of_all if end is None else end - position
        if left >= self.of_all:
            return self.batch_size
        return 0 if self.drop_last else max(0, left) // self.num_replicas

    def after(self, position: int, end: int | None) -> int:
        """Position after the global batch at a position, which is the end of the pass when nothing more is served."""
        following = position + self.of_all
        return following if end is None or self.at(following, end) else end

    def left(self, position: int, end: int) -> int:
        """Number of batches from a position to the end of the pass."""
        whole, rest = divmod(end - position, self.of_all)
        return whole + (not self.drop_last and rest >= self.num_replicas)


class Serving:
    """Makes the batches of one process: planned ahead in growing groups, each fetched together."""

    def __init__(
        self,
        sources: Sources,
        stream: Stream,
        control: Control,
        *,
        sizes: BatchSizes,
        topology: Topology,
        reading: Sequence[ReadOptions],
        start: int,
        worker: int | None,
        num_workers: int,
        num_samples: int | None,
    ) -> None:
        """Args:
        sources: what is read.
        stream: the order, which follows the log of `control`.
        control: shared by all workers of this rank.
        sizes: of the batches.
        topology: place of this rank.
        reading: how far to plan ahead, and where to cache, for each source; the first says how far.
        start: position where the iteration begins, for all workers.
        worker: number of this worker; None: there are no workers.
        num_workers: worker w makes the batches w, w + num_workers, …
        num_samples: position beyond which nothing is planned ahead; None: not known.
        """
        self._stream, self._control = stream, control
        self._sizes, self._topology, self._reading = sizes, topology, reading[0]
        self._worker, self._num_samples = worker, num_samples
        self._step = num_workers * sizes.of_all
        self._first = start + (worker or 0) * sizes.of_all
        self.update()
        stream.reach(start)
        self._end = stream.end_of_pass(start)
        self.readers = Readers(
            sources,
            reading,
            lambda source: RunPlan(sources.datasets[source], *self._order_of_runs(start), source=source),
        )

    def update(self) -> bool:
        """Follow what is new in the log; returns whether there was something."""
        records = self._control.new_records(self._worker)
        for record in records:
            self._stream.follow(record)
        return bool(records)

    def _order_of_runs(self, start: int) -> tuple[Any, int | None]:
        """The order in which windows will be read, and the position where reading ends, where that is known."""
        order = self._stream.copied_order()
        if self._stream.changed or self._stream.mixture.draw != "systematic":
            return order, None
        ends = [] if self._end is None else [self._end]
        if self._num_samples is not None and self._num_samples > start:
            ends.append(start + -(-(self._num_samples - start) // self._sizes.of_all) * self._sizes.of_all)
        return order, min(ends, default=None)

    def __iter__(self) -> Iterator[tuple[int, Int64s, NDArray[Any]]]:
        """Yield position, window numbers and samples of each batch."""
        waiting: deque[tuple[list[int], Numbered]] = deque()
        position, group, windows_ahead = self._first, 1, 0
        largest = max(1, self._reading.lookahead // (4 * self._sizes.batch_size))
        while True:
            while windows_ahead < self._reading.lookahead:
                starts = self._claim(position, group, needed=not waiting)
                if not starts:
                    break
                parts = [self._topology.positions(start, self._sizes.at(start, self._end)) for start in starts]
                ticket = self.readers.prefetch(*self._stream.order.draws(np.concatenate(parts)))
                waiting.append((starts, ticket))
                windows_ahead += len(ticket.numbers)
                position = starts[-1] + self._step
                if group < largest:
                    group *= 2
                    break  # hand out the first batches before planning further ahead
            if not waiting:
                return
            starts, ticket = waiting.popleft()
            windows_ahead -= len(ticket.numbers)
            # What was fetched is read at once, each run a single time; a local batch is read while it is in the caches.
            samples = None if self.readers.is_local else self.readers.read_ticket(ticket)
            row = 0
            for start in starts:
                part = slice(row, row + self._sizes.at(start, self._end))
                numbers = ticket.numbers[part]
                yield (
                    start,
                    numbers,
                    self.readers.read(numbers, ticket.rows[part]) if samples is None else samples[part],
                )
                row = part.stop

    def _claim(self, position: int, group: int, *, needed: bool) -> list[int]:
        """Claim this process's next batches, at most `group`, for the mixture as it is now known; returns their starts.

        Beyond `num_samples` only what is `needed` now: one batch.
        """
        starts = [position + number * self._step for number in range(group)]
        starts = [start for start in starts if self._sizes.at(start, self._end)]
        if self._num_samples is not None and starts and starts[-1] >= self._num_samples:
            starts = [start for start in starts if start < self._num_samples] or starts[: int(needed)]
        if starts:
            until = time.monotonic() + self._reading.timeout
            while not self._control.plan(starts[-1] + self._sizes.of_all):
                if time.monotonic() > until:
                    raise StorageError(
                        f"a change of the mixture was begun but not finished within {self._reading.timeout:.0f} s. "
                        "set_proportions must be called on every rank."
                    )
                time.sleep(0.002)
        if self.update():
            self.readers.forget_stop()
        return starts

    def report_tail(self, start: int) -> None:
        """Say which samples will be left out at the end of a pass, which is served from a position."""
        if self._end is None:
            return
        left = (self._end - start) % self._sizes.of_all
        left_out = left if self._sizes.drop_last else left % self._sizes.num_replicas
        if left_out:
            log.warning(
                "the last %d samples of the mixture do not fill a global batch of %d", left_out, self._sizes.of_all
            )
