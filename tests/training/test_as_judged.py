"""The model in training is measured in float32, as its checkpoint is judged, whatever the training computes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import GPT2LMHeadModel

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.evaluation.packed_rows import PackedRow, add_scores
from crisp_stream.evaluation.perplexity import row_losses
from crisp_stream.models.gpt import build_gpt, composer_model, gpt_config, save_activations_per_block
from crisp_stream.training.callbacks.as_judged import as_judged
from tests.support.ranks import group_of_one

CPU = torch.device("cpu")
ROWS = [list(range(12)), list(range(30, 35))]


def small_gpt() -> GPT2LMHeadModel:
    model = ModelRecipe(n_embd=32, n_layer=3, n_head=2)
    return build_gpt(gpt_config(model, vocab_size=64, window_tokens=16, eot_id=0), seed=0).train()


def scores(gpt: torch.nn.Module) -> NDArray[np.float64]:
    """Losses of rows, and log probabilities of continuations that share a row."""
    log_probs = np.zeros(2)
    add_scores(gpt, [PackedRow([1, 2, 3], [[4, 5], [6]], [0, 1])], log_probs, np.ones(2, np.bool_), device=CPU)
    return np.concatenate([row_losses(gpt, ROWS, device=CPU), log_probs])


def test_a_model_that_is_sharded_in_bfloat16_is_measured_in_float32_block_by_block(tmp_path: Path) -> None:
    with group_of_one(tmp_path):
        expected = scores(small_gpt().eval())
        gpt = small_gpt()
        model = composer_model(gpt, tokenizer=None)  # pyright: ignore[reportArgumentType]
        save_activations_per_block(gpt)
        how = {"mesh": init_device_mesh("cpu", (1,)), "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}
        for module in (*gpt.transformer.h, gpt):
            fully_shard(module, **how)
        for _ in range(2):
            with as_judged(model) as judged:
                np.testing.assert_array_equal(scores(judged), expected)
                assert {weight.device.type for weight in judged.transformer.h.parameters()} == {"meta"}
            assert gpt.training
            loss = gpt(input_ids=torch.tensor(ROWS[:1]), labels=torch.tensor(ROWS[:1])).loss
            loss.backward()  # what the next measurement finds is a model in training
            gpt.zero_grad()
        assert np.abs(scores(gpt.eval()) - expected).max() > 1e-3  # and in bfloat16 it would be another


def test_matrices_are_multiplied_in_float32_as_composer_does_not_ask_for() -> None:
    gpt = small_gpt()
    model = composer_model(gpt, tokenizer=None)  # pyright: ignore[reportArgumentType]
    seen: list[str] = []
    gpt.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("high")  # as Composer sets it on a GPU: factors are rounded to TF32
    try:
        with as_judged(model) as judged:
            scores(judged)
        after = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "highest"]
    assert after == "high"
    assert gpt.training
