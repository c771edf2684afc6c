"""The record that docs/judge/study.md is written from gives the tables and figures that are committed beside it."""

from __future__ import annotations

from pathlib import Path

from crisp_stream.cli.main import main
from crisp_stream.study.record.record import StudyResults

RECORD = Path(__file__).parents[2] / "docs" / "judge" / "study" / "miniature"


def test_tables_and_figures_of_the_docs_are_made_by_the_command_that_the_docs_name(tmp_path: Path) -> None:
    assert main(["study", "report", str(RECORD), "--out", str(tmp_path)]) == 0
    made = {path.name: path for path in tmp_path.iterdir()}
    committed = {path.name: path for path in RECORD.iterdir() if path.name not in ("study.json", "results.parquet")}
    assert made.keys() == committed.keys()
    assert (tmp_path / "tables.md").read_text() == (RECORD / "tables.md").read_text()
    for name in (own for own in made if own.endswith(".csv")):
        assert len(made[name].read_text().splitlines()) == len(committed[name].read_text().splitlines()), name
    assert all(made[name].read_text().rstrip().endswith("</svg>") for name in made if name.endswith(".svg"))


def test_the_record_holds_the_claims_that_the_docs_make() -> None:
    record = StudyResults.load(RECORD)
    assert {method.kind for method in record.methods} >= {"base", "crisp", "multitask", "classifier", "doge"}
    assert len(record.specialists) == 4
    assert len(record.seeds) == 3
    assert {model.tokens for model in record.models} == {record.tokens} == {491_520}
