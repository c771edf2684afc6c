"""Texts to tokens to windows: the tokenizer, and the pure functions that cut.

Encoding goes through tiktoken where that gives the ids of the trained tokenizer, because it is six times as fast
(measured: 1.6M against 0.26M tokens a second and core); tiktoken merges bytes by rank, which equals a GPT-2-style
byte-level BPE. Whether it does is checked on the first documents, id by id; any other tokenizer is used through
`tokenizers`. (The two agreed on every code point of Unicode, between letters, digits and blanks.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.manifest import TOKENIZER_FILES, Packing
from crisp_stream.format.mds import TokenDtype
from crisp_stream.format.tokenizer import EOT_TOKEN, DocumentTokenizer, cut_between_words
from crisp_stream.writers.options import WriteOptions

SAMPLE_CHARACTERS = 20 << 20
"""Text from the start of the documents that a tokenizer is trained on, about 20 MB: 10 s of CPU for 32,000."""
MIN_VOCAB_SIZE = 257
LAST_PARTIAL_WINDOW = "last partial window of a part"
ONLY_EOT = "window of end-of-text only"


def train_tokenizer(
    texts: Iterable[str],
    folder: Path,
    *,
    vocab_size: int = WriteOptions.vocab_size,
    window_tokens: int = WriteOptions.window_tokens,
) -> None:
    """Train a byte-level BPE tokenizer and write it as `transformers.AutoTokenizer` loads it.

    Args:
        texts: documents; read until `SAMPLE_CHARACTERS`.
        folder: gets tokenizer.json and tokenizer_config.json.
        vocab_size: entries, the 256 bytes and the end-of-text token included; fewer when the text has fewer merges.
        window_tokens: becomes model_max_length.

    Raises:
        InputError: vocab_size below 257.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            f"vocab_size: must be at least {MIN_VOCAB_SIZE} (256 bytes and end-of-text), got {vocab_size}. "
            "The default is 32000."
        )
    library: Any = import_extra("tokenizers", extra="write", purpose="training a tokenizer")
    byte_level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT_TOKEN],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_head(texts, SAMPLE_CHARACTERS), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILES[0]).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config = {
        "bos_token": EOT_TOKEN,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOT_TOKEN,
        "model_max_length": window_tokens,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": EOT_TOKEN,
    }
    (folder / TOKENIZER_FILES[1]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _head(texts: Iterable[str], characters: int) -> Iterable[str]:
    for text in texts:
        yield from cut_between_words(text[:characters])  # a trainer takes 70 bytes for a character of a text
        characters -= len(text)
        if characters <= 0:
            return


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Windows, and what did not become one."""

    tokens: NDArray[Any]
    """[num_windows, window_tokens]."""
    places: NDArray[np.uint32]
    """[num_windows], number of each window among all that were cut, those that were dropped counted."""
    dropped_tokens: dict[str, int]
    """Tokens in no window, by reason; end-of-text tokens count as tokens."""


def cut_joined(documents: Sequence[NDArray[Any]], *, window_tokens: int, eot_id: int, token_dtype: TokenDtype) -> Cut:
    """Join documents, each followed by end-of-text, and cut non-overlapping windows (paper, Section 4).

    Args:
        documents: token ids of each document, without end-of-text.
        window_tokens: tokens of a window, at least 1.
        eot_id: id of end-of-text.
        token_dtype: of the result.
    """
    lengths = np.array([len(document) + 1 for document in documents], np.int64)
    joined = np.full(int(lengths.sum()), eot_id, token_dtype)
    for start, document in zip(np.cumsum(lengths) - lengths, documents, strict=True):
        joined[start : start + len(document)] = document
    num_windows = len(joined) // window_tokens
    windows = joined[: num_windows * window_tokens].reshape(num_windows, window_tokens)
    return _without_empty(windows, eot_id, {LAST_PARTIAL_WINDOW: len(joined) - windows.size}, window_tokens)


def cut_by_document(
    documents: Sequence[NDArray[Any]], *, window_tokens: int, eot_id: int, token_dtype: TokenDtype
) -> Cut:
    """Cut each document, followed by end-of-text, alone; a last window is filled up with end-of-text.

    Everything behind the first end-of-text of a window is padding. A document whose length is a multiple of
    `window_tokens` loses its end-of-text, which would stand alone in a window. Arguments are those of `cut_joined`.
    """
    windows_per_document = np.array([-(-(len(document) + 1) // window_tokens) for document in documents], np.int64)
    windows = np.full((int(windows_per_document.sum()), window_tokens), eot_id, token_dtype)
    flat = windows.reshape(-1)
    starts = (np.cumsum(windows_per_document) - windows_per_document) * window_tokens
    for start, document in zip(starts, documents, strict=True):
        flat[start : start + len(document)] = document
    return _without_empty(windows, eot_id, {}, 1)


def cut_documents(
    documents: Sequence[NDArray[Any]], *, packing: Packing, window_tokens: int, eot_id: int, token_dtype: TokenDtype
) -> Cut:
    """`cut_joined` or `cut_by_document`."""
    cut = cut_joined if packing == "joined" else cut_by_document
    return cut(documents, window_tokens=window_tokens, eot_id=eot_id, token_dtype=token_dtype)


def _without_empty(windows: NDArray[Any], eot_id: int, dropped: dict[str, int], tokens_per_empty: int) -> Cut:
    empty = (windows == eot_id).all(axis=1)
    counted = {**dropped, ONLY_EOT: int(empty.sum()) * tokens_per_empty}
    places = np.flatnonzero(~empty).astype(np.uint32)
    kept = windows[places] if empty.any() else windows
    return Cut(tokens=kept, places=places, dropped_tokens={reason: count for reason, count in counted.items() if count})


def window_texts(tokens: NDArray[Any], tokenizer: DocumentTokenizer, eot_id: int) -> list[str]:
    """The text of each of the windows [num_windows, window_tokens], as the encoder shall read it: documents separated
    by a blank line, without padding and halves of characters at a window's edges."""
    runs: list[NDArray[Any]] = []
    window_of_run: list[int] = []
    for window, row in enumerate(tokens):
        ends = np.append(np.flatnonzero(row == eot_id), len(row))
        starts = np.append(0, ends[:-1] + 1)
        for start, end in zip(starts, ends, strict=True):
            if end > start:
                runs.append(row[start:end])
                window_of_run.append(window)
    texts: list[list[str]] = [[] for _ in range(len(tokens))]
    for window, text in zip(window_of_run, tokenizer.decode(runs), strict=True):
        stripped = text.strip("\ufffd").strip()
        if stripped:
            texts[window].append(stripped)
    return ["\n\n".join(parts) for parts in texts]
