"""Sources: the datasets of one stream, as one table of leaves."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import open_dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crisp_stream.config.sections import DataRecipe
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.manifest import Manifest

MAX_SOURCES = 1 << 8


class Sources:
    """Datasets by name, in order: [num_sources]. One without a name is a dataset alone.

    Window numbers count the windows of one source after the other; of a dataset alone they are its window ids.
    """

    def __init__(self, datasets: Mapping[str, Dataset] | Dataset) -> None:
        """Raises InputError: no source, a bad name, or sources whose windows cannot stand in one batch."""
        named = dict(datasets) if isinstance(datasets, Mapping) else {"": datasets}
        self.is_named = isinstance(datasets, Mapping)
        if not 1 <= len(named) <= MAX_SOURCES:
            raise InputError(f"sources: must be 1 to {MAX_SOURCES} datasets, got {len(named)}.")
        for name in named if self.is_named else ():
            if not str(name).isidentifier():
                raise InputError(
                    f"sources: a name must be made of letters, digits and _, and begin with a letter, got {name!r}."
                )
        self.names, self.datasets = tuple(named), tuple(named.values())
        for name, dataset in zip(self.names[1:], self.datasets[1:], strict=True):
            _check_alike(self.names[0], self.datasets[0], name, dataset)
        self.first_windows: NDArray[np.int64] = np.cumsum([0, *(each.manifest.num_windows for each in self.datasets)])
        """[num_sources + 1], the number of each source's first window."""

    @classmethod
    def of(cls, data: Sources | Mapping[str, Dataset] | Dataset) -> Sources:
        """The sources themselves, or those made of a dataset or a mapping. Raises InputError."""
        return data if isinstance(data, Sources) else cls(data)

    @classmethod
    def open(cls, data: DataRecipe) -> Sources:
        """Open the dataset of a recipe's section `data`, or its sources.

        Raises:
            FormatError, StorageError: a root cannot be opened.
            InputError: there is no such generation, or the sources cannot stand in one batch.
        """
        opened: dict[str, Dataset] = {}
        for name, source in data.as_sources.items():
            try:
                opened[name] = open_dataset(source.remote, generation=source.generation, timeout=data.timeout)
            except (FormatError, InputError) as error:
                if not name:
                    raise
                raise type(error)(f"`data.sources.{name}` ({source.remote}): {error}") from error
        return cls(opened if data.sources is not None else opened[""])

    def __len__(self) -> int:
        return len(self.datasets)

    def __iter__(self) -> Iterator[tuple[str, Dataset]]:
        return zip(self.names, self.datasets, strict=True)

    @property
    def first(self) -> Dataset:
        """The first source."""
        return self.datasets[0]

    @property
    def manifest(self) -> Manifest:
        """That of the first source; in window length, tokens, tokenizer and packing all are like it."""
        return self.first.manifest

    @functools.cached_property
    def first_rows(self) -> NDArray[np.int64]:
        """[num_sources + 1], the row of each source's first leaf in the table of all leaves."""
        return np.cumsum([0, *(len(each.leaves) for each in self.datasets)])

    @property
    def windows_per_row(self) -> NDArray[np.int64]:
        """[num_rows], windows of each leaf, of one source after the other."""
        each = [dataset.windows_per_leaf for dataset in self.datasets]
        return each[0] if len(each) == 1 else np.concatenate(each)

    def rows_of(self, leaves: NDArray[np.integer[Any]], source: NDArray[np.integer[Any]] | None) -> NDArray[np.int64]:
        """The row of each of some leaves, [num_leaves], by the index of its source; None: all are of the first."""
        if source is None or len(self) == 1:
            return np.searchsorted(self.first.leaves, leaves)
        rows = np.empty(len(leaves), np.int64)
        for index, dataset in enumerate(self.datasets):
            own = source == index
            rows[own] = self.first_rows[index] + np.searchsorted(dataset.leaves, leaves[own])
        return rows

    def leaves_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The leaf of each row, and the index of its source; each [num_rows]."""
        source = np.searchsorted(self.first_rows, rows, side="right") - 1
        leaves = np.empty(len(rows), np.int64)
        for index, dataset in enumerate(self.datasets):
            own = source == index
            leaves[own] = dataset.leaves[rows[own] - self.first_rows[index]]
        return leaves, source

    def index(self, name: str, *, what: str) -> int:
        """Index of a source by the name that `what` gives; the empty name is the only source.

        Raises:
            InputError: there is no such source, or there are several and none is named.
        """
        if name in self.names:
            return self.names.index(name)
        if not name and len(self) == 1:
            return 0
        if not self.is_named:
            raise InputError(
                f"{what}: there is one source, without a name, got {name!r}. Leave source out, or give the datasets as "
                "a mapping of names."
            )
        got = f"got {name!r}" if name else "got none"
        raise InputError(f"{what}: source must be one of {', '.join(self.names)}, {got}.")

    def identity(self) -> dict[str, Any]:
        """What a state says of the sources: the fingerprint of a dataset alone, or names and fingerprints."""
        if not self.is_named:
            return {"dataset": self.manifest.fingerprint}
        return {"sources": {name: dataset.manifest.fingerprint for name, dataset in self}}

    def split(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each window number, and its window id there; each [num_windows]."""
        source = np.searchsorted(self.first_windows, numbers, side="right") - 1
        return source, numbers - self.first_windows[source]


def _check_alike(first: str, one: Dataset, name: str, other: Dataset) -> None:
    for what, ours, theirs in _compared(one, other):
        if ours != theirs:
            raise InputError(
                f"sources: all must have the same {what}, but {first} has {_short(ours)} ({one.root}) and {name} has "
                f"{_short(theirs)} ({other.root}). Write {name} with --like {one.root}, or with the same options."
            )


def _compared(one: Dataset, other: Dataset) -> Iterable[tuple[str, Any, Any]]:
    a, b = one.manifest, other.manifest
    yield "tokenizer", a.tokenizer.fingerprint, b.tokenizer.fingerprint
    yield "window length", a.window_tokens, b.window_tokens
    yield "token type", a.token_dtype, b.token_dtype
    yield "packing", a.packing, b.packing
    yield "end-of-text token", a.tokenizer.eot_id, b.tokenizer.eot_id


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
