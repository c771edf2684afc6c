"""`select where` and `select tiers`: the windows that they select, what they write, what they refuse."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import yaml

from crisp_stream import Component, Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.cli.main import main
from crisp_stream.cli.select.select import add_select
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.inspection.node_scores import node_scores
from crisp_stream.selection.tiers import cut_tiers, make_tiers
from crisp_stream.selection.where import select_where
from tests.support.synthetic import write_synthetic_dataset

LEAVES = {0: 100, 1: 1, 2: 7, 5: 50, 6: 42, 15: 200}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("tiers") / "data", LEAVES)


@pytest.fixture(scope="module")
def quality(dataset: Dataset) -> WindowScores:
    """Higher in some leaves than in others, and different inside each."""
    rng = np.random.default_rng(0)
    leaves = dataset.leaf_of_windows(np.arange(400))
    return WindowScores(
        name="quality",
        dataset_fingerprint=dataset.manifest.fingerprint,
        scores=(leaves + rng.normal(size=400)).astype(np.float32),
        provenance={"method": "test", "example_hashes": {"number": 3}},
    )


@pytest.fixture
def saved(quality: WindowScores, tmp_path: Path) -> Path:
    path = tmp_path / "quality.scores.parquet"
    quality.save(path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_windows_where_a_condition_holds_are_selected(
    dataset: Dataset, quality: WindowScores, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    length = np.arange(400, dtype=np.float32)
    WindowScores(name="length", dataset_fingerprint=dataset.manifest.fingerprint, scores=length).save(
        tmp_path / "b.scores.parquet"
    )
    out = tmp_path / "top.windows.parquet"
    condition = "quality >= q0.8 and length >= 210"
    asked = ["select", "where", condition, "--scores", saved, tmp_path / "b.scores.parquet", "--data", dataset.root]
    assert main([str(word) for word in [*asked, "--out", out]]) == 0
    threshold = np.sort(quality.scores)[319]
    expected = np.flatnonzero((quality.scores >= threshold) & (length >= 210))
    selection = WindowSelection.load(out)
    assert selection.windows.tolist() == expected.tolist()
    assert selection.provenance == {
        "method": "where",
        "condition": condition,
        "thresholds": {"q0.8 of quality": pytest.approx(float(threshold))},
        "scores": {"quality": {"name": "quality", "method": "test"}, "length": {"name": "length"}},
    }
    shown = capsys.readouterr().out
    assert f"{len(expected)} of 400 windows" in shown
    assert "q0.8 of quality: " in shown
    assert "of selection" in shown


def test_a_condition_that_holds_for_no_window_is_refused(dataset: Dataset, quality: WindowScores) -> None:
    with pytest.raises(InputError, match=r"'quality > 99': must hold for a window .* \(quality is .* to 1.*Ask"):
        select_where("quality > 99", {"quality": quality}, dataset)
    with pytest.raises(InputError, match="at least one score file is needed"):
        select_where("quality > 99", {}, dataset)


def test_scores_of_another_dataset_are_refused(
    quality: WindowScores, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_synthetic_dataset(tmp_path / "other", {0: 400})
    asked = ["--scores", saved, "--data", other.root, "--out"]
    message = "quality.scores.parquet was made for dataset"
    assert message in refused(capsys, "select", "where", "quality > 1", *asked, tmp_path / "a.windows.parquet")
    assert message in refused(capsys, "select", "tiers", "--tiers", 0.5, 0.5, *asked, tmp_path / "tiers")
    assert "must end in .windows.parquet" in refused(capsys, "select", "where", "quality > 1", *asked, "a.parquet")
    assert not (tmp_path / "tiers").exists()


@pytest.mark.parametrize("level", [1, 2])
def test_tiers_are_cut_by_score_inside_every_cluster(dataset: Dataset, quality: WindowScores, level: int) -> None:
    sizes = (0.5, 0.3, 0.2)
    tiers = cut_tiers(quality.scores, dataset, sizes=sizes, level=level)
    nodes = dataset.leaf_of_windows(np.arange(400)) // 4 ** (2 - level)
    for node in np.unique(nodes):
        own = np.flatnonzero(nodes == node)
        counts = np.bincount(tiers[own], minlength=3)
        assert np.abs(counts - np.array(sizes) * len(own)).max() <= 1 + 1e-6
        by_score = own[np.argsort(-quality.scores[own], kind="stable")]
        assert tiers[by_score].tolist() == sorted(tiers[own].tolist())  # no window stands below a worse one


def test_sizes_of_tiers_are_right_over_many_small_clusters(tmp_path: Path) -> None:
    leaves = {leaf: 1 + leaf % 2 for leaf in range(1024)}
    small = write_synthetic_dataset(tmp_path / "small", leaves, arity=4, depth=5, window_tokens=4)
    scores = np.random.default_rng(0).normal(size=small.manifest.num_windows).astype(np.float32)
    tiers = cut_tiers(scores, small, sizes=(0.25, 0.75), level=5)
    assert (tiers == 0).mean() == pytest.approx(0.25, abs=0.02)


def test_the_command_writes_selections_and_components(
    dataset: Dataset, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histogram, out = tmp_path / "task.parquet", tmp_path / "tiers"
    Histogram.from_leaves([0, 0, 15], dataset.tree, 2).save(histogram)
    asked = ["select", "tiers", "--scores", saved, "--data", dataset.root, "--tiers", 0.5, 0.3, 0.2]
    assert main([str(word) for word in [*asked, "--histogram", histogram, "--out", out]]) == 0
    shown = capsys.readouterr().out
    assert "written to" in shown
    assert "of samples" in shown
    recipe = yaml.safe_load((out / "components.yaml").read_text())
    components = recipe["mixture"]["phases"][0]["components"]
    assert [component["share"] for component in components] == [0.5, 0.3, 0.2]
    selections = [WindowSelection.load(component["windows"]) for component in components]
    together = np.concatenate([selection.windows for selection in selections])
    assert sorted(together.tolist()) == list(range(400))
    assert [selection.provenance["tier"] for selection in selections] == [1, 2, 3]
    # every topic has its share by the histogram, and inside it the tiers have theirs
    mixture = Mixture(
        [
            Phase(
                [
                    Component(Histogram.load(one["histogram"]), share=one["share"], windows=windows)
                    for one, windows in zip(components, selections, strict=True)
                ],
                samples=3000,
            )
        ]
    )
    served = MixtureDataset(dataset.root, mixture, batch_size=50, seed=1)
    windows = np.concatenate([batch["window"].numpy() for batch in served])
    assert len(windows) == 3000
    leaves = dataset.leaf_of_windows(windows)
    assert np.mean(leaves == 0) == pytest.approx(2 / 3, abs=0.01)
    for selection, share in zip(selections, (0.5, 0.3, 0.2), strict=True):
        assert np.isin(windows[leaves == 15], selection.windows).mean() == pytest.approx(share, abs=0.01)
    assert main([str(word) for word in [*asked, "--within", 1, "--sizes", 0.2, 0.3, 0.5, "--out", out]]) == 0
    recipe = yaml.safe_load((out / "components.yaml").read_text())
    assert {one["histogram"] for one in recipe["mixture"]["phases"][0]["components"]} == {"base"}
    assert WindowSelection.load(out / "tier-1.windows.parquet").share == pytest.approx(0.2, abs=0.01)


def test_a_histogram_on_clusters_without_a_tier_is_warned_of(dataset: Dataset, quality: WindowScores) -> None:
    from crisp_stream.selection.tiers import tiers_table

    histogram = Histogram.from_leaves([1, 15, 15, 15], dataset.tree, 2)
    tiers = make_tiers(quality, dataset, shares=(0.5, 0.5), histogram=histogram)
    assert sorted(tier.missing for tier in tiers) == [0, 0.25]  # leaf 1 has one window
    [note] = tiers_table(tiers, quality).notes
    assert "25.0% of the histogram is on clusters without a window of tier" in note
    coarse = make_tiers(quality, dataset, shares=(0.5, 0.5), histogram=Histogram.from_leaves([1], dataset.tree, 1))
    assert [tier.missing for tier in coarse] == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--tiers", "0.5", "0.4"],
            r"--tiers: must be numbers above 0 that sum to 1, got 0\.5 0\.4, .* 0\.9",
        ),
        (["--tiers", "1"], "--tiers: must be 2 to 64 numbers"),
        (["--tiers", "1.5", "-0.5"], "--tiers: must be numbers above 0"),
        (["--tiers", "nan", "0.5"], "--tiers: must be numbers above 0"),
        (["--tiers", "0.5", "0.5", "--sizes", "0.2", "0.2", "0.6"], "--sizes: must be one for each of 2 tiers, got 3"),
        (["--tiers", "0.5", "0.5", "--sizes", "0.2", "0.2"], "--sizes: must be numbers above 0 that sum to 1"),
        (["--tiers", "0.5", "0.5", "--sizes", "0.000001", "0.999999"], "tier 1 of size 1e-06: must have a window"),
        (["--tiers", "0.5", "0.5", "--within", "top"], "--within: must be leaf or a level such as 1, got top"),
        (["--tiers", "0.5", "0.5", "--within", "0"], "--within: must be a level of 1 to 2, or leaf, got 0"),
        (["--tiers", "0.5", "0.5", "--within", "3"], "level 3 is not in the tree"),
    ],
)
def test_tiers_that_cannot_be_are_refused(
    dataset: Dataset,
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    import re

    out = tmp_path / "tiers"
    error = refused(capsys, "select", "tiers", "--scores", saved, "--data", dataset.root, "--out", out, *options)
    assert re.search(message, error)
    assert not out.exists()


def test_a_histogram_of_another_tree_is_refused(
    dataset: Dataset, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_synthetic_dataset(tmp_path / "other", {0: 9}, depth=3)
    Histogram.from_leaves([0], other.tree, 3).save(tmp_path / "h.parquet")
    asked = ["--scores", saved, "--data", dataset.root, "--out", tmp_path / "t", "--tiers", 0.5, 0.5]
    assert "was counted with tree" in refused(capsys, "select", "tiers", *asked, "--histogram", tmp_path / "h.parquet")


def test_means_of_clusters_are_those_of_their_windows(dataset: Dataset, quality: WindowScores) -> None:
    leaves = dataset.leaf_of_windows(np.arange(400))
    for level in (1, 2):
        found, nodes = node_scores(quality, dataset, level), leaves // 4 ** (2 - level)
        assert found.nodes.tolist() == np.unique(nodes).tolist()
        assert found.means == pytest.approx([quality.scores[nodes == node].mean() for node in found.nodes], abs=1e-5)
        for row, node in enumerate(found.nodes):
            assert np.arange(400)[found.windows_of(row)].tolist() == np.flatnonzero(nodes == node).tolist()


def test_every_rival_can_write_its_scores() -> None:
    parser = argparse.ArgumentParser()
    add_select(parser.add_subparsers())
    common = ["task", "--data", "d", "--out", "o", "--scores", "s"]
    for method, more in (("classifier", ["--embeddings", "e"]), ("nearest", ["--embeddings", "e"])):
        assert parser.parse_args(["select", method, *common, *more]).scores == "s"
    assert parser.parse_args(["select", "dsir", *common, "--share", "0.1"]).scores == "s"
    assert parser.parse_args(["select", "dsir", *common[:-2], "--share", "0.1", "--weights", "w"]).scores == "w"
