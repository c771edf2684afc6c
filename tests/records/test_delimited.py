from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.records import delimited
from crisp_stream.records.bad_record import BadRecord
from crisp_stream.records.delimited import read_delimited
from crisp_stream.writers.documents.documents import Document
from crisp_stream.writers.documents.drops import EMPTY_TEXT, DropCounts
from tests.support.read_files import read_files, texts_of

CELLS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


def test_the_header_names_the_columns_and_line_ends_stand_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfid,text,score\r\n007,"two\r\nlines, ""quoted""",0.5\r\n\r\n8,plain "inside",\r\n9,,1\r\n'
    )
    counts = DropCounts()
    assert read_files(tmp_path / "a.csv", counts, id_field="id") == [
        Document(text='two\r\nlines, "quoted"', row=0, id="007"),
        Document(text='plain "inside"', row=1, id="8"),
    ]
    assert counts.as_dict() == {EMPTY_TEXT: 1}
    assert [line for line, _ in read_delimited(str(tmp_path / "a.csv"))] == [2, 5, 6]


@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=8), is_tsv=st.booleans())
def test_rows_come_back_as_they_were_written(
    rows: list[tuple[str, str]], is_tsv: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, dialect="excel-tab" if is_tsv else "excel").writerows([("text", "other"), *rows])
    path = tmp_path_factory.mktemp("rows") / f"a.{'tsv' if is_tsv else 'csv'}"
    path.write_bytes(written.getvalue().encode())
    read = [record for _, record in read_delimited(str(path)) if not isinstance(record, BadRecord)]
    assert [tuple(record.values()) for record in read] == rows


def test_the_delimiter_goes_by_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n1\ta, b\n")
    (tmp_path / "b.CSV").write_text("id,text\n1,a\tb\n")
    assert texts_of(tmp_path) == ["a, b", "a\tb"]
    (tmp_path / "c.csv").write_text("id;text\n1;a\n")
    with pytest.raises(InputError, match=r"c.csv:2: the text column 'text' must exist, got: id;text"):
        texts_of(tmp_path / "c.csv")


def test_filters_read_the_texts_of_a_table_as_their_value_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,score,good,lang\na,0.5,true,en\nb,10,false,en\nc,,,007\nd,1e1,true,\n")
    kept = {
        "score >= 0.5": "abd",
        "score == 10": "bd",
        "score != 10": "ac",
        "score == null": "c",
        "good == true": "ad",
        "good != null": "abd",
        "lang == en": "ab",
        "lang == 007": "c",
        'lang == ""': "d",
        "lang != null": "abc",
    }
    for expression, texts in kept.items():
        assert "".join(texts_of(tmp_path / "a.csv", filters=(expression,))) == texts, expression
    with pytest.raises(
        InputError, match=r"a.csv:2: the filter 'lang > 3' compares with a number, got a text in 'lang'"
    ):
        texts_of(tmp_path / "a.csv", filters=("lang > 3",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'text\n"open\nline\n', r"a.csv:2: every row must be as RFC 4180 says, .* unexpected end of data"),
        (b'text\nx\n"a"b\n', r"a.csv:3: every row must be as RFC 4180 says, .* ',' expected after '\"'"),
        (b'text\n"a \\"b\\" c"\n', r"a.csv:2: every row must be as RFC 4180"),
        (b"text\ncaf\xe9\n", r"a.csv: .csv and .tsv files must be UTF-8, got: 'utf-8' codec"),
        ("text\na\n".encode("utf-16"), r"a.csv: .csv and .tsv files must be UTF-8"),
    ],
)
def test_a_broken_table_is_damage_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(CorruptInputError, match=message):
        texts_of(tmp_path / "a.csv")


def test_a_row_of_another_length_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,a\n2\n3,b,c\n4,d\n")
    with pytest.raises(InputError, match=r"a.csv:3: every row must have the 2 fields of the first row, got 1"):
        texts_of(tmp_path / "a.csv")
    records = dict(read_delimited(str(tmp_path / "a.csv")))
    assert [line for line, record in records.items() if isinstance(record, BadRecord)] == [3, 4]
    assert records[5] == {"id": "4", "text": "d"}


def test_two_columns_of_one_name_are_refused_and_columns_without_a_name_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,id,text\na,1,b\n")
    with pytest.raises(InputError, match=r"a.csv:1: columns must have different names, got 'text' twice"):
        texts_of(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(",text,\n0,a,\n1,b,\n")  # as pandas writes its index
    assert texts_of(tmp_path / "b.csv") == ["a", "b"]


def test_a_field_is_longer_than_pythons_own_limit_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(text) for text in texts_of(tmp_path / "a.csv")] == [200_000]
    monkeypatch.setattr(delimited, "MAX_FIELD_CHARACTERS", 100_000)
    with pytest.raises(CorruptInputError, match=r"a.csv:2: .* field larger than field limit \(100000\)"):
        texts_of(tmp_path / "a.csv")
