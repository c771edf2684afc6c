"""What a run will train, said before its first batch: the model that the dataset makes of the recipe, length, memory,
and what `crisp-stream forecast` would warn of. From counts alone: no sample of the order is looked at."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from crisp_stream.errors import import_extra
from crisp_stream.forecast.advice import advise_serving
from crisp_stream.forecast.forecast import forecast_serving
from crisp_stream.models.training_cost import gpt_parameters
from crisp_stream.models.training_memory import StepShape, step_memory
from crisp_stream.ranks import device_name
from crisp_stream.table import aligned, format_bytes

if TYPE_CHECKING:
    from crisp_stream.training.prepare import PreparedRun

MOST_DRAWS = 1 << 24
"""Multinomial draws can only be counted by making them, 3 million a second. Longer runs are not counted."""


def announce(run: PreparedRun) -> None:
    """Print what a run will train; rank 0 does."""
    if import_extra("composer.utils.dist", extra="train", purpose="training").get_global_rank() == 0:
        print("\n".join([aligned(list(_rows(run))), *_warnings(run)]), file=sys.stderr, flush=True)


def _rows(run: PreparedRun) -> Iterator[tuple[str, str]]:
    recipe, config, window_tokens = run.recipe, run.config, run.dataset.manifest.window_tokens
    tokens_per_batch = recipe.global_train_batch_size * window_tokens
    yield "run", recipe.run_name
    yield (
        "parameters",
        f"{_num_parameters(run):,}: {config.n_layer} blocks of width {config.n_embd:,}, a vocabulary of "
        f"{config.vocab_size:,}",
    )
    yield "windows", f"{window_tokens:,} tokens, {recipe.global_train_batch_size:,} of them in a batch"
    length = f"{run.num_batches:,}, {run.num_batches * tokens_per_batch:,} tokens"
    if done := run.batches_done:
        left = run.num_batches - done
        length += f"; goes on after batch {done:,}, {left:,} batches and {left * tokens_per_batch:,} tokens are left"
    yield "batches", length
    yield "memory", _memory(run)
    for name, dataset in run.sources if run.sources.is_named else ():
        yield f"source {name}", f"{dataset.manifest.num_windows:,} windows in {dataset.root}"
    yield from _components(run)


def _components(run: PreparedRun) -> Iterator[tuple[str, str]]:
    """What each phase of the recipe is drawn by, where one has several components, or sources are named."""
    if not run.sources.is_named and all(each.phase.is_plain for each in run.phases):
        return
    for index, phase in enumerate(run.recipe.mixture.phases):
        steps = [each for each in run.phases if each.index == index]
        if phase.is_checkpoint or not steps:
            continue
        names = [steps[0].summary] if len(steps) == 1 else [steps[0].summary, steps[-1].summary]
        in_steps = f", in {len(steps)} steps" if len(steps) > 1 else ""
        yield f"phase {index + 1}", " to ".join(names) + in_steps


def _num_parameters(run: PreparedRun) -> int:
    config = run.config
    return gpt_parameters(
        n_layer=config.n_layer, n_embd=config.n_embd, n_positions=config.n_positions, vocab_size=config.vocab_size
    )


def _memory(run: PreparedRun) -> str:
    recipe, config = run.recipe, run.config
    ranks = import_extra("composer.utils.dist", extra="train", purpose="training").get_world_size()
    shape = StepShape(
        num_parameters=_num_parameters(run),
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        vocab_size=config.vocab_size,
        window_tokens=run.dataset.manifest.window_tokens,
        microbatch_size=run.microbatch_size,
        half_precision=recipe.precision != "fp32",
        activation_checkpointing=recipe.model.activation_checkpointing,
        ranks=ranks,
        sharded=recipe.fsdp is not None and ranks > 1,
        reshard_after_forward=recipe.fsdp is not None and recipe.fsdp.reshard_after_forward,
    )
    windows = run.microbatch_size
    text = f"about {format_bytes(step_memory(shape))} at {windows:,} window{'s' * (windows > 1)} per forward pass"
    if device_name() == "cpu":
        return f"{text}, computed, per process"
    torch = import_extra("torch", extra="train", purpose="training")
    has = format_bytes(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    less = " without torch.compile, which needs less" if recipe.compile_config is not None else ""
    return f"{text}, computed{less}, per GPU, which has {has}"


def _warnings(run: PreparedRun) -> Iterator[str]:
    samples, mixture = run.end, run.mixture
    if mixture.draw == "multinomial" and samples > MOST_DRAWS:
        yield (
            f"{samples:,} multinomial draws are too many to be counted first, so nothing is said of repeats. "
            "Ask for it with: crisp-stream forecast"
        )
        return
    serving = forecast_serving(run.sources, mixture, run.stream.order(), samples=samples, seed=run.recipe.seed)
    for advice in advise_serving(serving):
        yield f"warning: {advice.text()}"
