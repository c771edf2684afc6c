"""DoGE: weights of clusters such that the corpus's gradients point where those of the specialist text do.

Fan et al. 2024 (arXiv 2310.15393), as the CRISP paper uses it (Section 3.3, Table 5, Appendix G): a small proxy model
is trained on the clusters of one level while their weights follow the alignment of each cluster's gradient with that of
the specialist text. The average of the weights is the histogram that a larger model is trained by. domain_weights.py
moves the weights, proxy.py makes a step, domain_gradients.py bounds its memory, doge_run.py makes the run.

Every cluster of the level that holds windows is a domain. Batches come from the loader of this package, by a histogram
that is uniform over the domains. Its order spreads every stretch of samples over the tree: with 64 clusters and 64
windows per batch nearly every batch holds each cluster once.

A killed run goes on from its last save and gives the same weights: the windows of corpus and specialist text in a step
are functions of the step's number, everything else is in the state beside the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crisp_stream.errors import RecipeError, import_extra
from crisp_stream.format.dataset import open_dataset
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.processes import Log
from crisp_stream.selection.doge.domain_weights import LAST_STEPS
from crisp_stream.selection.doge.settings import Average, DogeSettings
from crisp_stream.selection.doge.target_text import read_target_text

if TYPE_CHECKING:
    from crisp_stream.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class DogeResult:
    """The weights of a finished run."""

    run_average: Histogram
    last_average: Histogram
    average: Average
    """Average that is the result."""

    @property
    def chosen(self) -> Histogram:
        """The average that is the result."""
        return self.run_average if self.average == "run" else self.last_average

    @property
    def other(self) -> Histogram:
        """The other average."""
        return self.last_average if self.average == "run" else self.run_average


def weigh_by_doge(
    recipe: Recipe,
    text: Sequence[str],
    *,
    out: str | Path,
    settings: DogeSettings | None = None,
    text_column: str = "text",
    limit: int | None = None,
    log: Log = print,
) -> DogeResult:
    """Train the proxy model of a recipe and weigh the clusters; by this process alone, on a GPU if there is one.

    The run follows these keys of the recipe: data, seed, model, optimizer, scheduler, max_duration,
    global_train_batch_size, device_train_microbatch_size, gradient_clipping, precision, save_interval, log_interval. It
    ignores the mixture, and compiles nothing.

    Args:
        recipe: size of the proxy, steps, batch, optimiser.
        text: files, folders or globs of the specialist documents.
        out: histogram to write. Beside it stand the other average (`OUT.last20.parquet` or `OUT.run.parquet`), the
            weights along the run (`OUT.trajectory.csv`), and during the run its state (`OUT.state.pt`), from which the
            same call goes on.
        settings: level, Bregman coefficient, form of the update; the paper's when None.
        log: takes a line of progress every `log_interval` steps.

    Raises:
        RecipeError: a key of the recipe that DoGE cannot follow.
        InputError, FormatError, StorageError: dataset or text missing or unfit, fewer than two clusters at the level.
        ResumeError: the state beside `out` is of another run.
        MissingExtraError: torch or transformers is not installed.
    """
    import_extra("torch", extra="train", purpose="training the proxy model")
    from crisp_stream.selection.doge.doge_run import DogeRun

    settings = settings or DogeSettings()
    _check_recipe(recipe)
    root = recipe.data.only_root("DoGE")
    dataset = open_dataset(root, generation=recipe.data.generation, timeout=recipe.data.timeout)
    target = read_target_text(text, dataset, text_column=text_column, limit=limit)
    run = DogeRun(recipe, settings, dataset, target, out=Path(out), log=log)
    run.finish()
    run_average, last_average = run.averages()
    result = DogeResult(run_average=run_average, last_average=last_average, average=settings.average)
    result.chosen.save(out)
    result.other.save(other_path(out, settings.average))
    run.state_path.unlink(missing_ok=True)
    return result


def other_path(out: str | Path, average: Average) -> Path:
    """Name the file of the average that is not the result."""
    return Path(out).with_suffix(f".last{LAST_STEPS}.parquet" if average == "run" else ".run.parquet")


def _check_recipe(recipe: Recipe) -> None:
    from crisp_stream.ranks import device_name

    if recipe.precision != "fp32" and device_name() == "cpu":
        raise RecipeError(
            f"`precision` must be fp32 where there is no GPU, got {recipe.precision}. Add: precision=fp32"
        )
    if recipe.precision == "amp_fp16":
        raise RecipeError(
            "`precision` must not scale the loss, because DoGE multiplies gradients, got amp_fp16. Use amp_bf16."
        )
    if recipe.load_path is not None:
        raise RecipeError(
            "`load_path` must be absent, because the proxy model of DoGE starts from random weights, got "
            f"{recipe.load_path}. Drop the key."
        )
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(f"DoGE must run in one process, got WORLD_SIZE={processes}. Start it without a launcher.")
