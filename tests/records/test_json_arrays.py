from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.records import json_arrays
from crisp_stream.records.readers import read_lines
from tests.support.read_files import texts_of

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    records=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=6),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    piece_bytes=st.integers(1, 40),
)
def test_records_are_those_of_json_wherever_the_file_is_cut_into_pieces(
    records: list[Any], indent: int | None, ascii_only: bool, piece_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_bytes(b"\n " + json.dumps(records, indent=indent, ensure_ascii=ascii_only).encode() + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "PIECE_BYTES", piece_bytes)
        patch.setattr("crisp_stream.records.readers._FIRST_BYTES", 3)
        assert list(read_lines(str(path))) == list(enumerate(records, start=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"},', r"a.json: record 2 of the JSON array must be an object, got the end of the file"),
        (b'[{"text": "a"}', r"record 1 .*, got: a comma or the \] of the end must follow, got 'the end'"),
        (b'[{"text": "a"} {"text": "b"}]', r"record 1 .*, got: a comma or the \] of the end must follow, got '\{'"),
        (b'[{"text": "a"}, {"text": "b', r"record 2 .* must be readable, got: Unterminated string"),
        (b'[{"text": "a"}, {"text": b}, {}]' + b" " * 99, r"record 2 .* must be readable, got: Expecting value"),
        (b'[{"text": "a"}]\n{"text": "b"}', r"record 1 .*nothing may follow the \] of the end, got "),
        (b'[{"text": "a"}, ]', r"record 2 of the JSON array must be an object, got '\]'"),
        (b'[{"text": "\xe9"}]', r"a.json: must be readable to its end, got: 'utf-8' codec|a JSON array must be UTF-8"),
        (b"[" + b'{"a":' * 100_000, r"record 1 .* its nesting is too deep"),
        (b"[", r"record 1 of the JSON array must be an object, got the end of the file"),
    ],
)
def test_a_broken_array_is_damage_with_its_record(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CorruptInputError, match=message):
        texts_of(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"[1, 2]", b'["a"]', b'[["a"]]', b"[null]"])
def test_an_array_of_something_else_is_a_wrong_form_and_no_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a.json: record 1 of the JSON array must be an object, got ") as refused:
        texts_of(tmp_path / "a.json")
    assert type(refused.value) is InputError


def test_arrays_are_read_whatever_the_suffix_and_the_number_counts_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('[{"text": "a"}, {"body": "b"}]')
    with pytest.raises(InputError, match=r"a.jsonl:2: the text column 'text' must exist, got: body"):
        texts_of(tmp_path / "a.jsonl")
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert texts_of(tmp_path / "empty.json") == []


def test_a_record_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_arrays, "MAX_RECORD_CHARACTERS", 1 << 20)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b" * (4 << 20)}]))
    with pytest.raises(InputError, match=r"record 2 of the JSON array must be shorter than 1,048,576 characters"):
        texts_of(tmp_path / "a.json")
