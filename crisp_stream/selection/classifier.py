"""The paper's classifier (Section 3.2): a logistic regression on embeddings of windows tells a task from the corpus.

Positives are the windows of the task's examples. Negatives are windows of the corpus drawn at random; some may be like
the task, since only the order of the scores counts. Both classes weigh the same in the loss. The paper chooses the
threshold by training models, so it is left to the caller (`scores.QUANTILES`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.selection.scores import QuantileOf, Rows, check_rows, select_above, slices, threshold_of

if TYPE_CHECKING:
    from crisp_stream.counting.task_embeddings import TaskEmbeddings
    from crisp_stream.format.dataset import Dataset

REGULARISATIONS: tuple[float | None, ...] = (None, 1000, 100, 10, 1, 0.1, 0.01, 0.001)
"""Strengths of the paper's search (Table 5), read as scikit-learn's C, the inverse of the strength; None: no penalty.
In this reading the list goes from no penalty to the strongest. The grid is the same in the other reading, since it
holds with each value its inverse; only a single strength depends on the reading."""
FOLDS = 5
"""Parts of the examples, and of the negatives, each of which is held out once."""
MIN_NEGATIVES = 10_000
MIN_EXAMPLES = 5
_MAX_STEPS = 10_000
_TOLERANCE = 1e-7
"""Gradient of the mean loss at which a fit ends. At scikit-learn's 1e-4 fits of C >= 10 end far from the best: with a
held-out loss of 0.708 instead of 0.629."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A regularisation strength, measured on all examples, each while it is held out."""

    regularisation: float | None
    """C of scikit-learn; None: no penalty."""
    log_loss: float
    """Loss in nats per window, both classes weighing the same."""
    auc: float
    """Share of pairs, a window of the task and one of the corpus, in which that of the task scores higher."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A fitted classifier. It scores windows by the log odds of the task, at equal numbers of both classes."""

    weights: NDArray[np.float32]
    """[dim]"""
    intercept: float
    trials: tuple[Trial, ...]
    """One trial per strength, in their order."""
    chosen: Trial
    """Trial with the least log loss."""
    positives: int
    """Windows of the task that the classifier was fitted on."""
    negatives: int
    """Windows of the corpus that the classifier was fitted on."""
    held_out: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]
    """By fold, scores of the task's and of the corpus's windows that were held out, of the chosen strength."""

    def accepted(self, rejected: float) -> float:
        """Share of the task's windows, each held out, above the score that this share of the corpus's is not above."""
        above = [of_task > threshold_of(of_corpus, rejected) for of_task, of_corpus in self.held_out]
        return float(np.concatenate(above).mean())

    def scores(self, embeddings: Rows) -> NDArray[np.float32]:
        """Score windows, [num_windows], in slices, so that a mapped array may have any length."""
        scores = np.empty(len(embeddings), np.float32)
        for part, rows in slices(embeddings):
            scores[part] = rows @ self.weights + np.float32(self.intercept)
        return scores


def fit_classifier(
    task: TaskEmbeddings,
    corpus: Rows,
    *,
    regularisations: Sequence[float | None] = REGULARISATIONS,
    num_negatives: int | None = None,
    seed: int = 0,
) -> Classifier:
    """Fit the classifier with the regularisation that is best by cross-validation, then again on all examples.

    Args:
        task: positives. Windows of one example, and of alike ones, are held out together.
        regularisations: strengths to choose from: C, above 0, or None.
        num_negatives: windows of the corpus; as many as positives when None, but at least 10,000, and at most all.

    Raises:
        InputError: fewer than 5 examples, nothing to choose from, a number out of range.
        MissingExtraError: scikit-learn is not installed.
    """
    _check(task, regularisations, num_negatives)
    rng = np.random.default_rng(seed)
    wanted = max(len(task.examples), MIN_NEGATIVES) if num_negatives is None else num_negatives
    drawn = np.sort(rng.choice(len(corpus), min(wanted, len(corpus)), replace=False))
    rows = np.concatenate([task.embeddings, np.asarray(corpus[drawn], np.float32)])
    labels = np.arange(len(rows)) < len(task.embeddings)
    folds = np.concatenate([_folds(task.groups, rng), _folds(np.arange(len(drawn)), rng)])
    found = [_cross_validated(rows, labels, folds, regularisation) for regularisation in regularisations]
    best = min(range(len(found)), key=lambda at: found[at][0].log_loss)
    trials, (chosen, odds) = [trial for trial, _ in found], found[best]
    weights, intercept = _fitted(rows, labels, chosen.regularisation)
    return Classifier(
        weights=weights,
        intercept=intercept,
        trials=tuple(trials),
        chosen=chosen,
        positives=len(task.embeddings),
        negatives=len(drawn),
        held_out=tuple((odds[(folds == fold) & labels], odds[(folds == fold) & ~labels]) for fold in range(FOLDS)),
    )


def _folds(groups: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each window, 0 to FOLDS - 1; windows of a group are in one."""
    numbers, places = np.unique(groups, return_inverse=True)
    return (rng.permutation(len(numbers)) % FOLDS)[places]


def _cross_validated(
    rows: NDArray[np.float32], labels: NDArray[np.bool_], folds: NDArray[np.int64], regularisation: float | None
) -> tuple[Trial, NDArray[np.float64]]:
    """Measure a strength, and score every window by the fit that it was held out of."""
    odds = np.empty(len(rows))
    for fold in range(FOLDS):
        weights, intercept = _fitted(rows[folds != fold], labels[folds != fold], regularisation)
        odds[folds == fold] = rows[folds == fold] @ weights + intercept
    return _measured(regularisation, odds, labels), odds


def _check(task: TaskEmbeddings, regularisations: Sequence[float | None], num_negatives: int | None) -> None:
    examples = len(np.unique(task.groups))
    if examples < MIN_EXAMPLES:
        raise InputError(
            f"a classifier needs at least {MIN_EXAMPLES} examples, got {examples}. Name more, or count a histogram."
        )
    if not regularisations:
        raise InputError(
            "regularisation: must name at least one strength, got none. Leave it out for those of Table 5."
        )
    for strength in regularisations:
        if strength is not None and not (math.isfinite(strength) and strength > 0):
            raise InputError(f"regularisation: must be above 0, or none, got {strength}. `none` means no penalty.")
    if num_negatives is not None and num_negatives < FOLDS:
        raise InputError(
            f"negatives: must be at least {FOLDS}, got {num_negatives}. Leave it out for {MIN_NEGATIVES:,}."
        )


def _fitted(
    rows: NDArray[np.float32], labels: NDArray[np.bool_], regularisation: float | None
) -> tuple[NDArray[np.float32], float]:
    library: Any = import_extra("sklearn.linear_model", extra="write", purpose="the classifier")
    strength = np.inf if regularisation is None else regularisation
    model = library.LogisticRegression(C=strength, class_weight="balanced", max_iter=_MAX_STEPS, tol=_TOLERANCE)
    with warnings.catch_warnings():
        # Without a penalty, classes that a plane separates have no best fit. The log loss of such a fit is high.
        warnings.simplefilter("ignore")
        model.fit(rows.astype(np.float64), labels)  # float32 cannot reach the tolerance
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def _measured(regularisation: float | None, odds: NDArray[np.float64], labels: NDArray[np.bool_]) -> Trial:
    library: Any = import_extra("sklearn.metrics", extra="write", purpose="the classifier")
    losses = np.logaddexp(0, np.where(labels, -odds, odds).astype(np.float64))
    loss = (float(losses[labels].mean()) + float(losses[~labels].mean())) / 2
    return Trial(regularisation=regularisation, log_loss=loss, auc=float(library.roc_auc_score(labels, odds)))


class _Chosen:
    """Some rows of embeddings, as a whole."""

    def __init__(self, embeddings: Rows, chosen: NDArray[np.int64]) -> None:
        self._embeddings, self._chosen = embeddings, chosen
        self.shape = (len(chosen), *embeddings.shape[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        return self._embeddings[self._chosen[rows]]


@dataclass(frozen=True, kw_only=True)
class ClassifierSelection:
    """The windows that the classifier selected, and the time that it took."""

    selection: WindowSelection
    scores: NDArray[np.float32]
    """[num_windows], of every window of the dataset."""
    classifier: Classifier
    task_accepted: float
    """Share of the task's windows that would be selected, each scored by a fit that it was held out of."""
    task_accepted_in_sample: float
    """Share of the task's windows above the threshold: of those that the classifier was fitted on, so too high."""
    fit_seconds: float
    score_seconds: float


def select_by_classifier(
    task: TaskEmbeddings,
    corpus: Rows,
    dataset: Dataset,
    *,
    quantile: float,
    quantile_of: QuantileOf = "corpus",
    regularisations: Sequence[float | None] = REGULARISATIONS,
    num_negatives: int | None = None,
    seed: int = 0,
    allowed: NDArray[np.bool_] | None = None,
) -> ClassifierSelection:
    """Select the windows that the classifier scores highest.

    Args:
        quantile: the threshold is this quantile of scores: 0.975 selects 2.5 %.
        quantile_of: scores that the quantile is taken of: the corpus's or the task's (see `scores`).
        allowed: [num_windows], which windows may be selected, such as the long ones (`lengths`); negatives and the
            corpus's quantile are of these. All when None.

    Raises:
        InputError: as `fit_classifier`; embeddings of another dataset, a quantile that leaves nothing.
    """
    check_rows(corpus, dataset)
    started = time.perf_counter()
    drawable = corpus if allowed is None else _Chosen(corpus, np.flatnonzero(allowed))
    classifier = fit_classifier(task, drawable, regularisations=regularisations, num_negatives=num_negatives, seed=seed)
    fitted = time.perf_counter()
    scores, task_scores = classifier.scores(corpus), classifier.scores(task.embeddings)
    of_corpus = scores if allowed is None else scores[allowed]
    threshold = threshold_of(of_corpus if quantile_of == "corpus" else task_scores, quantile)
    selection = select_above(
        scores,
        threshold,
        dataset,
        {
            "method": "classifier",
            **task.provenance,
            "quantile": quantile,
            "quantile_of": quantile_of,
            "regularisation": classifier.chosen.regularisation,
            "log_loss": classifier.chosen.log_loss,
            "auc": classifier.chosen.auc,
            "negatives": classifier.negatives,
            "seed": seed,
        },
        allowed,
    )
    return ClassifierSelection(
        selection=selection,
        scores=scores,
        classifier=classifier,
        task_accepted=classifier.accepted(float((of_corpus <= threshold).mean())),
        task_accepted_in_sample=float((task_scores > threshold).mean()),
        fit_seconds=fitted - started,
        score_seconds=time.perf_counter() - fitted,
    )
