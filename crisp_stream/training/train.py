"""A recipe becomes a trained model: dataset and mixture into Composer's Trainer, checkpoints and an account out.

The optimiser is torch's AdamW, not Composer's DecoupledAdamW: there a step shrinks weights by
`weight_decay x lr / peak lr`, so the 0.1 of Brown et al. would mean a thousand times more decay than they used.
The loss of a global batch is the mean over its labelled tokens, whatever the number of ranks and microbatches.

Several processes: `crisp-stream train RECIPE key=value… --nproc 8` (launch.py).
"""

from __future__ import annotations

import dataclasses
import errno
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import StorageError, import_extra
from crisp_stream.examples.hashes import example_hash
from crisp_stream.loading.worker_signals import shield_worker
from crisp_stream.ranks import TIMEOUT_SECONDS, device_name, join_ranks, together
from crisp_stream.training.announce import announce
from crisp_stream.training.callbacks.composer_fixes import close_trainer, copies_on_cpu
from crisp_stream.training.loggers import build_loggers, require_loggers
from crisp_stream.training.prepare import PreparedRun, prepare
from crisp_stream.training.run_report import TrainReport, make_report, save_report
from crisp_stream.training.start import parts_to_load, starting_checkpoint

if TYPE_CHECKING:
    import torch
    from composer import Trainer
    from composer.core import Algorithm, DataSpec

    from crisp_stream.loading.loader import MixtureLoader
    from crisp_stream.training.callbacks.run_callbacks import RunCallbacks

_STATELESS = (
    "Checkpoints",
    "Divergence",
    "FileLogger",
    "GracefulStop",
    "LogFiles",
    "TensorboardLogger",
    "UploadedCheckpoints",
    "WandBLogger",
)
"""Callbacks that a run may have and the one before had not, at no loss; Composer warns of each."""

_NUM_LABELS = "num_labels"
"""Key of a microbatch: the number of its predicted tokens."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A trainer, and its callbacks, which are read afterwards."""

    trainer: Trainer
    callbacks: RunCallbacks

    def close(self) -> None:
        """End loggers and uploads, in this order: loggers write their last lines when they end."""
        close_trainer(self.trainer)
        self.callbacks.logs.finish()


def train(recipe: Recipe) -> TrainReport:
    """Train by a recipe, to its end; all ranks call this and get the same report.

    Rank 0 writes `run.json`, `losses.csv` and `cluster_losses.csv` beside the checkpoints. SIGTERM or Ctrl-C ends the
    run after the batch in progress, with a checkpoint; the report says so (`interrupted_by`).

    Raises:
        DivergedError: the loss or the weights are not finite.
        RecipeError: values that do not fit the dataset, the device or the number of processes.
        InputError, FormatError, StorageError: dataset, histogram, held-out text or checkpoint missing or unfit.
        ResumeError: the checkpoint belongs to another recipe or dataset.
        MissingExtraError: Composer, transformers or a logger's package is not installed.
    """
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    require_loggers(recipe.loggers)
    from crisp_stream.training.callbacks.saving import working_folder

    join_ranks()
    with working_folder(recipe) as folder:
        with starting_checkpoint(recipe) as start:
            prepared = together(lambda: prepare(recipe, start))
            together(lambda: announce(prepared))
            run = build_trainer(prepared, folder)
        # A signal may come twice, from a batch system and from the launcher: the report is still written.
        with run.callbacks.stop.listening(), copies_on_cpu():
            try:
                if run.trainer.state.timestamp < recipe.max_duration.replace("_", ""):
                    run.trainer.fit()
                elif dist.get_global_rank() == 0:
                    print(_finished(recipe, start.url), file=sys.stderr, flush=True)
            except OSError as error:
                raise _explained(error, recipe) from error
            finally:
                run.close()
            report = _report(prepared, run)
            if dist.get_global_rank() == 0 and recipe.checkpoint_folder is not None:
                save_report(report, run.callbacks.account, run.callbacks.monitor, recipe.checkpoint_folder)
            dist.barrier()  # a launcher ends the other ranks soon after the first has ended
    return report


def _finished(recipe: Recipe, checkpoint: str | None) -> str:
    """The line that says why a run trains nothing."""
    return (
        f"{recipe.run_name} is finished: {checkpoint} is where `max_duration` = {recipe.max_duration} ends, or beyond. "
        "Nothing is trained; a longer `max_duration` goes on."
    )


def _explained(error: OSError, recipe: Recipe) -> OSError:
    """The error, in words where a disk is full: a logger writes there, too."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    place = error.filename or recipe.checkpoint_folder
    return StorageError(f"{place}: {error.strerror}. Make room there, and continue with autoresume=true.")


def _report(prepared: PreparedRun, run: TrainingRun) -> TrainReport:
    callbacks = run.callbacks
    return make_report(
        prepared,
        account=callbacks.account,
        monitor=callbacks.monitor,
        num_parameters=sum(parameter.numel() for parameter in run.trainer.state.model.parameters()),
        held_out=[] if callbacks.held_out is None else callbacks.held_out.measured,
        questions=[] if callbacks.questions is None else callbacks.questions.measured,
        interrupted_by=None if callbacks.stop.stopped_by is None else callbacks.stop.stopped_by.name,
        checkpoint=callbacks.divergence.last_good,
    )


def build_trainer(run: PreparedRun, folder: Path | None) -> TrainingRun:
    """Build Composer's Trainer for a prepared run.

    Args:
        folder: where this process writes; None: nothing is saved.
    """
    from crisp_stream.models.gpt import build_gpt, compile_blocks, composer_model
    from crisp_stream.training.callbacks.cluster_losses import WindowLosses
    from crisp_stream.training.callbacks.run_callbacks import build_callbacks

    recipe = run.recipe
    loader = run.stream.loader(recipe.data.num_workers, worker_init_fn=shield_worker, pin_memory=device_name() == "gpu")
    gpt = build_gpt(run.config, seed=recipe.seed)
    window_losses = WindowLosses() if recipe.cluster_losses else None
    if window_losses is not None:
        gpt.loss_function = window_losses
    model = composer_model(gpt, run.tokenizer, activation_checkpointing=recipe.model.activation_checkpointing)
    if recipe.compile_config is not None:
        compile_blocks(gpt, **dataclasses.asdict(recipe.compile_config))
    optimizer = _optimizer(recipe, gpt)
    loggers = [] if folder is None else build_loggers(recipe, folder / "logs")
    callbacks = build_callbacks(
        run,
        folder,
        loader=loader,
        gpt=gpt,
        window_losses=window_losses,
        optimizer=optimizer,
        loggers=loggers,
    )
    _warn_of_seen(run, callbacks.lineage.record)
    trainer = _trainer(
        run,
        model=model,
        train_dataloader=_data_spec(loader),
        optimizers=optimizer,
        callbacks=callbacks.in_order(),
        loggers=loggers,
    )
    return TrainingRun(trainer=trainer, callbacks=callbacks)


def _warn_of_seen(run: PreparedRun, record: dict[str, Any]) -> None:
    """Say where the run measures itself on examples that it is trained on, or its histograms were counted from; rank 0
    does."""
    from crisp_stream.evaluation.seen import seen_examples
    from crisp_stream.evaluation.trained_texts import JudgedTexts

    if import_extra("composer.utils.dist", extra="train", purpose="training").get_global_rank() != 0:
        return
    held_out = [example_hash(text) for text in run.held_out], JudgedTexts.of(run.held_out)
    sets = {"held-out text": held_out} if run.held_out else {}
    for questions in run.question_sets:
        sets[questions.name] = questions.example_ids.tolist(), JudgedTexts.of_questions(questions.questions)
    for name, (example_ids, texts) in sets.items():
        for line in seen_examples(record, example_ids, texts).lines:
            print(f"warning: {name}: {line}. Measure on others.", file=sys.stderr, flush=True)


def _trainer(run: PreparedRun, **parts: Any) -> Trainer:
    """Make Composer's Trainer by the recipe, of the parts that were built for it."""
    from composer import Trainer

    from crisp_stream.training.callbacks.composer_fixes import mapped_checkpoints

    recipe = run.recipe
    with warnings.catch_warnings(), mapped_checkpoints():
        warnings.filterwarnings("ignore", f"({'|'.join(_STATELESS)}) is not in the state_dict", UserWarning)
        return Trainer(
            run_name=recipe.run_name,
            seed=recipe.seed,
            device=device_name(),
            precision=recipe.precision,
            max_duration=recipe.max_duration.replace("_", ""),
            schedulers=_scheduler(recipe),
            algorithms=_algorithms(recipe),
            device_train_microbatch_size=run.microbatch_size,
            accumulate_train_batch_on_tokens=True,
            progress_bar=False,
            load_path=None if run.checkpoint.path is None else str(run.checkpoint.path),
            load_weights_only=run.dataset_state is None,
            load_ignore_keys=_parts_to_load(run),
            load_progress_bar=False,
            parallelism_config=_parallelism(recipe),
            dist_timeout=TIMEOUT_SECONDS,
            **parts,
        )


def _parts_to_load(run: PreparedRun) -> Any:
    if run.checkpoint.resumes or run.dataset_state is None:
        return None
    return parts_to_load(run.recipe, run.dataset_state)


def _algorithms(recipe: Recipe) -> list[Algorithm]:
    from composer.algorithms import GradientClipping

    from crisp_stream.training.callbacks.composer_fixes import MeanOfShardedGradients

    clipping = recipe.gradient_clipping
    mean = [] if _parallelism(recipe) is None else [MeanOfShardedGradients()]
    # Composer runs algorithms in reverse order after an event: what is clipped is the mean.
    return [*([] if clipping is None else [GradientClipping("norm", clipping)]), *mean]


def _data_spec(loader: MixtureLoader) -> DataSpec:
    from composer.core import DataSpec

    return DataSpec(loader, split_batch=_split_batch, get_num_tokens_in_batch=_count_tokens)


def _split_batch(batch: dict[str, Any], microbatch_size: int | float) -> list[dict[str, Any]]:
    """Split a batch into microbatches that know their number of labels.

    The trainer wants that number when they are on the device already. Counting there would have the process wait for
    everything that the device is still doing.
    """
    from composer.core.data_spec import default_split_batch

    return [{**part, _NUM_LABELS: _num_labels(part)} for part in default_split_batch(batch, microbatch_size)]


def _count_tokens(batch: dict[str, Any]) -> dict[str, int]:
    labels = batch[_NUM_LABELS] if _NUM_LABELS in batch else _num_labels(batch)
    return {"total": batch["input_ids"].numel(), "loss_generating": labels}


def _num_labels(batch: dict[str, Any]) -> int:
    """Tokens to predict. The model predicts labels[1:], so a label at the start of a window counts for nothing."""
    from crisp_stream.loading.batches import IGNORED_LABEL

    return int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())


def _optimizer(recipe: Recipe, gpt: torch.nn.Module) -> torch.optim.Optimizer:
    import torch

    from crisp_stream.models.gpt import parameter_groups

    return torch.optim.AdamW(
        parameter_groups(gpt, weight_decay=recipe.optimizer.weight_decay),
        lr=recipe.optimizer.lr,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
        fused=recipe.precision != "amp_fp16",
    )


def _scheduler(recipe: Recipe) -> Any:
    from composer.optim import CosineAnnealingScheduler, CosineAnnealingWithWarmupScheduler

    warmup = recipe.scheduler.t_warmup.replace("_", "")
    if float(warmup.rstrip("abdkortu")) == 0:
        return CosineAnnealingScheduler(alpha_f=recipe.scheduler.alpha_f)
    return CosineAnnealingWithWarmupScheduler(warmup, alpha_f=recipe.scheduler.alpha_f)


def _parallelism(recipe: Recipe) -> Any:
    from composer.utils import dist
    from composer.utils.parallelism import ParallelismConfig

    from crisp_stream.training.callbacks.composer_fixes import HybridSharding

    if recipe.fsdp is None or dist.get_world_size() == 1:
        return None
    # Composer takes FSDP2 only as this object; the plain dict of its documentation is silently ignored.
    return ParallelismConfig(
        fsdp2=HybridSharding(
            ranks_per_copy=recipe.fsdp.data_parallel_shard_degree,
            state_dict_type="full",
            reshard_after_forward=recipe.fsdp.reshard_after_forward,
            mixed_precision=recipe.fsdp.mixed_precision,
        )
    )
