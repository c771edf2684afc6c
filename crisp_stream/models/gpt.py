"""The language model: the GPT-2 architecture of `transformers`, at any size, wrapped for Composer.

The model is `transformers`' GPT-2 and not one of ours: the exported checkpoint is a plain Hugging Face folder that all
tools read, and the paper's sizes (CRISP, Table 4, after Brown et al. 2020) are this architecture at other widths.
Attention is torch's scaled dot product, without a mask. The activation is that of GPT-2 (GELU by tanh) as torch's one
kernel: `gelu_new` is the same function in eight, and keeps four tensors of the feed-forward width for the backward pass
where this keeps one.
Initial weights depend on the seed alone, not on the rank or the device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.errors import FormatError, RecipeError, import_extra

if TYPE_CHECKING:
    import torch
    from composer.models import HuggingFaceModel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PROVENANCE_KEY = "crisp_stream"
"""Key of the model's config.json under which we record which dataset it was trained on."""


GPT_SIZES = {
    "350M": ModelRecipe(n_embd=1024, n_layer=24, n_head=16, n_positions=1024),
    "1.3B": ModelRecipe(n_embd=2048, n_layer=24, n_head=16, n_positions=1024),
    "6.7B": ModelRecipe(n_embd=4096, n_layer=32, n_head=32, n_positions=1024),
}
"""The sizes of Table 4 of the CRISP paper, by the names used there (its "1.3m" is a misprint)."""


def gpt_config(
    model: ModelRecipe, *, vocab_size: int, window_tokens: int, eot_id: int, provenance: dict[str, Any] | None = None
) -> GPT2Config:
    """Architecture of a recipe over a dataset's vocabulary.

    Args:
        vocab_size: number of token ids of the dataset's tokenizer.
        window_tokens: length of the training windows; the context limit unless the recipe sets a larger one.
        eot_id: end-of-text token, which is also the begin-of-text token of the exported model.
        provenance: recorded in the model's config.json.

    Raises:
        RecipeError: the context limit is shorter than the windows.
    """
    transformers = import_extra("transformers", extra="train", purpose="building a model")
    n_positions = window_tokens if model.n_positions is None else model.n_positions
    if n_positions < window_tokens:
        raise RecipeError(
            f"`model.n_positions` is {n_positions}, but the dataset's windows have {window_tokens} tokens. "
            "Drop the key, or raise it."
        )
    return transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=n_positions,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        resid_pdrop=model.dropout,
        embd_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=eot_id,
        eos_token_id=eot_id,
        use_cache=False,
        attn_implementation="sdpa",
        **({} if provenance is None else {PROVENANCE_KEY: provenance}),
    )


def build_gpt(config: GPT2Config, *, seed: int) -> GPT2LMHeadModel:
    """A model whose random weights depend on `config` and `seed` alone. The caller's random state stays as it was."""
    torch = import_extra("torch", extra="train", purpose="building a model")
    transformers = import_extra("transformers", extra="train", purpose="building a model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gpt = transformers.GPT2LMHeadModel(config)
    gpt.loss_type = "ForCausalLM"  # what transformers falls back to for this class, with a warning
    return gpt


def load_tokenizer(folder: Path, *, eot_token: str, n_positions: int) -> PreTrainedTokenizerFast:
    """The dataset's tokenizer as `transformers` wants it.

    Args:
        folder: holds `tokenizer.json`.
        eot_token: end-of-text token; begin, end and padding token of the result.
        n_positions: context limit recorded with it.

    Raises:
        FormatError: there is no such token in the vocabulary.
    """
    transformers = import_extra("transformers", extra="train", purpose="loading the tokenizer")
    tokenizers = import_extra("tokenizers", extra="train", purpose="loading the tokenizer")
    eot_id = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(eot_token)
    if eot_id is None:
        raise FormatError(
            f"{folder / 'tokenizer.json'} has no token {eot_token!r}, which the manifest names as end of text."
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=eot_token,
        eos_token=eot_token,
        pad_token=eot_token,
        model_max_length=n_positions,
        clean_up_tokenization_spaces=False,
    )


def composer_model(
    gpt: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, activation_checkpointing: bool = False
) -> HuggingFaceModel:
    """Wrap a GPT for Composer's Trainer.

    The training loss is the model's mean over labelled tokens. Any evaluation dataloader gets token-level
    cross-entropy and perplexity. The tokenizer travels in every checkpoint, so that an export needs nothing else.
    """
    wrapper = import_extra("crisp_stream.models.composer_gpt", extra="train", purpose="training")
    nlp = import_extra("composer.metrics", extra="train", purpose="training")
    transformers = import_extra("transformers", extra="train", purpose="training")
    if activation_checkpointing:
        save_activations_per_block(gpt)
    gpt2 = transformers.models.gpt2.modeling_gpt2
    gpt.fsdp_wrap_fn = lambda module: isinstance(module, gpt2.GPT2Block)  # pyright: ignore[reportArgumentType]
    for module in gpt.modules():
        if isinstance(module, gpt2.GPT2Attention):  # eager attention's masks: unused, and DDP sends them at every step
            module.register_buffer("bias", None, persistent=False)
            module.register_buffer("masked_bias", None, persistent=False)
    return wrapper.TrainedGPT(
        model=gpt,
        tokenizer=tokenizer,
        use_logits=True,
        eval_metrics=[nlp.LanguageCrossEntropy(), nlp.LanguagePerplexity()],
    )


def save_activations_per_block(gpt: GPT2LMHeadModel) -> None:
    """Keep only each block's input for the backward pass, which computes the rest again (activation checkpointing)."""
    # transformers 5 has another name for it, and warns of the old one.
    enable: Any = getattr(gpt, "activation_checkpointing_enable", gpt.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def compile_blocks(gpt: GPT2LMHeadModel, *, backend: str | Callable[..., Any] = "inductor", **options: Any) -> None:
    """Compile the training step: one graph that all blocks share, and the loss. Evaluation stays as it is.

    Not the model as a whole, as Composer does: DDP and FSDP2 break that graph, with `fullgraph` they fail, and in eval
    mode attention would get a mask. Blocks are whole with either, and texts of any length do not compile anew.
    Checkpoint keys stay what they are.

    Turns off torch's DDPOptimizer in this process. It cuts a graph where a bucket of gradients (25 MB) is full, so that
    DDP sends one while the rest is computed: a block of width 1,024 became three. Blocks are short enough for that.

    Args:
        backend: of `torch.compile`.
        options: others of `torch.compile`: mode, fullgraph, dynamic.
    """
    torch = import_extra("torch", extra="train", purpose="training")
    import_extra("torch._dynamo", extra="train", purpose="training").config.optimize_ddp = False
    for block in gpt.transformer.h:
        block.forward = _in_training(block, torch.compile(block.forward, backend=backend, **options), block.forward)
    gpt.loss_function = torch.compile(gpt.loss_function, backend=backend, **options)


def _in_training(
    module: torch.nn.Module, compiled: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(*arguments: Any, **named: Any) -> Any:
        return (compiled if module.training else plain)(*arguments, **named)

    return forward


def parameter_groups(gpt: torch.nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters for AdamW: matrices and embeddings decay, biases and layer norms do not."""
    matrices = [parameter for parameter in gpt.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in gpt.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
