from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.records import warc
from crisp_stream.records.bad_record import BadRecord
from crisp_stream.writers.documents.documents import Document
from crisp_stream.writers.documents.drops import EMPTY_TEXT, DropCounts
from tests.support.read_files import read_files, texts_of
from tests.support.warc import warc_record

INFO = warc_record("warcinfo", b"software: x\r\n")
GREETING = "Gr\u00fc\u00dfe\nLine two\n"
WET = [
    INFO,
    warc_record("conversion", GREETING.encode(), uri="http://a/", WARC_Identified_Content_Language="deu,eng"),
    warc_record("conversion", b"", uri="http://b/", WARC_Identified_Content_Language="eng"),
    warc_record("conversion", b"third", uri="http://c/", WARC_Identified_Content_Language="eng"),
]  # fmt: skip


def test_conversion_records_are_documents_with_the_id_of_their_record(tmp_path: Path) -> None:
    (tmp_path / "CC-MAIN-2024-10-00000.warc.wet.gz").write_bytes(b"".join(map(gzip.compress, WET)))
    counts = DropCounts()
    assert read_files(tmp_path, counts, text_field="body") == [
        Document(text=GREETING, row=0, id="<urn:uuid:http://a/>"),
        Document(text="third", row=2, id="<urn:uuid:http://c/>"),
    ]
    assert counts.as_dict() == {EMPTY_TEXT: 1}
    by_uri = read_files(tmp_path, id_field="WARC-Target-URI", filters=("WARC-Identified-Content-Language == eng",))
    assert by_uri == [Document(text="third", row=2, id="http://c/")]
    assert texts_of(tmp_path, text_template="{WARC-Target-URI}: {text}")[2] == "http://c/: third"


@pytest.mark.parametrize("kind", ["response", "resource"])
def test_records_of_pages_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    page = warc_record(kind, b"HTTP/1.1 200 OK\r\n\r\n<p>page", Content_Type="application/http; msgtype=response")
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(INFO + warc_record("request", b"GET / HTTP/1.1\r\n\r\n") + page))
    with pytest.raises(
        InputError, match=rf"a.warc.gz: record 3: .* got a `{kind}` record, .* Name the .wet"
    ) as refused:
        texts_of(tmp_path / "a.warc.gz")
    assert type(refused.value) is InputError


def test_a_record_that_is_cut_off_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.wet"
    first, second = WET[1], WET[3]
    for cut in range(2, len(second) - len("\r\n\r\n")):  # what is cut behind a record cannot be seen
        path.write_bytes(first + second[:cut])
        with pytest.raises(CorruptInputError, match=r"a.wet: record 2 must be a whole WARC record, got: "):
            texts_of(path)
    path.write_bytes(first + second)
    assert len(texts_of(path)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive at all\n", r"a.wet: record 1 must be a whole WARC record, got: Unknown archive format"),
        (warc_record("conversion", b"a", Content_Length="x"), r"a.wet: record 1 must be a whole WARC record"),
        (
            warc_record("conversion", b"abc", Content_Length="2"),
            r"record 1 .* got: a Content-Length that is not that of",
        ),
        (warc_record("conversion", b"a") + b"junk\n", r"a.wet: record 2 must be a whole WARC record"),
    ],
)
def test_damage_is_told_with_its_record(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.wet").write_bytes(content)
    with pytest.raises(CorruptInputError, match=message):
        texts_of(tmp_path / "a.wet")


def test_a_record_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAX_RECORD_BYTES", 4)
    (tmp_path / "a.wet").write_bytes(warc_record("conversion", b"12345"))
    with pytest.raises(InputError, match=r"record 1: a record must be shorter than 4 bytes, got 5"):
        texts_of(tmp_path / "a.wet")


def test_without_the_library_the_error_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.wet").write_bytes(b"".join(WET))
    code = """
import sys
sys.modules["warcio"] = None
from tests.support.read_files import texts_of
try:
    texts_of(sys.argv[1])
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "a.wet"], capture_output=True, text=True, check=True)
    assert (
        "a .wet or .warc file needs warcio, which is not installed. Run: pip install 'crisp-stream[warc]'" in ran.stdout
    )


def test_a_text_that_is_not_utf_8_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.wet").write_bytes(warc_record("conversion", b"caf\xe9") + warc_record("conversion", b"tea"))
    with pytest.raises(InputError, match=r"a.wet: record 1: the text of a record must be UTF-8, got: 'utf-8' codec"):
        texts_of(tmp_path / "a.wet")
    bad, good = [record for _, record in warc.read_warc(str(tmp_path / "a.wet"))]
    assert isinstance(bad, BadRecord)
    assert not isinstance(good, BadRecord)
    assert good["text"] == "tea"
