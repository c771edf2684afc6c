"""A recipe becomes a trained model: dataset and mixture into Composer's Trainer, checkpoints and an account out.

Everything that can fail for a reason of the user's (dataset, histograms, checkpoint, saved position, batch sizes) is
tried before the model is built; a 6.7B model takes minutes to build, a wrong path takes milliseconds to find.

The optimiser is torch's AdamW, not Composer's DecoupledAdamW: there a step shrinks weights by
`weight_decay x lr / peak lr`, so the 0.1 of Brown et al. would mean a thousand times more decay than they used.
The loss of a global batch is the mean over its labelled tokens, whatever the number of ranks and microbatches.

Several processes: `composer -n 8 -m crisp_stream.train RECIPE key=value…`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
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
from crisp_stream.config import load_recipe
from crisp_stream.errors import CrispError, InputError, RecipeError, import_extra
from crisp_stream.format import Dataset, open_dataset
from crisp_stream.histogram import Histogram
from crisp_stream.mixture import Mixture, Phase
from crisp_stream.recipe import PhaseRecipe, Recipe, batches_of
from crisp_stream.run_report import TrainReport, make_report, save_report
from crisp_stream.storage import is_remote

if TYPE_CHECKING:
    import torch
    from composer import Trainer
    from composer.core import Callback, DataSpec
    from transformers import GPT2Config, PreTrainedTokenizerFast

    from crisp_stream.callbacks import CountedStream, HeldOutPerplexity, RunAccount
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


def train(recipe: Recipe) -> TrainReport:
    """Run a recipe to its end; all ranks call this and get the same report.

    Rank 0 writes `run.json` and `losses.csv` beside the checkpoints.

    Raises:
        RecipeError: values that do not fit the dataset, the device or the number of processes.
        InputError, FormatError, StorageError: dataset, histogram, held-out text or checkpoint missing or unfit.
        ResumeError: the checkpoint belongs to another dataset, mixture or seed.
        MissingExtraError: Composer or transformers is not installed.
    """
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    if dist.get_world_size() > 1:
        dist.initialize_dist(_device())
    with _starting_checkpoint(recipe) as (load_path, weights_only):
        run = prepare(recipe, load_path=load_path, weights_only=weights_only)
        trainer, account, held_out = _build_trainer(run)
    try:
        trainer.fit()
    finally:
        trainer.close()
    checkpoints = trainer.saved_checkpoints
    report = make_report(
        recipe=recipe,
        dataset=run.dataset,
        mixture=run.mixture,
        account=account,
        num_parameters=sum(parameter.numel() for parameter in trainer.state.model.parameters()),
        held_out=[] if held_out is None else held_out.measured,
        checkpoint=_saved_name(recipe, checkpoints[-1]) if checkpoints else None,
    )
    if dist.get_global_rank() == 0 and recipe.checkpoint_folder is not None:
        save_report(report, account, recipe.checkpoint_folder)
    return report


def prepare(recipe: Recipe, *, load_path: Path | None, weights_only: bool) -> PreparedRun:
    """Try everything that a run needs before its model is built.

    Args:
        load_path: local checkpoint to start from.
        weights_only: take its weights alone.

    Raises:
        as `train`.
    """
    from crisp_stream.dataset import MixtureDataset
    from crisp_stream.model import gpt_config, load_tokenizer

    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    _check_device(recipe)
    per_rank, microbatch_size = _batch_sizes(recipe, dist.get_world_size())
    dataset = open_dataset(recipe.data.remote, timeout=recipe.data.timeout)
    manifest = dataset.manifest
    tokens_per_batch = recipe.global_train_batch_size * manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    mixture = build_mixture(recipe, dataset)
    mixture.leaf_proportions(dataset)
    stream = MixtureDataset(
        recipe.data.remote,
        mixture,
        batch_size=per_rank,
        seed=recipe.seed,
        local=recipe.data.local,
        cache_limit=recipe.data.cache_limit_bytes,
        yield_batches=True,
        timeout=recipe.data.timeout,
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
        InputError, FormatError: a histogram that is not there, or is of another tree.
    """
    batch = recipe.global_train_batch_size
    tokens_per_batch = batch * dataset.manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    phases, start = [], 0
    for index, phase in enumerate(recipe.mixture.phases):
        histogram = _histogram(phase, dataset)
        if index == len(recipe.mixture.phases) - 1:
            until = num_batches if phase.until is None else batches_of(phase.until, tokens_per_batch=tokens_per_batch)
            if until < num_batches:
                raise RecipeError(
                    f"`mixture.phases.{index}.until` is batch {until}, but the run has {num_batches}. "
                    "Drop `until` from the last phase."
                )
            phases.append(Phase(histogram))
            continue
        until = batches_of(phase.until or "0ba", tokens_per_batch=tokens_per_batch)
        if not start < until < num_batches:
            raise RecipeError(
                f"`mixture.phases.{index}.until` is batch {until}; it must lie after batch {start}, where the phase "
                f"starts, and before batch {num_batches}, where the run ends."
            )
        phases.append(Phase(histogram, (until - start) * batch))
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


def _device() -> str:
    torch = import_extra("torch", extra="train", purpose="training")
    return "gpu" if torch.cuda.is_available() else "cpu"


def _check_device(recipe: Recipe) -> None:
    if _device() == "cpu" and recipe.precision != "fp32":
        raise RecipeError(f"`precision` {recipe.precision} needs a GPU and there is none. Add: precision=fp32")
    folder = recipe.checkpoint_folder
    if folder is not None and is_remote(folder) and not folder.startswith("s3://"):
        raise RecipeError(f"`save_folder` must be a local folder or an s3:// URL; got {folder}.")


def _held_out_texts(recipe: Recipe) -> list[str]:
    if recipe.eval is None:
        return []
    from crisp_stream.writers.documents import DropCounts, read_documents

    inputs = [recipe.eval.inputs] if isinstance(recipe.eval.inputs, str) else list(recipe.eval.inputs)
    column, limit = recipe.eval.text_column, recipe.eval.limit
    return list(read_documents(inputs, text_column=column, limit=limit, counts=DropCounts()))


@contextlib.contextmanager
def _starting_checkpoint(recipe: Recipe) -> Iterator[tuple[Path | None, bool]]:
    """The local file to start from and whether to take its weights alone.

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
        yield paths[dist.get_global_rank() - dist.get_local_rank()] if path is None else path, weights_only
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


def _build_trainer(run: PreparedRun) -> tuple[Trainer, RunAccount, HeldOutPerplexity | None]:
    from composer import Trainer
    from composer.algorithms import GradientClipping

    from crisp_stream.callbacks import CountedStream, RunAccount
    from crisp_stream.model import build_gpt, composer_model

    recipe = run.recipe
    stream = CountedStream(run.stream, num_workers=recipe.data.num_workers)
    gpt = build_gpt(run.config, seed=recipe.seed)
    model = composer_model(gpt, run.tokenizer, activation_checkpointing=recipe.model.activation_checkpointing)
    account = RunAccount(run.dataset.leaves, stream, log_windows=recipe.log_windows)
    held_out = _held_out_callback(run, gpt)
    callbacks: list[Callback] = [account, *([] if held_out is None else [held_out])]
    terminal = sys.stderr.isatty()
    if not terminal:
        from crisp_stream.callbacks import ProgressLines

        callbacks.append(ProgressLines(num_batches=run.num_batches, log_interval=recipe.log_interval))
    clipping = recipe.gradient_clipping
    trainer = Trainer(
        model=model,
        run_name=recipe.run_name,
        seed=recipe.seed,
        device=_device(),
        precision=recipe.precision,
        train_dataloader=_data_spec(recipe, stream),
        max_duration=recipe.max_duration.replace("_", ""),
        optimizers=_optimizer(recipe, gpt),
        schedulers=_scheduler(recipe),
        algorithms=[] if clipping is None else [GradientClipping("norm", clipping)],
        device_train_microbatch_size=run.microbatch_size,
        accumulate_train_batch_on_tokens=True,
        callbacks=callbacks,
        progress_bar=terminal,
        save_folder=recipe.checkpoint_folder,
        save_interval=recipe.save_interval.replace("_", ""),
        save_num_checkpoints_to_keep=recipe.save_num_checkpoints_to_keep,
        save_overwrite=recipe.autoresume,  # what lies beyond the newest complete checkpoint is written again
        load_path=None if run.load_path is None else str(run.load_path),
        load_weights_only=run.weights_only,
        load_progress_bar=False,
        parallelism_config=_parallelism(recipe),
        compile_config=_compile(recipe),
    )
    return trainer, account, held_out


def _held_out_callback(run: PreparedRun, gpt: Any) -> HeldOutPerplexity | None:
    if run.recipe.eval is None:
        return None
    from crisp_stream.callbacks import HeldOutPerplexity
    from crisp_stream.checkpoint import LoadedGPT

    return HeldOutPerplexity(
        LoadedGPT(gpt=gpt, tokenizer=run.tokenizer, provenance=run.config.crisp_stream),
        run.held_out,
        interval=run.recipe.eval_interval or "1dur",
        batch_size=run.microbatch_size,
    )


def _data_spec(recipe: Recipe, stream: CountedStream) -> DataSpec:
    import torch
    from composer.core import DataSpec

    loader = torch.utils.data.DataLoader(
        stream,
        batch_size=None,
        num_workers=recipe.data.num_workers,
        pin_memory=torch.cuda.is_available(),
    )

    def count_tokens(batch: dict[str, torch.Tensor]) -> dict[str, int]:
        # The model predicts labels[1:], so a label at the start of a window counts for nothing.
        predicted = int((batch["labels"][:, 1:] != -100).sum())
        return {"total": batch["input_ids"].numel(), "loss_generating": predicted}

    return DataSpec(loader, get_num_tokens_in_batch=count_tokens)


def _optimizer(recipe: Recipe, gpt: torch.nn.Module) -> torch.optim.Optimizer:
    import torch

    from crisp_stream.model import parameter_groups

    return torch.optim.AdamW(
        parameter_groups(gpt, weight_decay=recipe.optimizer.weight_decay),
        lr=recipe.optimizer.lr,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
        fused=recipe.precision != "amp_fp16" and recipe.fsdp is None,
    )


def _scheduler(recipe: Recipe) -> Any:
    from composer.optim import CosineAnnealingScheduler, CosineAnnealingWithWarmupScheduler

    warmup = recipe.scheduler.t_warmup.replace("_", "")
    if float(warmup.rstrip("abdkortu")) == 0:
        return CosineAnnealingScheduler(alpha_f=recipe.scheduler.alpha_f)
    return CosineAnnealingWithWarmupScheduler(warmup, alpha_f=recipe.scheduler.alpha_f)


def _parallelism(recipe: Recipe) -> Any:
    from composer.utils import dist
    from composer.utils.parallelism import FSDP2Config, ParallelismConfig

    if recipe.fsdp is None or dist.get_world_size() == 1:
        return None
    # Composer takes FSDP2 only as this object; the plain dict of its documentation is silently ignored.
    return ParallelismConfig(
        fsdp2=FSDP2Config(
            state_dict_type="full",
            reshard_after_forward=recipe.fsdp.reshard_after_forward,
            mixed_precision=recipe.fsdp.mixed_precision,
        )
    )


def _compile(recipe: Recipe) -> dict[str, Any] | None:
    if recipe.compile_config is None:
        return None
    compile_config = recipe.compile_config
    return {"mode": compile_config.mode, "fullgraph": compile_config.fullgraph, "dynamic": compile_config.dynamic}


def _saved_name(recipe: Recipe, local: str) -> str:
    """Where a checkpoint can be loaded from: the local file, or its copy in object storage."""
    folder = recipe.checkpoint_folder or ""
    return f"{folder}/{Path(local).name}" if is_remote(folder) else str(local)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m crisp_stream.train RECIPE key=value…`, also under Composer's launcher. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print("usage: python -m crisp_stream.train RECIPE [key=value …]")
        return 0 if given else 2
    try:
        report = train(load_recipe(given[0], given[1:]))
    except CrispError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
