"""Forecasts of mixtures with window selections: every count equals the order walked sample by sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.cli.main import main
from crisp_stream.forecast import selected as forecast_selected
from crisp_stream.forecast.forecast import forecast
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.mixture import Draw
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.stream import Stream
from tests.support.mixtures import histogram_of
from tests.support.seaweed import S3Server
from tests.support.selections import LEAVES, random_selection
from tests.support.synthetic import upload, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("forecast") / "data", LEAVES, windows_per_shard=90)


def mixtures(dataset: Dataset, draw: Draw) -> dict[str, Mixture]:
    one, two = (random_selection(dataset, 0.3, seed) for seed in (1, 2))
    base, task = Histogram.base(dataset.manifest), histogram_of(dataset, {0: 0.5, 3: 0.2, 12: 0.3})
    phases = {
        "selection": [Phase.of_windows(one, dataset)],
        "base, selection": [Phase(base, 700), Phase.of_windows(one, dataset, 1800)],
        "two selections": [
            Phase.of_windows(one, dataset, 500),
            Phase(task, 500),
            Phase.of_windows(two, dataset, 500),
            Phase.of_windows(one, dataset),
        ],
    }
    return {name: Mixture(own, draw=draw) for name, own in phases.items()}


@pytest.mark.parametrize("slice_windows", [1, 400, 1 << 22])
@pytest.mark.parametrize("draw", ["systematic", "multinomial"])
@pytest.mark.parametrize("name", ["selection", "base, selection", "two selections"])
def test_every_count_equals_the_walk(
    dataset: Dataset, name: str, draw: Draw, slice_windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast_selected, "_SLICE_WINDOWS", slice_windows)
    mixture = mixtures(dataset, draw)[name]
    found = forecast(dataset, mixture, samples=2500, seed=3, top=4)
    order = Stream(dataset, mixture, seed=3).fresh_order()
    num_windows = dataset.manifest.num_windows
    times = np.bincount(order.window_ids(np.arange(2500)), minlength=num_windows)
    reachable = np.zeros(num_windows, bool)
    for phase, counted in zip(mixture.phases, found.phases, strict=True):
        leaves = dataset.leaf_of_windows(np.arange(num_windows))
        within = np.isin(leaves, phase.histogram.nodes) if phase.histogram.level else np.ones(num_windows, bool)
        own = within if phase.windows is None else phase.windows.contains(0, num_windows)
        reachable |= own
        assert (counted.windows, counted.leaves) == (own.sum(), len(np.unique(leaves[own])))
        assert counted.selected == (None if phase.windows is None else own.sum())
    rows = dataset.row_of_windows(np.arange(num_windows))
    draws = np.bincount(rows, times, len(dataset.leaves))
    assert (found.windows_served, found.windows_reachable) == ((times > 0).sum(), reachable.sum())
    assert found.sources[0].leaves_hit == (draws > 0).sum()
    assert {entry.least: entry.windows for entry in found.distribution} == dict(Counter(times.tolist()))
    for share, value in found.quantiles_reachable:
        assert value == np.quantile(times[reachable], share, method="inverted_cdf")
    per_leaf = np.bincount(rows, reachable, len(dataset.leaves))
    nodes = dataset.leaves // dataset.manifest.arity ** (dataset.manifest.depth - found.sources[0].level)
    for entry in found.most_repeated:
        own = nodes == entry.cluster
        assert (entry.windows, entry.draws) == (per_leaf[own].sum(), draws[own].sum())
    asked = sum(
        counted.samples * share for counted, share in zip(found.phases, mixture.leaf_proportions(dataset), strict=True)
    )
    assert found.mixture_error == pytest.approx(np.abs(draws - asked).sum() / 2 / 2500, abs=1e-9)
    assert found.mixture_error <= found.mixture_error_bound


def test_bytes_and_requests_are_those_of_the_loader(dataset: Dataset, s3: S3Server, tmp_path: Path) -> None:
    url = upload(dataset, s3.fresh_prefix())
    mixture = mixtures(dataset, "systematic")["base, selection"]
    stream = MixtureDataset(url, mixture, batch_size=1, reading=ReadOptions(local=tmp_path))
    assert sum(1 for _ in stream) == 2500
    reads = forecast(dataset, mixture).reads
    assert reads.bytes_exact
    assert sum(reads.bytes_per_node) == stream.bytes_read
    assert reads.requests == stream.requests
    assert reads.working_set_bytes >= sum(reads.bytes_per_node)


def test_the_command_counts_a_selection(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection = random_selection(dataset, 0.3, 1)
    selection.save(tmp_path / "a.windows.parquet")
    mixture = ["base:700", f"{tmp_path}/a.windows.parquet"]
    assert main(["forecast", "--data", dataset.root, "--samples", "2500", "--mixture", *mixture]) == 0
    shown = capsys.readouterr().out
    assert f"1,800 samples of a selection of {selection.num_selected} windows" in shown
    assert "select more windows" in shown
    assert (
        main(["forecast", "--data", dataset.root, "--samples", "9", "--mixture", f"{tmp_path}/b.windows.parquet"]) == 2
    )
    assert "crisp-stream select" in capsys.readouterr().err
