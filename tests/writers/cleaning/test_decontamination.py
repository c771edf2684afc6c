from __future__ import annotations

import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.errors import FormatError, InputError
from crisp_stream.examples.ignorable import DEFAULT_IGNORABLE
from crisp_stream.writers.cleaning import words as words_module
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.evaluation_texts import read_evaluation_texts
from crisp_stream.writers.cleaning.words import hash_words, ngram_hashes
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.batches import CONTAMINATED
from crisp_stream.writers.write import write
from tests.support.written_dataset import WordEncoder, small_options

QUESTION = "Which of the following organs makes most of the bile that the gall bladder stores?"


def plain_words(text: str) -> list[str]:
    """The definition, one character at a time."""
    found: list[str] = []
    inside = False
    seen = "".join(c for c in text if not any(first <= ord(c) <= last for first, last in DEFAULT_IGNORABLE))
    for character in unicodedata.normalize("NFKC", seen).casefold():
        alone = any(start <= ord(character) < end for start, end in words_module._ALONE_RANGES)
        is_letter = unicodedata.category(character)[0] in "LMN"
        if is_letter and inside and not alone:
            found[-1] += character
        elif is_letter:
            found.append(character)
        inside = is_letter and not alone
    return found


def runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[first : first + length]) for first in range(len(words) - length + 1)]


def all_words(texts: list[str]) -> list[list[str]]:
    hashed = hash_words(texts)
    bounds = hashed.first_word.tolist()
    assert len(hashed.hashes) == bounds[-1] == len(hashed.word_start) == len(hashed.word_end)
    return [hashed.words(first, end) for first, end in itertools.pairwise(bounds)]


TEXTS = st.lists(
    st.text(st.sampled_from("ab B\n.,-'_1é\u0301\xad\u200bİßﬁ²語のक्\u2019\U00020000\ud800"), max_size=30)
    | st.text(max_size=10),
    max_size=5,
)


@given(texts=TEXTS)
def test_words_are_runs_of_letters_marks_and_digits_case_folded(texts: list[str]) -> None:
    assert all_words(texts) == [plain_words(text) for text in texts]


@given(texts=TEXTS, more=TEXTS)
def test_equal_words_have_equal_hashes_wherever_they_stand_and_others_different_ones(
    texts: list[str], more: list[str]
) -> None:
    seen: dict[str, int] = {}
    for batch in (texts, more, [*more, *texts]):
        hashed = hash_words(batch)
        for word, value in zip(hashed.words(0, len(hashed.hashes)), hashed.hashes.tolist(), strict=True):
            assert seen.setdefault(word, value) == value
    assert len(set(seen.values())) == len(seen)


def test_words_longer_than_a_block_and_across_blocks_are_hashed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["x" * 300 + " short " + "x" * 299 + "y", "short " * 40, "x" * 300, "é" * 5 + " short"]
    whole = hash_words(texts).hashes
    monkeypatch.setattr(words_module, "_BLOCK_CHARACTERS", 16)
    np.testing.assert_array_equal(hash_words(texts).hashes, whole)
    assert whole[0] == whole[43]
    assert len(set(whole.tolist())) == 4


@given(values=st.lists(st.integers(0, 3), max_size=40), length=st.integers(1, 20))
def test_runs_of_words_are_equal_exactly_where_their_hashes_are(values: list[int], length: int) -> None:
    hashes = hash_words([" ".join("abcd"[value] for value in values)]).hashes
    found = ngram_hashes(hashes, length).tolist()
    expected = runs([str(value) for value in values], length)
    assert len(found) == len(expected)
    assert len(set(found)) == len(set(expected)) == len(set(zip(found, expected, strict=True)))


def test_a_question_is_found_in_any_case_and_punctuation_and_named() -> None:
    index = EvaluationNgrams.build([("mcq.jsonl", 4, QUESTION)])
    text = "Before.\n" + QUESTION.upper().replace(" ", ",  ") + " After."
    match = index.find_all([text])[0]
    assert match is not None
    assert match.describe() == (
        "row 4 of mcq.jsonl: which of the following organs makes most of the bile that the gall"
    )
    twelve = " ".join(QUESTION.split()[:12]) + " other words"
    assert index.find_all([text, twelve, "", text]) == [match, None, None, match]


def test_the_first_match_of_the_document_is_reported_with_the_first_example_that_holds_it() -> None:
    texts = [
        ("a", 1, QUESTION),
        ("b", 2, "Yes. " + QUESTION),
        ("b", 3, "a man went to the mill and bought a sack of flour for bread"),
    ]
    index = EvaluationNgrams.build(texts)
    match = index.find_all([f"{texts[2][2]} {QUESTION}"])[0]
    assert match is not None
    assert (match.source, match.row) == ("b", 3)
    match = index.find_all([QUESTION])[0]
    assert match is not None
    assert (match.source, match.row) == ("a", 1)


def test_short_texts_are_looked_for_whole_and_shorter_ones_counted() -> None:
    nine = "the liver makes the bile of the human body"
    index = EvaluationNgrams.build([("q", 1, nine), ("q", 2, "What is bile?"), ("r", 1, "too short"), ("r", 1, nine)])
    assert index.unchecked == {"q": 1, "r": 0}
    found = index.find_all([f"so {nine} now", "so the liver makes the bile of the human", "What is bile?"])
    assert [match.words if match else None for match in found] == [nine, None, None]


def test_matches_do_not_cross_documents() -> None:
    index = EvaluationNgrams.build([("q", 1, QUESTION)])
    first, second = QUESTION[:40], QUESTION[40:]
    assert index.find_all([first, second]) == [None, None]
    assert index.find_all([first + second])[0] is not None


def test_equal_hashes_of_different_words_are_no_match() -> None:
    index = EvaluationNgrams.build([("q", 1, QUESTION)])
    forged = EvaluationNgrams.build([("q", 1, QUESTION.replace("organs", "glands"))])
    # The examples of one index under the hashes of the other: what collisions would look like.
    forged._entries, forged._hashes, forged._bits = index._entries, index._hashes, index._bits
    assert index.find_all([QUESTION])[0] is not None
    assert len(forged._candidates(hash_words([QUESTION]).hashes)) > 0
    assert forged.find_all([QUESTION])[0] is None


@given(
    examples=st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=1, max_size=6),
    documents=st.lists(st.lists(st.sampled_from("abc"), max_size=30), max_size=6),
    ngram=st.integers(2, 6),
    data=st.data(),
)
def test_what_is_found_is_what_comparing_all_words_finds(
    examples: list[list[str]], documents: list[list[str]], ngram: int, data: st.DataObject
) -> None:
    min_words = data.draw(st.integers(1, ngram))
    if not any(len(example) >= min_words for example in examples):
        examples.append(["a"] * min_words)
    wanted: set[tuple[str, ...]] = set()
    for example in examples:
        if len(example) >= min_words:
            wanted.update(runs(example, min(ngram, len(example))))
    index = EvaluationNgrams.build(
        [("e", row, " ".join(example)) for row, example in enumerate(examples)], ngram=ngram, min_words=min_words
    )
    assert index.num_ngrams == len(wanted)
    found = index.find_all([" ".join(document) for document in documents])
    for document, match in zip(documents, found, strict=True):
        expected = next(
            (
                document[first : first + length]
                for first in range(len(document))
                for length in range(ngram, min_words - 1, -1)
                if tuple(document[first : first + length]) in wanted and first + length <= len(document)
            ),
            None,
        )
        assert (match.words.split() if match else None) == expected
        if match is not None:
            assert match.words in " ".join(examples[match.row])


def test_an_index_is_saved_with_the_same_bytes_and_loaded_with_the_same_answers(tmp_path: Path) -> None:
    texts = [("q", 1, QUESTION), ("é", 2, "Łódź " * 9), ("q", 3, "short")]
    saved = []
    for name in ("a", "b"):
        paths = [tmp_path / file for file in EvaluationNgrams.files(name)]
        index = EvaluationNgrams.build(iter(texts))
        index.save(paths)
        saved.append(paths)
        loaded = EvaluationNgrams.load(paths)
        assert loaded.find_all([QUESTION, "łódź, " * 9]) == index.find_all([QUESTION, "łódź, " * 9])
        assert loaded.unchecked == {"q": 1, "é": 0}
        assert (loaded.ngram, loaded.min_words) == (index.ngram, index.min_words)
    assert [path.read_bytes() for path in saved[0]] == [path.read_bytes() for path in saved[1]]


def test_a_broken_index_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / file for file in EvaluationNgrams.files("a")]
    EvaluationNgrams.build([("q", 1, QUESTION)]).save(paths)
    content = [path.read_bytes() for path in paths]
    for broken in (
        [content[0][:-1] + b"\xff", content[1]],
        [content[0][:-8], content[1]],
        [content[0], content[1].splitlines(keepends=True)[0]],
        [content[0], b"{}\n"],
        [content[0], content[1].replace(b'"index_version": 1', b'"index_version": 9')],
    ):
        for path, data in zip(paths, broken, strict=True):
            path.unlink()
            path.write_bytes(data)
        with pytest.raises(FormatError, match=r"so that .* made again"):
            EvaluationNgrams.load(paths)


def test_numbers_out_of_range_and_empty_evaluation_sets_are_refused() -> None:
    for ngram in (1, 65):
        with pytest.raises(InputError, match=f"ngram: must be 2 to 64 words, got {ngram}"):
            EvaluationNgrams.build([("q", 1, QUESTION)], ngram=ngram)
        with pytest.raises(InputError, match=f"ngram: must be 2 to 64 words, got {ngram}"):
            WriteOptions(inputs=("in",), out="out", ngram=ngram)
    with pytest.raises(InputError, match="min_words: must be 1 to 5, the words of an n-gram, got 6"):
        EvaluationNgrams.build([("q", 1, QUESTION)], ngram=5, min_words=6)
    with pytest.raises(InputError, match="at least one evaluation text of 8 words is needed, got none among 1"):
        EvaluationNgrams.build([("q", 1, "What is bile?")])


def test_documents_and_questions_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"text": "A document", "question": "not used"},
        {"question": "One plus one?", "choices": ["two", "three"], "answer": 0},
        {"question": "And?", "choices": {"text": ["so", "on"], "label": ["A", "B"]}},
        {"question": "Sum?", "answer": "It is 3."},
    ]
    lines = "\ufeff" + "\n\n".join(json.dumps(record) for record in records)
    (tmp_path / "q.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "q.jsonl.zst").write_bytes(pa.compress(lines.encode(), "zstd", asbytes=True))
    expected = [
        (1, "A document"),
        (3, "One plus one?"),
        (3, "One plus one? two"),
        (3, "One plus one? three"),
        (5, "And?"),
        (5, "And? so"),
        (5, "And? on"),
        (7, "Sum?"),
        (7, "Sum? It is 3."),
    ]
    for name in ("q.jsonl", "q.jsonl.zst"):
        found = list(read_evaluation_texts(str(tmp_path / name)))
        assert [(row, text) for _, row, text in found] == expected
        assert {source for source, _, _ in found} == {name}
    pq.write_table(pa.table({"question": ["A?", "B?"], "choices": [["x"], ["y", "z"]]}), tmp_path / "q.parquet")
    found = list(read_evaluation_texts(str(tmp_path / "q.parquet")))
    assert [(row, text) for _, row, text in found] == [(1, "A?"), (1, "A? x"), (2, "B?"), (2, "B? y"), (2, "B? z")]
    (tmp_path / "d.txt").write_text("one\ntwo\n")
    assert list(read_evaluation_texts(str(tmp_path / "d.txt"))) == [("d.txt", 1, "one\ntwo\n")]
    (tmp_path / "d.json").write_text('[{"text": "a"}, {"question": "b"}]')
    (tmp_path / "d.csv").write_text('question,answer\n"A\n?",x\n')
    assert [tuple(found) for found in read_evaluation_texts(str(tmp_path / "d.json"))] == [
        ("d.json", 1, "a"),
        ("d.json", 2, "b"),
    ]
    assert [text for _, _, text in read_evaluation_texts(str(tmp_path / "d.csv"))] == ["A\n?", "A\n? x"]
    (tmp_path / "d.jsonl").write_text('{"body": "b"}\n')
    assert [text for _, _, text in read_evaluation_texts(str(tmp_path / "d.jsonl"), text_column="body")] == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"a,b", r"an evaluation file is \.jsonl"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a\.jsonl:2: every line must be a JSON object, got list"),
        ("a.jsonl", b"{", r"a\.jsonl:1: every line must be a JSON object"),
        (
            "a.jsonl",
            b'{"prompt": "a"}',
            r"a\.jsonl:1: must hold a text in 'text', or a question in a known layout, got the keys p",
        ),
        ("a.jsonl", b'{"question": "a", "choices": "b"}', r"choices must be a list of texts"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl:1: every line must be a JSON object"),
        ("a.parquet", b"no", r"a\.parquet: must be a readable Parquet file"),
        ("a.jsonl.gz", b"no", r"a\.jsonl\.gz: must be readable to its end"),
    ],
)
def test_evaluation_files_that_cannot_be_used_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_evaluation_texts(str(tmp_path / name)))


@pytest.mark.parametrize("ngram", range(2, 9))
def test_short_ngrams_find_what_they_say(ngram: int) -> None:
    words = QUESTION.split()
    index = EvaluationNgrams.build([("q", 1, QUESTION), ("q", 2, " ".join(["tibia"] * ngram))], ngram=ngram)
    assert index.min_words == ngram
    start = "nothing of that kind "
    found = index.find_all(
        [start + " ".join(words[:ngram]), start + " ".join(words[: ngram - 1]), start + "tibia " * ngram]
    )
    assert [match and match.row for match in found] == [1, None, 2]


def test_a_write_takes_ngrams_of_five_words(text_file: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    lines = text_file.read_text().splitlines()
    phrase = " ".join(json.loads(lines[0])["text"].split()[20:40])
    (tmp_path / "exam.jsonl").write_text(json.dumps({"text": phrase}) + "\n")
    exam = [str(tmp_path / "exam.jsonl")]
    report = write(small_options(text_file, tmp_path / "out", decontaminate=exam, ngram=5), log=lambda line: None)
    assert report.dropped_documents[CONTAMINATED] >= 1


def test_characters_that_are_not_seen_hide_no_evaluation_text() -> None:
    index = EvaluationNgrams.build([("q", 1, QUESTION)])
    for first, last in DEFAULT_IGNORABLE:
        for code in {first, last}:
            hidden = chr(code).join(QUESTION)
            [match] = index.find_all([f"Some text. {hidden} And more."])
            assert match is not None, hex(code)
            assert chr(code) not in match.words
    hidden_in_the_exam = EvaluationNgrams.build([("q", 1, "\u00ad".join(QUESTION))])
    assert hidden_in_the_exam.find_all([QUESTION])[0] is not None
