"""DoGE: weights of clusters such that the corpus's gradients point where those of the specialist text do.

Fan et al. 2024 (arXiv 2310.15393), as the CRISP paper uses it (Section 3.3, Table 5, Appendix G): a small proxy model
is trained on the clusters of one level while their weights follow the alignment of each cluster's gradient with the
specialist text's; the average of the weights is then the histogram that a larger model is trained by. How the weights
move: domain_weights.py; what a step is: proxy.py; memory: domain_gradients.py; a run: doge_run.py.

Every cluster of the level that holds windows is a domain. Batches come from the project's own loader, by a histogram
that is uniform over the domains; its order spreads every stretch of samples over the tree, so with 64 clusters and 64
windows per batch nearly every batch holds each once.

A killed run goes on from its last save and gives the same weights: which windows of corpus and specialist text a step
uses are functions of its number, everything else is in the state beside the result.
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
from crisp_stream.selection.doge.domain_weights import LAST_STEPS
from crisp_stream.selection.doge.settings import Average, DogeSettings
from crisp_stream.selection.doge.target_text import read_target_text

if TYPE_CHECKING:
    from crisp_stream.config.recipe import Recipe


from crisp_stream.processes import Log


@dataclass(frozen=True, kw_only=True)
class DogeResult:
    """The weights of a finished run."""

    run_average: Histogram
    last_average: Histogram
    average: Average
    """Which one is the result."""

    @property
    def chosen(self) -> Histogram:
        """The result."""
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

    Of the recipe count: data, seed, model, optimizer, scheduler, max_duration, global_train_batch_size,
    device_train_microbatch_size, gradient_clipping, precision, save_interval, log_interval. Its mixture does not, and
    nothing is compiled.

    Args:
        recipe: size of the proxy, steps, batch, optimiser.
        text: files, folders or globs of the specialist documents.
        out: histogram to write. Beside it: the other average (`OUT.last20.parquet` or `OUT.run.parquet`), the weights
            along the run (`OUT.trajectory.csv`), and while it runs its state (`OUT.state.pt`), from which the same call
            goes on.
        settings: level, Bregman coefficient, form of the update; the paper's when None.
        text_column: key or column of the text.
        limit: read at most this many documents.
        log: takes a line of progress every `log_interval` steps.

    Raises:
        RecipeError: keys that DoGE cannot follow.
        InputError, FormatError, StorageError: dataset or text missing or unfit, fewer than two clusters at the level.
        ResumeError: the state beside `out` is of another run.
        MissingExtraError: torch or transformers is not installed.
    """
    import_extra("torch", extra="train", purpose="training the proxy model")
    from crisp_stream.selection.doge.doge_run import DogeRun

    settings = settings or DogeSettings()
    _check_recipe(recipe)
    dataset = open_dataset(recipe.data.remote, generation=recipe.data.generation, timeout=recipe.data.timeout)
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
    """Where the average that is not the result goes."""
    return Path(out).with_suffix(f".last{LAST_STEPS}.parquet" if average == "run" else ".run.parquet")


def _check_recipe(recipe: Recipe) -> None:
    from crisp_stream.ranks import device_name

    if recipe.precision != "fp32" and device_name() == "cpu":
        raise RecipeError(f"`precision` {recipe.precision} needs a GPU and there is none. Add: precision=fp32")
    if recipe.precision == "amp_fp16":
        raise RecipeError("`precision` amp_fp16 scales the loss, which DoGE's products do not allow. Use amp_bf16.")
    if recipe.load_path is not None:
        raise RecipeError("`load_path`: the proxy model of DoGE starts from random weights. Drop the key.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("DoGE runs in one process, and WORLD_SIZE says there are more. Start it without a launcher.")
