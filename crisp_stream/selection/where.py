"""Select windows by a condition on score files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.selection.conditions import windows_where


def select_where(condition: str, scores: Mapping[str, WindowScores], dataset: Dataset) -> WindowSelection:
    """Select the windows of a dataset that a condition holds for.

    Args:
        condition: see `conditions`.
        scores: by the names that the condition uses, as `load_scores` gives them.

    Returns:
        The selection. Its provenance has the condition, the values of its quantiles, and how each score was made.

    Raises:
        InputError: a condition that cannot be read or holds for no window; scores of another dataset or generation.
    """
    if not scores:
        raise InputError("--scores: at least one score file is needed, got none. Make one with: crisp-stream score")
    for name, one in scores.items():
        one.check_dataset(dataset, what=f"the score {name}")
    found = windows_where(condition, {name: one.scores for name, one in scores.items()})
    if not found.chosen.any():
        ranges = ", ".join(
            f"{name} is {one.scores.min():.6g} to {one.scores.max():.6g}" for name, one in scores.items()
        )
        raise InputError(
            f"condition {condition!r}: must hold for a window of {dataset.root}, but holds for none ({ranges}). "
            "Ask for less."
        )
    return WindowSelection(
        dataset_fingerprint=dataset.manifest.fingerprint,
        windows=found.chosen,
        num_windows=dataset.manifest.num_windows,
        provenance={
            "method": "where",
            "condition": condition,
            "thresholds": found.thresholds,
            "scores": {name: described(one) for name, one in scores.items()},
        },
    )


def described(scores: WindowScores) -> dict[str, Any]:
    """What the provenance of a selection says of scores: their own, without what is known by examples alone."""
    kept = {key: value for key, value in scores.provenance.items() if key != "example_hashes"}
    return {"name": scores.name, **kept}
