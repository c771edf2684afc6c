"""Terms and a sample text of clusters: those that are stored with a dataset, else found by the same rule.

The rule (writers/tree/terms.py) depends on the dataset, the level and the node alone. So what is found here for a
dataset without stored terms, or for a level of more than 4,096 nodes, is what would be stored.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.terms import LEAST_PURITY, LevelTerms, StoredTerms, stored_terms
from crisp_stream.loading.reader import WindowReader
from crisp_stream.loading.runs import RunPlan
from crisp_stream.writers.tree.terms import (
    BACKGROUND_WINDOWS,
    LEAST_WINDOWS_PER_NODE,
    MAX_TERMS,
    Layout,
    Ranges,
    TextSource,
    find_level,
    stretch_of,
    windows_per_node,
)

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

MAX_WINDOWS = 50_000
"""Windows read at most where terms are not stored; enough for any level that is named whole."""


def terms_can_be_found() -> bool:
    """Whether scikit-learn, which finds terms, is installed. Without it `terms_per_node=0` gives the texts alone."""
    return importlib.util.find_spec("sklearn") is not None


def terms_are_known(dataset: Dataset, level: int) -> bool:
    """Whether the terms of a level are stored, or can be found."""
    stored = _stored(dataset)
    return (stored is not None and level in stored.levels) or terms_can_be_found()


@dataclass(frozen=True, kw_only=True)
class NodeTerms(LevelTerms):
    """Terms and a sample text of some nodes of a level."""

    level: int
    num_windows_read: int
    """Windows read in all, the background included; 0 where the terms were stored."""


def node_terms(
    dataset: Dataset,
    level: int,
    *,
    nodes: ArrayLike | None = None,
    max_windows: int = MAX_WINDOWS,
    terms_per_node: int = MAX_TERMS,
) -> NodeTerms:
    """The terms that characterise nodes of a level, and a sample text of each.

    Args:
        dataset: the opened dataset.
        level: 0 to the tree's depth.
        nodes: [num_nodes], node ids; all nodes of the level that have windows when None.
        max_windows: about how many windows are read where the terms are not stored, a part of them for the background.
            Fewer than the rule reads give other terms.
        terms_per_node: at most so many, up to 8; 0: the texts alone, without scikit-learn.

    Raises:
        InputError: a level the tree does not have, or more nodes than windows that may be read.
        FormatError: the stored terms are damaged. StorageError.
        MissingExtraError: scikit-learn or tokenizers is not installed.
    """
    if not 0 <= level <= dataset.manifest.depth:
        raise InputError(f"level {level} is not in the tree, which has levels 1 to {dataset.manifest.depth}.")
    stored = _stored(dataset)
    if stored is not None and level in stored.levels:
        return _picked(level, stored.levels[level], nodes, terms_per_node)
    layout = layout_of(dataset)
    all_nodes = Ranges(layout, level).nodes
    chosen = all_nodes if nodes is None else np.asarray(nodes, np.uint32)
    background = min(BACKGROUND_WINDOWS, max(1, max_windows // 4))
    quota = min(windows_per_node(len(all_nodes)), (max_windows - background) // max(len(chosen), 1))
    if quota < 1:
        raise InputError(
            f"max_windows must allow a window for each of {len(chosen):,} nodes of level {level}, got {max_windows:,}. "
            "Name fewer nodes, take a coarser level, or raise it."
        )
    with _Reading(dataset, quota) as reading:
        found, _ = find_level(
            layout, reading.source, level, chosen, quota=quota, background=background, terms_per_node=terms_per_node
        )
    return NodeTerms(**vars(found), level=level, num_windows_read=reading.num_windows)


def purity_note(dataset: Dataset, level: int) -> str | None:
    """A sentence about a level whose clusters are of style as much as of topic; None for others, or where unknown."""
    stored = _stored(dataset)
    purity = None if stored is None else stored.purities.get(level)
    if purity is None or purity >= LEAST_PURITY:
        return None
    return (
        f"Topical purity {purity:.2f}: these clusters differ in style as well as in topic; function words (the, you, "
        f"was) tell them apart {(1 - purity) / purity:.2f} times as well as content words do. Topics have "
        f"{LEAST_PURITY} and more. A sentence encoder, or more text, gives clusters of topics."
    )


def lines_of(dataset: Dataset, windows: NDArray[np.int64]) -> list[str]:
    """The beginning of some sorted windows, each as one line from its first whole word on."""
    with _Reading(dataset, 1) as reading:
        return list(reading.source.lines(windows))


def nodes_within(max_windows: int) -> int:
    """How many nodes of a level that is not stored can be named with so many windows."""
    return max(1, (max_windows - BACKGROUND_WINDOWS) // LEAST_WINDOWS_PER_NODE)


@lru_cache(maxsize=2)
def _stored(dataset: Dataset) -> StoredTerms | None:
    return stored_terms(dataset)


def _picked(level: int, stored: LevelTerms, nodes: ArrayLike | None, terms_per_node: int) -> NodeTerms:
    chosen = stored.nodes if nodes is None else np.asarray(nodes, np.uint32)
    at = np.minimum(np.searchsorted(stored.nodes, chosen), max(len(stored.nodes) - 1, 0))
    known = stored.nodes[at] == chosen
    rows = [int(row) if is_known else None for row, is_known in zip(at, known, strict=True)]
    return NodeTerms(
        level=level,
        nodes=chosen,
        windows_read_per_node=np.where(known, stored.windows_read_per_node[at], 0),
        terms=[() if row is None else stored.terms[row][:terms_per_node] for row in rows],
        texts=["" if row is None else stored.texts[row] for row in rows],
        num_windows_read=0,
    )


def layout_of(dataset: Dataset) -> Layout:
    """Where the windows of a dataset's leaves stand."""
    manifest = dataset.manifest
    return Layout(
        leaves=np.asarray(dataset.leaves),
        windows_per_leaf=np.asarray(dataset.windows_per_leaf),
        arity=manifest.arity,
        depth=manifest.depth,
    )


class _Reading:
    """Reads windows of an opened dataset, those of a stretch together, and counts them."""

    def __init__(self, dataset: Dataset, quota: int) -> None:
        plan = RunPlan(dataset)
        plan.run_windows = min(plan.run_windows, stretch_of(quota))
        self._reader = WindowReader(dataset, runs=plan)
        self.num_windows = 0
        self.source = TextSource(
            read_tokens=self._read,
            tokenizer_json=dataset.tokenizer_path() / "tokenizer.json",
            eot_token=dataset.manifest.tokenizer.eot_token,
        )

    def __enter__(self) -> _Reading:
        self._reader.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()

    def _read(self, windows: NDArray[np.int64]) -> NDArray[np.generic]:
        self.num_windows += len(windows)
        return self._reader.read(windows)["tokens"]
