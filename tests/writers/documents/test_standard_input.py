from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crisp_stream.errors import InputError
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.documents.standard_input import delete_without_work, keep_standard_input
from tests.support.read_files import jsonl, texts_of

LINES = jsonl({"text": "a"}, {"text": "b"})


def test_the_same_bytes_are_the_same_file_and_others_are_not(tmp_path: Path) -> None:
    work = tmp_path / "work"
    inputs = keep_standard_input(["x.jsonl", "-"], str(work), io.BytesIO(LINES))
    assert inputs[0] == "x.jsonl"
    assert texts_of(inputs[1]) == ["a", "b"]
    [first] = list_input_files(inputs[1:], DocumentSettings())
    assert keep_standard_input(["x.jsonl", "-"], str(work), io.BytesIO(LINES)) == inputs
    assert list_input_files(inputs[1:], DocumentSettings()) == [first]
    other = keep_standard_input(["-"], str(work), io.BytesIO(LINES + LINES))
    assert other != inputs[1:]
    assert sorted(path.name for path in work.iterdir()) == sorted(Path(name).name for name in (inputs[1], other[0]))
    assert str(tmp_path) not in first.name


def test_what_is_not_piped_is_untouched(tmp_path: Path) -> None:
    assert keep_standard_input(["a", "b"], "s3://bucket/work", sys.stdin.buffer) == ["a", "b"]
    assert list(tmp_path.iterdir()) == []


def test_standard_input_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"-: standard input can be read once, got it twice"):
        keep_standard_input(["-", "-"], str(tmp_path), io.BytesIO(LINES))
    with pytest.raises(InputError, match=r"-: .* must be of this machine, got s3://bucket/work"):
        keep_standard_input(["-"], "s3://bucket/work", io.BytesIO(LINES))
    with pytest.raises(InputError, match=r"-: standard input must hold one JSON object per line, got nothing"):
        keep_standard_input(["-"], str(tmp_path / "work"), io.BytesIO(b""))
    assert list((tmp_path / "work").iterdir()) == []
    controller, terminal = os.openpty()
    with (
        os.fdopen(controller, "rb"),
        os.fdopen(terminal, "rb") as stream,
        pytest.raises(InputError, match=r"-: standard input is a terminal"),
    ):
        keep_standard_input(["-"], str(tmp_path), stream)
    with pytest.raises(InputError, match=r"-: standard input is read by the commands write, append and tree fit alone"):
        next(read_documents(["-"], counts=DropCounts()))


def write(out: Path, content: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "crisp_stream", "write", "-", "--out", str(out), *options]
    return subprocess.run(command, input=content, capture_output=True, check=False)


def test_a_plan_and_a_refused_write_leave_nothing_behind(tmp_path: Path) -> None:
    planned = write(tmp_path / "out", LINES, "--plan")
    assert b"documents            1       0       1" in planned.stdout, planned.stderr
    refused = write(tmp_path / "out", jsonl({"text": "a"}, {"body": "b"}), "--encoder", "lsi", "--processes", "1")
    assert refused.returncode == 2
    assert b".jsonl:2: the text column 'text' must exist, got: body" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_documents_of_a_write_that_goes_on_are_kept(tmp_path: Path) -> None:
    work = tmp_path / "work"
    [kept] = keep_standard_input(["-"], str(work), io.BytesIO(LINES))
    (work / "documents").mkdir()
    delete_without_work(str(work))
    assert Path(kept).read_bytes() == LINES
    (work / "documents").rmdir()
    delete_without_work(str(work))
    assert not work.exists()
