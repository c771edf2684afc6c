"""From a score for each window to a selection: the windows above a quantile of the corpus's scores.

The paper's "threshold accepting 2.5% of D^s" (Section 4) is read as the quantile 0.975 of the scores of the corpus D^g.
To the letter, a threshold that only 1 in 40 specialist examples passes would leave next to nothing of a corpus, while
the paper trains on 120B tokens of it, and says that the threshold is a trade-off between closeness and size of the
selected set (Section 3.2). `quantile_of="task"` is the reading to the letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histograms.window_selection import WindowSelection

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

QUANTILES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.975, 0.98, 0.9875, 0.99, 0.995, 0.9975)
"""Quantiles of the paper's search (Table 5)."""

SLICE_WINDOWS = 1 << 16

QuantileOf = Literal["corpus", "task"]


class Rows(Protocol):
    """Embeddings, [num_windows, dim], L2 norm 1: an array, in memory or mapped."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of windows and of dimensions."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[Any]: ...


def slices(embeddings: Rows) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Cut embeddings into slices of consecutive rows, in float32."""
    for start in range(0, len(embeddings), SLICE_WINDOWS):
        part = slice(start, min(start + SLICE_WINDOWS, len(embeddings)))
        yield part, np.asarray(embeddings[part], np.float32)


def check_rows(embeddings: Rows, dataset: Dataset) -> None:
    """Raise InputError where these are not embeddings of the windows of a dataset."""
    expected = (dataset.manifest.num_windows, dataset.manifest.encoder.dim)
    if tuple(embeddings.shape) != expected:
        raise InputError(
            f"embeddings of {dataset.root} must be [{expected[0]:,}, {expected[1]}], got {list(embeddings.shape)}. "
            f"Make them with: crisp-stream embed {dataset.root} --out DIR"
        )


def threshold_of(scores: NDArray[np.floating[Any]], quantile: float) -> float:
    """Find the smallest score that at least this share of the scores does not exceed."""
    if not 0 <= quantile < 1:
        raise InputError(f"quantile: must be at least 0 and below 1, got {quantile}. 0.975 selects 2.5 %.")
    place = int(np.ceil(quantile * len(scores) - 1e-9)) - 1
    return float("-inf") if place < 0 else float(np.partition(scores, place)[place])


def select_above(
    scores: NDArray[np.float32],
    threshold: float,
    dataset: Dataset,
    provenance: dict[str, Any],
    allowed: NDArray[np.bool_] | None = None,
) -> WindowSelection:
    """Select the windows whose score is above a threshold: C(D^g, t) of the paper.

    Args:
        scores: [num_windows], one score per window of the dataset.
        provenance: method of the scores, and its settings.
        allowed: [num_windows], which windows may be selected; all when None.

    Raises:
        InputError: no window is above the threshold.
    """
    chosen = scores > threshold if allowed is None else (scores > threshold) & allowed
    if not chosen.any():
        raise InputError(
            f"{dataset.root}: a window must have a score above {threshold:.6g}, got at most {float(scores.max()):.6g}. "
            "Use a lower quantile."
        )
    return WindowSelection(
        dataset_fingerprint=dataset.manifest.fingerprint,
        windows=chosen,
        num_windows=dataset.manifest.num_windows,
        provenance={**provenance, "threshold": threshold},
    )
