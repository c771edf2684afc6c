"""Readers of several sources as one: window numbers -> verified samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crisp_stream.loading.reader import ReadOptions, Ticket, WindowReader
from crisp_stream.loading.runs import RunPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crisp_stream.format.sources import Sources
    from crisp_stream.order.draws import Int64s


class Numbered(NamedTuple):
    """Windows to read, of any sources: `prefetch` returns it, `read_ticket` takes it."""

    numbers: Int64s
    """[num_windows], window numbers."""
    rows: Int64s
    """[num_windows], rows of the table of the order."""
    tickets: list[tuple[int, Any, Ticket]]
    """Source, places in `numbers`, and what to read."""


class Readers:
    """A reader for each source. Use it as a context manager."""

    def __init__(self, sources: Sources, reading: Sequence[ReadOptions], plan_of: Callable[[int], RunPlan]) -> None:
        """Args:
        sources: what is read.
        reading: cache and timeout of each source.
        plan_of: makes the plan of runs of a source, by its index.
        """
        self._sources = sources
        self._plans = [plan_of(source) for source in range(len(sources))]
        self._readers = [
            WindowReader(dataset, options, runs=plan)
            for dataset, options, plan in zip(sources.datasets, reading, self._plans, strict=True)
        ]
        self.is_local = all(dataset.store.is_local for dataset in sources.datasets)

    def forget_stop(self) -> None:
        """Forget where reading ends: the order has changed."""
        for plan in self._plans:
            plan.forget_stop()

    def prefetch(self, numbers: Int64s, rows: Int64s) -> Numbered:
        """Start fetching what some windows need: their numbers and rows, [num_windows] each."""
        return Numbered(numbers, rows, self._split(numbers, rows, prefetch=True))

    def read(self, numbers: Int64s, rows: Int64s) -> NDArray[Any]:
        """[num_windows] of `mds.sample_dtype`, verified, in the order of `numbers`. Raises as `WindowReader.read`."""
        return self.read_ticket(Numbered(numbers, rows, self._split(numbers, rows, prefetch=False)))

    def read_ticket(self, ticket: Numbered) -> NDArray[Any]:
        """Read windows whose fetching has begun. Returns and raises as `read`."""
        if len(self._readers) == 1:
            [(source, _, of_source)] = ticket.tickets
            return self._readers[source].read_ticket(of_source)
        samples = np.empty(len(ticket.numbers), self._readers[0].dtype)
        for source, places, of_source in ticket.tickets:
            samples[places] = self._readers[source].read_ticket(of_source)
        return samples

    def _split(self, numbers: Int64s, rows: Int64s, *, prefetch: bool) -> list[tuple[int, Any, Ticket]]:
        def ticket(source: int, window_ids: Int64s, rows: Int64s) -> Ticket:
            reader = self._readers[source]
            return reader.prefetch(window_ids, rows) if prefetch else reader.ticket(window_ids, rows)

        if len(self._readers) == 1:
            return [(0, slice(None), ticket(0, numbers, rows))]
        source_of, window_ids = self._sources.split(numbers)
        tickets: list[tuple[int, Any, Ticket]] = []
        for source in range(len(self._readers)):
            places = np.flatnonzero(source_of == source)
            if len(places):
                tickets.append((source, places, ticket(source, window_ids[places], rows[places])))
        return tickets

    def take_counts(self) -> tuple[int, int]:
        """Bytes and requests since the last call, of all sources."""
        counts = [reader.take_counts() for reader in self._readers]
        return sum(num_bytes for num_bytes, _ in counts), sum(requests for _, requests in counts)

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for reader in self._readers:
                stack.callback(reader.close)
