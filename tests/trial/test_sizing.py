"""Sizes of a trial: they fill the minutes, whatever the machine does in a second, and keep to what there is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from crisp_stream.config.load import load_recipe
from crisp_stream.config.sections import ModelRecipe
from crisp_stream.errors import InputError
from crisp_stream.trial import sizing
from crisp_stream.trial.sizes import TrialSize
from crisp_stream.trial.sizing import TrialPlan, plan_trial
from crisp_stream.trial.split import TrialInputs
from crisp_stream.writers import estimate

INPUTS = TrialInputs(corpus="corpus.jsonl", task="task.jsonl")


def planned(
    monkeypatch: pytest.MonkeyPatch, minutes: float, *, windows: float = 1e7, embedded: float = 50, trained: float = 2e4
) -> TrialPlan:
    """The plan where the corpus has some windows, and so many windows and tokens are embedded and trained a second."""
    measured = SimpleNamespace(
        windows=windows,
        characters=windows * 450,
        documents=windows / 3,
        seconds={"embedding windows": windows / embedded},
    )
    monkeypatch.setattr(estimate, "estimate_write", lambda options: measured)
    monkeypatch.setattr(sizing, "_training_rate", lambda size, model: trained)
    return plan_trial(INPUTS, minutes)


@pytest.mark.parametrize("minutes", [5.0, 10.0, 30.0, 120.0])
@pytest.mark.parametrize("embedded", [20.0, 500.0])
def test_the_minutes_are_filled(monkeypatch: pytest.MonkeyPatch, minutes: float, embedded: float) -> None:
    plan = planned(monkeypatch, minutes, embedded=embedded)
    assert 0.75 * 60 * minutes < sum(plan.seconds.values()) <= 60 * minutes
    assert plan.characters == pytest.approx(450 * plan.windows, rel=0.01)
    assert plan.seconds["embedding"] == pytest.approx(plan.windows / embedded)


def test_a_faster_machine_gets_a_larger_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = planned(monkeypatch, 10), planned(monkeypatch, 10, embedded=200, trained=8e4)
    assert fast.windows > 3 * slow.windows
    assert fast.batches > 3 * slow.batches
    assert fast.size.arity > slow.size.arity


def test_a_small_corpus_is_taken_whole_and_read_four_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, 60, windows=3_000, trained=1e6)
    assert plan.windows == 3_000
    assert plan.batches * 16 <= 4 * 3_000
    assert sum(plan.seconds.values()) < 3_600


def test_the_sizes_are_a_recipe_and_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, 10)
    recipe = load_recipe(["demo", "base"], plan.size.recipe_overrides)
    assert recipe.max_duration == f"{plan.batches}ba"
    assert recipe.global_train_batch_size * plan.size.window_tokens * plan.batches == int(
        plan.text().split("batches and ")[1].split(" tokens")[0].replace(",", "")
    )
    assert recipe.save_num_checkpoints_to_keep == 1
    longer = planned(monkeypatch, 60)
    assert longer.size.window_tokens > TrialSize().window_tokens
    assert load_recipe(["demo", "base"], longer.size.recipe_overrides).model.n_embd > recipe.model.n_embd


@pytest.mark.parametrize("minutes", [0.0, 2.9, 241.0, float("nan")])
def test_minutes_out_of_range_are_refused(minutes: float) -> None:
    with pytest.raises(InputError, match="--minutes: must be 3 to 240"):
        plan_trial(INPUTS, minutes)


def test_a_training_step_is_measured() -> None:
    small = TrialSize(window_tokens=16, vocab_size=64)
    rate = sizing._training_rate(small, ModelRecipe(n_embd=8, n_layer=1, n_head=1))
    larger = sizing._training_rate(small, ModelRecipe(n_embd=256, n_layer=4, n_head=4))
    assert 0 < larger < rate
