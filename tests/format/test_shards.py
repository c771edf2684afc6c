"""The table of shards: columns that say what rows said."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle

import pytest

from crisp_stream.format.mds import ShardRow
from crisp_stream.format.shards import ShardTable

ROWS = [
    ShardRow(
        path=f"shards/0{number}/shard.00000.mds",
        num_windows=3 + number,
        shard_bytes=1_000 * number + 17,
        first_sample_offset=200,
        shard_hash=hashlib.md5(bytes([number])).hexdigest(),
        checksum_seed=(1 << 64) - 1 - number,
    )
    for number in range(4)
]


def test_a_table_is_a_sequence_of_its_rows() -> None:
    table = ShardTable.of(ROWS)
    assert len(table) == 4
    assert list(table) == table[:] == ROWS
    assert table[1:3] == ROWS[1:3]
    assert table[-1] == ROWS[-1]
    with pytest.raises(IndexError):
        table[4]
    assert list(pickle.loads(pickle.dumps(table))) == ROWS


def test_the_fingerprint_is_that_of_the_rows_as_json() -> None:
    rows = json.dumps([dataclasses.astuple(row) for row in ROWS])
    assert ShardTable.of(ROWS).fingerprint == hashlib.sha256(rows.encode()).hexdigest()
    assert ShardTable.of([]).fingerprint == hashlib.sha256(b"[]").hexdigest()
