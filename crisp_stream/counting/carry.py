"""A histogram in another tree: the same examples, assigned again, or its clusters, moved by their centroids.

A histogram is valid for every dataset of its tree, so also for one that has grown. For another tree of the same encoder
the examples' embeddings are counted there, where they were kept: that is what counting the text again would give, but
for windows that the other dataset would cut elsewhere. Without them every leaf stands for its windows by its centroid
alone. How far that leads astray is measured by examples that were held out, and said beside what sampling alone does:
half of the kept ones in turn, or others that are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.counting.count_examples import check_level
from crisp_stream.counting.task_embeddings import histogram_of_task
from crisp_stream.counting.task_vectors import HISTOGRAM_KEY, TaskEmbeddings
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import compare, cut, total_variation
from crisp_stream.histograms.component import check_tree
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.unlike import UNKNOWN_WORDS_KEY
from crisp_stream.processes import Log
from crisp_stream.table import Table
from crisp_stream.tree.tree import ClusterTree

Way = Literal["as it is", "embeddings", "centroids"]
SPLITS = 10
"""Random halves of the kept examples by which the error is measured."""
LEAST_EXAMPLES = 4
"""Groups of alike examples below which halves say nothing."""
_SAME_COUNTS = 5e-3
"""Total variation up to which embeddings are taken for those of a histogram: their assignment may differ in ties."""
CARRY_KEY = "carry"
"""Key in the provenance of a histogram that was moved by centroids: that of the histogram it was before."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a histogram is from held-out examples."""

    name: str
    total_variation: float
    """Half the sum of absolute differences, 0 to 1."""
    jensen_shannon: float
    """In nats, 0 to log 2."""


@dataclass(frozen=True, kw_only=True)
class CarryError:
    """What carrying a histogram costs, by examples that were held out from it."""

    held_out_windows: int
    """Windows of the held-out examples (of one half of the kept ones)."""
    splits: int
    """Random halves that were averaged; 1 for examples that were given."""
    distances: tuple[Distance, ...]
    """From the held-out examples as they are counted in a tree."""

    def table(self) -> Table:
        """Format as a table."""
        halves = f", means over {self.splits} random halves" if self.splits > 1 else ""
        rows = [(one.name, digits.part(one.total_variation), f"{one.jensen_shannon:.4f}") for one in self.distances]
        return Table(
            head=(f"distance to {self.held_out_windows:,} held-out windows{halves}", "total variation", "JS, nats"),
            rows=rows,
        )

    def to_json(self) -> dict[str, Any]:
        """Make the entry of a provenance."""
        return {
            "held_out_windows": self.held_out_windows,
            "splits": self.splits,
            "total_variation": {one.name: round(one.total_variation, 4) for one in self.distances},
            "jensen_shannon": {one.name: round(one.jensen_shannon, 4) for one in self.distances},
        }


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A histogram in the tree of another dataset."""

    histogram: Histogram
    way: Way
    missing: float
    """Its mass on clusters of which the other dataset has no window."""
    error: CarryError | None
    """None where there is nothing to measure it by, and where the tree is the same."""


def carry(
    histogram: Histogram,
    source: Dataset,
    target: Dataset,
    *,
    level: int | None = None,
    embeddings: TaskEmbeddings | None = None,
    held_out: TaskEmbeddings | None = None,
    way: Literal["embeddings", "centroids"] | None = None,
    seed: int = 0,
    log: Log = print,
) -> Carried:
    """Move a histogram to the tree of another dataset.

    Args:
        histogram: of the source's tree.
        source: dataset that it was counted with.
        target: dataset whose tree is meant.
        level: of the result. None: the leaves for a histogram of leaves, else the level that the histogram has.
        embeddings: of the examples that were counted, as `count_examples` keeps them.
        held_out: embeddings of other examples of the task, to measure the error by.
        way: embeddings or centroids; the former where there are embeddings, when None.
        seed: of the halves by which the error is measured.
        log: receives warnings of examples that are unlike the other corpus.

    Raises:
        InputError: a histogram of another tree or of level 0, datasets of different encoders, embeddings of other
            examples or of another encoder, a level that the other tree does not have.
    """
    check_tree(histogram, source, what="carry")
    if histogram.level == 0:
        raise InputError(
            "carry: a histogram of level 0 is all of its corpus. Use `base`, which every dataset has for itself."
        )
    _check_encoders(source, target)
    for given in (embeddings, held_out):
        if given is not None:
            _check_embeddings(given, target)
    if source.manifest.tree_fingerprint == target.manifest.tree_fingerprint:
        kept = histogram if level is None else cut(histogram, level)
        return Carried(histogram=kept, way="as it is", missing=_missing(kept, target), error=None)
    level = _target_level(histogram, source, target, level)
    if embeddings is not None:
        _check_counted(embeddings, histogram, source)
    if way == "embeddings" and embeddings is None:
        raise InputError(
            "carry: the examples' embeddings must be there to be counted again, got none. Count with "
            "--keep-embeddings, or carry by centroids."
        )
    if embeddings is not None and way != "centroids":
        carried, used = _counted(embeddings, target, level, log), "embeddings"
    else:
        carried, used = _by_centroids(histogram, source, target, level), "centroids"
    error = None
    if held_out is not None:
        error = _error_by_given(histogram, carried, held_out, source, target)
    elif embeddings is not None:
        error = _error_by_halves(embeddings, histogram.level, level, source, target, seed)
    carried = dataclasses.replace(
        carried,
        provenance={
            **(carried.provenance if used == "embeddings" else {CARRY_KEY: histogram.provenance}),
            "carried": {
                "by": used,
                "from_tree": source.manifest.tree_fingerprint,
                "from_level": histogram.level,
                "from_histogram": histogram.fingerprint,
                "error": None if error is None else error.to_json(),
            },
        },
    )
    return Carried(
        histogram=carried,
        way="embeddings" if used == "embeddings" else "centroids",
        missing=_missing(carried, target),
        error=error,
    )


def _check_encoders(source: Dataset, target: Dataset) -> None:
    one, other = source.manifest.encoder, target.manifest.encoder
    if one.weights_sha256 != other.weights_sha256:
        raise InputError(
            f"carry: both datasets must have one encoder, got {one.name} ({one.weights_sha256[:12]}) for {source.root} "
            f"and {other.name} ({other.weights_sha256[:12]}) for {target.root}: vectors of one mean nothing in the "
            f"tree of the other. Count the examples there: crisp-stream histogram count TASK… --data {target.root}"
        )


def _check_embeddings(embeddings: TaskEmbeddings, target: Dataset) -> None:
    encoder = target.manifest.encoder
    named, dim = embeddings.provenance.get("encoder"), embeddings.embeddings.shape[1]
    if named not in (None, encoder.weights_sha256) or dim != encoder.dim:
        raise InputError(
            f"carry: embeddings must be of the datasets' encoder {encoder.name} ({encoder.weights_sha256[:12]}, "
            f"{encoder.dim} numbers), got those of {str(named)[:12]}, {dim} numbers. Count the examples again with "
            "--keep-embeddings."
        )


def _check_counted(embeddings: TaskEmbeddings, histogram: Histogram, source: Dataset) -> None:
    """Embeddings are of a histogram if it was kept with them, or if counting them gives it."""
    if embeddings.provenance.get(HISTOGRAM_KEY) == histogram.fingerprint:
        return
    counted = Histogram.from_leaves(source.tree.assign(embeddings.embeddings), source.tree, histogram.level)
    distance = total_variation(counted, histogram)
    if distance > _SAME_COUNTS:
        raise InputError(
            "carry: the embeddings must be those that the histogram was counted from, got others (they differ by "
            f"{digits.part(distance)}). Name the right file; a smoothed or averaged histogram is carried by centroids, "
            "or made again from counted ones that were carried."
        )


def _target_level(histogram: Histogram, source: Dataset, target: Dataset, level: int | None) -> int:
    if level is None:
        level = target.manifest.depth if histogram.level == source.manifest.depth else histogram.level
    check_level(level, target)
    return level


def _counted(embeddings: TaskEmbeddings, target: Dataset, level: int, log: Log) -> Histogram:
    """Count the embeddings in the target's tree, as the text would be."""
    of_source = (HISTOGRAM_KEY, UNKNOWN_WORDS_KEY)  # the latter says what the other corpus lacks
    provenance = {key: value for key, value in embeddings.provenance.items() if key not in of_source}
    return histogram_of_task(dataclasses.replace(embeddings, provenance=provenance), target, level, log=log)


def _by_centroids(histogram: Histogram, source: Dataset, target: Dataset, level: int) -> Histogram:
    """Let the centroid of each leaf stand for its windows.

    A node's mass lies on the leaves below it by size, as its windows are trained on; that of a node without windows
    on its own centroid.
    """
    shares, missing = histogram.expand(source.leaves, source.windows_per_leaf)
    used = shares > 0
    masses = [shares[used]]
    vectors = [_centroids(source.tree, source.leaves[used], source.manifest.depth)]
    if missing > 0:
        empty = np.isin(histogram.nodes, histogram.missing_nodes(source.leaves))
        span = histogram.arity ** (histogram.depth - histogram.level)
        leaves = (histogram.nodes[empty].astype(np.int64) * span).astype(np.uint32)
        masses.append(histogram.proportions[empty])
        vectors.append(_centroids(source.tree, leaves, histogram.level))
    found = target.tree.assign(np.concatenate(vectors), level)
    mass = np.concatenate(masses)
    nodes, places = np.unique(found, return_inverse=True)
    proportions = np.bincount(places, weights=mass, minlength=len(nodes))
    return Histogram(
        level=level,
        nodes=nodes,
        proportions=proportions / proportions.sum(),
        arity=target.manifest.arity,
        depth=target.manifest.depth,
        tree_fingerprint=target.manifest.tree_fingerprint,
    )


def _centroids(tree: ClusterTree, leaves: NDArray[np.uint32], deepest: int) -> NDArray[np.float32]:
    """[num_leaves, dim], of norm 1: the centroid of the deepest node above each leaf, or at it, down to a level."""
    centroids = np.zeros((len(leaves), tree.dim), np.float32)
    left = np.ones(len(leaves), np.bool_)
    for level in range(deepest, 0, -1):
        nodes, wanted = tree.nodes_per_level[level - 1], tree.node_of(leaves, level)
        if not len(nodes):
            continue
        rows = np.minimum(np.searchsorted(nodes, wanted), len(nodes) - 1)
        here = left & (nodes[rows] == wanted)
        centroids[here] = tree.centroids_per_level[level - 1][rows[here]]
        left &= ~here
    norms = np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids / np.maximum(norms, np.finfo(np.float32).tiny)


def _error_by_given(
    histogram: Histogram, carried: Histogram, held_out: TaskEmbeddings, source: Dataset, target: Dataset
) -> CarryError:
    """The histogram before and after, each beside the given examples in its tree."""
    before, after = (
        Histogram.from_leaves(dataset.tree.assign(held_out.embeddings), dataset.tree, one.level)
        for dataset, one in ((source, histogram), (target, carried))
    )
    return CarryError(
        held_out_windows=len(held_out.embeddings),
        splits=1,
        distances=(
            _distance("before, in its own tree", histogram, before),
            _distance("carried", carried, after),
            _by_chance(carried, len(held_out.embeddings)),
        ),
    )


def _error_by_halves(
    embeddings: TaskEmbeddings, level: int, target_level: int, source: Dataset, target: Dataset, seed: int
) -> CarryError | None:
    """One half of the kept examples carried in each way, beside the other half; None for too few of them."""
    groups = np.unique(embeddings.groups)
    if len(groups) < LEAST_EXAMPLES:
        return None
    old, new = (dataset.tree.assign(embeddings.embeddings) for dataset in (source, target))
    rng, found, windows = np.random.default_rng(seed), list[list[Distance]](), list[int]()
    for _ in range(SPLITS):
        chosen = np.isin(embeddings.groups, rng.permutation(groups)[: len(groups) // 2])
        before, counted = (
            Histogram.from_leaves(leaves[chosen], dataset.tree, one)
            for leaves, dataset, one in ((old, source, level), (new, target, target_level))
        )
        held_before, held_out = (
            Histogram.from_leaves(leaves[~chosen], dataset.tree, one)
            for leaves, dataset, one in ((old, source, level), (new, target, target_level))
        )
        windows.append(int((~chosen).sum()))
        found.append(
            [
                _distance("before, in its own tree", before, held_before),
                _distance("carried by embeddings", counted, held_out),
                _distance("carried by centroids", _by_centroids(before, source, target, target_level), held_out),
                _by_chance(counted, windows[-1]),
            ]
        )
    means = [
        Distance(
            name=row[0].name,
            total_variation=float(np.mean([one.total_variation for one in row])),
            jensen_shannon=float(np.mean([one.jensen_shannon for one in row])),
        )
        for row in zip(*found, strict=True)
    ]
    return CarryError(held_out_windows=round(float(np.mean(windows))), splits=SPLITS, distances=tuple(means))


def _distance(name: str, one: Histogram, other: Histogram) -> Distance:
    found = compare(one, other, limit=0)
    return Distance(name=name, total_variation=found.total_variation, jensen_shannon=found.jensen_shannon)


def _by_chance(histogram: Histogram, num_windows: int, *, draws: int = 20, seed: int = 0) -> Distance:
    """Distance of as many windows drawn from the histogram itself: the mean."""
    rng, found = np.random.default_rng(seed), list[Distance]()
    shares = histogram.proportions / histogram.proportions.sum()
    for _ in range(draws):
        counts = rng.multinomial(num_windows, shares)
        drawn = dataclasses.replace(histogram, proportions=counts / num_windows, counts=None, examples=None)
        found.append(_distance("", histogram, drawn))
    return Distance(
        name="windows drawn from the carried one",
        total_variation=float(np.mean([one.total_variation for one in found])),
        jensen_shannon=float(np.mean([one.jensen_shannon for one in found])),
    )


def _missing(histogram: Histogram, dataset: Dataset) -> float:
    return histogram.expand(dataset.leaves, dataset.windows_per_leaf)[1]


def describe(carried: Carried, before: Histogram, names: Mapping[str, str]) -> str:
    """Say what was done; `names` has the roots, as `source` and `target`."""
    histogram = carried.histogram
    if carried.way == "as it is":
        return (
            f"{names['source']} and {names['target']} have one tree, so the histogram is valid for both as it is: "
            "appending documents does not change the tree. Nothing had to be carried."
        )
    how = {
        "embeddings": "its examples' embeddings were counted again",
        "centroids": "each leaf's centroid was assigned again",
    }[carried.way]
    lines = [
        f"carried from {len(before.nodes):,} clusters of level {before.level} to {len(histogram.nodes):,} of level "
        f"{histogram.level}: {how}"
    ]
    if carried.way == "centroids":
        lines.append("all windows of a leaf went one way: a coarser --level is nearer to what counting would give")
    if carried.missing > 0:
        lines.append(
            f"{digits.part(carried.missing)} of it stands on clusters of which {names['target']} has no window"
        )
    if carried.error is not None:
        lines.append(carried.error.table().text())
    else:
        lines.append(
            "error: not measured, for want of examples. Give others of the task (--examples), or count with "
            "--keep-embeddings."
        )
    return "\n".join(lines)
