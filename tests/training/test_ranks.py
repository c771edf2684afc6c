"""One process, two data-parallel ranks and two sharded ones train the same model, and go on from one another's
checkpoints; so do exports.

Sums of float32 in another order differ by 1e-7 of a loss or perplexity; up to 1e-5 is taken as equal. Some
gradients are clipped and some are not, and Adam's epsilon is so large that it does not hide their scale; the ranks
split their part into microbatches and recompute activations, and the one process does neither.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from crisp_stream.evaluation.perplexity import perplexity
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.export import export
from crisp_stream.ranks import join_ranks
from crisp_stream.training.train import train
from tests.support.ports import free_port
from tests.support.small_runs import SmallRun, account_of, launch, losses_of, small_run, windows_of

TEXTS = ["abcdefgh" * length for length in range(1, 8)]
SPLIT = ("device_train_microbatch_size=2", "model.activation_checkpointing=true")
SCALED = ("optimizer.eps=1e-3", "gradient_clipping=1.2")
"""The first four gradients are clipped, the others are not: a norm of 1.8 at first, of 0.9 in the end."""
FROM_START = ("ddp", "sharded", "kept", "hybrid")
"""Two data-parallel ranks; two that free the gathered weights after the forward pass; two that keep them; four, of
which each two share a copy."""
FROM_ANOTHER = (
    *("one-to-sharded", "sharded-to-ddp", "ddp-to-kept", "sharded-to-one"),
    *("ddp-to-hybrid", "hybrid-to-one"),
)

OBSERVE = """
from composer import Trainer
from composer.utils import dist
from torch.distributed.tensor import DTensor

def fit(trainer, fit=Trainer.fit):
    model = getattr(trainer.state.model, 'module', trainer.state.model)
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())
    group = getattr(model.model.transformer.h[0], '_get_fsdp_state', lambda: None)()
    frees = None if group is None else group._fsdp_param_group.post_forward_mesh_info is not None
    rows = dist.all_gather_object([held, frees])
    fit(trainer)
    if dist.get_global_rank() == 0:
        with open({file!r}, 'a') as file:
            print(trainer.saved_checkpoints[-1], rows, sep='|', file=file)

Trainer.fit = fit
"""
"""Writes what each rank holds of the model: elements, and whether a block frees its gathered weights."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def runs(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save folders of `one` process and of all the others."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "held.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
    held_out = (f"eval.inputs={folder}/held.jsonl", "eval_interval=6ba")

    def made(name: str, *own: str, start: str | None = None) -> list[str]:
        begins = [] if start is None else [f"load_path={folder}/{start}/ep0-ba4-rank0.pt"]
        return [f"save_folder={folder}/{name}", *held_out, *SCALED, *own, *begins]

    sharded, kept = "fsdp={}", "fsdp.reshard_after_forward=false"
    train(done.recipe(*made("one", "device_train_microbatch_size=8")))
    two = [
        *(made("ddp", *SPLIT), made("sharded", *SPLIT, sharded), made("kept", *SPLIT, kept)),
        made("one-to-sharded", sharded, start="one"),
        made("sharded-to-ddp", start="sharded"),
        made("ddp-to-kept", kept, start="ddp"),
    ]
    launch(done, 2, two, folder, before=OBSERVE.format(file=str(folder / "observed")))
    train(done.recipe(*made("sharded-to-one", start="sharded")))
    hybrid = "fsdp.data_parallel_shard_degree=2"
    four = [
        made("hybrid", "device_train_microbatch_size=1", "model.activation_checkpointing=true", hybrid),
        made("ddp-to-hybrid", hybrid, start="ddp"),
    ]
    launch(done, 4, four, folder, before=OBSERVE.format(file=str(folder / "observed")))
    train(done.recipe(*made("hybrid-to-one", start="hybrid")))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "ep0-ba12-rank0.pt")["state"]["model"]


def test_the_bounds_would_show_a_gradient_that_is_not_clipped_or_clipped_otherwise(
    done: SmallRun, runs: Path, tmp_path: Path
) -> None:
    one = np.array(losses_of(runs / "one"), float)
    for changed in ("null", "1.7", "0.6"):  # none; by the norm of one rank of two; before the mean over the ranks
        report = train(done.recipe(f"save_folder={tmp_path}/{changed}", *SCALED, f"gradient_clipping={changed}"))
        assert np.abs(np.array(report.losses) / one - 1).max() > 1e-3


def test_sharded_ranks_hold_half_of_the_model_each_and_free_what_they_gather_only_if_asked(runs: Path) -> None:
    rows = [line.split("|") for line in (runs / "observed").read_text().splitlines()]
    seen = {Path(saved).parent.name: ast.literal_eval(held) for saved, held in rows}
    whole = 34_816
    for name in ("ddp", "sharded-to-ddp"):
        assert seen[name] == [[whole, None]] * 2
    for name, frees in {"sharded": True, "one-to-sharded": True, "kept": False, "ddp-to-kept": False}.items():
        assert sum(held for held, _ in seen[name]) == whole
        assert {frees_it for _, frees_it in seen[name]} == {frees}
        assert all(0.45 < held / whole < 0.55 for held, _ in seen[name])


@pytest.mark.parametrize("name", ["hybrid", "ddp-to-hybrid"])
def test_each_two_of_four_ranks_hold_a_copy_of_the_model(runs: Path, name: str) -> None:
    rows = [line.split("|") for line in (runs / "observed").read_text().splitlines()]
    [held] = [[held for held, _ in ast.literal_eval(row)] for saved, row in rows if Path(saved).parent.name == name]
    assert held[:2] == held[2:]
    assert sum(held[:2]) == 34_816
    assert max(held) < 0.55 * 34_816


@pytest.mark.parametrize("name", [*FROM_START, *FROM_ANOTHER])
def test_losses_are_those_of_one_process(runs: Path, name: str) -> None:
    one, several = (np.array(losses_of(runs / run), float) for run in ("one", name))
    np.testing.assert_allclose(several, one, rtol=1e-5)
    assert one[-1] < one[0] - 1


@pytest.mark.parametrize("name", [*FROM_START, *FROM_ANOTHER])
def test_every_batch_has_the_windows_of_one_process(runs: Path, name: str) -> None:
    assert windows_of(runs / name) == windows_of(runs / "one")
    account, one = account_of(runs / name), account_of(runs / "one")
    assert (account["mixture_error"], account["samples"]) == (one["mixture_error"], one["samples"])
    assert account["resumed_at"] == (4 if name in FROM_ANOTHER else None)


@pytest.mark.parametrize("name", [*FROM_START, *FROM_ANOTHER])
def test_the_held_out_perplexity_is_that_of_one_process(runs: Path, name: str) -> None:
    measured, one = (account_of(runs / run)["held_out"] for run in (name, "one"))
    assert [batch for batch, _ in measured] == [6, 12]
    np.testing.assert_allclose([value for _, value in measured], [value for _, value in one], rtol=1e-5)


@pytest.mark.parametrize("name", [*FROM_START, *FROM_ANOTHER])
def test_every_checkpoint_holds_the_whole_model(runs: Path, name: str) -> None:
    one, several = weights_of(runs / "one"), weights_of(runs / name)
    assert one.keys() == several.keys()
    for key, value in one.items():
        torch.testing.assert_close(several[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FROM_START)
def test_a_checkpoint_of_several_ranks_is_exported_like_any_other(runs: Path, tmp_path: Path, name: str) -> None:
    folder = export(f"{runs}/{name}/latest-rank0.pt", tmp_path / "model")
    gpt = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    for key, value in gpt.state_dict().items():
        assert torch.equal(value, weights_of(runs / name)[f"model.{key}"])
    measured = account_of(runs / name)["held_out"][-1][1]
    assert perplexity(folder, TEXTS).perplexity == pytest.approx(measured, rel=1e-5)


def _wait_for_a_peer(port: int, joins: Path) -> None:
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0", "RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    joins.touch()
    join_ranks()


def test_a_rank_that_waits_for_others_ends_at_a_signal(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    rank = context.Process(target=_wait_for_a_peer, args=(free_port(), tmp_path / "joins"))
    rank.start()
    while not (tmp_path / "joins").exists():
        time.sleep(0.02)
    time.sleep(1)  # until it waits where no handler of Python is called
    rank.terminate()
    rank.join(60)
    exit_code = rank.exitcode
    rank.kill()
    assert exit_code == -signal.SIGTERM


def test_the_first_rank_alone_says_what_each_run_will_train(runs: Path) -> None:
    """Once for each of the six runs of two ranks, three of which go on after batch 4."""
    first, second = ((runs / f"rank-{rank}-of-2.log").read_text() for rank in range(2))
    assert first.count("a vocabulary of 260") == 6
    assert first.count("goes on after batch 4, 8 batches") == 3
    assert first.count("B at 2 windows per forward pass, computed, per process") == 3
    assert "a vocabulary of" not in second
