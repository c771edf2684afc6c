"""The text across the borders of windows: windows that followed one another in their documents, and their edges.

The windows of a dataset are sorted by cluster, but provenance knows the place of each. While all windows are read
anyway, the first and last 48 tokens of each are put into a temporary file, 192 bytes per window of 16-bit tokens. Then
the end of each is joined with the beginning of the window that followed it, 9 % more text at 1,024 tokens. The
alternative, to read the following window itself, is a random read for every window of the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.dataset import Dataset
from crisp_stream.format.provenance import PLACE, has_provenance

EDGE_TOKENS = 48
MAX_WINDOWS = 1 << 24
"""Most windows of a dataset whose borders are searched: 3.2 GB of temporary file, 0.3 GB of memory."""
_BATCH_BORDERS = 8192


def can_join(dataset: Dataset) -> bool:
    """Whether the dataset says which windows followed one another, and has few enough for the temporary file."""
    return dataset.manifest.num_windows <= MAX_WINDOWS and has_provenance(dataset)


def edges_of(tokens: NDArray[Any]) -> NDArray[Any]:
    """Cut the first and the last tokens of windows, [num_windows, window_tokens] to [num_windows, 2, edge_tokens]."""
    return np.stack([tokens[:, :EDGE_TOKENS], tokens[:, -EDGE_TOKENS:]], axis=1)


class WindowBorders:
    """The edges and places of all windows of a dataset."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        """Make the temporary file in a folder, for a dataset that `can_join`."""
        manifest = dataset.manifest
        edge_tokens = min(EDGE_TOKENS, manifest.window_tokens)
        self._places = np.zeros(manifest.num_windows, PLACE)
        self._edges = np.memmap(
            folder / "edges", manifest.token_dtype, "w+", shape=(manifest.num_windows, 2, edge_tokens)
        )

    def add(self, first: int, edges: NDArray[Any], places: NDArray[Any]) -> None:
        """Keep windows from `first` on: their `edges_of`, and their places, [num_windows] of PLACE."""
        self._places[first : first + len(places)] = places
        self._edges[first : first + len(places)] = edges

    def joined(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Join all borders inside documents' lines of tokens, in batches, once all windows were added.

        Yields:
            [num_borders], the window before each, ascending; and [num_borders, 2 · edge_tokens], the tokens around it.
        """
        line = (self._places["part"].astype(np.int64) << 32) + self._places["place"]
        order = np.argsort(line, kind="stable")
        followed = np.flatnonzero(line[order[1:]] == line[order[:-1]] + 1)
        before, after = order[followed], order[followed + 1]
        by_window = np.argsort(before)
        before, after = before[by_window], after[by_window]
        for start in range(0, len(before), _BATCH_BORDERS):
            part = slice(start, start + _BATCH_BORDERS)
            yield before[part], np.concatenate([self._edges[before[part], 1], self._edges[after[part], 0]], axis=1)
