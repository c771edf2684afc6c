"""Device memory of a training step, by a formula: weights and what is as long as they, and what a forward pass keeps.

The constants are what torch's memory tracker finds for this model (benchmarks/training/training_memory.py follows the
real step, but takes minutes): the sums agree with its table to 6 % (tests/models/test_training_memory.py). Left out:
the CUDA context and NCCL's buffers (1 to 2 GB) and fragmentation. torch.compile keeps less.
"""

from __future__ import annotations

from dataclasses import dataclass

_STATE = 16
"""Bytes per parameter: itself, its gradient and Adam's two moments."""
_COPY = 2
"""Bytes per parameter of the half-precision copy that autocast and FSDP2 work with."""
_DDP_BUCKETS = 4
"""Bytes per parameter of the gradients that DDP sends, beside those that the optimiser reads."""
_OF_A_BLOCK = {"half": 38, "float32": 68}
"""Bytes that a block keeps for the backward pass, per token and unit of width."""
_OF_LOGITS = 12
"""Bytes per token and entry of the vocabulary: logits, the same in float32, and their gradients."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What decides the memory of a step."""

    num_parameters: int
    n_layer: int
    n_embd: int
    vocab_size: int
    window_tokens: int
    microbatch_size: int
    """Windows per forward pass of a rank."""
    half_precision: bool
    """amp_bf16 or amp_fp16; else float32."""
    activation_checkpointing: bool
    ranks: int
    sharded: bool
    """FSDP2; else every rank holds all (DDP)."""
    reshard_after_forward: bool
    """Of FSDP2."""


def step_memory(shape: StepShape) -> float:
    """Bytes of a device at the peak of a step."""
    return _of_weights(shape) + shape.microbatch_size * shape.window_tokens * _of_token(shape)


def _of_weights(shape: StepShape) -> float:
    copies = _COPY * shape.num_parameters if shape.half_precision else 0
    if not shape.sharded:
        return _STATE * shape.num_parameters + copies + (_DDP_BUCKETS * shape.num_parameters if shape.ranks > 1 else 0)
    if shape.reshard_after_forward:  # two blocks and the embedding are gathered at a time
        gathered = 2 * 12 * shape.n_embd**2 + shape.vocab_size * shape.n_embd
        copies = (_COPY if shape.half_precision else 4) * gathered
    return _STATE * shape.num_parameters / shape.ranks + copies


def _of_token(shape: StepShape) -> float:
    kept = _OF_A_BLOCK["half" if shape.half_precision else "float32"]
    if shape.activation_checkpointing:  # the input of each block alone
        kept = 2 if shape.sharded and shape.half_precision else 4
    return kept * shape.n_layer * shape.n_embd + _OF_LOGITS * shape.vocab_size
