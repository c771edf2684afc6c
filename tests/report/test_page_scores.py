"""Scores of windows on the report page's map, and in `inspect`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.report.map import levels_of, map_payload
from crisp_stream.report.page import page_html, write_page
from crisp_stream.report.scores import score_layers
from tests.report.test_page import tree_of, unpacked
from tests.support.browser import chromium, visit
from tests.support.synthetic import write_synthetic_dataset
from tests.support.topics import histogram_of, topic_dataset

MEANS = {0: 10.0, 1: 20.0, 5: 30.0, 15: 1234.5}
"""Of the leaves, which have 40, 30, 300 and 20 windows."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return topic_dataset(tmp_path_factory.mktemp("page") / "corpus")


@pytest.fixture(scope="module")
def scores(dataset: Dataset) -> dict[str, WindowScores]:
    """One that differs between leaves, with a spread inside each, and one that is the same everywhere."""
    leaves = dataset.leaf_of_windows(np.arange(390))
    offsets = np.tile([-1.0, 1.0], 195)
    own = np.array([MEANS[leaf] for leaf in leaves.tolist()]) + offsets
    fingerprint = dataset.manifest.fingerprint
    return {
        "quality": WindowScores(name="quality", dataset_fingerprint=fingerprint, scores=own.astype(np.float32)),
        "flat": WindowScores(name="flat", dataset_fingerprint=fingerprint, scores=np.full(390, 0.25, np.float32)),
    }


def test_the_packed_data_has_the_mean_of_every_cluster(dataset: Dataset, scores: dict[str, WindowScores]) -> None:
    layers = score_layers(scores, dataset, levels_of(dataset))
    quality, flat = layers
    middle = (40 * 10 + 30 * 20 + 300 * 30 + 20 * 1234.5) / 390
    assert quality.means == pytest.approx(list(MEANS.values()))
    assert quality.middle == pytest.approx(middle)
    assert (quality.low, quality.high) == pytest.approx((10, 1234.5))
    assert (flat.low, flat.middle, flat.high) == (0.25, 0.25, 0.25)
    payload = map_payload(tree_of(dataset), [], [], scores=[(layer.header, layer.means) for layer in layers])
    header, arrays = unpacked(payload)
    assert [score["name"] for score in header["scores"]] == ["quality", "flat"]
    assert arrays["score_0"] == pytest.approx(list(MEANS.values()))


def test_scores_of_another_dataset_are_refused(scores: dict[str, WindowScores], tmp_path: Path) -> None:
    other = write_synthetic_dataset(tmp_path / "other", {0: 9, 5: 381})
    with pytest.raises(InputError, match="the score quality was made for dataset"):
        page_html(other, {}, scores=scores)


def test_the_map_is_coloured_by_a_score(
    browser: Browser, dataset: Dataset, scores: dict[str, WindowScores], tmp_path: Path
) -> None:
    html = page_html(dataset, {"music": histogram_of(dataset, {5: 95, 15: 5})}, scores=scores)
    with visit(browser, write_page(tmp_path / "page.html", html)) as seen:
        assert seen.page.locator("#task option").all_inner_texts() == ["music", "quality (score)", "flat (score)"]
        assert seen.text("#scale").split("\n")[0] == "≤1/32"
        seen.page.select_option("#task", label="quality (score)")
        seen.settle()
        middle = (40 * 10 + 30 * 20 + 300 * 30 + 20 * 1234.5) / 390
        assert seen.text("#scale").split() == ["≤10", f"{middle:.4g}", "≥1,234"]
        label = seen.page.locator("#scale").get_attribute("aria-label")
        assert label == "Colours: mean of quality from at most 10 to at least 1,234"
        assert seen.text("#heaviest-cluster") == "Go to its highest cluster"
        seen.page.locator("#heaviest-cluster").click()
        seen.settle()
        assert seen.text("#panel h3").startswith("3/3")
        rows = seen.page.locator("#panel table.scores tr").all_inner_texts()
        assert [row.split("\t") for row in rows[1:]] == [
            ["quality", "1,234", f"{middle:.4g}"],
            ["flat", "0.25", "0.25"],
        ]
        seen.page.locator("#breadcrumb button").first.click()
        seen.settle()
        seen.page.locator("#search").fill("0")
        seen.page.locator("#hits button").first.click()
        seen.settle()
        assert seen.text("#panel h3").startswith("0\nlevel 1")
        assert seen.text("#panel table.scores tr.chosen").split("\t")[1] == f"{(40 * 10 + 30 * 20) / 70:.4g}"
        assert "mean 14.29 of quality" in seen.text("#announced")
        assert seen.console == []


def test_without_histograms_scores_alone_colour_the_map(
    browser: Browser, dataset: Dataset, scores: dict[str, WindowScores], tmp_path: Path
) -> None:
    for name, one in scores.items():
        one.save(tmp_path / f"{name}.scores.parquet")
    files = [str(tmp_path / f"{name}.scores.parquet") for name in scores]
    assert main(["report", dataset.root, *files, "--out", str(tmp_path / "page.html")]) == 0
    assert "coloured by a score, blue where" in (tmp_path / "page.html").read_text()
    with visit(browser, tmp_path / "page.html") as seen:
        assert seen.text("#panel h3").startswith("3/3")  # the cluster with the highest mean
        assert seen.page.locator("#panel table.tasks").count() == 0
        assert seen.console == []


def test_inspect_shows_scores_of_the_dataset_of_clusters_and_of_windows(
    dataset: Dataset, scores: dict[str, WindowScores], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "quality.scores.parquet"
    scores["quality"].save(path)
    asked = ["inspect", dataset.root, "--scores", str(path), f"again={path}"]
    assert main([*asked, "--level", "2"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"quality +390 +88\.95 +9 ", shown)
    assert re.search(r"cluster +share +windows +quality +again +terms", shown)
    assert re.search(r"^ +15 +5\.13% +20 +1,234 +1,234 ", shown, re.M)
    assert main([*asked, "--cluster", "0/1", "--n", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"quality, here +30 +20 +19 +19 +19 +19 +21 +21 +21$", shown, re.M)
    assert re.search(r"quality, all +390 +88\.95 ", shown)
    assert main([*asked, "--window", "389"]) == 0
    assert re.search(r"quality +1,236, above 97\.4% of all windows", capsys.readouterr().out)
    histogram_of(dataset, {0: 1}).save(tmp_path / "h.parquet")
    assert main(["inspect", str(tmp_path / "h.parquet"), "--scores", str(path)]) == 2
    assert "--scores: must be given with a dataset, got the histogram" in capsys.readouterr().err
