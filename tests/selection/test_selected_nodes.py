"""Selections seen over the clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.selection.selected_nodes import SelectedNode, selected_nodes, selected_nodes_table
from tests.support.synthetic import write_synthetic_dataset


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
