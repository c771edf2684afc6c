"""Models by tasks, against the figures of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from crisp_stream.cli.main import main
from crisp_stream.results.results import QuestionResults
from crisp_stream.results.transfer import mean_over_tasks, transfer, transfer_table
from tests.support.made_results import answered, text_results

SETS = ("arc_easy", "arc_challenge", "mmlu", "rewardbench_reasoning")
TABLE_1 = {
    "Redpj2": (58.4, 27.5, 30.1, 62.2, 45.1),
    "ARC": (71.3, 38.6, 28.9, 60.9, 48.2),
    "MMLU": (63.4, 28.7, 33.4, 65.2, 48.2),
    "RWDB-R": (42.4, 23.4, 26.4, 70.1, 43.1),
    "Multi": (68.6, 34.1, 31.1, 70.9, 51.1),
}
"""CRISP, Table 1: per cent on the four sets, and Multi."""


def questions_of_table_1() -> list[QuestionResults]:
    return [
        answered(name, round(10 * accuracy), 1000, set_name=set_name, ids=range(1000 * n, 1000 * n + 1000))
        for name, accuracies in TABLE_1.items()
        for n, (set_name, accuracy) in enumerate(zip(SETS, accuracies, strict=False))
    ]


def test_multi_is_that_of_the_paper() -> None:
    for *accuracies, multi in TABLE_1.values():
        found = mean_over_tasks(dict(zip(SETS, accuracies, strict=True)))
        assert found == pytest.approx(multi, abs=0.051)  # half of the last digit
    assert mean_over_tasks(dict(zip(SETS, TABLE_1["Redpj2"][:4], strict=True))) == pytest.approx(45.0833, abs=1e-3)


def test_the_table_is_that_of_the_paper_with_the_best_of_each_column_marked() -> None:
    text = transfer_table(transfer(questions_of_table_1())).text()
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:7]}
    assert rows["Redpj2"] == ["58.4", "27.5", "30.1", "62.2", "45.1"]
    assert rows["ARC"][:2] == ["71.3*", "38.6*"]
    assert rows["MMLU"][2] == "33.4*"
    assert rows["Multi"][3:] == ["70.9*", "51.1*"]
    assert sum(cell.endswith("*") for cells in rows.values() for cell in cells) == 5


@pytest.mark.parametrize("names", [("ARC-Easy", "ARC-Challenge"), ("crisp_arc_easy.test", "crisp_arc_challenge.test")])
def test_the_two_sets_of_arc_are_one_task_however_they_are_written(names: tuple[str, str]) -> None:
    assert mean_over_tasks({names[0]: 0.2, names[1]: 0.4, "mmlu": 0.5}) == pytest.approx(0.4)
    assert mean_over_tasks({"arcade_easy": 0.2, "search_challenge": 0.4, "mmlu": 0.6}) == pytest.approx(0.4)


def test_only_models_judged_on_all_tasks_have_a_multi() -> None:
    found = transfer(questions_of_table_1()[:-1])
    assert set(found.multi) == set(TABLE_1) - {"Multi"}
    assert transfer(questions_of_table_1()[:2]).multi == {}  # ARC alone is one task


def test_perplexities_of_texts_have_a_table_of_their_own_where_the_lowest_is_best() -> None:
    found = [
        text_results("base", [2.0, 2.0]),
        text_results("crisp", [1.0, 1.0]),
        answered("base", 1, 2, set_name="quiz"),
    ]
    text = transfer_table(transfer(found)).text()
    assert "2.72*" in text
    assert "7.39 " in text or "7.39\n" in text
    assert "Multi" not in text


def test_a_column_of_models_that_predict_other_tokens_is_in_bits_per_byte() -> None:
    found = [
        text_results("base", [1.0], num_tokens=[4]),
        text_results("other", [1.9], num_tokens=[2], tokenizer_fingerprint="u" * 64),
    ]
    text = transfer_table(transfer(found)).text()
    assert "news (bits/byte)" in text
    assert next(line for line in text.splitlines() if line.startswith("other")).endswith("*")


def test_the_command_writes_a_line_per_model_and_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for found in questions_of_table_1():
        found.save(tmp_path)
    assert main(["results", "transfer", str(tmp_path), "--csv", str(tmp_path / "t.csv")]) == 0
    assert "51.1*" in capsys.readouterr().out
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + 5 * 4 + 5
    rows = transfer_table(transfer(questions_of_table_1())).records
    assert [row["model"] for row in rows if row["set"] == "Multi" and row["best"]] == ["Multi"]
