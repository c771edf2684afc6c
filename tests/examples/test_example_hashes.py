"""Names of examples by their content."""

from __future__ import annotations

from dataclasses import replace

from crisp_stream.examples.questions import Question, question_hash

QUESTION = Question(question="Which gas do plants take up?", choices=("Oxygen", "Carbon dioxide"), answer=1)


def test_copies_of_a_question_have_one_hash() -> None:
    copies = [
        replace(QUESTION, question="  which gas do\nplants take up? "),
        replace(QUESTION, choices=("Carbon  dioxide", "Oxygen"), answer=0),
        replace(QUESTION, topic="biology"),
        replace(QUESTION, question="Which gas do plants take up\uff1f"),
    ]
    assert {question_hash(copy) for copy in copies} == {question_hash(QUESTION)}


def test_another_text_or_another_choice_is_another_question() -> None:
    others = [
        replace(QUESTION, question="Which gas do animals take up?"),
        replace(QUESTION, choices=("Oxygen", "Carbon monoxide")),
        replace(QUESTION, choices=("Oxygen", "Carbon dioxide", "Oxygen")),
        replace(QUESTION, choices=("OxygenCarbon dioxide", "")),
    ]
    assert len({question_hash(other) for other in (*others, QUESTION)}) == 5


def test_the_hash_of_a_question_stays_what_it_is() -> None:
    """Files keep these hashes, so they must not change between versions."""
    assert question_hash(QUESTION) == 0xBA99D9D939CF551E
