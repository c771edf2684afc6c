"""MixtureDataset: the sample order and the reader as a torch IterableDataset of whole batches.

Not a subclass of `streaming.StreamingDataset`, whose plan is as long as an epoch, which was measured to spend 230 µs
of CPU per sample (this one: 4), and which lives on machine-global shared memory. Every process computes its own part
of the order; ranks share nothing but the cache folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from crisp_stream.errors import InputError, ResumeError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.component import Component
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.histograms.phase import Phase
from crisp_stream.loading.batches import Batch, BatchLayout, PackedBatch, tensors
from crisp_stream.loading.continuation import PhaseRecords, check_begun, check_identity, check_state
from crisp_stream.loading.control import MAX_WORKERS, Control
from crisp_stream.loading.loader import MixtureLoader
from crisp_stream.loading.place import Place
from crisp_stream.loading.reader import ReadOptions, read_windows
from crisp_stream.loading.serving import BatchSizes, Serving
from crisp_stream.loading.slots import made_slots
from crisp_stream.loading.stream import Stream, change_record, restore_record
from crisp_stream.loading.topology import Topology, agreed
from crisp_stream.order.order import ORDER_VERSION, SampleOrder
from crisp_stream.typed import whole_number

_MOST_PASSES = 1_000_000
"""In a state; more is a damaged one."""

_SERVED_ALREADY = (
    "the batches from here on were served already: a DataLoader does not say what it delivered. Iterate "
    "dataset.loader(num_workers=…), or give the place with load_state_dict before each iteration."
)


class MixtureDataset(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of a dataset in the proportions of a mixture: exact, elastic, resumable.

    Iterate `dataset.loader(…)`, or the dataset itself. An iteration yields this rank's batches from where the stream
    stands to the end of the pass; the next one goes on from there. No window repeats before its cluster is exhausted,
    over all passes.
    """

    def __init__(
        self,
        data: Dataset | Sources | str | Path | Mapping[str, Dataset | str | Path],
        mixture: Mixture | Histogram,
        *,
        batch_size: int,
        seed: int = 0,
        reading: ReadOptions | Mapping[str, ReadOptions] | None = None,
        replication: int = 1,
        drop_last: bool = True,
        num_samples: int | None = None,
        same_pass: bool = False,
    ) -> None:
        """Args:
            data: an opened dataset, or the root of one: a local folder (read in place) or s3://, gs://, az://, https://
                prefix, of which the newest generation is opened. Or several sources by name, each an opened dataset or
                a root; their batches say the source of every sample.
            mixture: proportions and phases; a histogram alone is one open-ended phase.
            batch_size: samples per batch of this rank; the global batch is that times the groups of ranks.
            seed: of the sample order.
            reading: cache folder and its limit, timeout and lookahead; the defaults when None. Or cache folder and
                limit for each source by its name; timeout and lookahead are those of the first.
            replication: so many consecutive ranks get the same samples (a tensor-parallel group).
            drop_last: leave out a last global batch that is not full. Otherwise it is served smaller, equally large
                on all ranks; what cannot be shared equally is left out.
            num_samples: samples that training will take, over all ranks, when an open-ended mixture has a known end:
                nothing beyond is planned or fetched ahead. It never changes what is served.
            same_pass: serve the same samples in every iteration, for evaluation; the mixture must have an end.

        Raises:
            FormatError, StorageError: the root cannot be opened.
            InputError: the mixture does not fit the dataset, or an argument is of the wrong kind or out of range.
        """
        mixture = _mixture_of(mixture)
        batch_size = whole_number(batch_size, "batch_size", least=1)
        seed = whole_number(seed, "seed")
        self._num_samples = None if num_samples is None else whole_number(num_samples, "num_samples", least=1)
        if same_pass and mixture.num_samples is None:
            raise InputError("same_pass needs a mixture with an end: give its last phase a number of samples.")
        self._reading = _first_reading(reading)
        self.sources = _sources_of(data, self._reading.timeout)
        self._readings = _readings_of(reading, self.sources)
        self.dataset = self.sources.first
        """The dataset, or the first of several sources."""
        self.mixture, self.batch_size, self.seed, self._same_pass = mixture, batch_size, seed, same_pass
        self.topology = Topology.current(replication=whole_number(replication, "replication", least=1))
        self._sizes = BatchSizes(
            batch_size=batch_size, num_replicas=self.topology.num_replicas, drop_last=bool(drop_last)
        )
        if mixture.num_samples is not None and not self._sizes.at(0, mixture.num_samples):
            raise InputError(
                f"a mixture of {mixture.num_samples:,} samples does not fill one global batch of "
                f"{self._sizes.of_all:,}. Give its last phase more samples, or choose a smaller batch."
            )
        self._stream = Stream(self.sources, mixture, seed=seed)
        self._identity = {
            "order_version": ORDER_VERSION,
            "seed": seed,
            **self.sources.identity(),
            "mixture": mixture.fingerprint,
        }
        self._phase_records = PhaseRecords(mixture, self.sources)
        self._control = Control()
        self._iteration = self._control.iteration
        """Number of the iteration that was begun last, in a worker of that which it was started for."""
        self._took_part = False
        """Whether this process, a DataLoader worker, has taken part in that."""
        self._slots = made_slots(batch_size * self.dataset.manifest.sample_bytes)
        self._place = Place(self._stream, self._sizes)
        self._worker_place: int | None = None
        """In a DataLoader worker: position of its next batch."""
        self._loaded_place: int | None = None
        """In a DataLoader worker: that position, where it was loaded there for the next iteration."""

    def loader(
        self,
        num_workers: int = 0,
        *,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        multiprocessing_context: Any = None,
        worker_init_fn: Any = None,
        timeout: float | None = None,
    ) -> MixtureLoader:
        """Make a `torch.utils.data.DataLoader` of this dataset's batches, which knows what it has delivered.

        Args:
            num_workers: processes that read; worker w makes every num_workers-th batch, so that the order of batches
                does not depend on their number. With 0 the training process reads.
            prefetch_factor, pin_memory, persistent_workers, multiprocessing_context, worker_init_fn: as of DataLoader.
            timeout: seconds without a batch after which a worker is given up; by default two and a half times that of
                `reading`.

        Raises:
            InputError: a number is out of range.
        """
        num_workers = whole_number(num_workers, "num_workers", least=0, most=MAX_WORKERS)
        limit = 2.5 * self._reading.timeout if timeout is None else timeout
        return MixtureLoader(
            self,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            multiprocessing_context=multiprocessing_context,
            worker_init_fn=worker_init_fn,
            timeout=limit if num_workers else 0,
        )

    def order(self) -> SampleOrder:
        """Return the sample order from position 0; one pass of it, where the mixture has an end."""
        return self._stream.copied_order() if self._stream.changed else self._stream.fresh_order()

    def window(self, window_id: int, source: str = "") -> Batch:
        """Read one window of the dataset, or of one of several sources: a batch of one, as an iteration would yield it.

        Raises:
            InputError: there is no such window, or source.
            CorruptDataError, StorageError: it cannot be read.
        """
        at = self.sources.index(source, what="window")
        dataset = self.sources.datasets[at]
        number = whole_number(window_id, "window", least=0, most=dataset.manifest.num_windows - 1)
        ids = torch.tensor([number]).numpy()
        return tensors(ids + self.sources.first_windows[at], read_windows(dataset, ids), self._layout)

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all ranks."""
        return self._sizes.of_all

    @property
    def bytes_read(self) -> int:
        """Bytes read from the root by this process and its DataLoader workers."""
        return self._control.bytes_read

    @property
    def requests(self) -> int:
        """Requests made to a remote root by this process and its DataLoader workers."""
        return self._control.requests

    def __len__(self) -> int:
        """Number of batches of a whole pass. Raises TypeError: the mixture has no end."""
        if self._stream.pass_samples is None:
            raise TypeError("the mixture is open-ended, so its stream has no length; give its last phase samples=")
        return self._sizes.left(0, self._stream.pass_samples)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        phases = f"{len(self.mixture.phases)} phase{'s' * (len(self.mixture.phases) > 1)}"
        end = self._stream.pass_samples
        return (
            f"MixtureDataset({self._named!r}, {phases}, {'no end' if end is None else f'{end:,} samples'}, "
            f"batches of {self.batch_size} x {self._sizes.num_replicas}, seed {self.seed}, "
            f"at sample {self._place.position:,})"
        )

    @property
    def _named(self) -> str | dict[str, str]:
        return {name: each.root for name, each in self.sources} if self.sources.is_named else self.dataset.root

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if not _starting_a_process():  # another copy: it shares nothing, and stands where this one does
            state["_control"] = state["_slots"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        copied = state["_control"] is None
        self.__dict__.update(state)
        if copied:
            self._control = Control(self._place.position)
            self._iteration = self._control.iteration
            self._slots = made_slots(self.batch_size * self.dataset.manifest.sample_bytes)

    @property
    def _layout(self) -> BatchLayout:
        manifest = self.dataset.manifest
        return BatchLayout(
            masked_after=manifest.tokenizer.eot_id if manifest.packing == "document" else None,
            first_windows=self.sources.first_windows if self.sources.is_named else None,
        )

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        if worker is not None:
            return self._batches_of_worker(worker.id, worker.num_workers)
        return self._batches(self.begin_iteration(num_workers=0))

    def set_epoch(self, epoch: int) -> None:
        """Refuse: passes follow each other by themselves.

        Loaders of Accelerate, and so those of transformers.Trainer, call this on every rank before they take a batch.
        They deal the batches of a dataset to the ranks, but these are the batches of one rank: with two ranks every
        second window would be thrown away.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a MixtureDataset knows its rank and its pass, and Accelerate or transformers.Trainer deals its batches to "
            "the ranks once more. Give them dataset.loader(num_workers=…): docs/train/training-loops.md."
        )

    def begin_iteration(self, num_workers: int) -> int:
        """Say to workers that an iteration begins where the stream stands; returns that position. Loaders call this.

        Raises:
            InputError: workers of another DataLoader have served batches from here on, nobody knows how many.
        """
        if self._same_pass:
            self._place.stand_at(0)
        elif self._control.joined and not self._control.knows_workers:
            raise InputError(_SERVED_ALREADY)
        position = self._place.begin_iteration()
        self._iteration = self._control.begin(position, num_workers)
        return position

    def delivered(self, position: int) -> int:
        """Take note that the batch at a position was delivered; returns that of the next. Loaders call this."""
        return self._place.delivered(position)

    def _batches(self, start: int) -> Iterator[dict[str, torch.Tensor]]:
        serving = self._serving(start, None, 1)
        serving.report_tail(start)
        with serving.readers:
            for position, numbers, samples in serving:
                self._count_reads(serving, 0)
                batch = tensors(numbers, samples, self._layout)
                self.delivered(position)
                yield batch

    def _batches_of_worker(self, worker: int, num_workers: int) -> Iterator[dict[str, torch.Tensor]]:
        start, iteration = self._place.began, self._iteration
        if self._took_part:  # a worker that stays
            start, iteration = self._control.start, self._control.iteration
        self._took_part = True
        is_new = self._control.join(worker, iteration)
        if self._loaded_place is not None:
            start, self._loaded_place = self._loaded_place - worker * self.global_batch_size, None
        elif self._same_pass:
            start = 0
        elif not is_new:
            raise InputError(_SERVED_ALREADY)
        with self._control.locked():
            group = None if self._slots is None else self._slots.claim(iteration)
        serving = self._serving(start, worker, num_workers)
        if worker == 0:
            serving.report_tail(start)
        self._worker_place = start + worker * self.global_batch_size
        with serving.readers:
            for position, numbers, samples in serving:
                self._count_reads(serving, worker)
                self._worker_place = position + num_workers * self.global_batch_size
                # It arrives as a Batch.
                yield PackedBatch(numbers, samples, self._layout, self._slots, group)  # pyright: ignore[reportReturnType]
                self._stream.forget_before(position)
        self._worker_place = None

    def _serving(self, start: int, worker: int | None, num_workers: int) -> Serving:
        return Serving(
            self.sources,
            self._stream,
            self._control,
            sizes=self._sizes,
            topology=self.topology,
            reading=self._readings,
            start=start,
            worker=worker,
            num_workers=num_workers,
            num_samples=self._num_samples,
        )

    def _count_reads(self, serving: Serving, worker: int) -> None:
        self._control.count(worker, *serving.readers.take_counts())

    def set_proportions(
        self, components: Histogram | Component | Sequence[Component], at_sample: int | None = None
    ) -> int:
        """Follow other proportions from a future sample on, while training runs. Every rank must make the same call.

        Workers have planned ahead (`lookahead`, and what DataLoader prefetches), so the change can stand no earlier
        than the first global batch that no worker of any rank has planned. It lasts to the end of its pass or to the
        next change, takes the place of phases that were to come, is part of `state_dict`, and is replayed exactly on
        resume. It has no `max_repeats`.

        Args:
            components: a histogram of the dataset's tree, or components of the sources. They may draw from the window
                selections that the mixture has.
            at_sample: position over all ranks and passes; the earliest possible when None.

        Returns:
            The position from which they are followed.

        Raises:
            InputError: they do not fit, the position is planned already, or ranks do not agree.
        """
        changed = Phase(components).components
        self._stream.check(changed)
        at_sample = None if at_sample is None else whole_number(at_sample, "at_sample", least=0)
        record = None
        first, planned = self._control.hold()
        try:
            ahead = -(-(planned - first) // self.global_batch_size) * self.global_batch_size
            planned = agreed(first + ahead, changed, at_sample)
            end = self._stream.end_of_pass(first)
            if end is not None and first < planned and not self._sizes.at(planned, end):
                planned = max(planned, end)  # what is left of the pass is not served
            earliest = max(planned, self._stream.last_change or 0)
            at = earliest if at_sample is None else at_sample
            if at < earliest:
                raise InputError(
                    f"at_sample {at:,} is planned already; the mixture can be changed from sample {earliest:,} on. "
                    "Ask earlier, or lower lookahead."
                )
            self._stream.change(at, changed)
            record = change_record(at, changed)
        finally:
            self._control.release(record)
        return at

    def state_dict(self, num_samples: int | None = None, from_beginning: bool = True) -> dict[str, Any]:
        """Say where training stands, to be saved with a checkpoint.

        Args:
            num_samples: samples of the current pass that all ranks have trained on; after its last batch was delivered,
                0 stands for the beginning of the next one. None: what was delivered; in a DataLoader worker the part of
                that worker (which torchdata's StatefulDataLoader saves).
            from_beginning: counted from the beginning of the pass, else from where the last iteration began.

        Raises:
            InputError: it cannot be so many, or num_samples is None where another DataLoader than `loader` has workers.
        """
        worker = get_worker_info()
        if worker is not None:
            return self._state_of_worker(worker.id, worker.num_workers)
        foreign = self._control.joined and not self._control.knows_workers
        if num_samples is None:
            if foreign:
                raise InputError("DataLoader workers make the batches: say how many samples were trained on.")
            return self._state(self._place.position)
        return self._state(self._place.of_samples(num_samples, from_beginning=from_beginning, foreign=foreign))

    def _state(self, position: int) -> dict[str, Any]:
        number, rest = divmod(position, self._stream.pass_samples) if self._stream.pass_samples else (0, position)
        known = not self._stream.changed and (number == 0 or position == self._stream.pass_samples)
        phases = {"phases": self._phase_records.before(position)} if known else {}
        return {
            "pass": number,
            "position": rest,
            "samples": position,
            **self._identity,
            "global_batch_size": self.global_batch_size,
            **self._stream.state(position),
            **phases,
        }

    def _state_of_worker(self, worker: int, num_workers: int) -> dict[str, Any]:
        place = self._worker_place
        if place is None:
            place = self._control.start + worker * self.global_batch_size
        return {**self._state(place), "worker": worker, "num_workers": num_workers}

    def continued_state(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Make the state with which this mixture goes on where another one stood: continued pretraining.

        Up to there both mixtures must be the same: begun at the same samples, drawn by the same histograms.

        Args:
            obj: from `state_dict(num_samples)`, over the same dataset and with the same seed.

        Raises:
            ResumeError: they are not the same, or the state does not say.
        """
        check_begun(obj, self._identity, self.sources)
        self._phase_records.check_continue(obj)
        number, rest = divmod(obj["samples"], self._stream.pass_samples or (obj["samples"] + 1))
        return {**obj, "pass": number, "position": rest, **self._identity}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Continue from a saved state, at the next iteration. Any number of nodes, ranks and workers may continue it.

        (The state of a DataLoader worker, which torchdata saves, is continued by the same worker of as many, with
        batches of the same size.)

        Raises:
            ResumeError: the state belongs to another dataset, mixture, seed or order version, or is not a state.
        """
        check_state(obj)
        worker = get_worker_info()
        expected: dict[str, Any] = {} if worker is None else {"worker": worker.id, "num_workers": worker.num_workers}
        if worker is not None or "num_workers" in obj:
            expected["global_batch_size"] = self.global_batch_size
        for key in ("worker", "num_workers"):
            expected.setdefault(key, None)
        check_identity(obj, {**self._identity, **expected}, self.sources)
        whole = self._stream.pass_samples or 0
        place = divmod(obj["samples"], whole) if whole else (0, obj["samples"])
        if place != (obj["pass"], obj["position"]) or obj["pass"] > _MOST_PASSES:
            raise ResumeError(
                f"the saved place is damaged: pass {obj['pass']:,}, position {obj['position']:,}, samples "
                f"{obj['samples']:,} of a mixture of {whole:,} samples. Use another checkpoint."
            )
        self._stream.restore(obj)
        if worker is not None:
            self._worker_place = self._loaded_place = obj["samples"]
            return
        self._control.append(restore_record(obj))
        self._stand_at(obj["samples"])

    def skip_to(self, num_samples: int) -> None:
        """Stand at a sample of the stream, counted over all ranks and passes, as if all before it had been delivered.

        Raises:
            InputError: not a number >= 0.
        """
        self._stand_at(whole_number(num_samples, "num_samples", least=0))

    def _stand_at(self, position: int) -> None:
        self._place.stand_at(position)
        self._iteration = self._control.begin(position)


def _sources_of(data: Any, timeout: float) -> Sources:
    """Open what is given as roots. Raises InputError, FormatError, StorageError."""

    def opened(one: Any) -> Dataset:
        if not isinstance(one, Dataset) and not str(one):
            raise InputError("MixtureDataset needs a dataset or the root of one, got an empty path.")
        return one if isinstance(one, Dataset) else open_dataset(one, timeout=timeout)

    if isinstance(data, Sources):
        return data
    if isinstance(data, Mapping):
        return Sources({name: opened(one) for name, one in data.items()})
    return Sources(opened(data))


def _first_reading(reading: ReadOptions | Mapping[str, ReadOptions] | None) -> ReadOptions:
    if isinstance(reading, Mapping):
        return next(iter(reading.values()), ReadOptions())
    return ReadOptions() if reading is None else reading


def _readings_of(reading: ReadOptions | Mapping[str, ReadOptions] | None, sources: Sources) -> list[ReadOptions]:
    """The options of each source. Raises InputError: they are not of these sources."""
    if not isinstance(reading, Mapping):
        return [_first_reading(reading)] * len(sources)
    if set(reading) != set(sources.names):
        raise InputError(
            f"reading: must have options for each of the sources {', '.join(sources.names)}, got "
            f"{', '.join(reading) or 'none'}. Or give one for all: reading=ReadOptions(…)"
        )
    return [reading[name] for name in sources.names]


def _mixture_of(mixture: Any) -> Mixture:
    if isinstance(mixture, Histogram):
        return Mixture.from_histogram(mixture)
    if not isinstance(mixture, Mixture):
        raise InputError(f"MixtureDataset needs a Mixture or a Histogram, got {type(mixture).__name__}.")
    return mixture


def _starting_a_process() -> bool:
    """Whether what is pickled goes to a process that is being started."""
    from multiprocessing.context import get_spawning_popen

    return get_spawning_popen() is not None
