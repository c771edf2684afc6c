from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.storage.store import open_store
from crisp_stream.writers.documents.documents import read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from tests.support.seaweed import S3Server

_RNG = random.Random(0)
TEXTS = ["".join(_RNG.choices("abcdefgh ", k=300)) for _ in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
GZIP = gzip.compress(LINES, mtime=0)
BZ2, XZ = bz2.compress(LINES), lzma.compress(LINES)
ZSTD = pa.compress(LINES, "zstd", asbytes=True)


def flipped(content: bytes, position: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 0x55
    return bytes(damaged)


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink, write_page_checksum=True, use_dictionary=False, compression="none")
    return sink.getvalue().to_pybytes()


def arrow() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return sink.getvalue().to_pybytes()


DAMAGED = [
    ("cut.jsonl.gz", GZIP[: len(GZIP) // 2], "must be readable to its end, got: Truncated"),
    ("cut-by-one.jsonl.gz", GZIP[:-1], "must be readable to its end, got: Truncated"),
    ("flipped.jsonl.gz", flipped(GZIP, len(GZIP) - 6), "must be readable to its end, got: zlib"),
    ("empty.jsonl.gz", b"", "must be readable to its end, got: an empty file"),
    ("trailing.jsonl.gz", GZIP + b"more", "must be readable to its end"),
    ("cut.jsonl.zst", ZSTD[: len(ZSTD) // 2], "must be readable to its end, got: Truncated"),
    ("cut-by-one.jsonl.zst", ZSTD[:-1], "must be readable to its end, got: Truncated"),
    ("flipped.jsonl.zst", flipped(ZSTD, 0), "must be readable to its end, got: .*Zstandard"),
    ("trailing.jsonl.zst", ZSTD + b"more", "must be readable to its end"),
    ("cut.jsonl.bz2", BZ2[: len(BZ2) // 2], "must be readable to its end, got: Truncated"),
    ("cut-by-one.jsonl.bz2", BZ2[:-1], "must be readable to its end, got: Truncated"),
    ("flipped.jsonl.bz2", flipped(BZ2, len(BZ2) // 2), "must be readable to its end, got: Invalid data stream"),
    ("second.jsonl.bz2", BZ2 + flipped(BZ2, 0), "must be readable to its end, got: Invalid data stream"),
    ("cut.jsonl.xz", XZ[: len(XZ) // 2], "must be readable to its end, got: Truncated"),
    ("cut-by-one.jsonl.xz", XZ[:-1], "must be readable to its end, got: Truncated"),
    ("flipped.jsonl.xz", flipped(XZ, len(XZ) // 2), "must be readable to its end, got: Corrupt"),
    ("second.jsonl.xz", XZ + flipped(XZ, 0), "must be readable to its end, got: Input format not supported"),
    ("empty.jsonl.xz", b"", "must be readable to its end, got: an empty file"),
    ("empty.txt.zst", b"", "must be readable to its end, got: an empty file"),
    ("cut.txt.gz", GZIP[:1000], "must be readable to its end, got: Truncated"),
    ("cut.parquet", parquet()[:-100], "must be a readable Parquet file"),
    ("flipped.parquet", flipped(parquet(), 5000), "must be a readable Parquet file, got: .*CRC"),
    ("empty.parquet", b"", "must be a readable Parquet file"),
    ("cut.arrow", arrow()[: len(arrow()) // 2], "must be a readable Arrow file"),
    ("empty.arrow", b"", "must be a readable Arrow file"),
]  # fmt: skip


def read(path: str) -> int:
    settings = DocumentSettings()
    [file] = list_input_files([path], settings)
    return sum(1 for _ in read_input(file, settings, DropCounts()))


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED, ids=[name for name, _, _ in DAMAGED])
def test_damage_of_a_file_is_told_apart_and_placed(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptInputError, match=f"{name}.*{message}"):
        read(str(tmp_path / name))


def test_whole_files_of_the_same_content_are_read(tmp_path: Path) -> None:
    whole = {"a.jsonl": LINES, "a.jsonl.gz": GZIP, "a.jsonl.zst": ZSTD, "a.parquet": parquet(), "a.arrow": arrow()}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
        assert read(str(tmp_path / name)) == len(TEXTS)


def test_damage_in_an_object_store_is_damage_too(s3: S3Server) -> None:
    prefix = s3.fresh_prefix()
    for name, content, message in DAMAGED:
        if name.startswith("cut"):
            open_store(prefix).put(name, content)
            with pytest.raises(CorruptInputError, match=f"{name}.*{message}"):
                read(f"{prefix}/{name}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "a"}\n', ":1: the text column 'text' must exist, got: body"),
        ("a.jsonl", b'{"text": 7}\n', ":1: the text column 'text' must hold strings, got int"),
        ("a.jsonl", b"7\n", ":1: every line must be a JSON object, got int"),
        ("cut.jsonl", LINES[:-50], ":2000: every line must be a JSON object, got: Unterminated"),
        ("latin1.jsonl", b'{"text": "\xe9"}\n', ":1: every line must be a JSON object, got: 'utf-8'"),
        ("latin1.txt", b"caf\xe9 au lait", ": text files must be UTF-8"),
    ],
)
def test_a_bad_record_is_no_damage_of_its_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}{message}") as refused:
        read(str(tmp_path / name))
    assert type(refused.value) is InputError
