"""Records that are larger than there is memory for."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from crisp_stream.records import readers
from crisp_stream.records.bad_record import LEAST_BYTES_PER_BYTE, BadRecord, LargeRecordError
from crisp_stream.records.readers import read_lines

ROOM = 1 << 20


def lines(path: Path, *texts: str, ascii_only: bool = True) -> str:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("first", ["", "short"], ids=["first line", "second line"])
def test_a_line_that_takes_too_much_memory_is_told_with_its_size(tmp_path: Path, first: str) -> None:
    before = [first] if first else []
    url = lines(tmp_path / "a.jsonl", *before, "x" * ROOM, "after")
    records = read_lines(url, room_bytes=ROOM)
    assert [next(records)[1] for _ in before] == [{"text": text} for text in before]
    with pytest.raises(LargeRecordError) as caught:
        next(records)
    num_bytes = ROOM + len('{"text": ""}\n')
    error = caught.value
    assert (error.number, error.num_bytes) == (1 + len(before), num_bytes)
    assert error.needed_bytes == num_bytes * LEAST_BYTES_PER_BYTE


def test_lines_that_fit_are_read_as_without_a_limit(tmp_path: Path) -> None:
    texts = ["short", "x" * (ROOM // 4 - 100), "é" * 10_000, "🙂" * 5_000]
    for ascii_only in (True, False):
        url = lines(tmp_path / "a.jsonl", *texts, ascii_only=ascii_only)
        assert list(read_lines(url, room_bytes=ROOM)) == list(read_lines(url))


def test_wide_characters_take_more(tmp_path: Path) -> None:
    for text in ("x" * 100_000 + "🙂", "x" * 170_000 + "\u2019"):
        for ascii_only in (True, False):
            url = lines(tmp_path / "a.jsonl", "x", text, ascii_only=ascii_only)
            assert len(list(read_lines(url, room_bytes=3 * ROOM))) == 2
            with pytest.raises(LargeRecordError):
                list(read_lines(url, room_bytes=ROOM // 2))


def test_a_line_over_the_longest_is_a_bad_record_whatever_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1 << 19)
    url = lines(tmp_path / "a.jsonl", "x", "y" * (1 << 20), "z")
    for room in (None, ROOM, 100 * ROOM):
        found = list(read_lines(url, room_bytes=room))
        assert [number for number, _ in found] == [1, 2, 3]
        assert isinstance(found[1][1], BadRecord)
        assert found[1][1].reason == "line that is too long"


def test_a_record_of_an_array_is_limited_too(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "short"}, {"text": "x" * (4 * ROOM)}]))
    records = read_lines(str(path), room_bytes=ROOM)
    assert next(records) == (1, {"text": "short"})
    with pytest.raises(LargeRecordError) as caught:
        next(records)
    assert caught.value.number == 2


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("character", ["", "é", "\u2019", "🙂"])
def test_a_line_takes_no_more_memory_than_is_counted(tmp_path: Path, character: str, ascii_only: bool) -> None:
    text = ("many words of a line\n" * 10 + character) * 10_000
    url = lines(tmp_path / "a.jsonl", "x", text, ascii_only=ascii_only)
    line = Path(url).read_bytes().splitlines(keepends=True)[1]
    records = read_lines(url)
    next(records)
    tracemalloc.start()
    _, record = next(records)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(record, dict)
    assert peak < readers._bytes_to_parse(line) + ROOM
    assert held < record["text"].__sizeof__() + 3 * ROOM, "the line is let go of"
