"""The mixture over time: its phases, repeated for every pass, changed while running; and the order that they give.

A change replaces the mixture from some sample on. It is kept as its histogram, not as proportions of all leaves, and
once a phase is over only the sum of what was drawn is kept, so a new mixture for every batch costs no more after a
million batches than after ten.
"""

from __future__ import annotations

import base64
import hashlib
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, ResumeError
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture, Phase
from crisp_stream.order.blocks import Blocks, OrderPhase
from crisp_stream.order.draw_counts import DrawHistory
from crisp_stream.order.draw_table import DrawTable, SelectedPart
from crisp_stream.order.draws import LeafShares
from crisp_stream.order.order import SampleOrder
from crisp_stream.storage.shared_arrays import SHARED_ROWS, keep_newest, shared_arrays

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

_KEPT_BYTES, _FEW_BYTES = 64 << 20, 64 << 10
_KEPT_PLANS = 16
_KEPT_TABLES = 4
_HEAD = struct.Struct("<qI")
_POSITION = struct.Struct("<q")
_CHANGE, _RESTORE = b"c", b"r"  # kinds of records


def draw_table_of(dataset: Dataset, phases: Sequence[Phase]) -> tuple[DrawTable | None, list[int]]:
    """Make the table of a mixture's phases, None where none has a selection; and the part that each phase draws from.

    Raises:
        InputError: a selection of another dataset.
    """
    numbers: dict[str, int] = {}
    parts: list[SelectedPart] = []
    rows, number, selected = dataset.manifest.num_leaves, dataset.manifest.num_windows, []
    part_of_phase = []
    for index, phase in enumerate(phases, 1):
        if phase.windows is None:
            part_of_phase.append(0)
            continue
        phase.windows.check_dataset(dataset, what=f"phase {index}: the window selection")
        if phase.windows.fingerprint not in numbers:
            stop = rows + len(phase.histogram.nodes)
            parts.append(SelectedPart(bits=phase.windows.bits, first_row=rows, stop_row=stop, first_number=number))
            rows, number = stop, number + phase.windows.num_selected
            selected.append(phase.histogram)
            numbers[phase.windows.fingerprint] = len(parts)
        part_of_phase.append(numbers[phase.windows.fingerprint])
    if not parts:
        return None, part_of_phase

    def make() -> dict[str, NDArray[Any]]:
        leaves = np.concatenate([dataset.leaves, *(histogram.nodes for histogram in selected)])
        counts = np.concatenate([dataset.windows_per_leaf, *(histogram.counts for histogram in selected)])
        return {"leaf": leaves, "num_windows": counts, "first_window": np.cumsum(counts) - counts}

    if rows < SHARED_ROWS:
        return DrawTable(make(), parts), part_of_phase
    name = hashlib.sha256("".join(numbers).encode()).hexdigest()[:16]
    arrays = shared_arrays(dataset.table_folder / f"draw-{name}.arrays", make)
    keep_newest(dataset.table_folder, "draw-*.arrays", _KEPT_TABLES)
    return DrawTable(arrays, parts), part_of_phase


class Stream:
    """The mixture over all positions. Not bounded by a pass: passes are added as they are reached."""

    def __init__(self, dataset: Dataset, mixture: Mixture, *, seed: int) -> None:
        """Raises InputError: the mixture does not fit the dataset."""
        self._dataset, self.mixture, self._seed = dataset, mixture, seed
        self._num_changes = 0
        self._shares: OrderedDict[tuple[str, int], LeafShares] = OrderedDict()
        self._kept_bytes = 0
        self._table, self._part_of_phase = draw_table_of(dataset, mixture.phases)
        mixture.check(dataset)
        self.pass_samples = mixture.num_samples
        self.last_change: int | None = None
        """Position of the last change; None: the mixture was not changed."""
        self.order = self.fresh_order()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_shares": OrderedDict(), "_kept_bytes": 0}
        del state["order"]
        return {**state, "_phases": _described(self.order.phases), "_history": self.order.history}

    def __setstate__(self, state: dict[str, Any]) -> None:
        phases, history = state.pop("_phases"), state.pop("_history")
        self.__dict__.update(state)
        self.order = self._order_of([self._phase(phase) for phase in phases], history)

    @property
    def changed(self) -> bool:
        """Whether the mixture was changed while running."""
        return self.last_change is not None

    def fresh_order(self) -> SampleOrder:
        """The order of one pass, as if nothing had been changed."""
        phases, at = [], 0
        for number, phase in enumerate(self.mixture.phases):
            part, shares = self._part_of_phase[number], _PhaseShares(self, number)
            phases.append(OrderPhase(shares=shares, first_sample=at, num_samples=phase.samples, part=part))
            at += phase.samples or 0
        return self._order_of(phases, None)

    def copied_order(self) -> SampleOrder:
        """The order as it is now; computing in the copy leaves the caches of this one alone."""
        return self._order_of(self.order.phases, self.order.history)

    def end_of_pass(self, position: int) -> int | None:
        """Position after the last sample of the pass that holds a position; None when the mixture is open-ended."""
        return None if self.pass_samples is None else (position // self.pass_samples + 1) * self.pass_samples

    def reach(self, position: int) -> None:
        """Have the phases of the pass that holds a position, and of all passes before it."""
        while (end := self.order.num_samples) is not None and end <= position:
            for index, phase in enumerate(self.mixture.phases):
                self.order.append(_PhaseShares(self, index), phase.samples, part=self._part_of_phase[index])

    def change(self, at: int, histogram: Histogram) -> None:
        """Follow another histogram from position `at` on, to the end of its pass.

        Raises:
            InputError: an earlier change stands at a later position.
        """
        if self.last_change is not None and at < self.last_change:
            raise InputError(f"the mixture can be changed from sample {self.last_change:,} on, got {at:,}.")
        self.reach(at)
        end = self.end_of_pass(at)
        self.order.change(at, self._changed_shares(histogram), None if end is None else end - at)
        self.last_change = at

    def forget_before(self, position: int) -> None:
        """Let go of what changes long before a position were, so that any number of them costs no more than a few."""
        if self.changed:
            self.order.forget_before(position)

    def follow(self, record: bytes) -> None:
        """Do what a record of the log says."""
        if record[:1] == _RESTORE:
            self.restore(pickle.loads(record[1:]))
        else:
            (at,) = _POSITION.unpack_from(record, 1)
            self.change(at, decode_histogram(record[1 + _POSITION.size :], self._dataset))

    def check(self, histogram: Histogram) -> None:
        """Raises InputError: the histogram does not fit the dataset."""
        Mixture([Phase(histogram)], max_missing_mass=self.mixture.max_missing_mass).check(self._dataset)

    def state(self, position: int) -> dict[str, Any]:
        """Say what `restore` needs to go on from a position, where that is more than the mixture; else nothing.

        Raises:
            InputError: phases before the position have been forgotten (see `SampleOrder.forget_before`).
        """
        if not self.changed:
            return {}
        self.reach(position)
        try:
            history = self.order.history_at(position)
        except IndexError as error:
            raise InputError(
                f"the mixture was changed many times since sample {position:,}, and is known from sample "
                f"{self.order.phases[0].first_sample:,} on. Take the state of a later sample."
            ) from error
        first = 0 if history is None else history.first_sample
        phases = [phase for phase in self.order.phases if phase.first_sample >= first]
        drawn = None if history is None else _packed(history.drawn)
        before_part = {} if history is None else {part: _packed(each) for part, each in history.before_part.items()}
        saved = {"first_sample": first, "drawn": drawn, "before_part": before_part, "last_change": self.last_change}
        return {"stream": {**saved, "phases": _described(phases)}}

    def restore(self, state: dict[str, Any]) -> None:
        """Be as the stream was that gave this state. Raises ResumeError: it is not such a state."""
        saved = state.get("stream")
        if saved is None:
            self.order, self.last_change = self.fresh_order(), None
            return
        try:
            history = None
            if saved["drawn"] is not None:
                drawn, num_rows = _unpacked(saved["drawn"]), self.order.num_rows
                if len(drawn) != num_rows:
                    raise ValueError(f"{len(drawn)} rows of {num_rows}")
                before_part = {int(part): _unpacked(each) for part, each in saved["before_part"].items()}
                history = DrawHistory(first_sample=int(saved["first_sample"]), drawn=drawn, before_part=before_part)
            phases = [self._phase(phase) for phase in saved["phases"]]
            ends = [int(saved["first_sample"]), *(phase.first_sample + (phase.num_samples or 0) for phase in phases)]
            if not phases or any(phase.first_sample != end for phase, end in zip(phases, ends, strict=False)):
                raise ValueError("phases that do not follow each other")
            self.order = self._order_of(phases, history)
            self.last_change = int(saved["last_change"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ResumeError(
                f"the saved stream of mixtures is damaged ({error!r}). Use another checkpoint."
            ) from error

    def _changed_shares(self, histogram: Histogram) -> _ChangedShares:
        self._num_changes += 1
        return _ChangedShares(self, self._num_changes, histogram)

    def shares_of_change(self, number: int, histogram: Histogram) -> LeafShares:
        """Leaf proportions of the histogram of a change."""
        return self._kept(("change", number), lambda: LeafShares.of(self._expanded(histogram)))

    def _kept(self, key: tuple[str, int], make: Callable[[], LeafShares]) -> LeafShares:
        """Those used last are kept, up to a number of bytes."""
        shares = self._shares.get(key)
        if shares is None:
            shares = make()
            self._kept_bytes += _bytes_of(shares)
            while self._shares and self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= _bytes_of(self._shares.popitem(last=False)[1])
            self._shares[key] = shares
        self._shares.move_to_end(key)
        return shares

    def _expanded(self, histogram: Histogram) -> NDArray[np.float64]:
        alone = Mixture([Phase(histogram)], max_missing_mass=self.mixture.max_missing_mass)
        return alone.proportions_of_phase(0, self._dataset)

    def shares_of_phase(self, number: int) -> LeafShares:
        """Leaf proportions of a phase of the mixture, by its index."""
        return self._kept(("phase", number), lambda: self._shares_of_phase(number))

    def _shares_of_phase(self, number: int) -> LeafShares:
        if self._table is not None and self._part_of_phase[number]:
            return self._table.shares(self._part_of_phase[number])
        if self._dataset.manifest.num_leaves < SHARED_ROWS:
            return LeafShares.of(self.mixture.proportions_of_phase(number, self._dataset))

        def make() -> dict[str, NDArray[Any]]:
            made = LeafShares.of(self.mixture.proportions_of_phase(number, self._dataset))
            return {"rows": made.rows, "cdf": made.cdf}

        folder: Path = self._dataset.table_folder
        name = f"{self.mixture.fingerprint[:16]}-{number}-{self.mixture.max_missing_mass:g}"
        arrays = shared_arrays(folder / f"plan-{name}.arrays", make)
        keep_newest(folder, "plan-*.arrays", _KEPT_PLANS)
        return LeafShares(rows=arrays["rows"], cdf=arrays["cdf"])

    def _order_of(self, phases: Sequence[OrderPhase], history: DrawHistory | None) -> SampleOrder:
        dataset = self._dataset
        return SampleOrder(
            dataset.leaves,
            dataset.windows_per_leaf,
            phases,
            Blocks(seed=self._seed, draw=self.mixture.draw),
            history=history,
            first_window_per_leaf=dataset.first_window_per_leaf,
            table=self._table,
        )

    def _phase(self, described: dict[str, Any]) -> OrderPhase:
        first, samples = described["first_sample"], described["num_samples"]
        if "phase" not in described:
            histogram = unpack_histogram(described["histogram"], self._dataset)
            return OrderPhase(shares=self._changed_shares(histogram), first_sample=first, num_samples=samples)
        index = int(described["phase"])
        if not 0 <= index < len(self.mixture.phases):
            raise ValueError(f"phase {index}")
        part, shares = self._part_of_phase[index], _PhaseShares(self, index)
        return OrderPhase(shares=shares, first_sample=first, num_samples=samples, part=part)


class _PhaseShares:
    """The proportions of a phase of the mixture: a function without arguments, for OrderPhase."""

    def __init__(self, stream: Stream, index: int) -> None:
        self._stream, self.index = stream, index

    def __call__(self) -> LeafShares:
        return self._stream.shares_of_phase(self.index)


class _ChangedShares:
    """The proportions of a change made while running, for OrderPhase. Changes are numbered as they come to a stream."""

    def __init__(self, stream: Stream, number: int, histogram: Histogram) -> None:
        self._stream, self._number, self.histogram = stream, number, histogram

    def __call__(self) -> LeafShares:
        return self._stream.shares_of_change(self._number, self.histogram)


def _bytes_of(shares: LeafShares) -> int:
    """Memory of this process; what is mapped from a file is not."""
    return _FEW_BYTES + sum(array.nbytes for array in (shares.rows, shares.cdf) if array.flags.writeable)


def _described(phases: Sequence[OrderPhase]) -> list[dict[str, Any]]:
    described = []
    for phase in phases:
        shares = phase.shares
        assert isinstance(shares, _PhaseShares | _ChangedShares)
        source = (
            {"phase": shares.index}
            if isinstance(shares, _PhaseShares)
            else {"histogram": pack_histogram(shares.histogram)}
        )
        described.append({"first_sample": phase.first_sample, "num_samples": phase.num_samples, **source})
    return described


def _packed(counts: NDArray[np.int64]) -> str:
    return _text(counts.astype("<i8").tobytes())


def _unpacked(text: str) -> NDArray[np.int64]:
    return np.frombuffer(_content(text), "<i8").astype(np.int64)


def pack_histogram(histogram: Histogram) -> str:
    """A histogram as text."""
    return _text(encode_histogram(histogram))


def unpack_histogram(text: str, dataset: Dataset) -> Histogram:
    """Read what `pack_histogram` made. Raises ValueError when it is damaged."""
    return decode_histogram(_content(text), dataset)


def _text(content: bytes) -> str:
    """Text, so that a state can stand in a JSON file, such as the trainer_state.json of transformers."""
    return base64.b64encode(zlib.compress(content, 1)).decode()


def _content(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(str(error)) from error


def encode_histogram(histogram: Histogram) -> bytes:
    """Encode a histogram as level, nodes, proportions; the tree is that of the dataset."""
    head = _HEAD.pack(histogram.level, len(histogram.nodes))
    return head + histogram.nodes.astype("<u4").tobytes() + histogram.proportions.astype("<f8").tobytes()


def decode_histogram(content: bytes, dataset: Dataset) -> Histogram:
    """Decode what `encode_histogram` made. Raises ValueError when it is damaged."""
    level, count = _HEAD.unpack(content[: _HEAD.size].ljust(_HEAD.size, b"\0"))
    if not count or len(content) != _HEAD.size + 12 * count:
        raise ValueError(f"{len(content)} bytes for {count} nodes")
    manifest = dataset.manifest
    return Histogram(
        level=level,
        nodes=np.frombuffer(content, "<u4", count, _HEAD.size),
        proportions=np.frombuffer(content, "<f8", count, _HEAD.size + 4 * count),
        arity=manifest.arity,
        depth=manifest.depth,
        tree_fingerprint=manifest.tree_fingerprint,
    )


def change_record(at: int, histogram: Histogram) -> bytes:
    """A change as a record of the log."""
    return _CHANGE + _POSITION.pack(at) + encode_histogram(histogram)


def restore_record(state: dict[str, Any]) -> bytes:
    """A loaded state as a record of the log."""
    return _RESTORE + pickle.dumps({"stream": state.get("stream")})
