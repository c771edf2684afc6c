"""The cost of training a model: tokens, FLOPs, device time; with all that it was continued or fine-tuned from.

A training record counts tokens as the learning-rate schedule does and device time as the account of the run does. Both
may begin before the run did, at the checkpoint that it goes on from, or afresh; `restarted` of the record says which,
so nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crisp_stream.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """The cost of a model since its random weights."""

    tokens: int
    """Tokens that the model was trained on since its random weights, padding included."""
    flops: float
    """FLOPs of forward and backward passes, without recomputation."""
    device_seconds: dict[str, float] | None
    """Time inside the training loop times the number of devices, by the device's name; None where it is not known of a
    part of the training."""


def flops_per_token(num_parameters: int, *, n_layer: int, n_embd: int, window_tokens: int) -> float:
    """FLOPs of a trained token: forward and backward pass, without recomputation.

    6N + 12 x layers x width x window (Chowdhery et al. 2022, PaLM, App. B). Attention counts in full; one that is
    causal needs only half of the second term.

    Args:
        num_parameters: all that are trained, a tied embedding once: it is the output layer's product, and looking it up
            costs nothing.
    """
    return 6.0 * num_parameters + 12.0 * n_layer * n_embd * window_tokens


def gpt_parameters(*, n_layer: int, n_embd: int, n_positions: int, vocab_size: int) -> int:
    """Trained parameters of a GPT-2, the tied embedding once."""
    block = 12 * n_embd**2 + 13 * n_embd
    return (vocab_size + n_positions + 2) * n_embd + n_layer * block


def training_cost(record: dict[str, Any]) -> TrainingCost:
    """Cost of the model that a training record (docs/judge/export.md) is of, its parents' included.

    Raises:
        InputError: the record does not say what was trained.
    """
    try:
        return _cost(record)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"the training record lacks {error}, so the cost of the model is not known. Judge a checkpoint of "
            "crisp-stream train, or a folder that was exported from one."
        ) from error


def _cost(record: dict[str, Any]) -> TrainingCost:
    model, progress = record["model"], record["progress"]
    per_token = flops_per_token(
        gpt_parameters(**{key: model[key] for key in ("n_layer", "n_embd", "n_positions", "vocab_size")}),
        n_layer=model["n_layer"],
        n_embd=model["n_embd"],
        window_tokens=(record.get("dataset") or {}).get("window_tokens") or model["n_positions"],
    )
    tokens, seconds, parent = int(progress["tokens"]), record.get("device_seconds"), record.get("parent")
    if parent is None:
        return TrainingCost(tokens=tokens, flops=tokens * per_token, device_seconds=seconds)
    before = _cost(parent)
    new_tokens = tokens - (int(parent["progress"]["tokens"]) if counts_on(record) else 0)
    if record.get("restarted") == []:  # its account goes on, too
        seconds = _sum(seconds, parent.get("device_seconds"), sign=-1)
    return TrainingCost(
        tokens=new_tokens + before.tokens,
        flops=new_tokens * per_token + before.flops,
        device_seconds=_sum(seconds, before.device_seconds),
    )


def counts_on(record: dict[str, Any]) -> bool:
    """Whether a run with a parent counts batches and tokens on from its parent's, and not from 0."""
    restarted = record.get("restarted")
    if restarted is None:  # saved before that was recorded
        return (record["progress"].get("began_at_batch") or 0) > 0
    return "schedule" not in restarted


def _sum(first: dict[str, float] | None, second: dict[str, float] | None, *, sign: int = 1) -> dict[str, float] | None:
    if first is None or second is None:
        return None
    names = dict.fromkeys([*first, *second])
    return {name: first.get(name, 0.0) + sign * second.get(name, 0.0) for name in names}
