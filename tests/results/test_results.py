"""Saved results: what is written is read, and what is damaged, foreign or double is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.results.results import QuestionResults, TextResults, load_all, load_results


def text_results(name: str = "model-ba1", set_name: str = "held/out") -> TextResults:
    return TextResults(
        model={"name": name},
        set_name=set_name,
        example_ids=np.array([5, 2**64 - 1], np.uint64),
        loss_sums=np.array([6.0, 1.5]),
        num_tokens=np.array([3, 1]),
        num_bytes=np.array([4, 2]),
        num_empty=3,
        contaminated=np.array([True, False]),
        notes={"dropped": {"empty": 1}},
    )


def question_results() -> QuestionResults:
    return QuestionResults(
        model={"name": "model-ba1"},
        set_name="arc",
        example_ids=np.array([7, 8], np.uint64),
        metric="acc_norm",
        answers=np.array([0, 2]),
        log_probs=[[-1.0, -2.0], [-3.0, -4.0, -3.5]],
        num_characters=[[1, 10], [3, 5, 7]],
        topics=[None, "law"],
    )


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    for results in (text_results(), question_results()):
        again = load_results(results.save(tmp_path))
        assert type(again) is type(results)
        assert again.model == results.model
        assert (again.set_name, again.notes) == (results.set_name, results.notes)
        assert again.example_ids.tolist() == results.example_ids.tolist()
        assert results.columns
        for name in (*results.columns, *results.facts):
            assert np.all(getattr(again, name) == getattr(results, name))
    flags = load_results(text_results().save(tmp_path)).contaminated
    assert flags is not None
    assert flags.tolist() == [True, False]
    assert {path.name for path in tmp_path.iterdir()} == {
        "model-ba1.held-out.results.parquet",
        "model-ba1.arc.results.parquet",
    }


def test_figures_of_single_examples() -> None:
    results = text_results()
    assert results.losses.tolist() == [2.0, 1.5]
    np.testing.assert_allclose(results.bits_per_byte, np.array([1.5, 0.75]) / np.log(2))
    questions = question_results()
    assert questions.right.tolist() == [True, False]
    assert questions.right_normalised.tolist() == [False, True]
    assert questions.reported.tolist() == [False, True]


def test_results_judged_twice_count_once_and_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    path = text_results().save(tmp_path)
    assert len(load_all([path])) == 1
    assert [results.set_name for results in load_all([path])] == ["held/out"]
    assert len(load_all([tmp_path, path])) == 1
    other = replace(text_results(), model={"name": "model-ba1", "batch": 2}).save(tmp_path / "again")
    with pytest.raises(InputError, match="two models are called model-ba1 on held/out"):
        load_all([tmp_path, other])
    text_results(name="other").save(tmp_path)
    assert [results.model_name for results in load_all([path, tmp_path / "other.held-out.results.parquet"])] == [
        "model-ba1",
        "other",
    ]


def test_what_is_no_file_of_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        load_all([tmp_path])
    with pytest.raises(InputError, match="must be a folder of results or a file ending in"):
        load_all([tmp_path / "absent"])
    bad = tmp_path / "bad.results.parquet"
    bad.write_bytes(b"no parquet")
    with pytest.raises(FormatError, match="not a file of results, or damaged"):
        load_results(bad)
    path = text_results().save(tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.take([1, 0]), bad)
    with pytest.raises(FormatError, match="its examples are not those it says"):
        load_results(bad)
    pq.write_table(table.drop_columns(["tokens"]), bad)
    with pytest.raises(FormatError, match=r"not a file of results, or damaged .*tokens"):
        load_results(bad)
    metadata = {
        key: value.replace(b'"results_version": 1', b'"results_version": 2')
        for key, value in table.schema.metadata.items()
    }
    pq.write_table(table.replace_schema_metadata(metadata), bad)
    with pytest.raises(FormatError, match="results_version 2 is not 1"):
        load_results(bad)
