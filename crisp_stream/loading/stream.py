"""The mixture over time: its phases, repeated for every pass, changed while running; and the order that they give.

A change replaces the mixture from some sample on. It is kept as its histogram, not as proportions of all leaves, and
once a phase is over only the sum of what was drawn is kept, so a new mixture for every batch costs no more after a
million batches than after ten.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, ResumeError
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture, Phase
from crisp_stream.order.draw_table import DrawTable, SelectedPart
from crisp_stream.order.draws import LeafShares, PhasePlan
from crisp_stream.order.order import DrawHistory, SampleOrder
from crisp_stream.storage.shared_arrays import SHARED_ROWS, SharedArrays, keep_newest, shared_arrays

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

_KEPT_CHANGES = 4
_KEPT_PLANS = 16
_KEPT_TABLES = 4
_HEAD = struct.Struct("<qI")
_CHANGE = struct.Struct("<qq")


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
    """The mixture over all positions. Not bounded by a pass: passes are added as they are begun."""

    def __init__(self, dataset: Dataset, mixture: Mixture, *, seed: int) -> None:
        """Raises InputError: the mixture does not fit the dataset."""
        self._dataset, self.mixture, self._seed = dataset, mixture, seed
        self._shares_of_phase: dict[int, LeafShares | SharedArrays] = {}
        self._num_changes = 0
        self._shares_of_change: OrderedDict[int, LeafShares] = OrderedDict()
        self._table, self._part_of_phase = draw_table_of(dataset, mixture.phases)
        for number in range(len(mixture.phases)):
            self.shares_of_phase(number)
        self.pass_samples = mixture.num_samples
        self.changed = False
        self.last_change = 0
        self.order = self.fresh_order()
        self._passes = 1

    def __getstate__(self) -> dict[str, Any]:
        phases = {
            k: v for k, v in self._shares_of_phase.items() if isinstance(v, SharedArrays) or len(v.rows) < SHARED_ROWS
        }
        state = {**self.__dict__, "_shares_of_phase": phases, "_shares_of_change": OrderedDict()}
        del state["order"]
        return {**state, "_plans": self._described_plans(), "_history": self.order.given_history}

    def __setstate__(self, state: dict[str, Any]) -> None:
        plans, history = state.pop("_plans"), state.pop("_history")
        self.__dict__.update(state)
        self.order = self._order_of([self._plan(plan) for plan in plans], history)

    def copied_order(self) -> SampleOrder:
        """The order as it is now; computing in the copy leaves the caches of this one alone."""
        return self._order_of(self.order.plans, self.order.given_history)

    def begin_pass(self, number: int) -> None:
        """Have the phases of all passes up to one. Does nothing when the mixture is open-ended."""
        while self.pass_samples is not None and self._passes <= number:
            for index, phase in enumerate(self.mixture.phases):
                part = self._part_of_phase[index]
                self.order.append(_PhaseShares(self, index), phase.samples, whole_blocks=phase.whole_blocks, part=part)
            self._passes += 1

    def change(self, at: int, histogram: Histogram, *, planned_before: int) -> None:
        """Follow another histogram from position `at` on, to the end of the pass.

        Args:
            at: where the change stands.
            histogram: to follow from there.
            planned_before: position before which some process may have planned. A phase from there on is planned anew,
                for the length that it now has; one before keeps the order in which it was begun.

        Raises:
            InputError: an earlier change stands at a later position, or the pass is over before.
        """
        end = self.order.num_samples
        if at < self.last_change or (end is not None and at >= end):
            reach = "" if end is None else f" and before its end at {end:,}"
            raise InputError(f"the mixture can be changed from sample {self.last_change:,} on{reach}, got {at:,}.")
        self.order.cut(at, planned=self.order.phase_start(at) < planned_before)
        self.order.append(self._changed_shares(histogram), None if end is None else end - at)
        self.changed, self.last_change = True, at

    def check(self, histogram: Histogram) -> None:
        """Raises InputError: the histogram does not fit the dataset."""
        self._expanded(histogram)

    def state(self, position: int) -> dict[str, Any]:
        """Say what `restore` needs to go on from a position, where that is more than the mixture; else nothing."""
        if not self.changed:
            return {}
        # Selections begin where leaves stood when they were first used, so a stream of them keeps all its phases.
        phase = 0 if self._table else self.order.phase_at(position)
        history = None if self._table else self.order.history_before(position)
        drawn = None if history is None else zlib.compress(history.drawn.astype("<i8").tobytes(), 1)
        plans = [plan for plan in self._described_plans() if plan["number"] >= phase]
        return {"stream": {"plans": plans, "drawn": drawn, "passes": self._passes, "last_change": self.last_change}}

    def restore(self, state: dict[str, Any]) -> None:
        """Be as the stream was that gave this state. Raises ResumeError: it is not such a state."""
        saved = state.get("stream")
        if saved is None:
            self.order, self._passes, self.changed, self.last_change = self.fresh_order(), 1, False, 0
            return
        try:
            history = None
            if saved["drawn"] is not None:
                drawn = np.frombuffer(zlib.decompress(saved["drawn"]), "<i8").astype(np.int64)
                if len(drawn) != self._dataset.manifest.num_leaves:
                    raise ValueError("another number of leaves")
                history = DrawHistory(first_phase=saved["plans"][0]["number"], drawn=drawn)
            self.order = self._order_of([self._plan(plan) for plan in saved["plans"]], history)
            self._passes, self.last_change = int(saved["passes"]), int(saved["last_change"])
        except (KeyError, TypeError, ValueError, IndexError, zlib.error) as error:
            raise ResumeError(
                f"the saved stream of mixtures is damaged ({error!r}). Use another checkpoint."
            ) from error
        self.changed = True

    def _changed_shares(self, histogram: Histogram) -> _ChangedShares:
        self._num_changes += 1
        return _ChangedShares(self, self._num_changes, histogram)

    def shares_of_change(self, number: int, histogram: Histogram) -> LeafShares:
        """Leaf proportions of the histogram of a change; those of the last few changes are kept, by number."""
        if number not in self._shares_of_change:
            self._shares_of_change[number] = LeafShares.of(self._expanded(histogram))
            while len(self._shares_of_change) > _KEPT_CHANGES:
                self._shares_of_change.popitem(last=False)
        return self._shares_of_change[number]

    def _expanded(self, histogram: Histogram) -> NDArray[np.float64]:
        alone = Mixture([Phase(histogram)], max_missing_mass=self.mixture.max_missing_mass)
        return alone.proportions_of_phase(0, self._dataset)

    def shares_of_phase(self, number: int) -> LeafShares:
        """Leaf proportions of a phase of the mixture, by its index."""
        shares = self._shares_of_phase.get(number)
        if shares is None:
            if self._table is not None and self._part_of_phase[number]:
                self.mixture.histogram_of_phase(number, self._dataset)  # raises where windows would repeat too often
                shares = self._table.shares(self._part_of_phase[number])
            elif self._dataset.manifest.num_leaves < SHARED_ROWS:
                shares = LeafShares.of(self.mixture.proportions_of_phase(number, self._dataset))
            else:
                shares = self._shared(number)
            self._shares_of_phase[number] = shares
        return shares if isinstance(shares, LeafShares) else LeafShares(rows=shares["rows"], cdf=shares["cdf"])

    def _shared(self, number: int) -> SharedArrays:
        def make() -> dict[str, NDArray[Any]]:
            made = LeafShares.of(self.mixture.proportions_of_phase(number, self._dataset))
            return {"rows": made.rows, "cdf": made.cdf}

        folder: Path = self._dataset.table_folder
        name = f"{self.mixture.fingerprint[:16]}-{number}-{self.mixture.max_missing_mass:g}"
        arrays = shared_arrays(folder / f"plan-{name}.arrays", make)
        keep_newest(folder, "plan-*.arrays", _KEPT_PLANS)
        return arrays

    def fresh_order(self) -> SampleOrder:
        """The order of one pass, as if nothing had been changed."""
        plans: list[PhasePlan] = []
        at = 0
        for number, phase in enumerate(self.mixture.phases):
            planned = None if phase.whole_blocks else phase.samples
            plans.append(
                PhasePlan(
                    shares=_PhaseShares(self, number),
                    number=number,
                    first_sample=at,
                    num_samples=planned,
                    served=phase.samples,
                    part=self._part_of_phase[number],
                )
            )
            at += phase.samples or 0
        return self._order_of(plans, None)

    def _order_of(self, plans: list[PhasePlan], history: DrawHistory | None) -> SampleOrder:
        dataset = self._dataset
        return SampleOrder(
            dataset.leaves,
            dataset.windows_per_leaf,
            list(plans),
            seed=self._seed,
            draw=self.mixture.draw,
            history=history,
            first_window_per_leaf=dataset.first_window_per_leaf,
            table=self._table,
        )

    def _described_plans(self) -> list[dict[str, Any]]:
        described = []
        for plan in self.order.plans:
            shares = plan.shares
            assert isinstance(shares, _PhaseShares | _ChangedShares)
            if isinstance(shares, _PhaseShares):
                source: dict[str, Any] = {"phase": shares.index}
            else:
                source = {"histogram": encode_histogram(shares.histogram)}
            placed = {name: getattr(plan, name) for name in ("number", "first_sample", "num_samples", "served")}
            described.append({**placed, **source})
        return described

    def _plan(self, described: dict[str, Any]) -> PhasePlan:
        placed = {name: described[name] for name in ("number", "first_sample", "num_samples", "served")}
        if "phase" not in described:
            histogram = decode_histogram(described["histogram"], self._dataset)
            return PhasePlan(shares=self._changed_shares(histogram), **placed)
        index = int(described["phase"])
        if not 0 <= index < len(self.mixture.phases):
            raise ValueError(f"phase {index}")
        return PhasePlan(shares=_PhaseShares(self, index), part=self._part_of_phase[index], **placed)


class _PhaseShares:
    """The proportions of a phase of the mixture: a function without arguments, for PhasePlan."""

    def __init__(self, stream: Stream, index: int) -> None:
        self._stream, self.index = stream, index

    def __call__(self) -> LeafShares:
        return self._stream.shares_of_phase(self.index)


class _ChangedShares:
    """The proportions of a change made while running, for PhasePlan. Changes are numbered as they come to a stream."""

    def __init__(self, stream: Stream, number: int, histogram: Histogram) -> None:
        self._stream, self._number, self.histogram = stream, number, histogram

    def __call__(self) -> LeafShares:
        return self._stream.shares_of_change(self._number, self.histogram)


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


def encode_change(at: int, histogram: Histogram, *, planned_before: int) -> bytes:
    """The arguments of `Stream.change` as a record of the control log."""
    return _CHANGE.pack(at, planned_before) + encode_histogram(histogram)


def apply_change(record: bytes, stream: Stream, dataset: Dataset) -> None:
    """Make the change of a record."""
    at, planned_before = _CHANGE.unpack_from(record)
    stream.change(at, decode_histogram(record[_CHANGE.size :], dataset), planned_before=planned_before)
