"""Selections of windows: those of a dataset that training may draw, each as often as any other.

What a histogram is to clusters, a selection is to single windows: the result of methods that score every window, such
as the paper's classifier (Section 3.2). A phase of a mixture draws from it (FORMAT.md, "Window selections").
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.parquet import RecordKind, load_record, numbers, save_record
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.order.packed_bits import PackedBits, Words, indexed, members, num_words, pack, unpack
from crisp_stream.storage.shared_arrays import SHARED_ROWS, keep_newest, shared_arrays
from crisp_stream.storage.store import cache_folder

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

MAX_WINDOWS = 1 << 36
"""Most windows of a dataset that can be selected from: 8 GB of bits."""

_RECORD = RecordKind(
    name="a window selection of crisp-stream",
    key=b"crisp_stream.windows",
    version_key="windows_version",
    version=1,
    remedy="Make a selection with: crisp-stream select METHOD … --out {path}",
    sort_keys=True,
    options={"use_dictionary": False, "write_page_checksum": True},
)
_KEPT_SELECTIONS = 16


class WindowSelection:
    """Some windows of one generation of one dataset. Never empty; immutable; equal to others of equal fingerprint."""

    def __init__(
        self,
        *,
        dataset_fingerprint: str,
        windows: ArrayLike,
        num_windows: int,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Args:
            dataset_fingerprint: of the manifest of the dataset.
            windows: [num_selected], window ids, sorted and unique; or [num_windows] bool, whether each is selected.
            num_windows: of the dataset.
            provenance: where the selection came from; fit for JSON, and not part of the fingerprint.

        Raises:
            InputError: no windows, or ids that are not sorted, not unique or not of the dataset.
        """
        if not 1 <= num_windows <= MAX_WINDOWS:
            raise InputError(f"num_windows must be 1 to {MAX_WINDOWS:,}, got {num_windows}.")
        chosen = np.asarray(windows)
        if chosen.ndim != 1 or not (chosen.dtype == np.bool_ or np.issubdtype(chosen.dtype, np.integer)):
            raise InputError(
                f"a window selection needs a list of window ids, got {chosen.dtype} of shape {chosen.shape}. "
                "If it is empty, select more."
            )
        if chosen.dtype == np.bool_:
            if len(chosen) != num_windows:
                raise InputError(
                    f"a selection needs one bool for each of {num_windows:,} windows, got {len(chosen):,}."
                )
            words = _packed(chosen)
        else:
            if (chosen[1:] <= chosen[:-1]).any():
                raise InputError("window ids must be sorted and unique. Use numpy.unique.")
            if len(chosen) and not 0 <= int(chosen[0]) <= int(chosen[-1]) < num_windows:
                raise InputError(f"window ids must be 0 to {num_windows - 1:,}, got {chosen[0]:,} to {chosen[-1]:,}.")
            words = pack(chosen.astype(np.int64, copy=False), num_windows)
        self._hold(dataset_fingerprint, words, num_windows, provenance or {})

    def _hold(self, dataset_fingerprint: str, words: Words, num_windows: int, provenance: dict[str, Any]) -> None:
        self.dataset_fingerprint = dataset_fingerprint
        self.num_windows = num_windows
        """Windows of the dataset."""
        self.provenance = provenance
        digest = hashlib.sha256(json.dumps([dataset_fingerprint, num_windows]).encode())
        digest.update(np.ascontiguousarray(words, "<u8").view(np.uint8).data)
        self.fingerprint = digest.hexdigest()
        """sha256 over the dataset's fingerprint and the bits."""
        self.bits = _indexed(words, self.fingerprint)
        if not self.bits.num_members:
            raise InputError("a window selection must hold at least one window, got none. Select more.")

    @property
    def num_selected(self) -> int:
        """Windows in the selection."""
        return self.bits.num_members

    @property
    def share(self) -> float:
        """Share of the dataset's windows, in (0, 1]."""
        return self.num_selected / self.num_windows

    @property
    def windows(self) -> NDArray[np.int64]:
        """[num_selected], sorted window ids in the dataset's numbering; made anew each time."""
        return members(self.bits.words)

    def contains(self, first: int, stop: int) -> NDArray[np.bool_]:
        """[stop - first], whether each of some consecutive windows is selected."""
        return unpack(self.bits.words, first, stop)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WindowSelection) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def selected_per_leaf(self, dataset: Dataset) -> NDArray[np.int64]:
        """[num_leaves], selected windows of each leaf. Raises InputError: of another dataset."""
        self.check_dataset(dataset)
        ends = np.append(dataset.first_window_per_leaf, dataset.manifest.num_windows)
        return np.diff(self.bits.rank(ends))

    def histogram(self, dataset: Dataset) -> Histogram:
        """Count the selected windows per leaf: in these proportions they are drawn. Raises InputError: as above."""
        self.check_dataset(dataset)
        manifest = dataset.manifest
        if manifest.num_leaves < SHARED_ROWS:
            columns: Any = self._columns(dataset)
        else:
            folder = cache_folder() / "selections"
            path = folder / f"{self.fingerprint[:32]}-leaves.arrays"
            columns = shared_arrays(path, lambda: self._columns(dataset))
        return dataclasses.replace(
            Histogram.base(manifest),
            level=manifest.depth,
            nodes=columns["node"],
            proportions=columns["proportion"],
            counts=columns["count"],
            provenance={"windows": self.fingerprint, **self.provenance},
        )

    def _columns(self, dataset: Dataset) -> dict[str, NDArray[Any]]:
        counts = self.selected_per_leaf(dataset)
        present = counts > 0
        nodes, counts = dataset.leaves[present], counts[present]
        return {"node": nodes, "proportion": counts / self.num_selected, "count": counts}

    def check_dataset(
        self, dataset: Dataset, *, what: str = "the window selection", key: str = "data.generation"
    ) -> None:
        """Raise InputError if this is a selection of another dataset or generation; `what` names it in the message, and
        `key` is that of the generation in a recipe."""
        manifest = dataset.manifest
        if (self.dataset_fingerprint, self.num_windows) == (manifest.fingerprint, manifest.num_windows):
            return
        generation = dataset.generation_with(self.dataset_fingerprint)
        if generation is not None:
            raise InputError(
                f"{what} is one of generation {generation} of {dataset.root}, which is opened in generation "
                f"{manifest.generation}: windows are numbered anew. Select again, or open generation={generation} "
                f"(in a recipe {key}={generation})."
            )
        raise InputError(
            f"{what} was made for dataset {self.dataset_fingerprint[:12]} of {self.num_windows:,} windows, "
            f"{dataset.root} is {manifest.fingerprint[:12]} of {manifest.num_windows:,}. "
            f"Select again with --data {dataset.root}"
        )

    def save(self, path: str | Path) -> None:
        """Write a Parquet file, by convention *.windows.parquet: a column of 64 windows a row. Raises StorageError."""
        keys = ("dataset_fingerprint", "num_windows", "num_selected", "provenance")
        columns = {"selected": pa.array(self.bits.words, pa.uint64())}
        save_record(path, _RECORD, columns, {key: getattr(self, key) for key in keys})

    @classmethod
    def load(cls, path: str | Path) -> WindowSelection:
        """Read a saved selection.

        Raises:
            FormatError: not a selection, or a damaged one. StorageError: the storage refused or failed.
        """
        with load_record(path, _RECORD) as record:
            facts, rows = record.facts, record.file.metadata.num_rows
            num_windows = int(facts["num_windows"])
            if not 1 <= num_windows <= MAX_WINDOWS or rows != num_words(num_windows):
                raise FormatError(f"{rows:,} rows cannot hold {num_windows:,} windows of a dataset. Restore the file.")
            words = numbers(record.table()["selected"], pa.uint64())
            if len(words) != rows or (num_windows % 64 and int(words[-1]) >> (num_windows % 64)):
                raise FormatError("windows are selected that the dataset does not have. Restore the file.")
            selection = cls.__new__(cls)
            selection._hold(str(facts["dataset_fingerprint"]), words, num_windows, dict(facts["provenance"]))
            if selection.num_selected != facts["num_selected"]:
                raise FormatError(
                    f"must hold {facts['num_selected']:,} windows, got {selection.num_selected:,}. Restore the file."
                )
            return selection


def is_of_selection(histogram: Histogram, selection: WindowSelection) -> bool:
    """Whether a histogram was made by `selection.histogram`: drawn by it, all selected windows have equal shares."""
    return histogram.counts is not None and histogram.provenance.get("windows") == selection.fingerprint


def _packed(chosen: NDArray[np.bool_]) -> Words:
    packed = np.zeros(num_words(len(chosen)) * 8, np.uint8)
    bits = np.packbits(chosen, bitorder="little")
    packed[: len(bits)] = bits
    return packed.view("<u8")


def _indexed(words: Words, fingerprint: str) -> PackedBits:
    """The bits with their counts; of a large dataset one copy for all processes of the machine."""
    if len(words) < SHARED_ROWS:
        return PackedBits(indexed(words))
    folder = cache_folder() / "selections"
    arrays = shared_arrays(folder / f"{fingerprint[:32]}.arrays", lambda: indexed(words))
    keep_newest(folder, "*.arrays", _KEPT_SELECTIONS)
    return PackedBits(arrays)
