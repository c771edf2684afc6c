from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import InputError
from crisp_stream.records import readers
from crisp_stream.storage.store import open_store
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import BROKEN_UNICODE, EMPTY_TEXT, NULL_TEXT, DropCounts
from tests.support.seaweed import S3Server
from tests.support.warc import warc_record


def read(*inputs: Path | str, **options: object) -> tuple[list[str], dict[str, int]]:
    counts = DropCounts()
    texts = list(read_documents([str(source) for source in inputs], counts=counts, **options))  # type: ignore[arg-type]
    return texts, counts.as_dict()


def jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json.gz"])
def test_lines_are_read_in_order_from_every_compression(tmp_path: Path, suffix: str) -> None:
    content = jsonl(*({"text": f"document {number} é"} for number in range(500)))
    path = tmp_path / f"a{suffix}"
    if suffix.endswith(".gz"):
        content = gzip.compress(content)
    if suffix.endswith(".zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(content)
    assert read(path)[0] == [f"document {number} é" for number in range(500)]


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl({"text": "a"})) + gzip.compress(jsonl({"text": "b"})))
    assert read(path)[0] == ["a", "b"]


def test_parquet_is_read_by_the_named_column(tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(3000)]
    pq.write_table(pa.table({"id": range(3000), "body": texts}), tmp_path / "a.parquet", row_group_size=700)
    assert read(tmp_path / "a.parquet", text_column="body")[0] == texts
    assert read(tmp_path / "a.parquet", text_column="body", limit=1500)[0] == texts[:1500]


def test_a_folder_gives_its_files_by_name_and_inputs_keep_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text("second\n", encoding="utf-8")
    (folder / "a.jsonl").write_bytes(jsonl({"text": "first"}))
    (folder / "sub" / "c.txt.gz").write_bytes(gzip.compress("third é".encode()))
    (folder / "README.md").write_text("not a document")
    last = tmp_path / "0.txt"
    last.write_bytes(b"\xef\xbb\xbflast")
    texts, counts = read(folder, last)
    assert texts == ["first", "second\n", "third é", "last"]
    assert counts == {}  # the README is no document


def test_a_huge_text_file_is_cut_behind_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TXT_PIECE_CHARACTERS", 100)
    content = "".join(f"line {number}\r\n" for number in range(100))
    (tmp_path / "a.txt").write_bytes(content.encode())
    texts = read(tmp_path / "a.txt")[0]
    assert "".join(texts) == content
    assert len(texts) > 5
    assert all(text.endswith("\n") for text in texts)


def test_texts_without_content_are_dropped_and_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"text": "kept"}, {"text": ""}, {"text": " \n\u00a0"}, {"text": None}, {"text": "\ud800"}]
    path.write_bytes(jsonl(*records) + b"\n\n")
    texts, counts = read(path)
    assert texts == ["kept"]
    assert counts == {EMPTY_TEXT: 2, NULL_TEXT: 1, BROKEN_UNICODE: 1}


def test_the_limit_counts_documents_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "a"}, {"text": ""}, {"text": "b"}, {"text": "c"}))
    assert read(path, limit=3)[0] == ["a", "b"]
    with pytest.raises(InputError, match="limit: must be at least 1 document, got 0"):
        read(path, limit=0)


def test_an_object_store_is_read_like_a_folder(tmp_path: Path, s3: S3Server) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl({"text": "a"}, {"text": "b"})))
    (tmp_path / "b.jsonl").write_bytes(jsonl({"text": "c"}))
    (tmp_path / "c.txt").write_text("d")
    pq.write_table(pa.table({"text": ["e", "f"]}), tmp_path / "d.parquet")
    (tmp_path / "e.csv.xz").write_bytes(lzma.compress(b"text\n" + b"g" * (1 << 20) + b'\n"h\n"\n'))
    (tmp_path / "f.wet.bz2").write_bytes(bz2.compress(warc_record("conversion", b"i")))
    (tmp_path / "g.json.zst").write_bytes(pa.compress(b'[{"text": "j"}]', "zstd", asbytes=True))
    prefix = s3.fresh_prefix()
    for file in tmp_path.iterdir():
        open_store(prefix).put_file(file.name, file)
    texts = ["a", "b", "c", "d", "e", "f", "g" * (1 << 20), "h\n", "i", "j"]
    assert read(prefix)[0] == read(tmp_path)[0] == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            jsonl({"text": "a"}, {"body": "b", "id": 1}),
            r"a.jsonl:2: the text column 'text' must exist, got: body, id",
        ),
        ("a.jsonl", jsonl({"text": 7}), r"a.jsonl:1: the text column 'text' must hold strings, got int"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": \n',
            r"a.jsonl:2: every line must be a JSON object, got: Expecting value",
        ),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a.jsonl:1: every line must be a JSON object, got: 'utf-8' codec"),
        ("a.jsonl", b"7\n", r"a.jsonl:1: every line must be a JSON object, got int"),
        ("a.txt", b"\xff\xfe\x00", r"a.txt: text files must be UTF-8"),
        ("a.parquet", b"not parquet at all", r"a.parquet: must be a readable Parquet file"),
        (
            "a.jsonl.gz",
            gzip.compress(jsonl({"text": "a" * 5000}), mtime=0)[:-9],
            r"a.jsonl.gz: must be readable to its end, got: Trunc",
        ),
        ("a.jsonl.gz", b"not gzip", r"a.jsonl.gz: must be readable to its end"),
        ("a.json", b'{\n "text": "a"\n}', r"a.json:1: every line must be a JSON object, got one over several lines"),
        ("a.html", b"<p>a</p>", r"a.html: documents come from .jsonl.*got a.html"),
        ("a.jsonl", b"", r"at least one document with text is needed, got 0 documents"),
        ("a.jsonl", jsonl({"text": ""}), r"at least one document with text is needed, got 1 documents without any"),
    ],
)
def test_bad_input_is_refused_with_place_and_remedy(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_a_missing_parquet_column_names_those_that_exist(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: row 1: the text column 'text' must exist, got: id, body"):
        read(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: row 1: the text column 'id' must hold strings, got int"):
        read(tmp_path / "a.parquet", text_column="id")


def test_no_inputs_and_no_matches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one file, folder, prefix or glob is needed"):
        read()
    with pytest.raises(InputError, match="matches no file"):
        read(tmp_path / "none" / "*.jsonl")
