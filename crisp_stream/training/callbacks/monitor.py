"""What a run says of itself while it trains, as metrics of Composer's Logger, so that every logger has them.

Everything is exact and over all ranks. The mixture is compared in the counts that RunAccount keeps of every leaf; from
these come repeated windows, too: no window comes again before its leaf is exhausted, so what a leaf served beyond its
windows are repeats. That needs no set of the ids that were seen, which after 10^8 samples would hold gigabytes.

Two small all-reduces per batch: the slowest rank's wait for data, and the losses by cluster. So every rank holds the
same numbers, they travel in the checkpoint, and another number of ranks goes on with them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.training.callbacks.cluster_losses import WindowLosses
from crisp_stream.training.callbacks.held_out import RunAccount
from crisp_stream.training.run_report import samples_per_phase

_CSV_ROWS = 1 << 16
"""Most rows of cluster_losses.csv; longer runs get longer intervals."""

_LOGGED_CLUSTERS = 256
"""Trees with more level-1 clusters have their losses in cluster_losses.csv alone, not as metrics."""

_FEW_LEAVES = 1 << 20
"""Up to here the mixture error is computed at every log_interval (10 to 30 ms at 2^20 leaves), beyond it at every
sixteenth."""


class TimedLoader(DataLoader[dict[str, torch.Tensor]]):
    """A DataLoader that adds up how long it was waited for."""

    waited = 0.0
    """Seconds that this rank has spent in `next`."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch


class ServedMixture:
    """How far the windows served lie from the mixture asked for: since the start, and within each phase.

    Total variation between leaf frequencies, in [0, 1].
    """

    def __init__(self, mixture: Mixture, dataset: Dataset, *, position: int = 0) -> None:
        """Args:
        position: where in the order of samples the run began; of phases before it nothing was served here.
        """
        self._mixture, self._dataset = mixture, dataset
        self.position = position
        """Where the counts that are compared begin."""
        self._served_before = np.zeros(len(dataset.leaves), np.int64)
        self._asked_before: NDArray[np.float64] | None = None
        self._proportions: tuple[int, NDArray[np.float64]] | None = None
        ends = np.cumsum([phase.samples or 0 for phase in mixture.phases]).tolist()
        self._ends = [end if phase.samples else None for phase, end in zip(mixture.phases, ends, strict=True)]
        self._finished: list[float | None] = [None for end in self._ends if end is not None and end <= position]

    @property
    def phase(self) -> int:
        """Number of the phase that is being served, from 0."""
        return min(len(self._finished), len(self._ends) - 1)

    def advance(self, served_per_leaf: NDArray[np.int64], samples: int) -> None:
        """Note the ends of phases. Called at the start and after every batch: phases end between batches.

        Args:
            served_per_leaf: [num_leaves], windows since the start of the run.
            samples: their sum.
        """
        while (end := self._next_end()) is not None and end <= self.position + samples:
            # Beyond its end a phase can only be where a checkpoint of other phases is continued.
            self._finished.append(self._phase_error(served_per_leaf) if end == self.position + samples else None)
            self._served_before = served_per_leaf.copy()
            self._asked_before = None

    def _next_end(self) -> int | None:
        """Position at which the phase that is being served ends; None: at no known one, or it was the last."""
        return self._ends[len(self._finished)] if len(self._finished) < len(self._ends) else None

    def error(self, served_per_leaf: NDArray[np.int64]) -> float:
        """Since the start of the run, over phases: against the sum of what each of them asked for."""
        samples = int(served_per_leaf.sum())
        per_phase = samples_per_phase(self._mixture, self.position, samples)
        current = self.phase
        if self._asked_before is None:
            self._asked_before = np.zeros(len(served_per_leaf))
            for index in range(current):
                self._asked_before += per_phase[index] * self._proportions_of(index)
        asked = self._asked_before + per_phase[current] * self._proportions_of(current)
        return float(np.abs(served_per_leaf - asked).sum() / (2 * max(samples, 1)))

    def errors_of_phases(self, served_per_leaf: NDArray[np.int64]) -> dict[int, float]:
        """Of every phase that was served from: its error, of the last one so far."""
        errors = {index: error for index, error in enumerate(self._finished) if error is not None}
        if len(self._finished) < len(self._ends) and not np.array_equal(served_per_leaf, self._served_before):
            errors[self.phase] = self._phase_error(served_per_leaf)
        return errors

    def _phase_error(self, served_per_leaf: NDArray[np.int64]) -> float:
        served = served_per_leaf - self._served_before
        samples = max(int(served.sum()), 1)
        return float(np.abs(served - samples * self._proportions_of(self.phase)).sum() / (2 * samples))

    def _proportions_of(self, index: int) -> NDArray[np.float64]:
        if self._proportions is None or self._proportions[0] != index:
            self._proportions = (index, self._mixture.proportions_of_phase(index, self._dataset))
        return self._proportions[1]

    def state_dict(self) -> dict[str, Any]:
        """Finished phases, and what had been served when the last of them ended."""
        rows = np.flatnonzero(self._served_before)
        return {
            "finished": list(self._finished),
            "leaves": torch.from_numpy(self._dataset.leaves[rows].astype(np.int64)),
            "served_before": torch.from_numpy(self._served_before[rows]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._finished = list(state["finished"])
        rows = np.searchsorted(self._dataset.leaves, state["leaves"].numpy())
        self._served_before[:] = 0
        self._served_before[rows] = state["served_before"].numpy()


class ClusterLosses:
    """Loss by level-1 cluster, summed over intervals of batches."""

    def __init__(self, dataset: Dataset, *, first_batch: int, last_batch: int, log_interval: int) -> None:
        """Args:
        first_batch: of the run.
        last_batch: of the run.
        log_interval: batches.
        """
        manifest = dataset.manifest
        self.num_clusters = manifest.arity
        self.leaves_per_cluster = manifest.arity ** (manifest.depth - 1)
        shortest = -(-(last_batch + 1 - first_batch) * self.num_clusters // _CSV_ROWS)
        self.interval = -(-max(shortest, 1) // log_interval) * log_interval
        """Batches that are summed up, a multiple of `log_interval`."""
        self.rows: list[tuple[int, int, int, int, int, float]] = []
        """(first batch, last batch, cluster, windows, predicted tokens, mean loss in nats per token)."""
        self._sums = np.zeros((self.num_clusters, 3))
        self._first_batch = first_batch

    def add(self, sums: NDArray[np.float64]) -> None:
        """Add a batch: [num_clusters, 3] windows, predicted tokens, summed loss in nats."""
        self._sums += sums

    def end_interval(self, batch: int) -> list[tuple[int, int, int, int, int, float]]:
        """Close the interval whose last batch this is; its rows."""
        rows = self._open_rows(batch)
        self.rows += rows
        self._sums[:] = 0.0
        self._first_batch = batch + 1
        return rows

    def csv(self, batch: int) -> str:
        """cluster_losses.csv after a batch, with the interval that is still open."""
        lines = ["first_batch,last_batch,cluster,windows,tokens,loss"]
        lines += [
            f"{first},{last},{cluster},{windows},{tokens},{loss!r}"
            for first, last, cluster, windows, tokens, loss in [*self.rows, *self._open_rows(batch)]
        ]
        return "\n".join([*lines, ""])

    def _open_rows(self, batch: int) -> list[tuple[int, int, int, int, int, float]]:
        hit = np.flatnonzero(self._sums[:, 1])
        numbers = [(int(cluster), *self._sums[cluster].tolist()) for cluster in hit]
        return [
            (self._first_batch, batch, cluster, int(windows), int(tokens), loss / tokens)
            for cluster, windows, tokens, loss in numbers
        ]

    def state_dict(self) -> dict[str, Any]:
        """All rows as one tensor, and the open interval."""
        rows = torch.tensor(self.rows, dtype=torch.float64).view(-1, 6)
        return {"rows": rows, "sums": torch.from_numpy(self._sums.copy()), "first_batch": self._first_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.rows = [(*map(int, row[:5]), row[5]) for row in state["rows"].tolist()]  # pyright: ignore[reportAttributeAccessIssue]
        self._sums[:] = state["sums"].numpy()
        self._first_batch = int(state["first_batch"])


class RunMonitor(Callback):
    """Mixture error, repeated windows, loss by cluster, bytes, requests and waits, logged while the run goes on."""

    def __init__(
        self,
        account: RunAccount,
        mixture: Mixture,
        dataset: Dataset,
        loader: TimedLoader,
        *,
        num_batches: int,
        log_interval: int,
        window_losses: WindowLosses | None,
    ) -> None:
        """Args:
        account: whose counts are looked at; it goes before this among the callbacks.
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
        """When last measured, on rank 0."""
        self.wait_share = 0.0
        """Of the last batch: share of its time that the slowest rank waited for the loader."""
        self._account, self._loader, self._window_losses = account, loader, window_losses
        self._windows_per_leaf = dataset.windows_per_leaf
        self._log_interval, self._num_batches = log_interval, num_batches
        self._error_interval = log_interval * (1 if len(dataset.leaves) <= _FEW_LEAVES else 16)
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
        """Share of the samples so far whose window had been served before in this run."""
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
        mine = torch.tensor([waited - self._marks[1]], dtype=torch.float64)
        slowest = state.device.tensor_to_device(mine)
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
        if self.cluster_losses.num_clusters > _LOGGED_CLUSTERS:
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
