"""Gradients of a few windows at a time, their inner products, and their weighted sum, in O(parameters) memory.

A domain's gradient is needed for two things: its inner product with the target's, and its part in the weighted sum
that trains the proxy model. So each gradient is used and forgotten, and the matrix of all domains' gradients is never
made (28 GB in the public code for 64 domains and 110M parameters in float32). The weights depend on the inner products,
which are not complete before the last domain. In the paper's form a weight is known up to a factor that all domains
share, so the sum is kept on a scale that grows, as a softmax is computed in one pass.

Why a backward pass for each domain, and not all inner products in one forward-mode pass (torch.func.jvp along the
target gradient): CPU seconds on one core, 8 domains of 2 windows of 128 tokens, GPT of 3 layers x 128, vocabulary
4,096: forward mode 0.32 to 0.43, backward passes 0.26, one backward pass of all together 0.25 to 0.29; 16 domains of 2
windows of 256 tokens, 6 layers x 256, vocabulary 8,192: 8.1 to 9.8, 5.0 to 5.2, 5.9 to 6.2. So forward mode costs more,
and the gradient that trains would come on top. It also needs attention written out, because torch's fused attention has
no forward-mode derivative on a CPU. Both give the same products (tests/selection/doge/test_domain_gradients.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from crisp_stream.loading.batches import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

Gradient = list[torch.Tensor]
"""One tensor for each parameter."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows to predict, on the device of the model."""

    input_ids: torch.Tensor
    """[num_windows, window_tokens], int64."""
    labels: torch.Tensor
    """The same, or -100 where nothing is predicted; labels[:, 1:] are predicted."""

    @property
    def num_labels(self) -> int:
        """Tokens predicted."""
        return int((self.labels[:, 1:] != IGNORED_LABEL).sum())

    def rows(self, chosen: torch.Tensor) -> Windows:
        """Select windows by their rows."""
        return Windows(input_ids=self.input_ids[chosen], labels=self.labels[chosen])


def loss_gradient(
    gpt: GPT2LMHeadModel,
    windows: Windows,
    *,
    microbatch_size: int,
    autocast: contextlib.AbstractContextManager[object] | None = None,
) -> tuple[Gradient, float]:
    """Compute the gradient of the mean loss over the predicted tokens, and that loss.

    Args:
        gpt: model whose parameters are differentiated; their `grad` stays as it was.
        windows: the gradient is 0 where none of their tokens is predicted.
        microbatch_size: windows per forward pass; all passes count.

    Returns:
        The gradient in the parameters' type, and the loss in nats per token.
    """
    parameters = list(gpt.parameters())
    num_labels = max(1, windows.num_labels)
    total: Gradient = []
    loss_sum = 0.0
    for ids, labels in zip(
        windows.input_ids.split(microbatch_size), windows.labels.split(microbatch_size), strict=True
    ):
        with autocast or contextlib.nullcontext():
            logits = gpt(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
        part = list(torch.autograd.grad(loss / num_labels, parameters))
        loss_sum += float(loss.detach())
        if total:
            for summed, more in zip(total, part, strict=True):
                summed.add_(more)
        else:
            total = part
    return total, loss_sum / num_labels


def inner_product(first: Gradient, second: Gradient) -> float:
    """Sum the products over all parameters, in float64."""
    products = [torch.dot(one.flatten().float(), two.flatten().float()) for one, two in zip(first, second, strict=True)]
    return float(torch.stack(products).double().sum())


def norm(gradient: Gradient) -> float:
    """Compute the L2 norm over all parameters."""
    return math.sqrt(inner_product(gradient, gradient))


def clip(gradient: Gradient, largest: float | None) -> float:
    """Scale a gradient in place so that its norm is at most `largest`; returns the norm after that."""
    unclipped = norm(gradient)
    if largest is None or unclipped <= largest:
        return unclipped
    for part in gradient:
        part.mul_(largest / unclipped)
    return largest


class GradientSum:
    """Sum of exp(log_weight) x gradient over gradients that come one at a time."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parts = [torch.zeros_like(parameter) for parameter in parameters]
        self._log_scale = -math.inf

    def add(self, gradient: Gradient, log_weight: float) -> None:
        """Add a gradient; it is not kept."""
        if log_weight > self._log_scale:
            shrink = math.exp(self._log_scale - log_weight)
            for part in self._parts:
                part.mul_(shrink)
            self._log_scale = log_weight
        share = math.exp(log_weight - self._log_scale)
        for part, more in zip(self._parts, gradient, strict=True):
            part.add_(more.to(part.dtype), alpha=share)

    def times(self, log_factor: float) -> Gradient:
        """Multiply the sum by exp(log_factor) in place, which ends the summing; 0 where nothing was added."""
        if self._log_scale > -math.inf:
            for part in self._parts:
                part.mul_(math.exp(self._log_scale + log_factor))
        return self._parts
