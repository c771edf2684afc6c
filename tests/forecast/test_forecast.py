"""Forecasts: every count equals the whole order walked sample by sample; bounds, warnings, refusals."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.errors import InputError
from crisp_stream.forecast.forecast import forecast
from crisp_stream.forecast.result import Forecast, Loader
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import interpolate
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Draw, Mixture
from crisp_stream.histograms.phase import Phase
from crisp_stream.histograms.smoothing import smooth
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.stream import Stream
from crisp_stream.order.blocks import BLOCK_SAMPLES
from tests.support.mixtures import LEAVES, histogram_of, two_phases
from tests.support.synthetic import synthetic_tree, write_synthetic_dataset
from tests.support.topics import histogram_of as topics_histogram


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("forecast") / "data", LEAVES, windows_per_shard=90)


def walked(dataset: Dataset, mixture: Mixture, samples: int, seed: int) -> np.ndarray:
    """[num_windows], how often each window is served."""
    order = Stream(dataset, mixture, seed=seed).fresh_order()
    return np.bincount(order.window_ids(np.arange(samples)), minlength=dataset.manifest.num_windows)


def check_against_walk(found: Forecast, dataset: Dataset, mixture: Mixture, reachable: np.ndarray) -> None:
    """Compare every count of a forecast with the order itself.

    Args:
        found: the forecast.
        dataset: that it is about.
        mixture: that it is about.
        reachable: [num_windows], whether the mixture can reach each window.
    """
    times = walked(dataset, mixture, found.samples, found.seed)
    rows = dataset.row_of_windows(np.arange(len(times)))
    draws = np.bincount(rows, times, len(dataset.leaves)).astype(np.int64)
    assert found.windows_served == (times > 0).sum()
    assert found.windows_reachable == reachable.sum()
    assert found.sources[0].leaves_hit == (draws > 0).sum()
    bins = {entry.least: entry.windows for entry in found.distribution if entry.least == entry.most}
    expected = {value: windows for value, windows in Counter(times.tolist()).items() if value <= 64}
    assert {value: windows for value, windows in bins.items() if value <= 64} == expected
    for entry in found.distribution:
        assert entry.windows == ((times >= entry.least) & (times <= entry.most)).sum()
    assert sum(entry.windows for entry in found.distribution) == found.windows
    for quantiles, values in ((found.quantiles_all, times), (found.quantiles_reachable, times[reachable])):
        for share, value in quantiles:
            assert value == np.quantile(values, share, method="inverted_cdf")
    [of_source] = found.sources
    nodes = dataset.leaves // dataset.manifest.arity ** (dataset.manifest.depth - found.sources[0].level)
    clusters = np.unique(nodes)
    by_cluster = {
        int(node): (int(dataset.windows_per_leaf[nodes == node].sum()), int(draws[nodes == node].sum()))
        for node in clusters
    }
    assert (of_source.clusters, of_source.clusters_hit) == (
        len(clusters),
        sum(drawn > 0 for _, drawn in by_cluster.values()),
    )
    ranked = sorted(by_cluster.items(), key=lambda item: -item[1][1] / item[1][0])[: len(found.most_repeated)]
    assert [(entry.cluster, (entry.windows, entry.draws)) for entry in found.most_repeated] == ranked
    shares = mixture.leaf_proportions(dataset)
    asked = sum(phase.samples * share for phase, share in zip(found.phases, shares, strict=False))
    assert found.mixture_error == pytest.approx(np.abs(draws - asked).sum() / 2 / found.samples, rel=1e-6, abs=1e-9)
    assert found.mixture_error <= found.mixture_error_bound


@pytest.mark.parametrize("draw", ["systematic", "multinomial"])
@pytest.mark.parametrize(
    ("first", "second", "samples"),
    [(700, None, 5_000), (2_000, 1_500, None), (2_000, 1_500, 1_999), (BLOCK_SAMPLES + 5, BLOCK_SAMPLES + 77, None)],
)
def test_every_count_equals_the_order_walked_sample_by_sample(
    dataset: Dataset, draw: Draw, first: int, second: int | None, samples: int | None
) -> None:
    mixture = two_phases(dataset, first, second, draw)
    found = forecast(dataset, mixture, samples=samples, seed=3, top=4)
    assert found.samples == (samples or first + (second or 0))
    reachable = np.ones(dataset.manifest.num_windows, bool)
    check_against_walk(found, dataset, mixture, reachable)


def test_windows_out_of_reach_count_for_all_windows_alone(dataset: Dataset) -> None:
    mixture = Mixture([Phase(histogram_of(dataset, {0: 0.3, 3: 0.7}, level=1), 900)])
    found = forecast(dataset, mixture, seed=1, top=2)
    nodes = dataset.leaf_of_windows(np.arange(dataset.manifest.num_windows)) // 4
    reachable = np.isin(nodes, [0, 3])
    check_against_walk(found, dataset, mixture, reachable)
    [of_source] = found.sources
    assert (of_source.level, of_source.clusters, of_source.clusters_reachable, of_source.clusters_hit) == (1, 4, 2, 2)
    assert dict(found.quantiles_all)[0.0] == 0
    assert found.phases[0].windows == reachable.sum()


def test_a_rare_cluster_is_reachable_without_being_drawn(dataset: Dataset) -> None:
    found = forecast(dataset, Mixture([Phase(histogram_of(dataset, {0: 1.0, 12: 1e-6}), 300)]))
    assert (found.sources[0].clusters_reachable, found.sources[0].clusters_hit) == (2, 1)
    assert found.windows_reachable == LEAVES[0] + LEAVES[12]
    assert any("never drawn" in warning.finding for warning in found.warnings)


# The bound.


@settings(max_examples=60)
@given(
    weights=st.lists(st.floats(1e-6, 1), min_size=1, max_size=16),
    samples=st.sampled_from([1, 37, 4_000, BLOCK_SAMPLES - 1, BLOCK_SAMPLES, 3 * BLOCK_SAMPLES + 9, 10**8, 10**9]),
    closed=st.booleans(),
    seed=st.integers(0, 1 << 40),
)
def test_the_mixture_error_never_exceeds_its_bound(
    sixteen: Dataset, weights: list[float], samples: int, closed: bool, seed: int
) -> None:
    histogram = histogram_of(sixteen, dict(enumerate(weights)))
    mixture = Mixture([Phase(histogram, samples if closed else None)])
    found = forecast(sixteen, mixture, samples=samples, seed=seed, max_blocks=1)
    assert found.mixture_error <= found.mixture_error_bound
    clusters = len(weights)
    loose = 96 + 2 * clusters
    assert found.mixture_error_bound <= min(1, (loose + clusters * (2 + np.log2(samples))) / samples)


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("sixteen"), {leaf: 30 + leaf for leaf in range(16)})


def test_multinomial_draws_stay_below_their_bound_for_almost_all_seeds(sixteen: Dataset) -> None:
    mixture = Mixture([Phase(Histogram.base(sixteen.manifest))], draw="multinomial")
    found = [forecast(sixteen, mixture, samples=2_000, seed=seed) for seed in range(100)]
    assert max(one.mixture_error for one in found) <= found[0].mixture_error_bound
    assert found[0].mixture_error_bound < 5 * np.mean([one.mixture_error for one in found])


# Warnings and refusals.


def findings(found: Forecast) -> str:
    assert all(warning.remedy for warning in found.warnings)
    return " ".join(warning.finding for warning in found.warnings)


def test_a_run_that_fits_its_data_has_no_warnings(dataset: Dataset) -> None:
    base = Mixture([Phase(Histogram.base(dataset.manifest), 900)])
    assert forecast(dataset, base).warnings == ()


def test_warnings_name_what_is_wrong(dataset: Dataset) -> None:
    few = forecast(dataset, Mixture([Phase(histogram_of(dataset, {3: 1.0}), 700)]))
    assert "100 times the 7 windows of what the mixture can reach" in findings(few).replace("100.0", "100")
    assert "100% of the samples are windows that are served more than 4 times; cluster 3 of level 2" in findings(few)
    long = forecast(dataset, Mixture([Phase(Histogram.base(dataset.manifest), 4_000)]))
    assert "times the 960 windows of the whole corpus" in findings(long)
    missing = Mixture([Phase(histogram_of(dataset, {0: 0.97, 4: 0.03}), 200)])
    assert "Phase 1: 3.00% of the histogram stands on clusters without windows" in findings(forecast(dataset, missing))
    short = forecast(dataset, Mixture([Phase(Histogram.base(dataset.manifest), 6)]))
    assert "off those of the mixture" in findings(short)
    small = forecast(dataset, two_phases(dataset, 900, 900), loader=Loader(cache_limit=1000))
    assert "its cache holds 1.0 kB" in findings(small)
    uneven = forecast(dataset, two_phases(dataset, 900, 900), loader=Loader(nodes=3, batch_size=7))
    assert "3 nodes do not divide the 64 lanes" in findings(uneven)
    assert "The last 15 samples do not fill a global batch of 21." in findings(uneven)


def test_runs_that_cannot_be_are_refused(dataset: Dataset) -> None:
    base, task = Histogram.base(dataset.manifest), histogram_of(dataset, {0: 1.0})
    with pytest.raises(InputError, match="has no end: say how long the run is"):
        forecast(dataset, Mixture([Phase(base)]))
    with pytest.raises(InputError, match="the phases of the mixture have 100, got 101"):
        forecast(dataset, Mixture([Phase(base, 100)]), samples=101)
    with pytest.raises(InputError, match="samples: must be at least 1, got 0"):
        forecast(dataset, Mixture([Phase(base)]), samples=0)
    with pytest.raises(InputError, match="10 do not fill a global batch of 16"):
        forecast(dataset, Mixture([Phase(base, 10)]), loader=Loader(batch_size=16))
    other = synthetic_tree(4, 2, seed=1)
    foreign = Histogram.from_leaves([0, 1], other, 2)
    with pytest.raises(InputError, match="the histogram was counted with tree"):
        forecast(dataset, Mixture([Phase(foreign, 10)]))
    with pytest.raises(InputError, match=r"50\.0% of the histogram stands on 1 clusters"):
        forecast(dataset, Mixture([Phase(histogram_of(dataset, {0: 0.5, 4: 0.5}), 10)]))
    with pytest.raises(InputError, match="would be drawn more than max_repeats 2 times"):
        forecast(dataset, Mixture([Phase(task, 10_000, max_repeats=2)]))
    with pytest.raises(InputError, match="request price: must be a number of dollars"):
        forecast(dataset, Mixture([Phase(base, 100)]), price_per_1000_requests=-1)
    for wrong in ({"nodes": 0}, {"num_workers": -1}, {"cache_limit": 0}, {"nodes": 2, "replication": 3}):
        with pytest.raises(InputError, match=next(reversed(wrong))):
            Loader(**wrong)


def test_the_defaults_are_those_of_the_loader() -> None:
    assert Loader().lookahead == ReadOptions().lookahead


def repeats_remedy(dataset: Dataset, histogram: Histogram, **limit: Any) -> str:
    """What is advised where a few windows of a histogram are served many times."""
    found = forecast(dataset, Mixture([Phase(histogram, 20_000, **limit)]))
    [remedy] = [one.remedy for one in found.warnings if "served more than 4 times" in one.finding]
    return remedy


def test_smoothing_is_advised_only_where_it_was_not_done_and_can_be(sixteen: Dataset) -> None:
    counted = topics_histogram(sixteen, {3: 900, 9: 100})
    smoothed = smooth(counted, sixteen, strength=[1.0, 3.0])
    others = "a coarser level, a histogram closer to base (histogram interpolate), fewer samples, or a limit with "
    others += "max_repeats and on_excess=cap."
    assert repeats_remedy(sixteen, counted) == f"Use smoothing (histogram tune), {others}"
    already = f"The histogram is smoothed already. Use {others}"
    assert repeats_remedy(sixteen, smoothed) == already
    assert repeats_remedy(sixteen, interpolate(smoothed, sixteen, 0.1)) == already
    assert repeats_remedy(sixteen, Histogram.average([smoothed, smoothed])) == already
    of_parts = f"Use smoothing of the histograms that it was computed from (histogram tune), {others}"
    assert repeats_remedy(sixteen, interpolate(counted, sixteen, 0.1)) == of_parts
    assert repeats_remedy(sixteen, Histogram.average([smoothed, counted])) == of_parts
    assert repeats_remedy(sixteen, dataclasses.replace(smoothed, provenance={"name": "doge"})) == f"Use {others}"
    assert repeats_remedy(sixteen, smooth(counted, sixteen, strength=1.0, level=1)) == already.replace(
        "a coarser level, ", ""
    )


def test_a_limit_is_not_advised_where_there_is_one(sixteen: Dataset) -> None:
    histogram = topics_histogram(sixteen, {leaf: 1 + 20 * (leaf == 3) for leaf in range(16)})
    assert repeats_remedy(sixteen, histogram, max_repeats=50.0, on_excess="cap").endswith("or a lower max_repeats.")


def test_clusters_that_smoothing_alone_reaches_need_not_be_drawn(sixteen: Dataset) -> None:
    counted = topics_histogram(sixteen, {3: 900_000, 9: 100_000})
    smoothed = smooth(counted, sixteen, strength=3.0)
    found = forecast(sixteen, Mixture([Phase(smoothed, 2_000)]))
    assert found.sources[0].clusters_hit < 0.9 * found.sources[0].clusters_reachable
    assert not any("never drawn" in warning.finding for warning in found.warnings)
    unknown = dataclasses.replace(smoothed, provenance={})
    assert any("never drawn" in one.finding for one in forecast(sixteen, Mixture([Phase(unknown, 2_000)])).warnings)
