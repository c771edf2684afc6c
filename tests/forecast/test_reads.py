"""Forecast reads: equal to what the real loader asks of a real S3 server; estimates close to the walk."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.forecast.estimate import count_reads
from crisp_stream.forecast.forecast import forecast
from crisp_stream.forecast.reads import Plans
from crisp_stream.forecast.result import Loader
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Draw, Mixture
from crisp_stream.histograms.phase import Phase
from crisp_stream.loading.mixture_dataset import MixtureDataset
from crisp_stream.loading.reader import ReadOptions, _FetchedRuns
from crisp_stream.loading.run_cache import WindowRun
from crisp_stream.loading.stream import Stream
from crisp_stream.loading.topology import Topology
from crisp_stream.order.blocks import BLOCK_SAMPLES
from tests.support.mixtures import LEAVES, histogram_of, two_phases
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("forecast") / "data", LEAVES, windows_per_shard=90)


@pytest.fixture(scope="module")
def remote(dataset: Dataset, s3: S3Server) -> Dataset:
    return open_dataset(upload(dataset, s3.fresh_prefix("forecast")))


class Counting:
    """Counts what the client of the object store is asked, behind the reader."""

    def __init__(self, store: Any) -> None:
        self.store, self.requests, self.bytes_read = store, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        content = self.store.get_range(path, start, length)
        self.requests += 1
        self.bytes_read += len(content)
        return content


def read_all(
    remote: Dataset,
    mixture: Mixture,
    cache: Path,
    environment: pytest.MonkeyPatch,
    ranks: list[int],
    *,
    lookahead: int = 4096,
    **options: Any,
) -> tuple[int, int, int]:
    """Bytes, requests and samples of some ranks that share a cache, one after the other."""
    total = [0, 0, 0]
    for rank in ranks:
        environment.setenv("RANK", str(rank))
        reading = ReadOptions(local=cache, lookahead=lookahead)
        stream = MixtureDataset(remote.root, mixture, reading=reading, **options)
        store = stream.dataset.store = Counting(stream.dataset.store)  # pyright: ignore[reportAttributeAccessIssue]
        left = None
        if mixture.num_samples is None:
            left = -(-options["num_samples"] // stream.global_batch_size)
        total[2] += sum(len(batch["window"]) for batch in itertools.islice(iter(stream), left))
        total[0] += store.bytes_read
        total[1] += store.requests
    return total[0], total[1], total[2]


@pytest.mark.parametrize(
    ("draw", "samples", "batch_size", "lookahead", "nodes"),
    [
        ("systematic", None, 8, 64, 1),
        ("systematic", None, 8, 4096, 2),
        ("systematic", 3_000, 16, 256, 3),
        ("systematic", 3_000, 7, 100, 1),
        ("multinomial", None, 4, 128, 2),
        ("multinomial", 2_000, 25, 4096, 1),
    ],
)
def test_bytes_and_requests_equal_those_of_the_loader_at_an_s3_server(
    remote: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    draw: Draw,
    samples: int | None,
    batch_size: int,
    lookahead: int,
    nodes: int,
) -> None:
    mixture = two_phases(remote, 700, 1_301 if samples is None else None, draw)
    loader = Loader(nodes=nodes, batch_size=batch_size, lookahead=lookahead)
    found = forecast(remote, mixture, samples=samples, seed=11, loader=loader)
    assert (found.reads.how, found.reads.bytes_exact, found.reads.requests_exact) == ("walked", True, True)
    monkeypatch.setenv("WORLD_SIZE", str(nodes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    options = {"batch_size": batch_size, "lookahead": lookahead, "seed": 11, "num_samples": samples}
    served = 0
    for node in range(nodes):
        read = read_all(remote, mixture, tmp_path / str(node), monkeypatch, [node], **options)
        assert read[:2] == (found.reads.bytes_per_node[node], found.reads.requests_per_node[node])
        served += read[2]
    assert served == found.samples


def test_ranks_that_share_a_cache_read_the_bytes_of_one(
    remote: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = two_phases(remote, 700, 1_300)
    found = forecast(remote, mixture, seed=2, loader=Loader(nodes=2, ranks_per_node=2, batch_size=5))
    assert found.reads.bytes_exact
    assert not found.reads.requests_exact  # who asks first is a matter of timing
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for node in range(2):
        ranks = [2 * node, 2 * node + 1]
        read = read_all(remote, mixture, tmp_path / str(node), monkeypatch, ranks, batch_size=5, seed=2)
        assert read[0] == found.reads.bytes_per_node[node]


def test_nodes_of_one_replica_each_read_everything_of_it(dataset: Dataset) -> None:
    mixture = two_phases(dataset, 700, 1_300)
    alone = forecast(dataset, mixture, loader=Loader(nodes=2, batch_size=5)).reads
    replicas = forecast(dataset, mixture, loader=Loader(nodes=4, replication=2, batch_size=5)).reads
    assert replicas.bytes_per_node == tuple(np.repeat(alone.bytes_per_node, 2))
    assert replicas.requests_per_node == tuple(np.repeat(alone.requests_per_node, 2))


@pytest.mark.parametrize(("nodes", "per_node", "replication"), [(1, 1, 1), (3, 4, 2), (4, 2, 4), (2, 8, 1), (2, 2, 2)])
def test_positions_belong_to_the_nodes_that_the_topology_gives_them(
    nodes: int, per_node: int, replication: int
) -> None:
    loader = Loader(nodes=nodes, ranks_per_node=per_node, replication=replication, batch_size=3)
    for rank in range(nodes * per_node):
        topology = Topology(rank=rank, world_size=nodes * per_node, ranks_per_node=per_node, replication=replication)
        own = topology.positions(0, 3)
        reader = rank // per_node // (nodes // loader.num_readers)
        assert (loader.readers(own) == reader).all()
        assert topology.num_replicas * 3 == loader.global_batch_size


@given(
    runs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 64)), min_size=1, max_size=40),
    sample_bytes=st.sampled_from([72, 2056, 100_000, 1 << 22]),
)
def test_requests_are_joined_as_the_reader_joins_them(runs: list[tuple[int, int, int]], sample_bytes: int) -> None:
    from crisp_stream.forecast.reads import Fetched, requests

    shards = sorted(shard for shard, _, _ in runs)
    first, listed = 0, []
    for shard, (_, gap, num_windows) in zip(shards, runs, strict=True):
        listed.append(WindowRun(shard, first + gap, num_windows))
        first += gap + num_windows
    reader: Any = object.__new__(_FetchedRuns)
    reader._sample_bytes = sample_bytes
    columns = np.array(listed, np.int64).T
    fetched = Fetched(np.zeros(len(listed), np.int64), np.zeros(len(listed), np.int64), *columns)
    assert requests(fetched, sample_bytes, 1).tolist() == [len(reader._coalesced(listed))]


def plans_of(dataset: Dataset, mixture: Mixture, samples: int, *, nodes: int = 1, seed: int = 0) -> Plans:
    stream = Stream(dataset, mixture, seed=seed)
    stop = samples if mixture.draw == "systematic" else None
    loader = Loader(nodes=nodes)
    return Plans(dataset, stream.fresh_order, samples, stop=stop, draw=mixture.draw, loader=loader)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=16),
    windows_per_shard=st.sampled_from([20, 50, 90, 1000]),
    samples=st.integers(10, 2_500),
    draw=st.sampled_from(["systematic", "multinomial"]),
    seed=st.integers(0, 1 << 20),
)
def test_runs_and_windows_in_them_are_counted_as_the_reader_finds_them(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    windows_per_shard: int,
    samples: int,
    draw: Draw,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("runs")
    leaves = dict(enumerate(sizes))
    dataset = write_synthetic_dataset(path, leaves, windows_per_shard=windows_per_shard, window_tokens=8)
    half = samples // 2
    mixture = Mixture([Phase(Histogram.base(dataset.manifest))], draw=draw)
    plans = plans_of(dataset, mixture, samples, seed=seed)
    counted = count_reads(plans, np.array([half, samples]))
    fetched = plans.walked(0, samples)
    assert counted.runs_begun.tolist() == [len(plans.walked(0, half).first), len(fetched.first)]
    if draw == "systematic":
        assert counted.windows == fetched.num_windows.sum()


@pytest.mark.parametrize("nodes", [1, 2, 3, 6, 8])
def test_a_sampled_forecast_is_close_to_the_walk(tmp_path: Path, nodes: int) -> None:
    sizes = dict(enumerate(np.random.default_rng(0).geometric(0.004, 256).tolist()))
    dataset = write_synthetic_dataset(tmp_path, sizes, window_tokens=8, depth=4, windows_per_shard=4096)
    shares = {leaf: 1 / (1 + leaf % 37) ** 2 for leaf in sizes}
    mixture = Mixture(
        [Phase(Histogram.base(dataset.manifest), 20_000), Phase(histogram_of(dataset, shares), 3 * BLOCK_SAMPLES)]
    )
    loader = Loader(nodes=nodes, batch_size=8 if 64 % nodes == 0 else 10)
    found = [forecast(dataset, mixture, seed=5, loader=loader, max_blocks=blocks).reads for blocks in (3, 100)]
    assert [reads.how for reads in found] == ["sampled", "walked"]
    assert found[0].blocks == 3
    if nodes == 1:
        assert found[0].bytes_per_node == found[1].bytes_per_node
    assert np.array(found[0].bytes_per_node) == pytest.approx(np.array(found[1].bytes_per_node), rel=0.03)
    assert np.array(found[0].requests_per_node) == pytest.approx(np.array(found[1].requests_per_node), rel=0.25, abs=50)
    assert found[0].requests == pytest.approx(found[1].requests, rel=0.15)


def test_what_a_cache_must_hold_is_what_was_read_and_is_read_again(tmp_path: Path) -> None:
    dataset = write_synthetic_dataset(tmp_path, LEAVES, windows_per_shard=1000)
    mixture = two_phases(dataset, 1_500, 900)
    plans = plans_of(dataset, mixture, 2_400, seed=9)
    for position in (300, 1_000, 1_500, 2_000, 2_399):
        kept = count_reads(plans, np.array([position, 2_400])).windows_kept
        before, after = plans.walked(0, position), plans.walked(position, 2_400)
        again = np.isin(before.first, after.first)
        expected = int(before.num_windows[again].sum())
        assert kept[1] == 0
        assert kept[0] == expected
