"""The model in training, computed as `crisp-stream eval` computes its checkpoint."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2LMHeadModel


@contextlib.contextmanager
def as_judged(model: torch.nn.Module) -> Iterator[GPT2LMHeadModel]:
    """Give the GPT in eval mode, with weights in float32. All ranks call this, and make the same forward passes.

    One process and DDP hold such weights. A sharded model gathers them in the precision of its training, so a plain
    GPT takes its place here: it gathers the weights of a block, in float32, when it computes the block.

    Args:
        model: Composer's, as the trainer has wrapped it.
    """
    wrapped = model.module if isinstance(model, DistributedDataParallel) else model
    gpt: Any = wrapped.model
    if isinstance(gpt, FSDPModule):
        yield _gathering(gpt)
        return
    gpt.eval()
    try:
        yield gpt
    finally:
        gpt.train()


def _gathering(gpt: Any) -> GPT2LMHeadModel:
    for module in gpt.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    with torch.device("meta"):
        plain = GPT2LMHeadModel(gpt.config).eval()
    for block, sharded in zip(plain.transformer.h, gpt.transformer.h, strict=True):
        block.register_forward_pre_hook(functools.partial(_fill, sharded))
        block.register_forward_hook(_empty)
    outside = {name: weight for name, weight in _weights(gpt) if not name.startswith("transformer.h.")}
    plain.load_state_dict({name: _whole(weight) for name, weight in outside.items()}, strict=False, assign=True)
    plain.tie_weights()
    return plain


def _weights(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, weight.detach()) for name, weight in module.named_parameters())


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _fill(sharded: torch.nn.Module, block: torch.nn.Module, inputs: Any) -> None:
    block.load_state_dict({name: _whole(weight) for name, weight in _weights(sharded)}, assign=True)


def _empty(block: torch.nn.Module, inputs: Any, outputs: Any) -> None:
    block.to("meta")
