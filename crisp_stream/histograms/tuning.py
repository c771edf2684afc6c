"""Choose level and smoothing of a histogram by the likelihood of held-out examples.

The score of a histogram is the mean over held-out windows of log w(c) = log P(c | histogram) / P(c | D^g), in nats: how
much likelier the mixture makes windows like the task's than the corpus does. Levels compare, because below its level a
histogram spreads windows as the corpus does, and the base mixture scores 0. The score is a sum over the levels down to
the histogram's, of mean log P(c | p) / P(c | p, D^g), each of which depends on that level's strength alone: so every
level gets the strength that is best for it, and the best level is that down to which the sum is largest. Examples, not
windows, are held out.

A raw histogram gives clusters that it has not seen nothing, so one unseen example costs it everything. Where it is
compared, `FLOOR` of it is replaced by the base mixture, at each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import check_tree
from crisp_stream.histograms.smoothing import levels_of

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FOLDS = 5
SIZES = (50, 100, 200, 500, 1000, 2000, 5000)
FLOOR = 0.01
"""Share of the base mixture in raw histograms that are scored."""
_LEAST_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A level, and the strengths of the levels down to it."""

    level: int
    strengths: tuple[float, ...]
    """[level]."""

    def __str__(self) -> str:
        return f"level {self.level}, strengths {', '.join(f'{one:g}' for one in self.strengths)}"


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """Scores of example sets of one size, means over the draws of such sets."""

    examples: int
    draws: int
    """Sets drawn. The last size is that of all examples but a fold; its sets are the folds' complements."""
    chosen: tuple[Choice, ...]
    """Choices by cross-validation within each set."""
    tuned: float
    """Score of the chosen ones on examples outside of the set, nats per window."""
    raw: tuple[float, ...]
    """[levels], scores of the raw counts with FLOOR of base."""
    unseen: tuple[float, ...]
    """[levels], share of held-out windows in clusters that the set does not hit: what a raw histogram cannot draw."""
    curves: tuple[tuple[float, ...], ...]
    """[levels][strengths], each level's part of the score, on examples outside of the set."""

    @property
    def typical(self) -> Choice:
        """The choice made most often; of equally frequent ones, the first."""
        return max(self.chosen, key=self.chosen.count)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Level and strength for a histogram, and scores by number of examples."""

    chosen: Choice
    """Choice by cross-validation over all examples."""
    levels: tuple[int, ...]
    strengths: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    """[levels][strengths], each level's part of the score, by cross-validation over all examples."""
    sizes: tuple[SizeResult, ...]
    num_examples: int
    num_windows: int
    """Windows of the examples, without those in clusters that hold no windows of the corpus."""
    left_out: int

    def table(self) -> str:
        """Format as lines of text, one row per size."""
        raw = "".join(f"{f'raw L{level}':>9}" for level in self.levels)
        unseen = "".join(f"{f'new L{level}':>8}" for level in self.levels)
        lines = [
            f"{self.num_examples:,} examples, {self.num_windows:,} windows"
            + (f" ({self.left_out:,} in clusters without windows of the corpus)" if self.left_out else ""),
            f"chosen: {self.chosen}",
            "",
            "Score: mean log w(c) of windows held out, in nats; the base mixture scores 0. raw: the counts of that",
            f"level, {FLOOR:.0%} of base added. new: windows held out in clusters that the set does not hit.",
            f"Means over {self.sizes[0].draws} sets of each size; the last row: each of {self.sizes[-1].draws} parts "
            "of all examples is held out.",
            "",
            f"{'examples':>9} {'level':>5} {'strengths':>14} {'tuned':>8}{raw}{unseen}",
        ]
        for size in self.sizes:
            choice = size.typical
            strengths = ", ".join(f"{one:g}" for one in choice.strengths)
            raw = "".join(f"{value:>9.3f}" for value in size.raw)
            unseen = "".join(f"{value:>8.1%}" for value in size.unseen)
            lines.append(f"{size.examples:>9,} {choice.level:>5} {strengths:>14} {size.tuned:>8.3f}{raw}{unseen}")
        return "\n".join(lines)


def tune(
    histogram: Histogram,
    dataset: Dataset,
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = FOLDS,
    sizes: Sequence[int] = SIZES,
    draws: int = 10,
    seed: int = 0,
) -> Tuning:
    """Choose level and strength of `smoothing.smooth` for a task.

    Args:
        histogram: with counts, of the finest level that may be chosen; best with the examples of each window.
        dataset: the corpus.
        strengths: candidates, positive.
        folds: of the cross-validation, over examples.
        sizes: example sets to look at, too, where there are more examples than that.
        draws: sets of each of these sizes.
        seed: of folds and sets.

    Raises:
        InputError: a histogram without counts or of another tree, too few examples, bad options.
    """
    check_tree(histogram, dataset, what="tune")
    counts = _Paths(histogram, dataset)
    if counts.num_examples < max(folds, _LEAST_EXAMPLES):
        raise InputError(
            f"tune: needs at least {max(folds, _LEAST_EXAMPLES)} examples, got {counts.num_examples}. "
            "Give more, or choose a strength yourself and smooth with it."
        )
    if folds < 2 or draws < 1 or not strengths or not all(np.isfinite(one) and one > 0 for one in strengths):
        raise InputError("tune: needs 2 folds, 1 draw, and positive strengths.")
    candidates = np.array(sorted(strengths), np.float64)
    rng = np.random.default_rng(seed)
    everything = np.arange(counts.num_examples)
    scores, chosen = _cross_validate(counts, everything, candidates, folds, rng)
    results = []
    most = counts.num_examples - -(-counts.num_examples // folds)
    for size in sorted({size for size in sizes if _LEAST_EXAMPLES <= size < most}):
        sets = [rng.permutation(counts.num_examples) for _ in range(draws)]
        parts = [(order[:size], order[size:]) for order in sets]
        results.append(_result(counts, size, parts, candidates, folds, rng))
    order = np.array_split(rng.permutation(counts.num_examples), folds)
    parts = [(np.setdiff1d(everything, fold), fold) for fold in order]
    results.append(_result(counts, most, parts, candidates, folds, rng))
    return Tuning(
        chosen=chosen,
        levels=tuple(range(1, histogram.level + 1)),
        strengths=tuple(candidates.tolist()),
        scores=tuple(tuple(row) for row in scores.tolist()),
        sizes=tuple(results),
        num_examples=counts.num_examples,
        num_windows=counts.num_windows,
        left_out=counts.left_out,
    )


class _Paths:
    """The nodes above every window of the examples, and the corpus's shares of them."""

    def __init__(self, histogram: Histogram, dataset: Dataset) -> None:
        if histogram.counts is None:
            raise InputError("tune: the histogram must have counts; it was computed from others. Tune those first.")
        if histogram.level < 1:
            raise InputError("tune: the histogram must be of level 1 or finer, got level 0.")
        nodes = np.repeat(histogram.nodes, histogram.counts)
        examples = np.arange(len(nodes)) if histogram.examples is None else histogram.examples
        levels = levels_of(dataset, histogram.level)
        at = np.minimum(np.searchsorted(levels[-1].nodes, nodes), len(levels[-1].nodes) - 1)
        kept = levels[-1].nodes[at] == nodes
        self.left_out = int(np.count_nonzero(~kept))
        nodes, self._example_of_window = nodes[kept], np.unique(examples[kept], return_inverse=True)[1]
        self.num_windows = len(nodes)
        self.num_examples = int(self._example_of_window.max(initial=-1)) + 1
        above = [nodes // np.uint32(histogram.arity**finer) for finer in reversed(range(len(levels)))]
        rows = [np.searchsorted(level.nodes, nodes) for level, nodes in zip(levels, above, strict=True)]
        self._used_rows = [np.unique(row, return_inverse=True) for row in rows]
        """Rows of the nodes of a level, and the index of one of them for each window, [num_windows]; by level."""
        self.log_share = np.log([level.share_of_parent[row] for level, row in zip(levels, rows, strict=True)])
        """log P(c | p, D^g), [levels, num_windows]."""

    def windows_of(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the windows of some examples."""
        chosen = np.zeros(self.num_examples, np.bool_)
        chosen[examples] = True
        return np.flatnonzero(chosen[self._example_of_window])

    def seen(self, training: NDArray[np.int64], held_out: NDArray[np.int64]) -> NDArray[np.float64]:
        """Training windows in the node of each window held out, [levels + 1, num_held_out]; level 0 is all of them."""
        counts = [np.full(len(held_out), float(len(training)))]
        for used, index in self._used_rows:
            counts.append(np.bincount(index[training], minlength=len(used))[index[held_out]].astype(np.float64))
        return np.stack(counts)


def _parts_of_score(
    counts: _Paths, training: NDArray[np.int64], held_out: NDArray[np.int64], strengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Score levels and strengths, [levels, strengths]: mean log P(c | p) / P(c | p, D^g) of windows held out.

    P(c | p) is made of the training windows.
    """
    seen, log_shares = counts.seen(training, held_out), counts.log_share.take(held_out, axis=1)
    scores = np.empty((len(log_shares), len(strengths)))
    for column, strength in enumerate(strengths):
        posterior = (seen[1:] + strength * np.exp(log_shares)) / (seen[:-1] + strength)
        scores[:, column] = (np.log(posterior) - log_shares).mean(axis=1)
    return scores


def _raw_scores(
    counts: _Paths, training: NDArray[np.int64], held_out: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score raw histograms with FLOOR of base, [levels], and the shares of unseen windows, [levels]."""
    seen, log_shares = counts.seen(training, held_out), counts.log_share.take(held_out, axis=1)
    weight = seen[1:] / len(training) / np.exp(np.cumsum(log_shares, axis=0))
    return np.log((1 - FLOOR) * weight + FLOOR).mean(axis=1), (seen[1:] == 0).mean(axis=1)


def _cross_validate(
    counts: _Paths,
    examples: NDArray[np.int64],
    strengths: NDArray[np.float64],
    folds: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], Choice]:
    """Average the parts of the score, [levels, strengths], over folds by their windows, and choose the best."""
    total, weight = 0.0, 0
    for fold in np.array_split(rng.permutation(examples), folds):
        training, held_out = counts.windows_of(np.setdiff1d(examples, fold)), counts.windows_of(fold)
        total = total + len(held_out) * _parts_of_score(counts, training, held_out, strengths)
        weight += len(held_out)
    scores = np.asarray(total) / weight
    level = int(np.cumsum(scores.max(axis=1)).argmax()) + 1
    best = strengths[scores.argmax(axis=1)[:level]]
    return scores, Choice(level=level, strengths=tuple(best.tolist()))


def _result(
    counts: _Paths,
    size: int,
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    strengths: NDArray[np.float64],
    folds: int,
    rng: np.random.Generator,
) -> SizeResult:
    """Choose within each training set, score on the examples held out; parts: (training, held out) examples."""
    chosen, tuned, raw, unseen, curves = [], [], [], [], []
    for training_examples, others in parts:
        choice = _cross_validate(counts, training_examples, strengths, folds, rng)[1]
        training, held_out = counts.windows_of(training_examples), counts.windows_of(others)
        scores = _parts_of_score(counts, training, held_out, strengths)
        chosen.append(choice)
        curves.append(scores)
        columns = np.searchsorted(strengths, choice.strengths)
        tuned.append(scores[np.arange(choice.level), columns].sum())
        raw_scores, unseen_shares = _raw_scores(counts, training, held_out)
        raw.append(raw_scores)
        unseen.append(unseen_shares)
    return SizeResult(
        examples=size,
        draws=len(parts),
        chosen=tuple(chosen),
        tuned=float(np.mean(tuned)),
        raw=tuple(np.mean(raw, axis=0).tolist()),
        unseen=tuple(np.mean(unseen, axis=0).tolist()),
        curves=tuple(tuple(row) for row in np.mean(curves, axis=0).tolist()),
    )
