"""Pages, CSV files and figures of records, and the command that writes them."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.study.record.values import StudyCurve
from crisp_stream.study.tables.figures import main_figure, study_figures
from crisp_stream.study.tables.report import write_study_report
from tests.support.made_study import full_study, made_study, made_weights


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a study as large as those of the documentation."""
    folder = tmp_path_factory.mktemp("record")
    full_study().save(folder)
    return folder


def test_the_same_record_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    curves = (StudyCurve(name="clusters", along="clusters", methods=("crisp", "base")),)
    weights = made_weights(("medicine",), ("doge", "crisp"))
    made_study(curves=curves, weights=weights).save(tmp_path / "record")
    first = write_study_report(tmp_path / "record", tmp_path / "a")
    again = write_study_report(tmp_path / "record", tmp_path / "b")
    assert [path.name for path in first] == [path.name for path in again]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    names = {path.name for path in first}
    pictures = {"main.svg", "curve-clusters.svg", "weights.svg"}
    assert {"tables.md", "perplexity.csv", "verdicts.csv", "cost.csv", *pictures} <= names
    page = first[0].read_text()
    assert set(re.findall(r"\]\((.+\.svg)\)", page)) == pictures
    with (tmp_path / "a" / "ratio-pretrained.csv").open() as file:
        lines = list(csv.DictReader(file))
    line = next(own for own in lines if (own["method"], own["column"]) == ("crisp", "medicine"))
    assert float(line["low"]) < float(line["value"]) < float(line["high"]) < 1
    assert (line["than"], line["seeds"], line["examples"]) == ("base", "1 2 3", "60")


def drawn_texts(figure: Any) -> list[Any]:
    """Texts of a figure that was drawn; matplotlib keeps labels of ticks beyond the axis, too, and draws none."""
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in (own for own in figure.axes if own.axison):
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


def test_no_text_of_a_figure_lies_on_another(record: Path) -> None:
    for name, figure in study_figures(full_study()).items():
        figure.savefig(record / "drawn.png")
        boxes = [(own.get_text(), own.get_window_extent()) for own in drawn_texts(figure)]
        assert len(boxes) > 20
        width, height = figure.bbox.width, figure.bbox.height
        for number, (text, box) in enumerate(boxes):
            assert -1 <= box.x0 <= box.x1 <= width + 1, (name, text)
            assert -1 <= box.y0 <= box.y1 <= height + 1, (name, text)
            for other, its in boxes[:number]:
                apart = box.x1 <= its.x0 or its.x1 <= box.x0 or box.y1 <= its.y0 or its.y1 <= box.y0
                assert apart, (name, text, other)


def test_a_model_far_off_is_written_at_the_edge_instead_of_stretching_the_axis() -> None:
    figure = main_figure(full_study())
    axis = figure.axes[0]
    assert [own.get_text() for own in axis.texts] == ["3.28 →"]
    assert axis.get_xlim()[1] < 1.5


def test_places_of_a_grid_without_a_panel_are_empty() -> None:
    weights = made_weights(("medicine", "religion", "exam"), ("doge", "crisp"))
    curves = (StudyCurve(name="clusters", along="clusters", methods=("crisp", "doge")),)
    tasks = ("medicine", "religion", "encyclopedia")
    study = made_study(specialists=tasks, questions=("exam",), weights=weights, curves=curves)
    shown = {name: [axis.axison for axis in figure.axes] for name, figure in study_figures(study).items()}
    assert shown["main"] == shown["curve-clusters"] == [True] * 5 + [False] * 3  # exam has two, as texts and questions
    assert shown["weights"] == [True] * 3 + [False]


def test_wide_intervals_of_two_seeds_leave_differences_to_be_seen() -> None:
    figure = main_figure(made_study(seeds=(1, 2), noise=0.1))
    for axis in figure.axes:
        drawn = np.ptp(axis.get_xlim())
        places = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
        assert drawn < 4 * (max([*places, 1.0]) - min([*places, 1.0])) + 0.02
        assert all(axis.get_xlim()[0] < place < axis.get_xlim()[1] for place in places)


def test_the_command_shows_tables_and_writes_them_below_the_names_of_several(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "report", str(record)]) in (0, None)
    shown = capsys.readouterr().out
    assert "crisp-2 better than doge in perplexity, pretrained: on 4 of 4" in shown
    for name in ("one", "two"):
        made_study(name=name).save(tmp_path / name)
    records = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["study", "report", *records, "--out", str(tmp_path / "out")]) in (0, None)
    assert "written to" in capsys.readouterr().out
    for name in ("one", "two"):
        assert (tmp_path / "out" / name / "tables.md").is_file()
        assert (tmp_path / "out" / name / "main.svg").is_file()


def test_folders_that_are_no_records_and_equal_names_are_refused(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "report", str(record), str(record), "--out", str(tmp_path)]) == 2
    assert "names of studies must differ, got made, made" in capsys.readouterr().err
    assert main(["study", "report", str(tmp_path)]) == 2
    assert "study.json" in capsys.readouterr().err
