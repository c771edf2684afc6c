"""Recipes as files: what is accepted, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from crisp_stream.config import copy_recipe, list_recipes, load_recipe, read_recipe
from crisp_stream.durations import batches_of, parse_duration
from crisp_stream.errors import InputError, RecipeError

SMALLEST: dict[str, Any] = {
    "run_name": "small",
    "max_duration": "10ba",
    "global_train_batch_size": 8,
    "data": {"remote": "dataset"},
    "mixture": {"phases": [{"histogram": "base"}]},
    "model": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "optimizer": {"lr": 0.001},
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALLEST))
    return path


def test_the_smallest_recipe_gets_the_defaults_of_the_paper(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.optimizer.weight_decay == 0.1
    assert recipe.scheduler.alpha_f == 0.1
    assert recipe.mixture.draw == "systematic"
    assert recipe.model.dropout == 0.0
    assert recipe.checkpoint_folder is None


def test_overrides_reach_every_depth_and_the_last_one_wins(recipe_file: Path) -> None:
    overrides = ["seed=3", "optimizer.lr=1e-4", "scheduler.t_warmup=2ba", "mixture.phases.0.histogram=a.h", "seed=4"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.seed == 4
    assert recipe.optimizer.lr == pytest.approx(1e-4)
    assert recipe.scheduler.t_warmup == "2ba"
    assert recipe.mixture.phases[0].histogram == "a.h"


def test_numbers_that_yaml_reads_as_text_are_numbers(recipe_file: Path) -> None:
    assert yaml.safe_load("1e-4") == "1e-4"
    assert load_recipe(recipe_file, ["optimizer.lr=1e-4"]).optimizer.lr == pytest.approx(1e-4)
    assert load_recipe(recipe_file, ["optimizer.lr=1"]).optimizer.lr == 1.0


def test_a_list_of_histograms_and_phases_come_through(recipe_file: Path) -> None:
    overrides = ["mixture.phases=[{histogram: base, until: 4ba}, {histogram: [a, b]}]"]
    first, second = load_recipe(recipe_file, overrides).mixture.phases
    assert (first.histogram, first.until) == ("base", "4ba")
    assert (second.histogram, second.until) == (("a", "b"), None)


def test_the_run_name_is_filled_into_the_save_folder(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["save_folder=s3://bucket/{run_name}/"])
    assert recipe.checkpoint_folder == "s3://bucket/small"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_duratoin=9ba", r"`max_duratoin` is not a recipe key; did you mean `max_duration`\?"),
        ("optimizer.lrr=1", r"`optimizer.lrr` is not a recipe key; did you mean `optimizer.lr`\?"),
        ("mixture.phases.0.histogramm=a", r"`mixture.phases.0.histogramm` is not a recipe key; did you mean"),
        ("zzz=1", r"`zzz` is not a recipe key\.$"),
        ("mixture.phases.7.until=2ba", r"`mixture.phases` has items 0 to 0"),
        ("seed.deep=1", r"`seed` is a whole number and has no key 'deep'|`seed.deep`|must be"),
        ("seed", "an override is key=value"),
        ("seed=[", "is not YAML"),
        ("seed=1.5", r"`seed` must be a whole number; got a number \(1.5\)"),
        ("seed=true", r"`seed` must be a whole number; got true/false"),
        ("seed=-1", r"`seed` must be 0 or more"),
        ("autoresume=1", r"`autoresume` must be true or false; got a whole number"),
        ("optimizer.lr=fast", r"`optimizer.lr` must be a number; got text \('fast'\)"),
        ("optimizer.lr=0", r"`optimizer.lr` must be above 0"),
        ("optimizer.betas=[0.9]", r"`optimizer.betas` must be a list of 2 values; got 1"),
        ("optimizer.betas=[0.9, 1.0]", r"`optimizer.betas` must lie in \[0, 1\)"),
        ("optimizer=3", r"`optimizer` must be a mapping of keys; got a whole number"),
        ("precision=fp64", r"`precision` must be one of fp32, amp_bf16, amp_fp16; got 'fp64'"),
        ("mixture.draw=random", r"`mixture.draw` must be one of systematic, multinomial"),
        ("mixture.phases=[]", r"`mixture.phases` must hold at least one phase"),
        ("mixture.phases.0.histogram=[]", r"`mixture.phases.0.histogram` names no histogram"),
        ("mixture.phases.0.histogram={a: 1}", r"`mixture.phases.0.histogram` must be text or a list; got a mapping"),
        ("max_duration=10ep", r"`max_duration` must be batches such as 400ba, tokens such as 1000000tok; got '10ep'"),
        ("max_duration=400", r"`max_duration` must be batches such as 400ba, .* got '400'"),
        ("max_duration=0ba", r"`max_duration` must be above 0"),
        ("save_interval=soon", r"`save_interval` must be batches .* or a share such as 0.1dur; got 'soon'"),
        ("save_interval=0ba", r"`save_interval` must be above 0"),
        ("scheduler.t_warmup=11ba", r"`scheduler.t_warmup` must not be longer than `max_duration` \(10ba\)"),
        ("scheduler.t_warmup=100tok", r"`scheduler.t_warmup` must be in the unit of `max_duration`"),
        ("scheduler.alpha_f=2", r"`scheduler.alpha_f` must lie in \[0, 1\]"),
        ("model.n_head=3", r"`model.n_head` must divide `model.n_embd`; 3 does not divide 32"),
        ("model.dropout=1", r"`model.dropout` must lie in \[0, 1\)"),
        (
            "device_train_microbatch_size=3",
            "`device_train_microbatch_size` must divide `global_train_batch_size`; 3 does",
        ),
        ("mixture.phases.0.until=4ba", r"`mixture.phases.0.until` is 4ba, but the run lasts `max_duration` = 10ba"),
        ("mixture.phases.0.max_repeats=0", r"`mixture.phases.0.max_repeats` must be above 0; got 0.0"),
        ("mixture.phases.0.on_excess=cap", r"`mixture.phases.0.on_excess` is cap, but there is no .*to cap at"),
        ("mixture.phases=[{histogram: base}, {histogram: a}]", r"`mixture.phases.0.until` is missing"),
        ("mixture.phases=[{histogram: base, until: 10ba}, {histogram: a}]", r"phase 1 would never start"),
        (
            "mixture.phases=[{histogram: a, until: 4ba}, {histogram: b, until: 4ba}, {histogram: c}]",
            r"`mixture.phases.1.until` must lie after the phase before it",
        ),
        ("autoresume=true", r"`autoresume` needs `save_folder`"),
        ("load_weights_only=true", r"`load_weights_only` needs `load_path`"),
        ("log_windows=true", r"`log_windows` needs `save_folder`"),
        ("eval_interval=1ba", r"`eval_interval` needs `eval`"),
        ("save_folder=gs://bucket/run", r"`save_folder` must be a local folder or an s3:// URL; got gs://bucket/run"),
        ("run_name=a/b", r"`run_name` must be a name without `/`"),
        ("data.cache_limit=lots", r"`data.cache_limit` must be bytes or a size such as 200gb"),
    ],
)
def test_a_mistake_is_named_with_its_key(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize("key", ["run_name", "max_duration", "data", "mixture", "model", "optimizer"])
def test_a_required_key_that_is_missing_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in SMALLEST.items() if name != key}))
    with pytest.raises(RecipeError, match=f"`{key}` is missing; it has no default"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- 1", "must be a mapping"), ("", "must be a mapping")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("run_name: !!python/object/apply:os.system [true]")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)


def test_a_recipe_that_does_not_exist_is_told_with_the_packaged_ones() -> None:
    with pytest.raises(RecipeError, match=r"'demo-crips' is not a packaged recipe; did you mean `demo-crisp`\?"):
        load_recipe("demo-crips")
    with pytest.raises(RecipeError, match=r"nowhere.yaml does not exist.*demo-base"):
        load_recipe("nowhere.yaml")
    with pytest.raises(RecipeError, match="is not a packaged recipe"):
        read_recipe("../pyproject")


def test_packaged_recipes_are_listed_and_copied_once(tmp_path: Path) -> None:
    assert "demo-crisp" in list_recipes()
    path = copy_recipe("demo-crisp", tmp_path)
    assert path == tmp_path / "demo-crisp.yaml"
    assert path.read_text() == read_recipe("demo-crisp")
    with pytest.raises(InputError, match="exists already"):
        copy_recipe("demo-crisp", tmp_path)
    assert load_recipe(path) == load_recipe("demo-crisp")


def test_durations_become_whole_batches() -> None:
    assert parse_duration("1_000tok") == (1000, "tok")
    assert batches_of("7ba", tokens_per_batch=100) == 7
    assert batches_of("1000tok", tokens_per_batch=100) == 10
    assert batches_of("1001tok", tokens_per_batch=100) == 11
    with pytest.raises(RecipeError, match="a duration is a number of batches or tokens"):
        parse_duration("3ep")


@pytest.mark.parametrize(
    ("limit", "expected"), [("200gb", 200 * 10**9), ("1.5 kb", 1500), ("7", 7), (9, 9), (None, None)]
)
def test_a_cache_limit_is_a_number_of_bytes(recipe_file: Path, limit: Any, expected: int | None) -> None:
    override = f"data.cache_limit={'null' if limit is None else limit}"
    assert load_recipe(recipe_file, [override]).data.cache_limit_bytes == expected
