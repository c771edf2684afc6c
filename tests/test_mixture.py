"""Mixtures: phases, missing mass, identity."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from crisp_stream import Histogram, Mixture, Phase
from crisp_stream.errors import InputError
from crisp_stream.format import Dataset
from tests.synthetic import synthetic_tree, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("mixture"), {0: 100, 3: 50, 5: 10, 15: 40})


def counted(dataset: Dataset, leaves: list[int], level: int = 2) -> Histogram:
    return Histogram.from_leaves(leaves, dataset.tree, level)


def test_the_base_mixture_is_the_corpus_in_its_own_proportions(dataset: Dataset) -> None:
    assert Mixture.base(dataset.manifest).leaf_proportions(dataset)[0].tolist() == [0.5, 0.25, 0.05, 0.2]


def test_a_coarser_histogram_spreads_over_leaves_by_size(dataset: Dataset) -> None:
    mixture = Mixture.from_histogram(counted(dataset, [0, 15], level=1))
    assert mixture.leaf_proportions(dataset)[0] == pytest.approx([0.5 * 100 / 150, 0.5 * 50 / 150, 0, 0.5])


def test_mass_without_windows_is_an_error_above_the_limit(dataset: Dataset) -> None:
    with pytest.raises(
        InputError, match=r"25\.0% of the histogram stands on 1 clusters of level 2 .*cluster 7.*limit is 5\.0%"
    ):
        Mixture.from_histogram(counted(dataset, [0, 0, 0, 7])).leaf_proportions(dataset)


def test_mass_without_windows_below_the_limit_is_reported_and_redistributed(
    dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = Mixture.from_histogram(counted(dataset, [0] * 72 + [15] * 24 + [7] * 4))
    with caplog.at_level(logging.WARNING):
        proportions = mixture.leaf_proportions(dataset)[0]
    assert proportions == pytest.approx([0.75, 0, 0, 0.25])
    assert "4.0% of the histogram stands on 1 clusters" in caplog.text


def test_a_histogram_of_another_tree_is_refused(dataset: Dataset) -> None:
    other = Histogram.from_leaves([0], synthetic_tree(4, 2, seed=3), 2)
    with pytest.raises(InputError, match=r"was counted with tree .* Count it again with --data"):
        Mixture.from_histogram(other).leaf_proportions(dataset)
    with pytest.raises(InputError, match="must come from one tree, got 2"):
        Mixture([Phase(Histogram.base(dataset.manifest), 10), Phase(other)])


def test_phases_must_be_of_known_length_but_the_last(dataset: Dataset) -> None:
    base = Histogram.base(dataset.manifest)
    with pytest.raises(InputError, match="phase 1 of 2 has no number of samples"):
        Mixture([Phase(base), Phase(base)])
    with pytest.raises(InputError, match="at least 1 sample, got 0"):
        Phase(base, 0)
    with pytest.raises(InputError, match="at least one phase"):
        Mixture([])
    with pytest.raises(InputError, match="draw must be systematic or multinomial"):
        Mixture([Phase(base)], draw="random")  # pyright: ignore[reportArgumentType]
    assert Mixture([Phase(base, 10), Phase(base, 5)]).num_samples == 15
    assert Mixture([Phase(base, 10), Phase(base)]).num_samples is None


def test_a_one_phase_mixture_stands_for_its_histogram_in_a_phase(dataset: Dataset) -> None:
    base = Mixture.base(dataset.manifest)
    switched = Mixture([Phase(base, 10), Phase(counted(dataset, [0]))])  # pyright: ignore[reportArgumentType]
    assert switched.phases[0].histogram.fingerprint == Histogram.base(dataset.manifest).fingerprint
    with pytest.raises(InputError, match="one histogram, got a mixture of 2 phases"):
        Phase(switched, 5)  # pyright: ignore[reportArgumentType]


def test_the_fingerprint_tells_mixtures_apart(dataset: Dataset, tmp_path: Path) -> None:
    base, specialist = Histogram.base(dataset.manifest), counted(dataset, [0, 15])
    mixtures = [
        Mixture([Phase(base)]),
        Mixture([Phase(specialist)]),
        Mixture([Phase(base, 10), Phase(specialist)]),
        Mixture([Phase(base, 11), Phase(specialist)]),
        Mixture([Phase(base)], draw="multinomial"),
    ]
    assert len({mixture.fingerprint for mixture in mixtures}) == len(mixtures)
    specialist.save(tmp_path / "h.parquet")
    assert Mixture([Phase(Histogram.load(tmp_path / "h.parquet"))]).fingerprint == mixtures[1].fingerprint
    assert np.isclose(mixtures[1].leaf_proportions(dataset)[0].sum(), 1)
