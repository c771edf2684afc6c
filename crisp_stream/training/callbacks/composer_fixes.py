"""Repairs of what Composer and PyTorch get wrong in training, in one place."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch.distributed
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from composer.utils import checkpoint, dist
from composer.utils.parallelism import FSDP2Config
from torch.utils.serialization import config as serialization

from crisp_stream.ranks import device_name

if TYPE_CHECKING:
    from composer import Trainer


def close_trainer(trainer: Trainer) -> None:
    """Close a trainer; its memory is free once nothing else refers to it and garbage is collected.

    Without this, two libraries hold what a trainer held, model and optimiser with it, until the process ends: a process
    that trains one model after another would keep them all.

    Other trainers of the process lose their closing at exit, as they do when Composer itself deletes one.
    """
    from composer.callbacks import CheckpointSaver
    from torch.distributed.checkpoint import state_dict

    trainer.close()
    for callback in trainer.state.callbacks:
        if isinstance(callback, CheckpointSaver):
            callback.tmp_dir_for_symlink.cleanup()  # else it warns when it is deleted
    engine: Any = trainer.engine
    atexit.unregister(engine._close)  # Composer leaves it registered, with the trainer's state: its pull request 3943
    names: Any = getattr(state_dict, "_get_fqns", None)
    if hasattr(names, "cache_clear"):  # PyTorch's issue 149100: names of parameters, by model; newer ones keep none
        names.cache_clear()


@contextlib.contextmanager
def mapped_checkpoints() -> Iterator[None]:
    """Let Composer map checkpoints into memory, so that the ranks of a node share one copy, in the page cache.

    Composer reads the whole file on every rank: 79 GB for 6.7B parameters, eight times on a node of eight GPUs.
    """
    composer, torch_config = cast("Any", checkpoint), cast("Any", serialization)
    read = composer._torch_load_with_validation

    def map_file(*arguments: Any, **named: Any) -> Any:
        with torch_config.patch("load.mmap", True):
            return read(*arguments, **named)

    composer._torch_load_with_validation = map_file
    try:
        yield
    finally:
        composer._torch_load_with_validation = read


@contextlib.contextmanager
def copies_on_cpu() -> Iterator[None]:
    """Add what FSDP2 needs for several copies of a model and torch lacks on a CPU.

    Gloo refuses to average in `all_reduce`, and streams of a CPU record no events.
    """
    if device_name() != "cpu":
        yield
        return
    stream: Any = torch.cpu.Stream
    all_reduce, record_event = torch.distributed.all_reduce, stream.record_event

    def mean(tensor: torch.Tensor, op: Any = torch.distributed.ReduceOp.SUM, group: Any = None, **named: Any) -> Any:
        if op != torch.distributed.ReduceOp.AVG or torch.distributed.get_backend(group) != "gloo":
            return all_reduce(tensor, op, group, **named)
        all_reduce(tensor, torch.distributed.ReduceOp.SUM, group)
        tensor.div_(torch.distributed.get_world_size(group))
        return None

    torch.distributed.all_reduce = mean
    stream.record_event = lambda _: torch.cpu.Event()
    try:
        yield
    finally:
        torch.distributed.all_reduce, stream.record_event = all_reduce, record_event


@dataclass
class HybridSharding(FSDP2Config):
    """FSDP2 that may hold several copies of the model; Composer's makes one of all ranks, whatever mesh it is given."""

    ranks_per_copy: int | None = None
    """Consecutive ranks that share a copy; divides the number of ranks. None: all of them."""

    @property
    def data_parallel_shard_degree(self) -> int:
        return self.ranks_per_copy or -1

    @property
    def data_parallel_replicate_degree(self) -> int | None:
        return None if self.ranks_per_copy in (None, dist.get_world_size()) else -1


class MeanOfShardedGradients(Algorithm):
    """Divides sharded gradients where the backend sums instead of averaging.

    FSDP2 asks for ReduceOp.AVG. Gloo (CPU) as of torch 2.7 accepts that in `reduce_scatter_tensor` and sums, so
    gradients come out as many times too large as ranks share a copy. What the backend does is measured, not assumed.
    """

    def __init__(self) -> None:
        self._excess: float | None = None

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if self._excess is None:
            mesh: Any = state.fsdp_config.device_mesh  # pyright: ignore[reportOptionalMemberAccess]
            ranks = mesh.get_group(mesh.ndim - 1)
            received = state.device.tensor_to_device(torch.zeros(1))
            ones = state.device.tensor_to_device(torch.ones(ranks.size()))
            torch.distributed.reduce_scatter_tensor(received, ones, torch.distributed.ReduceOp.AVG, ranks)
            self._excess = float(received.item())
        if self._excess != 1.0:
            for parameter in state.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(self._excess)


class RecipeRates(Callback):
    """Restores learning rate, betas and weight decay of the recipe after a checkpoint with others was loaded.

    A loaded optimiser brings the values it was saved with, so a recipe's new learning rate would be ignored silently.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]

    def after_load(self, state: State, logger: Logger) -> None:
        groups = state.optimizers[0].param_groups
        for group, wanted in zip(groups, self._groups, strict=True):
            group.update(wanted, initial_lr=wanted["lr"])
        now = state.timestamp
        batch, token = int(now.batch), int(now.token)
        if batch:  # Composer's rate of a batch is that of the count before the batch that came before it
            state.timestamp = now.copy(batch=batch - 1, token=token - token // batch)
        for scheduler in state.schedulers:
            assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
            scheduler.base_lrs = [wanted["lr"] for wanted in self._groups]
            for group, wanted, share_at in zip(groups, self._groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = wanted["lr"] * share_at(scheduler.last_epoch)
        state.timestamp = now
