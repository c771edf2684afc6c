"""Terms that say what the nodes of the tree are about, by class TF-IDF, and a sample text of each.

A sample of bounded size is read, never the corpus: for each node stretches of neighbouring windows at evenly spaced
places of its range (neighbours in a leaf are a uniform sample of the leaf, FORMAT.md), and a background sample of the
whole dataset. A few thousand requests suffice at any size of the corpus.

The weight of a term depends on the corpus alone, not on which other nodes are named, so five nodes get the terms
that they would get among all 4,096. A language model that names each node, the usual alternative, reads better, but
cannot be had everywhere, and invents.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.loading.reader import WindowReader
from crisp_stream.loading.runs import RunPlan

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

TEXT_TOKENS = 256
"""Tokens of a window that are looked at: as much as the usual encoder reads of it."""

MAX_WINDOWS_PER_NODE = 128
_STRETCH = 8  # neighbouring windows read at a place
_BACKGROUND_SHARE = 0.25  # of the windows read
_MIN_WINDOWS_WITH_TERM = 2
_TOKEN = r"(?u)\b[^\W\d_]{3,30}\b"
_DECODE_ROWS = 4096

Int64s = NDArray[np.int64]


def terms_can_be_found() -> bool:
    """Whether scikit-learn, which finds terms, is installed. Without it `terms_per_node=0` gives the texts alone."""
    return importlib.util.find_spec("sklearn") is not None


@dataclass(frozen=True, kw_only=True)
class NodeTerms:
    """Terms and a sample text of some nodes of a level."""

    level: int
    nodes: NDArray[np.uint32]
    """[num_nodes], node ids."""
    windows_read_per_node: Int64s
    """[num_nodes], how many of them were looked at."""
    terms: list[tuple[str, ...]]
    """[num_nodes], the terms that set each node apart, strongest first; none where no term stands out."""
    texts: list[str]
    """[num_nodes], the beginning of the window that holds most of the node's terms, among those read."""
    num_windows_read: int
    """Windows read in all, the background included."""


def node_terms(
    dataset: Dataset,
    level: int,
    *,
    nodes: ArrayLike | None = None,
    max_windows: int = 50_000,
    terms_per_node: int = 8,
    seed: int = 0,
) -> NodeTerms:
    """Find the terms that characterise nodes of a level, by class TF-IDF, and a sample text of each.

    score(t, c) = P(t | c) · log(1 + A / f(t))     [BERTopic's c-TF-IDF]

    A is the mean number of words of a class and f(t) the frequency of t over all classes, so A / f(t) is
    1 / (C · P(t)), with C the number of the level's nodes that have windows. P(t) comes from a background sample of
    the whole dataset, P(t | c) from windows of the node. English function words are left out, as are terms of
    a single window. Terms of at least two of the node's windows come before those of one, whatever their score.

    Args:
        dataset: the opened dataset.
        level: 0 to the tree's depth.
        nodes: [num_nodes], node ids; all nodes of the level that have windows when None.
        max_windows: about how many windows are read, at most 128 per node; the first 256 tokens of each count.
        terms_per_node: at most so many; 0: the texts alone, without scikit-learn.
        seed: seed of the places that are read.

    Raises:
        InputError: a level the tree does not have, or more nodes than windows that may be read.
        MissingExtraError: scikit-learn or tokenizers is not installed.
    """
    if not 0 <= level <= dataset.manifest.depth:
        raise InputError(f"level {level} is not in the tree, which has levels 1 to {dataset.manifest.depth}.")
    ranges = _Ranges(dataset, level)
    chosen = ranges.nodes if nodes is None else np.asarray(nodes, np.uint32)
    first, sizes = ranges.of(chosen)
    background = max(1, int(max_windows * _BACKGROUND_SHARE))
    quota = min(MAX_WINDOWS_PER_NODE, (max_windows - background) // max(len(chosen), 1))
    if quota < 1:
        raise InputError(
            f"max_windows must allow a window for each of {len(chosen):,} nodes of level {level}, got {max_windows:,}. "
            "Name fewer nodes, take a coarser level, or raise it."
        )
    rng = np.random.default_rng(seed)
    of_nodes, node_row = _sample(dataset, first, sizes, quota, rng)
    whole = np.array([dataset.manifest.num_windows])
    common, _ = _sample(dataset, np.zeros(1, np.int64), whole, background, rng)
    windows = np.unique(np.concatenate([of_nodes, common]))
    texts = _read_texts(dataset, windows, _stretch(quota))
    place = np.searchsorted(windows, of_nodes)
    is_common = np.isin(windows, common)
    terms, best = _characterise(texts, place, node_row, is_common, (len(chosen), len(ranges.nodes)), terms_per_node)
    return NodeTerms(
        level=level,
        nodes=chosen,
        windows_read_per_node=np.bincount(node_row, minlength=len(chosen)),
        terms=terms,
        texts=[texts[place[row]] if row >= 0 else "" for row in best],
        num_windows_read=len(windows),
    )


class _Ranges:
    """The windows of each node of a level: consecutive, from `first` on."""

    def __init__(self, dataset: Dataset, level: int) -> None:
        manifest = dataset.manifest
        node_per_leaf = dataset.leaves.astype(np.int64) // manifest.arity ** (manifest.depth - level)
        nodes, row = np.unique(node_per_leaf, return_index=True)
        self.nodes = nodes.astype(np.uint32)
        self._first = dataset.first_window_per_leaf[row]
        self._sizes = np.add.reduceat(dataset.windows_per_leaf, row)

    def of(self, nodes: NDArray[np.uint32]) -> tuple[Int64s, Int64s]:
        """Look up the first window and the number of windows of each node; 0 windows for a node that has none."""
        at = np.minimum(np.searchsorted(self.nodes, nodes), len(self.nodes) - 1)
        return self._first[at], np.where(self.nodes[at] == nodes, self._sizes[at], 0)


def _sample(
    dataset: Dataset, first: Int64s, sizes: Int64s, quota: int, rng: np.random.Generator
) -> tuple[Int64s, Int64s]:
    """Choose about `quota` windows of each range in stretches at evenly spaced places, with the range of each."""
    stretch = _stretch(quota)
    places = -(-np.minimum(quota, sizes) // stretch)
    row = np.repeat(np.arange(len(first)), places)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(places) - places, places)
    spread = (nth + rng.random(len(first))[row]) / places[row]
    chosen = first[row] + (spread * sizes[row]).astype(np.int64)
    leaf_first = dataset.first_window_per_leaf[dataset.row_of_windows(chosen)]
    # Where in the leaf does not matter, so stretches begin at multiples: what is fetched is what is read.
    begin = np.maximum(chosen - (chosen - leaf_first) % stretch, first[row])
    begin = np.where(sizes[row] <= quota, first[row] + nth * stretch, begin)  # read whole
    windows = (begin[:, None] + np.arange(stretch)).ravel()
    rows = np.repeat(row, stretch)
    inside = windows < first[rows] + sizes[rows]
    pairs = np.unique(np.column_stack([rows[inside], windows[inside]]), axis=0)
    return pairs[:, 1], pairs[:, 0]


def _stretch(quota: int) -> int:
    """Choose how many neighbours are read at a place: at most _STRETCH, with little left over."""
    return -(-quota // -(-quota // _STRETCH))


def _read_texts(dataset: Dataset, windows: Int64s, stretch: int) -> list[str]:
    """Read the beginning of each window as one line of text, a pilcrow where one document ends and the next begins.

    `windows` are sorted; `stretch` windows of a leaf are fetched together.
    """
    tokenizers = import_extra("tokenizers", extra="inspect", purpose="showing text")
    tokenizer = tokenizers.Tokenizer.from_file(str(dataset.tokenizer_path() / "tokenizer.json"))
    end_of_text = dataset.manifest.tokenizer.eot_token
    plan = RunPlan(dataset)
    plan.run_windows = min(plan.run_windows, stretch)
    texts: list[str] = []
    with WindowReader(dataset, runs=plan) as reader:
        for start in range(0, len(windows), _DECODE_ROWS):
            tokens = reader.read(windows[start : start + _DECODE_ROWS])["tokens"][:, :TEXT_TOKENS]
            for text in tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=False):
                documents = (" ".join(document.split()) for document in text.strip("\ufffd").split(end_of_text))
                texts.append(" ¶ ".join(document for document in documents if document))
    return texts


def _characterise(
    texts: list[str],
    place: Int64s,
    row_per_place: Int64s,
    is_common: NDArray[np.bool_],
    num_nodes: tuple[int, int],
    terms_per_node: int,
) -> tuple[list[tuple[str, ...]], list[int]]:
    """Find the terms of each node, and the window of it that holds most of them.

    Args:
        texts: [num_windows].
        place: [num_places], the text of each window that was read for a node.
        row_per_place: [num_places], the row of that node.
        is_common: [num_windows], whether the text belongs to the background.
        num_nodes: how many are characterised, and how many the level has.
        terms_per_node: at most so many.

    Returns:
        For each node its terms, and an index into `place`, -1 without windows.
    """
    chosen_nodes, all_nodes = num_nodes
    typical = np.full(chosen_nodes, -1)
    typical[row_per_place[::-1]] = np.arange(len(place))[::-1]  # the first of each node, where there are no terms
    counted = _count_terms(texts) if terms_per_node else None
    if counted is None:
        return [()] * chosen_nodes, typical.tolist()
    counts, vocabulary = counted
    sparse = import_extra("scipy.sparse", extra="write", purpose="finding terms")
    owner: Any = sparse.csr_matrix((np.ones(len(place)), (row_per_place, place)), shape=(chosen_nodes, len(texts)))
    total: Any = owner @ counts
    common = np.maximum(np.asarray(counts[is_common].sum(axis=0)).ravel(), 1)
    rarity = np.log1p(common.sum() / (all_nodes * common))
    words = np.maximum(np.asarray(total.sum(axis=1)).ravel(), 1)
    scores: Any = sparse.csr_matrix(sparse.diags(1 / words) @ total @ sparse.diags(rarity))
    shared: Any = (owner @ (counts > 0)).tocsr()
    terms = [_best_terms(scores, shared, row, vocabulary, terms_per_node) for row in range(chosen_nodes)]
    column = {term: at for at, term in enumerate(vocabulary)}
    kept = [(row, column[term]) for row in range(chosen_nodes) for term in terms[row]]
    if kept:
        rows, columns = np.array(kept).T
        chosen: Any = sparse.csr_matrix((np.ones(len(kept)), (rows, columns)), shape=scores.shape).multiply(scores)
        present: Any = counts[place].minimum(1)
        fit = np.asarray(present.multiply(chosen.tocsr()[row_per_place]).sum(axis=1)).ravel()
        by_fit = np.lexsort((-np.arange(len(fit)), fit))  # best last, the earliest window among equals
        typical[row_per_place[by_fit]] = by_fit
    return terms, typical.tolist()


def _count_terms(texts: list[str]) -> tuple[Any, list[str]] | None:
    """Count terms: sparse [num_texts, num_terms], and the terms; None where no term occurs in two texts."""
    text = import_extra("sklearn.feature_extraction.text", extra="write", purpose="finding terms")
    counter = text.CountVectorizer(token_pattern=_TOKEN, stop_words="english", min_df=_MIN_WINDOWS_WITH_TERM)
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # scikit-learn's way to say that nothing is left
        return None
    return counts.tocsr(), counter.get_feature_names_out().tolist()


def _best_terms(scores: Any, shared: Any, row: int, vocabulary: list[str], limit: int) -> tuple[str, ...]:
    """Pick the terms with the highest scores of a row, those of several windows first, then by the alphabet.

    `scores` and `shared` (windows of the node with the term) are sparse [num_nodes, num_terms], of the same pattern.
    """
    part = slice(scores.indptr[row], scores.indptr[row + 1])
    columns, values = scores.indices[part], scores.data[part]
    several = np.asarray(shared[row, columns].todense()).ravel() >= _MIN_WINDOWS_WITH_TERM
    best = np.lexsort((columns, -values, ~several))[:limit]
    return tuple(vocabulary[column] for column in columns[best])
