"""Questions in every layout are the same questions, and what an answer means is told by the file or asked for."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import InputError
from crisp_stream.examples.question_files import open_questions, question_records, read_questions, unanswered_question
from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.examples.questions import Question, question_hash
from tests.support.question_layouts import (
    LAYOUTS,
    NAMED_KEYS,
    QUESTIONS,
    UNORDERED,
    write_array,
    write_every_layout,
    write_lines,
    write_rows,
)

EXPECTED = [
    Question(question=row["question"], choices=tuple(row["choices"]), answer=row["answer"]) for row in QUESTIONS
]


def keys_of(layout: str) -> QuestionKeys | None:
    return QuestionKeys.parse(NAMED_KEYS) if layout == "named" else None


def test_the_same_questions_are_read_from_every_layout(tmp_path: Path) -> None:
    files = write_every_layout(tmp_path)
    assert len(files) == 16
    for layout, file in files.items():
        assert read_questions(file, keys=keys_of(layout)) == EXPECTED, layout


def test_parquet_and_compressed_files_are_read_as_lines_are(tmp_path: Path) -> None:
    for layout, record in LAYOUTS.items():
        pq.write_table(pa.Table.from_pylist([record(row) for row in QUESTIONS]), tmp_path / f"{layout}.parquet")
        assert read_questions(tmp_path / f"{layout}.parquet", keys=keys_of(layout)) == EXPECTED, layout
    bare = write_rows(tmp_path / "bare.csv", QUESTIONS, header=False)
    (tmp_path / "bare.csv.gz").write_bytes(gzip.compress(Path(bare).read_bytes()))
    assert read_questions(tmp_path / "bare.csv.gz") == EXPECTED


def test_distractors_give_the_same_questions_with_the_right_choice_where_the_content_puts_it(tmp_path: Path) -> None:
    records = [UNORDERED["distractors"](row) for row in QUESTIONS]
    found = read_questions(write_lines(tmp_path / "q.jsonl", records))
    assert [question_hash(question) for question in found] == [question_hash(question) for question in EXPECTED]
    assert [row.choices[row.answer] for row in found] == [row.choices[row.answer] for row in EXPECTED]
    assert len({question.answer for question in found}) > 1
    swapped = [
        {**record, "distractor1": record["distractor2"], "distractor2": record["distractor1"]} for record in records
    ]
    assert [row.answer for row in read_questions(write_lines(tmp_path / "s.jsonl", swapped))] == [
        row.answer for row in found
    ]


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_two_to_ten_choices_are_read(tmp_path: Path, count: int) -> None:
    rows = [
        {"question": f"Which is number {right}?", "choices": [f"thing {n}" for n in range(count)], "answer": right}
        for right in (0, count - 1)
    ]
    expected = [Question(question=row["question"], choices=tuple(row["choices"]), answer=row["answer"]) for row in rows]
    for layout, file in write_every_layout(tmp_path, rows).items():
        assert read_questions(file, keys=keys_of(layout)) == expected, layout


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("cop_from_0", r"cop counts choices from 0: told by 0 of 4 choices in row 1\."),
        ("cop_from_1", r"cop counts choices from 1: told by 4 of 4 choices in row 4\."),
        ("endings", r"label counts choices from 0: told by '0' of 4 choices in row 1\."),
        ("gold", r"gold counts choices from 0: told by \[0\] of 4 choices in row 1\."),
    ],
)
def test_it_is_said_from_where_answers_count_and_what_told_it(tmp_path: Path, layout: str, said: str) -> None:
    read = open_questions(write_lines(tmp_path / "q.jsonl", [LAYOUTS[layout](row) for row in QUESTIONS]))
    [note] = read.notes
    assert re.search(rf"^q\.jsonl: .*{said}$", note), note


def test_layouts_whose_answers_mean_one_thing_say_nothing(tmp_path: Path) -> None:
    for layout in ("own", "arc", "options_object", "options_letters", "stem"):
        file = write_lines(tmp_path / f"{layout}.jsonl", [LAYOUTS[layout](row) for row in QUESTIONS])
        assert open_questions(file).notes == [], layout


def test_nothing_is_guessed_where_a_file_does_not_tell(tmp_path: Path) -> None:
    middle = [LAYOUTS["cop_from_0"](row) for row in QUESTIONS if row["answer"] in (1, 2)]
    file = write_lines(tmp_path / "q.jsonl", middle)
    with pytest.raises(InputError, match=r"from 0 and from 1 both fit all 4 answers\. Say --question-keys base=0 or b"):
        read_questions(file)
    assert [row.answer for row in read_questions(file, keys=QuestionKeys.parse("base=0"))] == [1, 2, 1, 2]
    assert [row.answer for row in read_questions(file, keys=QuestionKeys.parse("base=1"))] == [0, 1, 0, 1]
    usual = write_lines(tmp_path / "e.jsonl", [LAYOUTS["endings"](row) for row in QUESTIONS if row["answer"] == 1])
    assert [row.answer for row in read_questions(usual)] == [1, 1]
    assert "from 0: as the layout does" in open_questions(usual).notes[0]


def test_answers_that_fit_no_single_way_are_refused_with_both_places(tmp_path: Path) -> None:
    both = [LAYOUTS["cop_from_0"](QUESTIONS[0]), LAYOUTS["cop_from_1"](QUESTIONS[3])]
    with pytest.raises(InputError, match=r"q\.jsonl:2: cop must name choices in one way.*got 4 of 4.*0 of 4.*:1"):
        read_questions(write_lines(tmp_path / "q.jsonl", both))


def test_our_own_answers_count_from_0_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    rows = [{**row, "answer": row["answer"] + 1} for row in QUESTIONS]
    file = write_lines(tmp_path / "q.jsonl", rows)
    with pytest.raises(InputError, match=r"q\.jsonl:4: answer must be the index of a choice, 0 to 3; got 4.*base=1"):
        read_questions(file)
    assert read_questions(file, keys=QuestionKeys.parse("base=1")) == EXPECTED


def test_letters_that_are_texts_of_other_choices_are_read_as_the_file_tells(tmp_path: Path) -> None:
    vitamins: dict[str, Any] = {"question": "Which vitamin?", "options": ["A", "C", "B", "K"], "answer": "C"}
    letters = write_lines(tmp_path / "l.jsonl", [vitamins, LAYOUTS["options_letters"](QUESTIONS[1])])
    assert [row.answer for row in read_questions(letters)] == [2, 1]
    texts = write_lines(tmp_path / "t.jsonl", [vitamins, {**vitamins, "question": "And?", "answer": "K"}])
    assert [row.answer for row in read_questions(texts)] == [1, 3]
    with pytest.raises(InputError, match=r"letter and text both fit all 1 answers\. Write the index"):
        read_questions(write_lines(tmp_path / "o.jsonl", [vitamins]))


def test_a_missing_answer_is_named_and_not_needed_for_contamination(tmp_path: Path) -> None:
    record = {key: value for key, value in LAYOUTS["cop_from_0"](QUESTIONS[0]).items() if key != "cop"}
    with pytest.raises(InputError, match=r"q\.jsonl:1: a question needs its right answer, but question, opa …, cop"):
        read_questions(write_lines(tmp_path / "q.jsonl", [record]))
    question = unanswered_question({**record, "cop": -1}, "x")
    assert question is not None
    assert question_hash(question) == question_hash(EXPECTED[0])


def test_a_layout_that_is_not_known_shows_its_keys(tmp_path: Path) -> None:
    file = write_array(tmp_path / "q.json", [{"task": "Which?", "answers": ["a", "b"], "best": 0}])
    with pytest.raises(InputError, match=r"q\.json:1: .* Got the keys task, answers, best\. Name them: --q"):
        read_questions(file)
    keys = QuestionKeys.parse("question=task,choices=answers,answer=best")
    assert read_questions(file, keys=keys) == [Question(question="Which?", choices=("a", "b"), answer=0)]
    with pytest.raises(InputError, match=r"--question-keys names 'other', but the record has the keys task, answ"):
        read_questions(file, keys=QuestionKeys.parse("question=other,choices=answers,answer=best"))


def test_choices_may_have_a_key_each(tmp_path: Path) -> None:
    record = {"q": "Which?", "one": "a", "two": "b", "three": None, "right": "two", "about": "letters"}
    keys = QuestionKeys.parse("question=q,choices=one+two+three,answer=right,topic=about")
    file = write_lines(tmp_path / "q.jsonl", [{**record, "three": "c"}, {**record, "right": "b"}])
    found = read_questions(write_lines(tmp_path / "one.jsonl", [{**record, "three": "c"}]), keys=keys)
    assert found == [Question(question="Which?", choices=("a", "b", "c"), answer=1, topic="letters")]
    assert [place for place, _ in question_records(file)] == [1, 2]


@pytest.mark.parametrize(
    "text", ["question=q", "choices=c", "base=2", "question=q,choices=c,other=x", "question=,choices=c", "q"]
)
def test_question_keys_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--question-keys: must be question=KEY,choices=KEY,answer=KEY"):
        QuestionKeys.parse(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "q.csv",
            "Which?,a,b,c,A\nWhich?,a,b,A\n",
            r"q\.csv:2: every row must have the 5 fields of the first row, got 4",
        ),
        ("q.csv", 'Which?,a,b,"c,A\n', r"q\.csv:1: every row must be as RFC 4180 says"),
        ("q.json", '[{"question": "a"', r"q\.json: record 1 of the JSON array must be readable"),
        ("q.json", "[1]", r"q\.json: record 1 of the JSON array must be an object"),
        ("q.json", "[]", r"q\.json: must hold questions, got none"),
        ("q.jsonl", '{"question": "a", "choices": ["b"], "answer": 0}', "needs at least two choices, got 1"),
    ],
)
def test_files_that_are_broken_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / name)
