"""The record of a study: what is written is read, and what contradicts itself is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.study.results import ROWS_FILE, STUDY_FILE, StudyResults
from tests.study.records import TOKENS, made_up_study

METHODS = ("base", "crisp-2", "doge", "crisp-1", "classifier")


@pytest.fixture(scope="module")
def study() -> StudyResults:
    return made_up_study(METHODS, ("medicine", "religion"), num_examples=40)


def test_a_record_is_read_as_it_was_written(study: StudyResults, tmp_path: Path) -> None:
    found = StudyResults.load(study.save(tmp_path / "record"))
    assert replace(found, judged=()) == replace(study, judged=())
    assert len(found.judged) == len(study.judged)
    for own, written in zip(found.judged, study.judged, strict=True):
        assert own.values.dtype == np.float32
        np.testing.assert_allclose(own.values, written.values, rtol=0, atol=2**-14)
        assert replace(own, values=written.values) == written


def test_a_record_is_written_to_the_same_bytes_again(study: StudyResults, tmp_path: Path) -> None:
    study.save(tmp_path / "one")
    StudyResults.load(tmp_path / "one").save(tmp_path / "two")
    for name in (STUDY_FILE, ROWS_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_study_of_fifteen_methods_stays_below_a_megabyte(tmp_path: Path) -> None:
    made_up_study(num_examples=500).save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000


def test_models_of_unequal_tokens_are_refused_by_name(study: StudyResults) -> None:
    models = [
        replace(model, tokens=TOKENS - 1) if model.name == "doge.medicine.seed-2" else model for model in study.models
    ]
    with pytest.raises(
        InputError, match=r"equally many tokens, 6,553,600; got doge\.medicine\.seed-2 6,553,599\. Train"
    ):
        replace(study, models=tuple(models))


def test_a_candidate_that_was_not_chosen_may_have_seen_other_tokens(study: StudyResults) -> None:
    models = tuple(model if model.chosen else replace(model, tokens=1) for model in study.models)
    assert models != study.models
    replace(study, models=models)


def test_a_judged_model_that_is_not_in_the_record_is_refused(study: StudyResults) -> None:
    models = tuple(model for model in study.models if model.method != "doge")
    with pytest.raises(InputError, match=r"doge\.medicine\.seed-1 on medicine\.test: must be a chosen model"):
        replace(study, models=models)


def test_a_model_that_is_judged_twice_is_refused(study: StudyResults) -> None:
    with pytest.raises(InputError, match=r"base\.seed-1 on medicine\.test: must stand in the record once"):
        replace(study, judged=(*study.judged, study.judged[0]))


def test_a_loss_that_is_no_number_is_refused(study: StudyResults) -> None:
    broken = replace(study.judged[0], values=np.array([1, np.nan], np.float32))
    with pytest.raises(InputError, match="must be a finite number for each example"):
        replace(study, judged=(broken,))


def test_a_study_without_a_base_is_refused(study: StudyResults) -> None:
    with pytest.raises(InputError, match="exactly one must be of kind base, got none"):
        replace(study, methods=study.methods[1:])


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold the record of a study \(study\.json\), got none"):
        StudyResults.load(tmp_path)


def test_a_record_of_a_newer_version_is_refused(study: StudyResults, tmp_path: Path) -> None:
    path = study.save(tmp_path) / STUDY_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "study_version": 2}))
    with pytest.raises(FormatError, match=r"study_version 2 is not that of this reader \(1\)\. Upgrade"):
        StudyResults.load(tmp_path)


def test_a_damaged_record_is_refused(study: StudyResults, tmp_path: Path) -> None:
    folder = study.save(tmp_path)
    tree = json.loads((folder / STUDY_FILE).read_text())
    del tree["batches"]
    (folder / STUDY_FILE).write_text(json.dumps(tree))
    with pytest.raises(FormatError, match="batches"):
        StudyResults.load(folder)
    study.save(folder)
    (folder / ROWS_FILE).write_bytes((folder / ROWS_FILE).read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"results\.parquet: holds no results of a study"):
        StudyResults.load(folder)
