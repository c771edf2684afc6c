"""Histograms: how often a set of examples falls in each cluster of one level of the tree (paper, Section 3.4)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.manifest import MAX_LEAVES
from crisp_stream.format.parquet import Record, RecordKind, load_record, numbers, save_record
from crisp_stream.storage.shared_arrays import SHARED_ROWS, shared_arrays
from crisp_stream.storage.store import cache_folder

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.manifest import Manifest
    from crisp_stream.tree.tree import ClusterTree

ALIKE_KEY = "alike_examples"
"""Key in the provenance of a counted histogram: examples that are like an earlier one, `exact` and `near`."""
_SUM_TOLERANCE = 1e-6
_RECORD = RecordKind(
    name="a histogram file of crisp-stream",
    key=b"crisp_stream.histogram",
    version_key="histogram_version",
    version=1,
    remedy="Make a histogram with: crisp-stream histogram TASK… --out {path}",
    max_rows=MAX_LEAVES,
    sort_keys=True,
    options={"compression": "snappy"},
)


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Cluster frequencies P(c | D) at one level of one tree. They sum to 1.

    Raises:
        InputError: nodes unsorted or outside the level, proportions negative, not finite or not summing to 1.
    """

    level: int
    """Level of the tree, 1 to depth; 0 is the root, whose only histogram is the base mixture."""
    nodes: NDArray[np.uint32]
    """[num_nodes], sorted ids of the nodes that have mass."""
    proportions: NDArray[np.float64]
    """[num_nodes], positive, summing to 1."""
    arity: int
    depth: int
    tree_fingerprint: str
    """The tree whose nodes are counted."""
    counts: NDArray[np.int64] | None = None
    """[num_nodes], windows counted per node; None where the histogram was computed from others."""
    examples: NDArray[np.int64] | None = None
    """[sum of counts], the example (a document, a question) each window came from, node by node; None: not known. Of
    examples that are alike the first stands for all."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Source of the histogram."""

    def __post_init__(self) -> None:
        nodes = np.asarray(self.nodes)
        proportions = np.asarray(self.proportions, np.float64)
        if not 0 <= self.level <= self.depth:
            raise InputError(f"level {self.level} is not in the tree, which has levels 1 to {self.depth}.")
        if len(nodes) == 0 or nodes.shape != proportions.shape or nodes.ndim != 1:
            raise InputError(
                f"a histogram needs as many proportions as nodes, got {proportions.shape} and {nodes.shape}."
            )
        if (nodes[1:] <= nodes[:-1]).any() or nodes[0] < 0 or nodes[-1] >= self.arity**self.level:
            raise InputError(f"nodes must be sorted, unique and below {self.arity**self.level} at level {self.level}.")
        if not np.isfinite(proportions).all() or (proportions < 0).any():
            raise InputError("proportions must be finite and not negative. Check the counts.")
        total = float(proportions.sum())
        if abs(total - 1.0) > _SUM_TOLERANCE:
            raise InputError(f"proportions must sum to 1, got {total:.6f}. Divide them by their sum.")
        kept = proportions > 0
        object.__setattr__(self, "nodes", _kept(nodes, kept, np.uint32))
        object.__setattr__(self, "proportions", _kept(proportions, kept, np.float64))
        if self.counts is None:
            object.__setattr__(self, "examples", None)
            return
        object.__setattr__(self, "counts", _kept(np.asarray(self.counts), kept, np.int64))
        if self.examples is not None and len(self.examples) != int(self.counts.sum()):
            raise InputError(
                f"examples must be as many as windows were counted, {int(self.counts.sum())}, "
                f"got {len(self.examples)}. Count them again."
            )

    @classmethod
    def from_leaves(
        cls,
        leaves: ArrayLike,
        tree: ClusterTree,
        level: int,
        provenance: dict[str, Any] | None = None,
        *,
        examples: ArrayLike | None = None,
    ) -> Histogram:
        """Count assigned examples at a level.

        Args:
            leaves: [num_windows], leaf ids from `tree.assign`.
            examples: [num_windows], numbers of the examples that the windows came from.

        Raises:
            InputError: no examples, or a level the tree does not have.
        """
        if level < 1:
            raise InputError(
                f"level {level} is not in the tree, which has levels 1 to {tree.depth}. Choose one of them."
            )
        nodes_of_windows = tree.node_of(leaves, level)
        if examples is not None:
            examples = np.asarray(examples, np.int64)
            examples = examples[np.lexsort((examples, nodes_of_windows))]
        nodes, counts = np.unique(nodes_of_windows, return_counts=True)
        if not len(nodes):
            raise InputError("a histogram needs at least one example, got none.")
        return cls(
            level=level,
            nodes=nodes,
            proportions=counts / counts.sum(),
            arity=tree.arity,
            depth=tree.depth,
            tree_fingerprint=tree.fingerprint,
            counts=counts,
            examples=examples,
            provenance=provenance or {},
        )

    @classmethod
    def base(cls, manifest: Manifest | Dataset) -> Histogram:
        """All mass on the root: expanded by size, it is the distribution of the generalist corpus itself.

        `manifest` is that of the dataset, or the dataset itself.
        """
        found: Any = getattr(manifest, "manifest", manifest)
        return cls(
            level=0,
            nodes=np.zeros(1, np.uint32),
            proportions=np.ones(1),
            arity=found.arity,
            depth=found.depth,
            tree_fingerprint=found.tree_fingerprint,
            provenance={"name": "base"},
        )

    @classmethod
    def average(cls, histograms: Sequence[Histogram], weights: Sequence[float] | None = None) -> Histogram:
        """The weighted mean of histograms: multitask training (paper, Section 5.4; equal weights by default).

        Args:
            histograms: of one tree and one level.
            weights: one per histogram, not negative, with a positive sum; they are normalised.

        Raises:
            InputError: no histograms, different trees or levels, bad weights.
        """
        if not histograms:
            raise InputError("an average needs at least one histogram, got none.")
        first = histograms[0]
        for other in histograms[1:]:
            first.check_same_tree(other)
            if other.level != first.level:
                raise InputError(f"histograms must have one level, got {first.level} and {other.level}.")
        shares = np.ones(len(histograms)) if weights is None else np.asarray(weights, np.float64)
        if (
            shares.shape != (len(histograms),)
            or not np.isfinite(shares).all()
            or (shares < 0).any()
            or shares.sum() <= 0
        ):
            raise InputError(f"weights must be {len(histograms)} numbers >= 0 with a positive sum, got {weights}.")
        shares = shares / shares.sum()
        nodes = np.unique(np.concatenate([histogram.nodes for histogram in histograms]))
        proportions = np.zeros(len(nodes))
        for share, histogram in zip(shares, histograms, strict=True):
            proportions[np.searchsorted(nodes, histogram.nodes)] += share * histogram.proportions
        provenance = {"average": [h.provenance for h in histograms], "weights": shares.tolist()}
        return dataclasses.replace(first, nodes=nodes, proportions=proportions, counts=None, provenance=provenance)

    def check_same_tree(self, other: Histogram) -> None:
        """Raise InputError if two histograms were counted with different trees."""
        if other.tree_fingerprint != self.tree_fingerprint:
            raise InputError(
                f"histograms must come from one tree, got {self.tree_fingerprint[:12]} and "
                f"{other.tree_fingerprint[:12]}. Count them again with one --data."
            )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over level, nodes, proportions and tree."""
        digest = hashlib.sha256(json.dumps([self.level, self.tree_fingerprint]).encode())
        digest.update(np.ascontiguousarray(self.nodes, "<u4").data)
        digest.update(np.ascontiguousarray(self.proportions, "<f8").data)
        return digest.hexdigest()

    def expand(
        self, leaves: NDArray[np.uint32], windows_per_leaf: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], float]:
        """Spread each node's mass over its non-empty leaves by size: p(leaf) = h(node) · n_leaf / n_node.

        That is exactly Uniform(D^g ∩ K(node)) of Algorithm 1, line 8.

        Args:
            leaves: [num_leaves], sorted ids of the non-empty leaves.
            windows_per_leaf: [num_leaves].

        Returns:
            [num_leaves] proportions summing to 1 - missing; and missing, the mass on nodes without windows.
        """
        if self.level == self.depth and np.array_equal(self.nodes, leaves):
            return self.proportions.copy(), 0.0
        span, nodes = self.arity ** (self.depth - self.level), self.nodes.astype(np.int64)
        # The needles have the type of the haystack, or numpy would copy all leaves.
        first, stop = (np.searchsorted(leaves, (border * span).astype(np.uint32)) for border in (nodes, nodes + 1))
        present = stop > first
        missing = float(self.proportions[~present].sum())
        first, stop = first[present], stop[present]
        if not len(first):
            return np.zeros(len(leaves)), missing
        borders = np.stack([first, stop], axis=1).ravel()
        if borders[-1] == len(leaves):
            borders = borders[:-1]
        per_window = self.proportions[present] / np.add.reduceat(windows_per_leaf, borders)[::2]
        # Between the nodes lie leaves of others: stretches of them and of nodes, in turn.
        lengths = np.diff(np.stack([first, stop], axis=1).ravel(), prepend=0, append=len(leaves))
        values = np.zeros(len(lengths))
        values[1::2] = per_window
        expanded = np.repeat(values, lengths)
        expanded *= windows_per_leaf
        return expanded, missing

    def missing_nodes(self, leaves: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The nodes with mass that hold no window, heaviest first."""
        occupied = np.unique(leaves.astype(np.int64) // self.arity ** (self.depth - self.level))
        empty = ~np.isin(self.nodes, occupied)
        return self.nodes[empty][np.argsort(-self.proportions[empty], kind="stable")]

    def save(self, path: str | Path) -> None:
        """Write a small Parquet file: columns node, proportion, count, perhaps examples. Raises StorageError."""
        counts = pa.nulls(len(self.nodes), pa.int64()) if self.counts is None else pa.array(self.counts, pa.int64())
        columns: dict[str, Any] = {"node": self.nodes, "proportion": self.proportions, "count": counts}
        if self.examples is not None and self.counts is not None:
            ends = np.cumsum(self.counts, dtype=np.int32)
            offsets = pa.array(np.append(np.int32(0), ends), pa.int32())
            columns["examples"] = pa.ListArray.from_arrays(offsets, pa.array(self.examples, pa.int64()))
        facts = {key: getattr(self, key) for key in ("level", "arity", "depth", "tree_fingerprint", "provenance")}
        save_record(path, _RECORD, columns, facts)

    @classmethod
    def load(cls, path: str | Path) -> Histogram:
        """Read a saved histogram.

        Raises:
            FormatError: not a histogram file, or a damaged one. StorageError: the storage refused or failed.
        """
        with load_record(path, _RECORD) as record:
            facts = record.facts
            arity, depth = int(facts["arity"]), int(facts["depth"])
            if not (2 <= arity <= 64 and 1 <= depth <= 24):
                raise FormatError(f"arity must be 2 to 64 and depth 1 to 24, got {arity} and {depth}.")
            if record.file.metadata.num_rows < SHARED_ROWS:
                columns = _columns(record)
            else:  # one copy for all processes of the machine
                name = f"{xxhash.xxh3_128_hexdigest(record.content)}.arrays"
                columns = shared_arrays(cache_folder() / "histograms" / name, lambda: _columns(record))
            counted = len(columns["count"]) > 0
            return cls(
                level=int(facts["level"]),
                nodes=columns["node"],
                proportions=columns["proportion"],
                arity=arity,
                depth=depth,
                tree_fingerprint=str(facts["tree_fingerprint"]),
                counts=columns["count"] if counted else None,
                examples=columns["examples"] if counted and len(columns["examples"]) else None,
                provenance=dict(facts["provenance"]),
            )


def _columns(record: Record) -> dict[str, NDArray[Any]]:
    """Columns node, proportion, count and examples of a histogram file; no counts where they are null."""
    table = record.table()
    if table["node"].null_count or table["proportion"].null_count:
        raise FormatError("node and proportion must not be null. Restore the file.")
    nodes, proportions = numbers(table["node"], pa.uint32()), numbers(table["proportion"], pa.float64())
    counts = np.empty(0, np.int64) if table["count"].null_count else numbers(table["count"], pa.int64())
    examples = np.empty(0, np.int64)
    if "examples" in table.column_names:
        of_nodes = table["examples"].combine_chunks()
        if not pa.types.is_list(of_nodes.type) or of_nodes.null_count:
            raise FormatError("examples must be a list for every node. Restore the file.")
        lengths = of_nodes.value_lengths().to_numpy(zero_copy_only=False)
        if len(lengths) != len(counts) or (lengths != counts).any():
            raise FormatError("examples must be as many as windows were counted. Restore the file.")
        examples = numbers(pa.chunked_array([of_nodes.flatten()]), pa.int64())
    return {"node": nodes, "proportion": proportions, "count": counts, "examples": examples}


def _kept(values: NDArray[Any], kept: NDArray[np.bool_], dtype: type[np.generic]) -> NDArray[Any]:
    """The values to keep: a copy, unless they are all kept and nobody can change them."""
    if values.dtype == dtype and not values.flags.writeable and kept.all():
        return values
    return values[kept].astype(dtype, copy=False)
