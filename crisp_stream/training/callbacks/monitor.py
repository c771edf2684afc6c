"""Log mixture error, repeats, loss per cluster and data waits during training, to all of Composer's loggers.

Everything is exact and over all ranks. Two small all-reduces per batch: the slowest rank's wait for data, and the
losses by cluster. So every rank holds the same numbers, they travel in the checkpoint, and another number of ranks goes
on with them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.loading.loader import MixtureLoader
from crisp_stream.training.callbacks.account import RunAccount
from crisp_stream.training.callbacks.cluster_losses import LOGGED_CLUSTERS, ClusterLosses, WindowLosses
from crisp_stream.training.callbacks.served import FEW_LEAVES, ServedMixture


class RunMonitor(Callback):
    """Mixture error, repeated windows, loss by cluster, bytes, requests and waits, logged while the run goes on."""

    def __init__(
        self,
        account: RunAccount,
        mixture: Mixture,
        dataset: Dataset,
        loader: MixtureLoader,
        *,
        num_batches: int,
        log_interval: int,
        window_losses: WindowLosses | None,
    ) -> None:
        """Args:
        account: its counts are compared with the mixture.
        num_batches: the last batch of the run.
        log_interval: batches between two measurements; waits are logged for every batch.
        window_losses: the loss function of the model; None: no losses by cluster.
        """
        start = account.start
        self.served = ServedMixture(mixture, dataset, position=start.position)
        self.cluster_losses = (
            None
            if window_losses is None
            else ClusterLosses(dataset, first_batch=start.batch + 1, last_batch=num_batches, log_interval=log_interval)
        )
        self.mixture_error = float("nan")
        """Mixture error when it was last measured, on rank 0."""
        self.wait_share = 0.0
        """Share of the last batch's time that the slowest rank waited for the loader."""
        self._account, self._loader, self._window_losses = account, loader, window_losses
        self._windows_per_leaf = dataset.windows_per_leaf
        self._log_interval, self._num_batches = log_interval, num_batches
        self._error_interval = log_interval * (1 if len(dataset.leaves) <= FEW_LEAVES else 16)
        self._seconds = {"waited": 0.0, "batches": 0.0}
        self._batch_sums: torch.Tensor | None = None
        self._samples = 0
        self._marks = (0.0, 0.0)

    @property
    def data_wait_share(self) -> float:
        """Share of the run's time that the slowest rank of each batch waited for the loader."""
        return self._seconds["waited"] / max(self._seconds["batches"], 1e-9)

    @property
    def repeated_share(self) -> float:
        """Share of the samples so far whose window had been served before in this run.

        No window comes again before its leaf is exhausted, so what a leaf served beyond its windows are repeats. That
        needs no set of the ids that were seen, which after 10^8 samples would hold gigabytes.
        """
        served = self._account.served_per_leaf
        return float(np.maximum(served - self._windows_per_leaf, 0).sum() / max(int(served.sum()), 1))

    @property
    def phase_errors(self) -> dict[int, float]:
        """Mixture error of every phase that was served from, by its number."""
        return self.served.errors_of_phases(self._account.served_per_leaf)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._samples = int(self._account.served_per_leaf.sum())
        self.served.position = self._account.start.position  # of the loaded account, if one was loaded
        self.served.advance(self._account.served_per_leaf, self._samples)
        self._marks = (time.monotonic(), self._loader.waited)

    def after_forward(self, state: State, logger: Logger) -> None:
        if self._window_losses is None or self.cluster_losses is None:
            return
        sums, tokens = self._window_losses.sums, self._window_losses.tokens
        columns = torch.stack([torch.ones_like(sums), tokens.to(sums.dtype), sums], dim=1).double()
        if self._batch_sums is None:
            self._batch_sums = torch.zeros(
                (self.cluster_losses.num_clusters, 3), dtype=torch.float64, device=sums.device
            )
        clusters = state.batch["cluster"].to(sums.device) // self.cluster_losses.leaves_per_cluster
        self._batch_sums.index_add_(0, clusters, columns)

    def batch_end(self, state: State, logger: Logger) -> None:
        batch = int(state.timestamp.batch)
        metrics = self._time_batch(state)
        self._samples += int((state.timestamp.sample - state.previous_timestamp.sample).value)  # pyright: ignore[reportOptionalMemberAccess]
        self.served.advance(self._account.served_per_leaf, self._samples)
        metrics |= self._add_cluster_losses(batch)
        last = batch == self._num_batches
        if batch % self._log_interval == 0 or last:
            totals = self._account.totals
            metrics |= {"data/bytes_read": totals["bytes_read"], "data/requests": totals["requests"]}
        if (batch % self._error_interval == 0 or last) and dist.get_global_rank() == 0:
            served = self._account.served_per_leaf
            self.mixture_error = self.served.error(served)
            metrics |= {
                "mixture/error": self.mixture_error,
                "mixture/phase_error": list(self.served.errors_of_phases(served).values())[-1],
                "mixture/repeated": self.repeated_share,
            }
        logger.log_metrics(metrics)

    def _time_batch(self, state: State) -> dict[str, float]:
        now, waited = time.monotonic(), self._loader.waited
        waited_now = torch.tensor([waited - self._marks[1]], dtype=torch.float64)
        slowest = state.device.tensor_to_device(waited_now)
        dist.all_reduce(slowest, reduce_operation="MAX")
        seconds, wait = max(now - self._marks[0], 1e-9), float(slowest.item())
        self._marks = (now, waited)
        self._seconds["waited"] += wait
        self._seconds["batches"] += seconds
        self.wait_share = min(wait / seconds, 1.0)
        return {"data/wait_seconds": wait, "data/wait_share": self.wait_share}

    def _add_cluster_losses(self, batch: int) -> dict[str, float]:
        if self.cluster_losses is None or self._batch_sums is None:
            return {}
        dist.all_reduce(self._batch_sums, reduce_operation="SUM")
        self.cluster_losses.add(self._batch_sums.cpu().numpy())
        self._batch_sums.zero_()
        if batch % self.cluster_losses.interval:
            return {}
        rows = self.cluster_losses.end_interval(batch)
        if self.cluster_losses.num_clusters > LOGGED_CLUSTERS:
            return {}
        return {f"loss/cluster/{cluster}": loss for _, _, cluster, _, _, loss in rows}

    def state_dict(self) -> dict[str, Any]:
        saved: dict[str, Any] = {"served": self.served.state_dict(), "seconds": dict(self._seconds)}
        if self.cluster_losses is not None:
            saved["cluster_losses"] = self.cluster_losses.state_dict()
        return saved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.served.load_state_dict(state["served"])
        self._seconds = dict(state["seconds"])
        if self.cluster_losses is not None and "cluster_losses" in state:
            self.cluster_losses.load_state_dict(state["cluster_losses"])
