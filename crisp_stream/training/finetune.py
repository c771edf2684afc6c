"""Fine-tuning as the paper does it: validate the fraction of the steps to spend on the specialist text.

"All experiments consider the same optimization effort and we validate the fraction of steps spent in fine-tuning, from
3 % … to 100 %" (CRISP, Section 4.1). A fraction f starts from the pretraining checkpoint at (1 - f) of the steps and
ends the run on the specialist text, so one pretraining run serves all fractions. Whether the paper ended the
pretraining's learning-rate schedule or began a new one it does not say; here it goes on, unless the recipe restarts it.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crisp_stream import digits
from crisp_stream.config.durations import parse_duration
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import InputError, RecipeError, RunInterruptedError, import_extra
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.sketch import sketch_of
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.sources import Sources
from crisp_stream.format.text_sketch import read_text_sketch
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.models.checkpoint import checkpoints_by_batch, local_copy, read_checkpoint
from crisp_stream.models.training_record import training_record
from crisp_stream.ranks import join_ranks, together
from crisp_stream.storage.store import open_store
from crisp_stream.table import Table, csv_text

_TOLERANCE = 0.25
"""Most that a saved checkpoint's fraction may differ from the requested one, as a share of that."""


@dataclass(frozen=True, kw_only=True)
class FinetunedModel:
    """A fraction of the steps, and how well the model did."""

    fraction: float
    """Share of the steps spent on the specialist text, by the checkpoint used, not as requested."""
    start: str | None
    """Pretraining checkpoint; None: random weights."""
    batches: int
    """Batches of specialist text."""
    perplexity: float
    """Perplexity of the validation text (CRISP, Section 3.1)."""
    checkpoint: str
    """Checkpoint of the model."""


def finetune(
    recipe: Recipe,
    *,
    pretrained: str,
    fractions: Sequence[float],
    log: Callable[[str], None],
    allow_seen: bool = False,
) -> list[FinetunedModel]:
    """Fine-tune for each fraction and judge on the recipe's held-out text; rank 0 writes `finetune.csv`.

    All ranks call this. What is finished in `save_folder` is kept where the recipe says `autoresume`.

    Args:
        recipe: a size with the overlay `finetune`: `data` is the specialist text, `eval` the validation text,
            `max_duration` the whole effort. A folder below `save_folder` is made for each fraction.
        pretrained: `save_folder` of the pretraining run, with checkpoints along its way.
        fractions: in (0, 1]; 1 starts from random weights.
        log: takes a line of progress.
        allow_seen: go on where the validation text is trained on.

    Returns:
        Models in increasing fraction; the first is the pretraining itself, at fraction 0.

    Raises:
        RecipeError: no validation text, no `save_folder`, or `max_duration` in tokens.
        InputError: fractions out of range, no checkpoint near one, or validation text that is trained on.
    """
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    join_ranks()
    folder = _required_folder(recipe)
    total, unit = parse_duration(recipe.max_duration)
    if unit != "ba":
        raise RecipeError(f"fine-tuning needs `max_duration` in batches (400ba), got {recipe.max_duration}.")
    saved = checkpoints_by_batch(pretrained)
    starts = [(fraction, starting_batch(fraction, total, saved, pretrained)) for fraction in sorted(set(fractions))]
    end = saved[total]
    for line in together(lambda: _warnings_of_seen(recipe, end, allow_seen)):
        log(line)
    models = [FinetunedModel(fraction=0.0, start=end, batches=0, perplexity=_judged(recipe, end, dist), checkpoint=end)]
    for fraction, batch in starts:
        start = saved.get(batch, "random weights")
        log(f"fine-tuning {fraction:.2%}: {total - batch:,} of {total:,} steps, from {start}")
        models.append(_finetuned(recipe, total, batch, saved.get(batch), dist))
    if dist.get_global_rank() == 0:
        open_store(folder).put("finetune.csv", csv_text(table(models).records).encode())
    return models


def _required_folder(recipe: Recipe) -> str:
    """The recipe's `save_folder`. Raises RecipeError: there is none, or no validation text."""
    if recipe.checkpoint_folder is None:
        raise RecipeError("fine-tuning needs `save_folder`; there is none.")
    if recipe.eval is None or not recipe.eval.inputs:
        raise RecipeError(f"fine-tuning needs `{'eval' if recipe.eval is None else 'eval.inputs'}`; there is none.")
    return recipe.checkpoint_folder


def _warnings_of_seen(recipe: Recipe, pretrained: str, allow_seen: bool) -> list[str]:
    """Look for the validation text in the specialist text and in what the pretraining was trained on.

    Raises:
        InputError: it is there, and must not be.
    """
    from crisp_stream.evaluation.seen import seen_examples
    from crisp_stream.evaluation.trained_texts import JudgedTexts
    from crisp_stream.training.prepare import held_out_texts

    with local_copy(pretrained) as path:
        parent = training_record(read_checkpoint(path), pretrained)
    described = {name: _texts_of(dataset) for name, dataset in Sources.open(recipe.data)}
    phases = [
        {"histogram": part.summary, **_examples_of(path)}
        for phase in recipe.mixture.phases
        for part in (*phase.parts, *(() if phase.schedule is None else phase.schedule.to))
        for path in part.histograms
    ]
    record = {
        "run_name": recipe.run_name,
        "dataset": next(iter(described.values())),
        "sources": described,
        "mixture": {"phases": phases},
        "parent": parent,
    }
    texts = held_out_texts(recipe)
    seen = seen_examples(record, [example_hash(text) for text in texts], JudgedTexts.of(texts))
    problem = seen.error("validation text")
    if problem is not None and not allow_seen:
        raise InputError(problem)
    return [*([f"warning: {problem}"] if problem else []), *seen.warnings("validation text")]


def _texts_of(dataset: Dataset) -> dict[str, Any]:
    sketch = read_text_sketch(dataset)
    return {
        "fingerprint": dataset.manifest.fingerprint,
        "texts": None if sketch is None else sketch.to_json(),
    }


def _examples_of(histogram: str) -> dict[str, Any]:
    """The examples that a histogram was counted from; `base` was counted from none."""
    if histogram == "base":
        return {"level": 0}
    sketch = sketch_of(Histogram.load(histogram).provenance)
    return {"examples": None if sketch is None else sketch.to_json()}


def starting_batch(fraction: float, total: int, saved: dict[int, str], pretrained: str) -> int:
    """The saved batch nearest to the start of a fraction; 0 for all of the run.

    Raises:
        InputError: a fraction out of range, a pretraining of another length, or no checkpoint near.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction must lie above 0 and at most at 1, got {fraction:g}.")
    if not saved or max(saved) != total:
        held = f"its last checkpoint is of batch {max(saved):,}" if saved else "it holds no checkpoint"
        raise InputError(
            f"{pretrained}: must hold a finished run of `max_duration` = {total:,} batches, but {held}. "
            "The effort of pretraining and fine-tuning together is that of the pretraining run."
        )
    if fraction == 1:
        return 0
    wanted = (1 - fraction) * total
    nearest = min((batch for batch in saved if batch < total), key=lambda batch: abs(batch - wanted), default=total)
    if abs(wanted - nearest) > _TOLERANCE * fraction * total:
        raise InputError(
            f"{pretrained}: has no checkpoint near batch {wanted:,.0f}, where fine-tuning {fraction:.2%} of {total:,} "
            f"steps would start; saved are {', '.join(map(str, saved))}. Pretrain with a smaller save_interval and "
            "save_num_checkpoints_to_keep=-1, or ask for other fractions."
        )
    return nearest


def best(models: Sequence[FinetunedModel]) -> FinetunedModel:
    """The model of the lowest validation perplexity; of equal ones the one with least fine-tuning."""
    return min(models, key=lambda model: (model.perplexity, model.fraction))


def table(models: Sequence[FinetunedModel]) -> Table:
    """Tabulate fractions, steps and validation perplexities; the best is marked."""
    chosen = best(models)
    rows = [
        (
            f"{model.fraction:.1%}",
            f"{model.batches:,}",
            digits.perplexity(model.perplexity),
            f"{model.checkpoint}  <- best" if model is chosen else model.checkpoint,
        )
        for model in models
    ]
    records = [dataclasses.asdict(model) for model in models]
    return Table(
        head=("fine-tuning", "steps", "perplexity", "checkpoint"),
        rows=rows,
        words=(-1,),
        notes=[f"perplexity: of the validation text, {digits.JUDGED}"],
        records=records,
    )


def _judged(recipe: Recipe, checkpoint: str, dist: Any) -> float:
    """Validation perplexity of a checkpoint, computed by rank 0 alone: one way for all models of the comparison."""
    from crisp_stream.evaluation.perplexity import perplexity
    from crisp_stream.training.prepare import held_out_texts

    def judge() -> float:
        return perplexity(checkpoint, held_out_texts(recipe)).perplexity if dist.get_global_rank() == 0 else 0.0

    return dist.all_gather_object(together(judge))[0]


def _finetuned(recipe: Recipe, total: int, batch: int, start: str | None, dist: Any) -> FinetunedModel:
    from crisp_stream.training.train import train

    fraction = (total - batch) / total
    recipe_of_fraction = dataclasses.replace(
        recipe,
        run_name=f"{recipe.run_name}-{100 * fraction:g}",
        save_folder=f"{recipe.checkpoint_folder}/{100 * fraction:g}",
        load_path=start,
        load_restart=recipe.load_restart if start else (),
        load_weights_only=recipe.load_weights_only and start is not None,
        save_interval="1dur",
    )
    report = train(recipe_of_fraction)
    if report.interrupted_by is not None:
        raise RunInterruptedError(
            f"{report.run_name} was stopped by {report.interrupted_by} after batch {report.interrupted_at:,}. The same "
            "command goes on there.",
            signal_name=report.interrupted_by,
        )
    gc.collect()  # the model of the last run, before the next one is built
    assert report.checkpoint is not None, "the last step is always saved"
    return FinetunedModel(
        fraction=fraction,
        start=start,
        batches=total - batch,
        perplexity=_judged(recipe, report.checkpoint, dist),
        checkpoint=report.checkpoint,
    )
