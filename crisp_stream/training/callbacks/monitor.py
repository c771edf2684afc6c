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

from crisp_stream.format.sources import Sources
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.loading.batches import SOURCE
from crisp_stream.loading.loader import MixtureLoader
from crisp_stream.training.callbacks.account import RunAccount
from crisp_stream.training.callbacks.cluster_losses import LOGGED_CLUSTERS, ClusterLosses, WindowLosses
from crisp_stream.training.callbacks.components import WEIGHTS, ComponentAccount, ComponentWeights
from crisp_stream.training.callbacks.served import FEW_LEAVES, ServedMixture, drawable_per_leaf


class RunMonitor(Callback):
    """Mixture error, repeated windows, loss by cluster, bytes, requests and waits, logged while the run goes on."""

    def __init__(
        self,
        account: RunAccount,
        mixture: Mixture,
        sources: Sources,
        loader: MixtureLoader,
        *,
        num_batches: int,
        log_interval: int,
        window_losses: WindowLosses | None,
    ) -> None:
        """Args:
        account: its counts are compared with the mixture.
        mixture: of the recipe.
        sources: what it is drawn from.
        loader: the DataLoader, whose waits are measured.
        num_batches: the last batch of the run.
        log_interval: batches between two measurements; waits are logged for every batch.
        window_losses: the loss function of the model; None: no losses by cluster.
        """
        start = account.start
        self.served = ServedMixture(mixture, sources, position=start.position)
        self.cluster_losses = (
            None
            if window_losses is None
            else ClusterLosses(sources, first_batch=start.batch + 1, last_batch=num_batches, log_interval=log_interval)
        )
        has_components = sources.is_named or any(not phase.is_plain for phase in mixture.phases)
        self.components = ComponentAccount(mixture) if has_components else None
        """What each component gave; None where every phase has one component, of one dataset."""
        self._weights = ComponentWeights(mixture, sources)
        self.mixture_error = float("nan")
        """Mixture error when it was last measured, on rank 0."""
        self.wait_share = 0.0
        """Share of the last batch's time that the slowest rank waited for the loader."""
        self._account, self._loader, self._window_losses = account, loader, window_losses
        self._windows_per_leaf = drawable_per_leaf(mixture, sources)
        self._log_interval, self._num_batches = log_interval, num_batches
        self._error_interval = log_interval * (1 if len(self._windows_per_leaf) <= FEW_LEAVES else 16)
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

        No window comes again before its leaf is exhausted, so what a leaf served beyond its windows are repeats (of a
        run on a selection, beyond its selected windows). That needs no set of the ids that were seen, which after 10^8
        samples would hold gigabytes. Where a component with a selection draws beside one without, or by another one,
        windows that both have served are not counted.
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

    def after_dataloader(self, state: State, logger: Logger) -> None:
        if self.components is None:
            return
        batch = state.batch
        cluster, window = batch["cluster"].numpy(), batch["window"].numpy()
        source = batch[SOURCE].numpy() if SOURCE in batch else np.zeros(len(cluster), np.int64)
        batch[WEIGHTS] = torch.from_numpy(self._weights.of(self.served.phase, source, cluster, window))

    def after_forward(self, state: State, logger: Logger) -> None:
        if self.cluster_losses is None and self.components is None:
            return
        leaves, columns = state.batch["cluster"], self._columns(state)
        device = columns.device
        if self._batch_sums is None:
            self._batch_sums = torch.zeros(
                (self._num_clusters + self._num_parts, 3), dtype=torch.float64, device=device
            )
        if self.cluster_losses is not None:
            source = state.batch.get(SOURCE)
            clusters = self.cluster_losses.clusters_of(leaves.to(device), None if source is None else source.to(device))
            self._batch_sums.index_add_(0, clusters, columns)
        if self.components is not None:
            weights = state.batch[WEIGHTS].to(device)
            self._batch_sums[self._num_clusters : self._num_clusters + weights.shape[1]] += weights.T @ columns

    def _columns(self, state: State) -> torch.Tensor:
        """[windows of a microbatch, 3]: 1, predicted tokens and loss of each window; these are 0 where not kept."""
        if self._window_losses is None:
            windows = len(state.batch["cluster"])
            return (
                torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
                .repeat(windows, 1)
                .to(state.batch["input_ids"].device)
            )
        sums, tokens = self._window_losses.sums, self._window_losses.tokens
        return torch.stack([torch.ones_like(sums), tokens.to(sums.dtype), sums], dim=1).double()

    @property
    def _num_clusters(self) -> int:
        """Rows of the sums of a batch that are of clusters; those of components follow."""
        return 0 if self.cluster_losses is None else self.cluster_losses.num_clusters

    @property
    def _num_parts(self) -> int:
        return 0 if self.components is None else self.components.most_components

    def batch_end(self, state: State, logger: Logger) -> None:
        batch, phase = int(state.timestamp.batch), self.served.phase
        metrics = self._time_batch(state)
        self._samples += int((state.timestamp.sample - state.previous_timestamp.sample).value)  # pyright: ignore[reportOptionalMemberAccess]
        self.served.advance(self._account.served_per_leaf, self._samples)
        metrics |= self._add_losses(batch, phase)
        last = batch == self._num_batches
        if self.components is not None and (batch % self._log_interval == 0 or last):
            metrics |= self._component_metrics(self.components, phase)
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

    def _add_losses(self, batch: int, phase: int) -> dict[str, float]:
        """Add the sums of a batch, by cluster and by component, over all ranks."""
        if self._batch_sums is None:
            return {}
        dist.all_reduce(self._batch_sums, reduce_operation="SUM")
        sums = self._batch_sums.cpu().numpy().copy()
        self._batch_sums.zero_()
        if self.components is not None:
            self.components.add(phase, sums[self._num_clusters :])
        if self.cluster_losses is None:
            return {}
        self.cluster_losses.add(sums[: self._num_clusters])
        if batch % self.cluster_losses.interval:
            return {}
        rows = self.cluster_losses.end_interval(batch)
        if self.cluster_losses.num_clusters > LOGGED_CLUSTERS:
            return {}
        return {f"loss/cluster/{self.cluster_losses.name_of(cluster)}": loss for _, _, cluster, _, _, loss in rows}

    def _component_metrics(self, components: ComponentAccount, phase: int) -> dict[str, float]:
        """Share served and mean loss of each component since its phase began, by its number there."""
        counts = components.of_phase(phase)
        total = sum(each.windows for each in counts)
        metrics: dict[str, float] = {}
        for number, each in enumerate(counts):
            metrics[f"mixture/component/{number + 1}"] = each.windows / max(total, 1.0)
            if each.loss is not None:
                metrics[f"loss/component/{number + 1}"] = each.loss
        return metrics

    def state_dict(self) -> dict[str, Any]:
        saved: dict[str, Any] = {"served": self.served.state_dict(), "seconds": dict(self._seconds)}
        if self.cluster_losses is not None:
            saved["cluster_losses"] = self.cluster_losses.state_dict()
        if self.components is not None:
            saved["components"] = self.components.state_dict()
        return saved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.served.load_state_dict(state["served"])
        self._seconds = dict(state["seconds"])
        if self.cluster_losses is not None and "cluster_losses" in state:
            self.cluster_losses.load_state_dict(state["cluster_losses"])
        if self.components is not None and "components" in state:
            self.components.load_state_dict(state["components"])
