"""Repairs of what Composer and PyTorch get wrong in training, in one place."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.distributed
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from composer.utils import checkpoint, dist
from torch.utils.serialization import config as serialization

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
    read = checkpoint._torch_load_with_validation

    def map_file(*arguments: Any, **named: Any) -> Any:
        with serialization.patch("load.mmap", True):
            return read(*arguments, **named)

    checkpoint._torch_load_with_validation = map_file
    try:
        yield
    finally:
        checkpoint._torch_load_with_validation = read


class MeanOfShardedGradients(Algorithm):
    """Divides sharded gradients where the backend sums instead of averaging.

    FSDP2 asks for ReduceOp.AVG. Gloo (CPU) as of torch 2.7 accepts that in `reduce_scatter_tensor` and sums, so
    gradients come out as many times too large as there are ranks. What the backend does is measured, not assumed.
    """

    def __init__(self) -> None:
        self._excess: float | None = None

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if self._excess is None:
            received = state.device.tensor_to_device(torch.zeros(1))
            ones = state.device.tensor_to_device(torch.ones(dist.get_world_size()))
            torch.distributed.reduce_scatter_tensor(received, ones, op=torch.distributed.ReduceOp.AVG)
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
