"""Hostile input: whatever stands in a dataset's files, reading gives the right windows or a CrispError.

No other exception, nothing written or deleted outside the cache folder, no allocation that the files' own sizes do not
justify. Tables are also fuzzed with fingerprints made to match, as whoever writes a hostile dataset would.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import multiprocessing
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from crisp_stream.errors import CrispError, FormatError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.mds import ShardRow
from crisp_stream.format.shards import ShardTable
from crisp_stream.format.tables import clusters_fingerprint
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.loading.reader import read_windows
from crisp_stream.tree.tree import ClusterTree
from tests.support.synthetic import write_synthetic_dataset

_EXAMPLES = int(os.environ.get("CRISP_STREAM_FUZZ", "0"))
FUZZ = settings(
    max_examples=_EXAMPLES or 120,
    derandomize=not _EXAMPLES,  # CRISP_STREAM_FUZZ=10000 searches on
    database=None,
    phases=(Phase.explicit, Phase.generate),  # the examples are small; shrinking one would take longer than finding it
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FILES = [
    "manifest.json",
    "clusters.parquet",
    "shards.parquet",
    "shards/index.json",
    "shards/00/shard.00000.mds",
    "shards/03/shard.00001.mds",
    "tree/tree.json",
    "tree/level1.nodes.npy",
    "tree/level2.centroids.npy",
    "tokenizer/tokenizer.json",
    "histogram",
]
HOSTILE_NUMBERS = [0, -1, 1, 2, 3, 65, 1 << 20, 1 << 31, 1 << 53, 1 << 60, (1 << 63) - 1, 1 << 63, 1 << 70, -(1 << 63)]
HOSTILE_VALUES: list[Any] = [
    *HOSTILE_NUMBERS,
    1.5,
    math.nan,
    math.inf,
    None,
    True,
    "",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "\x00",
    "x" * 100_000,
    "uint64",
    "0" * 64,
    [],
    {},
    [[[]]],
    {"a": None},
]


class Victim:
    """A dataset whose files are damaged and restored."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.dataset: Dataset = write_synthetic_dataset(
            self.root, {0: 20, 3: 5, 5: 7, 15: 19}, window_tokens=8, windows_per_shard=8
        )
        Histogram.from_leaves([0, 0, 3, 15], self.dataset.tree, 2).save(self.root / "histogram")
        self.content = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        self.everything = np.arange(self.dataset.manifest.num_windows)
        self.samples = read_windows(self.dataset, self.everything).copy()
        self.record: dict[str, Any] = json.loads(self.content[self.root / "manifest.json"])
        self.beside = folder / "beside.txt"
        self.beside.write_text("not yours")

    def restore(self) -> None:
        """Put back what was damaged; fails when reading has written or deleted anything."""
        for path in self.root.rglob("*"):
            assert path.is_dir() or path in self.content, f"{path} was written"
        for path, content in self.content.items():
            assert path.is_file(), f"{path} was deleted"
            if path.read_bytes() != content:
                path.write_bytes(content)
        assert self.beside.read_text() == "not yours"
        assert sorted(path.name for path in self.root.parent.iterdir()) == ["beside.txt", "root"]

    def read(self) -> None:
        """Read everything, as the right data or a CrispError."""
        for part in (self._read_windows, self._read_tree, self._read_histogram, self._read_tokenizer):
            with contextlib.suppress(CrispError):
                part()

    def _read_windows(self) -> None:
        dataset = open_dataset(self.root)
        ids = self.everything[: dataset.manifest.num_windows]
        for some in (ids[:1], ids[-1:], ids):
            assert (read_windows(dataset, some)["tokens"] == self.samples["tokens"][some]).all()
        dataset.manifest.to_json()

    def _read_tree(self) -> None:
        tree = open_dataset(self.root).tree
        assert tree.fingerprint == self.dataset.tree.fingerprint
        ClusterTree.load(self.root / "tree")

    def _read_histogram(self) -> None:
        histogram = Histogram.load(self.root / "histogram")
        assert math.isclose(histogram.proportions.sum(), 1.0, abs_tol=1e-5)
        histogram.expand(self.dataset.leaves, self.dataset.windows_per_leaf)

    def _read_tokenizer(self) -> None:
        open_dataset(self.root).tokenizer_path()

    def sign(self, **changes: Any) -> None:
        """Write a manifest with these changes."""
        (self.root / "manifest.json").write_text(json.dumps({**self.record, **changes}))


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CRISP_STREAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Victim(tmp_path_factory.mktemp("fuzz"))


Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """One way to damage bytes."""
    place, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 64))
    noise = draw(st.binary(min_size=length, max_size=length))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "repeat", "empty", "remove"]))

    def damage(content: bytes) -> bytes:
        at = int(place * len(content))
        if kind == "flip":
            return content[:at] + bytes([content[at] ^ (noise[0] or 1)]) + content[at + 1 :]
        parts = {
            "cut": content[:at],
            "insert": content[:at] + noise + content[at:],
            "overwrite": content[:at] + noise + content[at + length :],
            "repeat": content[: at + length] + content[at:],
            "empty": b"",
            "remove": content[:at] + content[at + length :],
        }
        return parts[kind]

    return damage


@FUZZ
@given(name=st.sampled_from(FILES), damage=damages())
def test_damaged_bytes(victim: Victim, name: str, damage: Damage) -> None:
    path = victim.root / name
    path.write_bytes(damage(victim.content[path]))
    victim.read()
    path.write_bytes(victim.content[path])
    victim.restore()


@FUZZ
@given(first=st.sampled_from(FILES), second=st.sampled_from(FILES))
def test_swapped_files(victim: Victim, first: str, second: str) -> None:
    (victim.root / first).write_bytes(victim.content[victim.root / second])
    (victim.root / second).write_bytes(victim.content[victim.root / first])
    victim.read()
    victim.restore()


def every_key(record: dict[str, Any]) -> list[tuple[str, ...]]:
    nested = [(key, below) for key, inner in record.items() if isinstance(inner, dict) for below in inner]
    return [(key,) for key in record] + nested


@FUZZ
@given(data=st.data(), hostile=st.sampled_from(HOSTILE_VALUES))
def test_hostile_values_in_json(victim: Victim, data: st.DataObject, hostile: Any) -> None:
    name = data.draw(st.sampled_from(["manifest.json", "tree/tree.json"]))
    record = copy.deepcopy(json.loads(victim.content[victim.root / name]))
    for key in data.draw(st.lists(st.sampled_from([*every_key(record), ("new",)]), min_size=1, max_size=2)):
        inner = record
        for outer in key[:-1]:
            inner = inner[outer] if isinstance(inner[outer], dict) else record
        inner[key[-1]] = hostile
    (victim.root / name).write_text(json.dumps(record))
    victim.read()
    victim.restore()


HOSTILE_JSON = [
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b"null",
    b"[]",
    b'"x"',
    b"1e999",
    b"1" * 5000,
    b"\xff\xfe{}",
    b'{"format_version": 1, "format_version": 2}',
    b'{"tree_version": 1, "arity": 1e999, "depth": 2}',
    b'{"tree_version": 1, "arity": "4", "depth": [2]}',
    b'{"tree_version": 1, "arity": 2, "depth": 24}',
]


@pytest.mark.parametrize("content", HOSTILE_JSON, ids=lambda content: repr(content[:24]))
@pytest.mark.parametrize("name", ["manifest.json", "tree/tree.json"])
def test_hostile_json(victim: Victim, name: str, content: bytes) -> None:
    (victim.root / name).write_bytes(content)
    victim.read()
    with pytest.raises(FormatError):
        _ = open_dataset(victim.root).tree
    victim.restore()


LEAF_TYPES = [pa.uint32(), pa.int64(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.timestamp("us")]
NESTED = [pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.dictionary(pa.int32(), pa.string()), pa.null()]


@st.composite
def columns(draw: st.DrawFn, num_rows: int) -> pa.Array:
    """A column of any type with hostile values, nulls included."""
    kind = draw(st.sampled_from([*LEAF_TYPES, *NESTED]))
    numbers = st.sampled_from([*HOSTILE_NUMBERS, 4, 5, 7, 20])
    if pa.types.is_integer(kind):
        low, high = (0, (1 << 32) - 1) if kind == pa.uint32() else (-(1 << 63), (1 << 63) - 1)
        elements: st.SearchStrategy[Any] = numbers.map(lambda number: min(max(number, low), high))
    elif pa.types.is_floating(kind):
        elements = st.sampled_from([math.nan, math.inf, -0.0, 1.0, 5.0, 1e300])
    elif pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        elements = st.sampled_from(
            ["", "..", "/etc/passwd", "shards/00/../../x.mds", "shards/00/shard.00000.mds\n", "9"]
        )
    else:
        elements = st.none()
    values = draw(st.lists(st.one_of(elements, elements, st.none()), min_size=num_rows, max_size=num_rows))
    return pa.array(values, kind)


@FUZZ
@given(data=st.data())
def test_hostile_tables_with_matching_fingerprints(victim: Victim, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["clusters", "shards", "histogram"]))
    path = victim.root / (name if name == "histogram" else f"{name}.parquet")
    table = pq.read_table(pa.BufferReader(victim.content[path]))
    table = table.slice(0, data.draw(st.integers(0, len(table))))
    for column in data.draw(st.lists(st.sampled_from(table.column_names), max_size=2)):
        at = table.column_names.index(column)
        table = table.set_column(at, column, data.draw(columns(len(table))))
    pq.write_table(table, path)
    changes: dict[str, Any] = {}
    if name == "clusters":
        changes["num_leaves"] = len(table)
        try:
            leaves, counts = (table[c].to_numpy() for c in ("leaf", "num_windows"))
            changes["num_windows"] = int(counts.sum())
            changes["clusters_fingerprint"] = clusters_fingerprint(leaves.astype("u4"), counts.astype("i8"))
        except (ValueError, TypeError, OverflowError, IndexError, RuntimeWarning):
            pass
    elif name == "shards":
        changes["num_shards"] = len(table)
        rows = [ShardRow(**row) for row in table.to_pylist()]
        with contextlib.suppress(ValueError, TypeError):
            changes["shards_fingerprint"] = ShardTable.of(rows).fingerprint
    victim.sign(**changes)
    victim.read()
    victim.restore()


@FUZZ
@given(data=st.data())
def test_hostile_metadata_of_a_histogram(victim: Victim, data: st.DataObject) -> None:
    path = victim.root / "histogram"
    table = pq.read_table(pa.BufferReader(victim.content[path]))
    record = json.loads(table.schema.metadata[b"crisp_stream.histogram"])
    for key in data.draw(st.lists(st.sampled_from(sorted(record)), min_size=1, max_size=3)):
        record[key] = data.draw(st.sampled_from(HOSTILE_VALUES))
    text = data.draw(st.sampled_from([json.dumps(record), "[]", "null", "[" * 200_000]))
    pq.write_table(table.replace_schema_metadata({b"crisp_stream.histogram": text.encode()}), path)
    victim.read()
    victim.restore()


def with_rows_claimed(content: bytes, num_rows: int, claimed: int) -> bytes:
    """A Parquet file whose footer says `claimed` wherever it said `num_rows` (a Thrift varint of two bytes or more)."""

    def varint(number: int) -> bytes:
        number, encoded = number * 2, b""  # zigzag
        while number > 127:
            encoded, number = encoded + bytes([number & 127 | 128]), number >> 7
        return encoded + bytes([number])

    footer_bytes = struct.unpack("<I", content[-8:-4])[0]
    data, footer = content[: -8 - footer_bytes], content[-8 - footer_bytes : -8]
    assert varint(num_rows) in footer
    footer = footer.replace(varint(num_rows), varint(claimed))
    return data + footer + struct.pack("<I", len(footer)) + b"PAR1"


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def claim_manifest(victim: Victim) -> None:
    victim.sign(num_windows=1 << 60)


def claim_windows(victim: Victim) -> None:
    victim.sign(num_windows=1 << 47, window_tokens=1 << 20, num_shards=1 << 24)


def claim_leaves(victim: Victim) -> None:
    victim.sign(num_windows=1 << 47, num_leaves=1 << 24, arity=64, depth=4)


def claim_clusters(victim: Victim) -> None:
    table = pa.table({"leaf": pa.array(range(1000), pa.uint32()), "num_windows": pa.array([1] * 1000, pa.int64())})
    content = with_rows_claimed(parquet_bytes(table), 1000, 1 << 40)
    (victim.root / "clusters.parquet").write_bytes(content)
    victim.sign(num_windows=1 << 24, num_leaves=1 << 24, arity=64, depth=4)


def claim_clusters_in_agreement(victim: Victim) -> None:
    claim_clusters(victim)
    path = victim.root / "clusters.parquet"
    path.write_bytes(with_rows_claimed(path.read_bytes(), 1 << 40, 1 << 24))


def claim_histogram(victim: Victim) -> None:
    path = victim.root / "histogram"
    table = pq.read_table(pa.BufferReader(victim.content[path]))
    long = pa.concat_tables([table] * 400).replace_schema_metadata(table.schema.metadata)
    path.write_bytes(with_rows_claimed(parquet_bytes(long), len(long), 1 << 40))


def long_paths(victim: Victim) -> None:
    table = pq.read_table(pa.BufferReader(victim.content[victim.root / "shards.parquet"])).slice(0, 1)
    table = pa.concat_tables([table] * 40)
    path = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), ["x" * (25 << 20)])
    (victim.root / "shards.parquet").write_bytes(parquet_bytes(table.set_column(0, "path", path)))
    victim.sign(num_shards=40)


def claim_array(victim: Victim) -> None:
    path = victim.root / "tree" / "level1.nodes.npy"
    content = victim.content[path]
    path.write_bytes(content.replace(b"'shape': (4,), }" + b" " * 15, b"'shape': (1099511627776,), }   "))
    assert path.read_bytes() != content


CLAIMS = [
    claim_manifest,
    claim_windows,
    claim_leaves,
    claim_clusters,
    claim_clusters_in_agreement,
    claim_histogram,
    long_paths,
    claim_array,
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_claims_of_enormous_sizes_allocate_little(victim: Victim, claim: Callable[[Victim], None]) -> None:
    claim(victim)
    for path in victim.root.rglob("*"):
        assert path.is_dir() or path.stat().st_size < 100_000
    outcomes: Connection
    outcomes, theirs = multiprocessing.Pipe(duplex=False)

    def read_with_little_memory() -> None:
        if sys.platform == "linux":
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30), in_use + (1 << 30)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            victim.read()
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> (
                10 if sys.platform == "linux" else 20
            )
            theirs.send("" if grown < 300 else f"{grown} MB")
        except BaseException as error:
            theirs.send(repr(error))

    child = multiprocessing.get_context("fork").Process(target=read_with_little_memory)
    child.start()
    answered = outcomes.poll(300)
    victim.restore()
    assert answered, "it hangs"
    assert outcomes.recv() == ""
    child.join()
