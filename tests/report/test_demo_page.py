"""The report page: what it says, that it is whole in itself, and that corpus text cannot break it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crisp_stream.inspection.summary import NodeSummary
from crisp_stream.report.demo_page import Comparison, RunResult, report_html, write_report
from crisp_stream.table import format_bytes

VOID = {"meta", "line", "polyline"}


def run(name: str, specialist: float, generalist: float, last_loss: float = 4.0) -> RunResult:
    return RunResult(
        name=name,
        specialist_perplexity=specialist,
        generalist_perplexity=generalist,
        losses=[(batch, last_loss + 4.0 / batch) for batch in range(1, 401)],
        num_tokens=819_200,
        bytes_read=1_650_000,
        mixture_error=0.0042,
    )


CLUSTER = NodeSummary(node=37, share=0.25, generalist_share=0.05, num_windows=300, text="Fever & chills")
COMPARISON = Comparison(
    task="medical abstracts",
    base=run("base", 450.0, 212.0),
    crisp=run("CRISP", 252.0, 318.0, last_loss=3.5),
    clusters=[CLUSTER],
    facts={"Windows": "6,012 of 128 tokens"},
)


class Page(HTMLParser):
    """Collects text and tags, and checks that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_states_perplexities_ratios_weights_bytes_and_mixture_error() -> None:
    text = Page(report_html(COMPARISON)).text
    for stated in ("450.0", "252.0", "0.56", "212.0", "318.0", "1.50", "25.0%", "5.0%", "1.6 MB", "0.0042", "819,200"):
        assert stated in text
    assert "6,012 of 128 tokens" in text
    assert "44% lower than base's on medical abstracts, and 50% higher on the corpus" in text


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = report_html(COMPARISON)
    page = Page(html)
    assert page.open == []
    assert {"script", "link", "img", "iframe"} & set(page.tags) == set()
    assert {name for name, _ in page.attributes} & {"src", "href", "onload", "onclick"} == set()
    assert re.search(r"https?:|url\(|@import", html) is None
    assert len(html) < 100_000


def test_every_section_has_a_heading_and_every_table_a_caption() -> None:
    tags = Page(report_html(COMPARISON)).tags
    assert tags.count("h1") == 1
    assert tags.count("h2") == tags.count("section") == 5
    assert tags.count("caption") == tags.count("table")


def test_corpus_text_is_escaped() -> None:
    cluster = dataclasses.replace(CLUSTER, text="</td><script>alert('x')</script> a < b & c")
    page = Page(report_html(dataclasses.replace(COMPARISON, clusters=[cluster], facts={"<b>": '"<i>"'})))
    assert "script" not in page.tags
    assert page.open == []
    assert "</td><script>alert('x')</script> a < b & c" in page.text


def test_a_comparison_that_crisp_lost_says_so() -> None:
    lost = dataclasses.replace(COMPARISON, crisp=run("CRISP", 495.0, 318.0))
    assert lost.verdict == "CRISP did not beat base on medical abstracts: its held-out perplexity is 10% higher."
    assert lost.verdict in report_html(lost).replace("&#x27;", "'")


def test_a_specialist_that_also_improves_the_corpus_is_told_apart() -> None:
    both = dataclasses.replace(COMPARISON, crisp=run("CRISP", 225.0, 190.8))
    assert "50% lower than base's on medical abstracts, and 10% lower too on the corpus" in both.verdict


@pytest.mark.parametrize("losses", [[], [(1, 5.0)]])
def test_a_run_too_short_for_a_curve_leaves_the_curves_out(losses: list[tuple[int, float]]) -> None:
    short = dataclasses.replace(COMPARISON, base=dataclasses.replace(COMPARISON.base, losses=losses))
    assert "svg" not in Page(report_html(short)).tags


def test_curves_stay_inside_their_chart() -> None:
    html = report_html(COMPARISON)
    for width, height, chart in re.findall(r'viewBox="0 0 (\d+) (\d+)"(.*?)</svg>', html):
        points = [
            tuple(map(float, pair.split(",")))
            for line in re.findall(r'points="([^"]+)"', chart)
            for pair in line.split()
        ]
        assert len(points) > 400
        assert all(0 <= x <= float(width) and 0 <= y <= float(height) for x, y in points)


def test_a_constant_loss_can_be_drawn() -> None:
    flat = dataclasses.replace(run("base", 2.0, 2.0), losses=[(batch, 5.0) for batch in range(1, 50)])
    assert "nan" not in report_html(dataclasses.replace(COMPARISON, base=flat, crisp=flat))


def test_the_page_replaces_an_older_one_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    write_report(target, COMPARISON)
    assert write_report(target, COMPARISON) == target
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    assert target.read_text(encoding="utf-8") == report_html(COMPARISON)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_000_000, "2.0 MB"), (3e12, "3.0 TB")]
)
def test_bytes_are_written_in_decimal_units(count: float, text: str) -> None:
    assert format_bytes(count) == text
