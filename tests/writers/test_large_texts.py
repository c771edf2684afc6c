"""Large texts are tokenised, and tokenizers trained on them, in stretches: with the outcome of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream.format import tokenizer as tokenizers
from crisp_stream.format.tokenizer import DocumentTokenizer, cut_between_words
from crisp_stream.writers import windows
from crisp_stream.writers.embedding.pieces import Pieces
from crisp_stream.writers.stages.windows import texts_in_batches
from crisp_stream.writers.windows import train_tokenizer, window_texts
from tests.support.written_dataset import TOPICS

ODD = st.text(st.sampled_from("abZ  \n\n\t.,'st1é中\u0301🙂_"), max_size=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TOPICS[:40], folder, vocab_size=500)
    return folder


@pytest.fixture(params=[False, True], ids=["tokenizers", "tiktoken"])
def tokenizer(request: pytest.FixtureRequest, folder: Path) -> DocumentTokenizer:
    return DocumentTokenizer(folder, fast=request.param)


@pytest.fixture(autouse=True, scope="module")
def short_stretches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_PIECE_CHARACTERS", 2)
        yield


@given(text=ODD)
def test_stretches_have_the_tokens_of_the_text(folder: Path, text: str) -> None:
    stretches = list(cut_between_words(text))
    assert "".join(stretches) == text
    for fast in (False, True):
        tokenizer = DocumentTokenizer(folder, fast=fast)
        [whole] = tokenizer.encode([text])
        ids = [token for stretch in tokenizer.encode(stretches) for token in stretch.tolist()]
        assert ids == whole.tolist()


def test_real_text_is_cut_often(tokenizer: DocumentTokenizer) -> None:
    text = "\n".join(TOPICS[:10])
    stretches = list(cut_between_words(text))
    assert max(map(len, stretches)) < 2000
    assert len(stretches) > len(text) / 20
    np.testing.assert_array_equal(np.concatenate(tokenizer.encode(stretches)), tokenizer.encode([text])[0])


def test_a_tokenizer_of_stretches_is_that_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["\n".join(TOPICS[:30]), "short", " \n ".join(TOPICS[30:40])]
    train_tokenizer(texts, tmp_path / "stretches", vocab_size=600)
    monkeypatch.setattr(windows, "cut_between_words", lambda text: [text])
    train_tokenizer(texts, tmp_path / "whole", vocab_size=600)
    one, other = (
        path.read_bytes() for path in (tmp_path / "stretches/tokenizer.json", tmp_path / "whole/tokenizer.json")
    )
    assert one == other


def test_a_text_with_very_many_blanks_has_the_tokens_of_tokenizers(folder: Path) -> None:
    text = TOPICS[0] + " " * 120_000 + TOPICS[1] + "\n" * 60_000 + TOPICS[2]
    fast, slow = (DocumentTokenizer(folder, fast=fast).encode([text])[0] for fast in (True, False))
    np.testing.assert_array_equal(fast, slow)


def test_ids_are_looked_up_and_texts_encoded_some_at_a_time(
    tokenizer: DocumentTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TOPICS[:6], "", TOPICS[7]]
    whole = tokenizer.encode(texts)
    monkeypatch.setattr(tokenizers, "_RANKS_AT_ONCE", 7)
    monkeypatch.setattr(tokenizers, "_SLOW_BATCH_CHARACTERS", 3000)
    for one, other in zip(whole, tokenizer.encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype == np.uint16


def test_windows_become_text_some_at_a_time(tokenizer: DocumentTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokenizer.encode(["\n".join(TOPICS[:5])])[0]
    rows = tokens[: len(tokens) // 16 * 16].reshape(-1, 16)
    monkeypatch.setattr("crisp_stream.writers.stages.windows._ROWS_AT_ONCE", 7)
    batches = list(texts_in_batches(rows, tokenizer))
    assert [text for batch in batches for text in batch] == window_texts(rows, tokenizer, tokenizer.eot_id)
    assert {len(batch) for batch in batches[:-1]} == {7}
    assert list(texts_in_batches(rows[:0], tokenizer)) == [[]]


def test_pieces_of_batches_are_joined_to_those_of_all() -> None:
    texts = [[[1, 2, 3]], [[4], [5, 6]], [], [[7]]]
    whole = Pieces.from_sequences(texts, 100)
    joined = Pieces.joined([Pieces.from_sequences(some, 100) for some in (texts[:2], texts[2:])])
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(value, getattr(joined, name))
        assert value.dtype == getattr(joined, name).dtype
