"""The values of a recipe: frozen dataclasses whose fields are the YAML keys, and the checks that need no dataset.

Keys are spelled as Composer and llm-foundry spell them. `crisp_stream.config.load` reads YAML into these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crisp_stream.config.checks import require, require_above_zero
from crisp_stream.config.components import CHECKPOINT
from crisp_stream.config.durations import SHARE, check_time, parse_duration
from crisp_stream.config.sections import (
    CompileRecipe,
    DataRecipe,
    EvalRecipe,
    FSDPRecipe,
    LoggersRecipe,
    MixtureRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Restart,
    SchedulerRecipe,
)
from crisp_stream.typed import did_you_mean

_NEEDS = (
    ("autoresume", "save_folder", "where the checkpoints are"),
    ("log_windows", "save_folder", "where windows.csv goes"),
    ("loggers", "save_folder", "where their files go"),
    ("load_weights_only", "load_path", "the checkpoint to take the weights from"),
    ("load_restart", "load_path", "the checkpoint to take the weights from"),
    ("eval_interval", "eval", "the held-out text or questions to measure"),
)
"""A key, the key that it needs, and what for."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about one training run."""

    run_name: str
    """Name of the run; replaces `{run_name}` in `save_folder`. By default the names of the recipes: `demo-crisp`."""
    max_duration: str
    """Length of the run: `400ba` (batches) or `40000000000tok` (tokens, rounded up to whole batches)."""
    global_train_batch_size: int
    """Windows per optimiser step over all ranks."""
    data: DataRecipe
    mixture: MixtureRecipe
    model: ModelRecipe
    optimizer: OptimizerRecipe
    seed: int = 17
    """Seed of the initial weights, of dropout and of the sample order."""
    scheduler: SchedulerRecipe = field(default_factory=SchedulerRecipe)
    gradient_clipping: float | None = 1.0
    """Largest L2 norm of the whole gradient. Nothing: no clipping."""
    device_train_microbatch_size: int | None = None
    """Most windows per forward pass on a device; the rest is gradient accumulation. Nothing: a rank's whole batch."""
    precision: Literal["fp32", "amp_bf16", "amp_fp16"] = "fp32"
    """Precision, as Composer names them. A CPU needs `fp32`."""
    save_folder: str | None = None
    """Folder of checkpoints, `run.json` and `losses.csv`: a folder or an s3:// URL. Nothing: nothing is saved."""
    save_interval: str = "1dur"
    """Time between checkpoints: `1000ba`, `…tok`, or a share of the run (`0.1dur`). The last step is always saved."""
    save_at: tuple[str, ...] = ()
    """Further checkpoints, where fine-tuning or continued pretraining is to begin: `360ba`, `…tok`, `0.9dur` each,
    counted from the start of the run."""
    save_num_checkpoints_to_keep: int = -1
    """Newest checkpoints kept, at least one; -1 keeps all."""
    autoresume: bool = False
    """Continue from the newest checkpoint in `save_folder`, if there is one, by the same recipe. It goes before
    `load_path`."""
    load_path: str | None = None
    """Checkpoint to start from: a file or an object URL. All of it is continued but what `load_restart` names. The
    learning rate and other keys of `optimizer` and `scheduler` are always those of the recipe."""
    load_restart: tuple[Restart, ...] = ()
    """Parts that start afresh: `optimizer` (its moments), `schedule` (learning rate and step count; with it
    `max_duration` and `until` count from the checkpoint), `data` (the order of samples; needed for another dataset)."""
    load_weights_only: bool = False
    """True: as `load_restart` of all three."""
    log_interval: int = 10
    """Batches between two lines of progress when no terminal is attached."""
    loggers: LoggersRecipe = field(default_factory=LoggersRecipe)
    cluster_losses: bool = True
    """Log the loss of every level-1 cluster and write it to `cluster_losses.csv`."""
    log_windows: bool = False
    """Also write `windows.csv`: the window ids of every batch, sorted. For audits and tests; it grows with the run."""
    eval: EvalRecipe | None = None
    """Held-out text and questions to measure during the run."""
    eval_interval: str | None = None
    """Time between two measurements: `100ba`, `…tok`, or a share of the run (`0.1dur`). Needs `eval`."""
    fsdp: FSDPRecipe | None = None
    """Shard the model over the ranks. Nothing: plain data parallelism."""
    compile_config: CompileRecipe | None = None
    """Compile the training step with `torch.compile`: `{}` for its defaults. Nothing: not."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_times(self)
        for index, phase in enumerate(self.mixture.phases):
            if CHECKPOINT in phase.sources:
                _check_checkpoint_phase(self, index)
            else:
                _check_sources(self, index)
        _check_ends(self)
        _check_folders(self)
        for key, needed, purpose in _NEEDS:
            require(
                not getattr(self, key) or getattr(self, needed) is not None,
                f"`{key}` needs `{needed}`, {purpose}; there is none.",
            )

    @property
    def restarts(self) -> frozenset[Restart]:
        """Parts of a checkpoint at `load_path` that start afresh."""
        return frozenset(("optimizer", "schedule", "data") if self.load_weights_only else self.load_restart)

    @property
    def from_checkpoint(self) -> bool:
        """Whether the mixture goes on from what a checkpoint was served."""
        return self.mixture.phases[0].is_checkpoint

    @property
    def checkpoint_folder(self) -> str | None:
        """`save_folder` with `{run_name}` filled in and no slash at the end."""
        if self.save_folder is None:
            return None
        return self.save_folder.replace("{run_name}", self.run_name).rstrip("/") or "/"


def _check_sizes(recipe: Recipe) -> None:
    micro, batch = recipe.device_train_microbatch_size, recipe.global_train_batch_size
    require_above_zero(
        global_train_batch_size=batch,
        device_train_microbatch_size=micro,
        log_interval=recipe.log_interval,
        gradient_clipping=recipe.gradient_clipping,
    )
    require(recipe.seed >= 0, f"`seed` must be 0 or more; got {recipe.seed}.")
    require(
        micro is None or batch % micro == 0,
        f"`device_train_microbatch_size` must divide `global_train_batch_size`; {micro} does not divide {batch}.",
    )


def _check_times(recipe: Recipe) -> None:
    check_time("max_duration", recipe.max_duration, share="")
    check_time("save_interval", recipe.save_interval)
    for number, text in enumerate(recipe.save_at):
        check_time(f"save_at.{number}", text)
    if recipe.eval_interval is not None:
        check_time("eval_interval", recipe.eval_interval)
    warmup, (total, unit) = recipe.scheduler.t_warmup, parse_duration(recipe.max_duration)
    if not warmup.endswith("dur"):
        count, warmup_unit = parse_duration(warmup)
        require(
            warmup_unit == unit or count == 0,
            f"`scheduler.t_warmup` must be in the unit of `max_duration` ({recipe.max_duration}); got {warmup}.",
        )
        require(
            count <= total or count == 0,
            f"`scheduler.t_warmup` must not be longer than `max_duration` ({recipe.max_duration}); got {warmup}.",
        )


def _check_checkpoint_phase(recipe: Recipe, index: int) -> None:
    """Check a phase that stands for what a checkpoint was served."""
    key, phase = f"mixture.phases.{index}", recipe.mixture.phases[index]
    require(
        index == 0 and phase.histogram == CHECKPOINT,
        f"`{key}.histogram` is checkpoint, which only the first phase can be, and alone.",
    )
    require(
        phase.until is None and phase.max_repeats is None,
        f"`{key}` is what the checkpoint was served, which is known: it has neither `until` nor `max_repeats`.",
    )
    require(
        len(recipe.mixture.phases) > 1,
        f"`{key}` is what the checkpoint was served; say in a second phase what comes after it.",
    )
    require(recipe.load_path is not None, f"`{key}.histogram` is checkpoint, which needs `load_path`; there is none.")
    require(
        "data" not in recipe.restarts,
        f"`{key}.histogram` is checkpoint, but the order of samples is to start afresh. "
        "Drop the phase, or data from `load_restart`.",
    )


def _check_sources(recipe: Recipe, index: int) -> None:
    """Check that the components of a phase draw from sources that are there."""
    phase, names = recipe.mixture.phases[index], recipe.data.source_names
    key = f"mixture.phases.{index}"
    require(
        phase.components is not None or not names,
        f"`{key}` says no source, and `data.sources` are {', '.join(names)}. Write it as components: "
        f"[{{source: {next(iter(names), '')}, …}}]",
    )
    places = [(f"{key}.components", phase.components or ())]
    places += [(f"{key}.schedule.to", phase.schedule.to)] if phase.schedule is not None else []
    for place, components in places:
        for number, component in enumerate(components):
            source = component.source
            if not names:
                require(
                    source is None,
                    f"`{place}.{number}.source` is {source}, but `data` names no sources. Name them (data.sources: "
                    f"{{{source}: {{remote: ROOT}}}}), or drop the key.",
                )
                continue
            near = did_you_mean(source or "", names)
            require(
                source in names,
                f"`{place}.{number}.source` must be one of {', '.join(names)}; got {source or 'none'}{near}",
            )


def _check_ends(recipe: Recipe) -> None:
    """Check where phases end, as far as it can be compared without the dataset."""
    phases, total = recipe.mixture.phases, recipe.max_duration
    previous: dict[str, float] = {}
    for index, phase in enumerate(phases):
        key, last = f"mixture.phases.{index}", index == len(phases) - 1
        if phase.until is None:
            known = last or phase.is_checkpoint
            require(known, f"`{key}.until` is missing: only the last phase may run to the end.")
            continue
        share = SHARE.fullmatch(phase.until)
        end, unit = parse_duration(phase.until) if share is None else (float(share[1]), "dur")
        require(end > previous.get(unit, 0), f"`{key}.until` must lie after the phase before it; got {phase.until}.")
        previous[unit] = end
        run, run_unit = (1.0, "dur") if unit == "dur" else parse_duration(total)
        if unit == run_unit and last:
            require(
                end >= run,
                f"`{key}.until` is {phase.until}, but the run lasts `max_duration` = {total}. "
                "Drop `until` from the last phase, or shorten the run.",
            )
        elif unit == run_unit:
            require(
                end < run,
                f"`{key}.until` is {phase.until}, but the run lasts only {total}: phase {index + 1} would never start.",
            )


def _check_folders(recipe: Recipe) -> None:
    require(
        recipe.run_name != "" and "/" not in recipe.run_name,
        f"`run_name` must be a name without `/`; got {recipe.run_name!r}.",
    )
    folder = recipe.checkpoint_folder or ""
    require(
        "://" not in folder or folder.startswith(("s3://", "file://")),
        f"`save_folder` must be a local folder or an s3:// URL; got {folder}.",
    )
    require(
        not (recipe.load_weights_only and recipe.load_restart),
        "`load_weights_only` restarts all of `load_restart`. Keep one of them.",
    )
