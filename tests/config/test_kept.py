"""Which keys of a recipe a resumed run must keep, and which it may change."""

from __future__ import annotations

import pytest

from crisp_stream.config.kept import changed_keys, kept_keys
from crisp_stream.config.load import load_recipe

GIVEN = ("data.remote=d", "mixture.phases.0.histogram=/a/task.histogram")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("global_train_batch_size=64", "`global_train_batch_size` was 16, is 64"),
        ("optimizer.lr=0.5", "`optimizer.lr` was 0.001, is 0.5"),
        ("optimizer.betas=[0.8, 0.9]", "`optimizer.betas` was 0.9, 0.95, is 0.8, 0.9"),
        ("scheduler.alpha_f=0.5", "`scheduler.alpha_f` was 0.1, is 0.5"),
        ("gradient_clipping=null", "`gradient_clipping` was 1.0, is nothing"),
        ("precision=amp_bf16", "`precision` was fp32, is amp_bf16"),
        ("seed=3", "`seed` was 17, is 3"),
        ("model.dropout=0.5", "`model.dropout` was 0.0, is 0.5"),
        ("load_path=s3://b/ep0-ba8-rank0.pt", "`load_path` was nothing, is ep0-ba8-rank0.pt"),
        ("mixture.draw=multinomial", "`mixture.draw` was systematic, is multinomial"),
        ("mixture.phases.0.histogram=law", "`mixture.phases.0.histogram` was task.histogram, is law"),
        ("mixture.phases.0.histogram=[law, task]", "`mixture.phases.0.histogram` was task.histogram, is law, task"),
    ],
)
def test_another_recipe_is_told_by_its_keys(override: str, text: str) -> None:
    saved = kept_keys(load_recipe(["demo", "crisp"], GIVEN))
    assert list(changed_keys(saved, load_recipe(["demo", "crisp"], [*GIVEN, override])).values()) == [text]


def test_a_phase_more_or_less_is_another_recipe() -> None:
    one = load_recipe(["demo", "crisp"], GIVEN)
    two = load_recipe(["demo", "crisp"], [*GIVEN, "mixture.phases=[{histogram: base, until: 8ba}, {histogram: law}]"])
    for then, now in ((one, two), (two, one)):
        changed = changed_keys(kept_keys(then), now)
        assert {"mixture.phases.0.until", "mixture.phases.1.histogram"} < changed.keys()


@pytest.mark.parametrize(
    "override",
    [
        "run_name=other",
        "max_duration=9999ba",
        "device_train_microbatch_size=4",
        "model.activation_checkpointing=true",
        "fsdp={}",
        "compile_config={}",
        "save_folder=elsewhere",
        "save_interval=7ba",
        "save_at=[8ba]",
        "save_num_checkpoints_to_keep=2",
        "autoresume=true",
        "log_interval=3",
        "loggers.file=true",
        "cluster_losses=false",
        "log_windows=true",
        "eval={inputs: t.jsonl}",
        "data.remote=s3://b/moved",
        "data.num_workers=3",
        "data.local=cache",
        "data.cache_limit=200gb",
        "data.timeout=7",
        "data.lookahead=64",
        "mixture.phases.0.histogram=s3://b/moved/task.histogram",
    ],
)
def test_how_and_how_long_a_run_is_carried_out_may_change(override: str) -> None:
    saved = kept_keys(load_recipe(["demo", "crisp"], GIVEN))
    assert changed_keys(saved, load_recipe(["demo", "crisp"], [*GIVEN, override])) == {}


def test_a_checkpoint_from_before_a_key_came_is_not_another_recipe() -> None:
    recipe = load_recipe(["demo", "crisp"], GIVEN)
    saved = kept_keys(recipe)
    del saved["optimizer.eps"]
    assert changed_keys(saved, recipe) == {}
