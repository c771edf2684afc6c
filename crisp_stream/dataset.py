"""MixtureDataset: the sample order and the reader as a torch IterableDataset.

Not a subclass of `streaming.StreamingDataset`, whose plan is as long as an epoch, which was measured to spend 230 µs
of CPU per sample (this one: 5), and which lives on machine-global shared memory. Every process computes its own part
of the order; nothing is shared but the cache folder.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from crisp_stream.errors import InputError, ResumeError
from crisp_stream.format import open_dataset
from crisp_stream.mixture import Mixture
from crisp_stream.order import ORDER_VERSION, SampleOrder
from crisp_stream.reader import WindowReader

PREFETCH_WINDOWS = 4096
IGNORED_LABEL = -100

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Where a process stands among all ranks."""

    rank: int
    world_size: int
    ranks_per_node: int

    @classmethod
    def current(cls) -> Topology:
        """From torch.distributed when initialised, else from RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, else a single process.

        Raises:
            InputError: values that contradict each other.
        """
        if distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        if not 0 <= rank < world_size or ranks_per_node < 1 or world_size % ranks_per_node:
            raise InputError(
                f"rank {rank} of {world_size} with {ranks_per_node} per node is not a topology. "
                "Check RANK, WORLD_SIZE and LOCAL_WORLD_SIZE."
            )
        return cls(rank=rank, world_size=world_size, ranks_per_node=ranks_per_node)

    def positions(self, start: int, batch_size: int) -> NDArray[np.int64]:
        """[batch_size]: this rank's positions in the global batch that starts at `start`.

        Position i goes to node i mod num_nodes, then to rank (i // num_nodes) mod ranks_per_node of that node.
        """
        num_nodes = self.world_size // self.ranks_per_node
        node, local_rank = divmod(self.rank, self.ranks_per_node)
        positions = np.arange(start, start + batch_size * self.world_size, dtype=np.int64)
        own = (positions % num_nodes == node) & (positions // num_nodes % self.ranks_per_node == local_rank)
        return positions[own]


class MixtureDataset(IterableDataset[dict[str, Any]]):
    """Samples of a dataset in the proportions of a mixture: exact, elastic, resumable.

    Iterating yields this rank's samples (or batches) from the current position to the end of the mixture. A last
    global batch that cannot be filled is left out. With DataLoader workers, worker w makes every num_workers-th
    batch, so the order of batches does not depend on their number.
    """

    def __init__(
        self,
        remote: str | Path,
        mixture: Mixture,
        *,
        batch_size: int,
        seed: int = 0,
        local: str | Path | None = None,
        cache_limit: int | None = None,
        yield_batches: bool = False,
        timeout: float = 120.0,
    ) -> None:
        """Args:
            remote: dataset root, a local folder (read in place) or s3://, gs://, az://, https:// prefix.
            mixture: proportions and phases.
            batch_size: samples per batch of this rank; the global batch is that times the number of ranks.
            seed: of the sample order.
            local: cache folder for a remote root; the user's cache folder when None.
            cache_limit: bytes that the cache may hold; no limit when None.
            yield_batches: yield whole batches, for `DataLoader(dataset, batch_size=None)`, instead of samples.
            timeout: seconds after which a failing or stalled read is raised.

        Raises:
            FormatError, StorageError: the root cannot be opened.
            InputError: the mixture does not fit the dataset, or batch_size < 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}.")
        self.dataset = open_dataset(remote, timeout=timeout)
        self.mixture = mixture
        self.batch_size = batch_size
        self.seed = seed
        self.topology = Topology.current()
        self._local, self._cache_limit, self._timeout = local, cache_limit, timeout
        self._yield_batches = yield_batches
        self._leaf_proportions = mixture.leaf_proportions(self.dataset)
        self._start = 0
        self._readers: list[WindowReader] = []

    def order(self) -> SampleOrder:
        """The sample order that this dataset follows, from position 0."""
        samples = [phase.samples for phase in self.mixture.phases]
        return SampleOrder(
            self.dataset.leaves.astype(np.int64),
            self.dataset.windows_per_leaf,
            list(zip(self._leaf_proportions, samples, strict=True)),
            seed=self.seed,
            draw=self.mixture.draw,
        )

    @property
    def bytes_read(self) -> int:
        """Bytes read from the root by this process (DataLoader workers count their own)."""
        return sum(reader.bytes_read for reader in self._readers)

    @property
    def requests(self) -> int:
        """Requests made to a remote root by this process (DataLoader workers count their own)."""
        return sum(reader.requests for reader in self._readers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": []}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        with WindowReader(
            self.dataset, local=self._local, cache_limit=self._cache_limit, timeout=self._timeout
        ) as reader:
            self._readers.append(reader)
            for window_ids in self._batches(reader, first, step):
                batch = self._batch(window_ids, reader.read(window_ids))
                if self._yield_batches:
                    yield batch
                else:
                    yield from self._samples(batch)

    def _batches(self, reader: WindowReader, first: int, step: int) -> Iterator[NDArray[np.int64]]:
        """Window ids of this worker's batches; reading ahead is started in groups that grow, so that the first batch is
        not kept waiting and later requests can be joined."""
        order = self.order()
        global_batch_size = self.batch_size * self.topology.world_size
        num_batches = None
        if order.num_samples is not None:
            num_batches, left = divmod(order.num_samples - self._start, global_batch_size)
            if left:
                log.warning(
                    "the last %d samples of the mixture do not fill a global batch of %d", left, global_batch_size
                )
        waiting: deque[NDArray[np.int64]] = deque()
        next_batch, group = first, 1
        ahead = max(1, PREFETCH_WINDOWS // self.batch_size)
        while True:
            while len(waiting) < ahead and (num_batches is None or next_batch < num_batches):
                numbers = [next_batch + step * k for k in range(group)]
                numbers = [number for number in numbers if num_batches is None or number < num_batches]
                starts = [self._start + number * global_batch_size for number in numbers]
                positions = np.concatenate([self.topology.positions(start, self.batch_size) for start in starts])
                window_ids = order.window_ids(positions)
                reader.prefetch(window_ids)
                waiting.extend(np.split(window_ids, len(numbers)))
                next_batch += step * len(numbers)
                if group < ahead:
                    group *= 2
                    break  # hand out the first batches before reading further ahead
            if not waiting:
                return
            yield waiting.popleft()

    def _batch(self, window_ids: NDArray[np.int64], samples: NDArray[Any]) -> dict[str, torch.Tensor]:
        input_ids = torch.from_numpy(samples["tokens"].astype(np.int64))
        labels = input_ids.clone()
        if self.dataset.manifest.packing == "document":
            is_eot = input_ids == self.dataset.manifest.tokenizer.eot_id
            labels[(is_eot.cumsum(dim=1) - is_eot.long()) > 0] = IGNORED_LABEL
        return {
            "input_ids": input_ids,
            "labels": labels,
            "cluster": torch.from_numpy(samples["cluster"].astype(np.int64)),
            "window": torch.from_numpy(window_ids),
        }

    def _samples(self, batch: dict[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
        for row in range(self.batch_size):
            yield {
                "input_ids": batch["input_ids"][row],
                "labels": batch["labels"][row],
                "cluster": int(batch["cluster"][row]),
                "window": int(batch["window"][row]),
            }

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where training stands, to be saved with a checkpoint.

        Args:
            num_samples: samples that all ranks have trained on.
            from_beginning: counted from position 0, else from where this dataset started.
        """
        position = num_samples if from_beginning else self._start + num_samples
        return {"position": position, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "dataset": self.dataset.manifest.fingerprint,
            "mixture": self.mixture.fingerprint,
        }

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Continue from a saved state; call before iterating. Any number of nodes, ranks and workers may continue it.

        Raises:
            ResumeError: the state belongs to another dataset, mixture, seed or order version, or is not a state.
        """
        if not isinstance(obj.get("position"), int) or obj["position"] < 0:
            raise ResumeError(
                f"not a state of MixtureDataset: position must be an integer >= 0, got {obj.get('position')!r}."
            )
        changed = [(key, obj.get(key), now) for key, now in self._identity().items() if obj.get(key) != now]
        if changed:
            parts = "; ".join(f"{key} was {str(then)[:12]}, is {str(now)[:12]}" for key, then, now in changed)
            raise ResumeError(
                f"cannot resume: {parts}. Resume with what the checkpoint was trained with, "
                "or start a new run from its weights (load_weights_only)."
            )
        self._start = obj["position"]
