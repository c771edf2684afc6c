"""The sections of a recipe; each checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crisp_stream.config.checks import require, require_above_zero
from crisp_stream.config.components import CHECKPOINT, ComponentRecipe, ScheduleRecipe, check_drawn, check_shares
from crisp_stream.config.durations import check_time
from crisp_stream.config.sizes import parse_bytes
from crisp_stream.errors import RecipeError

SELECTION_SUFFIX = ".windows.parquet"
"""Ending of files that hold a selection of windows; other Parquet files are histograms."""

Restart = Literal["optimizer", "schedule", "data"]
"""A part of a checkpoint besides its weights."""


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One of several datasets of a run."""

    remote: str
    """Root of a dataset written by `crisp-stream write`: a folder, or s3:// gs:// az:// https://."""
    generation: int | None = None
    """Generation of a dataset that has grown by `crisp-stream append`. Nothing: the newest."""
    local: str | None = None
    """Folder of this node's cache of a remote dataset. Nothing: `data.local`."""
    cache_limit: str | int | None = None
    """Most bytes that the cache of this source may hold. Nothing: `data.cache_limit`."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Place of the dataset, or of several, and the way each process reads them."""

    remote: str | None = None
    """Root of a dataset written by `crisp-stream write`: a folder, or s3:// gs:// az:// https://. Nothing: `sources`
    names the datasets."""
    sources: dict[str, SourceRecipe] | None = None
    """Several datasets by name, instead of `remote`: `{corpus: {remote: ROOT}, task: {remote: ROOT}}`. The components
    of each phase say which one they draw from. Their order is part of the run; further ones come last."""
    generation: int | None = None
    """Generation of a dataset that has grown by `crisp-stream append`. Nothing: the newest."""
    local: str | None = None
    """Folder of this node's cache of a remote dataset. Local datasets are read in place."""
    cache_limit: str | int | None = None
    """Most bytes the cache of a dataset may hold, as a number or a size such as `200gb` (10^9 bytes each). Nothing: no
    limit."""
    num_workers: int = 0
    """DataLoader worker processes per rank, >= 0. With 0 the training process reads by itself."""
    timeout: float = 120.0
    """Seconds without a window after which the loader gives up with an error."""
    lookahead: int = 4096
    """Windows that each process plans, and fetches from a remote root, before they are used."""

    def __post_init__(self) -> None:
        require_above_zero("data.", timeout=self.timeout, lookahead=self.lookahead, cache_limit=self.cache_limit_bytes)
        require(self.num_workers >= 0, f"`data.num_workers` must be 0 or more; got {self.num_workers}.")
        if self.sources is None:
            require(
                bool(self.remote),
                "`data` needs `data.remote`, the root of a dataset, or `data.sources`, several by name; there is "
                "neither.",
            )
            return
        for key in ("remote", "generation"):
            require(
                getattr(self, key) is None,
                f"`data.sources` and `data.{key}` are both given. Give {key} to a source (data.sources.NAME.{key}=…), "
                f"or drop the sources: data.{'sources' if key == 'remote' else key}=null",
            )
        require(len(self.sources) > 0, "`data.sources` must name at least one dataset; got none.")
        for name, source in self.sources.items():
            key = f"data.sources.{name}"
            require(
                name.isidentifier(),
                f"`{key}`: the name of a source must be made of letters, digits and _, and begin with a letter; "
                f"got {name!r}.",
            )
            require(source.remote != "", f"`{key}.remote` must be the root of a dataset; got ''.")
            limit = _bytes_of(source.cache_limit, f"{key}.cache_limit")
            require_above_zero(f"{key}.", cache_limit=limit)

    @property
    def cache_limit_bytes(self) -> int | None:
        """`cache_limit` as a number of bytes. Raises RecipeError: text that is no size."""
        return _bytes_of(self.cache_limit, "data.cache_limit")

    @property
    def all_caches_bytes(self) -> int | None:
        """Most bytes that the caches of all datasets may hold together; None: no limit of one of them."""
        limits = [_bytes_of(source.cache_limit, "cache_limit") for source in self.as_sources.values()]
        limits = [self.cache_limit_bytes if limit is None else limit for limit in limits]
        return None if None in limits else sum(limit or 0 for limit in limits)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in order; none where there is one dataset, without a name."""
        return tuple(self.sources or ())

    @property
    def roots(self) -> dict[str, str]:
        """Root of each source by its name; of a dataset alone by the name ``."""
        return {name: source.remote for name, source in self.as_sources.items()}

    @property
    def as_sources(self) -> dict[str, SourceRecipe]:
        """Every dataset by its name; one alone has the name ``."""
        if self.sources is not None:
            return dict(self.sources)
        assert self.remote is not None, "checked: one of them is there"
        return {"": SourceRecipe(remote=self.remote, generation=self.generation)}

    def only_root(self, purpose: str) -> str:
        """The root of the only dataset. Raises RecipeError: there are sources, and `purpose` takes one dataset."""
        if self.remote is None:
            named = ", ".join(self.source_names)
            raise RecipeError(
                f"{purpose} takes one dataset, `data.remote`; got the sources {named}. "
                "Write: data.sources=null data.remote=ROOT"
            )
        return self.remote


def _bytes_of(size: str | int | None, key: str) -> int | None:
    """A size as a number of bytes. Raises RecipeError: text that is no size."""
    num_bytes = None if size is None else parse_bytes(size)
    if num_bytes is None and size is not None:
        raise RecipeError(f"`{key}` must be bytes or a size such as 200gb; got {size!r}.")
    return num_bytes


@dataclass(frozen=True, kw_only=True)
class PhaseRecipe:
    """One stretch of the run with one mixture."""

    histogram: str | tuple[str, ...] | None = None
    """`base` (the dataset's frequencies), the path of a histogram, or a list of paths (their plain average).
    `checkpoint`, in the first phase alone: what the checkpoint of `load_path` was served, up to where it stands.
    Nothing: `windows` or `components` say what is drawn."""
    windows: str | None = None
    """Path of a window selection, made by `crisp-stream select`: its windows are drawn, each as often as any other.
    Beside `histogram`: clusters by the histogram, and inside a cluster selected windows alone. Beside
    `histogram: checkpoint`: the selection that the checkpoint was served from."""
    components: tuple[ComponentRecipe, ...] | None = None
    """Several components in place of `histogram` and `windows`, with shares that sum to 1."""
    schedule: ScheduleRecipe | None = None
    """Where the shares of `components` go during the phase. Nothing: they stay."""
    until: str | None = None
    """End of the phase, counted from the start of the run: `928ba`, `…tok`, or a share of the run (`0.9dur`).
    Nothing: at the end of the run."""
    max_repeats: float | None = None
    """Most draws of a window during the phase, on average over its cluster. Nothing: no limit."""
    on_excess: Literal["error", "cap"] = "error"
    """Clusters beyond `max_repeats`: `error` names them before the run; `cap` gives what is left to the others."""

    @property
    def source(self) -> str | tuple[str, ...]:
        """What is drawn: `histogram`, or `windows`; of both the histogram. Nothing where there are components."""
        return self.histogram or self.windows or ()

    @property
    def sources(self) -> tuple[str, ...]:
        """`source` as a list of names."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def has_one_file(self) -> bool:
        """Whether `source` says all of what is drawn."""
        return self.components is None and (self.is_checkpoint or self.histogram is None or self.windows is None)

    @property
    def is_checkpoint(self) -> bool:
        """Whether it stands for what a checkpoint was served."""
        return self.histogram == CHECKPOINT

    @property
    def parts(self) -> tuple[ComponentRecipe, ...]:
        """Its components; where it has none of its own, the one that `histogram` and `windows` make."""
        if self.components is not None:
            return self.components
        return (
            ComponentRecipe(
                histogram=self.histogram,
                windows=self.windows,
                max_repeats=self.max_repeats,
                on_excess=self.on_excess,
            ),
        )

    def check(self, key: str) -> None:
        """Check the phase by itself. Raises RecipeError, with `key` as the phase's place in the recipe."""
        if self.until is not None:
            check_time(f"{key}.until", self.until, may_be_zero=True, share="0.9dur")
        if self.components is None:
            require(
                self.schedule is None, f"`{key}.schedule` needs `{key}.components`, where it begins; there are none."
            )
            check_drawn(self.parts[0], key)
            return
        for name in ("histogram", "windows", "max_repeats"):
            require(
                getattr(self, name) is None,
                f"`{key}` has `components` and `{name}`. Give {name} to a component (`{key}.components.0.{name}`).",
            )
        require(
            self.on_excess == "error",
            f"`{key}` has `components` and `on_excess`. Give it to a component (`{key}.components.0.on_excess`).",
        )
        check_shares(self.components, f"{key}.components")
        if self.schedule is not None:
            self.schedule.check(self.components, key)


@dataclass(frozen=True, kw_only=True)
class MixtureRecipe:
    """Mixture that is trained on, phase by phase."""

    phases: tuple[PhaseRecipe, ...]
    """One or more phases in order. All but the last say `until`."""
    draw: Literal["systematic", "multinomial"] = "systematic"
    """`systematic` follows the proportions as closely as whole windows allow; `multinomial` draws independently,
    as Algorithm 1 of the CRISP paper is written."""

    def __post_init__(self) -> None:
        require(len(self.phases) > 0, "`mixture.phases` must hold at least one phase.")
        for index, phase in enumerate(self.phases):
            phase.check(f"mixture.phases.{index}")


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

    def __post_init__(self) -> None:
        require_above_zero(
            "model.",
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_positions=self.n_positions,
        )
        require(0 <= self.dropout < 1, f"`model.dropout` must lie in [0, 1); got {self.dropout}.")
        require(
            self.n_embd % self.n_head == 0,
            f"`model.n_head` must divide `model.n_embd`; {self.n_head} does not divide {self.n_embd}.",
        )


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

    def __post_init__(self) -> None:
        require_above_zero("optimizer.", lr=self.lr, eps=self.eps)
        require(self.weight_decay >= 0, f"`optimizer.weight_decay` must be 0 or more; got {self.weight_decay}.")
        betas_fit = all(0 <= beta < 1 for beta in self.betas)
        require(betas_fit, f"`optimizer.betas` must lie in [0, 1); got {self.betas}.")


@dataclass(frozen=True, kw_only=True)
class SchedulerRecipe:
    """Linear warm-up, then a cosine down to `alpha_f` at the end of the run."""

    t_warmup: str = "0ba"
    """Length of the warm-up in the unit of `max_duration` (`3815ba`, `…tok`), or as a share of the run (`0.01dur`)."""
    alpha_f: float = 0.1
    """Final learning rate as a share of `optimizer.lr`. Default: 10 %, as in Brown et al. (2020)."""

    def __post_init__(self) -> None:
        check_time("scheduler.t_warmup", self.t_warmup, may_be_zero=True)
        require(0 <= self.alpha_f <= 1, f"`scheduler.alpha_f` must lie in [0, 1]; got {self.alpha_f}.")


@dataclass(frozen=True, kw_only=True)
class FSDPRecipe:
    """Fully sharded data parallelism (Composer's FSDP2). Checkpoints are gathered: any number of ranks can resume."""

    reshard_after_forward: bool = True
    """Free the gathered weights between forward and backward: less memory, more communication."""
    mixed_precision: Literal["DEFAULT", "PURE", "FULL"] = "DEFAULT"
    """Precision of the gathered weights and reduced gradients, as Composer names them."""
    data_parallel_shard_degree: int | None = None
    """Consecutive ranks that share one copy of the model; all ranks together hold as many copies as there are such
    groups (hybrid sharding). With the ranks of a node, weights are gathered within nodes, and only gradients, a shard
    of them, go between. Nothing: one copy over all ranks."""

    def __post_init__(self) -> None:
        degree = self.data_parallel_shard_degree
        require(degree is None or degree > 1, f"`fsdp.data_parallel_shard_degree` must be 2 or more; got {degree}.")


@dataclass(frozen=True, kw_only=True)
class CompileRecipe:
    """Arguments of `torch.compile`, for the blocks and the loss. Minutes on a CPU: for GPU runs."""

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Trade of compilation time for speed."""
    fullgraph: bool = False
    """Fail rather than fall back to Python inside the model."""
    dynamic: bool | None = None
    """Whether to compile for varying shapes. Nothing: torch decides."""


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """Measurements during the run: perplexity of held-out text (CRISP, Sec. 3.1), multiple choice, or both."""

    inputs: str | tuple[str, ...] = ()
    """Files, folders or globs of held-out documents, local or in object storage."""
    text_column: str = "text"
    """Field or column that holds the text."""
    limit: int | None = 500
    """Most documents to use. Nothing: all."""
    questions: str | tuple[str, ...] = ()
    """Question sets: a file, a task of the paper (`arc_easy`), or `TASK=FILE`, each."""
    question_limit: int | None = 500
    """Most questions of each set, chosen at random and the same in all runs. Nothing: all."""

    def __post_init__(self) -> None:
        require_above_zero("eval.", limit=self.limit, question_limit=self.question_limit)
        require(
            bool(self.inputs) or bool(self.questions),
            "`eval` needs `eval.inputs` (held-out text) or `eval.questions`; there is neither.",
        )


@dataclass(frozen=True, kw_only=True)
class WandBRecipe:
    """Weights & Biases."""

    project: str = "crisp-stream"
    """Project of the run; its group is `run_name`, so that resumed parts stand together."""
    entity: str | None = None
    """User or team. Nothing: the account's default."""
    mode: Literal["online", "offline"] = "online"
    """`offline` only writes files; `wandb sync FOLDER` sends them later. `online` needs `wandb login`."""
    tags: tuple[str, ...] = ()
    """Labels of the run."""


@dataclass(frozen=True, kw_only=True)
class LoggersRecipe:
    """Loggers besides the console. They write below `logs/` of `save_folder`."""

    file: bool = False
    """A text file per rank with all metrics and what the rank printed."""
    tensorboard: bool = False
    """Event files for TensorBoard."""
    wandb: WandBRecipe | None = None
    """Weights & Biases."""

    def __bool__(self) -> bool:
        return self.file or self.tensorboard or self.wandb is not None
