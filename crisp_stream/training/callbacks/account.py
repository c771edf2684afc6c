"""Keep the account of a run: losses, the clusters that it was served, bytes read.

One small all-gather per batch collects every rank's cluster and window ids and counters. So every rank holds the
account of the whole run, it travels in the checkpoint, and a run resumed on another number of ranks continues it.
(Summing only when a checkpoint is due would save microseconds and would tie the account to the number of ranks.)
It is started before the step and read after it, when the trainer has waited for the device anyway.
"""

from __future__ import annotations

import resource
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch.distributed
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from numpy.typing import NDArray

from crisp_stream.format.sources import Sources
from crisp_stream.loading.batches import SOURCE
from crisp_stream.loading.mixture_dataset import MixtureDataset
from crisp_stream.training.start import RunStart


class RunAccount(Callback):
    """Losses, learning rates, served clusters, bytes, requests, time: of the whole run, resumed parts included."""

    def __init__(self, sources: Sources, reads: MixtureDataset, *, start: RunStart, log_windows: bool = False) -> None:
        """Args:
        sources: what the run is served from.
        reads: the stream whose counters are added up.
        start: counts at which the run began, and at which the account begins.
        log_windows: also keep the window ids of every batch.
        """
        self.sources = sources
        self.start = start
        self.served_per_leaf: NDArray[np.int64] = np.zeros(int(sources.first_rows[-1]), np.int64)
        """[num_leaves], windows served of each leaf; of several sources one after the other."""
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.windows_per_batch: list[list[int]] | None = [] if log_windows else None
        """Sorted window numbers of every batch: those of a dataset are its window ids, and those of several sources
        count the windows of one after the other."""
        self.resumed_at: int | None = None
        self._reads = reads
        self._before = dict.fromkeys(("bytes_read", "requests", "wall_seconds", "cpu_seconds"), 0.0)
        self._session = dict(self._before)
        self._device_seconds: dict[str, float] | None = {}  # of the parts before this one
        self._device = "CPU"
        self._started = time.monotonic()
        self._cpu_started = cpu_seconds()
        self._gathering: tuple[torch.Tensor, torch.distributed.Work | None] | None = None

    @property
    def totals(self) -> dict[str, float]:
        """`bytes_read`, `requests`, `cpu_seconds` over all ranks and `wall_seconds`, resumed parts included."""
        return {name: self._before[name] + self._session[name] for name in self._before}

    @property
    def device_seconds(self) -> dict[str, float] | None:
        """`wall_seconds` times the number of processes, by the device's name, resumed parts on any number of processes
        included; None where a part was saved without."""
        before = self._device_seconds
        if before is None:
            return None
        seconds = self._session["wall_seconds"] * dist.get_world_size()
        return {**before, self._device: before.get(self._device, 0.0) + seconds}

    def fit_start(self, state: State, logger: Logger) -> None:
        self._started = time.monotonic()
        self._device = torch.cuda.get_device_name() if state.device.name == "gpu" else state.device.name.upper()
        if int(state.timestamp.batch) > self.start.batch:
            self.resumed_at = int(state.timestamp.batch)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        batch, columns = state.batch, ["cluster", "window", *([SOURCE] if self.sources.is_named else [])]
        counters = [self._reads.bytes_read, self._reads.requests, int(1000 * (cpu_seconds() - self._cpu_started))]
        local = torch.cat([*(batch[column].to(torch.int64) for column in columns), torch.tensor(counters)])
        self._gathering = _start_gathering(local, state)

    def _account_batch(self) -> None:
        """Add what all ranks were served in the batch that has just ended."""
        assert self._gathering is not None
        gathered, work = self._gathering
        if work is not None:
            work.wait()
        ranks = gathered.cpu().numpy()  # [world_size, 2 or, with sources, 3 x windows per rank + 3]
        samples, counters = np.split(ranks, [ranks.shape[1] - 3], axis=1)
        clusters, windows, *sources = (part.ravel() for part in np.split(samples, 2 + self.sources.is_named, axis=1))
        source = sources[0] if sources else None
        np.add.at(self.served_per_leaf, self.sources.rows_of(clusters, source), 1)
        bytes_read, requests, cpu_milliseconds = counters.sum(axis=0).tolist()
        self._session |= {"bytes_read": bytes_read, "requests": requests, "cpu_seconds": cpu_milliseconds / 1000}
        if self.windows_per_batch is not None:
            first = 0 if source is None else self.sources.first_windows[source]
            self.windows_per_batch.append(sorted((windows + first).tolist()))

    def batch_start(self, state: State, logger: Logger) -> None:
        self.learning_rates.append(float(state.optimizers[0].param_groups[0]["lr"]))

    def batch_end(self, state: State, logger: Logger) -> None:
        self._account_batch()
        self.losses.append(float(state.total_loss_dict["loss/train/total"]))
        self._session["wall_seconds"] = time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        served = np.flatnonzero(self.served_per_leaf)
        leaves, source = self.sources.leaves_of(served)
        saved: dict[str, Any] = {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "learning_rates": torch.tensor(self.learning_rates, dtype=torch.float64),
            "served_leaves": torch.from_numpy(leaves),
            "served_windows": torch.from_numpy(self.served_per_leaf[served]),
            "totals": self.totals,
            "device_seconds": self.device_seconds,
            "start": asdict(self.start),
        }
        if self.sources.is_named:
            saved["served_sources"] = torch.from_numpy(source)
        if self.windows_per_batch is not None:
            saved["windows_per_batch"] = self.windows_per_batch
        return saved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"].tolist()
        self.learning_rates = state["learning_rates"].tolist()
        source = (
            state["served_sources"].numpy() if "served_sources" in state else None
        )  # None: of one dataset, the first
        rows = self.sources.rows_of(state["served_leaves"].numpy(), source)
        self.served_per_leaf[rows] = state["served_windows"].numpy()
        self._before = dict(state["totals"])
        self._device_seconds = state.get("device_seconds")
        self.start = RunStart(**state.get("start", {}))
        if self.windows_per_batch is not None:
            self.windows_per_batch = [list(windows) for windows in state.get("windows_per_batch", [])]


def _start_gathering(local: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.distributed.Work | None]:
    """Start collecting a vector of every rank: [world_size, len(local)], complete after `Work.wait`.

    It stays on the device, so that a GPU's process need not wait for it.
    """
    world_size = dist.get_world_size()
    if world_size == 1:
        return local[None], None
    sent = state.device.tensor_to_device(local)
    gathered = torch.empty(world_size * len(local), dtype=local.dtype, device=sent.device)
    work = torch.distributed.all_gather_into_tensor(gathered, sent, async_op=True)
    return gathered.view(world_size, len(local)), work


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
