"""Choose level and smoothing of a histogram by the likelihood of held-out examples.

The score of a histogram is the mean over held-out windows of log w(c) = log P(c | histogram) / P(c | D^g), in nats: how
much likelier the mixture makes windows like the task's than the corpus does. Levels compare, because below its level a
histogram spreads windows as the corpus does, and the base mixture scores 0. The score is a sum over the levels down to
the histogram's, of mean log P(c | p) / P(c | p, D^g), each of which depends on that level's strength alone: so every
level gets the strength that is best for it, and the best level is that down to which the sum is largest; level 0, the
base mixture, where no sum is above 0. Examples, not windows, are held out, and those that are alike together: a copy
among what is learnt from would make the fine levels look too good.

A window in a cluster without windows of the corpus counts, as in `smoothing.smooth`, for the nodes above down to the
last that has some, so that what is scored is what `smooth` writes.

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
from crisp_stream.histograms.component import check_tree
from crisp_stream.histograms.histogram import ALIKE_KEY, Histogram
from crisp_stream.histograms.smoothing import levels_of, smooth

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
    """0: the base mixture, which no level is better than."""
    strengths: tuple[float, ...]
    """[level]."""

    def __str__(self) -> str:
        if self.level == 0:
            return "the base mixture: no level is better than it"
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
    """Examples, those that are alike counted as one."""
    num_alike: int | None
    """Examples that are like an earlier one, and are held out with it; None: not known."""
    num_windows: int
    """Windows of the examples."""
    num_outside: int
    """Windows in clusters that hold no windows of the corpus; they count for the nodes above."""

    def table(self) -> str:
        """Format as lines of text, one row per size."""
        raw = "".join(f"{f'raw L{level}':>9}" for level in self.levels)
        unseen = "".join(f"{f'new L{level}':>8}" for level in self.levels)
        outside = f" ({self.num_outside:,} in clusters without windows of the corpus: counted above)"
        lines = [
            f"{self.num_examples:,} examples, {self.num_windows:,} windows" + outside * (self.num_outside > 0),
            *_alike_lines(self.num_alike),
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
            strengths = ", ".join(f"{one:g}" for one in choice.strengths) or "base"
            raw = "".join(f"{value:>9.3f}" for value in size.raw)
            unseen = "".join(f"{value:>8.1%}" for value in size.unseen)
            lines.append(f"{size.examples:>9,} {choice.level:>5} {strengths:>14} {size.tuned:>8.3f}{raw}{unseen}")
        return "\n".join(lines)


def _alike_lines(num_alike: int | None) -> list[str]:
    if num_alike is None:
        return [
            "Which examples are alike is not known: copies would make these scores too good. Count the examples again."
        ]
    return [f"{num_alike:,} more are like one of these and are held out with it"] if num_alike else []


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
        histogram: with counts, of the finest level that may be chosen; best with the examples of each window, as
            `count_examples` gives them: alike ones under one number.
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
        num_alike=_num_alike(histogram),
        num_windows=counts.num_windows,
        num_outside=counts.num_outside,
    )


def tuned(histogram: Histogram, dataset: Dataset, choice: Choice) -> Histogram:
    """The histogram of a choice: smoothed, or the base mixture. Raises InputError as `tune`."""
    if choice.level == 0:
        return Histogram.base(dataset)
    return smooth(histogram, dataset, strength=choice.strengths, level=choice.level)


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
        self._example_of_window = np.unique(examples, return_inverse=True)[1]
        self.num_windows = len(nodes)
        self.num_examples = int(self._example_of_window.max(initial=-1)) + 1
        above = [nodes // np.uint32(histogram.arity**finer) for finer in reversed(range(len(levels)))]
        rows = [
            np.minimum(np.searchsorted(level.nodes, own), len(level.nodes) - 1)
            for level, own in zip(levels, above, strict=True)
        ]
        self.present = np.array([level.nodes[row] == own for level, row, own in zip(levels, rows, above, strict=True)])
        """Whether the node of a window has windows of the corpus, [levels, num_windows]."""
        self.num_outside = int(np.count_nonzero(~self.present[-1]))
        rows = [np.where(present, row, -1) for present, row in zip(self.present, rows, strict=True)]
        self._used_rows = [(np.zeros(1), np.zeros(len(nodes), np.int64))]
        """Rows of the nodes of a level, and the index of one of them for each window, [num_windows]; from level 0 on.
        Row -1 is of nodes without windows."""
        self._used_rows += [np.unique(row, return_inverse=True) for row in rows]
        shares = [np.append(level.share_of_parent, 1.0)[row] for level, row in zip(levels, rows, strict=True)]
        self.log_share = np.log(shares)
        """log P(c | p, D^g), [levels, num_windows]; 0 for nodes without windows."""

    def windows_of(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the windows of some examples."""
        chosen = np.zeros(self.num_examples, np.bool_)
        chosen[examples] = True
        return np.flatnonzero(chosen[self._example_of_window])

    def seen(self, training: NDArray[np.int64], held_out: NDArray[np.int64], level: int, at: int) -> NDArray[np.int64]:
        """Training windows that are in the node at level `at` of each window held out, and count at `level`.

        [num_held_out]; those count at a level whose node there has windows of the corpus.
        """
        used, index = self._used_rows[at]
        counted = training[self.present[level - 1, training]]
        return np.bincount(index[counted], minlength=len(used))[index[held_out]]


def _parts_of_score(
    counts: _Paths, training: NDArray[np.int64], held_out: NDArray[np.int64], strengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Score levels and strengths, [levels, strengths]: mean log P(c | p) / P(c | p, D^g) of windows held out.

    P(c | p) is made of the training windows. A window adds nothing at levels where its node has no windows.
    """
    scores = np.empty((len(counts.present), len(strengths)))
    for row, log_shares in enumerate(counts.log_share.take(held_out, axis=1)):
        own, of_parent = (counts.seen(training, held_out, row + 1, at) for at in (row + 1, row))
        present = counts.present[row, held_out]
        for column, strength in enumerate(strengths):
            posterior = (own + strength * np.exp(log_shares)) / (of_parent + strength)
            scores[row, column] = np.where(present, np.log(posterior) - log_shares, 0.0).mean()
    return scores


def _raw_scores(
    counts: _Paths, training: NDArray[np.int64], held_out: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score raw histograms with FLOOR of base, [levels], and the shares of unseen windows, [levels]."""
    shares = np.exp(np.cumsum(counts.log_share.take(held_out, axis=1), axis=0))
    depth = counts.present.take(held_out, axis=1).sum(axis=0)
    scores, unseen = np.empty(len(shares)), np.empty(len(shares))
    for level in range(1, len(shares) + 1):
        seen = np.zeros(len(held_out))
        for at in range(level + 1):  # the last node of a window, at this level or above, that has windows
            ends = np.minimum(depth, level) == at
            seen[ends] = counts.seen(training, held_out[ends], level, at)
        of_training = max(np.count_nonzero(counts.present[level - 1, training]), 1)
        scores[level - 1] = np.log((1 - FLOOR) * seen / of_training / shares[level - 1] + FLOOR).mean()
        unseen[level - 1] = ((seen == 0) | (depth < level)).mean()
    return scores, unseen


def _num_alike(histogram: Histogram) -> int | None:
    """Examples that are like an earlier one, as the counting noted; None where it did not."""
    alike = histogram.provenance.get(ALIKE_KEY)
    return None if not isinstance(alike, dict) else int(alike["exact"]) + int(alike["near"])


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
    level = int(np.cumsum([0.0, *scores.max(axis=1)]).argmax())
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
