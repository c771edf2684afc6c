"""Everything that a run needs before its model is built: dataset, mixture, batch sizes, tokenizer, starting checkpoint.

Each is opened and checked against the others, so that a mistake costs seconds and not the minutes of building a model
on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.config.durations import batches_of
from crisp_stream.config.recipe import Recipe
from crisp_stream.config.sections import PhaseRecipe
from crisp_stream.errors import RecipeError, import_extra, require_extra
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.component import drawn_within_repeats
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.histograms.phase import Phase
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.ranks import device_name
from crisp_stream.training.start import (
    RunStart,
    StartingPoint,
    check_model,
    check_recipe,
    check_something_left,
    phases_before,
    run_start,
    state_to_load,
)

if TYPE_CHECKING:
    from transformers import GPT2Config, PreTrainedTokenizerFast

    from crisp_stream.evaluation.question_sets import QuestionSet
    from crisp_stream.training.run_stream import RunStream


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A recipe whose dataset, mixture, checkpoint and batch sizes fit each other."""

    recipe: Recipe
    dataset: Dataset
    mixture: Mixture
    stream: RunStream
    """This rank's batches."""

    tokenizer: PreTrainedTokenizerFast
    config: GPT2Config
    num_batches: int
    microbatch_size: int
    """Windows per forward pass of a rank."""

    start: RunStart
    """Counts at which the run began."""

    checkpoint: StartingPoint
    """The checkpoint that it starts from."""

    dataset_state: dict[str, Any] | None
    """State of the dataset to go on with; None: from the beginning."""

    held_out: list[str]
    """Texts to measure during the run."""

    question_sets: list[QuestionSet]
    """Questions to ask during the run."""

    @property
    def end(self) -> int:
        """Position in the order of samples where the run ends."""
        return self.start.position_at(self.num_batches, batch_size=self.recipe.global_train_batch_size)

    @property
    def batches_done(self) -> int:
        """Batch after which this process goes on; 0 where the schedule begins."""
        position = self.start.position if self.dataset_state is None else int(self.dataset_state["samples"])
        return self.start.batch + (position - self.start.position) // self.recipe.global_train_batch_size


def prepare(recipe: Recipe, checkpoint: StartingPoint) -> PreparedRun:
    """Try everything that a run needs before its model is built.

    Args:
        checkpoint: to start from.

    Raises:
        as `train.train`.
    """
    from crisp_stream.loading.reader import ReadOptions
    from crisp_stream.training.run_stream import RunStream

    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    _check_device(recipe)
    _check_sharding(recipe, dist.get_world_size())
    per_rank, microbatch_size = _batch_sizes(recipe, dist.get_world_size())
    dataset = open_dataset(recipe.data.remote, generation=recipe.data.generation, timeout=recipe.data.timeout)
    tokens_per_batch = recipe.global_train_batch_size * dataset.manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    saved = None if checkpoint.path is None else read_checkpoint(checkpoint.path)
    if saved is not None:
        check_recipe(recipe, saved, dataset, resumes=checkpoint.resumes)
    start = run_start(recipe, saved, resumes=checkpoint.resumes)
    if saved is not None and not checkpoint.resumes:
        check_something_left(recipe, saved, num_batches)
    mixture = build_mixture(recipe, dataset, start=start, before=phases_before(recipe, saved, dataset, start))
    stream = RunStream(
        dataset,
        mixture,
        start=start,
        batch_size=per_rank,
        seed=recipe.seed,
        reading=ReadOptions.of(recipe.data),
        num_samples=start.position_at(num_batches, batch_size=recipe.global_train_batch_size),
    )
    config, tokenizer = _config_and_tokenizer(recipe, dataset)
    dataset_state = None
    if saved is not None:
        check_model(saved, checkpoint.path or Path(), config, tokenizer)
        if checkpoint.resumes or not recipe.load_weights_only:
            dataset_state = state_to_load(recipe, saved, stream, start, resumes=checkpoint.resumes)
    return PreparedRun(
        recipe=recipe,
        dataset=dataset,
        mixture=mixture,
        stream=stream,
        tokenizer=tokenizer,
        config=config,
        num_batches=num_batches,
        microbatch_size=microbatch_size,
        start=start,
        checkpoint=checkpoint,
        dataset_state=dataset_state,
        held_out=held_out_texts(recipe),
        question_sets=sampled_questions(recipe),
    )


def _config_and_tokenizer(recipe: Recipe, dataset: Dataset) -> tuple[GPT2Config, PreTrainedTokenizerFast]:
    from crisp_stream.models.gpt import gpt_config, load_tokenizer

    manifest = dataset.manifest
    config = gpt_config(
        recipe.model,
        vocab_size=manifest.tokenizer.vocab_size,
        window_tokens=manifest.window_tokens,
        eot_id=manifest.tokenizer.eot_id,
        provenance={
            "dataset": manifest.fingerprint,
            "packing": manifest.packing,
            "window_tokens": manifest.window_tokens,
        },
    )
    eot = manifest.tokenizer.eot_token
    return config, load_tokenizer(dataset.tokenizer_path(), eot_token=eot, n_positions=config.n_positions)


def build_mixture(
    recipe: Recipe, dataset: Dataset, *, start: RunStart | None = None, before: Sequence[Phase] = ()
) -> Mixture:
    """Make the recipe's phases, with lengths in whole global batches, so that a switch falls between steps.

    They end within whole blocks, so that any other run can go on from any of their checkpoints.

    Args:
        start: counts at which the run began; 0 when None.
        before: the phases for which `histogram: checkpoint` stands.

    Raises:
        RecipeError: phases that do not fit into the run.
        InputError, FormatError: a histogram or a window selection that is not there, or is of another tree or dataset;
            clusters beyond `max_repeats`.
    """
    start = start or RunStart()
    batch = recipe.global_train_batch_size
    tokens_per_batch = batch * dataset.manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    _check_order_known(recipe, start)
    # Without them, and where the order of samples goes on, the phases count from the beginning of what is continued.
    counts_from_start = recipe.from_checkpoint or start.samples > start.position
    phases, begun = list(before), start.batch if counts_from_start else 0
    for index, phase in enumerate(recipe.mixture.phases):
        if recipe.from_checkpoint and index == 0:
            continue
        drawn = _drawn(phase, dataset)
        last = index == len(recipe.mixture.phases) - 1
        until = num_batches
        if phase.until is not None:
            until = batches_of(phase.until, tokens_per_batch=tokens_per_batch, run_batches=num_batches)
        if last and until < num_batches:
            raise RecipeError(
                f"`mixture.phases.{index}.until` is batch {until}, but the run has {num_batches}. "
                "Drop `until` from the last phase."
            )
        if not last and not begun < until < num_batches:
            raise RecipeError(
                f"`mixture.phases.{index}.until` is batch {until}; it must lie after batch {begun}, where the phase "
                f"starts, and before batch {num_batches}, where the run ends."
            )
        phases.append(_phase(phase, drawn, (min(until, num_batches) - begun) * batch, dataset, last, len(phases)))
        begun = until
    return Mixture(phases, draw=recipe.mixture.draw)


def _phase(phase: PhaseRecipe, drawn: Phase, samples: int, dataset: Dataset, last: bool, number: int) -> Phase:
    limited = Phase(drawn.components, samples, max_repeats=phase.max_repeats, on_excess=phase.on_excess)
    if not last or phase.on_excess == "cap":
        return limited
    # Checked for the length of the run, then left open, so that a finished run can be lengthened.
    if phase.max_repeats is not None:
        drawn_within_repeats(limited.components[0], dataset, samples, what=f"phase {number + 1}")
    return drawn


def _check_order_known(recipe: Recipe, start: RunStart) -> None:
    """Raises RecipeError: the order of samples goes on from a checkpoint, but the phases do not say what was served."""
    if start.position > start.samples and not recipe.from_checkpoint:
        raise RecipeError(
            "the schedule starts afresh and the order of samples goes on, so the first of `mixture.phases` must be "
            "`histogram: checkpoint` (with `windows: FILE`, if that was drawn from a selection). Or start the data "
            "afresh, too: load_restart=[schedule, data]"
        )


def _drawn(phase: PhaseRecipe, dataset: Dataset) -> Phase:
    """An open-ended phase, drawn by the window selection or the histograms that the recipe names."""
    if phase.windows is not None:
        return Phase.of_windows(WindowSelection.load(phase.windows), dataset)
    paths = [phase.source] if isinstance(phase.source, str) else list(phase.source)
    if paths == ["base"]:
        return Phase(Histogram.base(dataset.manifest))
    if "base" in paths:
        raise RecipeError(
            "`base` cannot be averaged with histograms of a level. Use phases, or `crisp-stream average`."
        )
    histograms = [Histogram.load(path) for path in paths]
    return Phase(histograms[0] if len(histograms) == 1 else Histogram.average(histograms))


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


def _check_device(recipe: Recipe) -> None:
    if device_name() == "cpu" and recipe.precision != "fp32":
        raise RecipeError(f"`precision` {recipe.precision} needs a GPU and there is none. Add: precision=fp32")


def _check_sharding(recipe: Recipe, world_size: int) -> None:
    degree = None if recipe.fsdp is None else recipe.fsdp.data_parallel_shard_degree
    if degree is not None and world_size % degree:
        raise RecipeError(
            f"`fsdp.data_parallel_shard_degree` must divide the number of processes, {world_size}; got {degree}. "
            "Name another, or shard over all of them: fsdp.data_parallel_shard_degree=null"
        )


def held_out_texts(recipe: Recipe) -> list[str]:
    """Read the documents whose perplexity is measured during the run. Raises InputError, StorageError."""
    if recipe.eval is None or not recipe.eval.inputs:
        return []
    from crisp_stream.writers.documents.documents import read_documents
    from crisp_stream.writers.documents.drops import DropCounts

    inputs = [recipe.eval.inputs] if isinstance(recipe.eval.inputs, str) else list(recipe.eval.inputs)
    column, limit = recipe.eval.text_column, recipe.eval.limit
    return list(read_documents(inputs, text_column=column, limit=limit, counts=DropCounts()))


def sampled_questions(recipe: Recipe) -> list[QuestionSet]:
    """Sample the question sets for measurements during the run.

    Raises:
        RecipeError: two sets have one name. InputError, StorageError: a bad question, or no such file.
        MissingExtraError: lm-eval is not installed.
    """
    if recipe.eval is None or not recipe.eval.questions:
        return []
    from crisp_stream.evaluation.question_sets import open_question_set

    require_extra("lm_eval", extra="eval", purpose="multiple choice")
    sources = [recipe.eval.questions] if isinstance(recipe.eval.questions, str) else list(recipe.eval.questions)
    sets = [open_question_set(source).sample(recipe.eval.question_limit) for source in sources]
    names = [questions.name for questions in sets]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"`eval.questions` has {names.count(name)} sets called {name}. Rename the files.")
    return sets
