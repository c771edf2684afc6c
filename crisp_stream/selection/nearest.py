"""Select the windows that lie nearest to a task's examples, by the cosine of their embeddings.

The score of a window is its similarity to the nearest example. The mean of the examples is no alternative: for a task
of many subjects it is like none of them. Nearest neighbours of a small set select training text in Aharoni & Goldberg
(ACL 2020) and, for benchmarks, in BETR (Mizrahi et al. 2025, arXiv:2507.12466). BETR scores a sample of the corpus and
trains a classifier to predict the other scores; here every window has an embedding, so every score is computed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.selection.scores import Rows, check_rows, select_above, slices, threshold_of

if TYPE_CHECKING:
    from crisp_stream.counting.task_embeddings import TaskEmbeddings
    from crisp_stream.format.dataset import Dataset

_PRODUCTS = 1 << 24
"""Similarities held at once, 64 MB."""


@dataclass(frozen=True, kw_only=True)
class NearestSelection:
    """The windows that were selected, and the time that it took."""

    selection: WindowSelection
    scores: NDArray[np.float32]
    """[num_windows], of every window of the dataset."""
    threshold: float
    """Cosine that the selected windows exceed."""
    score_seconds: float


def nearest_scores(task: NDArray[np.float32], corpus: Rows, *, neighbours: int = 1) -> NDArray[np.float32]:
    """Score each window by its mean cosine to the nearest windows of the task, [num_windows].

    Args:
        task: [num_task_windows, dim], norm 1.
        corpus: [num_windows, dim], norm 1.
        neighbours: nearest windows averaged, 1 to num_task_windows; more than one where single examples are noise.

    Raises:
        InputError: more neighbours than windows of the task, or none.
    """
    if not 1 <= neighbours <= len(task):
        raise InputError(
            f"neighbours: must be 1 to {len(task)}, the windows of the task, got {neighbours}. Choose fewer."
        )
    scores = np.empty(len(corpus), np.float32)
    at_once = max(1, _PRODUCTS // len(task))
    for part, rows in slices(corpus):
        for start in range(0, len(rows), at_once):
            cosines = rows[start : start + at_once] @ task.T
            first = part.start + start
            if neighbours == 1:
                scores[first : first + len(cosines)] = cosines.max(axis=1)
            else:
                nearest = np.partition(cosines, len(task) - neighbours, axis=1)[:, len(task) - neighbours :]
                scores[first : first + len(cosines)] = nearest.mean(axis=1)
    return scores


def select_nearest(
    task: TaskEmbeddings,
    corpus: Rows,
    dataset: Dataset,
    *,
    quantile: float,
    neighbours: int = 1,
    allowed: NDArray[np.bool_] | None = None,
) -> NearestSelection:
    """Select the windows of a dataset that are nearest to a task.

    Args:
        quantile: the threshold is this quantile of the corpus's scores: 0.975 selects 2.5 %.
        allowed: [num_windows], which windows may be selected, such as the long ones (`lengths`); the quantile is of
            these. All when None.

    Raises:
        InputError: embeddings of another dataset, a quantile that leaves nothing, neighbours out of range.
    """
    check_rows(corpus, dataset)
    started = time.perf_counter()
    # Of alike examples only the first is a neighbour: the mean of the nearest is not one example many times.
    scores = nearest_scores(task.embeddings[task.groups == task.examples], corpus, neighbours=neighbours)
    threshold = threshold_of(scores if allowed is None else scores[allowed], quantile)
    provenance = {"method": "nearest", **task.provenance, "quantile": quantile, "neighbours": neighbours}
    return NearestSelection(
        selection=select_above(scores, threshold, dataset, provenance, allowed),
        scores=scores,
        threshold=threshold,
        score_seconds=time.perf_counter() - started,
    )
