"""The proxy model of DoGE: one step that scores the domains of a batch, moves their weights, and trains on them.

Sampling is uniform over domains and the weights scale the loss, as in DoGE's Algorithm 1, which draws a minibatch from
every domain and takes the step along sum_i w_i grad_i with the weights just updated (cited from memory; the public code
does so, too). A batch here holds n_i windows of domain i, n_i = batch / domains on average, and the gradient of its
mean loss counts w_i n_i domains / batch: the expected step is Algorithm 1's, and so is every step whose batch holds
the domains equally often. Sampling by the weights instead would train better on few domains, and hardly ever
measure the others.

The gradient that trains is clipped by the recipe's `gradient_clipping`; in the public code's form each domain's and the
target's are, too, before they are multiplied and added.

A step costs one forward and backward pass over the batch and one over the target windows. In the public code's form the
weights depend on the mean norm of all gradients, so there the batch is passed twice.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from crisp_stream.config.durations import batches_of
from crisp_stream.models.gpt import build_gpt, parameter_groups, save_activations_per_block
from crisp_stream.selection.doge.domain_gradients import GradientSum, Windows, clip, inner_product, loss_gradient
from crisp_stream.selection.doge.domain_weights import DomainWeights, gain_factor, scores

if TYPE_CHECKING:
    from transformers import GPT2Config

    from crisp_stream.config.recipe import Recipe
    from crisp_stream.selection.doge.settings import DogeSettings


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Losses of a step, and its learning rate."""

    loss: float
    """Mean over the domains in the batch of their mean loss, nats per token."""
    target_loss: float
    """Mean loss of the target windows, nats per token."""
    learning_rate: float


class Proxy:
    """A small GPT, its optimiser and the weights of the domains."""

    def __init__(
        self,
        recipe: Recipe,
        config: GPT2Config,
        settings: DogeSettings,
        *,
        num_domains: int,
        num_steps: int,
        tokens_per_step: int,
        device: torch.device,
    ) -> None:
        """Args:
        recipe: optimiser, schedule, clipping, microbatch, precision, seed of the model's weights.
        num_domains: at least 2.
        tokens_per_step: tokens of a batch, for a warm-up in tokens.
        """
        self.gpt = build_gpt(config, seed=recipe.seed).train()
        self.gpt.to(device)  # pyright: ignore[reportArgumentType] - transformers wraps `to`
        if recipe.model.activation_checkpointing:
            save_activations_per_block(self.gpt)
        self.weights = DomainWeights(num_domains)
        self.step_number = 0
        self._settings, self._device, self._recipe = settings, device, recipe
        self._num_steps = num_steps
        self._warmup_steps = batches_of(
            recipe.scheduler.t_warmup, tokens_per_batch=tokens_per_step, run_batches=num_steps
        )
        self._clipping = recipe.gradient_clipping
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self.gpt, weight_decay=recipe.optimizer.weight_decay),
            lr=recipe.optimizer.lr,
            betas=recipe.optimizer.betas,
            eps=recipe.optimizer.eps,
        )

    def step(self, batch: Windows, domains: NDArray[np.int64], target: Windows) -> StepResult:
        """Score, move the weights, train. `domains`: [num_windows], the domain of each window of the batch."""
        rate = self._recipe.optimizer.lr * schedule_share(
            self.step_number,
            num_steps=self._num_steps,
            warmup_steps=self._warmup_steps,
            final_share=self._recipe.scheduler.alpha_f,
        )
        present, parts, shares = self._by_domain(batch, domains)
        losses, total, provisional = self._score(present, parts, shares, target, rate)
        if total is None:
            total = GradientSum(list(self.gpt.parameters()))
            for number, part, share in zip(present, parts, shares, strict=True):
                gradient, _ = self._gradient(part)
                clip(gradient, self._clipping)
                total.add(gradient, float(self.weights.log_weights[number]) + math.log(share))
                del gradient  # before the next one is made
            provisional = 0.0
        self._train(total.times(provisional), rate)
        self.step_number += 1
        return StepResult(loss=float(np.mean(losses[1:])), target_loss=losses[0], learning_rate=rate)

    def state(self) -> dict[str, Any]:
        """Collect everything that torch must save, with arrays as tensors."""
        weights = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in self.weights.state().items()
        }
        return {
            "step": self.step_number,
            "model": self.gpt.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "weights": weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a saved `state`."""
        self.step_number = int(state["step"])
        self.gpt.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.weights.restore(
            {
                key: value.numpy() if isinstance(value, torch.Tensor) else value
                for key, value in state["weights"].items()
            }
        )

    def _by_domain(
        self, batch: Windows, domains: NDArray[np.int64]
    ) -> tuple[NDArray[np.intp], list[Windows], list[float]]:
        """Group a batch by domain: domains in it, their windows, and the factors of w_i, n_i domains / batch."""
        present = np.unique(domains).astype(np.intp)
        parts, shares = [], []
        for domain in present:
            rows = np.flatnonzero(domains == domain)
            parts.append(batch.rows(torch.from_numpy(rows).to(batch.labels.device)))
            shares.append(len(rows) * len(self.weights.log_weights) / len(domains))
        return present, parts, shares

    def _score(
        self, present: NDArray[np.intp], parts: list[Windows], shares: list[float], target: Windows, rate: float
    ) -> tuple[list[float], GradientSum | None, float]:
        """Pass over target and batch, and move the weights.

        Returns:
            Losses, the target's first; in the paper's form the weighted sum of gradients, and the logarithm of the
            factor missing in it.
        """
        mu, public = self._settings.mu, self._settings.update == "public-code"
        towards, target_loss = self._gradient(target)
        if public:
            clip(towards, self._clipping)
        total = None if public else GradientSum(towards)
        factor = gain_factor(len(self.weights.log_weights), len(present))
        products, norms, losses, provisional = [], [], [target_loss], []
        for number, part, share in zip(present, parts, shares, strict=True):
            gradient, loss = self._gradient(part)
            norms.append(clip(gradient, self._clipping) if public else 0.0)
            products.append(inner_product(gradient, towards))
            losses.append(loss)
            if total is not None:
                before = float(self.weights.log_weights[number])
                provisional.append(before + factor * rate * products[-1] / mu)
                total.add(gradient, provisional[-1] + math.log(share))
            del gradient  # before the next one is made
        gained = scores(np.array(products), np.array(norms), learning_rate=rate, update=self._settings.update)
        self.weights.update(present, gained, mu=mu)
        lacking = 0.0 if public else float(self.weights.log_weights[present[0]] - provisional[0])
        return losses, total, lacking

    def _gradient(self, windows: Windows) -> tuple[list[torch.Tensor], float]:
        size = self._recipe.device_train_microbatch_size or len(windows.input_ids)
        return loss_gradient(self.gpt, windows, microbatch_size=size, autocast=self._autocast())

    def _autocast(self) -> contextlib.AbstractContextManager[object] | None:
        if self._recipe.precision == "fp32":
            return None
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _train(self, gradient: list[torch.Tensor], rate: float) -> None:
        clip(gradient, self._clipping)
        for parameter, part in zip(self.gpt.parameters(), gradient, strict=True):
            parameter.grad = part
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def schedule_share(step: int, *, num_steps: int, warmup_steps: int, final_share: float) -> float:
    """Compute the learning rate as a share of its peak: a linear warm-up from 0, then a cosine.

    Composer's rate in training lags one batch behind.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * done)) / 2
