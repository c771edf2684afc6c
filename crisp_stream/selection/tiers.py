"""Tiers of a score within topics: the windows of every cluster cut by their score, a selection for each tier.

A threshold for the whole corpus would select some topics and drop others, because quality differs between topics as
much as inside them. Cut within clusters, every tier holds every topic, and the histogram alone decides on topics. This
is quality by topic, as components of a mixture (docs/train/components.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.hashing import splitmix64
from crisp_stream.histograms.component import LeafCounts, check_tree
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.inspection.node_scores import node_borders, quantile_table
from crisp_stream.selection.where import described
from crisp_stream.table import Table

MAX_TIERS = 64
_MOST_MISSING = 0.05
"""`max_missing_mass` of a mixture, unless it says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Windows of one tier."""

    number: int
    """From 1; the first tier has the highest scores."""
    share: float
    """Share of the samples that its component gets."""
    selection: WindowSelection
    missing: float
    """Mass of the histogram on clusters that have no window of the tier, which the others get."""


def cut_tiers(
    scores: NDArray[np.float32], dataset: Dataset, *, sizes: Sequence[float], level: int
) -> NDArray[np.uint8]:
    """Cut the windows of every cluster of a level by score, the highest first.

    A cluster of n windows has sizes x n windows in the tiers, rounded up or down by a hash of the cluster, so that the
    tiers of small clusters are neither favoured nor left out on the whole. Of equal scores the first window is higher;
    inside a leaf that is at random.

    Args:
        scores: [num_windows]
        sizes: share of the windows of each tier; they sum to 1.
        level: 1 to the depth of the tree: the leaves.

    Returns:
        [num_windows], the tier of each window, from 0.
    """
    nodes, borders = node_borders(dataset, level)
    windows = np.diff(borders)
    node_of = np.repeat(np.arange(len(nodes)), windows)
    order = np.lexsort((-scores, node_of))
    rank = np.empty(len(scores), np.int64)
    rank[order] = np.arange(len(scores)) - borders[:-1][node_of]
    seeds = splitmix64(nodes.astype(np.uint64) + (np.uint64(level) << np.uint64(32)))
    part = (seeds >> np.uint64(11)).astype(np.float64) * 2.0**-53
    tiers = np.zeros(len(scores), np.uint8)
    for end in np.cumsum(sizes)[:-1]:
        cut = np.floor(np.round(end * windows, 6) + part).astype(np.int64)
        tiers += rank >= cut[node_of]
    return tiers


def make_tiers(
    scores: WindowScores,
    dataset: Dataset,
    *,
    shares: Sequence[float],
    sizes: Sequence[float] | None = None,
    level: int | None = None,
    histogram: Histogram | None = None,
) -> list[Tier]:
    """Cut a dataset into tiers, and select the windows of each.

    Args:
        shares: share of the samples of each tier, the highest scores first; they sum to 1.
        sizes: share of the windows of each cluster; equal ones when None.
        level: level of the clusters that are cut; the leaves when None.
        histogram: that the components are to have; the corpus as it is when None.

    Raises:
        InputError: shares or sizes that do not sum to 1, a level that the tree does not have, a tier without a window,
            scores or a histogram of another dataset.
    """
    scores.check_dataset(dataset)
    sizes = [1 / len(shares)] * len(shares) if sizes is None else sizes
    _check_parts("--tiers", shares)
    _check_parts("--sizes", sizes)
    if len(sizes) != len(shares):
        raise InputError(f"--sizes: must be one for each of {len(shares)} tiers, got {len(sizes)}.")
    level = dataset.manifest.depth if level is None else level
    if level < 1:
        raise InputError(f"--within: must be a level of 1 to {dataset.manifest.depth}, or leaf, got {level}.")
    dataset.tree.check_level(level)
    histogram = Histogram.base(dataset) if histogram is None else histogram
    check_tree(histogram, dataset, what="--histogram")
    tier_of = cut_tiers(scores.scores, dataset, sizes=sizes, level=level)
    tiers = []
    for number, (share, size) in enumerate(zip(shares, sizes, strict=True), 1):
        chosen = tier_of == number - 1
        if not chosen.any():
            raise InputError(
                f"tier {number} of size {size:g}: must have a window, but has none of the {len(chosen):,} of "
                f"{dataset.root}. Take fewer tiers, or cut larger clusters with --within."
            )
        provenance = {
            "method": "tiers",
            "tier": number,
            "sizes": list(sizes),
            "level": level,
            "least": float(scores.scores[chosen].min()),
            "most": float(scores.scores[chosen].max()),
            "score": described(scores),
        }
        selection = WindowSelection(
            dataset_fingerprint=dataset.manifest.fingerprint,
            windows=chosen,
            num_windows=len(chosen),
            provenance=provenance,
        )
        _, missing = histogram.expand(*LeafCounts.of(dataset, selection))
        tiers.append(Tier(number=number, share=share, selection=selection, missing=missing))
    return tiers


def _check_parts(option: str, parts: Sequence[float]) -> None:
    if not 2 <= len(parts) <= MAX_TIERS:
        raise InputError(f"{option}: must be 2 to {MAX_TIERS} numbers, one for each tier, got {len(parts)}.")
    if not all(math.isfinite(part) and part > 0 for part in parts) or not math.isclose(sum(parts), 1, abs_tol=1e-6):
        raise InputError(
            f"{option}: must be numbers above 0 that sum to 1, got {' '.join(f'{part:g}' for part in parts)}, whose "
            f"sum is {sum(parts):g}. Change them, such as 0.5 0.3 0.2."
        )


def tiers_table(tiers: Sequence[Tier], scores: WindowScores) -> Table:
    """Tabulate tiers: what is in them, and what they get."""
    rows = []
    for tier in tiers:
        of_tier = scores.scores[tier.selection.contains(0, tier.selection.num_windows)]
        [row] = quantile_table({f"{tier.number}": of_tier}).rows
        rows.append([*row[:2], f"{tier.selection.share:.2%}", f"{tier.share:.2%}", f"{tier.missing:.2%}", *row[2:]])
    head = quantile_table({}, first="tier").head
    notes = [
        f"warning: {tier.missing:.1%} of the histogram is on clusters without a window of tier {tier.number}. Training "
        f"refuses more than {_MOST_MISSING:.0%}. Cut larger clusters with --within."
        for tier in tiers
        if tier.missing > _MOST_MISSING
    ]
    return Table(head=(*head[:2], "of corpus", "of samples", "missing", *head[2:]), rows=rows, notes=notes)


def components_yaml(tiers: Sequence[Tier], files: Sequence[str], *, histogram: str, what: str) -> str:
    """Write the components of tiers as YAML, to be laid over a recipe or pasted into one.

    Args:
        files: the selection of each tier.
        histogram: of all components: a path, or `base`.
        what: what was cut, for the comment.
    """
    lines = [
        f"# {what}. The first tier has the highest scores.",
        "# Lay it over a recipe, behind the method: crisp-stream train demo crisp THIS_FILE; or paste the list.",
        "mixture:",
        "  phases:",
        "    - components:",
    ]
    for tier, file in zip(tiers, files, strict=True):
        lines += [
            f"        - histogram: {json.dumps(histogram)}",
            f"          windows: {json.dumps(file)}",
            f"          share: {tier.share!r}",
        ]
    return "\n".join(lines) + "\n"
