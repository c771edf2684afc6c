"""Gradients, inner products and their weighted sum, against other ways to compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2LMHeadModel

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.models.gpt import build_gpt, gpt_config
from crisp_stream.selection.doge.domain_gradients import GradientSum, Windows, clip, inner_product, loss_gradient, norm


@pytest.fixture
def gpt() -> GPT2LMHeadModel:
    config = gpt_config(ModelRecipe(n_embd=16, n_layer=2, n_head=2), vocab_size=40, window_tokens=12, eot_id=0)
    return build_gpt(config, seed=3)


def random_windows(number: int, *, seed: int = 0) -> Windows:
    tokens = torch.randint(0, 40, (number, 12), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[0, 5:] = -100  # windows count by their tokens
    return Windows(input_ids=tokens, labels=labels)


@pytest.mark.parametrize("microbatch_size", [1, 2, 5])
def test_every_microbatch_counts_by_its_tokens(gpt: GPT2LMHeadModel, microbatch_size: int) -> None:
    windows = random_windows(5)
    whole, loss = loss_gradient(gpt, windows, microbatch_size=64)
    wanted = gpt(input_ids=windows.input_ids, labels=windows.labels).loss
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    parts, split_loss = loss_gradient(gpt, windows, microbatch_size=microbatch_size)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    for one, two, parameter in zip(whole, parts, gpt.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-6)


def test_windows_without_a_token_to_predict_have_gradient_0(gpt: GPT2LMHeadModel) -> None:
    windows = random_windows(2)
    silent = Windows(input_ids=windows.input_ids, labels=torch.full_like(windows.labels, -100))
    gradient, loss = loss_gradient(gpt, silent, microbatch_size=2)
    assert (norm(gradient), loss) == (0.0, 0.0)


def test_inner_products_are_those_of_a_forward_mode_pass_along_the_target_gradient(gpt: GPT2LMHeadModel) -> None:
    """The other way to get them, which needs no gradient of a domain at all."""
    windows = random_windows(6)
    target, _ = loss_gradient(gpt, random_windows(3, seed=1), microbatch_size=3)
    names = [name for name, _ in gpt.named_parameters()]
    values = {name: parameter.detach() for name, parameter in gpt.named_parameters()}

    def losses(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = functional_call(gpt, parameters, (), {"input_ids": windows.input_ids, "use_cache": False}).logits
        targets = windows.labels[:, 1:]
        summed = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
        )
        return summed.view(6, -1).sum(dim=1) / (targets != -100).sum(dim=1)

    with sdpa_kernel(SDPBackend.MATH):
        wanted: Any = jvp(losses, (values,), (dict(zip(names, target, strict=True)),))[1]
    found = [
        inner_product(loss_gradient(gpt, windows.rows(torch.tensor([row])), microbatch_size=1)[0], target)
        for row in range(6)
    ]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-6)


def test_a_clipped_gradient_keeps_its_direction() -> None:
    gradient = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert norm(gradient) == pytest.approx(5.0)
    assert clip(gradient, 10.0) == pytest.approx(5.0)
    assert clip(gradient, None) == pytest.approx(5.0)
    assert clip(gradient, 1.0) == pytest.approx(1.0)
    torch.testing.assert_close(gradient[0], torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(gradient[1], torch.tensor([[0.8]]))


@pytest.mark.parametrize("offset", [0.0, 900.0, -900.0])
def test_a_sum_of_weighted_gradients_does_not_depend_on_the_scale_of_the_weights_or_their_order(offset: float) -> None:
    generator = np.random.default_rng(0)
    gradients, logs = generator.normal(size=(5, 7)), np.array([0.0, -3.0, 2.0, 1.0, 5.0])
    for order in (range(5), reversed(range(5))):
        total = GradientSum([torch.zeros(7)])
        for number in order:
            total.add([torch.from_numpy(gradients[number]).float()], logs[number] + offset)
        (found,) = total.times(-offset)
        np.testing.assert_allclose(found.numpy(), np.exp(logs) @ gradients, rtol=1e-5)


def test_a_sum_of_nothing_is_0() -> None:
    assert GradientSum([torch.ones(3)]).times(2.0)[0].tolist() == [0.0, 0.0, 0.0]
