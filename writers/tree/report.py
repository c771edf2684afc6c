"""The report of `crisp-stream tree inspect`: a tree's quality as text, JSON and plot."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.table import Table
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.tree.quality import (
    Agreement,
    LeafSizes,
    QualitySums,
    TreeQuality,
    agreement,
    quality_of_counts,
    tree_quality,
)

_COLUMNS = (
    "level",
    "clusters",
    "leaves",
    "empty",
    "imbalance",
    "largest / average",
    "squared distance",
    "cosine",
    "fit seconds",
)


@dataclass(frozen=True, kw_only=True)
class TreeReport:
    """Shape, quality and agreement of a tree."""

    arity: int
    depth: int
    dim: int
    fingerprint: str
    nodes_per_level: list[int]
    num_leaves: int
    quality: TreeQuality | None
    """None without windows to measure on."""
    agreements: list[Agreement]
    """Agreement with the other tree at each level that both have; empty without one."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """The report as lines of text, tables included."""
        nodes = " + ".join(f"{number:,}" for number in self.nodes_per_level)
        blocks = [
            f"tree {self.fingerprint[:12]}: arity {self.arity}, depth {self.depth}, {nodes} nodes, "
            f"{self.num_leaves:,} leaves, {self.dim} dimensions"
        ]
        if self.quality is not None:
            quality = self.quality
            blocks.append(
                f"{quality.num_windows:,} windows, {quality.empty_leaves:,} of {quality.num_leaves:,} leaves empty"
            )
            blocks.append(Table(head=_COLUMNS, rows=_level_rows(quality), words=()).text())
            sizes = [(_size_range(size), f"{size.num_leaves:,}") for size in quality.leaf_sizes]
            blocks.append(Table(head=("windows in the leaf", "leaves"), rows=sizes, words=()).text())
        if self.agreements:
            rows = [
                (str(one.level), f"{one.adjusted_rand:.3f}", f"{one.normalised_mutual_information:.3f}")
                for one in self.agreements
            ]
            head = ("level", "adjusted Rand index", "normalised mutual information")
            blocks.append(Table(head=head, rows=rows, words=()).text())
        return "\n\n".join(blocks) + "\n"

    def plot(self, path: Path) -> None:
        """Draw balance, quantisation error and leaf sizes (and agreement) to a .png or .svg file.

        Raises:
            InputError: another suffix, or nothing was measured.
            MissingExtraError: matplotlib is not installed.
        """
        if path.suffix not in (".png", ".svg"):
            raise InputError(f"plot: must be a .png or .svg file, got {path.name}. Choose one of them.")
        if self.quality is None:
            raise InputError("plot: needs windows to measure the tree on, got none. Give --embeddings, or a dataset.")
        matplotlib: Any = import_extra("matplotlib", extra="write", purpose="drawing a plot")
        figure_class: Any = import_extra("matplotlib.figure", extra="write", purpose="drawing a plot").Figure
        panels = 4 if self.agreements else 3
        figure = figure_class(figsize=(3.4 * panels, 3.2), layout="constrained")
        axes = figure.subplots(1, panels)
        _draw(self, self.quality, axes)
        with matplotlib.rc_context({"svg.hashsalt": "crisp-stream"}):  # the same bytes every time
            figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def inspect_tree(
    tree: ClusterTree,
    *,
    embeddings: NDArray[Any] | None = None,
    leaf_counts: tuple[NDArray[np.uint32], NDArray[np.int64]] | None = None,
    sums: QualitySums | None = None,
    against: ClusterTree | None = None,
    fit_seconds: ArrayLike | None = None,
) -> TreeReport:
    """Report on a tree, as far as what is given allows.

    Args:
        tree: the tree.
        embeddings: [num_windows, dim] of norm 1, to measure it on.
        leaf_counts: instead, leaves and windows per leaf of a dataset, as in clusters.parquet.
        sums: of the dataset's windows, for the quantisation error.
        against: another tree, such as one of another seed, compared on the embeddings at every level of both.
        fit_seconds: [depth], time spent fitting each level.

    Raises:
        InputError: embeddings of the wrong width or not finite, no windows, a tree to compare but no embeddings.
    """
    quality = None
    if embeddings is not None:
        quality = tree_quality(tree, embeddings, fit_seconds=fit_seconds)
    elif leaf_counts is not None:
        quality = quality_of_counts(tree, *leaf_counts, sums=sums, fit_seconds=fit_seconds)
    agreements: list[Agreement] = []
    if against is not None:
        if embeddings is None:
            raise InputError("two trees: are compared on embeddings, got none. Give --embeddings.")
        levels = range(1, min(tree.depth, against.depth) + 1)
        agreements = [agreement(tree, against, embeddings, level) for level in levels]
    return TreeReport(
        arity=tree.arity,
        depth=tree.depth,
        dim=tree.dim,
        fingerprint=tree.fingerprint,
        nodes_per_level=[len(nodes) for nodes in tree.nodes_per_level],
        num_leaves=tree.num_leaves,
        quality=quality,
        agreements=agreements,
    )


def _level_rows(quality: TreeQuality) -> list[tuple[str, ...]]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        (
            str(level.level),
            f"{level.num_clusters:,}",
            f"{level.num_leaves:,}",
            f"{level.empty_clusters:,}",
            f"{level.imbalance:.2f}",
            f"{level.largest:.1f}",
            number(level.squared_distance, 4),
            number(level.cosine, 4),
            number(level.fit_seconds, 1),
        )
        for level in quality.levels
    ]


def _size_range(size: LeafSizes) -> str:
    return f"{size.at_least:,}" if size.at_least == size.at_most else f"{size.at_least:,} to {size.at_most:,}"


def _draw(report: TreeReport, quality: TreeQuality, axes: Any) -> None:
    levels = [level.level for level in quality.levels]
    axes[0].plot(levels, [level.imbalance for level in quality.levels], "o-", label="imbalance factor")
    axes[0].plot(levels, [level.largest for level in quality.levels], "s--", label="largest / average")
    axes[0].set(title="balance", yscale="log")
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes[0].legend()
    measured = [level for level in quality.levels if level.cosine is not None]
    if measured:
        measured_levels = [level.level for level in measured]
        axes[1].plot(
            measured_levels, [level.squared_distance for level in measured], "o-", label="mean squared distance"
        )
        axes[1].plot(measured_levels, [level.cosine for level in measured], "s--", label="mean cosine")
        axes[1].legend()
    axes[1].set(title="to the centroid", ylim=(0, None))
    positions = range(len(quality.leaf_sizes))
    axes[2].bar(positions, [size.num_leaves for size in quality.leaf_sizes])
    axes[2].set_xticks(positions, [f"{size.at_least:,}" for size in quality.leaf_sizes], rotation=60)
    axes[2].set(title="leaf sizes", xlabel="windows in the leaf, at least", ylabel="leaves")
    if report.agreements:
        shared_levels = [agreement.level for agreement in report.agreements]
        rand = [agreement.adjusted_rand for agreement in report.agreements]
        axes[3].plot(shared_levels, rand, "o-", label="adjusted Rand index")
        information = [agreement.normalised_mutual_information for agreement in report.agreements]
        axes[3].plot(shared_levels, information, "s--", label="normalised mutual information")
        axes[3].set(title="agreement", ylim=(0, 1.02), xlabel="level")
        axes[3].set_xticks(shared_levels)
        axes[3].legend()
    for axis in axes[:2]:
        axis.set_xticks(levels)
        axis.set_xlabel("level")
