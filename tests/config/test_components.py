"""Recipes of several sources, components and schedules: what they mean, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from crisp_stream.config.components import ComponentRecipe
from crisp_stream.config.kept import changed_keys, kept_keys
from crisp_stream.config.load import dump_recipe, load_each, load_recipe
from crisp_stream.config.sections import SourceRecipe
from crisp_stream.errors import RecipeError
from crisp_stream.loading.reader import ReadOptions

TASK = {"source": "task", "histogram": "base", "share": 0.05, "max_repeats": 20}
MIXED: dict[str, Any] = {
    "run_name": "mixed",
    "max_duration": "10ba",
    "global_train_batch_size": 8,
    "data": {"sources": {"corpus": {"remote": "c"}, "task": {"remote": "t"}}},
    "mixture": {"phases": [{"components": [{"source": "corpus", "histogram": "h.parquet", "share": 0.95}, TASK]}]},
    "model": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "optimizer": {"lr": 0.001},
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(MIXED))
    return path


def test_sources_and_components_come_through(mixed: Path) -> None:
    recipe = load_recipe(mixed)
    assert recipe.data.source_names == ("corpus", "task")
    assert recipe.data.roots == {"corpus": "c", "task": "t"}
    corpus, task = recipe.mixture.phases[0].parts
    assert corpus == ComponentRecipe(source="corpus", histogram="h.parquet", share=0.95)
    assert (task.source, task.histogram, task.share, task.max_repeats) == ("task", "base", 0.05, 20)


def test_a_dataset_alone_is_one_source_without_a_name_and_a_phase_one_component() -> None:
    recipe = load_recipe(["demo", "crisp"], ["data.remote=r", "data.generation=2", "mixture.phases.0.windows=w"])
    assert recipe.data.as_sources == {"": SourceRecipe(remote="r", generation=2)}
    assert recipe.mixture.phases[0].parts == (ComponentRecipe(histogram="task.parquet", windows="w"),)


def test_a_source_has_its_own_cache_or_that_of_all(mixed: Path) -> None:
    given = ["data.local=all", "data.cache_limit=9gb", "data.lookahead=7", "data.timeout=3"]
    own = ["data.sources.task.local=own", "data.sources.task.cache_limit=1gb"]
    options = ReadOptions.of_sources(load_recipe(mixed, [*given, *own]).data)
    assert options["corpus"] == ReadOptions(local="all", cache_limit="9gb", lookahead=7, timeout=3)
    assert options["task"] == ReadOptions(local="own", cache_limit="1gb", lookahead=7, timeout=3)


def test_a_resolved_recipe_of_components_is_read_back_as_it_was(mixed: Path, tmp_path: Path) -> None:
    schedule = "mixture.phases.0.schedule={to: [{source: task, windows: w.windows.parquet}], steps: 3, shape: cosine}"
    recipe = load_recipe(mixed, ["mixture.phases.0.components.1.max_repeats=null", schedule])
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.remote=r", r"`data.sources` and `data.remote` are both given.*data.sources.NAME.remote"),
        ("data.generation=1", r"`data.sources` and `data.generation` are both given"),
        ("data.sources=null", r"`data` needs `data.remote`, the root of a dataset, or `data.sources`"),
        ("data.sources={}", r"`data.sources` must name at least one dataset"),
        ("data.sources={a-b: {remote: x}}", r"`data.sources.a-b`: the name of a source must be made of letters"),
        ("data.sources.task={}", r"`data.sources.task.remote` is missing"),
        ("data.sources.task.remote=''", r"`data.sources.task.remote` must be the root of a dataset; got ''"),
        ("data.sources.task.remot=x", r"`data.sources.task.remot` is not a recipe key; did you mean"),
        ("data.sources.task.cache_limit=lots", r"`data.sources.task.cache_limit` must be bytes or a size"),
        ("data.sources.task.cache_limit=0", r"`data.sources.task.cache_limit` must be above 0; got 0"),
        (
            "mixture.phases.0.components.1.source=taks",
            r"`mixture.phases.0.components.1.source` must be one of corpus, ",
        ),
        ("mixture.phases.0.components.1.source=taks", r"got taks; did you mean `task`\?"),
        ("mixture.phases.0.components.1.source=null", r"components.1.source` must be one of corpus, task; got none\."),
        ("mixture.phases.0.components.1.share=0.1", r"shares that sum to 1; got 0.95 \+ 0.1 = 1.05"),
        ("mixture.phases.0.components.1.share=0", r"components.1.share` must be above 0 and at most 1; got 0"),
        ("mixture.phases.0.components.1.share=.nan", r"components.1.share` must be a finite number; got nan"),
        ("mixture.phases.0.components.1.max_repeats=0", r"components.1.max_repeats` must be above 0; got 0.0"),
        (
            "mixture.phases.0.components.0.on_excess=cap",
            r"components.0.on_excess` is cap, but there is no .*max_repeats",
        ),
        ("mixture.phases.0.components.0.histogram=null", r"components.0.histogram` names no histogram, nor"),
        ("mixture.phases.0.components.0.histogram=[]", r"components.0.histogram` names no histogram; got \(\)"),
        ("mixture.phases.0.components.0.windows=''", r"components.0.windows` names no selection; got ''"),
        ("mixture.phases.0.components.0.histogram=checkpoint", r"components.0.histogram` is checkpoint, which only a "),
        ("mixture.phases.0.components=[]", r"`mixture.phases.0.components` must hold at least one component"),
        ("mixture.phases.0.histogram=base", r"`mixture.phases.0` has `components` and `histogram`. Give histogram to"),
        ("mixture.phases.0.windows=w", r"`mixture.phases.0` has `components` and `windows`"),
        ("mixture.phases.0.max_repeats=3", r"`mixture.phases.0` has `components` and `max_repeats`"),
        ("mixture.phases.0.on_excess=cap", r"`mixture.phases.0` has `components` and `on_excess`"),
        (
            "mixture.phases=[{histogram: base}]",
            r"`mixture.phases.0` says no source, and `data.sources` are corpus, task",
        ),
        (
            "mixture.phases=[{histogram: base, schedule: {to: [{histogram: h}]}}]",
            r"`mixture.phases.0.schedule` needs `mixture.phases.0.components`, where it begins",
        ),
        (
            "mixture.phases.0.schedule={to: [{source: corpus, histogram: h}]}",
            r"`mixture.phases.0.components.1.max_repeats` must be absent in a phase with a schedule",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(mixed: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(mixed, [override])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{to: []}", r"`mixture.phases.0.schedule.to` must hold at least one component"),
        ("{to: [{histogram: h, share: 0.5}]}", r"`mixture.phases.0.schedule.to` must have shares that sum to 1"),
        ("{to: [{histogram: h}], steps: 0}", r"`mixture.phases.0.schedule.steps` must be above 0; got 0"),
        ("{to: [{histogram: h}], shape: square}", r"`mixture.phases.0.schedule.shape` must be one of linear, cosine"),
        ("{steps: 2}", r"`mixture.phases.0.schedule.to` is missing"),
        ("{to: [{histogram: h, max_repeats: 2}]}", r"`mixture.phases.0.schedule.to.0.max_repeats` must be absent"),
        ("{to: [{histogram: h, source: corpus}]}", r"schedule.to.0.source` is corpus, but `data` names no sources"),
    ],
)
def test_a_mistake_in_a_schedule_is_named_with_its_key(schedule: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(["demo", "annealed"], [f"mixture.phases.0.schedule={schedule}"])


def test_a_size_names_one_dataset_and_a_method_sources_in_its_place() -> None:
    assert load_recipe(["demo", "crisp-task"]).data.roots == {"corpus": "demo-out/data", "task": "specialist"}
    assert load_recipe(["gpt-350m", "crisp-task"]).data.cache_limit == "500gb"
    with pytest.raises(RecipeError, match=r"`data.remote` are both given.*data.sources=null"):
        load_recipe(["demo", "crisp-task"], ["data.remote=s3://b/corpus"])


def test_components_are_part_of_what_a_run_keeps_and_other_runs_are_told_as_ever(mixed: Path) -> None:
    one = kept_keys(load_recipe(["demo", "crisp"]))
    assert [key for key in one if key.startswith("mixture.phases")] == [
        f"mixture.phases.0.{key}" for key in ("histogram", "windows", "until", "max_repeats", "on_excess")
    ]
    saved = kept_keys(load_recipe(mixed, ["mixture.phases.0.components.0.histogram=/a/h.parquet"]))
    assert changed_keys(saved, load_recipe(mixed)) == {}
    other = load_recipe(mixed, ["mixture.phases.0.components.1.max_repeats=3"])
    assert list(changed_keys(saved, other).values()) == ["`mixture.phases.0.components.1.max_repeats` was 20.0, is 3.0"]
    shares = ["mixture.phases.0.components.0.share=0.9", "mixture.phases.0.components.1.share=0.1"]
    assert list(changed_keys(saved, load_recipe(mixed, shares))) == [
        f"mixture.phases.0.components.{number}.share" for number in (0, 1)
    ]


def test_each_file_takes_the_place_of_the_one_that_components_name(mixed: Path) -> None:
    first, second = load_each(mixed, [], ["a.parquet", "b.parquet"])
    assert [recipe.run_name for recipe in (first, second)] == ["mixed-a", "mixed-b"]
    corpus, task = second.mixture.phases[0].parts
    assert (corpus.histogram, corpus.share, task.histogram) == ("b.parquet", 0.95, "base")
    (annealed,) = load_each(["demo", "annealed"], [], ["a.parquet"])
    phase = annealed.mixture.phases[0]
    assert phase.schedule is not None
    assert (phase.parts[0].histogram, phase.schedule.to[0].histogram) == ("base", "a.parquet")


def test_each_keeps_the_selection_of_a_phase_that_has_both() -> None:
    (recipe,) = load_each(["demo", "crisp"], ["mixture.phases.0.windows=good.windows.parquet"], ["a.parquet"])
    assert (recipe.mixture.phases[0].histogram, recipe.mixture.phases[0].windows) == (
        "a.parquet",
        "good.windows.parquet",
    )


@pytest.mark.parametrize(
    ("override", "file", "message"),
    [
        ("seed=1", "a.windows.parquet", r"name as `windows`; got none. Write a recipe for each run"),
        ("mixture.phases.0.components.1.histogram=t.parquet", "a.parquet", "got h.parquet, t.parquet"),
    ],
)
def test_each_needs_one_file_to_take_the_place_of(mixed: Path, override: str, file: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_each(mixed, [override], [file])
