"""Stage `runs`: windows get their keys, (leaf, hash), and consecutive parts are sorted by them.

A key orders all windows of a dataset: by leaf, and inside a leaf by a hash of where the window came from, so that any
prefix of a leaf is a uniform sample of it. A run holds about 64 MB of windows, sorted; what writes a range of keys
(sorting/ranges.py) then reads its stretch of every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.errors import import_extra
from crisp_stream.format.keys import window_keys
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.engine.tasks import Record, Task, file_sizes
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.windows import Part, chosen_parts, forget_encoders
from crisp_stream.writers.tree.quality import QualitySums

_ROWS_PER_WRITE = 4096


def part_places(part: int, places: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """[num_windows, 2] of (part, place) from the places of one part."""
    return np.stack([np.full(len(places), part, np.uint32), places], axis=1)


def group_parts(parts: Sequence[Part], window_bytes: int, *, run_bytes: int) -> list[Sequence[Part]]:
    """Consecutive parts with windows, grouped into runs of at most `run_bytes` of tokens (or one part)."""
    parts = chosen_parts(parts, lambda part: part.num_windows > 0)
    groups: list[Sequence[Part]] = []
    start = held_bytes = 0
    for at, part in enumerate(parts):
        if at > start and held_bytes + part.num_windows * window_bytes > run_bytes:
            groups.append(parts[start:at])
            start, held_bytes = at, 0
        held_bytes += part.num_windows * window_bytes
    return [*groups, parts[start:]] if len(parts) else groups


@lru_cache(maxsize=1)
def load_tree(folder: Path) -> ClusterTree:
    """The tree, kept for the next task of this process."""
    return ClusterTree.load(folder)


def tree_of(workspace: Workspace, key: str) -> ClusterTree:
    """The tree whose files stand below `key`, in any process."""
    names = [name.rpartition("/")[2] for name in sorted(workspace.sizes(key))]
    return load_tree(workspace.kept(*(f"{key}/{name}" for name in names))[0].parent)


@dataclass(frozen=True, kw_only=True)
class RunTask(Task):
    """Assign the windows of some parts to leaves and sort them into one run."""

    stage: ClassVar[str] = "runs"
    title: ClassVar[str] = "sorting windows"
    version: ClassVar[int] = 3

    parts: Sequence[Part]
    tree: str
    """Folder of the workspace with the tree's files; its name holds their fingerprint."""
    seed: int

    def settings(self) -> Any:
        """Values that determine the run beside its parts."""
        return [self.tree, self.seed, [part.number for part in self.parts]]

    def make(self) -> Record:
        """Write keys, tokens and places, sorted by key."""
        forget_encoders()  # of the stage before
        limits = import_extra("threadpoolctl", extra="write", purpose="sorting windows").threadpool_limits
        tree = tree_of(self.workspace, self.tree)
        stored = [self.workspace.load_array(f"{part.embeddings_key}.embeddings.npy") for part in self.parts]
        with limits(1):  # a window's leaf must not depend on how many cores multiply
            leaves = tree.assign(np.concatenate(stored))  # fast for many windows at once
        ends = np.cumsum([len(rows) for rows in stored])
        bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        sums = [
            QualitySums.of(tree, rows, leaves[start:stop]) for rows, (start, stop) in zip(stored, bounds, strict=True)
        ]
        places = np.concatenate(
            [
                part_places(part.number, self.workspace.load_array(f"{part.windows_key}.places.npy"))
                for part in self.parts
            ]
        )
        del stored
        tokens = [self.workspace.load_array(f"{part.windows_key}.tokens.npy") for part in self.parts]
        all_keys = window_keys(leaves, places, self.seed)
        digests = [_digest(all_keys[start:stop], own) for own, (start, stop) in zip(tokens, bounds, strict=True)]
        order = np.argsort(all_keys, kind="stable")
        self.workspace.save_rows(self.file("tokens.npy"), _rows_in_order(tokens, order))
        self.workspace.save_array(self.file("places.npy"), places[order])
        self.workspace.save_array(self.file("keys.npy"), all_keys[order])
        return {
            "num_units": len(all_keys),
            "quality": [one.to_json() for one in sums],
            "digests": digests,
            "files": file_sizes(self, *map(self.file, ("tokens.npy", "places.npy", "keys.npy"))),
        }


def _rows_in_order(arrays: Sequence[NDArray[Any]], order: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """`np.concatenate(arrays)[order]` in pieces, without a second and a third copy of the arrays."""
    ends = np.cumsum([len(array) for array in arrays])
    for start in range(0, len(order), _ROWS_PER_WRITE):
        rows = order[start : start + _ROWS_PER_WRITE]
        array_of_row = np.searchsorted(ends, rows, side="right")
        piece = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for number in np.unique(array_of_row).tolist():
            here = array_of_row == number
            piece[here] = arrays[number][rows[here] - (ends[number] - len(arrays[number]))]
        yield piece


def _digest(keys: NDArray[np.uint64], tokens: NDArray[Any]) -> str:
    """Hash the windows of a part, as they stand in it."""
    hasher = xxhash.xxh3_128(np.ascontiguousarray(keys, "<u8").data)
    hasher.update(np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("<")).data)
    return hasher.hexdigest()


def identity_of(records: Iterable[Record], grown: str | None) -> int:
    """64 bits that follow from all windows that are written, for the seeds of their checksums.

    Args:
        records: of all runs, in order; which parts a run holds changes nothing.
        grown: fingerprint of the dataset that grows, None for a new one.
    """
    hasher = hashlib.sha256(f"[{json.dumps(grown)}, [".encode())  # a JSON list of it and the list of digests
    separator = ""
    for record in records:
        for digest in record["digests"]:
            hasher.update(f'{separator}"{digest}"'.encode())
            separator = ", "
    hasher.update(b"]]")
    return int(hasher.hexdigest()[:16], 16)
