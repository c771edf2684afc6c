"""The list of removed documents: merged, named and written piece by piece."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import FormatError
from crisp_stream.writers.cleaning import dropped
from crisp_stream.writers.cleaning.dropped import (
    REMOVED,
    Dropped,
    contaminated_rows,
    dropped_table,
    dropped_tables,
    merge_listed,
    named_rows,
    read_dropped,
    read_listed,
    repeated_rows,
    save_dropped,
    save_listed,
)
from crisp_stream.writers.cleaning.duplicates import packed_places

ROWS = [
    Dropped(file="a.jsonl", row=3, id=None, reason="exact duplicate", detail="row 1 of a.jsonl"),
    Dropped(file="é.parquet", row=2**40, id="x", reason="contaminated", detail="row 4 of mcq.jsonl: a b c"),
]


def repeated(count: int, first_row: int = 0) -> pa.Table:
    rows = np.arange(first_row, first_row + count)
    removed = np.zeros(count, REMOVED)
    removed["kept"] = packed_places(np.zeros(count, np.uint32), rows // 2)
    removed["near"], removed["similarity"] = rows % 2 == 1, 0.875
    return repeated_rows(np.ones(count, np.uint32), rows, [f"id {row}" for row in rows], removed)


def test_the_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "dropped.parquet"
    assert save_dropped(path, [dropped_table(ROWS)]) == 2
    assert list(read_dropped(path)) == list(read_dropped(path.read_bytes())) == ROWS
    assert save_dropped(tmp_path / "empty.parquet", []) == 0
    assert list(read_dropped(tmp_path / "empty.parquet")) == []
    table = pq.read_table(path)
    pq.write_table(table.set_column(3, "reason", pa.array(["a whim"] * 2)), tmp_path / "whim.parquet")
    pq.write_table(table.drop_columns(["detail"]), tmp_path / "narrow.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name, message in (("whim", "a reason must be one of"), ("narrow", "must be"), ("broken", "must be Parquet")):
        with pytest.raises(FormatError, match=message):
            list(read_dropped(tmp_path / f"{name}.parquet"))


def test_details_name_the_kept_document_or_the_evaluation_set() -> None:
    contaminated = contaminated_rows([0], [5], [None], ["row 4 of mcq.jsonl: a b c"])
    named = named_rows(pa.concat_tables([contaminated, repeated(2)]), ["a.jsonl", "b.jsonl"]).to_pylist()
    assert [Dropped(**row) for row in named] == [
        Dropped(file="a.jsonl", row=5, id=None, reason="contaminated", detail="row 4 of mcq.jsonl: a b c"),
        Dropped(file="b.jsonl", row=0, id="id 0", reason="exact duplicate", detail="row 0 of a.jsonl"),
        Dropped(file="b.jsonl", row=1, id="id 1", reason="near duplicate", detail="row 0 of a.jsonl, similarity 0.88"),
    ]


places = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), unique=True, max_size=40)


@given(all_places=places, in_second=st.sets(st.integers(0, 39)), cut=st.integers(1, 7))
def test_two_lists_are_merged_by_file_and_row(all_places: list[tuple[int, int]], in_second: set[int], cut: int) -> None:
    def pieces(chosen: list[tuple[int, int]], reason: str) -> Iterator[pa.Table]:
        for start in range(0, len(chosen), cut):
            some = chosen[start : start + cut]
            yield contaminated_rows(
                [file for file, _ in some], [row for _, row in some], [None] * len(some), [reason] * len(some)
            )

    first = sorted(place for number, place in enumerate(all_places) if number not in in_second)
    second = sorted(place for number, place in enumerate(all_places) if number in in_second)
    merged = [row for table in merge_listed(pieces(first, "a"), pieces(second, "b")) for row in table.to_pylist()]
    assert [(row["file"], row["row"]) for row in merged] == sorted(all_places)
    assert {(row["file"], row["row"]) for row in merged if row["detail"] == "b"} == set(second)


def test_pieces_decide_no_byte_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped, "_ROWS_PER_GROUP", 1000)
    table = named_rows(repeated(3500), ["a.jsonl", "b.jsonl"])
    contents = []
    for piece in (1, 333, 1000, 3500):
        pieces = (table.slice(start, piece) for start in range(0, len(table), piece))
        assert save_dropped(tmp_path / "list.parquet", pieces) == 3500
        contents.append((tmp_path / "list.parquet").read_bytes())
    assert len(set(contents)) == 1
    assert [len(group) for group in dropped_tables(tmp_path / "list.parquet")] == [1000, 1000, 1000, 500]


def test_memory_does_not_grow_with_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped, "_ROWS_PER_GROUP", 2048)
    peaks = {}
    for num_rows in (10_000, 50_000):
        tables = (repeated(2000, start) for start in range(0, num_rows, 2000))
        save_listed(tmp_path / "list.arrow", tables)
        held = pa.total_allocated_bytes()
        tracemalloc.start()
        arrow = 0
        for number, table in enumerate(read_listed(tmp_path / "list.arrow")):
            save_dropped(tmp_path / f"{number}.parquet", [named_rows(table, ["a", "b"])])
            arrow = max(arrow, pa.total_allocated_bytes() - held)
        named = (named_rows(table, ["a", "b"]) for table in read_listed(tmp_path / "list.arrow"))
        assert save_dropped(tmp_path / "list.parquet", named) == num_rows
        assert sum(1 for _ in read_dropped(tmp_path / "list.parquet")) == num_rows
        peaks[num_rows] = tracemalloc.get_traced_memory()[1] + arrow
        tracemalloc.stop()
    assert peaks[50_000] < 1.5 * peaks[10_000]
