"""Selections of windows: what they hold, their files, and what they refuse."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import FormatError, InputError
from crisp_stream.histograms import window_selection as selections
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.order.packed_bits import PackedBits, indexed, members, pack, unpack
from tests.support.synthetic import write_synthetic_dataset

FINGERPRINT = "a" * 64
LEAVES = {0: 70, 3: 5, 7: 130}


def selection_of(windows: list[int], num_windows: int = 205, **more: object) -> WindowSelection:
    return WindowSelection(
        dataset_fingerprint=FINGERPRINT,
        windows=np.array(windows, np.int64),
        num_windows=num_windows,
        provenance={"method": "by hand", **more},
    )


@given(st.sets(st.integers(0, 699), min_size=1), st.integers(700, 900))
def test_packed_bits_count_and_find_members_as_a_sorted_list_does(numbers: set[int], length: int) -> None:
    ordered = sorted(numbers)
    words = pack(np.array(ordered), length)
    bits = PackedBits(indexed(words))
    assert members(words).tolist() == ordered
    assert bits.num_members == len(ordered)
    assert bits.select(np.arange(len(ordered))).tolist() == ordered
    assert bits.rank(np.arange(length + 1)).tolist() == [sum(n < at for n in ordered) for at in range(length + 1)]
    assert np.flatnonzero(unpack(words, 3, 650)).tolist() == [n - 3 for n in ordered if 3 <= n < 650]


def test_a_saved_selection_loads_as_it_was(tmp_path: Path) -> None:
    saved = selection_of([0, 63, 64, 200, 204])
    saved.save(tmp_path / "folder" / "a.windows.parquet")
    loaded = WindowSelection.load(tmp_path / "folder" / "a.windows.parquet")
    assert loaded == saved
    assert loaded.windows.tolist() == [0, 63, 64, 200, 204]
    assert (loaded.dataset_fingerprint, loaded.num_windows, loaded.num_selected) == (FINGERPRINT, 205, 5)
    assert loaded.share == pytest.approx(5 / 205)
    assert loaded.provenance == {"method": "by hand"}


def test_a_list_of_ids_and_a_bool_for_each_window_are_the_same_selection() -> None:
    chosen = np.zeros(205, bool)
    chosen[[5, 9, 204]] = True
    by_bool = WindowSelection(dataset_fingerprint=FINGERPRINT, windows=chosen, num_windows=205)
    assert by_bool == selection_of([5, 9, 204])
    assert by_bool.contains(4, 10).tolist() == [False, True, False, False, False, True]


def test_the_fingerprint_tells_windows_and_datasets_apart_but_not_where_they_came_from() -> None:
    one = selection_of([1, 2])
    assert one.fingerprint == selection_of([1, 2], seed=5).fingerprint
    assert one != selection_of([1, 3])
    assert one != selection_of([1, 2], num_windows=206)
    assert one != WindowSelection(dataset_fingerprint="b" * 64, windows=np.array([1, 2]), num_windows=205)


def test_windows_are_counted_per_leaf(tmp_path: Path) -> None:
    dataset = write_synthetic_dataset(tmp_path, LEAVES)
    selection = WindowSelection(
        dataset_fingerprint=dataset.manifest.fingerprint,
        windows=np.array([0, 69, 75, 76, 204]),
        num_windows=dataset.manifest.num_windows,
    )
    assert selection.selected_per_leaf(dataset).tolist() == [2, 0, 3]


def test_a_selection_of_another_dataset_is_refused(tmp_path: Path) -> None:
    dataset = write_synthetic_dataset(tmp_path, LEAVES)
    with pytest.raises(InputError, match=r"was made for dataset aaaaaaaaaaaa of 205 windows.*Select again with --data"):
        selection_of([1]).check_dataset(dataset)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (np.array([], np.int64), "at least one window, got none"),
        (np.zeros(205, bool), "at least one window, got none"),
        (np.array([3, 2]), "sorted and unique"),
        (np.array([3, 3]), "sorted and unique"),
        (np.array([-1, 3]), "0 to 204, got -1 to 3"),
        (np.array([3, 205]), "0 to 204, got 3 to 205"),
        (np.array([0.5]), "list of window ids, got float64"),
        (np.ones(204, bool), "one bool for each of 205 windows, got 204"),
    ],
)
def test_what_is_no_selection_is_refused(windows: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WindowSelection(dataset_fingerprint=FINGERPRINT, windows=windows, num_windows=205)


def test_any_changed_byte_of_a_file_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.windows.parquet"
    saved = WindowSelection(
        dataset_fingerprint=FINGERPRINT, windows=np.flatnonzero(np.arange(3000) * 7919 % 11 < 4), num_windows=3000
    )
    saved.save(path)
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :])
        try:
            assert WindowSelection.load(path).windows.tolist() == saved.windows.tolist()
        except FormatError:
            refused += 1
    assert refused > len(content) // 7 // 3


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a window selection"),
        (b"{}", "windows_version None is not 1"),
        (b'{"windows_version": 2}', "windows_version 2 is not 1. Upgrade"),
        (b'{"windows_version": 1}', "not a window selection"),
        (b'{"windows_version": 1, "num_windows": 65}', "1 rows cannot hold 65 windows"),
        (
            b'{"windows_version": 1, "num_windows": 2, "num_selected": 2, "dataset_fingerprint": "", "provenance": {}}',
            "the dataset does not have",
        ),
        (
            b'{"windows_version": 1, "num_windows": 3, "num_selected": 1, "dataset_fingerprint": "", "provenance": {}}',
            "must hold 1 windows, got 2",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, metadata: bytes | None, message: str) -> None:
    table = pa.table({"selected": pa.array([5], pa.uint64())})
    if metadata is not None:
        table = table.replace_schema_metadata({b"crisp_stream.windows": metadata})
    path = tmp_path / "a.windows.parquet"
    pq.write_table(table, path)
    with pytest.raises(FormatError, match=f"{re.escape(str(path))}: .*{message}"):
        WindowSelection.load(path)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="crisp-stream select"):
        WindowSelection.load(tmp_path / "a.windows.parquet")


def test_a_large_selection_is_one_file_that_copies_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(selections, "SHARED_ROWS", 4)
    selection = WindowSelection(dataset_fingerprint=FINGERPRINT, windows=np.arange(0, 64_000, 3), num_windows=64_000)
    assert len(list(tmp_path.glob("selections/*.arrays"))) == 1
    content = pickle.dumps(selection)
    assert len(content) < 2000
    assert np.array_equal(pickle.loads(content).windows, np.arange(0, 64_000, 3))
