"""study.yaml: what is read, what is filled in, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import InputError
from crisp_stream.study.settings import candidates_of, load_study, study_names, with_candidate
from tests.support.written_study import METHODS, small_study, write_study


def test_a_study_is_read_with_its_defaults(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study.yaml", name=None))
    assert study.name == "study"
    assert (study.base, study.first_dataset, study.num_batches) == ("base", "all", 10)
    assert study.methods["nearest"].kind == "nearest"
    assert study.methods["continued"].kind == "crisp"
    assert study.seeds_of("crisp") == (1, 2)
    assert study.seeds_of("doge") == (1,)
    assert study.specialists_of("crisp") == ("statements", "exam")
    assert study.specialists_of("doge") == ("statements",)
    assert study.specialists_of("multitask") == study.specialists_of("base") == ("",)


def test_candidates_are_the_values_of_keys_that_mean_something_to_the_kind(tmp_path: Path) -> None:
    methods = {
        "base": {"share": [0.1, 0.2]},
        "crisp": {"base_share": [0.0, 0.5], "share": [0.1, 0.2]},
        "classifier": {"share": [0.1, 0.2, 0.3]},
        "dsir": {"share": 0.1},
    }
    finetune = {"methods": ["base"], "fractions": [0.5]}
    study = load_study(write_study(tmp_path / "study.yaml", methods=methods, finetune=finetune, curves=[]))
    found = {name: candidates_of(own) for name, own in study.methods.items()}
    assert found["base"] == found["dsir"] == [{}]
    assert found["crisp"] == [{"base_share": 0.0}, {"base_share": 0.5}]
    assert found["classifier"] == [{"share": 0.1}, {"share": 0.2}, {"share": 0.3}]
    assert with_candidate(study.methods["crisp"], {"base_share": 0.5}).base_share == (0.5,)


@pytest.mark.parametrize("name", ["small", "miniature", "h100"])
def test_packaged_studies_load_by_name_and_say_how_they_are_launched(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.reference in study.methods
    assert study.finetune is not None
    header = (Path(__file__).parents[2] / "recipes" / "studies" / f"{name}.yaml").read_text().split("\n\n")[0]
    assert all(part in header for part in ("Launch:", "Cost:", "crisp-stream study"))
    assert study_names() == ["h100", "miniature", "small"]


def changed(**changes: Any) -> dict[str, Any]:
    return changes


def method(**own: Any) -> dict[str, Any]:
    return {"methods": {**METHODS, "one": {"kind": "crisp", **own}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed(sedes=[1]), "`sedes` is not a study key; did you mean `seeds`"),
        (changed(recipe=None), "`recipe` is missing"),
        (changed(seeds=["one"]), "`seeds.0` must be a whole number"),
        (changed(seeds=[1, 1]), "seeds: must differ"),
        (changed(datasets={}), "datasets: at least one"),
        (changed(datasets={"all": {"root": "x", "inputs": ["y"]}}), "datasets.all: must have either `root` or"),
        (changed(datasets={"all": {"inputs": ["y"], "like": "other"}}), "datasets.all.like: must name a dataset that"),
        (changed(specialists={"one": {"train": ["x"]}}), "specialists.one: must have train, validation and test"),
        (changed(specialists={"one": {"train": ["x"], "questions": "y"}}), "specialists.one: must have either"),
        (changed(specialists={"one two": {"questions": "y"}}), "'one two': a name must be of letters"),
        (changed(methods={"crisp": {}}), "exactly one must be of kind base, got none"),
        (changed(methods={"base": {}, "other": {"kind": "base"}}), "exactly one must be of kind base, got base, other"),
        (changed(methods={"base": {}, "mine": {}}), "methods.mine: `kind` must be one of base, crisp"),
        (method(dataset="none"), "methods.one: none is none of all, third"),
        (method(level=0), "methods.one: level must be at least 1, got 0"),
        (method(levle=1), "`methods.one.levle` is not a study key; did you mean"),
        (method(share=1.5), "methods.one: share must lie between 0 and 1"),
        (method(specialists=["nobody"]), "methods.one: nobody is none of the specialists"),
        (method(num_seeds=3), "methods.one: num_seeds: 1 to 2"),
        (method(generic_share=1.0), "methods.one: generic_share must lie in"),
        (method(kind="only-specialist", generic_share=0.5), "generic_share has no meaning for only-specialist"),
        (method(kind="multitask", base_share=[0.1, 0.2]), "methods.one: base_share must be one value"),
        (changed(finetune={"methods": ["nobody"]}), "finetune.methods: nobody is none of the methods"),
        (changed(finetune={"methods": ["only-specialist"]}), "only-specialist is trained on the specialist text"),
        (changed(finetune={"methods": ["base"], "fractions": [1.0]}), "finetune.fractions: must differ and lie"),
        (changed(finetune={"methods": ["base"], "fractions": [0.01]}), "each must be at least a step of 10"),
        (changed(reference="nobody"), "reference: nobody is none of the methods"),
        (changed(curves=[{"along": "clusters", "methods": ["nobody"]}]), "curves.0: nobody is none of the methods"),
        (changed(curves=[{"along": "time", "methods": ["base"]}]), "`curves.0.along` must be one of clusters"),
        (changed(test_limit=0), "test_limit: must be above 0"),
        (
            changed(recipe=["demo", "max_duration=1000tok", "scheduler.t_warmup=0.1dur"]),
            "max_duration must be in batches",
        ),
        (changed(recipe=["demo", "load_path=x.pt"]), "load_path has no place in a study"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_study(tmp_path / "study.yaml", **changes)
    with pytest.raises(InputError) as raised:
        load_study(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_files_that_are_no_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read.*one of h100, miniature, small"):
        load_study(tmp_path / "none.yaml")
    for text, message in (("a: [", "is not YAML"), ("- 1", "must be a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            load_study(tmp_path / "bad.yaml")


def test_the_study_of_these_tests_has_every_kind_of_method() -> None:
    kinds = {own.get("kind", name) for name, own in small_study()["methods"].items()}
    assert len(kinds) == 8
