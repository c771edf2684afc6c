"""Tables as text, Markdown and CSV."""

from __future__ import annotations

import math
from pathlib import Path

from crisp_stream.table import Marked, Table, TableGroup, aligned, csv_text, write_csv

TABLE = Table(
    title="Perplexity",
    caption="lower is better",
    head=("model", "medicine", "file"),
    rows=[("base", "12.50", "a|b"), ("crisp", Marked("9.1", "best"), "c"), ("third", Marked("9.3", "close"), "")],
    words=(0, -1),
    notes=["one seed"],
)


def test_columns_of_words_are_flush_left_and_figures_stand_under_one_another_whatever_their_mark() -> None:
    assert TABLE.text().splitlines() == [
        "Perplexity: lower is better",
        "model  medicine   file",
        "base      12.50   a|b",
        "crisp       9.1*  c",
        "third       9.3≈",
        "*: best of the column; ≈: cannot be told from it (the paired interval includes no difference)",
        "one seed",
    ]


def test_markdown_has_the_best_in_bold_and_escapes_bars() -> None:
    parts = TABLE.markdown().split("\n\n")
    assert parts[:2] == ["### Perplexity", "lower is better."]
    assert parts[2].splitlines() == [
        "| model | medicine | file |",
        "| --- | ---: | --- |",
        "| base | 12.50 | a\\|b |",
        "| crisp | **9.1** | c |",
        "| third | 9.3 ≈ |  |",
    ]
    assert parts[3].startswith("bold: best of the column; ≈")
    assert parts[4] == "one seed."


def test_a_group_explains_marks_once_and_puts_its_notes_last() -> None:
    plain = Table(title="questions", head=("model", "acc %"), rows=[("base", "50.0"), ("x", Marked("61.0", "best"))])
    text = TableGroup(tables=[plain, plain], notes=["as the paper has it"]).text()
    body = "questions\nmodel  acc %\nbase    50.0\nx       61.0*"
    assert text == f"{body}\n\n{body}\n\n*: best of the column\nas the paper has it"


def test_names_and_values_are_set_in_two_columns_without_spaces_at_the_end() -> None:
    assert aligned([("bytes", "12"), ("rate per second", "3"), ("none", "")]) == (
        "bytes            12\nrate per second  3\nnone"
    )


def test_csv_holds_full_precision_and_leaves_missing_figures_empty(tmp_path: Path) -> None:
    records = [{"model": "base", "value": 1 / 3}, {"model": "a,b", "value": math.nan}, {"model": "c", "value": None}]
    written = write_csv(tmp_path / "new" / "t.csv", records)
    assert written.read_text() == csv_text(records) == f'model,value\nbase,{1 / 3!r}\n"a,b",\nc,\n'
