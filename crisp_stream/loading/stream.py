"""The mixture over time: its phases, repeated for every pass, changed while running; and the order that they give.

A change replaces the mixture from some sample on. It is kept as its histograms, not as proportions of all leaves, and
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
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.component import Component, LeafCounts
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.histograms.phase import Phase
from crisp_stream.order.blocks import Blocks, OrderPhase
from crisp_stream.order.draw_counts import DrawHistory
from crisp_stream.order.draw_table import DrawTable, SelectedPart
from crisp_stream.order.draws import LeafShares
from crisp_stream.order.order import SampleOrder
from crisp_stream.storage.shared_arrays import SHARED_ROWS, keep_newest, shared_arrays

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.mixture import Data

_KEPT_BYTES, _FEW_BYTES = 64 << 20, 64 << 10
_KEPT_PLANS = 16
_KEPT_TABLES = 4
_HEAD = struct.Struct("<qI")
_POSITION = struct.Struct("<q")
_CHANGE, _RESTORE = b"c", b"r"  # kinds of records


def draw_table_of(sources: Sources, phases: Sequence[Phase]) -> tuple[DrawTable, dict[str, int]]:
    """Make the table of a mixture's phases, and the part of each window selection, by its fingerprint.

    Raises:
        InputError: a selection of another dataset.
    """
    rows_per_source = [len(dataset.leaves) for dataset in sources.datasets]
    windows_per_source = [dataset.manifest.num_windows for dataset in sources.datasets]
    numbers: dict[str, int] = {}
    parts: list[SelectedPart] = []
    counts = [LeafCounts.of(dataset, None) for dataset in sources.datasets]
    row, number = sum(rows_per_source), sum(windows_per_source)
    for index, phase in enumerate(phases, 1):
        for component in phase.components:
            selection, what = component.windows, f"phase {index}"
            if selection is None or selection.fingerprint in numbers:
                continue
            source = sources.index(component.source, what=what)
            selected = LeafCounts.of(sources.datasets[source], selection, what=what)
            stop = row + len(selected.leaves)
            parts.append(
                SelectedPart(bits=selection.bits, source=source, first_row=row, stop_row=stop, first_number=number)
            )
            row, number = stop, number + selection.num_selected
            counts.append(selected)
            numbers[selection.fingerprint] = len(parts)

    def make() -> dict[str, NDArray[Any]]:
        leaves = np.concatenate([each.leaves for each in counts])
        windows = np.concatenate([each.windows for each in counts])
        return {"leaf": leaves, "num_windows": windows, "first_window": np.cumsum(windows) - windows}

    columns: Any
    dataset = sources.first
    if len(counts) == 1:
        first_window = dataset.first_window_per_leaf
        columns = {"leaf": dataset.leaves, "num_windows": dataset.windows_per_leaf, "first_window": first_window}
    elif row < SHARED_ROWS:
        columns = make()
    else:
        fingerprints = [*(each.manifest.fingerprint for each in sources.datasets), *numbers]
        name = hashlib.sha256("".join(fingerprints).encode()).hexdigest()[:16]
        columns = shared_arrays(dataset.table_folder / f"draw-{name}.arrays", make)
        keep_newest(dataset.table_folder, "draw-*.arrays", _KEPT_TABLES)
    table = DrawTable(columns, rows_per_source=rows_per_source, windows_per_source=windows_per_source, parts=parts)
    return table, numbers


class Stream:
    """The mixture over all positions. Not bounded by a pass: passes are added as they are reached."""

    def __init__(self, data: Data, mixture: Mixture, *, seed: int) -> None:
        """Raises InputError: the mixture does not fit the sources."""
        sources = Sources.of(data)
        self._sources, self.mixture, self._seed = sources, mixture, seed
        self._num_changes = 0
        self._shares: OrderedDict[tuple[str, int], LeafShares] = OrderedDict()
        self._kept_bytes = 0
        self.table, self._part_of_selection = draw_table_of(sources, mixture.phases)
        self._selections = {each.windows.fingerprint: each.windows for each in mixture.components if each.windows}
        mixture.check(sources)
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
            phases.append(self._phase_of_mixture(number, at, phase.samples))
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
                parts = self._parts_of(phase.components)
                self.order.append(_PhaseShares(self, index), phase.samples, parts=parts)

    def change(self, at: int, components: Sequence[Component]) -> None:
        """Follow other components from position `at` on, to the end of its pass.

        Raises:
            InputError: an earlier change stands at a later position.
        """
        if self.last_change is not None and at < self.last_change:
            raise InputError(f"the mixture can be changed from sample {self.last_change:,} on, got {at:,}.")
        self.reach(at)
        end = self.end_of_pass(at)
        samples = None if end is None else end - at
        self.order.change(at, self._changed_shares(components), samples, parts=self._parts_of(components))
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
            self.change(at, self.unpacked(pickle.loads(record[1 + _POSITION.size :])))

    def check(self, components: Sequence[Component]) -> None:
        """Raises InputError: components of a change do not fit the sources."""
        self._alone(components).check(self._sources)
        for component in components:
            if component.max_repeats is not None:
                raise InputError("a change of the mixture has no max_repeats; limit its histogram before.")
            if component.windows is not None and component.windows.fingerprint not in self._selections:
                raise InputError(
                    "a change of the mixture draws from window selections of the mixture alone, got another one, "
                    f"{component.windows.fingerprint[:12]}. Name it in a phase, if only in one that is never reached."
                )

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
                drawn, num_rows = _unpacked(saved["drawn"]), self.table.num_rows
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

    def _changed_shares(self, components: Sequence[Component]) -> _ChangedShares:
        self._num_changes += 1
        return _ChangedShares(self, self._num_changes, tuple(components))

    def _alone(self, components: Sequence[Component]) -> Mixture:
        return Mixture([Phase(components)], max_missing_mass=self.mixture.max_missing_mass)

    def _parts_of(self, components: Sequence[Component]) -> frozenset[int]:
        """Parts of the table that components with window selections draw from."""
        return frozenset(self._part_of_selection[each.windows.fingerprint] for each in components if each.windows)

    def shares_of_change(self, number: int, components: Sequence[Component]) -> LeafShares:
        """Shares of the rows under the components of a change."""
        return self._kept(("change", number), lambda: self._shares_in(self._alone(components), 0))

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

    def shares_of_phase(self, number: int) -> LeafShares:
        """Leaf proportions of a phase of the mixture, by its index."""
        return self._kept(("phase", number), lambda: self._shares_of_phase(number))

    def _shares_of_phase(self, number: int) -> LeafShares:
        if self.table.num_rows < SHARED_ROWS:
            return self._shares_in(self.mixture, number)

        def make() -> dict[str, NDArray[Any]]:
            made = self._shares_in(self.mixture, number)
            return {"rows": made.rows, "cdf": made.cdf}

        folder: Path = self._sources.first.table_folder
        others = [dataset.manifest.fingerprint for dataset in self._sources.datasets[1:]]
        mark = hashlib.sha256("".join([self.mixture.fingerprint, *others]).encode()).hexdigest()[:16]
        name = f"{mark}-{number}-{self.mixture.max_missing_mass:g}"
        arrays = shared_arrays(folder / f"plan-{name}.arrays", make)
        keep_newest(folder, "plan-*.arrays", _KEPT_PLANS)
        return LeafShares(rows=arrays["rows"], cdf=arrays["cdf"])

    def _shares_in(self, mixture: Mixture, index: int) -> LeafShares:
        """Shares of the rows of the table under a phase of a mixture."""
        parts, table, joined = mixture.parts_of_phase(index, self._sources), self.table, None
        for number, part in enumerate(parts):
            proportions = mixture.proportions_of_part(part, index, number, self._sources)
            if part.component.windows is None:
                first = int(table.first_rows[part.source])
            else:
                first = table.parts[self._part_of_selection[part.component.windows.fingerprint] - 1].first_row
            if len(parts) == 1:
                return LeafShares.of(proportions, first_row=first)
            if joined is None:
                joined = np.zeros(table.num_rows)
            joined[first : first + len(proportions)] += part.share * proportions
        assert joined is not None
        return LeafShares.of(joined)

    def _order_of(self, phases: Sequence[OrderPhase], history: DrawHistory | None) -> SampleOrder:
        return SampleOrder(self.table, phases, Blocks(seed=self._seed, draw=self.mixture.draw), history=history)

    def _phase_of_mixture(self, index: int, first_sample: int, num_samples: int | None) -> OrderPhase:
        parts, shares = self._parts_of(self.mixture.phases[index].components), _PhaseShares(self, index)
        return OrderPhase(shares=shares, first_sample=first_sample, num_samples=num_samples, parts=parts)

    def _phase(self, described: dict[str, Any]) -> OrderPhase:
        first, samples = described["first_sample"], described["num_samples"]
        if "phase" not in described:
            components = self.unpacked(described["components"])
            return OrderPhase(
                shares=self._changed_shares(components),
                first_sample=first,
                num_samples=samples,
                parts=self._parts_of(components),
            )
        index = int(described["phase"])
        if not 0 <= index < len(self.mixture.phases):
            raise ValueError(f"phase {index}")
        return self._phase_of_mixture(index, first, samples)

    def unpacked(self, described: Sequence[dict[str, Any]]) -> tuple[Component, ...]:
        """Components of a change that `pack_components` described. Raises ValueError when they are damaged."""
        components = []
        for each in described:
            try:
                source = self._sources.index(each["source"], what="a saved change")
            except InputError as error:
                raise ValueError(str(error)) from error
            windows = each.get("windows")
            if windows is not None and windows not in self._selections:
                raise ValueError(f"a window selection {windows[:12]} that the mixture does not have")
            components.append(
                Component(
                    unpack_histogram(each["histogram"], self._sources.datasets[source]),
                    share=each["share"],
                    source=each["source"],
                    windows=None if windows is None else self._selections[windows],
                )
            )
        return tuple(components)


class _PhaseShares:
    """The proportions of a phase of the mixture: a function without arguments, for OrderPhase."""

    def __init__(self, stream: Stream, index: int) -> None:
        self._stream, self.index = stream, index

    def __call__(self) -> LeafShares:
        return self._stream.shares_of_phase(self.index)


class _ChangedShares:
    """The proportions of a change made while running, for OrderPhase. Changes are numbered as they come to a stream."""

    def __init__(self, stream: Stream, number: int, components: tuple[Component, ...]) -> None:
        self._stream, self._number, self.components = stream, number, components

    def __call__(self) -> LeafShares:
        return self._stream.shares_of_change(self._number, self.components)


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
            else {"components": pack_components(shares.components, pack_histogram)}
        )
        described.append({"first_sample": phase.first_sample, "num_samples": phase.num_samples, **source})
    return described


def _packed(counts: NDArray[np.int64]) -> str:
    return _text(counts.astype("<i8").tobytes())


def _unpacked(text: str) -> NDArray[np.int64]:
    return np.frombuffer(_content(text), "<i8").astype(np.int64)


def pack_components(components: Sequence[Component], pack: Callable[[Histogram], Any]) -> list[dict[str, Any]]:
    """Describe components without limits; `pack` makes text (which JSON can hold) or bytes of a histogram."""
    return [
        {
            "histogram": pack(each.histogram),
            "share": float(each.share),
            "source": each.source,
            **({} if each.windows is None else {"windows": each.windows.fingerprint}),
        }
        for each in components
    ]


def pack_histogram(histogram: Histogram) -> str:
    """A histogram as text."""
    return _text(encode_histogram(histogram))


def unpack_histogram(packed: str | bytes, dataset: Dataset) -> Histogram:
    """Read what `pack_histogram` or `encode_histogram` made. Raises ValueError when it is damaged."""
    return decode_histogram(packed if isinstance(packed, bytes) else _content(packed), dataset)


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


def change_record(at: int, components: Sequence[Component]) -> bytes:
    """A change as a record of the log."""
    return _CHANGE + _POSITION.pack(at) + pickle.dumps(pack_components(components, encode_histogram))


def restore_record(state: dict[str, Any]) -> bytes:
    """A loaded state as a record of the log."""
    return _RESTORE + pickle.dumps({"stream": state.get("stream")})
