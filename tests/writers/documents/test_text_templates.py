from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import InputError
from crisp_stream.records import readers
from crisp_stream.writers.documents.bad_records import BadRecordError
from crisp_stream.writers.documents.drops import EMPTY_TEXT, NULL_TEXT, DropCounts
from crisp_stream.writers.documents.text_templates import parse_template
from tests.support.read_files import jsonl, texts_of

RECORD: dict[str, Any] = {
    "title": "T",
    "body": "B",
    "year": 2020,
    "score": 0.5,
    "nothing": None,
    "blank": " ",
    "meta": {"author": {"name": "A"}},
    "tags": ["x"],
    "good": True,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (r"{title}\n\n{body}", "T\n\nB"),
        ("{title}", "T"),
        ("Title: {title} ({year}, {score})", "Title: T (2020, 0.5)"),
        ("{meta.author.name}:\t{body}", "A:\tB"),
        (r"{{{title}}}\t\\n", "{T}\t\\n"),
        ("{title}{nothing}|{blank}", "T| "),
        ("a {nothing} b", None),
        ("a {blank}{nothing} b", ""),
        (r"\d{title}", r"\dT"),
    ],
)
def test_a_template_puts_fields_into_a_text(template: str, text: str | None) -> None:
    assert parse_template(template).text(RECORD) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{title", r"text_template '\{title': braces must enclose the name of a field, got a \{ alone"),
        ("title}", r"got a \} alone. Write \{\{ or \}\}"),
        ("{}", r"got a \{ alone"),
        ("title", r"must name a field in braces, such as '\{title\}\\n\\n\{body\}', or be `chat`"),
        ("alpaca", r"or be `chat`"),
        ("", r"must name a field"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_template(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{name}",
            r"a.jsonl:1: the field 'name' of the text template must exist, got: title, body, year, .*meta.author",
        ),
        ("{tags}", r"the field 'tags' of the text template must hold a text or a number, got list"),
        ("{good}", r"must hold a text or a number, got bool"),
        ("{meta}", r"must hold a text or a number, got dict"),
    ],
)
def test_a_template_that_does_not_fit_a_record_is_refused(template: str, message: str) -> None:
    with pytest.raises(BadRecordError) as bad:
        parse_template(template).text(RECORD)
    assert re.search(message, str(bad.value.record.error("a.jsonl:1")))


CHATS: list[tuple[dict[str, Any], str | None]] = [
    (
        {
            "id": 1,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello.\n\nAgain."},
                {"role": "tool", "content": "42"},
            ],
        },
        "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nAgain.\n\nTool: 42",
    ),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        "User: Hi\n\nAssistant: Hello.",
    ),
    ({"prompt": "Hi", "response": "Hello."}, "User: Hi\n\nAssistant: Hello."),
    ({"prompt": "Hi", "completion": "Hello.", "response": None}, "User: Hi\n\nAssistant: Hello."),
    (
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "completion": [{"role": "assistant", "content": "Hello."}],
        },
        "User: Hi\n\nAssistant: Hello.",
    ),
    ({"instruction": "Add.", "output": "2"}, "User: Add.\n\nAssistant: 2"),
    ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, "User: Add.\n\n1 + 1\n\nAssistant: 2"),
    ({"instruction": "Add.", "input": "", "output": "2"}, "User: Add.\n\nAssistant: 2"),
    ({"instruction": "Add.", "input": None, "output": "2"}, "User: Add.\n\nAssistant: 2"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        "User: a\nb",
    ),
    ({"messages": None, "prompt": "Hi", "response": "Hello."}, "User: Hi\n\nAssistant: Hello."),
    ({"messages": []}, ""),
    ({"messages": [{"role": "user", "content": ""}]}, ""),
    ({"messages": None}, None),
    ({"prompt": None, "response": "x"}, None),
]


@pytest.mark.parametrize(("record", "text"), CHATS)
def test_chats_of_the_usual_forms_become_transcripts(record: dict[str, Any], text: str | None) -> None:
    assert parse_template("chat").text(record) == text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "a", "answer": "b"}, r"a.jsonl:1: a chat must be a list of `messages` or `conversations`, or "
         r"`prompt` and `response`, or .*`instruction` and `output`, got: question, answer. Name the fields"),
        ({"prompt": "a"}, r"a chat must be"),
        ({"messages": "Hi"}, r"message 1 of `messages` must be an object with `role`, a text, and `content`, got: str"),
        ({"messages": [{"from": "human", "value": "a"}]}, r"message 1 of `messages` must be .* got: from, value"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": []}]},
         r"message 2 of `messages` must hold a text, got null"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
         r"message 1 of `messages` must hold a text, got parts without text"),
        ({"instruction": "a", "input": ["x", 1], "output": "b"}, r"`input` must hold a text, got parts without text"),
        ({"prompt": 7, "response": "b"}, r"`prompt` must hold a text, got int"),
    ],
)  # fmt: skip
def test_a_chat_of_another_form_is_refused_with_its_place(record: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecordError) as bad:
        parse_template("chat").text(record)
    assert re.search(message, str(bad.value.record.error("a.jsonl:1")))


def test_every_kind_of_file_takes_a_template_and_documents_without_text_are_counted(tmp_path: Path) -> None:
    rows = [
        {"title": "T", "meta": {"body": "B"}, "other": "x" * 100},
        {"title": None, "meta": None, "other": "y"},
        {"title": "", "meta": {"body": " "}, "other": "z"},
        {"title": "U", "meta": None, "other": "z"},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        counts = DropCounts()
        assert texts_of(tmp_path / name, counts, text_template=r"{title}\n{meta.body}") == ["T\nB", "U\n"]
        assert counts == {NULL_TEXT: 1, EMPTY_TEXT: 1}
    template = parse_template("{title}{meta.body}")
    _, record = next(readers.read_parquet(str(tmp_path / "b.parquet"), template.fields))
    assert record == {"title": "T", "meta": {"body": "B"}}
    (tmp_path / "c.csv").write_text("title,body\nT,B\n")
    assert texts_of(tmp_path / "c.csv", text_template="{title}: {body}") == ["T: B"]
    pq.write_table(pa.Table.from_pylist([CHATS[0][0]] * 2), tmp_path / "d.parquet")
    assert texts_of(tmp_path / "d.parquet", text_template="chat") == [CHATS[0][1]] * 2
