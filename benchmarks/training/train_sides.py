"""The sides of bench_train.py, each a task of its own process or, with ranks, of one process per rank.

`ours` trains a recipe through Composer, in turns on batches of the real loader and on batches that are on the device
already. Both turns run the same Trainer, so that what differs between them is the loader.
`eager` is the GPT-2 of `transformers` in a plain loop: float32, eager attention, `gelu_new`, AdamW with its defaults.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger
from composer.utils import dist

from benchmarks.support.measure import memory_bytes, out_of_memory_is_unavailable, reset_peak
from crisp_stream.config.recipe import Recipe
from crisp_stream.config.sections import (
    CompileRecipe,
    DataRecipe,
    FSDPRecipe,
    MixtureRecipe,
    ModelRecipe,
    OptimizerRecipe,
    PhaseRecipe,
)
from crisp_stream.ranks import device_name
from crisp_stream.training.prepare import prepare
from crisp_stream.training.start import starting_checkpoint
from crisp_stream.training.train import build_trainer

WARM_UP = 3
"""First batches of every turn, which are not timed: they compile, fill caches and start workers."""


class Kept:
    """A loader that goes on where it stood when it is iterated again, and the seconds spent waiting for it."""

    def __init__(self, loader: Any) -> None:
        self._batches = iter(loader)
        self.waited: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            batch = next(self._batches)
            self.waited.append(time.perf_counter() - started)
            yield batch


class StepTimes(Callback):
    """When each batch ended, with everything that the device had to do for it."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        _finish()
        self.ended.append(time.perf_counter())


def ours(**options: Any) -> dict[str, Any]:
    """Seconds per step with the real loader and without one, per turn; seconds waited; peak memory."""
    with out_of_memory_is_unavailable():
        return _ours(**options)


def _ours(
    *, root: str, model: dict[str, Any], batch: int, microbatch: int, steps: int, turns: int, fsdp: bool, **choices: Any
) -> dict[str, Any]:
    if dist.get_world_size() > 1:
        dist.initialize_dist(device_name())
    recipe = Recipe(
        run_name="bench",
        max_duration=f"{2 * turns * (steps + WARM_UP)}ba",
        global_train_batch_size=batch,
        device_train_microbatch_size=microbatch,
        data=DataRecipe(remote=root, local=choices["local"], num_workers=choices["workers"]),
        mixture=MixtureRecipe(phases=(PhaseRecipe(histogram="base"),)),
        model=ModelRecipe(**model),
        optimizer=OptimizerRecipe(lr=1e-4),
        precision=choices["precision"],
        compile_config=CompileRecipe(mode=choices["compile"]) if choices["compile"] else None,
        fsdp=FSDPRecipe(reshard_after_forward=choices["reshard"]) if fsdp else None,
        log_interval=10**9,
    )
    with starting_checkpoint(recipe) as start:
        trainer = build_trainer(prepare(recipe, start), None).trainer
    real = trainer.state.train_dataloader
    assert real is not None
    loader, times = Kept(real), StepTimes()
    trainer.state.callbacks.append(times)
    spec = trainer._train_data_spec  # pyright: ignore[reportPrivateUsage]
    assert spec is not None
    split, count = spec.split_batch, spec.get_num_tokens_in_batch
    held = next(iter(loader))
    on_device = _on_device(split(held, microbatch))
    num_tokens = {kind: count(held, kind) for kind in ("total", "loss_generating")}
    constant = DataSpec(
        iter(lambda: held, None), split_batch=lambda *_: on_device, get_num_tokens_in_batch=_counted(num_tokens)
    )
    with_loader = DataSpec(loader, split_batch=split, get_num_tokens_in_batch=_counted_of(spec))
    _reset_peak()
    found: dict[str, Any] = {"loader": [], "resident": [], "waited": []}
    for _ in range(turns):
        for side, data in (("resident", constant), ("loader", with_loader)):
            times.ended, loader.waited = [], []
            trainer.fit(train_dataloader=data, duration=f"{steps + WARM_UP}ba", reset_time=False)
            found[side].append((times.ended[-1] - times.ended[WARM_UP - 1]) / steps)
            if side == "loader":
                found["waited"].append(sum(loader.waited[WARM_UP : WARM_UP + steps]) / steps)
    trainer.close()
    return {**found, "memory": _peak_memory(), **_device()}


def eager(**options: Any) -> dict[str, Any]:
    """Seconds per step of each turn, peak memory."""
    with out_of_memory_is_unavailable():
        return _eager(**options)


def _eager(
    *, model: dict[str, Any], vocab_size: int, window_tokens: int, batch: int, microbatch: int, steps: int, turns: int
) -> dict[str, Any]:
    if dist.get_world_size() > 1:
        dist.initialize_dist(device_name())
    device = torch.device(f"cuda:{dist.get_local_rank()}" if torch.cuda.is_available() else "cpu")
    config_class: Any = transformers.GPT2Config
    config = config_class(
        vocab_size=vocab_size,
        n_positions=window_tokens,
        n_embd=model["n_embd"],
        n_layer=model["n_layer"],
        n_head=model["n_head"],
        attn_implementation="eager",
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        use_cache=False,
    )
    gpt: Any = transformers.GPT2LMHeadModel(config).train()
    gpt.loss_type = "ForCausalLM"
    gpt.to(device)
    if dist.get_world_size() > 1:
        gpt = torch.nn.parallel.DistributedDataParallel(gpt)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4)
    ids = torch.randint(0, vocab_size, (microbatch, window_tokens), device=device)
    accumulated = batch // dist.get_world_size() // microbatch
    _reset_peak()
    seconds = []
    for _ in range(turns):
        started = 0.0
        for step in range(steps + WARM_UP):
            if step == WARM_UP:
                _finish()
                started = time.perf_counter()
            for micro in range(accumulated):
                last = micro == accumulated - 1
                alone = isinstance(gpt, torch.nn.parallel.DistributedDataParallel) and not last
                with gpt.no_sync() if alone else contextlib.nullcontext():
                    (gpt(input_ids=ids, labels=ids).loss / accumulated).backward()
            optimizer.step()
            optimizer.zero_grad()
        _finish()
        seconds.append((time.perf_counter() - started) / steps)
    return {"eager": seconds, "memory": _peak_memory(), **_device()}


def _counted(num_tokens: dict[str, int]) -> Any:
    return lambda batch: dict(num_tokens) if "num_labels" not in batch else _known(batch)


def _counted_of(spec: DataSpec) -> Any:
    return lambda batch: {kind: spec.get_num_tokens_in_batch(batch, kind) for kind in ("total", "loss_generating")}


def _known(batch: dict[str, Any]) -> dict[str, int]:
    return {"total": batch["input_ids"].numel(), "loss_generating": batch["num_labels"]}


def _on_device(microbatches: Any) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return list(microbatches)
    return [
        {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in part.items()}
        for part in microbatches
    ]


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


def _peak_memory() -> int:
    """Bytes allocated at the peak on this rank's GPU; without one, the resident memory of the process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory_bytes("VmHWM")


def _device() -> dict[str, str]:
    return {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}
