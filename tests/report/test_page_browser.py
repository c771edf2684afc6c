"""The report page in a real browser: it loads, is moved about in by mouse, keyboard and finger, and fits its screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from crisp_stream import digits
from crisp_stream.format.dataset import Dataset
from crisp_stream.inspection.terms import NodeTerms
from crisp_stream.report import page
from crisp_stream.report.evaluation import Evaluation
from crisp_stream.report.forecast import forecast_each
from crisp_stream.report.map import MapLevel, TaskShares, Tree, map_payload
from tests.support.browser import Visit, chromium, visit
from tests.support.made_results import text_results
from tests.support.topics import WINDOWS, histogram_of, topic_dataset

HOSTILE = "</script><img src=x onerror=alert(1)> <b>bold</b> \u202eevil\u0007 & \u05e9\u05dc\u05d5\u05dd"
HOSTILE_NAME = "<img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return topic_dataset(tmp_path_factory.mktemp("page") / "corpus")


@pytest.fixture(scope="module")
def html(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two tasks: medicine in clusters 0/0 and 0/1, music in 1/1 with a little of 3/3."""
    tasks = {
        "medicine": histogram_of(dataset, {0: 60, 1: 39, 5: 1}),
        "music": histogram_of(dataset, {5: 95, 15: 5}),
    }
    return page.write_page(tmp_path_factory.mktemp("html") / "page.html", page.page_html(dataset, tasks))


def show_the_whole(seen: Visit) -> None:
    seen.page.locator("#breadcrumb button").first.click()
    seen.settle()


def test_the_page_loads_without_a_word_on_the_console_or_a_request(
    browser: Browser, html: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with visit(browser, html) as seen:
        seen.settle()
        assert seen.console == []
        assert [address for address in seen.requests if not address.startswith("data:")] == [html.as_uri()]
        assert seen.page.locator("#trouble").is_hidden()
        with capsys.disabled():
            print(f"\nreport page, 4 clusters: ready after {seen.ready_milliseconds()} ms")


def test_the_map_opens_at_the_heaviest_cluster_and_a_press_leads_to_the_whole(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        assert seen.text("#panel h3").startswith("0/0")
        assert seen.text("#breadcrumb").startswith("All clusters")
        assert seen.page.locator("#breadcrumb button").count() == 2
        assert seen.page.evaluate("document.activeElement === document.body && scrollY") == 0
        show_the_whole(seen)
        assert seen.page.locator("#breadcrumb button").count() == 1
        seen.page.select_option("#task", label="music")
        seen.page.locator("#heaviest-cluster").click()
        seen.settle()
        assert seen.text("#panel h3").startswith("1/1")
        assert seen.page.locator("#chosen").get_attribute("class") == "dot colour1"
        assert seen.console == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_task_has_the_same_colour_on_the_map_and_in_its_card(browser: Browser, html: Path, mode: str) -> None:
    with visit(browser, html, color_scheme=mode) as seen:
        colours = """selector => Array.from(document.querySelectorAll(selector),
            element => getComputedStyle(element).backgroundColor)"""
        of_panel = seen.page.evaluate(colours, "#panel .tasks .dot")
        assert of_panel == seen.page.evaluate(colours, ".card h3 .dot")
        assert len(set(of_panel)) == 2
        (chosen,) = seen.page.evaluate(colours, "#chosen")
        assert chosen == of_panel[0]


@pytest.mark.parametrize("width", [400, 1280])
def test_the_tracks_of_bars_side_by_side_are_equally_long(browser: Browser, html: Path, width: int) -> None:
    with visit(browser, html, width=width) as seen:
        for section in ("heaviest", "histograms"):
            lengths = seen.page.evaluate(
                """key => Array.from(document.querySelectorAll(`[aria-labelledby=${key}] .track`),
                track => track.getBoundingClientRect().width).filter(Boolean)""",
                section,
            )
            assert len(lengths) >= 6
            assert max(lengths) - min(lengths) < 0.5


def test_without_script_the_page_shows_all_but_the_map(browser: Browser, html: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        opened = context.new_page()
        opened.goto(html.as_uri())
        assert "The map needs JavaScript" in opened.locator("noscript").inner_text()
        assert opened.locator("#treemap").is_hidden()
        assert opened.locator("#task").is_hidden()
        assert "60.00%" in opened.locator("[aria-labelledby=heaviest]").inner_text()
    finally:
        context.close()


def test_the_map_zooms_by_mouse_and_the_breadcrumb_leads_back(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        show_the_whole(seen)
        whole = seen.pixels()
        seen.page.locator("#treemap").click(position={"x": 60, "y": 100})
        seen.settle()
        assert seen.pixels() != whole
        assert seen.page.locator("#breadcrumb button").count() == 2
        assert seen.text("#panel h3").startswith("1/1")
        seen.page.locator("#breadcrumb button").first.click()
        seen.settle()
        assert seen.page.locator("#breadcrumb button").count() == 1
        assert seen.console == []


def test_the_map_is_walked_by_keyboard(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        show_the_whole(seen)
        seen.page.locator("#treemap").focus()
        assert seen.text("#panel h3").startswith("1")
        seen.page.keyboard.press("ArrowRight")
        assert seen.text("#panel h3").startswith("0")
        assert "fever" in seen.text("#announced")
        seen.page.keyboard.press("Enter")
        seen.settle()
        assert seen.text("#breadcrumb").startswith("All clusters")
        assert seen.text("#panel h3").startswith("0/0")
        seen.page.keyboard.press("ArrowDown")
        seen.page.keyboard.press("ArrowRight")
        assert seen.text("#panel h3").startswith("0/1")
        assert "kidney" in seen.text("#panel")
        seen.page.keyboard.press("Escape")
        seen.settle()
        assert seen.page.locator("#breadcrumb button").count() == 1
        assert seen.text("#panel h3").startswith("0")


def test_every_control_can_be_reached_by_tab_and_shows_the_focus(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        show_the_whole(seen)
        reached = set()
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            reached.add(seen.page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert {"task", "heaviest-cluster", "search", "treemap", "node", "inside"} <= reached
        seen.page.locator("#treemap").focus()
        seen.page.keyboard.press("Shift+Tab")
        seen.page.keyboard.press("Tab")
        style = "getComputedStyle(document.getElementById('treemap')).outlineStyle"
        assert seen.page.evaluate(style) == "solid"


def test_search_finds_a_cluster_by_term_by_text_and_by_path(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        seen.page.fill("#search", "violin")
        seen.page.wait_for_selector("#hits button")
        assert "1/1" in seen.text("#hits")
        assert seen.page.locator("#hits mark").first.inner_text() == "violin"
        seen.page.press("#search", "Enter")
        seen.settle()
        seen.page.fill("#search", "3/3")
        seen.page.press("#search", "Enter")
        seen.settle()
        assert seen.text("#panel h3").startswith("3/3")
        assert "compiler" in seen.text("#panel")
        seen.page.fill("#search", "zebra")
        expect(seen.page.locator("#found")).to_have_text("Nothing found.")
        assert seen.console == []


def test_a_search_dims_what_it_did_not_find(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        show_the_whole(seen)
        before = seen.colour_at(0.3, 0.6)
        seen.page.fill("#search", "tumor")
        seen.page.wait_for_selector("#hits button")
        assert seen.colour_at(0.3, 0.6) != before
        seen.page.fill("#search", "")
        seen.page.wait_for_selector("#results", state="hidden")
        assert seen.colour_at(0.3, 0.6) == before


def test_the_colours_are_those_of_the_chosen_task(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        show_the_whole(seen)
        red, _, blue = seen.colour_at(0.3, 0.6)
        assert blue > red  # medicine falls in the music cluster less often than the corpus
        seen.page.select_option("#task", label="music")
        red, _, blue = seen.colour_at(0.3, 0.6)
        assert red > blue
        assert "chosen" in (seen.page.locator("#panel tr", has_text="music").get_attribute("class") or "")


def test_the_panel_says_terms_counts_shares_and_text(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        show_the_whole(seen)
        seen.page.locator("#treemap").hover(position={"x": 300, "y": 300})
        said = seen.text("#panel")
        for expected in ("1/1", "node 5", "orchestra", "violin", "300 windows, 76.92% of the corpus", "95.00%", "0.01"):
            assert expected in said
        assert "violin" in seen.text("#panel blockquote")
        seen.page.mouse.move(2, 2)
        assert seen.text("#panel h3").startswith("1\n") or seen.text("#panel h3").startswith("1 ")


def test_the_panel_shows_the_digits_that_the_commands_print(browser: Browser, dataset: Dataset, tmp_path: Path) -> None:
    """1/32 and 3/32 of 100 stand at a tie, which Python and JavaScript round differently by themselves."""
    counts = {0: 4, 1: 1, 5: 24, 15: 3}
    html = page.page_html(dataset, {"task": histogram_of(dataset, counts)})
    with visit(browser, page.write_page(tmp_path / "page.html", html)) as seen:
        shown = []
        for node in seen.page.locator(".card button.node").all():
            node.click()
            seen.settle()
            shown.append(seen.page.locator("#panel .tasks tr.chosen td.number").all_inner_texts())
            corpus = seen.text("#panel .size").split(", ")[1]
            at = sorted(counts, key=lambda cluster: -counts[cluster])[len(shown) - 1]
            assert corpus == f"{digits.share(WINDOWS[at] / 390)} of the corpus"
        heaviest = sorted(counts.items(), key=lambda entry: -entry[1])
        assert shown == [
            [digits.share(count / 32), digits.weight(count / 32 / (WINDOWS[node] / 390))] for node, count in heaviest
        ]
        assert ["3.12%", "0.41"] in shown


@pytest.mark.parametrize("width", [320, 621, 768, 1024, 1100, 1400])
def test_no_table_is_cut_at_its_edge(browser: Browser, dataset: Dataset, tmp_path: Path, width: int) -> None:
    """Six columns with intervals need a thousand pixels; below, rows are cards with all headings in full."""
    names = ("gpt-350m-base-ba4000", "gpt-350m-crisp-medicine-ba4000")
    judged = [
        text_results(name, [9.1 + at, 9.4, 9.9, 9.0], num_bytes=[9] * 4, contaminated=[at == 0, False, False, False])
        for at, name in enumerate(names)
    ]
    tasks = {"law-and-history-of-the-nineteenth-century": histogram_of(dataset, {0: 60, 1: 39, 5: 1})}
    html = page.page_html(
        dataset, tasks, forecasts=forecast_each(dataset, tasks, 2000), evaluation=Evaluation(results=judged)
    )
    with visit(browser, page.write_page(tmp_path / "page.html", html), width=width) as seen:
        cut = """() => Array.from(document.querySelectorAll('.scroll'))
            .filter(part => part.scrollWidth > part.clientWidth + 1).map(part => part.getAttribute('aria-label'))"""
        assert seen.page.evaluate(cut) == []
        labels = seen.page.locator("td[data-label='than gpt-350m-base-ba4000']")
        assert labels.count() == 2
        assert seen.page.locator("td[data-label='Token level']").count() == 2


def test_a_cluster_of_a_card_is_shown_on_the_map(browser: Browser, html: Path) -> None:
    with visit(browser, html) as seen:
        seen.page.locator("button.node", has_text="tumor").first.click()
        seen.settle()
        assert seen.text("#panel h3").startswith("0/1")
        assert seen.page.evaluate("document.activeElement.id") == "treemap"


def test_a_finger_selects_first_and_goes_inside_next(browser: Browser, html: Path) -> None:
    with visit(browser, html, width=400, height=800, has_touch=True, is_mobile=True) as seen:
        show_the_whole(seen)
        canvas = seen.page.locator("#treemap")
        box = canvas.bounding_box()
        assert box
        x, y = 20.0, box["height"] - 20
        canvas.tap(position={"x": x, "y": y})
        assert seen.page.locator("#breadcrumb button").count() == 1
        assert seen.text("#panel h3").startswith("0")
        canvas.tap(position={"x": x, "y": y})
        seen.settle()
        assert seen.page.locator("#breadcrumb button").count() == 2


@pytest.mark.parametrize("width", [320, 360, 768])
def test_a_narrow_screen_scrolls_in_one_direction_only(browser: Browser, html: Path, width: int) -> None:
    with visit(browser, html, width=width, height=740) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        box = seen.page.locator("#treemap").bounding_box()
        assert box
        assert 0 < box["width"] <= width
        seen.page.fill("#search", "fever")
        seen.page.wait_for_selector("#hits button")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_light_and_print_have_their_own_colours(browser: Browser, html: Path) -> None:
    """The corner of the map's border is the ground."""
    with visit(browser, html, color_scheme="dark") as seen:
        assert sum(seen.colour_at(0.999, 0.999)) < 120
        seen.page.emulate_media(color_scheme="light")
        seen.settle()
        assert sum(seen.colour_at(0.999, 0.999)) > 600
        seen.page.emulate_media(color_scheme="dark", media="print")
        seen.settle()
        assert sum(seen.colour_at(0.999, 0.999)) > 600
        assert seen.page.locator(".search").is_hidden()
        assert len(seen.page.pdf()) > 10_000


def test_who_wants_no_motion_gets_none(browser: Browser, html: Path) -> None:
    with visit(browser, html, reduced_motion="reduce") as seen:
        show_the_whole(seen)
        seen.page.locator("#treemap").click(position={"x": 60, "y": 100})
        at_once = seen.pixels()
        seen.settle()
        assert seen.pixels() == at_once


def test_hostile_text_and_names_stay_text(browser: Browser, tmp_path: Path) -> None:
    dataset = topic_dataset(tmp_path / "corpus", {0: HOSTILE, 5: f"{HOSTILE} more"}, {0: 6, 5: 8}, tokens=96)
    tasks = {HOSTILE_NAME: histogram_of(dataset, {0: 1}), "\u202eother": histogram_of(dataset, {5: 1})}
    html = page.write_page(tmp_path / "page.html", page.page_html(dataset, tasks))
    with visit(browser, html) as seen:
        seen.page.fill("#search", "<img")
        seen.page.wait_for_selector("#hits button")
        seen.settle()
        assert (seen.console, seen.dialogs) == ([], [])
        assert seen.page.locator("img, b").count() == 0
        assert "<img src=x onerror=alert(1)>" in seen.text("#panel blockquote")
        assert "\u05e9\u05dc\u05d5\u05dd" in seen.text("#panel blockquote")
        assert HOSTILE_NAME in seen.page.locator("article h3").first.inner_text()
        everything = seen.page.evaluate("document.documentElement.textContent")
        assert {"\u202e", "\u0007"} & set(everything) == set()


def test_a_damaged_page_says_so_instead_of_staying_empty(browser: Browser, html: Path, tmp_path: Path) -> None:
    text = html.read_text(encoding="utf-8")
    at = text.index('id="payload">') + 200
    broken = tmp_path / "broken.html"
    broken.write_text(text[:at] + "AAAA" + text[at + 40 :], encoding="utf-8")
    context = browser.new_context()
    try:
        opened = context.new_page()
        opened.goto(broken.as_uri())
        opened.wait_for_selector("#trouble:not([hidden])")
        assert "The map cannot be shown" in opened.locator("#trouble").inner_text()
    finally:
        context.close()


def test_without_histograms_the_map_is_still_there(browser: Browser, dataset: Dataset, tmp_path: Path) -> None:
    html = page.write_page(tmp_path / "page.html", page.page_html(dataset, {}))
    with visit(browser, html) as seen:
        assert seen.console == []
        assert seen.page.locator("#task").count() == 0
        assert "orchestra" in seen.text("#panel")


def test_a_quarter_million_leaves_and_seven_dense_tasks_stay_small_and_load(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    leaves = rng.permutation(64**3)[:255_713]
    leaves.sort()
    windows = rng.integers(1, 9, len(leaves))
    levels = []
    for level in (1, 2, 3):
        nodes, row = np.unique(leaves // 64 ** (3 - level), return_inverse=True)
        sizes = np.bincount(row, weights=windows).astype(np.int64)
        levels.append(MapLevel(level=level, nodes=nodes.astype(np.uint32), windows=sizes))
    tasks = []
    for number in range(7):
        mass = windows * np.exp(rng.normal(size=len(leaves)))
        tasks.append(TaskShares(name=f"task {number}", level=3, shares=mass / mass.sum(), missing=0.0))
    terms = [_made_terms(level, rng) for level in levels]
    payload = map_payload(Tree(arity=64, levels=levels, terms=terms), tasks, ["colour0"] * 7)
    html = tmp_path / "large.html"
    html.write_text(
        page._document("large", "", {"map": ("Map", page._map_section(tasks, ["colour0"] * 7, [], ""))}, payload),
        encoding="utf-8",
    )
    assert html.stat().st_size < 20e6
    with visit(browser, html) as seen:
        milliseconds = seen.ready_milliseconds()
        assert seen.page.locator("#breadcrumb button").count() == 3
        show_the_whole(seen)
        for steps in (2, 3):
            seen.page.locator("#treemap").click(position={"x": 30, "y": 60})
            seen.settle()
            assert seen.page.locator("#breadcrumb button").count() == steps
        assert seen.text("#panel h3").count("/") == 2
        assert seen.console == []
        with capsys.disabled():
            size = html.stat().st_size / 1e6
            print(f"\nreport page, 255,713 clusters, 7 dense tasks: {size:.1f} MB, ready after {milliseconds} ms")


def _made_terms(level: MapLevel, rng: np.random.Generator) -> NodeTerms:
    """Words and text of the usual length for up to 12,000 nodes."""
    nodes = level.nodes[:: -(-len(level.nodes) // 12_000)]
    words = ["".join(map(chr, rng.integers(97, 123, 8))) for _ in range(5_000)]
    picked = rng.integers(0, len(words), (len(nodes), 48))
    count = np.ones(len(nodes), np.int64)
    return NodeTerms(
        level=level.level,
        nodes=nodes,
        windows_read_per_node=count,
        terms=[tuple(words[at] for at in row[:8]) for row in picked],
        texts=[" ".join(words[at] for at in row[8:]) for row in picked],
        num_windows_read=len(nodes),
    )
