"""End a run whose loss or weights are not finite, before anything of it is saved and before a checkpoint is deleted.

Composer brings the loss of every batch, the mean over all ranks, to the host of every rank: looking at it costs nothing
and no wait for the device, and all ranks see the same. The weights may be spoilt by the very step of a finite loss, so
they are looked at before they are saved: one pass over them per checkpoint.
"""

from __future__ import annotations

import math

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.tensor import DTensor

from crisp_stream.errors import DivergedError
from crisp_stream.training.callbacks.account import RunAccount


class Divergence(Callback):
    """Raises DivergedError, on all ranks, where a loss or a weight is not finite."""

    def __init__(self, account: RunAccount, started_from: str | None) -> None:
        """Args:
        account: it keeps the loss and the learning rate of the batch.
        started_from: address of the checkpoint that the run starts from; None: random weights.
        """
        self.last_good = started_from
        """Newest checkpoint that the run saved, or started from."""
        self._account = account

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.last_good is not None and not _finite_weights(state):
            raise DivergedError(
                f"{self.last_good} holds weights that are not finite. Start from an earlier checkpoint."
            )

    def batch_end(self, state: State, logger: Logger) -> None:
        loss = self._account.losses[-1]
        if not math.isfinite(loss):
            raise self._diverged(f"the loss of batch {int(state.timestamp.batch):,} is {loss}")

    def check_weights(self, state: State) -> None:
        """Check the weights of all ranks before they are saved. All ranks call this."""
        if not _finite_weights(state):
            raise self._diverged(f"there are weights that are not finite after batch {int(state.timestamp.batch):,}")

    def _diverged(self, what: str) -> DivergedError:
        remedy = f"Start another run with load_path={self.last_good} and" if self.last_good else "Start again with"
        return DivergedError(
            f"{what}, at learning rate {self._account.learning_rates[-1]:g}; the run ends and saves nothing more. "
            f"Last good checkpoint: {self.last_good or 'none'}. {remedy} a lower `optimizer.lr`."
        )


def _finite_weights(state: State) -> bool:
    """Whether all weights of all ranks are finite. Their sums are looked at, which take no memory."""
    weights = [parameter.detach() for parameter in state.model.parameters()]
    parts = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
    finite = torch.stack([part.sum(dtype=torch.float32).isfinite() for part in parts]).all().to(torch.int32)
    dist.all_reduce(finite, reduce_operation="MIN")
    return bool(finite.item())
