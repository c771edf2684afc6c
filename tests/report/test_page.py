"""The report page without a browser: what it computes, what it says, what it refuses."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.report import add_report
from crisp_stream.errors import FormatError, InputError
from crisp_stream.forecast.result import Advice, ClusterRepeats, Forecast, OccurrenceBin, Reads, SourceForecast
from crisp_stream.format.dataset import Dataset
from crisp_stream.inspection.terms import node_terms
from crisp_stream.report.evaluation import Evaluation
from crisp_stream.report.forecast import forecast_each
from crisp_stream.report.map import TaskShares, Tree, levels_of, map_payload, shares_at, task_shares, visible
from crisp_stream.report.page import page_html, write_page
from crisp_stream.report.runs import read_run, served_shares
from crisp_stream.report.tasks import BASE_SHARE, transfer
from crisp_stream.table import format_bytes
from tests.support.made_results import text_results
from tests.support.small_runs import SmallRun, copy_until, small_run
from tests.support.topics import histogram_of, topic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return topic_dataset(tmp_path_factory.mktemp("page") / "corpus")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def tree_of(dataset: Dataset) -> Tree:
    levels = levels_of(dataset)
    terms = [node_terms(dataset, level.level) for level in levels]
    return Tree(arity=dataset.manifest.arity, levels=levels, terms=terms)


def unpacked(payload: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content = zlib.decompress(base64.b64decode(payload))
    length = int.from_bytes(content[:4], "little")
    header, at, arrays = json.loads(content[4 : 4 + length]), -(-(4 + length) // 8) * 8, {}
    for name, dtype, count in header["arrays"]:
        arrays[name] = np.frombuffer(content, f"<{dtype}", count, at)
        at += -(-arrays[name].nbytes // 8) * 8
    assert at == len(content)
    return header, arrays


def test_levels_of_clusters_of_style_are_said_beside_the_map(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Topical purity" not in page_html(dataset, {})
    notes = {2: "Topical purity 0.70"}
    monkeypatch.setattr("crisp_stream.report.page.purity_note", lambda _, level: notes.get(level))
    assert page_html(dataset, {}).count('<p class="note">Level 2: Topical purity 0.70</p>') == 1


def test_the_levels_of_the_map_hold_all_windows(dataset: Dataset) -> None:
    levels = levels_of(dataset)
    assert [level.nodes.tolist() for level in levels] == [[0, 1, 3], [0, 1, 5, 15]]
    assert [level.windows.tolist() for level in levels] == [[70, 300, 20], [40, 30, 300, 20]]


def test_a_tree_too_large_for_the_map_ends_at_a_coarser_level(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crisp_stream.report.map.MAX_MAP_NODES", 3)
    assert [level.level for level in levels_of(dataset)] == [1]
    html = page_html(dataset, {"task": histogram_of(dataset, {0: 1, 5: 3})})
    assert "The map ends at level 1; the tree has 2." in html
    assert "0/0" not in re.sub(r'id="payload">[^<]*', "", html)


def test_shares_are_sums_above_a_histograms_level_and_spread_by_size_below(dataset: Dataset) -> None:
    levels = levels_of(dataset)
    fine = task_shares("fine", histogram_of(dataset, {0: 1, 1: 1, 5: 2}), levels)
    assert shares_at(fine, 1, levels, 4).tolist() == [0.5, 0.5, 0]
    coarse = task_shares("coarse", histogram_of(dataset, {0: 7, 3: 3}, level=1), levels)
    assert np.allclose(shares_at(coarse, 2, levels, 4), [0.7 * 40 / 70, 0.7 * 30 / 70, 0, 0.3])


def test_mass_on_clusters_without_windows_is_counted_as_missing(dataset: Dataset) -> None:
    task = task_shares("task", histogram_of(dataset, {0: 3, 9: 1}), levels_of(dataset))
    assert task.missing == 0.25
    assert "25.00%" in page_html(dataset, {"task": histogram_of(dataset, {0: 3, 9: 1})})


def test_the_packed_data_gives_back_sizes_and_shares(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of(dataset)
    shares = np.array([0.75, 0.0, 1e-9, 0.25 - 1e-9])
    task = TaskShares(name="task", level=2, shares=shares, missing=0.0)
    header, arrays = unpacked(map_payload(tree, [task], ["colour0"]))
    assert np.cumsum(arrays["nodes"]).tolist() == [0, 1, 5, 15]
    assert arrays["windows"].tolist() == [40, 30, 300, 20]
    np.testing.assert_array_equal(arrays["task_0"], shares)  # to the last bit, so that its digits are the commands'
    monkeypatch.setattr("crisp_stream.report.map.MAX_EXACT_SHARES", 3)
    _, arrays = unpacked(map_payload(tree, [task], ["colour0"]))
    np.testing.assert_array_equal(arrays["task_0"], shares.astype(np.float32))
    assert header["tasks"] == [{"name": "task", "level": 2, "colour": "colour0"}]
    assert "violin" in header["texts"][1]["terms"][2]


def test_windows_beyond_32_bits_are_kept(dataset: Dataset) -> None:
    tree = tree_of(dataset)
    huge = [dataclasses.replace(level, windows=level.windows << 40) for level in tree.levels]
    _, arrays = unpacked(map_payload(dataclasses.replace(tree, levels=huge), [], []))
    assert arrays["windows"].tolist() == [40 << 40, 30 << 40, 300 << 40, 20 << 40]


def test_transfer_is_overlap_and_gain_in_likelihood(dataset: Dataset) -> None:
    tree = tree_of(dataset)
    tasks = [
        task_shares("a", histogram_of(dataset, {0: 1, 5: 1}), tree.levels),
        task_shares("b", histogram_of(dataset, {5: 3, 15: 1}), tree.levels),
    ]
    found = transfer(tasks, tree)
    assert found.level == 2
    assert np.allclose(found.overlap, [[1, 0.5], [0.5, 1]])
    base, lam = np.array([40, 30, 300, 20]) / 390, BASE_SHARE
    a, b = np.array([0.5, 0, 0.5, 0]), np.array([0, 0, 0.75, 0.25])
    assert np.isclose(found.gain[0, 1], (b * np.log((1 - lam) * a / base + lam)).sum())
    assert np.isclose(found.gain[2, 0], (a * np.log((1 - lam) * (a + b) / 2 / base + lam)).sum())
    assert found.gain[0, 0] > found.gain[1, 0]


def test_the_corpus_itself_gains_nothing(dataset: Dataset) -> None:
    tree = tree_of(dataset)
    base = task_shares("base", histogram_of(dataset, {0: 40, 1: 30, 5: 300, 15: 20}), tree.levels)
    task = task_shares("task", histogram_of(dataset, {0: 1}), tree.levels)
    assert np.allclose(transfer([base, task], tree).gain[0], 0, atol=1e-12)


def test_histograms_of_different_levels_are_compared_at_the_coarser(dataset: Dataset) -> None:
    tree = tree_of(dataset)
    fine = task_shares("fine", histogram_of(dataset, {0: 1, 5: 1}), tree.levels)
    coarse = task_shares("coarse", histogram_of(dataset, {0: 1, 1: 1}, level=1), tree.levels)
    found = transfer([fine, coarse], tree)
    assert found.level == 1
    assert np.allclose(found.overlap, 1)


def test_a_histogram_of_another_tree_is_refused(dataset: Dataset) -> None:
    other = dataclasses.replace(histogram_of(dataset, {0: 1}), tree_fingerprint="f" * 64)
    with pytest.raises(InputError, match="other: the histogram was counted with tree ffffffffffff"):
        page_html(dataset, {"other": other})


def test_a_card_says_what_a_task_is_about(dataset: Dataset) -> None:
    html = page_html(dataset, {"medicine": histogram_of(dataset, {0: 60, 1: 39, 5: 1})})
    card = html[html.index('<article class="card') : html.index("</article>")]
    assert "medicine" in card
    assert "100" in card
    assert "3 of 4" in card
    assert card.index("0/0") < card.index("0/1") < card.index("1/1")
    assert re.search(r"<bdi>[^<]*doctor[^<]*</bdi>", card)
    assert "60.00% · w 5.85" in card


def test_the_heaviest_clusters_are_named_with_shares_weights_and_text(dataset: Dataset) -> None:
    html = page_html(dataset, {"medicine": histogram_of(dataset, {0: 60, 1: 39, 5: 1})})
    section = html[html.index('<section aria-labelledby="heaviest"') : html.index('<section aria-labelledby="map"')]
    assert "The 3 heaviest of 4 clusters hold 100% of <bdi>medicine</bdi>, and\n95% of the corpus." in section
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", section)
    assert [re.findall(r'class="path">([\d/]+)<', row) for row in rows] == [["0/0"], ["0/1"], ["1/1"]]
    assert re.findall(r'class="value[ a-z]*">([\d.%]+)<', rows[0]) == ["60.00%", "10.26%"]
    assert ">5.85</td>" in rows[0]
    assert "doctor" in rows[0][rows[0].index("<q>") :]


def test_several_tasks_are_folded_but_the_first(dataset: Dataset) -> None:
    html = page_html(dataset, {"a": histogram_of(dataset, {0: 1}), "b": histogram_of(dataset, {5: 1})})
    assert "Where the tasks live" in html
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["<bdi>b</bdi>"]


def test_bars_that_stand_side_by_side_share_a_scale(dataset: Dataset) -> None:
    """Clusters hold 10.3, 7.7, 76.9 and 5.1 % of the corpus; the largest bar of all cards is `music` in 1/1."""
    tasks = {"medicine": histogram_of(dataset, {0: 60, 1: 39, 5: 1}), "music": histogram_of(dataset, {5: 95, 15: 5})}
    html = page_html(dataset, tasks)
    for key in ("heaviest", "histograms"):
        section = html[html.index(f'<section aria-labelledby="{key}"') :].split("</section>")[0]
        widths = [float(width) for width in re.findall(r'style="width:([\d.]+)%"', section)]
        shares = [60, 1000 / 97.5, 39, 750 / 97.5, 1, 7500 / 97.5, 95, 7500 / 97.5, 5, 500 / 97.5]
        assert widths == pytest.approx([100 * share / 95 for share in shares], abs=0.1)


def test_a_task_has_one_colour_in_all_sections_and_the_corpus_is_grey(dataset: Dataset) -> None:
    tasks = {"medicine": histogram_of(dataset, {0: 60, 1: 39, 5: 1}), "music": histogram_of(dataset, {5: 95, 15: 5})}
    html = page_html(dataset, tasks, forecasts={"music": FORECAST})
    header, _ = unpacked(re.findall(r'id="payload">([^<]*)', html)[0])
    assert [task["colour"] for task in header["tasks"]] == ["colour0", "colour1"]
    assert '<h3><span class="dot colour1" aria-hidden="true"></span><bdi>music</bdi></h3>' in html
    said = r"(?:: (?:half of it in [\d.]+%|at most \d+ times))?"
    colour_of = rf'class="(?:dot|swatch) ([\w ]+)" aria-hidden="true"></span><bdi>music{said}</bdi>'
    assert set(re.findall(colour_of, html)) == {"colour1"}
    assert len(re.findall(colour_of, html)) == 5  # heaviest, card, specificity, forecast chart and table
    corpus = re.findall(r'class="swatch ([\w ]+)" aria-hidden="true"></span><bdi>corpus</bdi>', html)
    assert set(corpus) == {"base"}


def test_base_is_grey_in_both_modes_and_all_other_colours_are_not(dataset: Dataset) -> None:
    html = page_html(dataset, {})
    for name, grey in (("base", True), *((f"colour{number}", False) for number in range(8))):
        shades = re.findall(rf"--{name}: #(\w\w)(\w\w)(\w\w)", html)
        assert len(shades) == 2  # light, which prints, and dark
        for shade in shades:
            channels = [int(channel, 16) for channel in shade]
            assert (max(channels) - min(channels) < 16) == grey


def test_the_sections_come_in_the_order_of_a_readers_questions(run: SmallRun) -> None:
    judged = [text_results("base", [2.0, 3.0], set_name="task"), text_results("small", [1.0, 2.0], set_name="task")]
    found = read_run(str(run.save_folder), run.dataset)
    tasks = {"task": histogram_of(run.dataset, {0: 1, 1: 2}), "other": histogram_of(run.dataset, {2: 1})}
    html = page_html(run.dataset, tasks, [found], forecasts={"task": FORECAST}, evaluation=Evaluation(results=judged))
    assert re.findall(r'<h2 id="(\w+)"', html) == [
        *("verdict", "scores", "heaviest", "runs", "map", "histograms", "specificity", "transfer"),
        *("evaluation", "forecast", "dataset"),
    ]
    assert html.count('class="verdict"') == html.count("small beats base on task") == 1
    headings = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def test_runs_that_were_not_judged_have_no_verdict_and_a_page_without_runs_does_not_speak_of_one(
    run: SmallRun,
) -> None:
    html = page_html(run.dataset, {}, [read_run(str(run.save_folder), run.dataset)])
    assert "Nothing to compare: no model was judged." in html
    assert 'id="verdict"' not in page_html(run.dataset, {})


def test_every_element_is_closed_every_table_headed_and_nothing_is_fetched(run: SmallRun) -> None:
    judged = [text_results("base", [2.0, 3.0]), text_results("small", [1.0, 2.0])]
    found = read_run(str(run.save_folder), run.dataset)
    html = page_html(
        run.dataset,
        {"task": histogram_of(run.dataset, {0: 1})},
        [found],
        forecasts={"task": FORECAST},
        evaluation=Evaluation(results=judged),
    )
    elements = Elements(html)
    assert elements.open == []
    assert elements.tags.count("table") == elements.tags.count("thead")
    assert {"iframe", "img"} & set(elements.tags) == set()
    assert {name for name, _ in elements.attributes} & {"src", "onload", "onclick"} == set()
    assert {value for name, value in elements.attributes if name == "href" and value and value[0] != "#"} == {"data:,"}


class Elements(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed."""

    VOID = ("meta", "link", "line", "polyline", "input", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_policy_allows_the_pages_own_script_and_nothing_else(dataset: Dataset) -> None:
    html = page_html(dataset, {})
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy[1].startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    outside_data = re.sub(r'id="payload">[^<]*', "", html)
    assert re.search(r"https?:|url\(|@import|innerHTML|eval\(", outside_data) is None


def test_characters_that_cannot_be_seen_are_left_out() -> None:
    assert visible("a\u202eb\u0000c\u200bd\ud800e\ufefff\n g") == "abcdef  g"
    assert (
        visible("\u05e9\u05dc\u05d5\u05dd \u4f60\u597d \U0001f600")
        == "\u05e9\u05dc\u05d5\u05dd \u4f60\u597d \U0001f600"
    )


def test_the_page_replaces_an_older_one_and_leaves_no_temporary_file(dataset: Dataset, tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    write_page(target, page_html(dataset, {}))
    assert write_page(target, page_html(dataset, {})) == target
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_a_finished_run_shows_its_curve_and_what_it_was_served(run: SmallRun) -> None:
    found = read_run(str(run.save_folder), run.dataset)
    assert (found.name, found.batches) == ("small", 12)
    assert int(found.served_windows.sum()) == 96
    html = page_html(run.dataset, {}, [found])
    assert "finished" in html
    assert html.count("<polyline") == 4  # every batch and the mean, for wide and for narrow screens
    assert "served to small" in html
    assert f"{found.record['mixture_error']:.5f}" in html


def test_the_last_loss_is_the_one_that_the_command_line_prints(run: SmallRun, tmp_path: Path) -> None:
    found = read_run(str(run.save_folder), run.dataset)
    assert found.last_loss == found.record["final_loss"]
    assert f"small: last loss {found.record['final_loss']:.4f}<" in page_html(run.dataset, {}, [found])
    many = dataclasses.replace(found, losses=[(batch, float(batch)) for batch in range(1, 41)])
    assert many.last_loss == 38.5  # of batches 37 to 40
    html = page_html(run.dataset, {}, [many])
    assert '38.5000 <span class="interval">mean of the last 4 batches</span>' in html
    assert ">fp32</td>" in html


@pytest.mark.parametrize("losses", [[], [(1.0, 5.0)], [(1.0, 5.0), (2.0, 5.0)], [(1.0, 5.0), (2.0, float("nan"))]])
def test_short_constant_and_broken_losses_can_be_shown(run: SmallRun, losses: list[tuple[float, float]]) -> None:
    found = dataclasses.replace(read_run(str(run.save_folder), run.dataset), losses=losses)
    charts = re.findall(r'points="([^"]+)"', page_html(run.dataset, {}, [found]))
    assert len(charts) == 4 * (losses[1:] == [(2.0, 5.0)])
    assert "nan" not in "".join(charts)


def test_a_run_that_is_still_going_is_read_from_its_checkpoint(run: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "going"
    copy_until(run.save_folder, 8, folder)
    found = read_run(str(folder), run.dataset)
    assert found.record == {}
    assert found.batches == 8
    finished = read_run(str(run.save_folder), run.dataset)
    assert [loss for _, loss in found.losses] == [loss for _, loss in finished.losses[:8]]
    assert int(found.served_windows.sum()) == 64
    assert "running: as of its checkpoint at batch 8" in page_html(run.dataset, {}, [found])


def test_what_a_run_was_served_is_a_colour_of_the_map(run: SmallRun) -> None:
    found = read_run(str(run.save_folder), run.dataset)
    levels = levels_of(run.dataset)
    served = served_shares(found, levels, 2, 4)
    assert served is not None
    assert np.isclose(served.shares.sum(), 1)
    assert served.shares[:3].sum() > 0.33  # the last third came from these three clusters
    assert '<option value="0">served to small</option>' in page_html(run.dataset, {}, [found])


def test_a_run_without_checkpoints_still_shows_its_curve(run: SmallRun, tmp_path: Path) -> None:
    for name in ("run.json", "losses.csv"):
        shutil.copy(run.save_folder / name, tmp_path)
    found = read_run(str(tmp_path), run.dataset)
    assert found.batches == 12
    assert served_shares(found, levels_of(run.dataset), 2, 4) is None
    assert "Mixture served" not in page_html(run.dataset, {}, [found])


def test_a_run_on_another_dataset_is_refused(run: SmallRun, dataset: Dataset) -> None:
    with pytest.raises(
        InputError, match=r"the run was trained on dataset .* Name the dataset that the run was trained on"
    ):
        read_run(str(run.save_folder), dataset)


def test_a_folder_without_a_run_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither run\.json nor a checkpoint"):
        read_run(str(tmp_path), dataset)


@pytest.mark.parametrize("content", ["[1]", "{", '{"run_name": "x"}'])
def test_a_damaged_account_of_a_run_is_an_error(run: SmallRun, tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "losses.csv").write_text("batch,loss\n1,x\n" if content.startswith('{"') else "batch,loss\n1,2\n")
    with pytest.raises(FormatError, match=r"damaged|must be an object"):
        read_run(str(tmp_path), run.dataset)


FORECAST = Forecast(
    sources=(
        SourceForecast(
            name="",
            dataset="corpus",
            fingerprint="0",
            samples=1000,
            most_draws=13,
            windows=390,
            windows_reachable=370,
            windows_served=340,
            leaves_reachable=3,
            leaves_hit=3,
            level=2,
            clusters=4,
            clusters_reachable=3,
            clusters_hit=3,
        ),
    ),
    mixture_fingerprint="0",
    seed=0,
    draw="systematic",
    samples=1000,
    tokens=48_000,
    phases=(),
    most_repeated=(ClusterRepeats(source="", level=2, cluster=1, windows=30, draws=390),),
    quantiles_reachable=((0.5, 2), (1.0, 13)),
    quantiles_all=((0.5, 2), (1.0, 13)),
    distribution=(
        OccurrenceBin(least=0, most=0, windows=50),
        OccurrenceBin(least=2, most=2, windows=310),
        OccurrenceBin(least=13, most=13, windows=30),
    ),
    mixture_error=0.0012,
    mixture_error_bound=0.002,
    reads=Reads(
        how="walked",
        blocks=1,
        bytes_exact=True,
        requests_exact=True,
        bytes_per_node=(30_000, 20_000),
        requests_per_node=(7, 8),
        working_set_bytes=100,
        cache_limit=None,
        price_per_1000_requests=0.0004,
    ),
    warnings=(Advice(finding="cluster 1 <repeats> 13 times", remedy="Use a coarser level."),),
)


def test_a_forecast_shows_occurrences_costs_and_warnings(dataset: Dataset) -> None:
    tasks = {"medicine": histogram_of(dataset, {0: 60, 1: 39, 5: 1})}
    html = page_html(dataset, tasks, forecasts={"medicine": FORECAST, "tiny": "too few <windows>."})
    section = html[html.index('<section aria-labelledby="forecast"') :]
    for said in ("1,000 samples", "87.2%", "3 of 3", "2.94", "50.0 kB", ">15<", "0.00120", "13.00 times", "0/1"):
        assert said in section
    assert "medicine</bdi>: <bdi>cluster 1 &lt;repeats&gt; 13 times</bdi></li>" in section
    assert section.index("Use a coarser level.</bdi></p>") < section.index("cluster 1 &lt;repeats&gt;")
    assert "tiny</bdi>: <bdi>too few &lt;windows&gt;." in section
    assert "medicine: at most 13 times" in section


def test_curves_of_the_page_stay_inside_their_charts(dataset: Dataset) -> None:
    tasks = {"a": histogram_of(dataset, {0: 60, 1: 39, 5: 1}), "b": histogram_of(dataset, {1: 1}, level=1)}
    html = page_html(dataset, tasks, forecasts={"a": FORECAST})
    charts = re.findall(r'viewBox="0 0 (\d+) (\d+)"(.*?)</svg>', html)
    assert len(charts) == 4
    for width, height, chart in charts:
        for line in re.findall(r'points="([^"]+)"', chart):
            points = [tuple(map(float, pair.split(","))) for pair in line.split()]
            assert all(0 <= x <= float(width) and 0 <= y <= float(height) for x, y in points)


def test_a_histogram_that_cannot_be_trained_on_says_why(dataset: Dataset) -> None:
    tasks = {"whole": histogram_of(dataset, {0: 2, 5: 2}), "missing": histogram_of(dataset, {0: 1, 9: 1})}
    found = forecast_each(dataset, tasks, 200)
    assert isinstance(found["whole"], Forecast)
    assert found["whole"].samples == 200
    assert 139 <= found["whole"].windows_served <= 141  # all 40 of one, 100 of the other, within a draw
    assert "50.0% of the histogram stands on 1 clusters of level 2 without windows" in str(found["missing"])
    assert "Of the corpus" in page_html(dataset, tasks, forecasts=found)


def command(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_report(parser.add_subparsers())
    parsed = parser.parse_args(["report", *arguments])
    parsed.run(parsed)


def test_the_command_takes_histograms_and_runs_in_any_order(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, copy = tmp_path / "page.html", tmp_path / "task.parquet"
    shutil.copy(run.histogram, copy)
    command(run.dataset.root, str(run.save_folder), str(run.histogram), str(copy), "--out", str(out))
    html = out.read_text(encoding="utf-8")
    assert f"written to {out}" in capsys.readouterr().out
    for name in ("task", "task 2", "served to small"):
        assert f">{name}</option>" in html
    assert "504 samples each" in html


def test_the_command_leaves_the_forecast_out_on_request(run: SmallRun, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    command(run.dataset.root, str(run.histogram), "--out", str(out), "--samples", "0")
    assert "What a run would read" not in out.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="--samples: must be at least 0, got -1"):
        command(run.dataset.root, "--samples", "-1", "--out", str(out))


def test_the_command_refuses_what_is_neither_file_nor_folder(run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        command(run.dataset.root, str(tmp_path / "absent"), "--out", str(tmp_path / "page.html"))


def test_the_command_refuses_a_sample_that_is_too_small(run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--windows: must be at least 100, got 5"):
        command(run.dataset.root, "--out", str(tmp_path / "page.html"), "--windows", "5")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_000_000, "2.0 MB"), (3e12, "3.0 TB")]
)
def test_bytes_are_written_in_decimal_units(count: float, text: str) -> None:
    assert format_bytes(count) == text
