"""Everything that a run needs before its model is built: dataset, mixture, batch sizes, tokenizer, starting checkpoint.

Each is opened and checked against the others, so that a mistake costs seconds and not the minutes of building a model
on every rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.checkpoint import (
    has_checkpoints,
    latest_checkpoint,
    local_copy,
    model_config_of,
    read_checkpoint,
    tokenizer_of,
)
from crisp_stream.durations import batches_of
from crisp_stream.errors import CrispError, InputError, RecipeError, import_extra
from crisp_stream.format import Dataset, open_dataset
from crisp_stream.histogram import Histogram
from crisp_stream.mixture import Mixture, Phase, within_repeats
from crisp_stream.recipe import PhaseRecipe, Recipe
from crisp_stream.storage import is_remote

if TYPE_CHECKING:
    from transformers import GPT2Config
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

    from crisp_stream.dataset import MixtureDataset


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A recipe whose dataset, mixture, checkpoint and batch sizes were found to fit."""

    recipe: Recipe
    dataset: Dataset
    mixture: Mixture
    stream: MixtureDataset
    """This rank's batches."""

    tokenizer: PreTrainedTokenizerFast
    config: GPT2Config
    num_batches: int
    microbatch_size: int
    """Windows per forward pass of a rank."""

    load_path: Path | None
    """Local file to start from."""

    weights_only: bool
    held_out: list[str]
    """Texts to measure during the run."""


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """The checkpoint that a run starts from; None: from random weights."""

    url: str | None
    path: Path | None
    weights_only: bool


def prepare(recipe: Recipe, *, load_path: Path | None, weights_only: bool) -> PreparedRun:
    """Try everything that a run needs before its model is built.

    Args:
        load_path: local checkpoint to start from.
        weights_only: take its weights alone.

    Raises:
        as `train.train`.
    """
    from crisp_stream.dataset import MixtureDataset
    from crisp_stream.model import gpt_config, load_tokenizer

    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    _check_device(recipe)
    per_rank, microbatch_size = _batch_sizes(recipe, dist.get_world_size())
    dataset = open_dataset(recipe.data.remote, generation=recipe.data.generation, timeout=recipe.data.timeout)
    manifest = dataset.manifest
    tokens_per_batch = recipe.global_train_batch_size * manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    mixture = build_mixture(recipe, dataset)
    stream = MixtureDataset(
        recipe.data.remote,
        mixture,
        batch_size=per_rank,
        seed=recipe.seed,
        local=recipe.data.local,
        cache_limit=recipe.data.cache_limit_bytes,
        yield_batches=True,
        timeout=recipe.data.timeout,
        lookahead=recipe.data.lookahead,
        generation=recipe.data.generation,
        num_samples=num_batches * recipe.global_train_batch_size,
    )
    provenance = {"dataset": manifest.fingerprint, "packing": manifest.packing, "window_tokens": manifest.window_tokens}
    config = gpt_config(
        recipe.model,
        vocab_size=manifest.tokenizer.vocab_size,
        window_tokens=manifest.window_tokens,
        eot_id=manifest.tokenizer.eot_id,
        provenance=provenance,
    )
    tokenizer = load_tokenizer(
        dataset.tokenizer_path(), eot_token=manifest.tokenizer.eot_token, n_positions=config.n_positions
    )
    if load_path is not None:
        _check_checkpoint(load_path, config, tokenizer, stream, weights_only=weights_only)
    return PreparedRun(
        recipe=recipe,
        dataset=dataset,
        mixture=mixture,
        stream=stream,
        tokenizer=tokenizer,
        config=config,
        num_batches=num_batches,
        microbatch_size=microbatch_size,
        load_path=load_path,
        weights_only=weights_only,
        held_out=_held_out_texts(recipe),
    )


def build_mixture(recipe: Recipe, dataset: Dataset) -> Mixture:
    """The recipe's phases with their lengths in samples: whole global batches, so that a switch falls between steps.

    Raises:
        RecipeError: phases that do not fit into the run.
        InputError, FormatError: a histogram that is not there, or is of another tree; clusters beyond `max_repeats`.
    """
    batch = recipe.global_train_batch_size
    tokens_per_batch = batch * dataset.manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    phases, start = [], 0
    for index, phase in enumerate(recipe.mixture.phases):
        histogram = _histogram(phase, dataset)
        last = index == len(recipe.mixture.phases) - 1
        until = num_batches if phase.until is None else batches_of(phase.until, tokens_per_batch=tokens_per_batch)
        if last and until < num_batches:
            raise RecipeError(
                f"`mixture.phases.{index}.until` is batch {until}, but the run has {num_batches}. "
                "Drop `until` from the last phase."
            )
        if not last and not start < until < num_batches:
            raise RecipeError(
                f"`mixture.phases.{index}.until` is batch {until}; it must lie after batch {start}, where the phase "
                f"starts, and before batch {num_batches}, where the run ends."
            )
        samples = (min(until, num_batches) - start) * batch
        limited = Phase(histogram, samples, max_repeats=phase.max_repeats, on_excess=phase.on_excess)
        if last and phase.on_excess == "error":
            # Checked for the length of the run, then left open, so that a finished run can be lengthened.
            if phase.max_repeats is not None:
                within_repeats(limited, dataset, what=f"phase {index + 1}")
            limited = Phase(histogram)
        phases.append(limited)
        start = until
    return Mixture(phases, draw=recipe.mixture.draw)


def _histogram(phase: PhaseRecipe, dataset: Dataset) -> Histogram:
    paths = [phase.histogram] if isinstance(phase.histogram, str) else list(phase.histogram)
    if paths == ["base"]:
        return Histogram.base(dataset.manifest)
    if "base" in paths:
        raise RecipeError(
            "`base` cannot be averaged with histograms of a level. Use phases, or `crisp-stream average`."
        )
    histograms = [Histogram.load(path) for path in paths]
    return histograms[0] if len(histograms) == 1 else Histogram.average(histograms)


def _batch_sizes(recipe: Recipe, world_size: int) -> tuple[int, int]:
    batch = recipe.global_train_batch_size
    if batch % world_size:
        raise RecipeError(f"`global_train_batch_size` must be a multiple of the {world_size} processes; got {batch}.")
    per_rank = batch // world_size
    microbatch_size = min(recipe.device_train_microbatch_size or per_rank, per_rank)
    if per_rank % microbatch_size:
        raise RecipeError(
            f"`device_train_microbatch_size` must divide each process's {per_rank} windows "
            f"({batch} over {world_size} processes); got {microbatch_size}."
        )
    return per_rank, microbatch_size


def device_name() -> str:
    """`gpu` if there is one, else `cpu`, as Composer names devices."""
    torch = import_extra("torch", extra="train", purpose="training")
    return "gpu" if torch.cuda.is_available() else "cpu"


def _check_device(recipe: Recipe) -> None:
    if device_name() == "cpu" and recipe.precision != "fp32":
        raise RecipeError(f"`precision` {recipe.precision} needs a GPU and there is none. Add: precision=fp32")


def _held_out_texts(recipe: Recipe) -> list[str]:
    if recipe.eval is None:
        return []
    from crisp_stream.writers.documents import DropCounts, read_documents

    inputs = [recipe.eval.inputs] if isinstance(recipe.eval.inputs, str) else list(recipe.eval.inputs)
    column, limit = recipe.eval.text_column, recipe.eval.limit
    return list(read_documents(inputs, text_column=column, limit=limit, counts=DropCounts()))


@contextlib.contextmanager
def starting_checkpoint(recipe: Recipe) -> Iterator[StartingPoint]:
    """What to start from, as a file of this node.

    Rank 0 decides, so that all ranks agree; one rank per node downloads.
    """
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    found: list[Any] = [None]
    if dist.get_global_rank() == 0:
        found = [_find_start(recipe)]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], CrispError):
        raise found[0]
    url, weights_only = found[0]
    with contextlib.ExitStack() as stack:
        path: Any = None
        if url is not None and (not is_remote(url) or dist.get_local_rank() == 0):
            path = stack.enter_context(local_copy(url))
        paths = dist.all_gather_object(path)
        on_node = paths[dist.get_global_rank() - dist.get_local_rank()] if path is None else path
        yield StartingPoint(url=url, path=on_node, weights_only=weights_only)
        dist.barrier()


def _find_start(recipe: Recipe) -> tuple[str | None, bool] | CrispError:
    folder = recipe.checkpoint_folder
    try:
        if folder is not None and recipe.autoresume:
            latest = latest_checkpoint(folder)
            if latest is not None:
                return latest, False
        elif folder is not None and has_checkpoints(folder):
            continues = recipe.load_path is not None and not recipe.load_weights_only
            if not (continues and str(recipe.load_path).startswith(folder)):
                raise InputError(
                    f"save_folder {folder} holds checkpoints of an earlier run. "
                    "Add autoresume=true to continue it, or name another save_folder."
                )
    except CrispError as error:
        return error
    return recipe.load_path, recipe.load_weights_only


def _check_checkpoint(
    path: Path, config: GPT2Config, tokenizer: PreTrainedTokenizerFast, stream: MixtureDataset, *, weights_only: bool
) -> None:
    checkpoint = read_checkpoint(path)
    saved = model_config_of(checkpoint, path)
    for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        if saved[key] != getattr(config, key):
            raise InputError(
                f"{path} holds a model with {key} = {saved[key]}, the recipe and dataset make {getattr(config, key)}. "
                "The model section, the tokenizer and the window length must be those of the checkpoint."
            )
    if tokenizer_of(checkpoint, path).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"{path} was trained with another tokenizer than that of the dataset. "
            "Write the dataset with the checkpoint's: crisp-stream write … --like ROOT."
        )
    if weights_only:
        return
    state = (checkpoint["state"].get("dataset_state") or {}).get("train")
    if state is None:
        raise InputError(
            f"{path} holds no position in a dataset. Add load_weights_only=true to start a new run from it."
        )
    stream.load_state_dict(state)
