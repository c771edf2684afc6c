"""The table of results: one, of at most 100 characters a line, unless it is asked to be wide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.results.pairing import AnyResults
from crisp_stream.results.tables import MOST_COLUMNS, result_rows, result_tables
from tests.support.made_results import question_results, text_results

LONG_NAMES = ("gpt-350m-base-of-the-whole-corpus-seed-1-ba4000", "gpt-350m-crisp-of-medicine-seed-1-ba4000")


def judged(names: tuple[str, str], *, contaminated: bool, questions: bool) -> list[AnyResults]:
    rng = np.random.default_rng(0)
    results: list[AnyResults] = []
    for number, name in enumerate(names):
        for at, set_name in enumerate(("medical-abstracts.test", "everything-else.test")):
            losses = (rng.gamma(9, 0.3, 50) + 4 - 0.1 * number).tolist()
            ids = range(100 * at, 100 * at + 50)
            flags = [row < 3 for row in range(50)] if contaminated else None
            results.append(text_results(name, losses, set_name=set_name, ids=ids, contaminated=flags))
        if questions:
            rows = [[-1.0, -2.0]] * (20 + number) + [[-2.0, -1.0]] * 30
            results.append(question_results(name, rows[:50], set_name="exam.test", metric="acc_norm"))
    return results


@pytest.mark.parametrize("names", [("demo-base-ba400", "demo-crisp-ba400"), LONG_NAMES])
@pytest.mark.parametrize("contaminated", [False, True])
@pytest.mark.parametrize("questions", [False, True])
@pytest.mark.parametrize("compared", [False, True])
def test_no_line_of_the_one_table_has_more_than_100_characters_and_names_stay_different(
    names: tuple[str, str], contaminated: bool, questions: bool, compared: bool
) -> None:
    results = judged(names, contaminated=contaminated, questions=questions)
    rows = result_rows(results, baseline=names[0] if compared else None)
    (table,) = result_tables(rows).tables
    assert max(map(len, table.body().splitlines())) <= MOST_COLUMNS
    assert len({(row[0], row[1]) for row in table.rows}) == len(rows)
    figures = ["figure"] if questions and "figure" in table.head else [one for one in table.head if "perplex" in one]
    assert figures
    assert ("without them" in table.head) == contaminated
    assert any(heading.startswith("than") for heading in table.head) == compared


def test_what_is_left_out_is_said_and_wide_shows_it() -> None:
    rows = result_rows(judged(LONG_NAMES, contaminated=True, questions=True), baseline=LONG_NAMES[0])
    narrow, wide = result_tables(rows), result_tables(rows, wide=True)
    assert any(note.startswith("left out: ") and "token level" in note and "--wide" in note for note in narrow.notes)
    assert not any("--wide" in note for note in wide.notes)
    (table,) = wide.tables
    for heading in ("perplexity", "token level", "bits/byte", "acc %", "acc_norm %", "tokens", "examples"):
        assert heading in table.head
    assert narrow.records == wide.records


def test_columns_of_nothing_but_zeros_are_hidden_unless_the_table_is_wide() -> None:
    one = replace(text_results("a", [1.0, 2.0], contaminated=[False, False]), long=np.array([False, False]))
    (narrow,), (wide,) = (result_tables(result_rows([one]), wide=wide).tables for wide in (False, True))
    assert {"too long", "contaminated", "without them"} & set(narrow.head) == set()
    assert {"too long", "contaminated", "without them"} <= set(wide.head)


def test_the_measure_that_counts_is_never_left_out() -> None:
    """Of two tokenisers that is bits per byte."""
    base = text_results(LONG_NAMES[0], [1.0, 2.0] * 20, contaminated=[True, False] * 20)
    other = text_results(LONG_NAMES[1], [1.0, 2.0] * 20, contaminated=[True, False] * 20, packing="document")
    (table,) = result_tables(result_rows([base, other], baseline=LONG_NAMES[0])).tables
    assert "bits/byte" in table.head


def test_both_commands_take_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in judged(LONG_NAMES, contaminated=False, questions=True):
        one.save(tmp_path)
    assert main(["results", "table", str(tmp_path)]) == 0
    narrow = capsys.readouterr().out
    assert main(["results", "table", str(tmp_path), "--wide"]) == 0
    assert "token level" not in narrow.splitlines()[0]
    assert "token level" in capsys.readouterr().out.splitlines()[0]
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert "--wide" in capsys.readouterr().out
