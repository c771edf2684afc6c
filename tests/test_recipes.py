"""The packaged recipes: they load, say what they are, and hold the paper's numbers."""

from __future__ import annotations

import pytest

from crisp_stream.config import list_recipes, load_recipe, read_recipe
from crisp_stream.durations import batches_of, parse_duration

NAMES = sorted(list_recipes())


def test_every_recipe_of_the_project_is_packaged() -> None:
    demos = {"base", "crisp", "multitask", "continued", "continue-from-checkpoint", "finetune"}
    assert {f"demo-{name}" for name in demos} | {"gpt-350m", "gpt-1.3b", "gpt-6.7b"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_and_is_named_like_its_run(name: str) -> None:
    assert load_recipe(name).run_name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_what_it_is_what_it_needs_and_how_to_launch_it(name: str) -> None:
    header = read_recipe(name).split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert header.splitlines()[0].endswith(".")
    for part in ("What must exist first", "Launch", "One override", name):
        assert part in header


def test_base_and_crisp_differ_in_the_data_alone() -> None:
    base, crisp = load_recipe("demo-base"), load_recipe("demo-crisp")
    for key in ("seed", "model", "optimizer", "scheduler", "max_duration", "global_train_batch_size", "data"):
        assert getattr(base, key) == getattr(crisp, key)
    assert base.mixture.phases[0].histogram == "base" != crisp.mixture.phases[0].histogram


@pytest.mark.parametrize(
    ("name", "width", "heads", "depth", "batch_tokens", "lr", "clipping", "steps", "total_tokens"),
    [
        ("gpt-350m", 1024, 16, 24, 96e3, 1e-4, 5.0, 400_000, 40e9),
        ("gpt-1.3b", 2048, 16, 24, 115e3, 1e-4, 5.0, 1_000_000, 120e9),
        ("gpt-6.7b", 4096, 32, 32, 1.04e6, 3e-4, 0.1, 340_000, 350e9),
    ],
)
def test_the_large_recipes_hold_table_4(
    name: str,
    width: int,
    heads: int,
    depth: int,
    batch_tokens: float,
    lr: float,
    clipping: float,
    steps: int,
    total_tokens: float,
) -> None:
    recipe = load_recipe(name)
    assert (recipe.model.n_embd, recipe.model.n_head, recipe.model.n_layer) == (width, heads, depth)
    assert recipe.model.n_positions == 1024
    tokens_per_batch = recipe.global_train_batch_size * 1024
    assert tokens_per_batch == pytest.approx(batch_tokens, rel=0.03)
    assert recipe.optimizer.lr == pytest.approx(lr)
    assert recipe.gradient_clipping == clipping
    assert batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch) == steps
    assert steps * tokens_per_batch == pytest.approx(total_tokens, rel=0.05)
    warmup, unit = parse_duration(recipe.scheduler.t_warmup)
    assert unit == "ba"
    assert warmup * tokens_per_batch == pytest.approx(375e6, rel=0.002)
