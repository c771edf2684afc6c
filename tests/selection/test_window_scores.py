"""Scores of windows in a file, and selections seen over the clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.selection.selected_nodes import SelectedNode, selected_nodes, selected_nodes_table
from tests.support.synthetic import write_synthetic_dataset


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(-300, 100, 1000).astype(np.float32)
    saved = WindowScores(dataset_fingerprint="f" * 64, scores=scores, provenance={"method": "dsir"})
    saved.save(tmp_path / "w.parquet")
    loaded = WindowScores.load(tmp_path / "w.parquet")
    np.testing.assert_array_equal(loaded.scores, scores)
    assert (loaded.dataset_fingerprint, loaded.provenance) == ("f" * 64, {"method": "dsir"})
    with pytest.raises(ValueError, match="read-only"):
        loaded.scores[0] = 0


def test_scores_must_be_finite_and_at_least_one() -> None:
    for scores in ([], [1.0, np.nan], [[1.0]]):
        with pytest.raises(InputError, match="scores must be finite numbers, one per window"):
            WindowScores(dataset_fingerprint="f" * 64, scores=np.array(scores, np.float32))


def test_another_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    WindowScores(dataset_fingerprint="f" * 64, scores=np.ones(100, np.float32)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(FormatError, match=r"w\.parquet: not scores of windows, or damaged"):
        WindowScores.load(path)
    WindowSelection(dataset_fingerprint="f" * 64, windows=np.arange(3), num_windows=100).save(path)
    with pytest.raises(FormatError, match="not scores of windows"):
        WindowScores.load(path)


def test_selected_windows_are_counted_per_cluster(tmp_path: Path) -> None:
    dataset = write_synthetic_dataset(tmp_path / "data", {0: 2, 1: 3, 5: 4, 15: 1})
    selection = WindowSelection(
        dataset_fingerprint=dataset.manifest.fingerprint, windows=np.array([1, 5, 6, 8]), num_windows=10
    )
    assert selected_nodes(selection, dataset) == [SelectedNode(1, 4, 3), SelectedNode(0, 5, 1), SelectedNode(3, 1, 0)]
    assert selected_nodes(selection, dataset, level=2)[0] == SelectedNode(5, 4, 3)
    table = selected_nodes_table(selection, dataset, limit=1)
    assert table.rows == [
        ["1", "4", "3", "75.00%", "75.00%"],
        ["2 others", "6", "1", "16.67%", "25.00%"],
        ["all", "10", "4", "40.00%", "100.00%"],
    ]
    other = write_synthetic_dataset(tmp_path / "other", {0: 10})
    with pytest.raises(InputError, match="the window selection was made for dataset"):
        selected_nodes(selection, other)
