"""Terms that say what the nodes of the tree are about, by class TF-IDF, and a sample text of each.

A sample of bounded size is read, never the corpus: for each node stretches of neighbouring windows at evenly spaced
places of its range (neighbours in a leaf are a uniform sample of the leaf, FORMAT.md), and a background sample of the
whole dataset. A few thousand requests suffice at any size of the corpus.

What is read of a node, and the terms it gets, depend on the dataset, the level and the node alone, not on which other
nodes are named: five nodes get the terms that they would get among all 4,096, in every command. A language model that
names each node, the usual alternative, reads better, but cannot be had everywhere, and invents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import import_extra
from crisp_stream.format.terms import STORED_NODES, LevelTerms, StoredTerms
from crisp_stream.hashing import splitmix64

TEXT_TOKENS = 256
"""Tokens of a window that are looked at: as much as the usual encoder reads of it."""
MAX_WINDOWS_PER_NODE = 128
LEAST_WINDOWS_PER_NODE = 8
"""Windows read of each node of a level with more than 4,096 nodes."""
LEVEL_WINDOWS = MAX_WINDOWS_PER_NODE * 256
"""Windows read for the nodes of a level with fewer."""
BACKGROUND_WINDOWS = 4_096
MAX_TERMS = 8
TEXT_CHARACTERS = 400
"""Characters of a sample text."""
_STRETCH = 8  # neighbouring windows read at a place
_MIN_WINDOWS_WITH_TERM = 2
_WORD = r"(?u)\b[^\W\d_]{1,30}\b"
_LEAST_TERM = 3
_CLOSING = ".,;:!?)]}%' \""
"""Characters that belong to what stood before."""
_DECODE_ROWS = 2048
_SHUFFLES = 3

Int64s = NDArray[np.int64]
ReadTokens = Callable[[Int64s], NDArray[Any]]
"""[num_windows] sorted window ids -> [num_windows, window_tokens]."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the windows of each leaf stand, and the tree's shape."""

    leaves: NDArray[np.uint32]
    """[num_leaves], sorted ids of the leaves that have windows."""
    windows_per_leaf: Int64s
    arity: int
    depth: int

    @cached_property
    def first_window_per_leaf(self) -> Int64s:
        """[num_leaves]."""
        return np.cumsum(self.windows_per_leaf) - self.windows_per_leaf

    @property
    def num_windows(self) -> int:
        """Windows of the dataset."""
        return int(self.windows_per_leaf.sum())


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Reads and decodes windows."""

    read_tokens: ReadTokens
    tokenizer_json: Path
    eot_token: str

    def lines(self, windows: Int64s) -> Iterator[str]:
        """The beginning of each window as one line of text that begins at a word; a pilcrow where one document ends and
        the next begins. `windows` are sorted."""
        tokenizers = import_extra("tokenizers", extra="inspect", purpose="showing text")
        tokenizer = tokenizers.Tokenizer.from_file(str(self.tokenizer_json))
        for start in range(0, len(windows), _DECODE_ROWS):
            tokens = self.read_tokens(windows[start : start + _DECODE_ROWS])[:, :TEXT_TOKENS]
            for text in tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=False):
                yield one_line(text, self.eot_token)


def one_line(text: str, eot_token: str) -> str:
    """A decoded window as one line, from its first whole word on; a pilcrow between documents."""
    documents = (" ".join(document.split()) for document in from_a_word(text).split(eot_token))
    return " ¶ ".join(document for document in documents if document)


def from_a_word(text: str) -> str:
    """Decoded text without what stands before its first blank, which may be the rest of a word.

    Windows are cut between tokens, not between words. Text without blanks, as of Chinese, is left as it is."""
    text = text.strip("\ufffd")
    first, *rest = re.split(r"\s+", text, maxsplit=1)
    whole = rest[0].lstrip(_CLOSING) if rest else ""
    return whole if whole and not _has_no_blanks(first) else text


def _has_no_blanks(first: str) -> bool:
    """Whether it is of a script that sets no blanks between words: Thai to Khmer, Chinese, Japanese."""
    return any("\u0e00" <= letter <= "\u0eff" or "\u1780" <= letter <= "\u17ff" for letter in first) or any(
        "\u3040" <= letter <= "\u9fff" for letter in first
    )


def find_terms(layout: Layout, source: TextSource) -> StoredTerms:
    """The terms of all levels that are stored. Raises what reading raises; MissingExtraError."""
    levels: dict[int, LevelTerms] = {}
    purities: dict[int, float] = {}
    for level in range(1, layout.depth + 1):
        ranges = Ranges(layout, level)
        if len(ranges.nodes) > STORED_NODES:
            break
        levels[level], purity = find_level(layout, source, level, ranges.nodes)
        if purity is not None:
            purities[level] = purity
    return StoredTerms(levels=levels, purities=purities)


def windows_per_node(num_nodes: int) -> int:
    """Windows that are read of each node of a level with so many nodes."""
    return max(LEAST_WINDOWS_PER_NODE, min(MAX_WINDOWS_PER_NODE, LEVEL_WINDOWS // max(num_nodes, 1)))


def find_level(
    layout: Layout,
    source: TextSource,
    level: int,
    nodes: NDArray[np.uint32],
    *,
    quota: int | None = None,
    background: int = BACKGROUND_WINDOWS,
    terms_per_node: int = MAX_TERMS,
) -> tuple[LevelTerms, float | None]:
    """Terms and texts of some nodes of a level.

    score(t, c) = P(t | c) · log(1 + A / f(t))     [BERTopic's c-TF-IDF]

    A is the mean number of words of a class and f(t) the frequency of t over all classes, so A / f(t) is
    1 / (C · P(t)), with C the number of the level's nodes that have windows. P(t) comes from a background sample of
    the whole dataset, P(t | c) from windows of the node. English function words are left out, as are terms that stand
    in only one window of the node and in less than two of the background. Terms of at least two of the node's windows
    come before those of one, whatever their score.

    Args:
        layout: of the dataset.
        source: of its text.
        level: 0 to the tree's depth.
        nodes: [num_nodes], node ids.
        quota: windows of each; `windows_per_node` when None.
        background: windows of the whole dataset.
        terms_per_node: at most so many; 0: the texts alone, without scikit-learn.

    Returns:
        The terms; and how far the nodes are told apart by topic (`topical_purity`), None where there is too little text
        to say.
    """
    ranges = Ranges(layout, level)
    first, sizes = ranges.of(nodes)
    quota = windows_per_node(len(ranges.nodes)) if quota is None else quota
    of_nodes, node_row = sample(layout, first, sizes, quota, salts=nodes.astype(np.uint64))
    whole, salt = np.array([layout.num_windows]), np.array([1 << 40], np.uint64)
    common, _ = sample(layout, np.zeros(1, np.int64), whole, background, salts=salt)
    windows = np.unique(np.concatenate([of_nodes, common]))
    texts = list(source.lines(windows))
    place = np.searchsorted(windows, of_nodes)
    counted = _count_words(texts) if terms_per_node else None
    typical = np.full(len(nodes), -1)
    typical[node_row[::-1]] = np.arange(len(place))[::-1]  # the first of each node, where there are no terms
    terms: list[tuple[str, ...]] = [()] * len(nodes)
    purity = None
    if counted is not None:
        sampled = _Sampled(counted, place, node_row, np.isin(windows, common), len(nodes), len(ranges.nodes))
        terms = [sampled.best_terms(row, terms_per_node) for row in range(len(nodes))]
        typical = sampled.typical(terms, typical)
        purity = sampled.purity()
    found = LevelTerms(
        nodes=nodes,
        windows_read_per_node=np.bincount(node_row, minlength=len(nodes)),
        terms=terms,
        texts=[texts[place[at]][:TEXT_CHARACTERS].strip() if at >= 0 else "" for at in typical],
    )
    return found, purity


class Ranges:
    """The windows of each node of a level: consecutive, from `first` on."""

    def __init__(self, layout: Layout, level: int) -> None:
        node_per_leaf = layout.leaves.astype(np.int64) // layout.arity ** (layout.depth - level)
        nodes, row = np.unique(node_per_leaf, return_index=True)
        self.nodes = nodes.astype(np.uint32)
        self._first = layout.first_window_per_leaf[row]
        self._sizes = np.add.reduceat(layout.windows_per_leaf, row)

    def of(self, nodes: NDArray[np.uint32]) -> tuple[Int64s, Int64s]:
        """Look up the first window and the number of windows of each node; 0 windows for a node that has none."""
        at = np.minimum(np.searchsorted(self.nodes, nodes), len(self.nodes) - 1)
        return self._first[at], np.where(self.nodes[at] == nodes, self._sizes[at], 0)


def sample(
    layout: Layout, first: Int64s, sizes: Int64s, quota: int, *, salts: NDArray[np.uint64]
) -> tuple[Int64s, Int64s]:
    """Choose about `quota` windows of each range in stretches at evenly spaced places, with the range of each.

    Where the places of a range begin follows from its salt.
    """
    stretch = stretch_of(quota)
    places = -(-np.minimum(quota, sizes) // stretch)
    row = np.repeat(np.arange(len(first)), places)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(places) - places, places)
    jitter = (splitmix64(salts) >> np.uint64(11)).astype(np.float64) / (1 << 53)
    spread = (nth + jitter[row]) / places[row]
    chosen = first[row] + (spread * sizes[row]).astype(np.int64)
    leaf_first = layout.first_window_per_leaf
    leaf_first = leaf_first[np.searchsorted(leaf_first, chosen, side="right") - 1]
    # Where in the leaf does not matter, so stretches begin at multiples: what is fetched is what is read.
    begin = np.maximum(chosen - (chosen - leaf_first) % stretch, first[row])
    begin = np.where(sizes[row] <= quota, first[row] + nth * stretch, begin)  # read whole
    windows = (begin[:, None] + np.arange(stretch)).ravel()
    rows = np.repeat(row, stretch)
    inside = windows < first[rows] + sizes[rows]
    pairs = np.unique(np.column_stack([rows[inside], windows[inside]]), axis=0)
    return pairs[:, 1], pairs[:, 0]


def stretch_of(quota: int) -> int:
    """Choose how many neighbours are read at a place: at most _STRETCH, with little left over."""
    return -(-quota // -(-quota // _STRETCH))


def _count_words(texts: list[str]) -> tuple[Any, NDArray[np.str_]] | None:
    """Count words: sparse [num_texts, num_words], and the words; None where no word occurs in two texts."""
    text = import_extra("sklearn.feature_extraction.text", extra="write", purpose="finding terms")
    counter = text.CountVectorizer(token_pattern=_WORD, min_df=_MIN_WINDOWS_WITH_TERM, dtype=np.int32)
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # scikit-learn's way to say that nothing is left
        return None
    return counts.tocsr(), counter.get_feature_names_out()


class _Sampled:
    """Words counted in windows of some nodes and of the background."""

    def __init__(
        self,
        counted: tuple[Any, NDArray[np.str_]],
        place: Int64s,
        row_per_place: Int64s,
        is_common: NDArray[np.bool_],
        chosen_nodes: int,
        all_nodes: int,
    ) -> None:
        """Args:
        counted: sparse [num_windows, num_words], and the words.
        place: [num_places], the text of each window that was read for a node.
        row_per_place: [num_places], the row of that node.
        is_common: [num_windows], whether the text belongs to the background.
        chosen_nodes, all_nodes: how many are characterised, and how many the level has.
        """
        self._sparse: Any = import_extra("scipy.sparse", extra="write", purpose="finding terms")
        text: Any = import_extra("sklearn.feature_extraction.text", extra="write", purpose="finding terms")
        self._counts, words = counted
        self._words = words.tolist()
        self._is_function = np.isin(words, sorted(text.ENGLISH_STOP_WORDS))
        self._is_term = ~self._is_function & (np.char.str_len(words.astype(str)) >= _LEAST_TERM)
        self._place, self._row_per_place, self._chosen_nodes = place, row_per_place, chosen_nodes
        owner = self._sparse.csr_matrix(
            (np.ones(len(place), np.int32), (row_per_place, place)), shape=(chosen_nodes, len(is_common))
        )
        self._total: Any = (owner @ self._counts).tocsr()
        self._shared: Any = (owner @ (self._counts > 0).astype(np.int32)).tocsr()
        background = self._counts[is_common]
        common = np.asarray(background.sum(axis=0)).ravel().astype(np.int64)
        self._windows_of_background = np.asarray((background > 0).sum(axis=0)).ravel()
        known = self._is_term & (self._windows_of_background >= _MIN_WINDOWS_WITH_TERM)
        self._rarity = np.log1p(max(int(common[known].sum()), 1) / (all_nodes * np.maximum(common, 1)))

    def best_terms(self, row: int, limit: int) -> tuple[str, ...]:
        """Pick the terms with the highest scores of a node, those of several windows first, then by the alphabet."""
        part = slice(self._total.indptr[row], self._total.indptr[row + 1])
        columns, counts = self._total.indices[part], self._total.data[part]
        windows = np.asarray(self._shared[row, columns].todense()).ravel()
        several = windows >= _MIN_WINDOWS_WITH_TERM
        kept = self._is_term[columns]
        kept &= several | (self._windows_of_background[columns] >= _MIN_WINDOWS_WITH_TERM)
        scores = counts * self._rarity[columns]
        best = np.lexsort((columns, -scores, ~several, ~kept))[: min(limit, int(kept.sum()))]
        return tuple(self._words[column] for column in columns[best])

    def typical(self, terms: list[tuple[str, ...]], default: NDArray[np.int64]) -> NDArray[np.int64]:
        """[num_nodes], the place of the window of each node that holds most of its terms; else the default."""
        column = {term: at for at, term in enumerate(self._words)}
        kept = [(row, column[term]) for row in range(self._chosen_nodes) for term in terms[row]]
        if not kept:
            return default
        rows, columns = np.array(kept).T
        values = np.asarray(self._total[rows, columns]).ravel() * self._rarity[columns]
        chosen = self._sparse.csr_matrix((values, (rows, columns)), shape=self._total.shape)
        present = self._counts[self._place].minimum(1)
        fit = np.asarray(present.multiply(chosen[self._row_per_place]).sum(axis=1)).ravel()
        by_fit = np.lexsort((-np.arange(len(fit)), np.round(fit, 9)))  # best last, the earliest window among equals
        typical = default.copy()
        typical[self._row_per_place[by_fit]] = by_fit
        return typical

    def purity(self) -> float | None:
        """How far the nodes are told apart by what text is about, 0 to 1: see `topical_purity`."""
        words = np.asarray(self._total.sum(axis=0)).ravel().astype(np.float64)
        kinds = [self._is_function, self._is_term]
        if min(words[kind].sum() for kind in kinds) == 0:
            return None
        gained = _information(self._total)
        rng = np.random.default_rng(0)
        ones = np.ones(len(self._place), np.int32)
        for _ in range(_SHUFFLES):
            rows = rng.permutation(self._row_per_place)
            shape = (self._chosen_nodes, self._counts.shape[0])
            owner = self._sparse.csr_matrix((ones, (rows, self._place)), shape=shape)
            gained = gained - _information((owner @ self._counts).tocsr()) / _SHUFFLES
        function, content = (max(float(gained[kind].sum()), 0.0) / float(words[kind].sum()) for kind in kinds)
        return topical_purity(function, content)


def topical_purity(function: float, content: float) -> float | None:
    """Share of content words in what a word of either kind says about its cluster; None where neither says anything.

    Both are in nats for a word: the information that the words of a kind carry about the cluster, above that of the
    same windows with their clusters shuffled, by their number.
    """
    return content / (function + content) if function + content > 0 else None


def _information(total: Any) -> NDArray[np.float64]:
    """[num_words], what each word's places say about the node, summed over them: counts · log P(t, c) / P(t) P(c)."""
    total = total.astype(np.float64)
    everything = total.sum()
    if not everything:
        return np.zeros(total.shape[1])
    of_nodes, of_words = np.asarray(total.sum(axis=1)).ravel(), np.asarray(total.sum(axis=0)).ravel()
    entries = total.tocoo()
    expected = of_nodes[entries.row] * of_words[entries.col] / everything
    values = entries.data * np.log(np.maximum(entries.data, 1e-300) / expected)
    return np.asarray(np.bincount(entries.col, weights=values, minlength=total.shape[1]), np.float64)
