"""Every number that the page and a command both show has the same digits in both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.forecast.forecast import forecast
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.inspection.summary import describe_dataset, describe_histogram
from crisp_stream.report.evaluation import Evaluation
from crisp_stream.report.forecast import forecast_each
from crisp_stream.report.page import page_html
from crisp_stream.report.runs import read_run
from crisp_stream.results.better import better_rows, better_table
from crisp_stream.results.curves import curves, curves_table
from crisp_stream.results.tables import WRITTEN, result_rows, result_tables
from crisp_stream.training.run_report import TrainReport
from tests.report.test_page_evaluation import cells
from tests.support.made_results import question_results, text_results
from tests.support.small_runs import SmallRun, small_run
from tests.support.topics import WINDOWS, histogram_of, topic_dataset

COUNTS = {0: 601, 1: 389, 5: 9, 15: 1}
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?%?")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return topic_dataset(tmp_path_factory.mktemp("digits") / "corpus")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def section(html: str, key: str) -> str:
    """A section without its notes and captions, which hold constants."""
    body = html[html.index(f'<section aria-labelledby="{key}"') :].split("</section>")[0]
    return re.sub(r'<(caption|p(?= class="note")|svg|q)\b.*?</\1>', "", body, flags=re.DOTALL)


def numbers(html: str) -> list[str]:
    """All numbers that a reader sees, without those of paths such as 0/1."""
    seen = re.sub(r'<span class="path">.*?</span>|<h\d.*?</h\d>', " ", html, flags=re.DOTALL)
    return NUMBER.findall(re.sub(r"<[^>]*>", " ", seen))


def words(text: str) -> set[str]:
    return set(NUMBER.findall(text))


def row_of(html: str, name: str) -> dict[str, str]:
    """Cells of the only row of a name, by heading; intervals behind a blank."""
    head, *rows = cells(html.replace('<span class="interval">', ' <span class="interval">'))
    (row,) = (row for row in rows if row[0] == name)
    return dict(zip(head, (re.sub(r" +", " ", cell).strip() for cell in row), strict=True))


def test_histograms(dataset: Dataset) -> None:
    """Beside what `histogram count` and `inspect` print; levels, paths and the number of all clusters stand apart."""
    histogram = histogram_of(dataset, COUNTS)
    html = page_html(dataset, {"task": histogram})
    printed = words(describe_histogram(histogram, dataset, limit=8))
    printed |= words(describe_dataset(dataset, level=2, limit=8))
    for key in ("heaviest", "histograms"):
        shown = numbers(section(html, key))
        assert len(shown) > 8
        assert {number for number in shown if number not in printed} == set()
    card = section(html, "histograms")
    shares = [(f"{count / 1000:.2%}", f"{count / 1000 / (WINDOWS[node] / 390):,.2f}") for node, count in COUNTS.items()]
    assert re.findall(r">([\d.]+%) · w ([\d.,]+)<", card) == shares


def test_forecasts(dataset: Dataset) -> None:
    histogram = histogram_of(dataset, COUNTS)
    samples = 1777
    html = page_html(dataset, {"task": histogram}, forecasts=forecast_each(dataset, {"task": histogram}, samples))
    text = forecast(dataset, Mixture.from_histogram(histogram), samples=samples).table()
    shown = row_of(section(html, "forecast"), "task")
    most = shown.pop("Most repeated cluster")
    assert most.split(" times")[0] in words(text)
    printed = " ".join(text.split())
    assert f"({shown.pop('Of the corpus')}) served" in printed
    assert f"{shown.pop('Clusters hit')} (" in printed
    assert f"occurrences {shown.pop('Times served, mean')} on average" in printed
    assert f"read {shown.pop('Read')} (" in printed
    assert f"requests {shown.pop('Requests')} (" in printed
    assert f"mixture error {shown.pop('Mixture error')} total variation" in printed
    assert list(shown) == ["Histogram"]


def judged() -> list[Any]:
    rng = np.random.default_rng(1)
    made: list[Any] = []
    for name, shift in (("base", 0.0), ("crisp", -0.31)):
        for batch in (4, 8):
            own: dict[str, Any] = {"run_name": name, "batch": batch, "mixture_fingerprint": name}
            losses = (rng.gamma(9, 0.3, 60) + 5 + shift - batch / 10).tolist()
            flags = [row < 4 for row in range(60)]
            tokens, sizes = rng.integers(9, 90, 60).tolist(), rng.integers(90, 400, 60).tolist()
            model = f"{name}-ba{batch}"
            made.append(
                text_results(model, losses, num_tokens=[50] * 60 or tokens, num_bytes=sizes, contaminated=flags, **own)
            )
            rows = rng.normal(-9, 1, (37, 4)).tolist()
            made.append(question_results(model, rows, characters=[[3, 5, 7, 2]] * 37, metric="acc_norm", **own))
    return made


def test_scores(dataset: Dataset) -> None:
    html = page_html(dataset, {}, evaluation=Evaluation(results=judged()))
    evaluation = Evaluation(results=judged())
    (table,) = result_tables(result_rows(evaluation.newest, baseline="base-ba8"), wide=True).tables
    printed = {(row[0], row[1]): dict(zip(table.head, map(str.strip, row), strict=True)) for row in table.rows}
    texts, questions = re.findall(r"<table class=\"stack\">.*?</table>", section(html, "scores"), flags=re.DOTALL)
    headings = {
        "news": (texts, {"Perplexity": "perplexity", "Token level": "token level", "Bits/byte": "bits/byte"}),
        "quiz": (questions, {"Accuracy, % (acc_norm)": "acc_norm %", "Accuracy, %": "acc %"}),
    }
    for set_name, (part, own) in headings.items():
        for model in ("base-ba8", "crisp-ba8"):
            shown = row_of(part, model)
            assert shown.pop("Model") == model
            of_command = printed[set_name, model]
            names = own | {"than base-ba8": "than base-ba8", "Contaminated": "contaminated"}
            for heading, value in shown.items():
                name = names.get(heading, heading.lower())
                assert value == of_command[name].rstrip("*"), (set_name, model, heading)


def test_shares_that_are_better_and_curves(dataset: Dataset) -> None:
    html = page_html(dataset, {}, evaluation=Evaluation(results=judged()))
    newest = Evaluation(results=judged()).newest
    (table,) = better_table(better_rows(newest, baseline="base-ba8")).tables
    part = section(html, "evaluation")
    shown = [row for row in cells(part.replace('<span class="interval">', " ")) if row[0] == "crisp-ba8"]
    for row, printed in zip(shown, table.rows, strict=True):
        by_heading = dict(zip(table.head, printed, strict=True))
        expected = [by_heading[name] for name in ("% better than base-ba8", "ties", "contaminated", "without them")]
        assert [" ".join(cell.split()) for cell in row[1:]] == expected
    drawn = curves(judged())
    (table,) = curves_table(drawn).tables
    ends = {(row[0], row[1]): row[4].partition(" [")[0] for row in table.rows if row[2] == "8"}
    for (name, set_name), value in ends.items():
        if set_name != "training loss":
            assert f"<bdi>{name}: {value} at the end</bdi>" in part
    assert set(WRITTEN) >= {point.measure for point in drawn.points}


def test_runs(run: SmallRun) -> None:
    found = read_run(str(run.save_folder), run.dataset)
    record = json.loads((run.save_folder / "run.json").read_text()) | {"held_out": [[8, 1234.5678], [12, 987.6543]]}
    report = TrainReport(**record, losses=[loss for _, loss in found.losses])
    found.record["held_out"] = record["held_out"]
    shown_run = type(found)(**{**vars(found), "held_out": [(8.0, 1234.5678), (12.0, 987.6543)]})
    part = section(page_html(run.dataset, {}, [shown_run]), "runs")
    printed = " ".join(report.table().split())
    shown = row_of(part, "small")
    assert f"parameters {shown['Parameters']} batches {shown['Batches']} tokens {shown['Tokens']} " in printed
    loss, _, averaged = shown["Last loss"].partition(" ")
    assert f"last loss {loss} ({averaged}, in {shown['Precision']})" in printed
    assert f"small: last loss {loss}<" in part
    assert f"mixture error {shown['Mixture error']} (" in printed
    assert f"read {shown['Read']} in" in printed
    assert f"time {shown['Time']} wall" in printed
    assert "small: 987.65 at the end" in part
    assert "held-out perplexity 1,234.57 at batch 8, 987.65 at batch 12 (computed in float32)" in printed


def test_a_wrong_digit_is_found(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk above can fail: with another number of decimals on one side it does."""
    monkeypatch.setattr("crisp_stream.report.heaviest.digits.share", lambda value: f"{value:.2%}")
    monkeypatch.setattr("crisp_stream.report.tasks.digits", _Coarse())
    with pytest.raises(AssertionError):
        test_histograms(dataset)


class _Coarse:
    """Figures of a card as they once were."""

    part = staticmethod("{:.2f}".format)
    effective = staticmethod("{:,.0f}".format)
    largest_weight = staticmethod("{:.1f}".format)
    share = staticmethod("{:.1%}".format)


def test_the_dataset(dataset: Dataset) -> None:
    part = section(page_html(dataset, {}), "dataset")
    values = re.findall(r"<dt><bdi>([^<]*)</bdi></dt><dd><bdi>([^<]*)</bdi>", part)
    printed = " ".join(describe_dataset(dataset, level=2, limit=3).split())
    for name, value in values:
        assert name in ("root", "read for this page") or f"{name} {value}" in printed


def test_a_path_is_no_number(dataset: Dataset) -> None:
    html = page_html(dataset, {"task": histogram_of(dataset, COUNTS)})
    assert "0/0" not in numbers(section(html, "heaviest"))
    assert Path(dataset.root).exists()
