"""Examples in the training data are counted, and left out of a second figure, in every view of results."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.results.better import better_rows
from crisp_stream.results.curves import curves
from crisp_stream.results.distances import Distances, distance_bins
from crisp_stream.results.pairing import AnyResults
from crisp_stream.results.tables import clean_figure_of, result_rows
from crisp_stream.results.transfer import transfer
from tests.support.made_results import question_results, text_results

SEEN = [True, False, False, False]
CLEAN = [False] * 4
VIEWS = ("table", "better", "distance", "curve", "cost", "transfer")


def checkpoints(seen: list[bool] | None) -> list[AnyResults]:
    """Two models on four texts and four questions; the second is better on the first example alone, by far."""
    made: list[AnyResults] = []
    for name, losses in (("base-ba8", [3.0, 2.0, 2.0, 2.0]), ("crisp-ba8", [0.5, 2.5, 2.5, 2.5])):
        own: dict[str, Any] = {"run_name": name[:-4], "batch": 8, "contaminated": seen}
        own["training"] = {
            "model": {"n_layer": 1, "n_embd": 4, "n_positions": 8, "vocab_size": 16},
            "progress": {"tokens": 1000, "batches": 8, "began_at_batch": 0},
            "device_seconds": {"CPU": 3600.0},
            "dataset": {"fingerprint": "d", "window_tokens": 8},
            "mixture": {"phases": [{"histogram": name}]},
        }
        made.append(text_results(name, losses, **own))
        right = [[-1.0, -2.0]] + [[-2.0, -1.0]] * 3 if name[0] == "c" else [[-2.0, -1.0], *[[-1.0, -2.0]] * 3]
        made.append(question_results(name, right, **own))
    return made


def shown(view: str, folder: Path, seen: list[bool] | None, capsys: pytest.CaptureFixture[str]) -> tuple[str, list]:
    for results in checkpoints(seen):
        results.save(folder)
    Distances(
        examples=np.arange(4, dtype=np.uint64),
        distances=np.array([0.1, 0.2, 0.8, 0.9]),
        test_distances=np.array([]),
        facts={},
    ).save(folder / "distances.parquet")
    more = {"better": ["--than", "base-ba8"], "cost": ["--cost", "tokens"]}
    more["distance"] = ["--than", "base-ba8", "--distances", str(folder / "distances.parquet"), "--bins", "2"]
    assert main(["results", view, str(folder), *more.get(view, []), "--csv", str(folder / "t.csv")]) == 0
    with (folder / "t.csv").open() as file:
        return capsys.readouterr().out, list(csv.DictReader(file))


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_counts_them_shows_figures_without_them_and_warns(
    view: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, rows = shown(view, tmp_path, SEEN, capsys)
    assert "without them" in text
    assert "WARNING: news: 25.0% of the examples stand in the training data, in part" in text
    assert {"1"} <= {row["contaminated"] for row in rows}
    assert any(row.get("without_contaminated") or "without" in row.get("measure", "") for row in rows)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_says_that_none_is_in_the_training_data_or_nothing_where_nobody_looked(
    view: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = shown(view, tmp_path / "clean", CLEAN, capsys)
    assert "no example stands in the training data" in text
    assert "without them" not in text
    text, _ = shown(view, tmp_path / "unknown", None, capsys)
    assert "training data" not in text


def test_the_figures_without_them_are_those_of_the_other_examples() -> None:
    results = checkpoints(SEEN)
    base, crisp = (one for one in results if one.kind == "text")
    rows = result_rows(results)
    assert clean_figure_of(rows[0].judged, crisp).value == pytest.approx(math.exp(2.5))  # pyright: ignore[reportOptionalMemberAccess]
    texts, questions = better_rows(results, baseline="base-ba8")
    assert (texts.fraction.value, texts.num_contaminated) == (0.25, 1)
    assert texts.clean is not None
    assert texts.clean.value == 0
    assert questions.clean is not None
    assert questions.clean.value == 0
    distances = Distances(
        examples=np.arange(4, dtype=np.uint64),
        distances=np.array([0.1, 0.2, 0.8, 0.9]),
        test_distances=np.array([]),
        facts={},
    )
    near, far = distance_bins([base, crisp], distances, baseline="base-ba8", bins=2)
    assert near.improvement.value == pytest.approx((2.5 - 0.5) / 2)
    assert near.clean is not None
    assert near.clean.value == pytest.approx(-0.5)
    assert (near.num_contaminated, far.num_contaminated) == (1, 0)
    point = next(one for one in curves(results).points if one.run == "crisp" and one.set_name == "news")
    assert point.clean is not None
    assert point.clean.value == pytest.approx(math.exp(2.5))
    columns = {column.judged.name: column for column in transfer(results).columns}
    assert columns["quiz"].estimates["crisp-ba8"].value == 0.25
    assert columns["quiz"].clean["crisp-ba8"].value == 0
    assert columns["news"].best_clean == pytest.approx(math.exp(2))


def test_one_model_that_was_looked_at_is_enough_for_a_pair() -> None:
    base, crisp = text_results("base", [1.0, 2.0], contaminated=[True, False]), text_results("crisp", [0.5, 2.5])
    (row,) = better_rows([base, crisp], baseline="base")
    assert (row.num_contaminated, row.clean and row.clean.value) == (1, 0)


def test_a_set_of_nothing_but_contaminated_examples_has_no_figure_without_them() -> None:
    base, crisp = (text_results(name, [1.0, 2.0], contaminated=[True, True]) for name in ("base", "crisp"))
    (row,) = better_rows([base, crisp], baseline="base")
    assert row.clean_cell == "-"
    assert math.isnan(transfer([base, crisp]).columns[0].clean["base"].value)
