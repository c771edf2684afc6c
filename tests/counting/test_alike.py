"""Alike examples: same words, near-duplicates, and what is neither."""

from __future__ import annotations

import numpy as np
import pytest

from crisp_stream.counting import alike
from crisp_stream.counting.alike import AlikeBuilder
from crisp_stream.examples.questions import Question

WORDS = np.array([f"{first}{second}{third}" for first in "bkmt" for second in "aeiou" for third in "lnrs"])


def made_texts(number: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 40)) for _ in range(number)]


@pytest.mark.parametrize("batch", [1, 1 << 20], ids=["a batch each", "one batch"])
def test_copies_and_near_copies_belong_to_the_first(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(alike, "_BATCH_CHARACTERS", batch)
    texts = made_texts(10)
    near = texts[3] + " and one more"
    every = [*texts, texts[2].upper() + "!", near, texts[2], "∑∑", "∏", "∑∑"]
    builder = AlikeBuilder()
    for text in every:
        builder.add(text)
    found = builder.finish()
    assert found.first.tolist() == [*range(10), 2, 3, 2, 13, 14, 13]
    assert (found.exact, found.near, found.num_groups) == (3, 1, 12)
    assert found.groups()[:4] == [[0], [1], [2, 10, 12], [3, 11]]


def test_questions_are_alike_by_their_words_and_choices_in_any_order() -> None:
    first = Question(question="What does a heart pump?", choices=("blood", "air", "sand"), answer=0)
    shuffled = Question(question="what does a HEART pump", choices=("sand", "blood", "air"), answer=1)
    other = Question(question="Which gas do plants take in?", choices=("neon", "carbon dioxide"), answer=1)
    builder = AlikeBuilder()
    for question in (first, other, shuffled):
        builder.add_question(question)
    assert builder.finish().first.tolist() == [0, 1, 0]


def test_no_examples_have_no_groups() -> None:
    found = AlikeBuilder().finish()
    assert (len(found.first), found.num_groups) == (0, 0)
