"""The start of a run: random weights, its newest checkpoint, or the checkpoint of another run.

A checkpoint is checked as far as possible before a model is built. A run counts batches and samples as its
schedule does, and serves positions of its dataset's order; the two differ once one of them has started afresh, so every
checkpoint records where both began.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.config.kept import changed_keys, kept_keys
from crisp_stream.config.load import recipe_of
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import (
    CrispError,
    FormatError,
    InputError,
    MissingObjectError,
    RecipeError,
    ResumeError,
    import_extra,
)
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.loading.continuation import grown_remedy, phases_of_state, source_fingerprints
from crisp_stream.models.checkpoint import (
    check_readable,
    has_checkpoints,
    local_copy,
    model_config_of,
    newest_first,
    tokenizer_of,
)
from crisp_stream.models.tokenizer_parts import differing_parts, tokenizer_parts
from crisp_stream.models.training_record import LINEAGE_STATE, RECIPE_KEY
from crisp_stream.ranks import together
from crisp_stream.storage.store import is_remote, local_path, open_store, try_folder

if TYPE_CHECKING:
    from transformers import GPT2Config, PreTrainedTokenizerFast

    from crisp_stream.format.sources import Sources
    from crisp_stream.histograms.phase import Phase

START_KEY = "start"
"""Key of the RunStart in the saved dataset state."""


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """The checkpoint that a run starts from; None: from random weights."""

    url: str | None
    path: Path | None
    """As a file of this node."""
    resumes: bool
    """Whether it is a checkpoint of this run, which then goes on exactly."""


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """Counts at which a run began."""

    batch: int = 0
    """Batches that the learning-rate schedule had counted."""
    samples: int = 0
    """Samples in these batches."""
    position: int = 0
    """Position in the order of the dataset."""

    def position_at(self, batch: int, *, batch_size: int) -> int:
        """Position in the order after so many batches of the schedule, of `batch_size` samples over all ranks."""
        return self.position + (batch - self.batch) * batch_size


@contextlib.contextmanager
def starting_checkpoint(recipe: Recipe) -> Iterator[StartingPoint]:
    """Provide the checkpoint to start from as a file of this node.

    Rank 0 decides, so that all ranks agree; one rank per node downloads.
    """
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    decided: list[Any] = [None]
    if dist.get_global_rank() == 0:
        decided = [_find_start(recipe)]
    dist.broadcast_object_list(decided, src=0)
    if isinstance(decided[0], CrispError):
        raise decided[0]
    url, resumes = decided[0]
    with contextlib.ExitStack() as stack:
        fetched = url if url is not None and (not is_remote(url) or dist.get_local_rank() == 0) else None
        path = together(lambda: None if fetched is None else stack.enter_context(local_copy(fetched)))
        paths = dist.all_gather_object(path)
        on_node = paths[dist.get_global_rank() - dist.get_local_rank()] if path is None else path
        yield StartingPoint(url=url, path=on_node, resumes=resumes)
        dist.barrier()


def _find_start(recipe: Recipe) -> tuple[str | None, bool] | CrispError:
    """Address of the checkpoint to start from, and whether it is of this run; or the error for all ranks."""
    folder = recipe.checkpoint_folder
    try:
        if folder is not None:
            try_folder(folder)
        if folder is not None and recipe.autoresume:
            newest = _newest_readable(folder)
            if newest is not None:
                return newest, True
        elif folder is not None and has_checkpoints(folder):
            continues = recipe.load_path is not None and not recipe.restarts
            if not (continues and _stands_in(folder, str(recipe.load_path))):
                raise _not_asked_to_continue(recipe, folder)
    except CrispError as error:
        return error
    return recipe.load_path, False


def _not_asked_to_continue(recipe: Recipe, folder: str) -> InputError:
    """The error about a folder with checkpoints; names what is another recipe, where that folder says its own."""
    try:
        earlier = recipe_of(json.loads(open_store(folder).get("run.json"))["recipe"])
    except (MissingObjectError, ValueError, KeyError, TypeError):  # the run was killed, or is of another version
        changed = []
    else:
        changed = list(changed_keys(kept_keys(earlier), recipe).values())
        then, now = earlier.data.roots, recipe.data.roots
        changed += [
            f"`{_data_key(name)}` was {then.get(name, 'nothing')}, is {now.get(name, 'nothing')}"
            for name in dict.fromkeys([*then, *now])
            if then.get(name) != now.get(name)
        ]
    if changed:
        return InputError(f"save_folder {folder} holds another run: {'; '.join(changed)}. {_new_name(recipe)}")
    return InputError(
        f"save_folder {folder} holds checkpoints of an earlier run. Add autoresume=true to continue it. "
        f"{_new_name(recipe)}"
    )


def _data_key(name: str) -> str:
    """The key of a recipe that names a source."""
    return f"data.sources.{name}.remote" if name else "data.remote"


def _new_name(recipe: Recipe) -> str:
    """How a run gets a folder of its own."""
    named = "{run_name}" in (recipe.save_folder or "")
    return f"For a run of its own: {'run_name=NAME' if named else 'save_folder=FOLDER'}"


def check_recipe(recipe: Recipe, checkpoint: dict[str, Any], sources: Sources, *, resumes: bool) -> None:
    """Check that the run of a checkpoint can go on by this recipe and its sources, as far as its mixture is not
    concerned.

    Args:
        resumes: whether it is a checkpoint of this run.

    Raises:
        ResumeError: the checkpoint in `save_folder` is of another recipe or dataset.
        RecipeError: the schedule of another run goes on, but it has counted other batches.
    """
    if not resumes:
        saved = _kept_by(checkpoint).get("global_train_batch_size")
        if "schedule" not in recipe.restarts and saved not in (None, recipe.global_train_batch_size):
            raise RecipeError(
                f"`global_train_batch_size` is {recipe.global_train_batch_size}, but the checkpoint at `load_path` has "
                f"counted batches of {saved}, and its schedule goes on. Set it to {saved}, or let the schedule start "
                "afresh: load_restart=[schedule]"
            )
        return
    changed = changed_keys(_kept_by(checkpoint), recipe)
    served, named = source_fingerprints(dataset_state_of(checkpoint, recipe)), dict(sources)
    for name in dict.fromkeys([*served, *named]):
        then, dataset = served.get(name), named.get(name)
        now = None if dataset is None else dataset.manifest.fingerprint
        is_known = isinstance(then, str) or name not in served
        grown = dataset is not None and isinstance(then, str) and dataset.generation_with(then) is not None
        if is_known and then != now and not grown:
            was, is_now = ("not there" if each is None else str(each)[:12] for each in (then, now))
            changed[f"data.{name}"] = f"the dataset at `{_data_key(name)}` was {was}, is {is_now}"
    if any(not key.startswith("mixture.") for key in changed):
        raise _another_run(recipe, list(changed.values()))


def _kept_by(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the recipe of its run."""
    lineage = (checkpoint["state"].get("callbacks") or {}).get(LINEAGE_STATE) or {}
    return lineage.get(RECIPE_KEY) or {}


def _another_run(recipe: Recipe, changed: list[str]) -> ResumeError:
    return ResumeError(
        f"save_folder {recipe.checkpoint_folder} holds another run: {'; '.join(changed)}. {_new_name(recipe)} "
        "(with load_path=CHECKPOINT it can go on from a checkpoint of that run)"
    )


def _newest_readable(folder: str) -> str | None:
    """Find the newest checkpoint of a `save_folder` that can be read, and say which newer ones cannot.

    Raises:
        FormatError: there are checkpoints, and none can be read. StorageError: the storage refused or failed.
    """
    damaged: list[str] = []
    for url in newest_first(folder):
        try:
            check_readable(url)
        except FormatError as error:
            damaged.append(str(error).rstrip("."))
            continue
        for reason in damaged:
            print(f"warning: {reason}. The run goes on from {url}.", file=sys.stderr, flush=True)
        return url
    if damaged:
        raise FormatError(
            f"{folder}: none of its {len(damaged)} checkpoints can be read ({damaged[0]}). Put a good copy of one "
            "there, or name another save_folder to train from the beginning."
        )
    return None


def _stands_in(folder: str, checkpoint: str) -> bool:
    if is_remote(folder) or is_remote(checkpoint):
        return checkpoint.rpartition("/")[0] == folder
    return local_path(checkpoint).absolute().parent == local_path(folder).absolute()


def run_start(recipe: Recipe, checkpoint: dict[str, Any] | None, *, resumes: bool) -> RunStart:
    """Counts at which the run that starts from a checkpoint begins.

    Args:
        checkpoint: contents of the checkpoint; None: random weights.
        resumes: whether it is a checkpoint of this run.

    Raises:
        RecipeError: the schedule goes on, and has come to its end.
        InputError: the checkpoint has no place in a dataset.
    """
    if checkpoint is None or (recipe.load_weights_only and not resumes):
        return RunStart()
    state = dataset_state_of(checkpoint, recipe)
    if resumes:
        return RunStart(**state.get(START_KEY, {}))
    if not recipe.restarts and not recipe.from_checkpoint:
        return RunStart(**state.get(START_KEY, {}))  # the same run, perhaps with other phases to come
    timestamp = checkpoint["state"]["timestamp"]["Timestamp"]
    continues = "schedule" not in recipe.restarts
    return RunStart(
        batch=int(timestamp["batch"]) if continues else 0,
        samples=int(timestamp["sample"]) if continues else 0,
        position=0 if "data" in recipe.restarts else int(state["samples"]),
    )


def dataset_state_of(checkpoint: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The dataset state of a checkpoint. Raises InputError: there is none."""
    state = (checkpoint["state"].get("dataset_state") or {}).get("train")
    if not isinstance(state, dict) or not isinstance(state.get("samples"), int):
        raise InputError(
            f"{recipe.load_path or recipe.checkpoint_folder} holds no position in a dataset. "
            "Add load_weights_only=true to start a new run from it."
        )
    return state


def check_something_left(recipe: Recipe, checkpoint: dict[str, Any], num_batches: int) -> None:
    """Raises RecipeError: another run's checkpoint stands where this run ends, so nothing would be trained."""
    batch = int(checkpoint["state"]["timestamp"]["Timestamp"]["batch"])
    if "schedule" not in recipe.restarts and batch >= num_batches:
        raise RecipeError(
            f"`load_path` stands at batch {batch:,} and the run ends at {num_batches:,}, so nothing is left to train. "
            "Start from an earlier checkpoint, raise `max_duration`, or restart the schedule: load_restart=[schedule]"
        )


def phases_before(recipe: Recipe, checkpoint: dict[str, Any] | None, sources: Sources, start: RunStart) -> list[Phase]:
    """The phases served before the run began, for which `histogram: checkpoint` stands; none without it.

    The sources must begin with those of the checkpoint; further ones may follow.

    Raises:
        ResumeError: the checkpoint is of another dataset, does not say, cannot be continued there, or was served from
            another window selection than the phase names.
        FormatError: the file of that is missing or damaged.
    """
    if not recipe.from_checkpoint:
        return []
    assert checkpoint is not None, "checked with the recipe: there is a load_path"
    state = dataset_state_of(checkpoint, recipe)
    served = source_fingerprints(state)
    for number, (name, then) in enumerate(served.items()):
        dataset = sources.datasets[number] if number < len(sources) else None
        now = None if dataset is None else dataset.manifest.fingerprint
        if then != now:
            of = f"source {name}" if name else "dataset"
            remedy = None if dataset is None else grown_remedy(then, dataset, sources.names[number])
            first = f", first, as `data.sources` ({', '.join(served)})" if name else ""
            raise ResumeError(
                f"cannot continue: {of} was {str(then)[:12]}, is {str(now)[:12]}. "
                f"{remedy or f'Name the dataset of the checkpoint{first}'}, or start its data "
                "afresh: load_restart=[data], without that phase."
            )
    named = recipe.mixture.phases[0].windows
    selections = [] if named is None else [WindowSelection.load(named)]
    return phases_of_state(state, sources, until=start.position, selections=selections)


def check_model(checkpoint: dict[str, Any], path: Path, config: GPT2Config, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises InputError, FormatError: a checkpoint of another model or tokenizer."""
    saved = model_config_of(checkpoint, path)
    for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        if saved[key] != getattr(config, key):
            raise InputError(
                f"{path} holds a model with {key} = {saved[key]}, the recipe and dataset make {getattr(config, key)}. "
                "The model section, the tokenizer and the window length must be those of the checkpoint."
            )
    differing = differing_parts(tokenizer_parts(tokenizer_of(checkpoint, path)), tokenizer_parts(tokenizer))
    if differing:
        raise InputError(
            f"{path} was trained with another tokenizer than that of the dataset: other {', '.join(differing)}. "
            "Write the dataset with the checkpoint's: crisp-stream write … --like ROOT."
        )


def state_to_load(
    recipe: Recipe, checkpoint: dict[str, Any], stream: Any, start: RunStart, *, resumes: bool
) -> dict[str, Any]:
    """The dataset state with which the run goes on, in the form in which its checkpoints hold it.

    Args:
        stream: the MixtureDataset of the run.

    Raises:
        ResumeError: the checkpoint belongs to another dataset, mixture or seed.
    """
    if not resumes and "data" in recipe.restarts:
        return stream.state_dict()
    saved = dataset_state_of(checkpoint, recipe)
    if resumes and source_fingerprints(saved) == source_fingerprints(stream.sources.identity()):
        _check_mixture(recipe, checkpoint, stream)
    same = resumes or saved.get("mixture") == stream.mixture.fingerprint
    stream.load_state_dict(state := saved if same else stream.continued_state(saved))
    return {**state, START_KEY: asdict(start)}


def _check_mixture(recipe: Recipe, checkpoint: dict[str, Any], stream: Any) -> None:
    """Raises ResumeError: the run in `save_folder` was served by another mixture."""
    if dataset_state_of(checkpoint, recipe).get("mixture") != stream.mixture.fingerprint:
        changed = changed_keys(_kept_by(checkpoint), recipe)
        same_names = ["a histogram or window selection has the same name and other contents, or a phase another end"]
        raise _another_run(recipe, list(changed.values()) or same_names)


def parts_to_load(recipe: Recipe, dataset_state: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Make a function for Composer's `load_ignore_keys`, which edits the checkpoint of another run.

    It takes out what starts afresh, and puts in where the dataset goes on.
    """
    restarts = recipe.restarts
    keep = ("model", "optimizers", "algorithms", "integrations", "metadata")

    def edit(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state"]
        if "schedule" in restarts:
            for key in set(state) - set(keep):
                del state[key]
        if "optimizer" in restarts:
            state.pop("optimizers", None)
        if restarts:
            state.pop("callbacks", None)  # the account of the other run
        state["dataset_state"] = {"train": dataset_state, "eval": {}}

    return edit
