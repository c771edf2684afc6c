from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.writers.cleaning import excluded_ids
from crisp_stream.writers.cleaning.excluded_ids import ExcludedIds, list_id_files, read_ids, save_hashes


def built(ids: Any, scratch: Path) -> tuple[ExcludedIds, list[Any]]:
    scratch.mkdir()
    files: list[Any] = []
    firsts = save_hashes(ids, scratch, lambda number, hashes: files.append(hashes))
    assert list(scratch.iterdir()) == []
    return ExcludedIds(firsts, files.__getitem__), files


def test_an_id_is_in_the_list_if_it_was_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excluded_ids, "_IDS_AT_ONCE", 100)
    monkeypatch.setattr(excluded_ids, "HASHES_PER_FILE", 50)
    names = [f"2023-06/{number:04d}/en_head.json.gz/{number * 7}" for number in range(2000)]
    excluded, files = built([*names[::2], *names[::4], "é", "\ud800"], tmp_path / "scratch")
    assert [name in excluded for name in names] == [True, False] * 1000
    assert "é" in excluded
    assert "\ud800" in excluded
    assert len(files) > 10
    assert sum(file.shape[1] for file in files) == 1002
    assert all((np.diff(file[0].astype(object)) >= 0).all() for file in files)


def test_hashes_that_agree_in_their_first_half_are_told_apart() -> None:
    import xxhash

    digest = xxhash.xxh3_128_digest(b"a")
    high, low = (int.from_bytes(digest[at : at + 8], "big") for at in (0, 8))
    others = np.array([[high] * 3, [low + 1, low + 2, low + 3]], np.uint64)
    assert "a" not in ExcludedIds([high], lambda number: others)
    others[1, 2] = low
    assert "a" in ExcludedIds([high], lambda number: others)
    assert "a" not in ExcludedIds([], lambda number: others)


def test_memory_does_not_grow_with_the_number_of_ids(tmp_path: Path) -> None:
    tracemalloc.start()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    counts: list[int] = []
    firsts = save_hashes(map(str, range(1_500_000)), scratch, lambda number, hashes: counts.append(hashes.shape[1]))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (sum(counts), len(firsts)) == (1_500_000, len(counts))
    assert peak_bytes < 110 << 20  # a file of 4 million hashes has 64 MB; a set of these ids would take 130


def test_ids_come_from_tables_and_lines(tmp_path: Path) -> None:
    pq.write_table(pa.table({"shard_id": ["x"], "doc_id": ["a"], "digest": ["y"]}), tmp_path / "a.duplicates.parquet")
    pq.write_table(pa.table({"id": [1, None, 2]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf one \r\n\n\xc3\xa9\n"))
    (tmp_path / "README.md").write_text("passed over")
    assert [name for file in list_id_files([str(tmp_path)]) for name in read_ids(file)] == ["a", "1", "2", "one", "é"]


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.csv", lambda path: path.write_text("a"), r"a.csv: ids come from .parquet .* got a.csv"),
        (
            "a.parquet",
            lambda path: pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), path),
            r"a.parquet: ids must stand in a column 'doc_id' .* got: a \(string\), b \(string\)",
        ),
        ("a.parquet", lambda path: pq.write_table(pa.table({"doc_id": [0.5]}), path), r"got: doc_id \(double\)"),
    ],
)
def test_a_list_of_another_form_is_refused(tmp_path: Path, name: str, write: Any, message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        [list(read_ids(file)) for file in list_id_files([str(tmp_path / name)])]


def test_a_damaged_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\n" * 9999)[:-9])
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    for file in list_id_files([str(tmp_path)]):
        with pytest.raises(CorruptInputError, match=file.name):
            list(read_ids(file))
