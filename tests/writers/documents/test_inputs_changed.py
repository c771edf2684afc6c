"""A file must be the one that was listed until it is read to its end, and compression changes no document."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import CrispError, InputError
from crisp_stream.storage.store import open_store
from crisp_stream.writers.documents.documents import read_documents, read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.stages.batches import DocumentsTask
from crisp_stream.writers.write import write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import WordEncoder, small_options

LINES = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(2000)).encode()


def same_size(path: Path) -> None:
    path.write_bytes(LINES.replace(b"text 7", b"text 8"))


def longer(path: Path) -> None:
    path.write_bytes(LINES + b'{"text": "more"}\n')


def shorter(path: Path) -> None:
    path.write_bytes(LINES[: len(LINES) // 2])


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("while_reading", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (same_size, r"a\.jsonl: must stay as it was .* got another version of its size. Run the command again"),
        (longer, r"a\.jsonl: must stay as it was .* got 42,890 bytes then and 42,907 now"),
        (shorter, r"a\.jsonl: must stay as it was .* got 42,890 bytes then and 21,445 now"),
        (gone, r"a\.jsonl: No such file"),
    ],
)
def test_a_file_that_changes_after_it_was_listed_is_refused(
    tmp_path: Path, change: Callable[[Path], None], message: str, while_reading: bool
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    os.utime(path, ns=(1, 1))
    [file] = list_input_files([str(path)], DocumentSettings())
    documents = read_input(file, DocumentSettings(), DropCounts())
    if while_reading:
        next(documents)
    change(path)
    with pytest.raises(CrispError, match=message):
        list(documents)


def test_a_replaced_object_is_refused(s3: S3Server) -> None:
    store = open_store(s3.fresh_prefix())
    store.put("a.jsonl", LINES)
    [file] = list_input_files([store.url], DocumentSettings())
    assert len(list(read_input(file, DocumentSettings(), DropCounts()))) == 2000
    store.put("a.jsonl", LINES.replace(b"text 7", b"text 8"))
    with pytest.raises(InputError, match=r"a\.jsonl: must stay as it was .* got another version of its size"):
        list(read_input(file, DocumentSettings(), DropCounts()))


@pytest.mark.parametrize("limit", [None, 1500])
def test_a_write_says_so_too(
    tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    os.utime(path, ns=(1, 1))
    make = DocumentsTask.make
    monkeypatch.setattr(DocumentsTask, "make", lambda task: [same_size(path), make(task)][1])
    with pytest.raises(InputError, match=r"a\.jsonl: must stay as it was"):
        write(small_options(path, tmp_path / "out", limit=limit), log=lambda line: None)


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_documents_do_not_depend_on_how_a_file_was_compressed(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a text file is cut into several documents."""
    monkeypatch.setattr("crisp_stream.records.readers.TXT_PIECE_CHARACTERS", 5000)
    content = b"\xef\xbb\xbf" + LINES.replace(b"text 9", "tëxt 9".encode())
    level_1, level_9 = gzip.compress(content, 1), gzip.compress(content, 9)
    members = gzip.compress(content[:7000]) + gzip.compress(content[7000:])
    zstd = pa.compress(content, "zstd", asbytes=True)
    frames = pa.compress(content[:7001], "zstd", asbytes=True) + pa.compress(content[7001:], "zstd", asbytes=True)
    files = {"": content, ".gz": level_1, "9.gz": level_9, "m.gz": members, ".zst": zstd, "f.zst": frames}
    read: list[list[str]] = []
    for ending, stored in files.items():
        name = f"{ending.partition('.')[0]}a.{suffix}" + (f".{ending.partition('.')[2]}" if ending else "")
        (tmp_path / name).write_bytes(stored)
        read.append(list(read_documents([str(tmp_path / name)], counts=DropCounts())))
    assert len(read[0]) == (2000 if suffix == "jsonl" else 9)
    assert all(documents == read[0] for documents in read)


def test_documents_do_not_depend_on_the_codec_or_the_row_groups_of_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {n}" for n in range(2000)]})
    for codec, rows in (("none", 2000), ("snappy", 300), ("zstd", 7), ("gzip", 2000)):
        pq.write_table(table, tmp_path / "a.parquet", compression=codec, row_group_size=rows)
        read = list(read_documents([str(tmp_path / "a.parquet")], counts=DropCounts()))
        assert read == table["text"].to_pylist()
