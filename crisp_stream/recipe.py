"""The values of a recipe: frozen dataclasses whose fields are the YAML keys, and the checks that need no dataset.

Keys are spelled as Composer and llm-foundry spell them. `crisp_stream.config` reads YAML into these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from crisp_stream.errors import RecipeError

_DURATION = re.compile(r"(\d+)(ba|tok)")
_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)b?")
_FRACTION = re.compile(r"(0?\.\d+|0|1)dur")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the dataset is and how each process reads it."""

    remote: str
    """Root of a dataset written by `crisp-stream write`: a folder, or s3:// gs:// az:// https://."""

    local: str | None = None
    """Folder of this node's cache of a remote dataset. Local datasets are read in place."""

    cache_limit: str | int | None = None
    """Most bytes the cache may hold, as a number or a size such as `200gb` (10^9 bytes each). Nothing: no limit."""

    num_workers: int = 0
    """DataLoader worker processes per rank, >= 0. With 0 the training process reads by itself."""

    timeout: float = 120.0
    """Seconds without a window after which the loader gives up with an error."""

    @property
    def cache_limit_bytes(self) -> int | None:
        """`cache_limit` as a number of bytes.

        Raises:
            RecipeError: text that is no size.
        """
        if self.cache_limit is None or isinstance(self.cache_limit, int):
            return self.cache_limit
        match = _BYTES.fullmatch(self.cache_limit.strip().lower())
        if match is None:
            raise RecipeError(f"`data.cache_limit` must be bytes or a size such as 200gb; got {self.cache_limit!r}.")
        return int(float(match[1]) * 1000 ** ("kmgt".find(match[2]) + 1 if match[2] else 0))


@dataclass(frozen=True, kw_only=True)
class PhaseRecipe:
    """One stretch of the run with one mixture."""

    histogram: str | tuple[str, ...]
    """`base` (the dataset's own frequencies), the path of a histogram, or a list of paths (their plain average)."""

    until: str | None = None
    """Where the phase ends, counted from the start of the run: `928ba` or `…tok`. Nothing: at the end of the run."""

    max_repeats: float | None = None
    """How often a window may be drawn during the phase, on average over its cluster. Nothing: no limit."""

    on_excess: Literal["error", "cap"] = "error"
    """Clusters beyond `max_repeats`: `error` names them before the run; `cap` gives what is left to the others."""


@dataclass(frozen=True, kw_only=True)
class MixtureRecipe:
    """What is trained on, phase by phase."""

    phases: tuple[PhaseRecipe, ...]
    """One or more phases in order. All but the last say `until`."""

    draw: Literal["systematic", "multinomial"] = "systematic"
    """`systematic` follows the asked proportions as closely as whole windows allow; `multinomial` draws independently,
    as Algorithm 1 of the CRISP paper is written."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A GPT-2 architecture with random initial weights. The vocabulary is the dataset's."""

    n_embd: int
    """Width of the residual stream. The feed-forward layers are four times as wide."""

    n_layer: int
    """Number of blocks."""

    n_head: int
    """Attention heads per block; divides `n_embd`."""

    n_positions: int | None = None
    """Context limit in tokens, at least the dataset's `window_tokens`. Nothing: exactly `window_tokens`."""

    dropout: float = 0.0
    """Dropout of the embeddings, attention weights and residual branches, in [0, 1)."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory for about a third more compute."""


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW (Loshchilov & Hutter): each step also shrinks the weights by `lr x weight_decay`."""

    lr: float
    """Peak learning rate."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean and of the running square of the gradient. Default: Brown et al. (2020)."""

    eps: float = 1e-8
    """Added to the denominator."""

    weight_decay: float = 0.1
    """On weight matrices and embeddings; biases and layer norms are left alone. Default: Brown et al. (2020)."""


@dataclass(frozen=True, kw_only=True)
class SchedulerRecipe:
    """Linear warm-up, then a cosine down to `alpha_f` at the end of the run."""

    t_warmup: str = "0ba"
    """Length of the warm-up in the unit of `max_duration` (`3815ba`, `…tok`), or as a share of the run (`0.01dur`)."""

    alpha_f: float = 0.1
    """Final learning rate as a share of `optimizer.lr`. Default: 10 %, as in Brown et al. (2020)."""


@dataclass(frozen=True, kw_only=True)
class FSDPRecipe:
    """Fully sharded data parallelism (Composer's FSDP2). Checkpoints are gathered: any number of ranks can resume."""

    reshard_after_forward: bool = True
    """Free the gathered weights between forward and backward: less memory, more communication."""

    mixed_precision: Literal["DEFAULT", "PURE", "FULL"] = "DEFAULT"
    """Precision of the gathered weights and reduced gradients, as Composer names them."""


@dataclass(frozen=True, kw_only=True)
class CompileRecipe:
    """Arguments of `torch.compile`. Minutes on a CPU: for GPU runs."""

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Trade of compilation time for speed."""

    fullgraph: bool = False
    """Fail rather than fall back to Python inside the model."""

    dynamic: bool | None = None
    """Whether to compile for varying shapes. Nothing: torch decides."""


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """Held-out text whose perplexity is measured during the run (CRISP, Sec. 3.1)."""

    inputs: str | tuple[str, ...]
    """Files, folders or globs of held-out documents, local or in object storage."""

    text_column: str = "text"
    """Field or column that holds the text."""

    limit: int | None = 500
    """Most documents to use. Nothing: all."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about one training run."""

    run_name: str
    """Name of the run; replaces `{run_name}` in `save_folder`."""

    max_duration: str
    """Length of the run: `400ba` (batches) or `40000000000tok` (tokens, rounded up to whole batches)."""

    global_train_batch_size: int
    """Windows per optimiser step over all ranks."""

    data: DataRecipe
    mixture: MixtureRecipe
    model: ModelRecipe
    optimizer: OptimizerRecipe

    seed: int = 17
    """Of the initial weights, of dropout and of the sample order."""

    scheduler: SchedulerRecipe = field(default_factory=SchedulerRecipe)

    gradient_clipping: float | None = 1.0
    """Largest L2 norm of the whole gradient. Nothing: no clipping."""

    device_train_microbatch_size: int | None = None
    """Most windows per forward pass on a device; the rest is gradient accumulation. Nothing: a rank's whole batch."""

    precision: Literal["fp32", "amp_bf16", "amp_fp16"] = "fp32"
    """As Composer names them. A CPU needs `fp32`."""

    save_folder: str | None = None
    """Where checkpoints, `run.json` and `losses.csv` go: a folder or an s3:// URL. Nothing: nothing is saved."""

    save_interval: str = "1dur"
    """Between checkpoints: `1000ba`, `…tok`, or a share of the run (`0.1dur`). The last step is always saved."""

    save_num_checkpoints_to_keep: int = -1
    """Newest checkpoints kept in a local folder; -1 keeps all. Object storage keeps all."""

    autoresume: bool = False
    """Continue from the newest checkpoint in `save_folder`, if there is one. It goes before `load_path`."""

    load_path: str | None = None
    """Checkpoint to start from: a file or an object URL."""

    load_weights_only: bool = False
    """True: take the weights alone and start a new run. False: continue the saved run exactly where it stood."""

    log_interval: int = 10
    """Batches between two lines of progress when no terminal is attached."""

    log_windows: bool = False
    """Also write `windows.csv`: the window ids of every batch, sorted. For audits and tests; it grows with the run."""

    eval: EvalRecipe | None = None
    """Held-out text to measure during the run."""

    eval_interval: str | None = None
    """Between two measurements: `100ba`, `…tok`, or a share of the run (`0.1dur`). Needs `eval`."""

    fsdp: FSDPRecipe | None = None
    """Shard the model over the ranks. Nothing: plain data parallelism."""

    compile_config: CompileRecipe | None = None
    """Compile the model with `torch.compile`. Nothing: not."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_times(self)
        _check_phases(self)
        _check_folders(self)

    @property
    def checkpoint_folder(self) -> str | None:
        """`save_folder` with `{run_name}` filled in and no slash at the end."""
        if self.save_folder is None:
            return None
        return self.save_folder.replace("{run_name}", self.run_name).rstrip("/") or "/"


def parse_duration(text: str) -> tuple[int, Literal["ba", "tok"]]:
    """Split `400ba` or `1000000tok` into number and unit.

    Raises:
        RecipeError: neither form.
    """
    match = _DURATION.fullmatch(text.replace("_", ""))
    if match is None:
        raise RecipeError(f"a duration is a number of batches or tokens such as 400ba or 1000000tok, not {text!r}.")
    return int(match[1]), "ba" if match[2] == "ba" else "tok"


def batches_of(text: str, *, tokens_per_batch: int) -> int:
    """Number of whole batches of a duration; tokens are rounded up to the batch that reaches them."""
    count, unit = parse_duration(text)
    return count if unit == "ba" else -(-count // tokens_per_batch)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)


def _check_sizes(recipe: Recipe) -> None:
    model, optimizer = recipe.model, recipe.optimizer
    positive = {
        "global_train_batch_size": recipe.global_train_batch_size,
        "device_train_microbatch_size": recipe.device_train_microbatch_size,
        "log_interval": recipe.log_interval,
        "model.n_embd": model.n_embd,
        "model.n_layer": model.n_layer,
        "model.n_head": model.n_head,
        "model.n_positions": model.n_positions,
        "data.timeout": recipe.data.timeout,
        "data.cache_limit": recipe.data.cache_limit_bytes,
        "optimizer.lr": optimizer.lr,
        "optimizer.eps": optimizer.eps,
        "gradient_clipping": recipe.gradient_clipping,
        "eval.limit": recipe.eval.limit if recipe.eval else None,
    }
    for key, value in positive.items():
        _require(value is None or value > 0, f"`{key}` must be above 0; got {value}.")
    for key, value in {"seed": recipe.seed, "data.num_workers": recipe.data.num_workers}.items():
        _require(value >= 0, f"`{key}` must be 0 or more; got {value}.")
    _require(optimizer.weight_decay >= 0, f"`optimizer.weight_decay` must be 0 or more; got {optimizer.weight_decay}.")
    _require(
        all(0 <= beta < 1 for beta in optimizer.betas), f"`optimizer.betas` must lie in [0, 1); got {optimizer.betas}."
    )
    _require(0 <= model.dropout < 1, f"`model.dropout` must lie in [0, 1); got {model.dropout}.")
    _require(
        0 <= recipe.scheduler.alpha_f <= 1, f"`scheduler.alpha_f` must lie in [0, 1]; got {recipe.scheduler.alpha_f}."
    )
    _require(
        model.n_embd % model.n_head == 0,
        f"`model.n_head` must divide `model.n_embd`; {model.n_head} does not divide {model.n_embd}.",
    )
    micro, batch = recipe.device_train_microbatch_size, recipe.global_train_batch_size
    _require(
        micro is None or batch % micro == 0,
        f"`device_train_microbatch_size` must divide `global_train_batch_size`; {micro} does not divide {batch}.",
    )


def _check_times(recipe: Recipe) -> None:
    _require(
        _DURATION.fullmatch(recipe.max_duration.replace("_", "")) is not None,
        _bad_time("max_duration", recipe.max_duration),
    )
    total, unit = parse_duration(recipe.max_duration)
    _require(total > 0, "`max_duration` must be above 0.")
    times = {"scheduler.t_warmup": recipe.scheduler.t_warmup, "save_interval": recipe.save_interval}
    if recipe.eval_interval is not None:
        times["eval_interval"] = recipe.eval_interval
    for key, text in times.items():
        if _FRACTION.fullmatch(text) is None:
            _require(
                _DURATION.fullmatch(text.replace("_", "")) is not None,
                _bad_time(key, text, " or a share such as 0.1dur"),
            )
            _require(
                parse_duration(text)[0] > 0 or key == "scheduler.t_warmup", f"`{key}` must be above 0; got {text}."
            )
        else:
            _require(float(text[:-3]) > 0 or key == "scheduler.t_warmup", f"`{key}` must be above 0; got {text}.")
    warmup = recipe.scheduler.t_warmup
    if not warmup.endswith("dur"):
        count, warmup_unit = parse_duration(warmup)
        _require(
            warmup_unit == unit or count == 0,
            f"`scheduler.t_warmup` must be in the unit of `max_duration` ({recipe.max_duration}); got {warmup}.",
        )
        _require(
            count <= total or count == 0,
            f"`scheduler.t_warmup` must not be longer than `max_duration` ({recipe.max_duration}); got {warmup}.",
        )
    _require(
        recipe.eval_interval is None or recipe.eval is not None,
        "`eval_interval` needs `eval` (the held-out text to measure); there is none.",
    )


def _bad_time(key: str, text: str, also: str = "") -> str:
    return f"`{key}` must be batches such as 400ba, tokens such as 1000000tok{also}; got {text!r}."


def _check_phases(recipe: Recipe) -> None:
    phases = recipe.mixture.phases
    _require(len(phases) > 0, "`mixture.phases` must hold at least one phase.")
    previous: dict[str, int] = {"ba": 0, "tok": 0}
    total, total_unit = parse_duration(recipe.max_duration)
    for index, phase in enumerate(phases):
        key = f"mixture.phases.{index}"
        _require(phase.histogram != () and phase.histogram != "", f"`{key}.histogram` names no histogram.")
        last = index == len(phases) - 1
        _require(
            phase.max_repeats is None or 0 < phase.max_repeats < float("inf"),
            f"`{key}.max_repeats` must be above 0; got {phase.max_repeats}.",
        )
        _require(
            phase.max_repeats is not None or phase.on_excess == "error",
            f"`{key}.on_excess` is cap, but there is no `{key}.max_repeats` to cap at.",
        )
        if phase.until is None:
            _require(last, f"`{key}.until` is missing: only the last phase may run to the end.")
            continue
        _require(_DURATION.fullmatch(phase.until.replace("_", "")) is not None, _bad_time(f"{key}.until", phase.until))
        count, unit = parse_duration(phase.until)
        _require(count > previous[unit], f"`{key}.until` must lie after the phase before it; got {phase.until}.")
        previous[unit] = count
        if unit == total_unit and last:
            _require(
                count >= total,
                f"`{key}.until` is {phase.until}, but the run lasts `max_duration` = {recipe.max_duration}. "
                "Drop `until` from the last phase, or shorten the run.",
            )
        elif unit == total_unit:
            _require(
                count < total,
                f"`{key}.until` is {phase.until}, but the run lasts only {recipe.max_duration}: "
                f"phase {index + 1} would never start.",
            )


def _check_folders(recipe: Recipe) -> None:
    _require(
        recipe.run_name != "" and "/" not in recipe.run_name,
        f"`run_name` must be a name without `/`; got {recipe.run_name!r}.",
    )
    folder = recipe.checkpoint_folder or ""
    _require(
        "://" not in folder or folder.startswith(("s3://", "file://")),
        f"`save_folder` must be a local folder or an s3:// URL; got {folder}.",
    )
    _require(
        not recipe.autoresume or recipe.save_folder is not None,
        "`autoresume` needs `save_folder`, where the checkpoints are; there is none.",
    )
    _require(
        not recipe.load_weights_only or recipe.load_path is not None,
        "`load_weights_only` needs `load_path`, the checkpoint to take the weights from; there is none.",
    )
    _require(
        not recipe.log_windows or recipe.save_folder is not None,
        "`log_windows` needs `save_folder`, where windows.csv goes; there is none.",
    )
