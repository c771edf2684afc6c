"""The evaluation on the report page: what it shows of results, what it compares, and that names are only text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.report.colours import assign_colours
from crisp_stream.report.evaluation import Evaluation, evaluation_section, score_section
from crisp_stream.report.page import page_html
from crisp_stream.results.curves import run_identity
from crisp_stream.results.results import QuestionResults, TextResults
from tests.support.made_results import question_results, text_results
from tests.support.topics import topic_dataset

HOSTILE = "<img src=x onerror=alert(1)>\"'\u202e"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return topic_dataset(tmp_path_factory.mktemp("page") / "corpus")


def checkpoint(run: str, batch: int, losses: list[float], **more: Any) -> TextResults:
    return text_results(f"{run}-ba{batch}", losses, run_name=run, batch=batch, mixture_fingerprint=run, **more)


def results() -> list[TextResults | QuestionResults]:
    return [
        checkpoint("base", 4, [3.0, 3.0]),
        checkpoint("base", 8, [2.0, 2.0], contaminated=[True, False]),
        checkpoint("crisp", 4, [3.0, 2.0]),
        checkpoint("crisp", 8, [1.0, 3.0]),
        question_results("base-ba8", [[-1, -2]], run_name="base", batch=8, mixture_fingerprint="base"),
    ]


def section(evaluation: Evaluation) -> str:
    runs = [(run_identity(judged), judged.model.get("histograms") or []) for judged in evaluation.results]
    colours = assign_colours([], runs)
    return score_section(evaluation, colours) + evaluation_section(evaluation, colours)


def cells(html: str) -> list[list[str]]:
    """The text of the cells of every row of every table."""

    class Rows(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[str]] = []
            self.inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "tr":
                self.rows.append([])
            if tag in ("td", "th"):
                self.rows[-1].append("")
                self.inside = True

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag not in ("td", "th")

        def handle_data(self, data: str) -> None:
            if self.inside:
                self.rows[-1][-1] += data

    reader = Rows()
    reader.feed(html)
    return reader.rows


def test_the_tables_show_the_newest_checkpoint_of_each_run_and_say_so() -> None:
    html = section(Evaluation(results=results()))
    models = [row[0] for row in cells(html) if "ba" in row[0]]
    assert models == ["base-ba8", "crisp-ba8", "base-ba8", "crisp-ba8"]  # texts, questions, where the second got better
    assert "the newest checkpoint of each run; the curves show all" in html
    older = section(Evaluation(results=results(), baseline="base-ba4"))
    assert "than base-ba4" in older
    assert "newest checkpoint" not in section(Evaluation(results=[results()[1]]))


def test_figures_comparisons_and_contaminated_examples_are_there() -> None:
    html = section(Evaluation(results=results()))
    head, group, base, crisp = cells(html)[:4]
    assert head == ["Model", "Perplexity", "than base-ba8", "Token level", "Bits/byte", "Contaminated", "Without them"]
    assert group == ["news 2 texts"]
    assert base[1].startswith("7.39[")
    assert (base[2], base[5], base[6]) == ("-", "1", "7.39")
    assert crisp[2].startswith("x 1.0000 [0.0000, 329,787.8131]")
    assert "WARNING: news: 50.0% of the examples" in html
    assert [row[1:] for row in cells(html) if "100.0" in row] == [["100.0", "100.0"]]


def test_long_examples_are_counted_beside_the_scores() -> None:
    judged = question_results("base-ba8", [[-1, -2], [-1, -2]], run_name="base", batch=8)
    long = replace(judged, long=np.array([True, False]))
    head, _, row = cells(section(Evaluation(results=[long])))[:3]
    assert dict(zip(head, row, strict=True))["Too long"] == "1 cut"
    assert "1 of 2 questions are longer than its context of" in section(Evaluation(results=[long]))
    dropped = replace(judged, long=np.array([False, False]), notes={"long": "drop", "long_dropped": 3})
    assert "3 dropped" in {cell for row in cells(section(Evaluation(results=[dropped]))) for cell in row}
    assert "Too long" not in section(Evaluation(results=[judged]))


def test_where_it_got_better_is_a_share_with_a_bar() -> None:
    html = section(Evaluation(results=results()))
    (row,) = (row for row in cells(html) if "50.0[9.5, 90.5]" in row)
    assert row == ["crisp-ba8", "50.0[9.5, 90.5]", "0", "1", "0.0"]  # 1 contaminated; it is worse on the other one
    assert 'class="fill colour0" style="width:50.0%"' in html
    assert '<span class="dot base" aria-hidden="true"></span><bdi>base-ba8</bdi>' in html
    assert "got better" not in section(Evaluation(results=results()[:2]))
    named = [checkpoint("one", 8, [1.0, 2.0]), checkpoint("two", 8, [1.0, 2.0])]
    assert "got better" not in section(Evaluation(results=named))
    assert "than one-ba8" in section(Evaluation(results=named, baseline="one-ba8"))


def test_curves_are_drawn_of_runs_with_several_checkpoints_inside_their_charts() -> None:
    html = section(Evaluation(results=results()))
    assert html.count("<figure>") == 1
    assert "perplexity by batch: base: 7.39 at the end; crisp: 7.39 at the end." in html
    for width, height, chart in re.findall(r'viewBox="0 0 (\d+) (\d+)"(.*?)</svg>', html):
        lines = re.findall(r'points="([^"]+)"', chart)
        assert len(lines) == 2
        for x, y in (map(float, pair.split(",")) for line in lines for pair in line.split()):
            assert 0 <= x <= float(width)
            assert 0 <= y <= float(height)
    assert "<figure>" not in section(Evaluation(results=results()[1:2]))


def test_different_examples_under_one_name_are_said_and_not_compared() -> None:
    other = checkpoint("crisp", 8, [1.0, 2.0, 3.0])
    html = section(Evaluation(results=[results()[1], other]))
    assert "were judged on different examples of news" in html
    assert "x 1." not in html


def test_names_are_only_text(dataset: Dataset) -> None:
    hostile = [
        text_results(f"base{HOSTILE}", [1.0, 2.0], set_name=HOSTILE, run_name=HOSTILE),
        text_results(f"base{HOSTILE}2", [1.0, 1.0], set_name=HOSTILE, run_name=HOSTILE, batch=200),
        text_results("crisp", [1.0, 1.0], set_name=HOSTILE),
        question_results("crisp", [[-1, -2]], set_name=HOSTILE),
    ]
    html = page_html(dataset, {}, evaluation=Evaluation(results=hostile))
    assert "<img" not in html
    assert "\u202e" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") > 8


def test_the_page_has_the_section_only_with_results(dataset: Dataset) -> None:
    assert 'href="#evaluation"' not in page_html(dataset, {})
    html = page_html(dataset, {}, evaluation=Evaluation(results=results()))
    assert html.index('href="#evaluation"') < html.index('<section aria-labelledby="evaluation">')


def test_the_command_takes_folders_and_files_of_results(dataset: Dataset, tmp_path: Path) -> None:
    for found in results():
        found.save(tmp_path / "results")
    out = tmp_path / "page.html"
    assert main(["report", dataset.root, str(tmp_path / "results"), "--out", str(out), "--than", "crisp-ba8"]) == 0
    html = out.read_text(encoding="utf-8")
    assert "than crisp-ba8" in html
    assert "quiz" in html
    (one,) = (tmp_path / "results").glob("crisp-ba8*")
    assert main(["report", dataset.root, str(one), "--out", str(out)]) == 0
    assert "base-ba8" not in out.read_text(encoding="utf-8")


def test_a_baseline_that_is_not_there_is_refused(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", dataset.root, "--than", "base-ba8"]) == 2
    assert "--than base-ba8: there are no results to compare" in capsys.readouterr().err
    with pytest.raises(InputError, match="--than absent: there are no results of such a model"):
        page_html(dataset, {}, evaluation=Evaluation(results=results(), baseline="absent"))
