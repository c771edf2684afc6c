"""What a run keeps of itself: losses, which clusters it was really served, bytes read, held-out perplexity, progress.

One small all-gather per batch collects every rank's cluster and window ids and counters. So every rank holds the
account of the whole run, it travels in the checkpoint, and a run resumed on another number of ranks continues it.
(Summing only when a checkpoint is due would save microseconds and would tie the account to the number of ranks.)
It is started before the step and read after it, when the trainer has waited for the device anyway.
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch
import torch.distributed
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.misc import create_interval_scheduler
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset, get_worker_info

from crisp_stream.evaluation.perplexity import encode_texts, in_batches, row_losses
from crisp_stream.loading.mixture_dataset import MixtureDataset
from crisp_stream.models.checkpoint import LoadedGPT
from crisp_stream.training.start import START_KEY, RunStart

if TYPE_CHECKING:
    from crisp_stream.training.callbacks.monitor import RunMonitor

_REFRESH_SECONDS = 0.2


class CountedStream(IterableDataset[dict[str, torch.Tensor]]):
    """A MixtureDataset whose read counters are visible in the training process, also from DataLoader workers."""

    def __init__(self, stream: MixtureDataset, *, num_workers: int, start: RunStart) -> None:
        self.stream = stream
        self._start = start
        self._counters = torch.zeros((max(num_workers, 1), 2), dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        own = self._counters[0 if worker is None else worker.id]
        for batch in self.stream:
            own[0], own[1] = self.stream.bytes_read, self.stream.requests
            yield batch

    @property
    def bytes_read(self) -> int:
        """Bytes read from storage by this rank."""
        return int(self._counters[:, 0].sum())

    @property
    def requests(self) -> int:
        """Requests to storage by this rank."""
        return int(self._counters[:, 1].sum())

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """As MixtureDataset.state_dict; Composer calls it at every checkpoint, with the samples of its own count."""
        position = num_samples - self._start.samples + self._start.position
        return {**self.stream.state_dict(position, from_beginning), START_KEY: asdict(self._start)}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """As MixtureDataset.load_state_dict; Composer calls it before iterating. Raises ResumeError."""
        self.stream.load_state_dict({key: value for key, value in obj.items() if key != START_KEY})


class MeanOfShardedGradients(Algorithm):
    """Divides sharded gradients where the backend sums what it was asked to average.

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


class RunAccount(Callback):
    """Losses, learning rates, served clusters, bytes, requests, time: of the whole run, resumed parts included."""

    def __init__(
        self, leaves: NDArray[np.uint32], reads: CountedStream, *, start: RunStart, log_windows: bool = False
    ) -> None:
        """Args:
        leaves: [num_leaves], sorted ids of the dataset's leaves.
        reads: the dataset whose counters are added up.
        start: where the run began to count, which is where the account begins.
        log_windows: also keep the window ids of every batch.
        """
        self.leaves = leaves
        self.start = start
        self.served_per_leaf = np.zeros(len(leaves), np.int64)
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.windows_per_batch: list[list[int]] | None = [] if log_windows else None
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
        own = self._session["wall_seconds"] * dist.get_world_size()
        return {**before, self._device: before.get(self._device, 0.0) + own}

    def fit_start(self, state: State, logger: Logger) -> None:
        self._started = time.monotonic()
        self._device = torch.cuda.get_device_name() if state.device.name == "gpu" else state.device.name.upper()
        if int(state.timestamp.batch) > self.start.batch:
            self.resumed_at = int(state.timestamp.batch)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        clusters, windows = state.batch["cluster"], state.batch["window"]
        counters = [self._reads.bytes_read, self._reads.requests, int(1000 * (cpu_seconds() - self._cpu_started))]
        local = torch.cat([clusters.to(torch.int64), windows.to(torch.int64), torch.tensor(counters)])
        self._gathering = _start_gathering(local, state)

    def _account_batch(self) -> None:
        """Add what all ranks were served in the batch that has just ended."""
        assert self._gathering is not None
        gathered, work = self._gathering
        if work is not None:
            work.wait()
        ranks = gathered.cpu().numpy()  # [world_size, 2 x windows per rank + 3]
        clusters, windows, counters = np.split(ranks, [(ranks.shape[1] - 3) // 2, ranks.shape[1] - 3], axis=1)
        np.add.at(self.served_per_leaf, np.searchsorted(self.leaves, clusters.ravel()), 1)
        bytes_read, requests, cpu_milliseconds = counters.sum(axis=0).tolist()
        self._session |= {"bytes_read": bytes_read, "requests": requests, "cpu_seconds": cpu_milliseconds / 1000}
        if self.windows_per_batch is not None:
            self.windows_per_batch.append(sorted(windows.ravel().tolist()))

    def batch_start(self, state: State, logger: Logger) -> None:
        self.learning_rates.append(float(state.optimizers[0].param_groups[0]["lr"]))

    def batch_end(self, state: State, logger: Logger) -> None:
        self._account_batch()
        self.losses.append(float(state.total_loss_dict["loss/train/total"]))
        self._session["wall_seconds"] = time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        served = np.flatnonzero(self.served_per_leaf)
        saved: dict[str, Any] = {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "learning_rates": torch.tensor(self.learning_rates, dtype=torch.float64),
            "served_leaves": torch.from_numpy(self.leaves[served].astype(np.int64)),
            "served_windows": torch.from_numpy(self.served_per_leaf[served]),
            "totals": self.totals,
            "device_seconds": self.device_seconds,
            "start": asdict(self.start),
        }
        if self.windows_per_batch is not None:
            saved["windows_per_batch"] = self.windows_per_batch
        return saved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"].tolist()
        self.learning_rates = state["learning_rates"].tolist()
        at = np.searchsorted(self.leaves, state["served_leaves"].numpy())
        self.served_per_leaf[at] = state["served_windows"].numpy()
        self._before = dict(state["totals"])
        self._device_seconds = state.get("device_seconds")
        self.start = RunStart(**state.get("start", {}))
        if self.windows_per_batch is not None:
            self.windows_per_batch = [list(windows) for windows in state.get("windows_per_batch", [])]


class Progress(Callback):
    """Where the run stands, on rank 0: one line that keeps up on a terminal, one line every few batches elsewhere.

    Composer's own bar prints its configuration first and its console logger a block of lines per interval.
    """

    def __init__(
        self,
        *,
        num_batches: int,
        log_interval: int,
        monitor: RunMonitor | None = None,
        stream: TextIO | None = None,
    ) -> None:
        """Args:
        num_batches: length of the run.
        log_interval: batches between lines without a terminal; the last batch always has one.
        monitor: whose mixture error and wait for data are shown, too; it goes before this among the callbacks.
        stream: where to; standard error when None.
        """
        self._num_batches = num_batches
        self._log_interval = log_interval
        self._monitor = monitor
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._started = (0.0, 0, 0)
        self._printed_at = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._started = (time.monotonic(), int(state.timestamp.token), int(state.timestamp.batch))

    def batch_end(self, state: State, logger: Logger) -> None:
        batch, now = int(state.timestamp.batch), time.monotonic()
        last = batch == self._num_batches
        due = now - self._printed_at > _REFRESH_SECONDS if self._terminal else batch % self._log_interval == 0
        if dist.get_global_rank() or not (due or last):
            return
        self._printed_at = now
        started, first_tokens, first_batch = self._started
        seconds = max(now - started, 1e-9)
        tokens = int(state.timestamp.token)
        minutes_left, seconds_left = divmod(round((self._num_batches - batch) * seconds / (batch - first_batch)), 60)
        line = (
            f"batch {batch:,}/{self._num_batches:,}  loss {float(state.total_loss_dict['loss/train/total']):.4f}"
            f"  {tokens:,} tokens  {(tokens - first_tokens) / seconds:,.0f} tokens/s"
            f"  {minutes_left}:{seconds_left:02d} left"
        )
        if self._monitor is not None:
            line += f"  mixture error {self._monitor.mixture_error:.4f}  waiting {self._monitor.wait_share:.1%}"
        if self._terminal:  # a longer line would wrap, and then stay
            line = line[: shutil.get_terminal_size().columns - 1]
        start, end = ("\r\x1b[K", "\n" if last else "") if self._terminal else ("", "\n")
        print(start + line, end=end, file=self._stream, flush=True)


class RecipeRates(Callback):
    """Learning rate, betas and weight decay are those of the recipe, also after a checkpoint with others was loaded.

    A loaded optimiser brings the values it was saved with, so a recipe's new learning rate would be ignored silently.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]

    def after_load(self, state: State, logger: Logger) -> None:
        groups = state.optimizers[0].param_groups
        for group, own in zip(groups, self._groups, strict=True):
            group.update(own, initial_lr=own["lr"])
        now = state.timestamp
        batch, token = int(now.batch), int(now.token)
        if batch:  # Composer's rate of a batch is that of the count before the batch that came before it
            state.timestamp = now.copy(batch=batch - 1, token=token - token // batch)
        for scheduler in state.schedulers:
            assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
            scheduler.base_lrs = [own["lr"] for own in self._groups]
            for group, own, share_at in zip(groups, self._groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = own["lr"] * share_at(scheduler.last_epoch)
        state.timestamp = now


class HeldOutPerplexity(Callback):
    """The paper's perplexity on held-out text, every so often and at the end; all ranks share the work."""

    def __init__(self, loaded: LoadedGPT, texts: Sequence[str], *, interval: str, batch_size: int) -> None:
        """Args:
        loaded: the model in training, with its tokenizer.
        texts: the held-out examples.
        interval: as `eval_interval` of a recipe.
        batch_size: full contexts per forward pass.
        """
        self.measured: list[tuple[int, float]] = []
        """(batch, perplexity) of each measurement."""
        self._due = create_interval_scheduler(interval, checkpoint_events=False, final_events={Event.BATCH_END})
        encoded = encode_texts(loaded, texts)
        self._tokens_per_example = np.array([text.num_tokens for text in encoded])
        rows = ((example, row) for example, text in enumerate(encoded) for row in text.rows)
        n_positions = int(loaded.gpt.config.n_positions)
        self._batches = list(in_batches(rows, batch_size=batch_size, n_positions=n_positions))

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self._due(state, Event.BATCH_END):
            return
        wrapped = state.model.module if isinstance(state.model, DistributedDataParallel) else state.model
        gpt = wrapped.model
        assert isinstance(gpt, torch.nn.Module)
        loss_sums = np.zeros(len(self._tokens_per_example))
        world, rank = dist.get_world_size(), dist.get_global_rank()
        gpt.eval()
        for first in range(0, len(self._batches), world):
            # A sharded model needs every rank in every forward pass: a rank without a batch repeats the first.
            mine = first + rank
            batch = self._batches[mine if mine < len(self._batches) else 0]
            sums = row_losses(gpt, [row for _, row in batch], device=next(gpt.parameters()).device)
            if mine < len(self._batches):
                np.add.at(loss_sums, [example for example, _ in batch], sums)
        gpt.train()
        gathered = dist.all_gather(state.device.tensor_to_device(torch.from_numpy(loss_sums)))
        summed = torch.stack([part.cpu() for part in gathered]).sum(dim=0).numpy()
        kept = self._tokens_per_example > 0
        perplexity = math.exp((summed[kept] / self._tokens_per_example[kept]).mean())
        self.measured.append((int(state.timestamp.batch), perplexity))
        logger.log_metrics({"metrics/eval/perplexity": perplexity})
        if rank == 0:
            print(
                f"batch {int(state.timestamp.batch):,}  held-out perplexity {perplexity:.3f}",
                file=sys.stderr,
                flush=True,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = [(int(batch), float(perplexity)) for batch, perplexity in state["measured"]]


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


def total_variation(served_per_leaf: NDArray[np.int64], asked: NDArray[np.float64]) -> float:
    """Half the L1 distance between served and asked leaf frequencies, in [0, 1].

    Args:
        served_per_leaf: [num_leaves], windows.
        asked: [num_leaves], sums to 1.
    """
    total = int(served_per_leaf.sum())
    return math.nan if total == 0 else float(np.abs(served_per_leaf / total - asked).sum() / 2)
