"""How much device memory a training step needs, computed without the device.

The step of `crisp-stream train` runs on tensors without values (torch's FakeTensorMode) and torch's own memory tracker
follows every allocation: parameters, gradients, AdamW's two moments, what the forward pass keeps for the backward pass,
temporaries. Sharded models run the same way, as rank 0 of a process group that sends nothing. What differs on a GPU is
put in by hand, see `like_a_gpu`. `real_peak` runs the same step on a CPU with values and reads the process's memory, to
hold the method against.

Left out: the CUDA context and NCCL's buffers (1 to 2 GB), the allocator's fragmentation, an all-gather that runs ahead.
torch.compile keeps less for the backward pass, so the numbers are those of a run without it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import GPT2LMHeadModel

from benchmarks.support.measure import memory_bytes, reset_peak, run_task
from crisp_stream.config.sections import ModelRecipe
from crisp_stream.models.gpt import gpt_config, parameter_groups, save_activations_per_block

Layout = Literal["one", "ddp", "fsdp"]
CARD_BYTES = {"80 GB": 80e9, "141 GB": 141e9}
HEADROOM = 0.10
"""Share of a card that is kept free for what is left out."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step of a rank, of two microbatches: gradients of the first are there when the second peaks."""

    model: dict[str, Any]
    """Keys of ModelRecipe."""

    microbatch: int
    """Windows."""

    vocab_size: int = 32_768
    window_tokens: int = 1024
    layout: Layout = "one"
    ranks: int = 1
    reshard_after_forward: bool = True
    bf16: bool = True
    """As `amp_bf16`; else float32."""

    def options(self) -> dict[str, Any]:
        """As the tasks take it."""
        return asdict(self)

    @property
    def recipe(self) -> ModelRecipe:
        """The recipe's `model:` section."""
        return ModelRecipe(**self.model)


def peak(**step: Any) -> dict[str, float]:
    """A task: peak bytes of a rank, in all and by kind, at the moment of the peak."""
    return computed_peak(Step(**step))


def computed_peak(step: Step) -> dict[str, float]:
    """Peak bytes of a rank on a GPU, computed."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    mesh = _mesh(step.ranks) if step.layout == "fsdp" else None
    gpt = _model(step, "meta")
    with fake, like_a_gpu():
        gpt.to_empty(device="cpu").tie_weights()
        if mesh is not None:
            _shard(gpt, mesh, step)
        optimizer = _optimizer(gpt)
        batch = torch.zeros((step.microbatch, step.window_tokens), dtype=torch.int64)
        if mesh is None:
            tracker: MemTracker = MemTracker()
            tracker.track_external(gpt, optimizer, batch)
        else:
            tracker = FSDPMemTracker(gpt, optimizer)
            tracker.track_inputs((batch,))
        with tracker:
            _make_moments(gpt, optimizer)
            _step(gpt, optimizer, batch, bf16=step.bf16, after_microbatch=tracker.reset_mod_stats)
        snapshot = next(iter(tracker.get_tracker_snapshot("peak").values()))
    return {str(getattr(kind, "value", kind)): float(count) for kind, count in snapshot.items()}


def real_peak(**options: Any) -> dict[str, float]:
    """A task, for a process of its own: the peak that the same step adds to this process on a CPU, in bytes."""
    step = Step(**options)
    torch.set_num_threads(1)
    _train_for_real(replace(step, microbatch=1, window_tokens=8))  # what the first step loads for good
    gc.collect()
    before = memory_bytes("VmRSS")
    reset_peak()
    _train_for_real(step)
    return {"Total": float(memory_bytes("VmHWM") - before)}


def measured_peak(step: Step) -> float:
    """`real_peak` in a fresh process, whose allocator gives every large block back at once."""
    return run_task("training.training_memory:real_peak", step.options(), env={"MALLOC_MMAP_THRESHOLD_": "65536"})[
        "Total"
    ]


@contextlib.contextmanager
def like_a_gpu() -> Iterator[None]:
    """Autocast of a CPU leaves layer norms in bfloat16; that of a GPU computes them in float32, and keeps their inputs
    so. (For matrix products, attention, GELU and the loss the two agree.)"""
    own = torch.nn.functional.layer_norm

    def layer_norm(x: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return own(x, shape, weight, bias, eps)
        return own(x.float(), shape, weight.float(), bias.float(), eps)

    torch.nn.functional.layer_norm = layer_norm
    try:
        yield
    finally:
        torch.nn.functional.layer_norm = own


def _model(step: Step, device: str) -> GPT2LMHeadModel:
    config = gpt_config(step.recipe, vocab_size=step.vocab_size, window_tokens=step.window_tokens, eot_id=0)
    with torch.device(device):
        gpt = GPT2LMHeadModel(config)
    gpt.loss_type = "ForCausalLM"
    if step.recipe.activation_checkpointing:
        save_activations_per_block(gpt)
    return gpt.train()


def _mesh(ranks: int) -> Any:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    return init_device_mesh("cpu", (ranks,))


def _shard(gpt: GPT2LMHeadModel, mesh: Any, step: Step) -> None:
    """As Composer does with FSDP2 and mixed precision DEFAULT: blocks one by one, then the rest."""
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if step.bf16 else torch.float32, reduce_dtype=torch.float32
    )
    for module in [*gpt.transformer.h, gpt]:
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=step.reshard_after_forward)


def _optimizer(gpt: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(gpt, weight_decay=0.1), lr=1e-4, fused=True)


def _make_moments(gpt: GPT2LMHeadModel, optimizer: torch.optim.Optimizer) -> None:
    for parameter in gpt.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _step(
    gpt: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, batch: torch.Tensor, *, bf16: bool, after_microbatch: Any
) -> None:
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = gpt(input_ids=batch, labels=batch).loss
        loss.backward()
        after_microbatch()
    torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _train_for_real(step: Step) -> None:
    gpt = _model(step, "cpu")
    optimizer = _optimizer(gpt)
    batch = torch.zeros((step.microbatch, step.window_tokens), dtype=torch.int64)
    for _ in range(2):
        _step(gpt, optimizer, batch, bf16=step.bf16, after_microbatch=lambda: None)
