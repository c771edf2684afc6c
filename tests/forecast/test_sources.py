"""Forecasts over several sources: every count equals the order walked sample by sample, reads those of the loader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from crisp_stream import Component, Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.forecast import selected as forecast_selected
from crisp_stream.forecast.forecast import forecast
from crisp_stream.forecast.result import Loader
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.mixture import Draw
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.stream import Stream
from crisp_stream.order.blocks import BLOCK_SAMPLES
from tests.support.mixtures import LEAVES, histogram_of
from tests.support.seaweed import S3Server
from tests.support.selections import random_selection
from tests.support.synthetic import upload, write_synthetic_dataset

Data = dict[str, Dataset]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("sources")
    corpus = write_synthetic_dataset(folder / "corpus", LEAVES, windows_per_shard=90)
    task = write_synthetic_dataset(
        folder / "task", {0: 9, 1: 4, 3: 130}, arity=2, depth=3, seed=1, windows_per_shard=50
    )
    return {"corpus": corpus, "task": task}


def mixture_of(data: Data, draw: Draw, *, selects: bool = False, last: int | None = 1_500) -> Mixture:
    """Base, then a task's clusters with its own text, perhaps from a selection of either."""
    corpus, task = data["corpus"], data["task"]
    base = Component(Histogram.base(corpus.manifest), source="corpus")
    own, of_task = (random_selection(each, 0.4, seed) if selects else None for seed, each in enumerate((corpus, task)))
    mixed = [
        Component(histogram_of(corpus, {0: 0.5, 9: 0.2, 12: 0.3}), share=0.6, source="corpus", windows=own),
        Component(Histogram.base(corpus.manifest), share=0.2, source="corpus"),
        Component(Histogram.base(task.manifest), share=0.2, source="task", windows=of_task),
    ]
    return Mixture([Phase(base, 900), Phase(mixed, last)], draw=draw)


@pytest.mark.parametrize("draw", ["systematic", "multinomial"])
@pytest.mark.parametrize("selects", [False, True])
def test_every_count_equals_the_walk(data: Data, draw: Draw, selects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_selected, "_SLICE_WINDOWS", 300)
    mixture = mixture_of(data, draw, selects=selects)
    found = forecast(data, mixture, seed=3, top=6)
    numbers = Stream(data, mixture, seed=3).fresh_order().window_ids(np.arange(2_400))
    corpus, task = data.values()
    first = np.cumsum([0, corpus.manifest.num_windows, task.manifest.num_windows])
    times = np.bincount(numbers, minlength=first[-1])
    every, ranked = [], []
    for at, (name, dataset) in enumerate(data.items()):
        source, own = found.sources[at], times[first[at] : first[at + 1]]
        rows = dataset.row_of_windows(np.arange(len(own)))
        draws = np.bincount(rows, own, len(dataset.leaves))
        reachable = np.ones(len(own), bool)
        if name == "task" and selects:
            selection = mixture.phases[1].components[2].windows
            assert selection is not None
            reachable = selection.contains(0, len(own))
        every.append(own[reachable])
        assert (source.name, source.fingerprint) == (name, dataset.manifest.fingerprint)
        assert (source.samples, source.most_draws) == (own.sum(), own.max())
        assert (source.windows, source.windows_reachable) == (len(own), reachable.sum())
        assert (source.windows_served, source.leaves_hit) == ((own > 0).sum(), (draws > 0).sum())
        assert source.level == (2 if name == "corpus" and not selects else 1)
        nodes = dataset.leaves // dataset.manifest.arity ** (dataset.manifest.depth - source.level)
        assert source.clusters_hit == len(np.unique(nodes[draws > 0]))
        per_leaf = np.bincount(rows, reachable, len(dataset.leaves))
        for node in np.unique(nodes[draws > 0]).tolist():
            ranked.append((name, node, int(per_leaf[nodes == node].sum()), int(draws[nodes == node].sum())))
    ranked.sort(key=lambda entry: -entry[3] / entry[2])
    assert [(each.source, each.cluster, each.windows, each.draws) for each in found.most_repeated] == ranked[:6]
    assert {entry.least: entry.windows for entry in found.distribution} == dict(Counter(times.tolist()))
    for share, value in found.quantiles_reachable:
        assert value == np.quantile(np.concatenate(every), share, method="inverted_cdf")
    shares = mixture.leaf_proportions(data)
    rows = np.concatenate(
        [
            corpus.row_of_windows(np.arange(first[1])),
            len(corpus.leaves) + task.row_of_windows(np.arange(first[2] - first[1])),
        ]
    )
    draws = np.bincount(rows, times, len(shares[0]))
    asked = 900 * shares[0] + 1_500 * shares[1]
    assert found.mixture_error == pytest.approx(np.abs(draws - asked).sum() / 2 / 2_400, abs=1e-9)
    assert found.mixture_error <= found.mixture_error_bound
    assert found.samples == sum(source.samples for source in found.sources)
    assert found.windows_served == (times > 0).sum()


@pytest.mark.parametrize(
    ("draw", "selects", "lookahead", "nodes"),
    [
        ("systematic", False, 64, 1),
        ("systematic", False, 4096, 2),
        ("systematic", True, 256, 1),
        ("multinomial", False, 128, 2),
    ],
)
def test_bytes_and_requests_are_those_of_the_loader(
    data: Data,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    draw: Draw,
    selects: bool,
    lookahead: int,
    nodes: int,
) -> None:
    remote = {name: open_dataset(upload(dataset, s3.fresh_prefix("sources"))) for name, dataset in data.items()}
    mixture = mixture_of(data, draw, selects=selects, last=1_501)
    reads = forecast(data, mixture, seed=1, loader=Loader(nodes=nodes, batch_size=8, lookahead=lookahead)).reads
    assert (reads.how, reads.bytes_exact, reads.requests_exact) == ("walked", True, True)
    monkeypatch.setenv("WORLD_SIZE", str(nodes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    for node in range(nodes):
        monkeypatch.setenv("RANK", str(node))
        reading = ReadOptions(local=tmp_path / str(node), lookahead=lookahead)
        stream = MixtureDataset(remote, mixture, batch_size=8, seed=1, reading=reading)
        assert sum(1 for _ in stream) == 2_401 // (8 * nodes)
        assert (stream.bytes_read, stream.requests) == (reads.bytes_per_node[node], reads.requests_per_node[node])


def test_a_sampled_forecast_is_close_to_the_walk(data: Data) -> None:
    mixture = mixture_of(data, "systematic", last=3 * BLOCK_SAMPLES)
    sampled, walked = (forecast(data, mixture, seed=5, max_blocks=blocks).reads for blocks in (2, 100))
    assert (sampled.how, walked.how) == ("sampled", "walked")
    assert sampled.bytes_per_node == walked.bytes_per_node
    assert sampled.requests == pytest.approx(walked.requests, rel=0.15)
    assert 0 < sampled.working_set_bytes <= sum(sampled.bytes_per_node)


def test_the_table_says_what_each_source_gives(data: Data) -> None:
    found = forecast(data, mixture_of(data, "systematic"), seed=3)
    of_task = found.sources[1]
    lines = found.table({("task", 0): "words of it"}).splitlines()
    [row] = [line for line in lines if line.startswith("source task")]
    each = f"{of_task.samples / of_task.windows_served:.2f} times each, at most {of_task.most_draws}"
    assert row.split(None, 2)[2] == f"{of_task.samples} of 2,400 ({of_task.samples / 2_400:.1%}) samples, {each}"
    assert any(line.startswith("task") and line.endswith("words of it") for line in lines)
    assert found.to_json()["sources"][1]["samples"] == of_task.samples
