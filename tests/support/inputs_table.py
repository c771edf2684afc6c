"""The table of docs/write/inputs.md: real-life inputs, and what comes of each.

`python -m tests.support.inputs_table` makes the files, reads them as `write` does, and puts the table into the page.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crisp_stream.errors import CrispError
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.standard_input import keep_standard_input
from tests.support.read_files import jsonl, read_files
from tests.support.warc import warc_record

PAGE = Path(__file__).parent.parent.parent / "docs" / "write" / "inputs.md"
BEGIN = "<!-- written by python -m tests.support.inputs_table -->"
END = "<!-- end of what it writes -->"
FLAGS = {
    "text_field": "--text-column",
    "id_field": "--id-column",
    "text_template": "--text-template",
    "txt_documents": "--txt-documents",
    "filters": "--filter",
    "layout": "--layout",
}
Content = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """An input: what it is, its files by path, and the options it is read with."""

    what: str
    files: dict[str, Content]
    options: dict[str, Any] = field(default_factory=dict)
    read: str = ""
    """Path that is named; the only file when empty, `.` for the folder."""


def parquet(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.Table.from_pylist(rows), path)


def arrow(rows: list[dict[str, Any]]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table(rows: list[list[str]], **form: Any) -> bytes:
    written = io.StringIO(newline="")
    csv.writer(written, **form).writerows(rows)
    return written.getvalue().encode()


def long_window(content: bytes) -> bytes:
    """A frame that says its window is 2 GB, as `zstd --long=31` writes it; its one block is not compressed."""
    header = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3])
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return header + block + content


TWO = jsonl({"text": "one"}, {"text": "two"})
ARRAY = json.dumps([{"text": "one"}, {"text": "two"}]).encode()
CHAT = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"prompt": "Hi", "response": "Hello"},
    {"prompt": "Hi", "completion": "Hello"},
    {"instruction": "Add", "input": "1 + 1", "output": "2"},
]
SPANS: list[dict[str, Any]] = [{"text": "a", "q": [[0, 1, 7]]}, {"text": "b", "q": []}, {"text": "c", "q": None}]
WET = b"".join(
    [
        warc_record("warcinfo", b"x: y"),
        *(warc_record("conversion", text, uri=text.decode()) for text in (b"one", b"two")),
    ]
)
PAGE_RECORD = warc_record("response", b"HTTP/1.1 200 OK\r\n\r\n<p>one", Content_Type="application/http")
ROWS = [{"text": "one", "meta": {"lang": "en"}}, {"text": "two", "meta": None}]

CASES = [
    # lines of JSON
    Case("lines of JSON", {"a.jsonl": TWO}),
    Case("the same, gzip; two members", {"a.jsonl.gz": gzip.compress(TWO) + gzip.compress(TWO)}),
    Case("the same, bzip2; two streams", {"a.jsonl.bz2": bz2.compress(TWO) + bz2.compress(TWO)}),
    Case("the same, xz", {"a.jsonl.xz": lzma.compress(TWO)}),
    Case("the same, zstd", {"a.jsonl.zst": pa.compress(TWO, "zstd", asbytes=True)}),
    Case("`zstd --long=31`, as Pushshift names it", {"RC_2023-01.zst": long_window(TWO)}),
    Case("byte order mark, CRLF, blank lines", {"a.jsonl": b"\xef\xbb\xbf" + TWO.replace(b"\n", b"\r\n\r\n")}),
    Case("no line end at the end", {"a.jsonl": TWO[:-1]}),
    Case("empty, null and blank texts", {"a.jsonl": jsonl({"text": ""}, {"text": None}, {"text": " "}, {"text": "a"})}),
    Case("an unpaired surrogate", {"a.jsonl": b'{"text": "a"}\n{"text": "\\ud800"}\n'}),
    Case("an empty file", {"a.jsonl": b""}),
    Case("a line that is cut off", {"a.jsonl": TWO[:-8]}),
    Case("a line that is no object", {"a.jsonl": TWO + b"7\n"}),
    Case("a record without text", {"a.jsonl": TWO + jsonl({"body": "three"})}),
    Case("a number as text", {"a.jsonl": jsonl({"text": 7})}),
    Case("Latin-1", {"a.jsonl": b'{"text": "caf\xe9"}\n'}),
    Case("gzip, cut off", {"a.jsonl.gz": gzip.compress(TWO)[:-9]}),
    Case("xz, bytes behind the end", {"a.jsonl.xz": lzma.compress(TWO) + b"more"}),
    Case("named .gz, but not compressed", {"a.jsonl.gz": TWO}),
    Case("nested text", {"a.jsonl": jsonl({"doc": {"text": "a"}})}, {"text_field": "doc.text"}),
    Case("text nested in JSON text", {"a.jsonl": jsonl({"doc": '{"text": "a"}'})}, {"text_field": "doc.text"}),
    # arrays
    Case("a JSON array on one line", {"a.json": ARRAY}),
    Case("a JSON array, pretty-printed", {"a.json": json.dumps(json.loads(ARRAY), indent=2).encode()}),
    Case("a JSON array, gzip", {"a.json.gz": gzip.compress(ARRAY)}),
    Case("a JSON array that is cut off", {"a.json": ARRAY[:-4]}),
    Case("a JSON array of texts", {"a.json": b'["one", "two"]'}),
    Case("one object over several lines", {"a.json": b'{\n  "text": "one"\n}\n'}),
    # tables
    Case("CSV with quotes and line ends", {"a.csv": table([["id", "text"], ["1", 'a "b",\nc'], ["2", "d"]])}),
    Case("CSV, gzip", {"a.csv.gz": gzip.compress(table([["text"], ["a"]]))}),
    Case("TSV", {"a.tsv": table([["id", "text"], ["1", "a, b"]], dialect="excel-tab")}),
    Case("CSV with an index without a name", {"a.csv": b",text\n0,a\n1,b\n"}),
    Case("CSV with semicolons", {"a.csv": b"id;text\n1;a\n"}),
    Case("CSV without a header", {"a.csv": b"1,some text\n2,more text\n"}),
    Case("CSV, a row too short", {"a.csv": b"id,text\n1,a\n2\n"}),
    Case("CSV, a quote that does not close", {"a.csv": b'text\n"a\nb\n'}),
    Case("CSV of a spreadsheet in UTF-16", {"a.csv": "text\na\n".encode("utf-16")}),
    Case("CSV, a filter on numbers", {"a.csv": b"text,score\na,0.9\nb,0.1\nc,\n"}, {"filters": ("score >= 0.5",)}),
    # text
    Case("a text", {"a.txt": b"one\ntwo\n\nthree\n"}),
    Case("a document per line", {"a.txt": b"one\ntwo\n\nthree\n"}, {"txt_documents": "line"}),
    Case("a document per block", {"a.txt": b"one\ntwo\n\nthree\n"}, {"txt_documents": "block"}),
    Case("a text in UTF-16", {"a.txt": "one".encode("utf-16")}),
    Case("a filter on a text", {"a.txt": b"one"}, {"filters": ("lang == en",)}),
    # the web
    Case("WET", {"CC-MAIN-0.warc.wet.gz": gzip.compress(WET)}),
    Case("WET that is cut off", {"a.wet": WET[:-6]}),
    Case("WARC of pages", {"a.warc.gz": gzip.compress(PAGE_RECORD)}),
    Case("a page", {"a.html": b"<p>one"}),
    # columns
    Case("Parquet", {"a.parquet": parquet(ROWS)}),
    Case("Parquet, another column", {"a.parquet": parquet([{"body": "a"}])}),
    Case("Parquet that is cut off", {"a.parquet": b"PAR1 and nothing more"}),
    Case("Arrow of `datasets`", {"data.arrow": arrow(ROWS)}),
    # texts of several fields
    Case("title and body", {"a.jsonl": jsonl({"title": "T", "body": "B"}, {"title": None, "body": "C"})},
         {"text_template": r"{title}\n\n{body}"}),
    Case("a template with a field that is not there", {"a.jsonl": jsonl({"body": "B"})},
         {"text_template": r"{title}\n\n{body}"}),
    Case("chats of five forms", {"a.jsonl": jsonl(*CHAT)}, {"text_template": "chat"}),
    Case("chats, no template", {"a.jsonl": jsonl(*CHAT)}),
    Case("questions and answers as chats", {"a.jsonl": jsonl({"question": "Q", "answer": "A"})},
         {"text_template": "chat"}),
    Case("a message that calls a tool", {"a.jsonl": jsonl({"messages": [{"role": "assistant", "content": None}]})},
         {"text_template": "chat"}),
    # filters
    Case("a signal against a number", {"a.jsonl": jsonl(*SPANS)}, {"filters": ("q >= 5",)}),
    Case("a signal against null", {"a.jsonl": jsonl(*SPANS)}, {"filters": ("q != null",)}),
    Case("a list of tags against a text", {"a.jsonl": jsonl({"text": "a", "tags": ["x"]})},
         {"filters": ("tags == x",)}),
    Case("a field below null", {"a.parquet": parquet(ROWS)}, {"filters": ("meta.lang == en",)}),
    Case("a field that some records lack", {"a.jsonl": jsonl({"text": "a", "lang": "en"}, {"text": "b"})},
         {"filters": ("lang == en",)}),
    # folders and pipes
    Case("a folder of several kinds",
         {"b.jsonl": TWO, "a.csv": b"text\na\n", "c/d.txt": b"d", "README.md": b"#", ".hidden.txt": b"h"}, read="."),
    Case("a folder without documents", {"README.md": b"#"}, read="."),
    Case("a glob that matches nothing", {"a.jsonl": TWO}, read="*.csv"),
    Case("lines of JSON from standard input", {"-": TWO}),
]  # fmt: skip


def outcome(case: Case, folder: Path) -> str:
    """What comes of an input: the number of documents and the reasons of dropped ones, or the error's first line."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif name != "-":
            path.write_bytes(content)
    named = str(folder / (case.read or next(iter(case.files))))
    counts = DropCounts()
    try:
        if "-" in case.files:
            [named] = keep_standard_input(["-"], str(folder), io.BytesIO(bytes(case.files["-"])))  # type: ignore[arg-type]
        documents = read_files(named, counts, **case.options)
    except CrispError as error:
        line = str(error).splitlines()[0].replace(f"{folder}/", "").replace(str(folder), "FOLDER")
        return f"error: {line}"
    said = f"{len(documents)} document{'s' * (len(documents) != 1)}"
    return said + "".join(f"; {count} dropped: {reason}" for reason, count in counts.as_dict().items())


def rows() -> list[str]:
    """The rows of the table, as Markdown."""
    made = []
    for case in CASES:
        options = " ".join(
            f"{FLAGS[name]} '{value}'" if re.search(r"[^\w./-]", value) else f"{FLAGS[name]} {value}"
            for name, given in case.options.items()
            for value in (given if isinstance(given, tuple) else (given,))
        )
        named = {"": next(iter(case.files)), ".": "FOLDER"}.get(case.read, case.read)
        with tempfile.TemporaryDirectory() as folder:
            came = outcome(case, Path(folder))
        cells = (case.what, f"`{named}{' ' * bool(options)}{options}`", came)
        made.append("| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |")
    return made


def main() -> None:
    """Put the table into the page."""
    head, rest = PAGE.read_text().split(BEGIN)
    _, foot = rest.split(END)
    lines = [BEGIN, "", "| input | named with | outcome |", "|---|---|---|", *rows(), "", END]
    PAGE.write_text(head + "\n".join(lines) + foot)


if __name__ == "__main__":
    main()
