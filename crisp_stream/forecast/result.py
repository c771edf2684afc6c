"""The result of a forecast: phases, repeats, reads and advice, and their text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crisp_stream import digits
from crisp_stream.errors import InputError
from crisp_stream.histograms.history import Smoothing
from crisp_stream.order.draws import Int64s
from crisp_stream.table import Table, aligned, format_bytes

REQUEST_PRICE = 0.0004
"""US dollars for 1,000 GET requests: Amazon S3 Standard, US East (N. Virginia), from its public price list."""
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
_SHOWN_QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, kw_only=True)
class PhaseForecast:
    """One phase of the mixture, as far as the run goes."""

    level: int
    """Level of its histogram; 0: base."""
    samples: int
    """Samples of the phase that the run serves."""
    clusters: int
    """Clusters of the histogram with mass and windows."""
    leaves: int
    """Leaves with mass."""
    windows: int
    """Windows in these leaves."""
    missing_mass: float
    """Share of the histogram on clusters without windows; redistributed."""
    components: int = 1
    """Components that it draws from; level, clusters and missing mass are of all of them."""
    selected: int | None = None
    """Windows of its window selections; None: a component draws from all windows."""
    smoothing: Smoothing = "none"
    """Whether its histogram is smoothed, or can be."""
    max_repeats: float | None = None
    """Limit at which its clusters are capped; None: they are not."""


@dataclass(frozen=True, kw_only=True)
class OccurrenceBin:
    """Number of windows that are served at least `least` and at most `most` times; up to 64 both are equal."""

    least: int
    most: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class ClusterRepeats:
    """A cluster and how often the run draws from it."""

    source: str
    """Name of its source; empty for a dataset alone."""
    level: int
    cluster: int
    """Node id at that level."""
    windows: int
    draws: int

    @property
    def epochs(self) -> float:
        """Draws per window."""
        return self.draws / self.windows


@dataclass(frozen=True, kw_only=True)
class SourceForecast:
    """One source of the mixture, and what the run serves of it."""

    name: str
    """Empty for a dataset alone."""
    dataset: str
    """Root of the dataset."""
    fingerprint: str
    samples: int
    """Samples of the run that are its windows, repeats included."""
    most_draws: int
    """Times that its window served most often is served."""

    windows: int
    """Windows of the dataset."""
    windows_reachable: int
    """Windows in leaves with mass in some phase."""
    windows_served: int
    """Distinct windows served."""
    leaves_reachable: int
    leaves_hit: int

    level: int
    """Level of the clusters below: the finest of the histograms of the source, at least 1."""
    clusters: int
    """Clusters of that level with windows."""
    clusters_reachable: int
    clusters_hit: int

    @property
    def mean_occurrences(self) -> float:
        """Mean times that a served window is served; 0 where none is."""
        return self.samples / max(1, self.windows_served)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Forecast of what a run of a mixture over one or several datasets will serve."""

    sources: tuple[SourceForecast, ...]
    """A dataset alone is one source."""
    mixture_fingerprint: str
    seed: int
    draw: str
    samples: int
    """Windows served over all ranks, repeats included."""
    tokens: int
    phases: tuple[PhaseForecast, ...]

    most_repeated: tuple[ClusterRepeats, ...]
    """Clusters with most epochs, in this order."""

    quantiles_reachable: tuple[tuple[float, int], ...]
    """(quantile, occurrences) over reachable windows: that share of the windows is served at most so often."""
    quantiles_all: tuple[tuple[float, int], ...]
    """The same, over all windows of the sources."""
    distribution: tuple[OccurrenceBin, ...]
    """Bins over all windows of the sources, in increasing order; no empty ones."""

    mixture_error: float
    """Total variation between the leaf proportions of the mixture and those served, in [0, 1]."""
    mixture_error_bound: float
    """Bound of the error whatever the seed; for multinomial draws, a bound that 99.9 % of seeds keep."""

    @property
    def windows(self) -> int:
        """Windows of all sources."""
        return sum(source.windows for source in self.sources)

    @property
    def windows_reachable(self) -> int:
        """Windows in leaves with mass in some phase."""
        return sum(source.windows_reachable for source in self.sources)

    @property
    def windows_served(self) -> int:
        """Distinct windows served."""
        return sum(source.windows_served for source in self.sources)

    @property
    def mean_occurrences(self) -> float:
        """Mean times that a served window is served."""
        return self.samples / self.windows_served


@dataclass(frozen=True, kw_only=True)
class Forecast(Serving):
    """Forecast of what a run will serve and read."""

    reads: Reads
    warnings: tuple[Advice, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Convert to a JSON object."""
        content = dataclasses.asdict(self)
        for name in ("windows", "windows_reachable", "windows_served", "mean_occurrences"):
            content[name] = getattr(self, name)
        content["reads"] |= {"requests": self.reads.requests, "cost": self.reads.cost}
        return content

    def table(self, terms: Mapping[tuple[str, int], str] | None = None) -> str:
        """Format as lines of text.

        Args:
            terms: words that say what the most repeated clusters are about, by source and cluster.
        """
        rows = [
            ("run", f"{self.samples:,} samples, {self.tokens:,} tokens ({self.draw} draws, seed {self.seed})"),
            *((f"phase {number}", _phase_text(phase)) for number, phase in enumerate(self.phases, 1)),
            *(row for source in self.sources for row in _source_rows(source, self.samples)),
            ("occurrences", f"{digits.times(self.mean_occurrences)} on average, of a window that is served"),
            ("", f"{_quantile_text(self.quantiles_reachable)}, of windows within reach"),
            ("", f"{_quantile_text(self.quantiles_all)}, of all windows"),
            (
                "mixture error",
                f"{digits.mixture_error(self.mixture_error)} total variation "
                f"(bound {digits.mixture_error(self.mixture_error_bound)})",
            ),
            *self.reads.rows(),
        ]
        warnings = [f"! {warning.text()}" for warning in self.warnings]
        return "\n\n".join([aligned(rows), self._most_repeated(terms or {}).text(), *warnings])

    def _most_repeated(self, terms: Mapping[tuple[str, int], str]) -> Table:
        several = len(self.sources) > 1
        level = "each source's level" if several else f"level {self.sources[0].level}"
        return Table(
            head=(*["source"] * several, "cluster", "windows", "draws", "epochs", f"most repeated of {level}"),
            rows=[
                (
                    *[entry.source] * several,
                    str(entry.cluster),
                    f"{entry.windows:,}",
                    f"{entry.draws:,}",
                    digits.times(entry.epochs),
                    terms.get((entry.source, entry.cluster), ""),
                )
                for entry in self.most_repeated
            ],
            words=(0, -1) if several else (-1,),
        )


def _source_rows(source: SourceForecast, samples: int) -> list[tuple[str, str]]:
    rows = [
        ("windows", _of(source.windows_served, source.windows, "served")),
        ("", _of(source.windows_reachable, source.windows, "within reach of the mixture")),
        (f"clusters L{source.level}", _of(source.clusters_hit, source.clusters_reachable, "with mass are drawn")),
        ("leaves", _of(source.leaves_hit, source.leaves_reachable, "with mass are drawn")),
    ]
    if not source.name:
        return rows
    repeats = f"{digits.times(source.mean_occurrences)} times each, at most {source.most_draws:,}"
    return [(f"source {source.name}", f"{_of(source.samples, samples, 'samples')}, {repeats}"), *rows]


def _phase_text(phase: PhaseForecast) -> str:
    name = "base" if phase.level == 0 else f"level {phase.level}, {phase.clusters:,} clusters"
    if phase.components > 1:
        name = f"{phase.components} components"
    if phase.selected is not None:
        return f"{phase.samples:,} samples of a selection of {phase.selected:,} windows in {phase.leaves:,} leaves"
    return f"{phase.samples:,} samples of {name}: {phase.leaves:,} leaves, {phase.windows:,} windows"


def _of(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} ({digits.part(part / max(1, whole))}) {what}"


def _quantile_text(quantiles: tuple[tuple[float, int], ...]) -> str:
    shown = (f"{share:.0%} at most {times:,}" for share, times in quantiles if share in _SHOWN_QUANTILES)
    return ", ".join(shown)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something to think about before the run, and what to do about it."""

    finding: str
    remedy: str

    def text(self) -> str:
        """Format as two lines."""
        return f"{self.finding}\n  {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Loader:
    """The processes that read, with the settings of their `MixtureDataset`."""

    nodes: int = 1
    ranks_per_node: int = 1
    replication: int = 1
    """Number of consecutive ranks that get the same samples."""
    batch_size: int = 1
    """Samples of a rank in a step."""
    num_workers: int = 0
    """DataLoader workers of a rank."""
    lookahead: int = 4096
    """Windows that each process plans ahead."""
    cache_limit: int | None = None
    """Bytes of the cache of a node; None: no limit."""

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
        """Processes of a node that fetch."""
        return self.groups_per_node * max(1, self.num_workers)

    def readers(self, positions: Int64s) -> Int64s:
        """Find which of `num_readers` nodes each position belongs to, [num_positions]."""
        return positions % self.num_readers

    def fetches(self, positions: Int64s) -> Int64s:
        """Number the group of batches with which each position is fetched, [num_positions].

        Groups of a process have 1, 2, 4, … batches up to a quarter of `lookahead`, then stay as large. Numbers rise in
        time when all processes advance in step, and each belongs to one process.
        """
        workers = max(1, self.num_workers)
        batch = positions // self.global_batch_size
        turn = batch // workers  # batches of the process, counted
        largest, growing = 1, 0
        while largest < max(1, self.lookahead // (4 * self.batch_size)):
            largest, growing = 2 * largest, growing + 1
        grown = np.log2((turn + 1).astype(np.float64)).astype(np.int64)
        number = np.where(turn < largest - 1, grown, growing + (turn - (largest - 1)) // largest)
        group = positions // self.num_readers % self.groups_per_node
        process = (group * workers + batch % workers) * self.num_readers + self.readers(positions)
        return number * (self.processes_per_node * self.num_readers) + process


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Reads of each node from the object store, with a cache that holds the working set. Tables are not counted."""

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
    """Bytes that were read before and will be read again: at the fullest node, at the fullest of the moments looked at.
    With a window selection, all that the node reads, which is no less."""
    cache_limit: int | None
    price_per_1000_requests: float
    """US dollars."""

    def rows(self) -> list[tuple[str, str]]:
        """Show as names and values of the table."""
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
        """Requests of all nodes."""
        return sum(self.requests_per_node)

    @property
    def cost(self) -> float:
        """Price of the requests of all nodes, US dollars."""
        return self.requests / 1000 * self.price_per_1000_requests
