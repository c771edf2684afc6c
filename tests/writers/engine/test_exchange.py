from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import FormatError
from crisp_stream.storage.store import FolderStore
from crisp_stream.writers.engine import exchange as exchange_module
from crisp_stream.writers.engine.exchange import Exchange
from crisp_stream.writers.engine.workspace import Workspace

ROW = np.dtype([("source", "<u2"), ("number", "<u4"), ("text", "S3")])


def rows_of(source: int, destinations: list[int]) -> np.ndarray:
    return np.array([(source, number, b"abc") for number in range(len(destinations))], ROW)


@given(
    sources=st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=4),
    piece_bytes=st.integers(1, 200),
    is_local=st.booleans(),
)
def test_a_destination_gets_its_rows_in_the_order_of_the_sources(
    tmp_path_factory: pytest.TempPathFactory, sources: list[list[int]], piece_bytes: int, is_local: bool
) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("exchange"))
    exchange = Exchange(stage="stage", fingerprint="abc", num_sources=len(sources), num_destinations=5, dtype=ROW)
    for source, destinations in enumerate(sources):
        with exchange.created(workspace, source) as writer:
            writer.add_unsorted(rows_of(source, destinations), np.array(destinations, np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderStore, "is_local", is_local)  # elsewhere requests run at once
        patch.setattr(exchange_module, "_THREADS", 3)
        for destination in range(5):
            expected = [
                (source, number, b"abc")
                for source, destinations in enumerate(sources)
                for number, other in enumerate(destinations)
                if other == destination
            ]
            pieces = list(exchange.pieces(workspace, destination, piece_bytes=piece_bytes))
            assert [tuple(row) for piece in pieces for row in piece.tolist()] == expected
            assert all(len(piece) for piece in pieces)
            of_first = [tuple(row) for row in exchange.rows_of(workspace, 0, destination).tolist()]
            assert of_first == [row for row in expected if row[0] == 0]
    whole = [len(piece) for piece in exchange.pieces_of_source(workspace, 0)]
    assert sum(whole) == len(sources[0])


def test_files_that_are_cut_short_are_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    exchange = Exchange(stage="stage", fingerprint="abc", num_sources=1, num_destinations=2, dtype=ROW)
    with exchange.created(workspace, 0) as writer:
        writer.add(rows_of(0, [0, 1]), np.array([0, 1]))
    for name in exchange.names(0):
        content = workspace.read(name)
        workspace.write(name, content[:-1])
        with pytest.raises(FormatError, match=r"is cut short\. Remove it"):
            exchange.rows(workspace, 1)
        workspace.write(name, content)
    assert len(exchange.rows(workspace, 1)) == 1
