"""Data of the page's map: sizes, shares, terms and texts of the tree's nodes, packed into a few megabytes.

Sizes are sent for the deepest level shown alone, the levels above are sums of it. A task's share of a node is sent as
a float64, so that the panel shows the digits that the commands print, and of more than 65,536 nodes as a float32, whose
last digit may differ where it is rounded at a tie. All of it is one deflated block, which the browser inflates.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.terms import STORED_NODES
from crisp_stream.histograms.arithmetic import generalist_histogram
from crisp_stream.histograms.component import windows_per_node
from crisp_stream.inspection.terms import NodeTerms, node_terms, nodes_within

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.histogram import Histogram

MAX_MAP_NODES = 1 << 18
"""Nodes of the deepest level shown."""

MAX_EXACT_SHARES = 1 << 16
"""A histogram of more nodes is sent as float32."""

MAX_NODES_WITH_TEXT = 12_000
"""A level with more nodes has terms and text only for the tasks' heaviest and the corpus' largest."""

_TEXT_CHARACTERS = 320
_SHORT_TEXT_CHARACTERS = 200
_HEAVIEST_PER_TASK = 800
# Control characters, marks that turn the direction of what follows, invisible joiners, surrogates.
_INVISIBLE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u00ad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ud800-\\udfff\\ufeff\\ufff0-\\uffff]"
)


@dataclass(frozen=True, kw_only=True)
class MapLevel:
    """The nodes of one level that have windows."""

    level: int
    nodes: NDArray[np.uint32]
    """[num_nodes], sorted."""
    windows: NDArray[np.int64]
    """[num_nodes]."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """[num_nodes], P(c | D^g)."""
        return self.windows / self.windows.sum()


@dataclass(frozen=True, kw_only=True)
class TaskShares:
    """Shares that a task (or what a run was served) has of the nodes of a level of the map."""

    name: str
    level: int
    shares: NDArray[np.float64]
    """[num_nodes of the level's MapLevel], P(c | D^s); sums to 1 - missing."""
    missing: float
    """Mass on nodes that have no windows."""
    corpus: NDArray[np.float64] | None = None
    """[num_nodes of the level's MapLevel], P(c | D^g) of another generation, which a run was served from; None: it is
    that of the page."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The dataset's tree as the sections of the page know it."""

    arity: int
    levels: Sequence[MapLevel]
    terms: Sequence[NodeTerms]
    """One per level."""

    def corpus_of(self, task: TaskShares) -> NDArray[np.float64]:
        """[num_nodes of the task's level], the corpus that a task or run is compared with: of a run its own."""
        return self.levels[task.level - 1].shares if task.corpus is None else task.corpus

    def terms_of(self, level: int, node: int) -> str:
        """The terms of a node, or of the closest node above it that has some; empty where none has."""
        for terms in reversed(self.terms[:level]):
            row = _row_of(terms, node // self.arity ** (level - terms.level))
            if row is not None and terms.terms[row]:
                return " ".join(visible(term) for term in terms.terms[row])
        return ""

    def text_of(self, level: int, node: int) -> str:
        """The beginning of a window of a node; empty where none was read."""
        row = _row_of(self.terms[level - 1], node)
        return "" if row is None else visible(self.terms[level - 1].texts[row])

    def path(self, level: int, node: int) -> str:
        """The path of a node from the root: `37/5/12`."""
        return "/".join(str(node // self.arity ** (level - at) % self.arity) for at in range(1, level + 1))


def _row_of(terms: NodeTerms, node: int) -> int | None:
    row = int(np.searchsorted(terms.nodes, node))
    return row if row < len(terms.nodes) and terms.nodes[row] == node else None


def levels_of(dataset: Dataset) -> list[MapLevel]:
    """Levels 1 to the deepest of at most MAX_MAP_NODES nodes."""
    levels: list[MapLevel] = []
    for level in range(1, dataset.manifest.depth + 1):
        corpus = generalist_histogram(dataset, level)
        if levels and len(corpus.nodes) > MAX_MAP_NODES:
            break
        levels.append(MapLevel(level=level, nodes=corpus.nodes, windows=windows_per_node(corpus, dataset)))
    return levels


def task_shares(name: str, histogram: Histogram, levels: Sequence[MapLevel]) -> TaskShares:
    """Shares of a histogram at its level, or at the map's deepest where the histogram is finer."""
    level = max(1, min(histogram.level, levels[-1].level))
    if histogram.level == 0:
        return TaskShares(name=name, level=level, shares=levels[0].shares, missing=0.0)
    ancestors = histogram.nodes // np.uint32(histogram.arity ** (histogram.level - level))
    return gathered(name, levels[level - 1], ancestors, histogram.proportions)


def gathered(name: str, level: MapLevel, ancestors: NDArray[Any], shares: NDArray[np.float64]) -> TaskShares:
    """Sum shares by node of a level. `ancestors`: [num_shares], may repeat; those without windows count as missing."""
    at = np.minimum(np.searchsorted(level.nodes, ancestors), len(level.nodes) - 1)
    present = level.nodes[at] == ancestors
    of_nodes = _sums(at[present], shares[present], len(level.nodes))
    return TaskShares(name=name, level=level.level, shares=of_nodes, missing=float(shares[~present].sum()))


def shares_at(task: TaskShares, level: int, levels: Sequence[MapLevel], arity: int) -> NDArray[np.float64]:
    """A task's shares of the nodes of a level: sums above the task's level, by size below it."""
    nodes = levels[level - 1].nodes
    counted = levels[task.level - 1]
    if level <= task.level:
        return _summed_up(task.shares, counted, levels[level - 1], arity)
    parent = np.searchsorted(counted.nodes, nodes // np.uint32(arity ** (level - task.level)))
    return task.shares[parent] * levels[level - 1].windows / counted.windows[parent]


def coarser(task: TaskShares, level: int, tree: Tree) -> TaskShares:
    """The same at a level above that of the task, the corpus that it is compared with included."""
    fine, coarse = tree.levels[task.level - 1], tree.levels[level - 1]
    corpus = None if task.corpus is None else _summed_up(task.corpus, fine, coarse, tree.arity)
    return replace(task, level=level, shares=_summed_up(task.shares, fine, coarse, tree.arity), corpus=corpus)


def _summed_up(shares: NDArray[np.float64], fine: MapLevel, coarse: MapLevel, arity: int) -> NDArray[np.float64]:
    above = fine.nodes // np.uint32(arity ** (fine.level - coarse.level))
    return _sums(np.searchsorted(coarse.nodes, above), shares, len(coarse.nodes))


def _sums(rows: NDArray[np.intp], values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """[length], the sum of the values of each row."""
    return np.asarray(np.bincount(rows, weights=values, minlength=length), np.float64)


def gather_terms(
    dataset: Dataset, levels: Sequence[MapLevel], tasks: Sequence[TaskShares], *, max_windows: int
) -> list[NodeTerms]:
    """Terms and texts of every level: of all nodes, or of those that matter most."""
    terms = []
    for level in levels:
        nodes = None
        budget = min(MAX_NODES_WITH_TEXT, max_windows // 2, max(STORED_NODES, nodes_within(max_windows)))
        if len(level.nodes) > budget:
            nodes = level.nodes[_notable(level, levels, tasks, dataset.manifest.arity, budget)]
        terms.append(node_terms(dataset, level.level, nodes=nodes, max_windows=max_windows))
    return terms


def _notable(
    level: MapLevel, levels: Sequence[MapLevel], tasks: Sequence[TaskShares], arity: int, limit: int
) -> NDArray[np.int64]:
    """Rows of the nodes that are worth a text: the heaviest of each task, then the largest."""
    ranked = np.argsort(-level.windows, kind="stable")
    if tasks:
        heavy = [np.argsort(-shares_at(task, level.level, levels, arity), kind="stable") for task in tasks]
        in_turn = np.stack([order[:_HEAVIEST_PER_TASK] for order in heavy], axis=1).ravel()
        ranked = np.concatenate([in_turn, ranked])
    _, first = np.unique(ranked, return_index=True)
    return np.sort(ranked[np.sort(first)[:limit]])


def map_payload(
    tree: Tree,
    tasks: Sequence[TaskShares],
    colours: Sequence[str],
    *,
    scores: Sequence[tuple[dict[str, Any], NDArray[np.float64]]] = (),
) -> str:
    """Everything the script needs, as base64 text (see `pack`).

    Args:
        tasks: also what runs were served.
        colours: [num_tasks]
        scores: header of each score, and its means of the deepest level's nodes.
    """
    deepest = tree.levels[-1]
    arrays: dict[str, NDArray[Any]] = {
        "nodes": np.diff(deepest.nodes.astype(np.int64), prepend=0).astype(np.uint32),
        "windows": deepest.windows.astype(np.uint32 if deepest.windows.max() < 1 << 32 else np.float64),
    }
    texts = []
    for terms in tree.terms:
        characters = _TEXT_CHARACTERS if terms.level < 3 else _SHORT_TEXT_CHARACTERS
        arrays[f"text_nodes_{terms.level}"] = np.diff(terms.nodes.astype(np.int64), prepend=0).astype(np.uint32)
        texts.append(
            {
                "level": terms.level,
                "terms": [" ".join(visible(term) for term in row) for row in terms.terms],
                "texts": [visible(text)[:characters] for text in terms.texts],
            }
        )
    for number, task in enumerate(tasks):
        kind = np.float64 if len(task.shares) <= MAX_EXACT_SHARES else np.float32
        arrays[f"task_{number}"] = task.shares.astype(kind)
        if task.corpus is not None:
            arrays[f"corpus_{number}"] = task.corpus.astype(kind)
    for number, (_, means) in enumerate(scores):
        arrays[f"score_{number}"] = means.astype(np.float32)
    header = {
        "arity": tree.arity,
        "depth": deepest.level,
        "tasks": [
            {"name": visible(task.name), "level": task.level, "colour": colour}
            for task, colour in zip(tasks, colours, strict=True)
        ],
        "scores": [header for header, _ in scores],
        "texts": texts,
    }
    return pack(header, arrays)


def visible(text: str) -> str:
    """Corpus text without characters that cannot be seen, or that change how their surroundings are shown."""
    return _INVISIBLE.sub("", text.replace("\t", " ").replace("\n", " ")).strip()


def pack(header: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """A JSON header and arrays, deflated, as base64.

    Inflated: u32 length of the header; the header, whose `arrays` lists name, numpy dtype and length of each array in
    order; then the arrays, little-endian, each from a multiple of 8 bytes on.
    """
    listed = [[name, array.dtype.str[1:], len(array)] for name, array in arrays.items()]
    # Escaped to ASCII, so that bytes are characters; UTF-16 code units of the browser need no care.
    encoded = json.dumps({**header, "arrays": listed}, separators=(",", ":")).encode("ascii")
    parts = [_padded(len(encoded).to_bytes(4, "little") + encoded)]
    parts += [_padded(array.astype(array.dtype.newbyteorder("<")).tobytes()) for array in arrays.values()]
    return base64.b64encode(zlib.compress(b"".join(parts), 6)).decode("ascii")


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)
