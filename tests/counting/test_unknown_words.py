"""Words that the corpus does not have: which text they call foreign, and where it is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.counting.count_examples import warn_of_examples
from crisp_stream.counting.unknown_words import LEAST_LETTERS, CorpusWords, UnknownWordsCounter
from crisp_stream.histograms.arithmetic import interpolate
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.smoothing import smooth
from crisp_stream.histograms.unlike import UNKNOWN_WORDS_KEY, UnknownWords, unlike_warnings
from crisp_stream.inspection.summary import describe_histogram
from crisp_stream.report.page import page_html
from tests.support.topics import histogram_of, topic_dataset
from tests.support.written_dataset import TOPICS

GERMAN = (
    "Bitte melden Sie sich an, um diese Seite zu sehen. Das Kennwort muss mindestens acht Zeichen lang sein und darf "
    "nicht nur aus Ziffern bestehen."
)
FRENCH = "Veuillez saisir un nombre entier. Ce champ est obligatoire, et la valeur ne peut pas être vide ni négative."
CHINESE = "今天的天气很好,我们去公园散步。请在下午五点之前提交您的申请材料。"
ENGLISH = (
    "The statement binds a name to an object, and raises an exception where the class of the value has no method that "
    "the operator calls."
)


@pytest.fixture(scope="module")
def corpus() -> CorpusWords:
    """Half of CPython's own documentation, in pieces as long as windows."""
    pieces = [text[at : at + 500] for text in TOPICS[::2] for at in range(0, min(len(text), 4000), 500)]
    return CorpusWords.of_texts(pieces)


def counted(corpus: CorpusWords, texts: list[str]) -> UnknownWords:
    counter = UnknownWordsCounter(corpus)
    assert list(counter.watched(iter(enumerate(texts)))) == list(enumerate(texts))
    found = counter.finish()
    assert found is not None
    return found


def test_shares_are_of_letters_and_those_of_the_corpus_of_each_window_against_the_others() -> None:
    corpus = CorpusWords.of_texts(["red green blue", "red GREEN, 1234", "red yellow 77"])
    assert corpus.unknown == pytest.approx((4 + 6) / (12 + 8 + 9))  # blue and yellow stand in one window
    assert corpus.windows == 3
    found = counted(corpus, ["Red 99 green2 pink"])
    assert found.share == pytest.approx((5 + 4) / (3 + 5 + 4))  # digits are no letters; green2 is another word


@pytest.mark.parametrize("text", [GERMAN, FRENCH, CHINESE, "aGVsbG8 d29ybGQh Zm9vYmFy " * 9])
def test_another_language_and_no_text_are_warned_of(corpus: CorpusWords, text: str) -> None:
    assert corpus.unknown < 0.4
    warning = counted(corpus, [text]).warning
    assert warning is not None
    assert "of the examples' letters stand in words that a sample of the corpus (" in warning


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        ENGLISH.upper(),
        *(text[:1500] for text in TOPICS[1:12:2]),
        "1, 2.5, 3\n400, 5, 6\nname, value, result\n" * 9,
    ],
)
def test_odd_english_is_not_warned_of(corpus: CorpusWords, text: str) -> None:
    assert counted(corpus, [text]).warning is None


def test_a_part_of_the_examples_in_another_language_is_warned_of(corpus: CorpusWords) -> None:
    german, english = f"{GERMAN} {GERMAN}", f"{ENGLISH} {ENGLISH}"
    assert len(german) > LEAST_LETTERS > len(GERMAN)
    warning = counted(corpus, [english] * 5 + [german]).warning
    assert warning is not None
    assert warning.startswith("warning: some of the examples, 18% of all by their letters, consist mostly of words")
    assert counted(corpus, [english] * 20 + [german]).warning is None
    assert counted(corpus, [ENGLISH] * 5 + [GERMAN]).warning is None  # too short to be judged alone


def test_texts_of_one_number_are_one_example_and_text_without_letters_has_no_share(corpus: CorpusWords) -> None:
    counter = UnknownWordsCounter(corpus)
    words = [*GERMAN.split(), *GERMAN.split()]
    list(counter.watched(iter([(7, word) for word in words])))
    found = counter.finish()
    assert found is not None
    assert found.foreign_share == 1.0
    assert UnknownWordsCounter(corpus).finish() is None
    numbers = UnknownWordsCounter(corpus)
    list(numbers.watched(iter([(0, "1 2 3")])))
    assert numbers.finish() is None


def test_a_corpus_of_several_languages_is_its_own_measure() -> None:
    both = CorpusWords.of_texts([ENGLISH, GERMAN, ENGLISH[::-1], GERMAN, FRENCH, FRENCH])
    assert counted(both, [GERMAN, FRENCH]).warning is None
    assert counted(both, [CHINESE]).warning is not None


def test_windows_of_a_dataset_are_sampled(tmp_path: Path) -> None:
    corpus = CorpusWords.of_dataset(topic_dataset(tmp_path / "data"))
    assert corpus.windows == 390
    assert corpus.unknown < 0.05
    assert counted(corpus, ["the fever of the doctor and the kidney of a patient"]).share == 0
    assert counted(corpus, ["das Fieber des Arztes"]).share == 1


def test_the_warnings_follow_a_histogram_into_inspect_and_the_page(tmp_path: Path) -> None:
    dataset = topic_dataset(tmp_path / "data")
    words = UnknownWords(share=0.84, foreign_share=1.0, corpus_share=0.09, corpus_windows=4096)
    provenance = {"cosine": 0.24, "corpus_cosine": 0.48, UNKNOWN_WORDS_KEY: words.to_json()}
    histogram = histogram_of(dataset, {0: 400, 5: 600})
    histogram.provenance.update(provenance)
    expected = "84% of the examples' letters stand in words that a sample of the corpus (4,096 windows) does not have"
    logged: list[str] = []
    warn_of_examples(provenance, logged.append)
    assert [expected in line for line in logged] == [True]
    for made in (histogram, smooth(histogram, dataset, strength=1.0), interpolate(histogram, dataset, 0.5)):
        assert [expected in one for one in unlike_warnings(made.provenance)] == [True]
        assert f"warning: {expected}" in describe_histogram(made, dataset, limit=2)
        assert '<p class="warning"><bdi>german</bdi>: <bdi>84% of the examples' in page_html(dataset, {"german": made})
    assert "unknown words" in describe_histogram(histogram, dataset, limit=2)
    assert "84.0% of the letters; 9.0% in the corpus itself" in describe_histogram(histogram, dataset, limit=2)
    assert "84.0% (corpus: 9.0%)" in page_html(dataset, {"german": histogram})
    far = {**provenance, "cosine": 0.23}
    assert ["far from the corpus" in one for one in unlike_warnings(far)] == [True, False]
    english = {**far, UNKNOWN_WORDS_KEY: dataclasses.replace(words, share=0.2, foreign_share=0.0).to_json()}
    [said] = unlike_warnings(english)
    assert "0.23, that of the corpus 0.48. It is no other language: 80% of its letters stand in words of the" in said
    assert [*unlike_warnings(Histogram.base(dataset).provenance)] == []


def test_the_samples_words_are_found_whatever_their_order() -> None:
    corpus = CorpusWords.of_texts([json.dumps(TOPICS[:3])])
    assert (np.diff(corpus.hashes.astype(object)) > 0).all()
    assert CorpusWords.of_texts([]).lacks(corpus.hashes).all()
