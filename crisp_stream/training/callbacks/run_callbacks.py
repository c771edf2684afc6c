"""All callbacks of a run: built from the recipe, and put in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback
from composer.loggers import LoggerDestination

from crisp_stream.config.durations import SHARE, batches_of
from crisp_stream.loading.loader import MixtureLoader
from crisp_stream.models.checkpoint import LoadedGPT
from crisp_stream.storage.store import is_remote
from crisp_stream.training.callbacks.account import RunAccount
from crisp_stream.training.callbacks.cluster_losses import WindowLosses
from crisp_stream.training.callbacks.composer_fixes import RecipeRates
from crisp_stream.training.callbacks.divergence import Divergence
from crisp_stream.training.callbacks.graceful_stop import GracefulStop
from crisp_stream.training.callbacks.held_out import HeldOutPerplexity, QuestionAccuracy
from crisp_stream.training.callbacks.lineage import Lineage, describe_run
from crisp_stream.training.callbacks.log_files import LogFiles
from crisp_stream.training.callbacks.monitor import RunMonitor
from crisp_stream.training.callbacks.progress import Progress
from crisp_stream.training.callbacks.saving import Checkpoints, UploadedCheckpoints, save_due
from crisp_stream.training.prepare import PreparedRun


@dataclass(frozen=True, kw_only=True)
class RunCallbacks:
    """The callbacks of a run; None where the recipe has no use for one."""

    account: RunAccount
    divergence: Divergence
    monitor: RunMonitor
    progress: Progress
    rates: RecipeRates
    lineage: Lineage
    held_out: HeldOutPerplexity | None
    questions: QuestionAccuracy | None
    logs: LogFiles
    stop: GracefulStop
    saver: Checkpoints | None

    def in_order(self) -> list[Callback]:
        """The order in which Composer calls them at every event; it calls the loggers before."""
        callbacks: list[Callback | None] = [
            self.account,  # first: the others read what it counted of the batch
            self.divergence,  # after the account, whose losses it looks at
            self.monitor,  # after the account, whose counts it holds against the mixture
            self.progress,  # after the monitor, whose error and waits it prints
            self.rates,  # anywhere: nothing else acts on a loaded checkpoint
            self.lineage,  # anywhere: it has a state, and acts on no event
            self.held_out,  # after progress: its line stands below that of the batch
            self.questions,  # likewise
            self.logs,  # after all that log metrics, which it flushes
            self.stop,  # after held-out text and questions, which would take a stopped run for a finished one
            self.saver,  # last: a checkpoint holds the state of all others, and an upload may be waited for
        ]
        return [callback for callback in callbacks if callback is not None]


def build_callbacks(
    run: PreparedRun,
    folder: Path | None,
    *,
    loader: MixtureLoader,
    gpt: Any,
    window_losses: WindowLosses | None,
    optimizer: torch.optim.Optimizer,
    loggers: list[LoggerDestination],
) -> RunCallbacks:
    """Build the callbacks of a prepared run.

    Args:
        folder: folder that this process writes to; None: nothing is saved.
        loader: the DataLoader, whose waits are measured.
        gpt: the model.
        window_losses: the loss function of the model, not compiled; None: no losses by cluster.
        optimizer: as the recipe makes it.
        loggers: of this rank.
    """
    recipe = run.recipe
    length: dict[str, Any] = {"num_batches": run.num_batches, "log_interval": recipe.log_interval}
    account = RunAccount(run.sources, run.stream, start=run.start, log_windows=recipe.log_windows)
    divergence = Divergence(account, run.checkpoint.url)
    monitor = RunMonitor(account, run.mixture, run.sources, loader, **length, window_losses=window_losses)
    held_out, questions = _evaluations(run, gpt)
    interval = _interval(recipe.save_interval, run)
    return RunCallbacks(
        account=account,
        divergence=divergence,
        monitor=monitor,
        progress=Progress(**length, monitor=monitor),
        rates=RecipeRates(optimizer),
        lineage=Lineage(describe_run(run)),
        held_out=held_out,
        questions=questions,
        logs=LogFiles(recipe, loggers, folder, copy_interval=interval),
        stop=GracefulStop(),
        saver=_saver(run, folder, interval, divergence),
    )


def _evaluations(run: PreparedRun, gpt: Any) -> tuple[HeldOutPerplexity | None, QuestionAccuracy | None]:
    """Callbacks that measure the model during the run; None where the recipe has no `eval` for one."""
    loaded = LoadedGPT(gpt=gpt, tokenizer=run.tokenizer, provenance=run.config.crisp_stream)
    when: dict[str, Any] = {
        "interval": _interval(run.recipe.eval_interval or "1dur", run),
        "batch_size": run.microbatch_size,
    }
    has_texts = run.recipe.eval is not None and bool(run.recipe.eval.inputs)
    return (
        HeldOutPerplexity(loaded, run.held_out, **when) if has_texts else None,
        QuestionAccuracy(loaded, run.question_sets, **when) if run.question_sets else None,
    )


def _saver(run: PreparedRun, folder: Path | None, interval: str, divergence: Divergence) -> Checkpoints | None:
    recipe = run.recipe
    address = recipe.checkpoint_folder
    if folder is None or address is None:
        return None
    remote = is_remote(address)
    return (UploadedCheckpoints if remote else Checkpoints)(
        address if remote else str(folder),
        folder,
        divergence=divergence,
        save_interval=save_due(interval, run),
        overwrite=recipe.autoresume,  # what lies beyond the checkpoint that the run goes on from is written again
        keep=recipe.save_num_checkpoints_to_keep,
    )


def _interval(text: str, run: PreparedRun) -> str:
    """An interval for Composer, which cannot take a share of a run whose dataloader has no length."""
    if SHARE.fullmatch(text) is None:
        return text.replace("_", "")
    return f"{max(1, batches_of(text, tokens_per_batch=1, run_batches=run.num_batches))}ba"
