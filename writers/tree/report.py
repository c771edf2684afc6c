"""The report of `crisp-stream tree inspect`: a tree's quality as text, JSON and plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
    LevelQuality,
    QualitySums,
    TreeQuality,
    label_agreement,
    quality_of_counts,
    tree_quality,
)


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


_COLUMNS: dict[str, Callable[[LevelQuality], str]] = {
    "level": lambda level: str(level.level),
    "clusters": lambda level: f"{level.num_clusters:,}",
    "leaves": lambda level: f"{level.num_leaves:,}",
    "empty": lambda level: f"{level.empty_clusters:,}",
    "imbalance": lambda level: f"{level.imbalance:.2f}",
    "largest / average": lambda level: f"{level.largest:.1f}",
    "squared distance": lambda level: _figure(level.squared_distance, 4),
    "cosine": lambda level: _figure(level.cosine, 4),
    "fit seconds": lambda level: _figure(level.fit_seconds, 1),
}


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
            rows = [[cell(level) for cell in _COLUMNS.values()] for level in quality.levels]
            blocks.append(Table(head=list(_COLUMNS), rows=rows, words=()).text())
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
        assigned = ((level, tree.assign(embeddings, level), against.assign(embeddings, level)) for level in levels)
        agreements = [label_agreement(labels, others, level) for level, labels, others in assigned]
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


def _size_range(size: LeafSizes) -> str:
    return f"{size.at_least:,}" if size.at_least == size.at_most else f"{size.at_least:,} to {size.at_most:,}"


def _draw(report: TreeReport, quality: TreeQuality, axes: Any) -> None:
    levels = [level.level for level in quality.levels]
    _draw_lines(axes[0], quality.levels, {"imbalance": "imbalance factor", "largest": "largest / average"})
    axes[0].set(title="balance", yscale="log")
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    measured = [level for level in quality.levels if level.cosine is not None]
    if measured:
        _draw_lines(axes[1], measured, {"squared_distance": "mean squared distance", "cosine": "mean cosine"})
    axes[1].set(title="to the centroid", ylim=(0, None))
    positions = range(len(quality.leaf_sizes))
    axes[2].bar(positions, [size.num_leaves for size in quality.leaf_sizes])
    axes[2].set_xticks(positions, [f"{size.at_least:,}" for size in quality.leaf_sizes], rotation=60)
    axes[2].set(title="leaf sizes", xlabel="windows in the leaf, at least", ylabel="leaves")
    if report.agreements:
        names = {
            "adjusted_rand": "adjusted Rand index",
            "normalised_mutual_information": "normalised mutual information",
        }
        _draw_lines(axes[3], report.agreements, names)
        axes[3].set(title="agreement", ylim=(0, 1.02), xlabel="level")
        axes[3].set_xticks([agreement.level for agreement in report.agreements])
    for axis in axes[:2]:
        axis.set_xticks(levels)
        axis.set_xlabel("level")


def _draw_lines(axis: Any, levels: Sequence[LevelQuality] | Sequence[Agreement], names: dict[str, str]) -> None:
    """Draw two fields of the levels, under the names of the legend."""
    for style, (field, name) in zip(("o-", "s--"), names.items(), strict=True):
        axis.plot([level.level for level in levels], [getattr(level, field) for level in levels], style, label=name)
    axis.legend()
