"""Everything that a run needs before its model is built: dataset, mixture, batch sizes, tokenizer, starting checkpoint.

Each is opened and checked against the others, so that a mistake costs seconds and not the minutes of building a model
on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.config.durations import batches_of
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import RecipeError, import_extra, require_extra
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.ranks import device_name
from crisp_stream.training.mixture import RecipePhase, build_phases
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
    """A recipe whose sources, mixture, checkpoint and batch sizes fit each other."""

    recipe: Recipe
    sources: Sources
    """The dataset, or several by name."""
    mixture: Mixture
    phases: list[RecipePhase]
    """Those of the mixture, with what the recipe says of them."""
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
    def dataset(self) -> Dataset:
        """The dataset, of several the first: in window length, tokens and tokenizer all are like it."""
        return self.sources.first

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
    sources = Sources.open(recipe.data)
    tokens_per_batch = recipe.global_train_batch_size * sources.manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    saved = None if checkpoint.path is None else read_checkpoint(checkpoint.path)
    if saved is not None:
        check_recipe(recipe, saved, sources, resumes=checkpoint.resumes)
    start = run_start(recipe, saved, resumes=checkpoint.resumes)
    if saved is not None and not checkpoint.resumes:
        check_something_left(recipe, saved, num_batches)
    phases = build_phases(recipe, sources, start=start, before=phases_before(recipe, saved, sources, start))
    mixture = Mixture([each.phase for each in phases], draw=recipe.mixture.draw)
    readings = ReadOptions.of_sources(recipe.data)
    stream = RunStream(
        sources,
        mixture,
        start=start,
        batch_size=per_rank,
        seed=recipe.seed,
        reading=readings if sources.is_named else readings[""],
        num_samples=start.position_at(num_batches, batch_size=recipe.global_train_batch_size),
    )
    config, tokenizer = _config_and_tokenizer(recipe, sources)
    dataset_state = None
    if saved is not None:
        check_model(saved, checkpoint.path or Path(), config, tokenizer)
        if checkpoint.resumes or not recipe.load_weights_only:
            dataset_state = state_to_load(recipe, saved, stream, start, resumes=checkpoint.resumes)
    return PreparedRun(
        recipe=recipe,
        sources=sources,
        mixture=mixture,
        phases=phases,
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


def _config_and_tokenizer(recipe: Recipe, sources: Sources) -> tuple[GPT2Config, PreTrainedTokenizerFast]:
    from crisp_stream.models.gpt import gpt_config, load_tokenizer

    manifest = sources.manifest
    config = gpt_config(
        recipe.model,
        vocab_size=manifest.tokenizer.vocab_size,
        window_tokens=manifest.window_tokens,
        eot_id=manifest.tokenizer.eot_id,
        provenance={
            **sources.identity(),
            "packing": manifest.packing,
            "window_tokens": manifest.window_tokens,
        },
    )
    eot = manifest.tokenizer.eot_token
    return config, load_tokenizer(sources.first.tokenizer_path(), eot_token=eot, n_positions=config.n_positions)


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
