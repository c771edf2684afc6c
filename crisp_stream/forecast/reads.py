"""What the nodes of a run ask of an object store: which runs of windows they fetch, and in how many requests.

Each node fetches each run that it needs once, into a cache that its processes share. Which windows form a run is the
reader's own plan (runs.py). Runs that lie side by side are joined into one request when a process needs them for the
same group of batches, so requests are found by walking the order as its processes do, in step with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.loading.reader import REQUEST_BYTES
from crisp_stream.loading.runs import RunPlan, RunsOfWindows
from crisp_stream.order.draws import BLOCK_SAMPLES, Int64s, Rows
from crisp_stream.order.order import SampleOrder
from crisp_stream.report.demo_page import format_bytes

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.mixture import Draw


@dataclass(frozen=True, kw_only=True)
class Loader:
    """The processes that read, as `MixtureDataset` is told of them."""

    nodes: int = 1
    ranks_per_node: int = 1
    replication: int = 1
    """So many consecutive ranks get the same samples."""
    batch_size: int = 1
    """Of a rank."""
    num_workers: int = 0
    """DataLoader workers of a rank."""
    lookahead: int = 4096
    """Windows that each process plans ahead."""
    cache_limit: int | None = None
    """Bytes per node."""

    def __post_init__(self) -> None:
        for name in ("nodes", "ranks_per_node", "replication", "batch_size", "lookahead"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}.")
        if self.num_workers < 0:
            raise InputError(f"num_workers: must be 0 or more, got {self.num_workers}.")
        if self.cache_limit is not None and self.cache_limit < 1:
            raise InputError(f"cache_limit: must be a positive number of bytes, got {self.cache_limit}.")
        ranks, per_node = self.nodes * self.ranks_per_node, self.ranks_per_node
        if ranks % self.replication or (per_node % self.replication and self.replication % per_node):
            raise InputError(
                f"replication: must divide the {per_node} ranks of a node, or be a multiple of them that divides all "
                f"{ranks} ranks; got {self.replication}."
            )

    @property
    def groups_per_node(self) -> int:
        """Groups of ranks of a node that get different samples."""
        return max(1, self.ranks_per_node // self.replication)

    @property
    def num_readers(self) -> int:
        """Nodes that read different samples; more nodes than these read the same as another."""
        return self.nodes * self.ranks_per_node // self.replication // self.groups_per_node

    @property
    def global_batch_size(self) -> int:
        """Samples of a step."""
        return self.batch_size * self.groups_per_node * self.num_readers

    @property
    def processes_per_node(self) -> int:
        """That fetch."""
        return self.groups_per_node * max(1, self.num_workers)

    def readers(self, positions: Int64s) -> Int64s:
        """[num_positions], which of `num_readers` nodes each position belongs to."""
        return positions % self.num_readers

    def fetches(self, positions: Int64s) -> Int64s:
        """[num_positions], number of the group of batches with which each position is fetched.

        Groups of a process have 1, 2, 4, … batches up to a quarter of `lookahead`, then stay as large. Numbers rise in
        time when all processes advance in step, and each belongs to one process.
        """
        workers = max(1, self.num_workers)
        batch = positions // self.global_batch_size
        own = batch // workers  # the process's own batches, counted
        largest, growing = 1, 0
        while largest < max(1, self.lookahead // (4 * self.batch_size)):
            largest, growing = 2 * largest, growing + 1
        grown = np.log2((own + 1).astype(np.float64)).astype(np.int64)
        turn = np.where(own < largest - 1, grown, growing + (own - (largest - 1)) // largest)
        group = positions // self.num_readers % self.groups_per_node
        process = (group * workers + batch % workers) * self.num_readers + self.readers(positions)
        return turn * (self.processes_per_node * self.num_readers) + process


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What each node asks of the object store, with a cache that holds the working set. Tables are not counted."""

    how: str
    """`walked`: the whole order was walked. `sampled`: requests from `blocks` blocks, bytes counted over the leaves."""
    blocks: int
    """Blocks of 2^18 samples that were walked."""
    bytes_exact: bool
    requests_exact: bool
    """One process per node makes exactly these requests; of several, who asks first for a run is a matter of timing."""
    bytes_per_node: tuple[int, ...]
    """[nodes]"""
    requests_per_node: tuple[int, ...]
    """[nodes]"""
    working_set_bytes: int
    """Of the fullest node, at the fullest of the moments looked at: read before, and to be read again. With a window
    selection, all that the node reads, which is no less."""
    cache_limit: int | None
    price_per_1000_requests: float
    """US dollars."""

    def rows(self) -> list[tuple[str, str]]:
        """As rows of the table."""
        nodes = len(self.bytes_per_node)
        each = (
            "" if nodes == 1 else f" in all, at most {format_bytes(max(self.bytes_per_node))} by one of {nodes} nodes"
        )
        bytes_read = f"{format_bytes(sum(self.bytes_per_node))}{each} ({'exact' if self.bytes_exact else 'estimated'})"
        how = "estimated"
        if self.requests_exact:
            how = "exact"
        elif self.how == "walked":
            how = "processes in step"
        how += f", from {self.blocks} blocks" if self.how == "sampled" else ""
        limit = "no limit" if self.cache_limit is None else f"limit {format_bytes(self.cache_limit)}"
        return [
            ("read", bytes_read),
            (
                "requests",
                f"{self.requests:,} ({how}), {self.cost:,.2f} USD at {self.price_per_1000_requests:g} per 1,000",
            ),
            ("working set", f"{format_bytes(self.working_set_bytes)} of a node's cache ({limit})"),
        ]

    @property
    def requests(self) -> int:
        """Of all nodes."""
        return sum(self.requests_per_node)

    @property
    def cost(self) -> float:
        """Of the requests of all nodes, US dollars."""
        return self.requests / 1000 * self.price_per_1000_requests


class Fetched(NamedTuple):
    """Runs that are fetched, each by one node; arrays of [num_fetched]."""

    fetch: Int64s
    """See `Loader.fetches`."""
    reader: Int64s
    shard: Int64s
    first: Int64s
    num_windows: Int64s


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the readers read."""

    windows_per_reader: Int64s
    """[num_readers], windows in the runs fetched."""
    requests_per_reader: Int64s
    """[num_readers]"""
    blocks: int
    """That were walked."""
    walked: bool
    """All of them."""
    windows_exact: bool


class Plans:
    """The order of a run, and its plan of runs of windows."""

    def __init__(
        self,
        dataset: Dataset,
        copied: Callable[[], SampleOrder],
        samples: int,
        *,
        stop: int | None,
        draw: Draw,
        loader: Loader,
    ) -> None:
        """Args:
        dataset: that is read.
        copied: gives a copy of the order. Whatever asks within another block has its own, or blocks would be opened
            again and again.
        samples: that are served.
        stop: where the loader knows that nothing more is needed; None: it does not.
        draw: of the mixture.
        loader: who reads.
        """
        self.dataset, self.order, self.samples, self.stop, self.loader = dataset, copied(), samples, stop, loader
        self.draw: Draw = draw
        self.runs = RunPlan(dataset, copied(), stop)
        self._copied = copied
        self._orders: dict[int, SampleOrder] = {}

    def drawn_before(self, rows: Rows, position: int) -> Int64s:
        """[num_rows], draws of some leaves before a position."""
        if self.draw == "multinomial":
            return self.order.drawn_before(rows, position)
        if position not in self._orders:
            self._orders[position] = self._copied()
        return self._orders[position].drawn_before(rows, position)

    def walked(self, start: int, stop: int) -> Fetched:
        """The runs that positions need, each once for each reader, with the first fetch that asks for it."""
        positions = np.arange(start, stop)
        windows, rows = self.order.draws(positions)
        shard, first, num_windows = self.runs.runs(windows, rows)
        fetch, reader = self.loader.fetches(positions), self.loader.readers(positions)
        return _earliest(Fetched(fetch, reader, shard, first, num_windows))

    def begun(self, start: int, stop: int) -> Fetched:
        """The runs whose first window in the order is drawn at these positions, within one block."""
        positions = np.arange(start, stop)
        windows, rows = self.order.draws(positions)
        runs = self.runs.runs(windows, rows)
        by_row = np.argsort(rows, kind="stable")
        drawn, first, times = np.unique(rows[by_row], return_index=True, return_counts=True)
        nth = np.empty(len(rows), np.int64)
        before = self.order.drawn_before(drawn, start)
        nth[by_row] = np.arange(len(rows)) - np.repeat(first, times) + np.repeat(before, times)
        leaf_first, leaf_windows = self.dataset.first_window_per_leaf[rows], self.dataset.windows_per_leaf[rows]
        place, leaf_start = runs.first - leaf_first, self.order.starts(rows)
        holds_start = (place <= leaf_start) & (leaf_start < place + runs.num_windows)
        new = nth == np.where(holds_start, 0, (place - leaf_start) % leaf_windows)
        own = positions[new]
        fetched = Fetched(self.loader.fetches(own), self.loader.readers(own), *(values[new] for values in runs))
        return _earliest(fetched)


def _earliest(fetched: Fetched) -> Fetched:
    """Each run of each reader once, where it is fetched first."""
    runs = RunsOfWindows(fetched.shard, fetched.first, fetched.num_windows)
    key = runs.keys * (int(fetched.reader.max(initial=0)) + 1) + fetched.reader
    in_time = np.argsort(fetched.fetch, kind="stable")
    at = in_time[np.unique(key[in_time], return_index=True)[1]]
    return Fetched(*(values[at] for values in fetched))


def requests(fetched: Fetched, sample_bytes: int, num_readers: int) -> Int64s:
    """[num_readers], how many requests a reader makes when each fetch joins what lies side by side (reader.py)."""
    order = np.lexsort((fetched.first, fetched.fetch))
    fetch, reader, shard, first, num_windows = (values[order] for values in fetched)
    if not len(fetch):
        return np.zeros(num_readers, np.int64)
    joins = (fetch[1:] == fetch[:-1]) & (shard[1:] == shard[:-1]) & (first[:-1] + num_windows[:-1] == first[1:])
    begins = np.append(True, ~joins)
    starts = np.flatnonzero(begins)
    chain_windows = np.add.reduceat(num_windows, starts)
    limit = max(1, REQUEST_BYTES // sample_bytes)
    ends = np.append(starts[1:], len(begins))
    for chain in np.flatnonzero(chain_windows > limit):
        windows = 0
        for run in range(starts[chain], ends[chain]):
            windows += int(num_windows[run])
            if windows > limit and run > starts[chain]:
                begins[run], windows = True, int(num_windows[run])
    return np.bincount(reader[begins], minlength=num_readers).astype(np.int64)


def walk_all(plans: Plans) -> Reading:
    """Walk the whole order: what one process per node will do exactly."""
    loader, blocks = plans.loader, range(0, plans.samples, BLOCK_SAMPLES)
    fetched, waiting = plans.walked(0, min(BLOCK_SAMPLES, plans.samples)), []
    for start in blocks[1:]:
        waiting.append(plans.walked(start, min(start + BLOCK_SAMPLES, plans.samples)))
        if start == blocks[-1] or sum(len(block.fetch) for block in waiting) > len(fetched.fetch):
            parts, waiting = (fetched, *waiting), []
            fetched = _earliest(Fetched(*(np.concatenate(values) for values in zip(*parts, strict=True))))
    windows = np.zeros(loader.num_readers, np.int64)
    np.add.at(windows, fetched.reader, fetched.num_windows)
    return Reading(
        windows_per_reader=windows,
        requests_per_reader=requests(fetched, plans.dataset.manifest.sample_bytes, loader.num_readers),
        blocks=len(blocks),
        walked=True,
        windows_exact=True,
    )
