"""Parameters of a GPT as `transformers` builds it."""

from __future__ import annotations

import torch
import transformers

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.models.gpt import gpt_config


def count_parameters(model: ModelRecipe, *, vocab_size: int) -> int:
    """Number of trained parameters (the tied embedding once), without allocating them."""
    config = gpt_config(model, vocab_size=vocab_size, window_tokens=1024, eot_id=0)
    model_class = transformers.GPT2LMHeadModel  # imported here: importing under a device context breaks torch
    with torch.device("meta"):
        gpt = model_class(config)
    gpt.tie_weights()  # a meta model keeps its output layer apart until this call
    return sum(parameter.numel() for parameter in gpt.parameters())
