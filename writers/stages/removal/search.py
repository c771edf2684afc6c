"""A search for duplicates, and its tasks: by bundles of documents, or by ranges of hashes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.cleaning.near_duplicates import NearSettings
from crisp_stream.writers.engine.exchange import Exchange, ExchangeWriter
from crisp_stream.writers.engine.tasks import Record, Task, file_sizes, fingerprint
from crisp_stream.writers.engine.versions import stage_libraries
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.removal.bundles import Bundle, BundleArrays

OUTCOME_VERSION = 2
"""Raised whenever other documents are found, or the files of a task change."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for duplicates, and how it is parted into tasks, which decides nothing of its outcome."""

    documents: str
    """Fingerprint of the documents."""
    num_documents: int
    near: NearSettings | None
    """None finds equal texts only."""
    bundle_documents: int
    num_bundles: int
    digest_ranges: int
    key_ranges: int
    """Of each band."""

    @property
    def num_bands(self) -> int:
        """Bands of the sketches."""
        assert self.near is not None
        return self.near.bands[0]

    @property
    def outcome(self) -> str:
        """Fingerprint of what is found, however it is parted."""
        return fingerprint(self.documents, self.near, OUTCOME_VERSION)

    @property
    def places_name(self) -> str:
        """Name of the array of the first place of each bundle."""
        return f"duplicates-bundles/{fingerprint(self.documents, self.bundle_documents)}.npy"

    def bundles(self, workspace: Workspace, places: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The bundles of documents."""
        firsts = _first_places(workspace.url, self.places_name)
        return np.searchsorted(firsts, places, side="right") - 1


@lru_cache(maxsize=1)
def _first_places(url: str, name: str) -> NDArray[np.uint64]:
    return Workspace(url).load_array(name)


@dataclass(frozen=True, kw_only=True)
class SearchTask(Task):
    version: ClassVar[int] = OUTCOME_VERSION
    unit: ClassVar[str] = "pairs"
    """What its records count."""

    inputs: tuple[str, ...] = field(init=False)
    search: Search

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", (self.search.documents,))
        super().__post_init__()

    def settings(self) -> Any:
        """The search."""
        return self.search

    @cached_property
    def fingerprint(self) -> str:
        """The same for all tasks of a stage, so that the names of their files need no list."""
        return self.leaves.fingerprint

    @property
    @abstractmethod
    def leaves(self) -> Exchange:
        """What the tasks of the stage leave."""

    @classmethod
    def _exchange(
        cls, search: Search, num_sources: int, num_destinations: int, dtype: np.dtype[Any], *flags: bool
    ) -> Exchange:
        return Exchange(
            stage=cls.stage,
            fingerprint=fingerprint(cls.stage, cls.version, stage_libraries(cls.stage, light=True), search, flags),
            num_sources=num_sources,
            num_destinations=num_destinations,
            dtype=dtype,
        )

    def _record(self, num_units: int, **known: Any) -> Record:
        return {"num_units": num_units, **known, "files": file_sizes(self, *self.leaves.names(self.number))}

    def _to_bundles(self, writer: ExchangeWriter, rows: NDArray[np.void]) -> None:
        """Write rows, which are sorted, for the bundles of their documents."""
        writer.add(rows, self.search.bundles(self.workspace, rows["place"]))


@dataclass(frozen=True, kw_only=True)
class BundleTask(SearchTask):
    """A task of the search for one bundle, which has its number."""

    bundle: Bundle

    @property
    def arrays(self) -> BundleArrays:
        """The arrays of the bundle's documents."""
        return BundleArrays(self.workspace, self.bundle)
