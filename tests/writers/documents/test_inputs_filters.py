from __future__ import annotations

import datetime
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import InputError
from crisp_stream.writers.documents.bad_records import BadRecordError
from crisp_stream.writers.documents.documents import read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.fields import MISSING, find_field, listed_fields
from crisp_stream.writers.documents.filters import parse_filter
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files

SIGNALS = {
    "rps_doc_word_count": [[0, 900, 120]],
    "ccnet_perplexity": [[0, 900, 250.5]],
    "ccnet_bucket": [[0, 900, "head"]],
    "rps_doc_ut1_blacklist": [[0, 900, None]],
    "rps_doc_empty": [],
    "rps_lines_num_words": [[0, 400, 60], [400, 900, 60]],
}
RECORD: dict[str, Any] = {
    "text": "t",
    "lang": "en",
    "score": 0.5,
    "count": 10,
    "good": True,
    "nothing": None,
    "day": datetime.date(2023, 6, 1),
    "price": Decimal("1.50"),
    "a.b": "literal",
    "a": {"b": "nested", "c.d": {"e": 1}},
    "quality_signals": SIGNALS,
    "as_json": json.dumps(SIGNALS),
    "tags": ["x", "y"],
    "one_tag": ["x"],
    "no_tags": [],
    "pairs": [[0, 1], [1, 2]],
    "object": {"k": 1},
    "null_as_json": "null",
    "infinite": float("inf"),
    "nan": float("nan"),
    "one_line": {"rps_lines_num_words": [[0, 9, 3]], "rps_doc_word_count": [[0, 9, 3]]},
}


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("lang == en", True),
        ('lang == "en"', True),
        ("lang != en", False),
        ("lang < fr", True),
        ("score >= 0.5", True),
        ("score>0.5", False),
        ("count <= 10", True),
        ("count<1e1", False),
        ("count != 10.0", False),
        ("good == true", True),
        ("good != true", False),
        ("nothing == null", True),
        ("nothing != null", False),
        ("lang != null", True),
        ("lang == null", False),
        ("nothing > 3", False),
        ("nothing == 3", False),
        ("nothing != 3", True),
        ("day >= 2023-05-31", True),
        ("day < 2023-01-01", False),
        ("price > 1.25", True),
        ("a.b == literal", True),
        ("a.c.d.e == 1", True),
        ("nothing.below == null", True),
        ("quality_signals.rps_doc_word_count >= 50", True),
        ("quality_signals.ccnet_perplexity < 250", False),
        ("quality_signals.ccnet_bucket == head", True),
        ("quality_signals.rps_doc_ut1_blacklist == null", True),
        ("quality_signals.rps_doc_empty == null", True),
        ("as_json.rps_doc_word_count == 120", True),
        ("one_line.rps_doc_word_count == 3", True),
        # null against lists: only an empty one is null
        ("tags == null", False),
        ("tags != null", True),
        ("one_tag != null", True),
        ("pairs != null", True),
        ("no_tags == null", True),
        ("no_tags != null", False),
        ("no_tags >= 1", False),
        ("no_tags != x", True),
        ("quality_signals.rps_doc_word_count != null", True),
        ("quality_signals.rps_doc_ut1_blacklist != null", False),
        ("quality_signals.rps_doc_ut1_blacklist >= 0", False),
        ("quality_signals.rps_lines_num_words != null", True),
        ("quality_signals.rps_lines_num_words == null", False),
        ("object != null", True),
        ("object == null", False),
        ("nothing <= 3", False),
        ("nothing < 3", False),
        ("nothing >= a", False),
        ("nothing != a", True),
        ("nothing != true", True),
        ("null_as_json.below == null", True),
        ("infinite > 1e300", True),
        ("nan > 0", False),
        ("nan <= 0", False),
        ("nan == 0", False),
        ("nan != 0", True),
        ("nan != null", True),
    ],
)
def test_a_filter_keeps_the_documents_for_which_it_holds(expression: str, kept: bool) -> None:
    assert parse_filter(expression).keeps(RECORD) is kept


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("lang = en", r"filter 'lang = en': the operator must be one of <, .*, got =. Write == for equality"),
        ("lang =~ en", r"the operator must be one of <, <=, >, >=, ==, !=, got =~"),
        ("lang => en", r"got =>"),
        ("lang in en", r"must be FIELD OPERATOR VALUE"),
        ("== en", r"must be FIELD OPERATOR VALUE"),
        ("lang ==", r"must be FIELD OPERATOR VALUE"),
        ("lang == [1]", r"the value must be a number, a text, true, false or null, got \[1\]"),
        ("score < NaN", r"the value must be a number"),
        ("good < true", r"< needs a number or a text, got true. Use == or !="),
        ("nothing >= null", r">= needs a number or a text, got null"),
    ],
)
def test_a_filter_that_cannot_be_parsed_is_refused(expression: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DocumentSettings(filters=("text != x", expression))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("language == en", r"a.jsonl:1: the field 'language' of the filter 'language == en' must exist, got: text, "),
        ("a.x == 1", r"the field 'a.x' .* a\.b, a\.c\.d\.e, quality_signals\.rps_doc_word_count"),
        ("lang > 3", r"compares with a number, got a text in 'lang'"),
        ("count == ten", r"compares with a text, got a number in 'count'"),
        ('count == "10"', r"compares with a text, got a number"),
        ("good == 1", r"compares with a number, got a truth value"),
        ("good > 0", r"compares with a number, got a truth value"),
        ("a == 1", r"got a dict in 'a'"),
        ("tags == x", r"one value per document, got a list of 2 in 'tags'. Use a signal .*: there is none here"),
        ("one_tag == x", r"one value per document, got a list of 1 in 'one_tag'"),
        ("pairs > 1", r"one value per document, got a list of 2 in 'pairs'"),
        ("object.none == null", r"the field 'object.none' .* must exist"),
        ("tags.k == null", r"the field 'tags.k' .* must exist"),
        ("quality_signals.rps_lines_num_words > 3", r"one value per document, got a list of 2 in .* whole document: "
         r"rps_doc_word_count, ccnet_perplexity, ccnet_bucket, rps_doc_ut1_blacklist\."),
        ("one_line.rps_lines_num_words > 3", r"got a list of 1 in .* whole document: rps_doc_word_count\."),
        ("as_json.rps_lines_num_words > 3", r"whole document: rps_doc_word_count, ccnet_perplexity"),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_applied_is_refused_with_the_fields(expression: str, message: str) -> None:
    with pytest.raises(BadRecordError) as bad:
        parse_filter(expression).keeps(RECORD)
    assert re.search(message, str(bad.value.record.error("a.jsonl:1")))


FIELDS: list[dict[str, Any]] = [
    {"f": None},
    {"g": 1},
    {"f": 7},
    {"f": float("nan")},
    {"f": "7"},
    {"f": []},
    {"f": [[0, 900, 7]]},
    {"f": [1, 2]},
]


def test_the_table_of_comparisons_holds() -> None:
    page = (Path(__file__).parents[3] / "docs/write/inputs.md").read_text()
    head, *rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in page[page.index("| the field is |") :].partition("\n\n")[0].splitlines()
        if not line.startswith("|---")
    ]
    assert len(rows) == len(FIELDS)
    for (name, *outcomes), record in zip(rows, FIELDS, strict=True):
        for comparison, outcome in zip(head[1:], outcomes, strict=True):
            chosen = parse_filter(f"f {comparison}")
            if outcome == "error":
                with pytest.raises(BadRecordError):
                    chosen.keeps(record)
            else:
                assert chosen.keeps(record) is (outcome == "keeps"), (name, comparison)
    for comparison, outcome in zip(head[1:], rows[-1][1:], strict=True):  # an object, as any other list
        if outcome != "error":
            assert parse_filter(f"f {comparison}").keeps({"f": {"k": 1}}) is (outcome == "keeps")


def test_fields_are_found_with_the_longest_key_first() -> None:
    assert find_field(RECORD, "a.b") == "literal"
    assert find_field({"a": {"b": 1}, "a.b": {"c": 2}}, "a.b.c") == 2
    assert find_field({"a": {"b": {"c": 1}}, "a.b": {"d": 2}}, "a.b.c") == 1
    assert find_field({"a": None}, "a.b") is None
    assert find_field({"a": "{broken"}, "a.b") is MISSING
    assert find_field({}, "a.b") is MISSING
    assert listed_fields({str(n): n for n in range(100)}).endswith(" 59, …")


def test_documents_are_counted_under_the_first_filter_that_drops_them(tmp_path: Path) -> None:
    records = [{"text": str(n), "lang": "en" if n % 3 else "de", "q": {"words": n}} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "b.parquet")
    settings = DocumentSettings(filters=("lang == en", "q.words >= 10"))
    for name in ("a.jsonl", "b.parquet"):
        counts = DropCounts()
        [file] = list_input_files([str(tmp_path / name)], settings)
        rows = [document.row for document in read_input(file, settings, counts)]
        assert rows == [n for n in range(10, 30) if n % 3]
        assert counts.as_dict() == {"filter: lang == en": 10, "filter: q.words >= 10": 6}
