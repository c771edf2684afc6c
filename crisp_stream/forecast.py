"""What a run will read, before it is started: repeats, clusters, bytes, requests, mixture error.

Not a model of the loader but the loader's own order, counted: how often each leaf is drawn comes from `SampleOrder` in
one vectorised step per phase, and a leaf of n windows that is drawn d times serves d mod n of its windows once more
than the others. So for a seed the numbers are exact, at any length of the run, in memory for a slice of the leaves.
Requests depend on what is fetched together; they are found by walking the order through the reader's own plan of runs,
all of it when the run is short, else some of its blocks (`Reads.how`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crisp_stream.format import Dataset
    from crisp_stream.mixture import Mixture

REQUEST_PRICE = 0.0004
"""US dollars for 1,000 GET requests: Amazon S3 Standard, US East (N. Virginia), from its public price list."""
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True, kw_only=True)
class PhaseForecast:
    """One phase of the mixture, as far as the run goes."""

    level: int
    """Of its histogram; 0: base."""
    samples: int
    clusters: int
    """Clusters of the histogram with mass and windows."""
    leaves: int
    """Leaves with mass."""
    windows: int
    """Windows in these leaves."""
    missing_mass: float
    """Share of the histogram on clusters without windows; redistributed."""


@dataclass(frozen=True, kw_only=True)
class OccurrenceBin:
    """How many windows are served at least `least` and at most `most` times. Up to 64, `least` equals `most`."""

    least: int
    most: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class ClusterRepeats:
    """A cluster and how often it is gone through."""

    cluster: int
    """Node id at `Forecast.level`."""
    windows: int
    draws: int

    @property
    def epochs(self) -> float:
        """Draws per window."""
        return self.draws / self.windows


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
    """Of the fullest node, at the fullest of the moments looked at: read before, and to be read again."""
    cache_limit: int | None
    price_per_1000_requests: float
    """US dollars."""

    @property
    def requests(self) -> int:
        """Of all nodes."""
        return sum(self.requests_per_node)

    @property
    def cost(self) -> float:
        """Of the requests of all nodes, US dollars."""
        return self.requests / 1000 * self.price_per_1000_requests


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something to think about before the run, and what to do about it."""

    finding: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run of a mixture over a dataset will serve and read."""

    dataset: str
    """Root."""
    dataset_fingerprint: str
    mixture_fingerprint: str
    seed: int
    draw: str
    samples: int
    """Windows served over all ranks, repeats included."""
    tokens: int
    phases: tuple[PhaseForecast, ...]

    windows: int
    """Of the dataset."""
    windows_reachable: int
    """Windows in leaves with mass in some phase."""
    windows_served: int
    """Distinct windows served."""
    leaves_reachable: int
    leaves_hit: int

    level: int
    """Of the clusters below: the finest of the phases' histograms, at least 1."""
    clusters: int
    """Clusters of that level with windows."""
    clusters_reachable: int
    clusters_hit: int
    most_repeated: tuple[ClusterRepeats, ...]
    """Most epochs first."""

    quantiles_reachable: tuple[tuple[float, int], ...]
    """(quantile, occurrences) over reachable windows: that share of the windows is served at most so often."""
    quantiles_all: tuple[tuple[float, int], ...]
    """The same over all windows of the dataset."""
    distribution: tuple[OccurrenceBin, ...]
    """Over all windows of the dataset, in increasing order; no empty bins."""

    mixture_error: float
    """Total variation between the leaf proportions asked for and served, in [0, 1]."""
    mixture_error_bound: float
    """What it cannot exceed whatever the seed; for multinomial draws, what 99.9 % of seeds stay below."""

    reads: Reads
    warnings: tuple[Advice, ...] = field(default=())

    @property
    def mean_occurrences(self) -> float:
        """Of the windows that are served."""
        return self.samples / self.windows_served

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """As lines of text."""
        raise NotImplementedError


def forecast(dataset: Dataset, mixture: Mixture, *, samples: int | None = None, seed: int = 0) -> Forecast:
    """Count what a run will serve and read."""
    raise NotImplementedError
