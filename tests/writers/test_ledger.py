"""What a write does not read: bad records within a budget, skipped paths; listed, counted, and never without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format import ledger as ledger_module
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.ledger import LedgerRow, read_ledger
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.storage.inputs import printable
from crisp_stream.storage.store import open_store
from crisp_stream.writers.append import append
from crisp_stream.writers.documents.bad_records import Budget
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.tree_command import fit
from crisp_stream.writers.write import write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import TOPICS, WordEncoder, files_below, small_options

LINES = [json.dumps({"text": text[:1200], "id": f"id {at}", "lang": "en"}) for at, text in enumerate(TOPICS[:60])]
BAD = {
    "no JSON": (b'{"text": ', "not a JSON object", "got: Expecting value"),
    "a list": (b"[1]", "not a JSON object", "got list"),
    "latin 1": (b'{"text": "caf\xe9"}', "not a JSON object", "'utf-8' codec can't decode"),
    "no text": (b'{"body": "b", "id": "x", "lang": "en"}', "no text field", "must exist, got: body, id, lang"),
    "no text, odd keys": (rb'{"\ud800": 1, "id": "x", "lang": "en"}', "no text field", r"must exist, got: \ud800, id"),
    "a number": (b'{"text": 7, "id": "x", "lang": "en"}', "text that is not a string", "got int"),
    "no id": (b'{"text": "t", "lang": "en"}', "no id field", "got only: text, lang"),
    "surrogate": (
        rb'{"text": "t", "id": "a\ud800", "lang": "en"}',
        "id that is no id",
        r"got an unpaired surrogate: 'a\ud800'",
    ),
    "no lang": (b'{"text": "t", "id": "x"}', "no field for a filter", "'lang == en' must exist, got: text, id"),
    "lang is 3": (b'{"text": "t", "id": "x", "lang": 3}', "field that a filter cannot compare", "got a number"),
}


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture(autouse=True)
def words(word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """The fast encoder, which datasets that were written with it find again."""
    monkeypatch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )
    return word_encoder


def corpus(folder: Path, bad: dict[int, bytes], *, name: str = "a.jsonl") -> Path:
    """A file of 60 documents, with bad lines before those of the given numbers."""
    lines: list[bytes] = []
    for number, line in enumerate(LINES):
        lines += [bad[number]] if number in bad else []
        lines.append(line.encode())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name


def options(inputs: Path | str, out: Path | str, **changes: Any) -> WriteOptions:
    return small_options(
        Path("replaced below"), out, inputs=[str(inputs)], id_column="id", filters=("lang == en",), **changes
    )


def shards(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_below(root).items() if name.endswith(".mds")}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_ends_a_run_with_its_place_and_the_remedy(tmp_path: Path, kind: str) -> None:
    content, _, message = BAD[kind]
    path = corpus(tmp_path / "in", {41: content})
    with pytest.raises(InputError) as refused:
        write(options(path, tmp_path / "out"), log=quiet)
    assert f"{path}:42: " in str(refused.value)
    assert message in printable(str(refused.value))
    assert "leave bad records out with --max-bad N or --max-bad P%" in str(refused.value)


def test_bad_records_within_the_budget_are_left_out_listed_and_counted(tmp_path: Path) -> None:
    """The rest is the dataset that would have been written without them."""
    path = corpus(tmp_path / "in", {5 * at: content for at, (content, _, _) in enumerate(BAD.values(), start=1)})
    lines: list[str] = []
    report = write(options(path, tmp_path / "out", max_bad="10"), log=lines.append)
    write(options(corpus(tmp_path / "clean", {}), tmp_path / "without"), log=quiet)
    assert shards(tmp_path / "out") == shards(tmp_path / "without")
    assert not (tmp_path / "without" / "provenance/ledger.parquet").exists()
    rows = read_ledger(open_dataset(tmp_path / "out"))
    assert [(row.file, row.line, row.reason) for row in rows] == [
        ("a.jsonl", 6 * at, reason) for at, (_, reason, _) in enumerate(BAD.values(), start=1)
    ]
    assert all(message in row.text for row, (_, _, message) in zip(rows, BAD.values(), strict=True))
    assert str(tmp_path) not in " ".join(row.text for row in rows)
    counts = {
        "field that a filter cannot compare": 1,
        "id that is no id": 1,
        "no field for a filter": 1,
        "no id field": 1,
        "no text field": 2,
        "not a JSON object": 3,
        "text that is not a string": 1,
    }
    assert report.bad_records == open_dataset(tmp_path / "out").manifest.provenance["bad_records"] == counts
    assert [line.split() for line in lines[-1].splitlines() if "documents in" in line] == [["documents", "in", "70"]]
    assert "  bad record: not a JSON object" in lines[-1]
    assert "provenance/ledger.parquet" in lines[-1]


def test_more_bad_records_than_the_budget_show_the_first_and_say_what_to_do(tmp_path: Path) -> None:
    path = corpus(tmp_path / "in", dict.fromkeys((3, 7, 11, 15, 19, 23), b"{"))
    with pytest.raises(InputError) as refused:
        write(options(path, tmp_path / "out", max_bad="4"), log=quiet)
    told = str(refused.value)
    assert told.startswith("bad records: at most 4 may be left out (--max-bad 4), got 5 so far:\n")
    assert [line.split(": ")[0].strip() for line in told.splitlines()[1:4]] == [f"{path}:{n}" for n in (4, 9, 14)]
    assert told.endswith("Mend them, or allow more with --max-bad N or --max-bad P%.")
    with pytest.raises(InputError, match=r"at most 5 of 66 records may be left out \(--max-bad 9%\), got 6:"):
        write(options(path, tmp_path / "out", max_bad="9%"), log=quiet)
    assert write(options(path, tmp_path / "out", max_bad="9.1%"), log=quiet).bad_records == {"not a JSON object": 6}


def test_the_budget_is_of_all_files_whatever_the_tasks_and_a_higher_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        corpus(tmp_path / "in", {9: b"{", 30: b"{"}, name=f"{name}.jsonl")
    lines: list[str] = []
    with pytest.raises(InputError, match=r"at most 5 may be left out \(--max-bad 5\), got 6:\n.*a\.jsonl:10"):
        write(options(tmp_path / "in", tmp_path / "out", max_bad="5", group_bytes=1), log=quiet)
    report = write(options(tmp_path / "in", tmp_path / "out", max_bad="6", group_bytes=1), log=lines.append)
    assert "documents: 3 of 3 tasks were done by an earlier run" in lines
    assert report.bad_records == {"not a JSON object": 6}
    monkeypatch.undo()  # the fast encoder is in this process only
    for processes in (1, 2):
        chosen = {"encoder": "lsi", "max_bad": "10%", "processes": processes}
        write(options(tmp_path / "in", tmp_path / f"out{processes}", group_bytes=1, **chosen), log=quiet)
    assert files_below(tmp_path / "out1") == files_below(tmp_path / "out2")


def test_records_without_a_named_field_can_be_dropped(tmp_path: Path) -> None:
    path = corpus(tmp_path / "in", {5: BAD["no text"][0], 15: BAD["no id"][0], 25: BAD["no lang"][0]})
    report = write(options(path, tmp_path / "out", missing="drop"), log=quiet)
    assert report.dropped_documents == {"no field for a filter": 1, "no id field": 1, "no text field": 1}
    assert report.bad_records == {}
    assert open_dataset(tmp_path / "out").manifest.provenance["missing"] == "drop"
    corpus(tmp_path / "in", {5: BAD["a number"][0]})
    with pytest.raises(InputError, match="must hold strings, got int"):
        write(options(path, tmp_path / "other", missing="drop"), log=quiet)


def test_rows_of_parquet_are_records_too(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in LINES]
    rows[7]["id"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: row 8: the id column 'id' must hold .* got null"):
        write(options(tmp_path / "a.parquet", tmp_path / "out"), log=quiet)
    write(options(tmp_path / "a.parquet", tmp_path / "out", max_bad="1"), log=quiet)
    [row] = read_ledger(open_dataset(tmp_path / "out"))
    assert (row.file, row.line, row.reason) == ("a.parquet", 8, "id that is no id")


def test_the_ledger_is_bounded_and_the_counts_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LISTED_PER_REASON", 3)
    for name in "ab":
        corpus(tmp_path / "in", {at: b"{" for at in range(0, 20, 4)}, name=f"{name}.jsonl")
        (tmp_path / "in" / f"{name}.md").write_text("no document")
    for number, group_bytes in enumerate((1, 1 << 20)):
        root = tmp_path / f"out{number}"
        write(options(tmp_path / "in", root, max_bad="20%", group_bytes=group_bytes), log=quiet)
        dataset = open_dataset(root)
        assert dataset.manifest.provenance["bad_records"] == {"not a JSON object": 10}
        assert [(row.file, row.line) for row in read_ledger(dataset)] == [
            ("a.md", None),
            ("b.md", None),
            ("a.jsonl", 1),
            ("a.jsonl", 6),
            ("a.jsonl", 11),
        ]


def test_an_append_has_a_ledger_of_its_own_name_that_goes_on_from_the_last(tmp_path: Path) -> None:
    write(options(corpus(tmp_path / "in", {5: b"{"}), tmp_path / "out", max_bad="1"), log=quiet)
    first = read_ledger(open_dataset(tmp_path / "out"))
    more = corpus(tmp_path / "more", {50: b"[]", 55: b"[]"})
    (tmp_path / "more" / "_SUCCESS").touch()
    lines: list[str] = []
    report = append(
        WriteOptions(inputs=[str(tmp_path / "more")], out=str(tmp_path / "out"), max_bad="2", processes=1),
        log=lines.append,
    )
    assert (report.bad_records, report.skipped_paths) == (
        {"not a JSON object": 2},
        {"hidden or temporary name (. or _)": 1},
    )
    assert "provenance/ledger.g1.parquet" in lines[-1]
    grown = open_dataset(tmp_path / "out")
    rows = read_ledger(grown)
    assert rows == [
        *first,
        LedgerRow("hidden or temporary name (. or _)", "_SUCCESS", None, ""),
        LedgerRow("not a JSON object", "a.jsonl~2", 51, "every line must be a JSON object, got list"),
        LedgerRow("not a JSON object", "a.jsonl~2", 57, "every line must be a JSON object, got list"),
    ]
    assert grown.manifest.provenance["bad_records"] == {"not a JSON object": 3}
    assert read_ledger(open_dataset(tmp_path / "out", generation=0)) == first
    assert verify_dataset(str(tmp_path / "out"), deep=True).problems == []
    more.unlink()
    append(
        WriteOptions(inputs=[str(corpus(tmp_path / "third", {}))], out=str(tmp_path / "out"), processes=1),
        prune=True,
        log=quiet,
    )
    assert read_ledger(open_dataset(tmp_path / "out")) == rows
    [left] = (tmp_path / "out" / "provenance").glob("ledger*")
    assert left.name == f"ledger.g2.{open_dataset(tmp_path / 'out').manifest.mark}.parquet"


def test_damage_of_the_ledger_is_found(tmp_path: Path) -> None:
    root = tmp_path / "out"
    write(options(corpus(tmp_path / "in", {5: b"{", 9: b"{"}), root, max_bad="2"), log=quiet)
    path = root / "provenance/ledger.parquet"
    whole = path.read_bytes()
    table = pq.ParquetFile(path, pre_buffer=False).read()
    emptied = ledger_module.ledger_parquet([])
    at = whole.index(b"\x28\xb5\x2f\xfd") + 9  # inside a compressed page
    for content, message in (
        (emptied, r"provenance/ledger\.parquet: its 0 rows are not the 2 that the manifest names"),
        (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], r"provenance/ledger\.parquet: .*(CRC|must be Parquet)"),
        (b"", r"provenance/ledger\.parquet: must be Parquet with the columns reason, file, line, text"),
    ):
        path.write_bytes(content)
        [problem] = verify_dataset(str(root), deep=True).problems
        with pytest.raises(FormatError, match=message):
            raise FormatError(problem)
    pq.write_table(table.set_column(1, table.schema.field("file"), pa.array(["b", "b"])), path)
    [problem] = verify_dataset(str(root), deep=True).problems
    assert "its 2 rows are not the 2 that the manifest names" in problem
    path.unlink()
    [problem] = verify_dataset(str(root), deep=True).problems
    assert "ledger.parquet does not exist" in problem


@pytest.mark.parametrize("written", ["", "-1", "1.5", "101%", "a%", "% 3"])
def test_a_budget_that_is_none_is_refused(written: str) -> None:
    with pytest.raises(
        InputError, match=r"max-bad: must be a number of records or a share of them, such as 20 or 0.1%"
    ):
        Budget.parse(written)


def test_a_damaged_file_is_no_bad_record(tmp_path: Path) -> None:
    import gzip

    path = corpus(tmp_path / "in", {})
    (tmp_path / "in" / "cut.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-300])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz: must be readable to its end"):
        write(options(tmp_path / "in", tmp_path / "out", max_bad="50%"), log=quiet)


def test_hidden_and_temporary_names_are_skipped_and_counted_in_folders_and_buckets(
    tmp_path: Path, s3: S3Server
) -> None:
    folder = corpus(tmp_path / "in", {}).parent
    for name in ("_temporary/0/part.jsonl", "_delta_log/0000.json", "_SUCCESS", ".a.jsonl.crc", "b/_c/d.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no JSON")
    prefix = s3.fresh_prefix()
    for file in folder.rglob("*"):
        if file.is_file():
            open_store(prefix).put_file(file.relative_to(folder).as_posix(), file)
    for number, source in enumerate((str(folder), prefix)):
        report = write(options(source, tmp_path / f"out{number}"), log=quiet)
        assert report.documents == len(LINES)
        assert report.skipped_paths == {"hidden or temporary name (. or _)": 5}
        rows = read_ledger(open_dataset(tmp_path / f"out{number}"))
        assert sorted(row.file for row in rows) == [".a.jsonl.crc", "_SUCCESS", "_delta_log", "_temporary", "b/_c"]
    assert shards(tmp_path / "out0") == shards(tmp_path / "out1")


def test_file_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    folder = corpus(tmp_path / "in", {4: b"{"}).parent
    os.rename(os.fsencode(folder / "a.jsonl"), os.fsencode(folder) + b"/caf\xe9.jsonl")  # noqa: PTH104
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9.md")).write_text("no document")
    arguments = [
        *("--encoder", "lsi", "--window-tokens", "64", "--vocab-size", "600", "--arity", "4", "--depth", "2"),
        *("--processes", "1", "--part-characters", "12000"),
    ]
    assert main(["write", str(folder), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert "caf\\xe9.jsonl:5: every line must be a JSON object" in capsys.readouterr().err
    assert main(["write", str(folder), "--out", str(tmp_path / "out"), *arguments, "--max-bad", "1"]) == 0
    rows = read_ledger(open_dataset(tmp_path / "out"))
    assert [(row.file, row.line) for row in rows] == [("\\xe9.md", None), ("caf\\xe9.jsonl", 5)]
    assert verify_dataset(str(tmp_path / "out"), deep=True).problems == []


def test_a_tree_is_fitted_without_bad_records_too_and_says_so(tmp_path: Path) -> None:
    path = corpus(tmp_path / "in", {5: b"{", 7: b"{"})
    lines: list[str] = []
    with pytest.raises(InputError, match=r"a\.jsonl:6: every line must be a JSON object"):
        fit(options(path, tmp_path / "tree"), log=quiet)
    fit(options(path, tmp_path / "tree", max_bad="2"), log=lines.append)
    [table] = [line for line in lines if line.startswith("bad records")]
    assert [line.split() for line in table.splitlines()] == [
        ["bad", "records", "2"],
        ["not", "a", "JSON", "object", "2"],
    ]


def test_a_dataset_in_a_bucket_has_its_ledger(tmp_path: Path, s3: S3Server) -> None:
    root = s3.fresh_prefix()
    path = corpus(tmp_path / "in", {5: b"{"})
    write(options(path, root, max_bad="1", work=str(tmp_path / "work")), log=quiet)
    assert [row.line for row in read_ledger(open_dataset(root))] == [6]
    append(WriteOptions(inputs=[str(path)], out=root, max_bad="1", processes=1, work=str(tmp_path / "work")), log=quiet)
    assert [(row.file, row.line) for row in read_ledger(open_dataset(root))] == [("a.jsonl", 6), ("a.jsonl~2", 6)]
    assert verify_dataset(root, deep=True).problems == []
