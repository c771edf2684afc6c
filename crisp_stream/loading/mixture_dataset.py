"""MixtureDataset: the sample order and the reader as a torch IterableDataset.

Not a subclass of `streaming.StreamingDataset`, whose plan is as long as an epoch, which was measured to spend 230 µs
of CPU per sample (this one: 4), and which lives on machine-global shared memory. Every process computes its own part
of the order; ranks share nothing but the cache folder.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from crisp_stream.errors import InputError, StorageError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.loading.batches import PackedBatch, tensors
from crisp_stream.loading.continuation import PhaseRecords, check_identity
from crisp_stream.loading.control import Control
from crisp_stream.loading.reader import ReadOptions, Ticket, WindowReader
from crisp_stream.loading.ring import Ring, made_ring
from crisp_stream.loading.runs import RunPlan
from crisp_stream.loading.stream import Stream, apply_change, encode_change
from crisp_stream.loading.topology import Topology, agreed
from crisp_stream.order.draws import Int64s
from crisp_stream.order.order import ORDER_VERSION, SampleOrder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Place where the next iteration begins."""

    position: int = 0
    pass_number: int = 0
    skipped_samples: int = 0
    """Samples of the first batch that were served before."""
    in_worker: bool = False
    """Whether a DataLoader worker loaded this: then `position` is that of the worker's next batch."""


class MixtureDataset(IterableDataset[dict[str, Any]]):
    """Samples of a dataset in the proportions of a mixture: exact, elastic, resumable.

    Iterating yields this rank's samples (or batches) from the current position to the end of the mixture; iterating
    again goes on with the next pass over a mixture that has an end (no window repeats before its cluster is exhausted,
    over all passes), and begins at the same position again with an open-ended one. With DataLoader workers, worker w
    makes every num_workers-th batch, so the order of batches does not depend on their number.
    """

    def __init__(
        self,
        data: Dataset | str | Path,
        mixture: Mixture,
        *,
        batch_size: int,
        seed: int = 0,
        reading: ReadOptions | None = None,
        yield_batches: bool = False,
        replication: int = 1,
        drop_last: bool = True,
        num_samples: int | None = None,
    ) -> None:
        """Args:
            data: an opened dataset, or the root of one: a local folder (read in place) or s3://, gs://, az://, https://
                prefix, of which the newest generation is opened.
            mixture: proportions and phases.
            batch_size: samples per batch of this rank; the global batch is that times the groups of ranks.
            seed: of the sample order.
            reading: cache folder and its limit, timeout and lookahead; the defaults when None.
            yield_batches: yield whole batches, for `DataLoader(dataset, batch_size=None)`, instead of samples.
            replication: so many consecutive ranks get the same samples (a tensor-parallel group).
            drop_last: leave out a last global batch that is not full. Otherwise it is served smaller, equally large
                on all ranks; what cannot be shared equally is left out.
            num_samples: samples that training will take, over all ranks, when an open-ended mixture has a known end:
                nothing beyond is planned or fetched ahead. It never changes what is served.

        Raises:
            FormatError, StorageError: the root cannot be opened.
            InputError: the mixture does not fit the dataset, or a number is out of range.
        """
        for name, value in (("batch_size", batch_size), ("num_samples", num_samples)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}.")
        self._reading = ReadOptions() if reading is None else reading
        self.dataset = data if isinstance(data, Dataset) else open_dataset(data, timeout=self._reading.timeout)
        self.mixture = mixture
        self.batch_size = batch_size
        self.seed = seed
        self.topology = Topology.current(replication=replication)
        self._yield_batches, self._drop_last, self._num_samples = yield_batches, drop_last, num_samples
        self._stream = Stream(self.dataset, mixture, seed=seed)
        self._identity = {
            "order_version": ORDER_VERSION,
            "seed": seed,
            "dataset": self.dataset.manifest.fingerprint,
            "mixture": mixture.fingerprint,
        }
        self._phase_records = PhaseRecords(mixture, self.dataset)
        self._control = Control()
        self._start = _Start()
        self._iterations = 0
        self._served: dict[str, int] | None = None
        self._readers: list[WindowReader] = []
        self._ring: Ring | None = None

    def order(self) -> SampleOrder:
        """Return the sample order from position 0; one pass of it, where the mixture has an end."""
        return self._stream.copied_order() if self._stream.changed else self._stream.fresh_order()

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all ranks."""
        return self.batch_size * self.topology.num_replicas

    @property
    def bytes_read(self) -> int:
        """Bytes read from the root by this process (DataLoader workers count their own)."""
        return sum(reader.bytes_read for reader in self._readers)

    @property
    def requests(self) -> int:
        """Requests made to a remote root by this process (DataLoader workers count their own)."""
        return sum(reader.requests for reader in self._readers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": [], "_ring": None}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, step, key = (0, 1, 0) if worker is None else (worker.id, worker.num_workers, worker.seed - worker.id)
        self._iterations += 1
        start = self._begin_pass(worker_id, self._iterations + key)
        self._served = {"position": start.position, "samples": start.skipped_samples, "pass": start.pass_number}
        if worker_id == 0:
            self._report_tail(start.position)
        runs = RunPlan(self.dataset, *self._order_of_runs())
        reader = WindowReader(self.dataset, self._reading, runs=runs)
        self._readers.append(reader)
        manifest = self.dataset.manifest
        masked_after = manifest.tokenizer.eot_id if manifest.packing == "document" else None
        if self._ring is None and worker is not None and self._yield_batches:
            self._ring = made_ring(self.batch_size * manifest.sample_bytes)  # for all iterations of a worker that stays
        with reader:
            skipped = start.skipped_samples
            for position, window_ids, samples in self._planned(reader, runs, start.position, step):
                after = position + step * self.global_batch_size
                if not self._yield_batches:
                    yield from self._samples(tensors(window_ids, samples, masked_after), skipped, position, after)
                else:
                    self._served.update(position=after, samples=0)
                    if worker is None:
                        yield tensors(window_ids, samples, masked_after)
                    else:  # arrives as dict
                        yield PackedBatch(window_ids, samples, masked_after, self._ring)  # pyright: ignore[reportReturnType]
                skipped = 0
                self._stream.order.forget_before(max(start.position, position - self.global_batch_size))

    def _samples(
        self, batch: dict[str, torch.Tensor], skipped: int, position: int, after: int
    ) -> Iterator[dict[str, Any]]:
        assert self._served is not None
        num_samples = len(batch["window"])
        for row in range(skipped, num_samples):
            last = row == num_samples - 1
            self._served.update(position=after if last else position, samples=0 if last else row + 1)
            yield {
                "input_ids": batch["input_ids"][row],
                "labels": batch["labels"][row],
                "cluster": int(batch["cluster"][row]),
                "window": int(batch["window"][row]),
            }

    def _begin_pass(self, worker_id: int, key: int) -> _Start:
        """Begin a pass in this process; returns the place of its first batch."""
        start, end = self._start, self._stream.pass_samples
        number, at_start = self._control.begin_pass(worker_id, key, start.pass_number, loaded=start.in_worker)
        self._update_stream()
        self._stream.begin_pass(number)
        ahead = worker_id * self.global_batch_size
        if end is not None and not at_start:
            begun = _Start(position=number * end + ahead, pass_number=number)
        elif start.in_worker:
            begun = _Start(position=start.position, pass_number=number, skipped_samples=start.skipped_samples)
        else:
            skipped = start.skipped_samples if worker_id == 0 else 0  # of the first batch alone
            begun = _Start(position=start.position + ahead, pass_number=number, skipped_samples=skipped)
        if end is not None and start.in_worker:
            self._start = _Start(pass_number=number)  # a worker that stays for the next iteration
        return begun

    def _order_of_runs(self) -> tuple[SampleOrder, int | None]:
        """The order in which windows will be read, and the position where reading ends, where that is known."""
        order = self._stream.copied_order()
        if self._stream.changed or self.mixture.draw != "systematic":
            return order, None
        ends = [] if order.num_samples is None else [order.num_samples]
        if self._num_samples is not None:
            ends.append(-(-self._num_samples // self.global_batch_size) * self.global_batch_size)
        return order, min(ends, default=None)

    def _planned(
        self, reader: WindowReader, runs: RunPlan, first: int, step: int
    ) -> Iterator[tuple[int, Int64s, NDArray[Any]]]:
        """Position, window ids and samples of this process's batches.

        Groups of batches are planned ahead and fetched together; they grow, so that the first batch is not kept waiting
        and later requests can be joined.
        """
        waiting: deque[tuple[list[int], Ticket]] = deque()
        position, group, windows_ahead = first, 1, 0
        largest = max(1, self._reading.lookahead // (4 * self.batch_size))
        while True:
            while windows_ahead < self._reading.lookahead:
                starts = self._claim(runs, position, step, group, needed=not waiting)
                if not starts:
                    break
                sizes = [self._batch_size_at(start) for start in starts]
                parts = [self.topology.positions(start, size) for start, size in zip(starts, sizes, strict=True)]
                ticket = reader.prefetch(*self._stream.order.draws(np.concatenate(parts)))
                waiting.append((starts, ticket))
                windows_ahead += len(ticket.window_ids)
                position = starts[-1] + step * self.global_batch_size
                if group < largest:
                    group *= 2
                    break  # hand out the first batches before planning further ahead
            if not waiting:
                return
            starts, ticket = waiting.popleft()
            windows_ahead -= len(ticket.window_ids)
            # What was fetched is read at once, each run a single time; a local batch is read while it is in the caches.
            samples = None if self.dataset.store.is_local else reader.read_ticket(ticket)
            row = 0
            for start in starts:
                part = slice(row, row + self._batch_size_at(start))
                ids = ticket.window_ids[part]
                yield start, ids, reader.read(ids, ticket.rows[part]) if samples is None else samples[part]
                row = part.stop

    def _claim(self, runs: RunPlan, position: int, step: int, group: int, *, needed: bool) -> list[int]:
        """Claim this process's next batches, at most `group`, for the mixture as it is now known; returns their starts.

        Beyond `num_samples` only what is `needed` now: one batch.
        """
        starts = [position + number * step * self.global_batch_size for number in range(group)]
        starts = [start for start in starts if self._batch_size_at(start)]
        if self._num_samples is not None and starts and starts[-1] >= self._num_samples:
            starts = [start for start in starts if start < self._num_samples] or starts[: int(needed)]
        if starts:
            until = time.monotonic() + self._reading.timeout
            while not self._control.plan(starts[-1] + self.global_batch_size):
                if time.monotonic() > until:
                    raise StorageError(
                        f"a change of the mixture was begun but not finished within {self._reading.timeout:.0f} s. "
                        "set_proportions must be called on every rank."
                    )
                time.sleep(0.002)
        if self._update_stream():
            runs.forget_stop()
        return starts

    def _batch_size_at(self, position: int) -> int:
        """Samples of this rank in the global batch at a position; 0 at the end of the pass."""
        end = self._stream.order.num_samples
        left = self.global_batch_size if end is None else end - position
        if left >= self.global_batch_size:
            return self.batch_size
        return 0 if self._drop_last else max(0, left) // self.topology.num_replicas

    def _report_tail(self, first: int) -> None:
        """Say which samples will be left out at the end of a pass, which is served from position `first`."""
        end = self._stream.order.num_samples
        left = 0 if end is None else max(0, end - first) % self.global_batch_size
        left_out = left if self._drop_last else left % self.topology.num_replicas
        if left_out:
            log.warning(
                "the last %d samples of the mixture do not fill a global batch of %d", left_out, self.global_batch_size
            )

    def _update_stream(self) -> bool:
        records = self._control.new_records()
        for record in records:
            apply_change(record, self._stream, self.dataset)
        return bool(records)

    def set_proportions(self, histogram: Histogram, at_sample: int | None = None) -> int:
        """Follow another histogram from a future sample on, while training runs. Every rank must make the same call.

        Workers have planned ahead (`lookahead`, and what DataLoader prefetches), so the change can stand no earlier
        than the first global batch that no worker of any rank has planned. It lasts to the end of the mixture (of this
        pass) or to the next change, takes the place of phases that were to come, is part of `state_dict`, and is
        replayed exactly on resume. It has no `max_repeats`.

        Args:
            histogram: of the dataset's tree.
            at_sample: position over all ranks; the earliest possible when None.

        Returns:
            The position from which the histogram is followed.

        Raises:
            InputError: the histogram does not fit, the position is planned already or beyond the end, or ranks do
                not agree.
        """
        self._stream.check(histogram)
        self._update_stream()
        record = None
        number, end = self._control.current_pass, self._stream.pass_samples
        first = self._start.position if end is None or number in (None, self._start.pass_number) else number * end
        planned = max(self._control.hold(), first)
        try:
            ahead = -(-(planned - first) // self.global_batch_size) * self.global_batch_size
            planned = agreed(first + ahead, histogram, at_sample)
            earliest = max(planned, self._stream.last_change)
            at = earliest if at_sample is None else at_sample
            if at < earliest:
                raise InputError(
                    f"at_sample {at:,} is planned already; the mixture can be changed from sample {earliest:,} on. "
                    "Ask earlier, or lower lookahead."
                )
            self._stream.change(at, histogram, planned_before=planned)
            record = encode_change(at, histogram, planned_before=planned)
        finally:
            self._control.release(record)
        self._control.new_records()  # the change just made
        return at

    def state_dict(self, num_samples: int | None = None, from_beginning: bool = True) -> dict[str, Any]:
        """Say where training stands, to be saved with a checkpoint.

        Args:
            num_samples: samples of this pass that all ranks have trained on. None: what this process has handed out,
                in a DataLoader worker the part of that worker (which torchdata's StatefulDataLoader saves).
            from_beginning: counted from the beginning of the pass, else from where this dataset started.

        Raises:
            InputError: num_samples is None where DataLoader workers make the batches.
        """
        if num_samples is None:
            return self._state_of_process()
        self._update_stream()
        end, number = self._stream.pass_samples, self._control.current_pass
        begun = self._start.pass_number if number is None else number
        base = begun * (end or 0)
        if end is not None and num_samples == 0 and number is not None and self._control.planned >= base + end:
            base += end  # between two passes
        if not from_beginning and begun == self._start.pass_number:
            base = self._start.position
        position = base + num_samples
        known = not self._stream.changed and (end is None or position <= end)
        phases = {"phases": self._phase_records.before(position)} if known else {}
        return {"position": position, **self._identity, **self._stream.state(position), **phases}

    def continued_state(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Make the state with which this mixture goes on where another one stood: continued pretraining.

        Up to there both mixtures must be the same: begun at the same samples, drawn by the same histograms and in the
        same blocks (`Phase.whole_blocks`, unless the checkpoint stands at the end of the phase).

        Args:
            obj: from `state_dict(num_samples)`, over the same dataset and with the same seed.

        Raises:
            ResumeError: they are not the same, or the state does not say.
        """
        identity = {key: value for key, value in self._identity.items() if key != "mixture"}
        check_identity(obj, identity, self.dataset)
        self._phase_records.check_continue(obj)
        return {"position": obj["position"], **self._identity}

    def _state_of_process(self) -> dict[str, Any]:
        """The state after what this process, perhaps a DataLoader worker, has handed out."""
        worker = get_worker_info()
        if self._served is None:
            if worker is None and self._control.current_pass is not None:
                raise InputError("DataLoader workers make the batches: say how many samples were trained on.")
            served = {"position": self._start.position, "samples": 0, "pass": self._start.pass_number}
            if worker is not None and not self._start.in_worker:
                served["position"] += worker.id * self.global_batch_size
        else:
            served = dict(self._served)
        place = {} if worker is None else {"worker": worker.id, "num_workers": worker.num_workers}
        return {**served, **place, **self._identity, **self._stream.state(served["position"])}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Continue from a saved state; call before iterating. Any number of nodes, ranks and workers may continue it.

        (The state of a DataLoader worker, which torchdata saves, is continued by the same worker of as many.)

        Raises:
            ResumeError: the state belongs to another dataset, mixture, seed or order version, or is not a state.
        """
        worker = get_worker_info()
        place = (None, None) if worker is None else (worker.id, worker.num_workers)
        check_identity(obj, self._identity, self.dataset, worker=place)
        position, samples = obj["position"], obj.get("samples", 0)
        self._stream.restore(obj)
        end = self._stream.pass_samples
        number = obj.get("pass", 0 if end is None else position // end)
        if (
            end is not None
            and "pass" not in obj
            and self._drop_last
            and (number + 1) * end - position < self.global_batch_size
        ):
            number, position = number + 1, (number + 1) * end
        self._stream.begin_pass(number)
        self._served = None
        self._start = _Start(
            position=position, pass_number=number, skipped_samples=samples, in_worker=worker is not None
        )
        if worker is None:
            self._control = Control()
