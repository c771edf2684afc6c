from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.format.ledger import Ledger
from crisp_stream.storage.store import open_store
from crisp_stream.writers.documents.bad_records import BadRecords, Budget
from crisp_stream.writers.documents.documents import Document, read_field, read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.documents.redpajama import NO_DOCUMENTS, OTHER_BUCKET
from tests.support.seaweed import S3Server

BUCKETS = ("en_head", "en_middle", "en_tail", "de_head")


def document(tag: str, row: int) -> dict[str, Any]:
    return {
        "url": f"http://example.org/{row}",
        "digest": f"sha1:{row}",
        "length": 100 + row,
        "nlines": 2,
        "title": "a title",
        "raw_content": f"{tag} {row}",
        "language": tag.rpartition("/")[2][:2],
        "language_score": 0.9,
        "perplexity": 100.0 * row,
        "bucket": tag.rpartition("_")[2],
    }


def signals(tag: str, row: int) -> dict[str, Any]:
    return {
        "id": f"{tag}.json.gz/{row}",
        "id_int": row,
        "metadata": {"cc_segment": "crawl-data", "url": f"http://example.org/{row}", "snapshot_id": tag[:7]},
        "quality_signals": {
            "ccnet_perplexity": [[0, 100 + row, 100.0 * row]],
            "rps_doc_word_count": [[0, 100 + row, 10 * row]],
            "rps_lines_num_words": [[0, 50, 1], [50, 100 + row, 2]],
        },
    }


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two snapshots of one shard, four documents in each of the files; only head and middle have signals."""
    root = tmp_path / "rpv2"
    for snapshot in ("2022-49", "2023-06"):
        for bucket in BUCKETS:
            tag = f"{snapshot}/0000/{bucket}"
            write_lines(root / f"documents/{tag}.json.gz", [document(tag, row) for row in range(4)])
            if bucket.startswith("en") and not bucket.endswith("tail"):
                write_lines(root / f"quality_signals/{tag}.signals.json.gz", [signals(tag, row) for row in range(4)])
                for beside in ("minhash", "duplicates"):
                    (root / beside / snapshot / "0000").mkdir(parents=True, exist_ok=True)
                    (root / beside / f"{tag}.{beside}.parquet").write_bytes(b"not to be opened")
    return root


def read(source: str | Path, *filters: str, **options: Any) -> tuple[list[Document], dict[str, int]]:
    settings = DocumentSettings(layout="redpajama-v2", filters=filters, **options)
    counts = DropCounts()
    files = list_input_files([str(source)], settings)
    return [document for file in files for document in read_input(file, settings, counts)], counts.as_dict()


def test_the_english_head_and_middle_are_read_with_the_ids_of_the_signals(root: Path) -> None:
    documents, counts = read(root)
    tags = [f"{snapshot}/0000/{bucket}" for snapshot in ("2022-49", "2023-06") for bucket in ("en_head", "en_middle")]
    assert documents == [
        Document(text=f"{tag} {row}", row=row, id=f"{tag}.json.gz/{row}") for tag in tags for row in range(4)
    ]
    assert counts == {}
    ledger = Ledger()
    list_input_files([str(root)], DocumentSettings(layout="redpajama-v2"), ledger)
    assert dict(ledger.paths) == {OTHER_BUCKET: 4, NO_DOCUMENTS: 12}
    assert [found.id for found in read(root, id_field="digest")[0]][:2] == ["sha1:0", "sha1:1"]
    assert {found.text for found in read(root, text_field="title")[0]} == {"a title"}


def test_files_are_named_below_the_root(root: Path) -> None:
    settings = DocumentSettings(layout="redpajama-v2", filters=("rps_doc_word_count > 1",))
    whole = list_input_files([str(root)], settings)
    assert [file.name for file in whole][:2] == [
        "documents/2022-49/0000/en_head.json.gz",
        "documents/2022-49/0000/en_middle.json.gz",
    ]
    assert whole[0].signals_url == str(root / "quality_signals/2022-49/0000/en_head.signals.json.gz")
    for part in ("documents", "documents/2022-49", "documents/*/0000/en_*.json.gz"):
        found = list_input_files([str(root / part)], settings)
        assert found == whole[: len(found)]
        assert len(found) == (2 if part.endswith("49") else 4)
    documents = DocumentSettings(layout="redpajama-v2")
    write_lines(
        root / "quality_signals/2022-49/0000/en_head.signals.json.gz",
        [signals("2022-49/0000/en_head", row) for row in range(5)],
    )
    assert list_input_files([str(root)], settings)[0] != whole[0]
    assert list_input_files([str(root)], documents)[0].version == whole[0].version
    with pytest.raises(InputError, match=r"en_head\.signals\.json\.gz: must stay as it was when it was listed"):
        list(read_input(whole[0], settings, DropCounts()))


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("perplexity < 150", [0, 1]),
        ("rps_doc_word_count >= 20", [2, 3]),
        ("quality_signals.rps_doc_word_count >= 20", [2, 3]),
        ("ccnet_perplexity == 300", [3]),
        ("metadata.snapshot_id == 2023-06", [0, 1, 2, 3]),
    ],
)
def test_filters_see_documents_and_their_signals(root: Path, expression: str, rows: list[int]) -> None:
    documents, counts = read(root / "documents/2023-06/0000/en_head.json.gz", expression)
    assert [found.row for found in documents] == rows
    assert counts == ({f"filter: {expression}": 4 - len(rows)} if len(rows) < 4 else {})


def test_signals_are_opened_only_for_filters_on_them(root: Path) -> None:
    for file in root.glob("quality_signals/*/*/*"):
        file.unlink()
    assert len(read(root, "language_score > 0.5")[0]) == 16
    with pytest.raises(
        InputError, match=r"en_head.json.gz: filters need its quality signals in .*en_head.signals.json.gz"
    ):
        read(root / "documents", "rps_doc_word_count > 5")


def test_filters_name_the_signals_that_exist(root: Path) -> None:
    with pytest.raises(InputError, match=r"'rps_words' .* must exist, got: ccnet_perplexity, rps_doc_word_count"):
        read(root, "rps_words > 5")
    with pytest.raises(InputError, match=r"whole document: ccnet_perplexity, rps_doc_word_count\."):
        read(root, "rps_lines_num_words > 5")


def test_signals_that_do_not_belong_to_their_documents_are_damage(root: Path) -> None:
    tag = "2022-49/0000/en_head"
    path = root / f"quality_signals/{tag}.signals.json.gz"
    keep_all = "rps_doc_word_count >= 0"
    for count, longer, line in ((3, "en_head.json.gz", 4), (5, "en_head.signals.json.gz", 5)):
        write_lines(path, [signals(tag, row) for row in range(count)])
        with pytest.raises(CorruptInputError, match=rf"{longer}:{line}: every document must have its line of signals"):
            read(root, keep_all)
    write_lines(path, [signals(tag, row) for row in (0, 2, 1, 3)])
    message = (
        r"en_head.signals.json.gz:2: .* those of .*en_head.json.gz:2, 2022-49/0000/en_head.json.gz/1, got the id .*/2'"
    )
    with pytest.raises(CorruptInputError, match=message):
        read(root, keep_all)


def test_a_folder_without_the_layout_is_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(InputError, match=r"RedPajama-v2 is read from documents/SNAPSHOT/SHARD/en_head.json.gz"):
        read(root / "quality_signals")
    with pytest.raises(InputError, match=r"got a name. Leave it out"):
        read("hf://a/b")


def test_an_object_store_holds_the_layout_as_well(root: Path, s3: S3Server) -> None:
    prefix = s3.fresh_prefix("rpv2")
    for file in root.rglob("*.gz"):
        open_store(prefix).put_file(file.relative_to(root).as_posix(), file)
    for part in ("", "/documents/2023-06", "/documents/*/0000/en_head.json.gz"):
        for filters in ((), ("rps_doc_word_count > 15",)):
            assert read(f"{prefix}{part}", *filters)[0] == read(f"{root}{part}", *filters)[0] != []


def test_a_bad_line_of_either_file_is_a_bad_record_of_the_document(root: Path) -> None:
    for folder, name, line in (("documents", "en_head.json.gz", 1), ("quality_signals", "en_head.signals.json.gz", 2)):
        path = root / folder / "2023-06/0000" / name
        lines = gzip.decompress(path.read_bytes()).splitlines()
        lines[line] = b"{"
        path.write_bytes(gzip.compress(b"\n".join(lines)))
    settings = DocumentSettings(layout="redpajama-v2", filters=("rps_doc_word_count >= 0",))
    [file] = list_input_files([str(root / "documents/2023-06/0000/en_head.json.gz")], settings)
    bad = BadRecords(Budget.parse(2))
    assert [document.row for document in read_input(file, settings, DropCounts(), bad)] == [0, 3]
    assert [(place.line, place.text.partition(" must be")[0]) for _, place in bad.places] == [
        (2, "every line"),
        (3, "in its quality signals, every line"),
    ]


def test_a_column_may_be_a_quality_signal(root: Path) -> None:
    settings = DocumentSettings(text_field="quality_signals.rps_doc_word_count", layout="redpajama-v2")
    files = list_input_files([str(root)], settings)
    assert [list(read_field(file, settings)) for file in files] == [
        [[[0, 100 + row, 10 * row]] for row in range(4)]
    ] * 4
    assert not any(file.signals_url for file in list_input_files([str(root)], DocumentSettings(layout="redpajama-v2")))
