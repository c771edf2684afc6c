"""The record of a study: kept whole, and refused where its models could not be compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.study.record.record import StudyResults
from tests.support.made_study import full_study, made_study


def changed(study: StudyResults, what: str, number: int, **fields: Any) -> StudyResults:
    """The record with fields of an item of one of its lists replaced."""
    items = list(getattr(study, what))
    items[number] = dataclasses.replace(items[number], **fields)
    return dataclasses.replace(study, **{what: tuple(items)})


def test_a_record_is_read_as_it_was_written_and_equal_records_are_equal_files(tmp_path: Path) -> None:
    study = full_study()
    paths = study.save(tmp_path / "a")
    assert [Path(path).name for path in paths] == ["study.json", "results.parquet"]
    found = StudyResults.load(tmp_path / "a")
    for own, other in zip(study.judgements, found.judgements, strict=True):
        assert own.values.dtype == other.values.dtype == np.float32
        assert own.values.tobytes() == other.values.tobytes()
        assert dataclasses.replace(own, values=other.values) == other
    assert dataclasses.replace(study, judgements=()) == dataclasses.replace(found, judgements=())
    found.save(tmp_path / "b")
    for name in ("study.json", "results.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "results.parquet").stat().st_size < 0.8 * 4 * sum(
        len(own.values) for own in study.judgements
    )


def test_a_model_of_other_tokens_is_refused_by_its_name_unless_it_was_not_chosen() -> None:
    study = made_study()
    with pytest.raises(InputError, match=r"must be trained on 1,000,000 tokens.*got base\.seed-2: 999,999\. Train"):
        changed(study, "models", 1, tokens=999_999)
    lost = dataclasses.replace(study.models[1], chosen=False, tokens=999_999, candidate={"share": 0.5})
    assert dataclasses.replace(study, models=(*study.models, lost)).models[-1].name == "base.share-0.5.seed-2"


def test_two_chosen_candidates_of_one_method_are_refused() -> None:
    study = made_study()
    twice = dataclasses.replace(study.models[3], candidate={"share": 0.1})
    with pytest.raises(InputError, match=r"one candidate must be chosen of base for medicine with seed 1, got .*share"):
        dataclasses.replace(study, models=(*study.models, twice))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fingerprint": "another"}, r"same examples of medicine\.test; those of base for all, seed 2"),
        ({"values": np.ones(3, np.float32)}, r"same examples of medicine\.test"),
        ({"seed": 9}, r"base for all, seed 9, fine-tuned 0 was judged on medicine\.test, but is none of the chosen"),
        ({"seed": 1}, r"stands twice for medicine\.test"),
        ({"kind": "picture"}, "must be text or questions"),
        ({"values": np.ones(0, np.float32)}, "hold examples"),
    ],
)
def test_judgements_that_cannot_be_paired_are_refused(fields: dict[str, Any], message: str) -> None:
    study = made_study()
    place = [(own.method, own.seed, own.set_name) for own in study.judgements].index(("base", 2, "medicine.test"))
    with pytest.raises(InputError, match=message):
        changed(study, "judgements", place, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reference": "crips"}, r"the reference must be one of base, crisp.*got 'crips'"),
        ({"methods": made_study().methods[1:]}, "exactly one method must be of kind base, got none"),
        ({"methods": made_study().methods * 2}, "exactly one method must be of kind base, got base, base"),
        ({"datasets": {}}, "a method's dataset must be one of"),
    ],
)
def test_names_that_the_record_does_not_know_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(made_study(), **fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study_version": 2}, r"study\.json: study_version 2 is not that of this reader \(1\)\. Upgrade"),
        ({"tokens": "many"}, r"study\.json: `tokens` must be a whole number; got text \('many'\)"),
        ({"tokens": 5}, r"study\.json: made: every model must be trained on 5 tokens"),
        ({"colour": 1}, "`colour` is not a key. Run the study again"),
        ({"seeds": 3}, "`seeds` must be a list; got a whole number"),
        (
            {"curves": [{"name": "c", "along": "moon", "methods": []}]},
            "`curves.0.along` must be one of clusters",
        ),
        ({"methods": None}, "`methods` must be a list; got nothing"),
    ],
)
def test_a_damaged_study_json_is_refused_with_its_place(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    made_study().save(tmp_path)
    path = tmp_path / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=message):
        StudyResults.load(tmp_path)


def test_a_missing_key_and_files_that_are_no_record_are_refused(tmp_path: Path) -> None:
    made_study().save(tmp_path)
    path = tmp_path / "study.json"
    tree = json.loads(path.read_text())
    del tree["models"][0]["tokens"]
    path.write_text(json.dumps(tree))
    with pytest.raises(FormatError, match=r"`models.0.tokens` is missing"):
        StudyResults.load(tmp_path)
    made_study().save(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(FormatError, match=r"results\.parquet: is not a readable table of results"):
        StudyResults.load(tmp_path)
    path.write_text("[]")
    with pytest.raises(FormatError, match=r"study\.json: is not the record of a study"):
        StudyResults.load(tmp_path)


def test_models_of_all_specialists_count_where_a_method_has_none_of_its_own() -> None:
    study = made_study()
    pretrained = study.judged("base", "religion", "religion.test")
    assert [(own.specialist, own.seed, own.fraction) for own in pretrained] == [
        ("", 1, 0.0),
        ("", 2, 0.0),
        ("", 3, 0.0),
    ]
    tuned = study.judged("base", "religion", "religion.test", finetuned=True)
    assert {(own.specialist, own.fraction) for own in tuned} == {("religion", 0.1)}
    assert study.judged("crisp", "medicine", "religion.test") == []
