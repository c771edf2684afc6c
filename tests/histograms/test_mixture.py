"""Mixtures: phases, missing mass, identity."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream import Histogram, Mixture, Phase
from crisp_stream.config.load import load_recipe
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.component import drawn_within_repeats, water_fill, windows_per_node
from crisp_stream.training.mixture import build_mixture
from tests.support.synthetic import synthetic_tree, write_synthetic_dataset


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
    switched = Mixture([Phase(base, 10), Phase(counted(dataset, [0]))])
    assert switched.phases[0].histogram.fingerprint == Histogram.base(dataset.manifest).fingerprint
    with pytest.raises(InputError, match="one histogram, got a mixture of 2 phases"):
        Phase(switched, 5)


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


PINNED = "f8b4106fc71fad0684e9c92354b75aef0038750f9d05346cc878014a45344896"


def plain_histogram(nodes: list[int], proportions: list[float]) -> Histogram:
    return Histogram(
        level=2,
        nodes=np.array(nodes, np.uint32),
        proportions=np.array(proportions),
        arity=4,
        depth=2,
        tree_fingerprint="0" * 64,
    )


def test_fingerprints_of_mixtures_without_limits_are_those_of_version_0_1() -> None:
    first, second = plain_histogram([0, 3], [0.5, 0.5]), plain_histogram([1, 2, 5], [0.25, 0.25, 0.5])
    assert Mixture([Phase(first, 1000), Phase(second)]).fingerprint == PINNED
    limited = [
        Mixture([Phase(first, 1000, max_repeats=4), Phase(second)]),
        Mixture([Phase(first, 1000, max_repeats=4.5), Phase(second)]),
        Mixture([Phase(first, 1000, max_repeats=4, on_excess="cap"), Phase(second)]),
    ]
    assert len({PINNED, *(mixture.fingerprint for mixture in limited)}) == 4


def test_windows_are_counted_per_node_of_any_level(dataset: Dataset) -> None:
    assert windows_per_node(Histogram.base(dataset.manifest), dataset).tolist() == [200]
    assert windows_per_node(counted(dataset, [0, 5, 9, 15], level=1), dataset).tolist() == [150, 10, 0, 40]
    assert windows_per_node(counted(dataset, [0, 3, 4, 15]), dataset).tolist() == [100, 50, 0, 40]
    assert windows_per_node(counted(dataset, [0, 3, 5, 15]), dataset).tolist() == [100, 50, 10, 40]


def test_exceeding_max_repeats_is_an_error_that_names_clusters_and_numbers(dataset: Dataset) -> None:
    histogram = counted(dataset, [0, 3, 5, 5, 15])
    assert Mixture([Phase(histogram, 100, max_repeats=4)]).leaf_proportions(dataset)[0].tolist() == [0.2, 0.2, 0.4, 0.2]
    with pytest.raises(
        InputError,
        match=r"phase 1: 1 of 4 clusters of level 2 would be drawn more than max_repeats 4 times: "
        r"cluster 5 \(10 windows, 44 draws, 4\.4 repeats\)\. Use a coarser level, fewer samples, .*on_excess=\"cap\"",
    ):
        Mixture([Phase(histogram, 110, max_repeats=4)]).leaf_proportions(dataset)
    with pytest.raises(InputError, match=r"phase 2: 4 of 4 clusters .*, …"):
        Mixture([Phase(histogram, 10), Phase(histogram, 10_000, max_repeats=4)]).leaf_proportions(dataset)


def test_capped_mass_goes_to_the_others_in_proportion_and_is_reported_once(
    dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = Mixture([Phase(counted(dataset, [0, 3, 5, 5, 15]), 200, max_repeats=3, on_excess="cap")])
    with caplog.at_level(logging.WARNING):
        proportions = mixture.leaf_proportions(dataset)[0]
        mixture.leaf_proportions(dataset)
    assert proportions == pytest.approx([0.85 / 3, 0.85 / 3, 0.15, 0.85 / 3])
    assert [record.getMessage() for record in caplog.records] == [
        "phase 1: 1 of 4 clusters of level 2 would be drawn more than max_repeats 3 times: cluster 5 (10 windows, 80 "
        "draws, 8 repeats). They are capped, and the 25.00% of the samples that they leave goes to the others in "
        "proportion."
    ]


def test_what_is_redistributed_can_push_others_to_the_limit(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    # 168, 120 and 112 of 400 samples are asked, 300, 30 and 120 allowed; what leaf 5 leaves pushes leaf 15 over.
    phase = Phase(counted(dataset, [0] * 42 + [5] * 30 + [15] * 28), 400, max_repeats=3, on_excess="cap")
    with caplog.at_level(logging.WARNING):
        assert Mixture([phase]).leaf_proportions(dataset)[0] == pytest.approx([250 / 400, 0, 30 / 400, 120 / 400])
    [said] = [record.getMessage() for record in caplog.records]
    assert "phase 1: 1 of 3 clusters of level 2 would be drawn more than max_repeats 3 times: cluster 5 " in said
    assert said.endswith(
        "They are capped, and the 22.50% of the samples that they leave goes to the others in proportion. Of these, 1 "
        "reach the limit by that, so 2 are at it."
    )
    with pytest.raises(
        InputError, match=r"others cannot take the rest: 460 samples of 150 windows repeat each 3\.07 times"
    ):
        Mixture([Phase(phase.histogram, 460, max_repeats=3, on_excess="cap")]).leaf_proportions(dataset)
    full = Mixture([Phase(phase.histogram, 450, max_repeats=3, on_excess="cap")]).leaf_proportions(dataset)[0]
    assert full * 450 / dataset.windows_per_leaf == pytest.approx([3, 0, 3, 3])


def test_limits_hold_per_phase_and_spread_over_the_leaves_of_a_node(dataset: Dataset) -> None:
    coarse = counted(dataset, [0, 15], level=1)
    mixture = Mixture(
        [Phase(coarse, 160, max_repeats=1, on_excess="cap"), Phase(coarse, 80, max_repeats=1), Phase(coarse)]
    )
    first, second, third = mixture.leaf_proportions(dataset)
    assert first == pytest.approx([80 / 160, 40 / 160, 0, 40 / 160])
    assert second.tolist() == third.tolist() == pytest.approx([1 / 3, 1 / 6, 0, 0.5])


def test_mass_without_windows_is_redistributed_before_the_limit_is_checked(dataset: Dataset) -> None:
    histogram = counted(dataset, [0] * 72 + [15] * 24 + [7] * 4)
    phase = Phase(histogram, 270, max_repeats=2, on_excess="cap")
    assert Mixture([phase]).leaf_proportions(dataset)[0] == pytest.approx([200 / 270, 0, 0, 70 / 270])
    with pytest.raises(InputError, match=r"cluster 0 .*, 202 draws, 2\.02 repeats"):
        Mixture([Phase(histogram, 270, max_repeats=2)]).leaf_proportions(dataset)
    with pytest.raises(InputError, match=r"100\.0% of the histogram stands on 1 clusters"):
        Mixture([Phase(counted(dataset, [7]), 10, max_repeats=1)]).leaf_proportions(dataset)


def test_a_recipe_limits_its_last_phase_by_the_length_of_the_run(dataset: Dataset, tmp_path: Path) -> None:
    counted(dataset, [0, 5]).save(tmp_path / "task.parquet")  # leaf 5 has 10 windows
    recipe: dict[str, Any] = {
        "run_name": "limited",
        "max_duration": "10ba",
        "global_train_batch_size": 8,
        "data": {"remote": dataset.root},
        "mixture": {
            "phases": [{"histogram": "base", "until": "4ba"}, {"histogram": str(tmp_path / "task.parquet")}],
        },
        "model": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "optimizer": {"lr": 0.001},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def mixture_of(*overrides: str) -> Mixture:
        return build_mixture(load_recipe(tmp_path / "recipe.yaml", overrides), dataset)

    unlimited = mixture_of()
    assert [(phase.samples, phase.max_repeats) for phase in unlimited.phases] == [(32, None), (None, None)]
    assert mixture_of("mixture.phases.1.max_repeats=2.4").fingerprint == unlimited.fingerprint  # 24 draws: may go on
    with pytest.raises(
        InputError, match=r"phase 2: 1 of 2 clusters .* cluster 5 \(10 windows, 24 draws, 2\.4 repeats\)"
    ):
        mixture_of("mixture.phases.1.max_repeats=2")
    capped = mixture_of("mixture.phases.1.max_repeats=2", "mixture.phases.1.on_excess=cap")
    assert capped.num_samples == 80
    assert capped.leaf_proportions(dataset)[1] == pytest.approx([28 / 48, 0, 20 / 48, 0])
    with pytest.raises(InputError, match=r"phase 1: 1 of 1 clusters of level 0 .*0\.16 repeats"):
        mixture_of("mixture.phases.0.max_repeats=0.1").leaf_proportions(dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_repeats": 4}, "needs the number of samples of its phase, got an open-ended one. Give samples="),
        ({"samples": 10, "max_repeats": 0}, "max_repeats must be a number above 0, got 0"),
        ({"samples": 10, "max_repeats": float("nan")}, "max_repeats must be a number above 0, got nan"),
        ({"samples": 10, "on_excess": "cap"}, "on_excess='cap' needs max_repeats"),
        ({"samples": 10, "max_repeats": 1, "on_excess": "drop"}, "on_excess must be error or cap, got 'drop'"),
    ],
)
def test_limits_that_mean_nothing_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Phase(plain_histogram([0], [1.0]), **arguments)  # pyright: ignore[reportArgumentType]


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 500)), min_size=1, max_size=30),
    st.floats(0.1, 50),
    st.floats(0.01, 1),
)
def test_filling_sums_to_one_exceeds_no_limit_and_keeps_the_ratios_of_the_rest(
    clusters: list[tuple[int, int]], max_repeats: float, fullness: float
) -> None:
    weights, windows = np.array(clusters, np.float64).T
    asked = weights / weights.sum()
    samples = max_repeats * windows.sum() * fullness
    limits = windows * max_repeats / samples
    filled, capped = water_fill(asked, limits)
    assert filled.sum() == pytest.approx(1)
    assert (filled <= limits * (1 + 1e-9)).all()
    np.testing.assert_allclose(filled[capped], limits[capped], rtol=1e-9)
    assert (filled >= asked * (1 - 1e-9))[~capped].all()
    if (~capped).any():
        ratios = filled[~capped] / asked[~capped]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
        assert (limits[capped] <= asked[capped] * ratios[0] * (1 + 1e-9)).all()  # none is capped without need
        moved = (asked - filled)[capped].sum()
        assert moved == pytest.approx((filled - asked)[~capped].sum(), abs=1e-12)


def _within_repeats(phase: Phase, dataset: Dataset) -> Histogram:
    return drawn_within_repeats(phase.components[0], dataset, phase.samples, what="a phase").histogram


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(1, 40)), min_size=1, max_size=12), st.integers(1, 700))
def test_no_window_is_drawn_more_often_than_its_share_allows(
    dataset: Dataset, counts: list[tuple[int, int]], samples: int
) -> None:
    leaves = [leaf for leaf, count in counts for _ in range(count)] + [0]
    phase = Phase(counted(dataset, leaves), samples, max_repeats=3.5, on_excess="cap")
    windows = windows_per_node(phase.histogram, dataset)
    present = windows > 0
    if samples > 3.5 * windows.sum():
        with pytest.raises(InputError, match="cannot take the rest"):
            _within_repeats(phase, dataset)
        return
    capped = _within_repeats(phase, dataset)
    share = capped.proportions[present].sum()
    assert share == pytest.approx(phase.histogram.proportions[np.isin(phase.histogram.nodes, dataset.leaves)].sum())
    assert (capped.proportions[present] / share * samples <= 3.5 * windows[present] * (1 + 1e-8)).all()
