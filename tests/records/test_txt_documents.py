from __future__ import annotations

from pathlib import Path

import pytest

from crisp_stream.errors import InputError
from crisp_stream.records import readers
from crisp_stream.records.readers import read_txt
from crisp_stream.writers.documents.documents import Document
from tests.support.read_files import read_files, texts_of

CONTENT = b"\xef\xbb\xbfone\r\n  two \r\n\r\n \t\r\nthree\x0bstill\xe2\x80\xa8three\n\n\nfour\nfive"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [(1, CONTENT.decode("utf-8-sig"))]),
        ("line", [(1, "one"), (2, "  two "), (5, "three\x0bstill\u2028three"), (8, "four"), (9, "five")]),
        ("block", [(1, "one\r\n  two "), (5, "three\x0bstill\u2028three"), (8, "four\nfive")]),
    ],
)
def test_a_document_is_a_file_a_line_or_a_block(
    tmp_path: Path, documents: readers.TxtDocuments, expected: list[tuple[int, str]]
) -> None:
    (tmp_path / "a.txt").write_bytes(CONTENT)
    records = read_txt(str(tmp_path / "a.txt"), documents)
    assert [(number, {"text": text}) for number, text in expected] == list(records)
    assert read_files(tmp_path / "a.txt", txt_documents=documents) == [
        Document(text=text, row=row, id=None) for row, (_, text) in enumerate(expected)
    ]


def test_a_line_that_is_no_utf_8_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ncaf\xe9\n")
    for documents in ("line", "block"):
        with pytest.raises(InputError, match=r"a.txt:2: text files must be UTF-8, got: 'utf-8' codec"):
            texts_of(tmp_path / "a.txt", txt_documents=documents)


def test_lines_and_blocks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.txt").write_text("a\n" + "b" * 100 + "\n")
    with pytest.raises(InputError, match=r"a.txt:2: a line must be shorter than 100 bytes"):
        texts_of(tmp_path / "a.txt", txt_documents="line")
    (tmp_path / "b.txt").write_text("\n" + "b" * 50 + "\n" + "b" * 60 + "\n")
    with pytest.raises(InputError, match=r"b.txt:2: a block must be shorter than 100 characters"):
        texts_of(tmp_path / "b.txt", txt_documents="block")
