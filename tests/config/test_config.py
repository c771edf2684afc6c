"""Recipes as files: what is accepted, and what each mistake is told."""

from __future__ import annotations

import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from crisp_stream.config.durations import batches_of, parse_duration
from crisp_stream.config.files import copy_recipe, list_recipes, read_recipe
from crisp_stream.config.load import dump_recipe, load_recipe
from crisp_stream.config.recipe import Recipe
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
        ("seed=true", r"`seed` must be a whole number; got true or false"),
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
        ("save_at=[3ba, soon]", r"`save_at.1` must be batches .* or a share such as 0.1dur; got 'soon'"),
        ("save_at=[0ba]", r"`save_at.0` must be above 0; got 0ba"),
        ("save_at=[0dur]", r"`save_at.0` must be above 0; got 0dur"),
        ("save_at=3ba", r"`save_at` must be a list; got"),
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
        ("mixture.phases=[{histogram: base, until: 1dur}, {histogram: a}]", r"phase 1 would never start"),
        ("mixture.phases=[{histogram: base, until: 0dur}, {histogram: a}]", r"must lie after the phase before it"),
        ("mixture.phases=[{histogram: base, until: 9ep}, {histogram: a}]", r"or a share such as 0.9dur; got '9ep'"),
        ("mixture.phases=[{histogram: base, until: 2ba}, {histogram: checkpoint}]", r"only the first phase can be"),
        ("mixture.phases=[{histogram: [checkpoint, a]}, {histogram: b}]", r"only the first phase can be, and alone"),
        ("mixture.phases=[{histogram: checkpoint, until: 2ba}, {histogram: a}]", r"has neither `until` nor"),
        ("mixture.phases=[{histogram: checkpoint}]", r"say in a second phase what comes after it"),
        ("mixture.phases=[{histogram: checkpoint}, {histogram: a}]", r"needs `load_path`; there is none"),
        (
            "mixture.phases=[{histogram: a, until: 4ba}, {histogram: b, until: 4ba}, {histogram: c}]",
            r"`mixture.phases.1.until` must lie after the phase before it",
        ),
        ("autoresume=true", r"`autoresume` needs `save_folder`"),
        ("load_weights_only=true", r"`load_weights_only` needs `load_path`"),
        ("load_restart=[data]", r"`load_restart` needs `load_path`"),
        ("load_restart=[weights]", r"`load_restart.0` must be one of optimizer, schedule, data; got 'weights'"),
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


def float_keys(kind: type, prefix: str = "") -> list[str]:
    """Dotted keys of a section that take any number; those of its first phase for a list of phases."""
    keys: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = [part for part in (hint, *typing.get_args(hint)) if isinstance(part, type)]
        is_list = typing.get_origin(hint) is tuple
        key = f"{prefix}{name}.0" if is_list else f"{prefix}{name}"
        keys += [key] * (float in inner)
        keys += [below for part in inner if is_dataclass(part) for below in float_keys(part, f"{key}.")]
    return keys


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "1e999"])
@pytest.mark.parametrize("key", float_keys(Recipe))
def test_infinities_and_nan_are_refused_for_every_number(recipe_file: Path, key: str, value: str) -> None:
    override = f"{key}={value}" if key != "optimizer.betas.0" else f"optimizer.betas=[{value}, 0.9]"
    phase, is_scheduled, name = key.partition("schedule.to.0.")
    if is_scheduled:
        override = f"{phase}schedule.to=[{{{name}: {value}}}]"
    with pytest.raises(RecipeError, match=rf"`{key}` must be a finite number; got -?(inf|nan)"):
        load_recipe(recipe_file, [override])


def test_the_keys_that_take_any_number_are_found() -> None:
    found = {"optimizer.lr", "optimizer.betas.0", "gradient_clipping", "mixture.phases.0.max_repeats", "data.timeout"}
    assert found <= set(float_keys(Recipe))


def test_a_whole_number_beyond_all_floats_is_refused(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"`optimizer.lr` must be a number; got a whole number"):
        load_recipe(recipe_file, [f"optimizer.lr=1{'0' * 400}"])


@pytest.mark.parametrize("key", ["max_duration", "data", "mixture", "model", "optimizer"])
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
    with pytest.raises(RecipeError, match=r"'crips' is not a packaged recipe; did you mean `crisp`\?"):
        load_recipe(["demo", "crips"])
    with pytest.raises(RecipeError, match=r"nowhere.yaml does not exist.*demo"):
        load_recipe("nowhere.yaml")
    with pytest.raises(RecipeError, match="is not a packaged recipe"):
        read_recipe("../pyproject")


def test_packaged_recipes_are_listed_and_copied_once(tmp_path: Path) -> None:
    assert "gpt-1.3b" in list_recipes()
    path = copy_recipe("gpt-1.3b", tmp_path)
    assert path == tmp_path / "gpt-1.3b.yaml"
    assert path.read_text() == read_recipe("gpt-1.3b")
    with pytest.raises(InputError, match="exists already"):
        copy_recipe("gpt-1.3b", tmp_path)
    assert load_recipe([path, "crisp"]) == load_recipe(["gpt-1.3b", "crisp"])


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


def test_later_recipes_are_laid_over_earlier_ones_key_by_key(recipe_file: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("optimizer: {weight_decay: 0.5}\nmixture: {phases: [{histogram: h.parquet}]}")
    recipe = load_recipe([recipe_file, over], ["optimizer.eps=1e-6", "save_folder=runs/{run_name}"])
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.eps) == (0.001, 0.5, 1e-6)
    assert [phase.histogram for phase in recipe.mixture.phases] == ["h.parquet"]
    assert recipe.checkpoint_folder == "runs/small"


def test_a_run_is_named_by_its_recipes_unless_one_names_it(recipe_file: Path, tmp_path: Path) -> None:
    unnamed = tmp_path / "mine.yaml"
    unnamed.write_text(yaml.safe_dump({key: value for key, value in SMALLEST.items() if key != "run_name"}))
    assert load_recipe(unnamed).run_name == "mine"
    assert load_recipe([unnamed, "crisp"]).run_name == "mine-crisp"
    assert load_recipe([recipe_file, "crisp"]).run_name == "small"
    assert load_recipe(["gpt-1.3b", "crisp"]).run_name == "gpt-1.3b-crisp"


def test_a_file_extends_packaged_recipes_and_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/tiny.yaml").write_text("extends: [demo, ./lr.yaml]\nmodel: {n_layer: 1}")
    (tmp_path / "sub/lr.yaml").write_text("optimizer: {lr: 0.5}")
    recipe = load_recipe([tmp_path / "sub/tiny.yaml", "crisp"])
    assert (recipe.model.n_layer, recipe.model.n_embd, recipe.optimizer.lr) == (1, 128, 0.5)
    assert recipe.run_name == "tiny-crisp"
    (tmp_path / "sub/lr.yaml").write_text("extends: tiny.yaml")
    with pytest.raises(RecipeError, match=r"tiny.yaml extends itself, by .*tiny.yaml -> .*lr.yaml -> .*tiny.yaml"):
        load_recipe(tmp_path / "sub/tiny.yaml")
    (tmp_path / "sub/lr.yaml").write_text("extends: {a: 1}")
    with pytest.raises(RecipeError, match=r"`extends` must be a recipe or a list of recipes; got \{'a': 1\}"):
        load_recipe(tmp_path / "sub/tiny.yaml")


def test_a_size_or_a_method_alone_is_told_what_is_missing() -> None:
    with pytest.raises(RecipeError, match=r"recipe gpt-1.3b: `mixture` is missing.* Add a method behind the size"):
        load_recipe("gpt-1.3b")
    with pytest.raises(RecipeError, match=r"recipe crisp: .*is missing"):
        load_recipe("crisp")


def test_a_resolved_recipe_is_read_back_as_it_was(tmp_path: Path) -> None:
    recipe = load_recipe(["gpt-6.7b", "from-checkpoint"], ["load_restart=[schedule]", "eval.inputs=[a, b]"])
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_shares_of_a_run_become_the_nearest_batch() -> None:
    assert batches_of("0.90625dur", tokens_per_batch=100, run_batches=1_024_000) == 928_000
    assert batches_of("0.5dur", tokens_per_batch=100, run_batches=3) == 2
    with pytest.raises(RecipeError, match="a duration is a number of batches or tokens"):
        batches_of("0.5dur", tokens_per_batch=100)
