from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import InputError, StorageError
from crisp_stream.format.ledger import Ledger, LedgerRow
from crisp_stream.records import readers
from crisp_stream.storage.store import open_store
from crisp_stream.writers.documents.documents import Document, read_documents, read_input
from crisp_stream.writers.documents.drops import EMPTY_TEXT, NULL_TEXT, DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile, file_kind
from crisp_stream.writers.documents.listing import OTHER_FILE, list_input_files
from tests.support.seaweed import S3Server


def listed(*inputs: Path | str, settings: DocumentSettings | None = None) -> list[InputFile]:
    return list_input_files([str(source) for source in inputs], settings or DocumentSettings())


def read(path: Path | str, counts: DropCounts | None = None, **options: object) -> list[Document]:
    settings = DocumentSettings(**options)  # type: ignore[arg-type]
    counts = DropCounts() if counts is None else counts
    files = list_input_files([str(path)], settings)
    return [document for file in files for document in read_input(file, settings, counts)]


def jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def arrow(table: pa.Table, *, stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_stream(sink, table.schema) if stream else pa.ipc.new_file(sink, table.schema)
    writer.write_table(table, max_chunksize=300)
    writer.close()
    return sink.getvalue().to_pybytes()


def test_rows_count_the_dropped_documents_and_not_the_blank_lines(tmp_path: Path) -> None:
    content = jsonl({"text": "a", "id": "x"}) + b"\n" + jsonl({"text": ""}, {"text": None}, {"text": "b", "id": 7})
    (tmp_path / "a.jsonl").write_bytes(content)
    counts = DropCounts()
    assert read(tmp_path / "a.jsonl", counts, id_field="id") == [
        Document(text="a", row=0, id="x"),
        Document(text="b", row=3, id="7"),
    ]
    assert counts.as_dict() == {EMPTY_TEXT: 1, NULL_TEXT: 1}
    assert [document.id for document in read(tmp_path / "a.jsonl")] == [None, None]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "feather"])
def test_nested_fields_are_read_from_every_kind(tmp_path: Path, kind: str) -> None:
    rows = [
        {"doc": {"body": {"text": f"t{n}"}, "id": n, "other": "x" * 50}, "a.b": f"literal {n}", "a": {"b": "nested"}}
        for n in range(1000)
    ]
    rows[3]["doc"] = None
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"a.{'arrow' if kind == 'feather' else kind}"
    if kind == "jsonl":
        path.write_bytes(jsonl(*rows))
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=400)
    else:
        path.write_bytes(arrow(table, stream=kind == "arrow"))
    counts = DropCounts()
    documents = read(path, counts, text_field="doc.body.text", id_field="doc.id", filters=("doc.id != 5",))
    kept = [n for n in range(1000) if n not in (3, 5)]
    assert documents == [Document(text=f"t{n}", row=n, id=str(n)) for n in kept]
    assert counts.as_dict() == {NULL_TEXT: 1, "filter: doc.id != 5": 1}
    assert [document.text for document in read(path, text_field="a.b")][:2] == ["literal 0", "literal 1"]
    assert next(iter(read_documents([str(path)], text_column="doc.body.text", counts=DropCounts()))) == "t0"
    with pytest.raises(InputError, match=r"'doc\.text' must exist, got: doc\.body\.text, doc\.id, doc\.other, a\.b"):
        read(path, text_field="doc.text")


def test_only_the_needed_columns_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    meta = [{"id": n, "blob": "z" * 1000} for n in range(100)]
    pq.write_table(pa.table({"text": [f"t{n}" for n in range(100)], "meta": meta, "big": ["y" * 1000] * 100}), path)
    number, record = next(readers.read_parquet(str(path), ("text", "meta.id")))
    assert (number, record) == (1, {"text": "t0", "meta": {"id": 0}})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "a", "id": "x"}, {"text": "b", "key": 1}], r"a.jsonl:2: the id column 'id' must .* only: text, key"),
        ([{"text": "a", "id": None}], r"a.jsonl:1: the id column 'id' must hold a text or a whole number, got null"),
        ([{"text": "a", "id": 1.5}], r"a.jsonl:1: .* got float"),
    ],
)
def test_ids_that_name_nothing_are_refused(tmp_path: Path, records: list[object], message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*records))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.jsonl", id_field="id")


def test_input_files_are_named_without_paths_of_the_machine_and_travel_as_json(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl.gz", "sub/c.txt", "README.md"):
        (tmp_path / "folder" / name).write_bytes(b"x")
    files = listed(tmp_path / "folder", tmp_path / "folder" / "sub" / "c.txt", tmp_path / "*" / "*.jsonl")
    assert [file.name for file in files] == [
        "a.jsonl.gz",
        "b.jsonl",
        "sub/c.txt",
        "c.txt",
        "folder/b.jsonl",
    ]
    assert [file.kind for file in files] == ["lines", "lines", "text", "text", "lines"]
    assert [file.num_bytes for file in files] == [1] * 5
    for file in files:
        assert pickle.loads(pickle.dumps(file)) == file
        assert InputFile(**json.loads(json.dumps(dataclasses.asdict(file)))) == file
    ledger = Ledger()
    list_input_files([str(tmp_path / "folder")], DocumentSettings(), ledger)
    assert ledger.rows == [LedgerRow(OTHER_FILE, "README.md", None, "")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RC_2023-01.zst", "lines"),
        ("a.JSON.GZ", "lines"),
        ("CC-MAIN-0.warc.wet.gz", "warc"),
        ("a.tsv.bz2", "csv"),
        ("a.txt.xz", "text"),
        ("a.parquet.gz", None),
        ("a.tar.gz", None),
        ("a.wat.gz", None),
        ("RC_2023-01", None),
        (".gz", None),
    ],
)
def test_the_kind_goes_by_the_name(name: str, kind: str | None) -> None:
    assert file_kind(f"folder.txt/{name}") == kind


def test_names_that_inputs_share_are_made_unique(tmp_path: Path) -> None:
    for folder in ("x/one", "x/two", "y/one"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jsonl").write_bytes(b"{}")
    files = listed(*(tmp_path / folder for folder in ("x/one", "x/two", "y/one")))
    assert [file.name for file in files] == ["one/a.jsonl", "two/a.jsonl", "one/a.jsonl~2"]


def test_the_version_of_a_file_changes_with_its_content(tmp_path: Path, s3: S3Server) -> None:
    prefix = s3.fresh_prefix()
    versions: list[list[str]] = []
    for content in (b"{}", b"[]"):
        (tmp_path / "a.jsonl").write_bytes(content)
        open_store(prefix).put("a.jsonl", content)
        versions.append([file.version for file in listed(tmp_path, prefix, f"{prefix}/a.jsonl")])
    assert all(before != after for before, after in zip(*versions, strict=True))
    assert versions[1][1] == versions[1][2]
    assert [file.version for file in listed(tmp_path, prefix)] == versions[1][:2]


def test_prefixes_and_globs_of_an_object_store_work_as_folders_do(tmp_path: Path, s3: S3Server) -> None:
    prefix = s3.fresh_prefix()
    (tmp_path / "2023" / "sub").mkdir(parents=True)
    table = pa.table({"text": ["p", "q"], "meta": [{"id": "1"}, {"id": "2"}]})
    (tmp_path / "2023" / "a.jsonl.gz").write_bytes(gzip.compress(jsonl({"text": "a", "meta": {"id": "0"}})))
    (tmp_path / "2023" / "b.arrow").write_bytes(arrow(table, stream=True))
    pq.write_table(table, tmp_path / "2023" / "sub" / "c.parquet")
    (tmp_path / "2023" / ".hidden.jsonl").write_bytes(b"no JSON")
    (tmp_path / "2023" / "notes.md").write_bytes(b"no documents")
    for file in sorted(tmp_path.rglob("*")):
        if file.is_file():
            open_store(prefix).put_file(file.relative_to(tmp_path).as_posix(), file)
    ours: dict[str, int] = {}
    for below in ("/", "/2023", "/2023/*", "/20*/*.arrow", "/2023/sub/c.parquet", "/*/[ab].*", "/**", "/**/*.parquet"):
        local, remote = listed(f"{tmp_path}{below}"), listed(f"{prefix}{below}")
        described = [[(file.name, file.kind, file.num_bytes) for file in files] for files in (local, remote)]
        assert described[0] == described[1], below
        assert all(file.url.startswith(f"{prefix}/2023/") for file in remote)
        assert read(f"{tmp_path}{below}", id_field="meta.id") == read(f"{prefix}{below}", id_field="meta.id")
        ours[below] = len(local)
    assert list(ours.values()) == [3, 3, 2, 1, 1, 2, 3, 1]
    assert [file.name for file in listed(f"{prefix}/2023")] == ["a.jsonl.gz", "b.arrow", "sub/c.parquet"]
    with pytest.raises(InputError, match=r"\*\.csv matches no file"):
        listed(f"{prefix}/*.csv")


def test_the_longest_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "a"}, {"text": "b" * 100}))
    with pytest.raises(InputError, match=r"a.jsonl:2: a line must be shorter than 100 bytes"):
        read(tmp_path / "a.jsonl")
    monkeypatch.setattr(readers, "_FIRST_BYTES", 10)  # of the first line, to see whether it is an array
    (tmp_path / "a.jsonl").write_bytes(b"\n \n" + jsonl({"text": "b" * 80}, {"text": "c"}))
    assert [document.text for document in read(tmp_path / "a.jsonl")] == ["b" * 80, "c"]
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "b" * 100}))
    with pytest.raises(InputError, match=r"a.jsonl:1: a line must be shorter than 100 bytes"):
        read(tmp_path / "a.jsonl")


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r"must be names, got an empty one"):
        DocumentSettings(text_field="")
    with pytest.raises(InputError, match=r"layout: must be one of files, redpajama-v2, got 'rp'"):
        DocumentSettings(layout="rp")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a.txt: the filter 'x > 1' needs fields, and .txt files have none"):
        read(tmp_path / "a.txt", filters=("x > 1",))
    with pytest.raises(InputError, match=r"a.txt: the text template '\{a\}' needs fields, and .txt files have none"):
        read(tmp_path / "a.txt", text_template="{a}")
    with pytest.raises(InputError, match=r"txt_documents: must be one of file, line, block, got 'page'"):
        DocumentSettings(txt_documents="page")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"text_template: must be left out where a text column is named"):
        DocumentSettings(text_template="{a}", text_field="body")
    assert read(tmp_path / "a.txt", id_field="id") == [Document(text="text", row=0, id=None)]
    file = listed(tmp_path / "a.txt")[0]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(StorageError, match=r"a.txt: No such file"):
        list(read_input(file, DocumentSettings(), DropCounts()))


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1),
    ".bz2": lambda content: bz2.compress(content, 1),
    ".xz": lambda content: lzma.compress(content, preset=0),
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}

_MEASURE = """
import sys, tracemalloc
import pyarrow as pa
from crisp_stream.writers.documents.documents import read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
settings = DocumentSettings()
[file] = list_input_files(sys.argv[1:], settings)
tracemalloc.start()
num_documents = sum(1 for _ in read_input(file, settings, DropCounts()))
print(num_documents, tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst", ".json", ".csv", ".parquet", ".arrow"]
)
def test_memory_stays_bounded_whatever_the_size_of_a_file(tmp_path: Path, suffix: str) -> None:
    """60 MB of text, in Parquet as a single row group; Python's and Arrow's allocations together."""
    import random

    rng = random.Random(0)
    texts = [rng.randbytes(1000).hex() for _ in range(30_000)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "other": texts}), path, row_group_size=len(texts), use_dictionary=False)
    elif suffix == ".arrow":
        path.write_bytes(arrow(pa.table({"text": texts}), stream=True))
    elif suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    elif suffix == ".csv":
        path.write_text("text\n" + "\n".join(texts))
    else:
        content = jsonl(*({"text": text} for text in texts))
        path.write_bytes(COMPRESSED[suffix.removeprefix(".jsonl")](content))
    ran = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    num_documents, peak_bytes = map(int, ran.stdout.split())
    assert num_documents == len(texts)
    assert peak_bytes < 24 << 20
