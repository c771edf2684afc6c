"""What a model cost: the formula, and nothing counted twice or left out where runs go on from one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import InputError
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.gpt import GPT_SIZES
from crisp_stream.models.training_cost import flops_per_token, gpt_parameters, training_cost
from crisp_stream.models.training_record import training_record
from crisp_stream.training.train import train
from tests.support.parameters import count_parameters
from tests.support.small_runs import SmallRun, copy_until, small_run

TOKENS_PER_BATCH = 8 * 32


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def record_of(checkpoint: Path) -> dict[str, Any]:
    return training_record(read_checkpoint(checkpoint), checkpoint)


def made_record(tokens: int, seconds: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    model = {"n_layer": 2, "n_embd": 4, "n_head": 2, "n_positions": 8, "vocab_size": 10}
    progress = {"tokens": tokens, "batches": tokens // 10, "began_at_batch": 0}
    return {"model": model, "progress": progress, "device_seconds": seconds, **more}


@pytest.mark.parametrize("size", GPT_SIZES.values(), ids=GPT_SIZES)
def test_parameters_are_counted_as_the_model_has_them(size: Any) -> None:
    shape = {"n_layer": size.n_layer, "n_embd": size.n_embd, "n_positions": 1024}
    assert gpt_parameters(**shape, vocab_size=32_768) == count_parameters(size, vocab_size=32_768)


def test_flops_are_six_per_parameter_and_attention() -> None:
    assert flops_per_token(1000, n_layer=2, n_embd=4, window_tokens=8) == 6 * 1000 + 12 * 2 * 4 * 8
    parameters = 10 * 4 + 8 * 4 + 2 * (12 * 16 + 13 * 4) + 2 * 4
    found = training_cost(made_record(50, dataset={"window_tokens": 5}))
    assert found.flops == 50 * (6 * parameters + 12 * 2 * 4 * 5)
    assert training_cost(made_record(50)).flops == 50 * (6 * parameters + 12 * 2 * 4 * 8)


def test_what_a_parent_cost_is_added_once() -> None:
    first = made_record(100, {"A": 10.0})
    schedule_on = made_record(150, {"B": 5.0}, parent=first, restarted=["data"])
    assert training_cost(schedule_on).tokens == 150
    assert training_cost(schedule_on).device_seconds == {"B": 5.0, "A": 10.0}
    afresh = made_record(30, {"B": 5.0}, parent=schedule_on, restarted=["data", "optimizer", "schedule"])
    assert training_cost(afresh).tokens == 180
    assert training_cost(afresh).device_seconds == {"B": 10.0, "A": 10.0}
    account_on = made_record(150, {"A": 16.0}, parent=first, restarted=[])
    assert training_cost(account_on).tokens == 150
    assert training_cost(account_on).device_seconds == {"A": 16.0}
    assert training_cost(account_on).flops == pytest.approx(1.5 * training_cost(first).flops)
    later = made_record(40, {"A": 1.0}, parent=account_on, restarted=["schedule"])
    assert training_cost(later).tokens == 190
    assert training_cost(later).device_seconds == {"A": 17.0}


def test_records_that_do_not_say_what_started_afresh_are_read_by_where_they_began() -> None:
    first, child = made_record(100), made_record(150, parent=made_record(100))
    assert training_cost(child).tokens == 250
    child["progress"]["began_at_batch"] = 10
    assert training_cost(child).tokens == 150
    assert training_cost(child).device_seconds is None
    assert training_cost(first).device_seconds is None


def test_a_model_without_a_record_has_no_cost() -> None:
    with pytest.raises(InputError, match=r"the training record lacks 'model'.* Judge a checkpoint"):
        training_cost({})


def test_a_resumed_run_adds_up_and_one_whose_first_part_did_not_count_says_so(done: SmallRun, tmp_path: Path) -> None:
    copy_until(done.save_folder, 4, tmp_path / "run")
    before = record_of(done.checkpoint(4))["device_seconds"]["CPU"]
    report = train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true"))
    found = record_of(tmp_path / "run" / "ep0-ba12-rank0.pt")
    assert found["device_seconds"] == {"CPU": pytest.approx(report.wall_seconds)}
    assert found["device_seconds"]["CPU"] > before > 0
    assert found["restarted"] is None


def test_an_account_of_before_device_time_was_counted_still_loads(done: SmallRun, tmp_path: Path) -> None:
    import torch

    copy_until(done.save_folder, 4, tmp_path / "run")
    older = tmp_path / "run" / "ep0-ba4-rank0.pt"
    contents = torch.load(older, weights_only=False)
    del contents["state"]["callbacks"]["RunAccount"]["device_seconds"]
    del contents["state"]["callbacks"]["Lineage"]["restarted"]
    torch.save(contents, older)
    report = train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true"))
    assert report.resumed_at == 4
    found = record_of(tmp_path / "run" / "ep0-ba12-rank0.pt")
    assert found["device_seconds"] is None
    assert training_cost(found).tokens == 12 * TOKENS_PER_BATCH


@pytest.mark.parametrize(
    ("overrides", "restarted", "batches"),
    [
        (["mixture.phases=[{histogram: checkpoint}, {histogram: {task}}]"], [], 12),
        (["mixture.phases=[{histogram: base}]", "load_restart=[data]"], ["data"], 12),
        (
            ["mixture.phases=[{histogram: base}]", "load_weights_only=true", "max_duration=2ba", "save_interval=2ba"],
            ["data", "optimizer", "schedule"],
            4 + 2,
        ),
    ],
    ids=["continued", "other data", "weights alone"],
)
def test_a_run_from_a_checkpoint_costs_what_both_trained(
    done: SmallRun, tmp_path: Path, overrides: list[str], restarted: list[str], batches: int
) -> None:
    """The checkpoint stands at batch 4; its run and the new one are of 12."""
    filled = [override.replace("{task}", str(done.histogram)) for override in overrides]
    report = train(done.recipe(f"save_folder={tmp_path}/run", f"load_path={done.checkpoint(4)}", *filled))
    found = record_of(tmp_path / "run" / "latest-rank0.pt")
    before = record_of(done.checkpoint(4))["device_seconds"]["CPU"]
    assert found["parent"]["checkpoint"] == "ep0-ba4-rank0.pt"
    assert found["restarted"] == restarted
    cost = training_cost(found)
    assert cost.tokens == batches * TOKENS_PER_BATCH
    total = report.wall_seconds + (before if restarted else 0)
    assert cost.device_seconds == {"CPU": pytest.approx(total)}
