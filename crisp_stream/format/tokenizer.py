"""The tokenizer of a dataset, applied to documents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.manifest import TOKENIZER_FILES, TokenizerRecord
from crisp_stream.format.mds import TokenDtype

EOT_TOKEN = "<|endoftext|>"
_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# tiktoken's regular expressions overflow their stack on about a million blanks in a row.
_LONG_BLANKS = re.compile(r"\s{50000}")
_BLANKS_FROM = 50_000
_PIECE_CHARACTERS = 1 << 16
_BORDER = re.compile(r"[A-Za-z](?= [A-Za-z])|\S\n(?=\S)")
"""Behind it GPT-2's pattern begins a new piece, whatever stands before and after."""
_RARE = ["\U00012031", "\U0001fae8", "龘"]
"""A cuneiform sign, a young emoji and a rare Chinese character: a vocabulary of pieces hardly has all three."""
_NO_TEXT = "\U0010fffe"
"""A code point that is no character, and so in no text."""
_SHOWN = 8
SLOW_BYTES_PER_CHARACTER = 112
"""Memory that `tokenizers` takes for a text while it encodes it."""
_SLOW_BATCH_CHARACTERS = 1 << 18
_RANKS_AT_ONCE = 1 << 20


class DocumentTokenizer:
    """Encodes plain text to ids, never to special tokens, and decodes windows for the encoder."""

    def __init__(self, folder: Path, *, fast: bool = False, name: str | None = None) -> None:
        """`folder` holds the tokenizer's files; `fast`: encode through tiktoken, where `equals_tiktoken` said so;
        `name` is what messages call it, the folder when None."""
        self.folder = folder
        self.fast = fast
        self._name = name or str(folder)

    @cached_property
    def _library(self) -> Any:
        return import_extra("tokenizers", extra="write", purpose="tokenising documents")

    @cached_property
    def _tokenizer(self) -> Any:
        path = self.folder / TOKENIZER_FILES[0]
        try:
            return _for_documents(self._library.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                f"{self._name}: tokenizer.json must be readable, got: {error}. Restore the file."
            ) from error

    @cached_property
    def _encoding(self) -> Any:
        """The tokenizer for encoding alone: the letters of special tokens become ordinary pieces.

        `tokenizers` can leave special tokens out of account, but a Unigram model finds them in its vocabulary all the
        same, because SentencePiece's kinds of pieces did not come along. There they get names that no text has.
        """
        content = json.loads((self.folder / TOKENIZER_FILES[0]).read_bytes())
        model = content["model"]
        if model.get("type") != "Unigram":
            return self._tokenizer
        special = {token["content"] for token in content.get("added_tokens") or [] if token.get("special")}
        special.add(self.eot_token)
        model["vocab"] = [
            [f"{_NO_TEXT}{at}", score] if piece in special else [piece, score]
            for at, (piece, score) in enumerate(model["vocab"])
        ]
        content["added_tokens"] = [one for one in content.get("added_tokens") or [] if one["content"] not in special]
        content["post_processor"] = None
        return _for_documents(self._library.Tokenizer.from_str(json.dumps(content)))

    @cached_property
    def eot_token(self) -> str:
        """The end-of-text token: eos_token of tokenizer_config.json, else `<|endoftext|>`. Raises InputError."""
        path = self.folder / TOKENIZER_FILES[1]
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = config.get("eos_token") or EOT_TOKEN
        token = named["content"] if isinstance(named, dict) else str(named)
        if self._tokenizer.token_to_id(token) is None:
            special = [one.content for one in self._tokenizer.get_added_tokens_decoder().values() if one.special]
            there = f"; its special tokens are {' '.join(special[:_SHOWN])}" if special else ""
            raise InputError(
                f"{self._name}: the tokenizer must have an end-of-text token, got no entry {token!r}{there}. Name one "
                "of its tokens with --eot-token, or as eos_token in tokenizer_config.json."
            )
        return token

    @cached_property
    def eot_id(self) -> int:
        """Id of the end-of-text token."""
        return int(self._tokenizer.token_to_id(self.eot_token))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def token_dtype(self) -> TokenDtype:
        """The narrowest type that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    def record(self) -> TokenizerRecord:
        """Record of the tokenizer for the manifest."""
        content = (self.folder / TOKENIZER_FILES[0]).read_bytes()
        return TokenizerRecord(
            fingerprint=hashlib.sha256(content).hexdigest(),
            vocab_size=self.vocab_size,
            eot_token=self.eot_token,
            eot_id=self.eot_id,
        )

    def check(self) -> None:
        """Raises InputError where text would become the end-of-text token: its letters, or what is unknown."""
        for ids in self._encode_slow([f"a{self.eot_token}b", self.eot_token]):
            if self.eot_id in ids:
                raise InputError(
                    f"{self._name}: plain text must never become the end-of-text token, but {self.eot_token!r} did. "
                    "Mark it as a special token in tokenizer.json, or name another one with --eot-token."
                )
        for ids in self._encode_slow(_RARE):
            if self.eot_id in ids:
                raise InputError(
                    f"{self._name}: the end-of-text token must not stand for unknown characters, got "
                    f"{self.eot_token!r}, which does. Name another token with --eot-token."
                )

    def unknown_characters(self) -> str | None:
        """What to know of text that the tokenizer cannot hold: None where every character has ids of its own."""
        [whole, *decoded] = self.decode([np.array(ids) for ids in self._encode_slow([" ".join(_RARE), *_RARE])])
        if all(rare in text for rare, text in zip(_RARE, decoded, strict=True)):
            return None
        return f"tokenizer: rare characters are lost ({' '.join(_RARE)} becomes {whole.strip()})"

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Ids of each text without special tokens, [num_tokens] of `token_dtype` each."""
        if self.fast:
            return [self._encode_fast(text) for text in texts]
        return [np.array(ids, self.token_dtype) for ids in self._encode_slow(texts)]

    def decode(self, token_runs: Sequence[NDArray[Any]]) -> list[str]:
        """The text of each run of tokens."""
        return self._tokenizer.decode_batch([run.tolist() for run in token_runs], skip_special_tokens=False)

    def equals_tiktoken(self, texts: Sequence[str], *, log: Callable[[str], None]) -> bool:
        """Whether tiktoken gives exactly the ids of the tokenizer on `texts`; says why not, through `log`."""
        reason = self._tiktoken[1]
        if reason is None:
            probes = [*texts, f"a {EOT_TOKEN} b", "naïve  \t\n café 中文 🙂\u200d↔️ \u0000 1٣² it's I'LL"]
            equal = all(
                np.array_equal(self._encode_fast(text), ids)
                for text, ids in zip(probes, self._encode_slow(probes), strict=True)
            )
            reason = None if equal else "its ids differ from tiktoken's on the first documents"
        if reason is not None:
            log(f"tokenizer: encoding with `tokenizers` (about 6 times slower), because {reason}")
        return reason is None

    def _encode_slow(self, texts: Sequence[str]) -> list[list[int]]:
        # "fast" leaves out places in the text: a third of the time, and a quarter of 150 bytes per character.
        encode = self._encoding.encode_batch_fast
        return [encoding.ids for some in _batches(texts) for encoding in encode(some, add_special_tokens=False)]

    def _encode_fast(self, text: str) -> NDArray[Any]:
        encoding, _, id_of_rank = self._tiktoken
        if len(text) >= _BLANKS_FROM and _LONG_BLANKS.search(text):
            if len(text) > _PIECE_CHARACTERS and len(pieces := list(cut_between_words(text))) > 1:
                return np.concatenate([self._encode_fast(piece) for piece in pieces])
            return np.array(self._encode_slow([text])[0], self.token_dtype)
        ranks = encoding.encode_to_numpy(text, disallowed_special=())
        ids = np.empty(len(ranks), self.token_dtype)
        for start in range(0, len(ranks), _RANKS_AT_ONCE):  # numpy makes 8 bytes of each index
            ids[start : start + _RANKS_AT_ONCE] = id_of_rank[ranks[start : start + _RANKS_AT_ONCE]]
        return ids

    @cached_property
    def _tiktoken(self) -> tuple[Any, str | None, NDArray[Any]]:
        """(encoding, why it cannot be used, HF id of each tiktoken rank)."""
        content = json.loads((self.folder / TOKENIZER_FILES[0]).read_bytes())
        ranks_or_reason = _byte_ranks(content)
        if isinstance(ranks_or_reason, str):
            return None, ranks_or_reason, np.zeros(0, self.token_dtype)
        library: Any = import_extra("tiktoken", extra="write", purpose="tokenising documents")
        vocab = content["model"]["vocab"]
        ids = np.array([vocab[piece] for piece in ranks_or_reason], self.token_dtype)
        byte_of = byte_of_character()
        ranks = {bytes(byte_of[c] for c in piece): rank for rank, piece in enumerate(ranks_or_reason)}
        return library.Encoding("documents", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={}), None, ids


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts that are encoded at once; a large one alone."""
    some: list[str] = []
    characters = 0
    for text in texts:
        if some and characters + len(text) > _SLOW_BATCH_CHARACTERS:
            yield some
            some, characters = [], 0
        some.append(text)
        characters += len(text)
    if some:
        yield some


def cut_between_words(text: str) -> Iterator[str]:
    """A text in stretches of about 65,000 characters, longer where it has no border of words: a tokenizer that splits
    text as GPT-2 does makes of them the pieces that it makes of the whole."""
    start = 0
    while start < len(text):
        border = _BORDER.search(text, start + _PIECE_CHARACTERS)
        end = len(text) if border is None else border.end()
        yield text[start:end]
        start = end


def _for_documents(tokenizer: Any) -> Any:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte, inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _byte_ranks(content: dict[str, Any]) -> list[str] | str:
    """The vocabulary in merge order, bytes first; or why the tokenizer is not a GPT-2-style byte-level BPE."""
    model, splitter = content["model"], content.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or any(
        model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    ):
        return "it is not a plain BPE"
    if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space") or not splitter.get("use_regex", True):
        return "it does not split text as GPT-2 does"
    if content.get("normalizer") is not None:
        return "it normalises text"
    if any(not token.get("special") for token in content.get("added_tokens", [])):
        return "it has added tokens that plain text can become"
    vocab = model["vocab"]
    bytes_first = list(byte_of_character())
    if any(character not in vocab for character in bytes_first):
        return "its vocabulary lacks single bytes"
    merged = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    pieces = list(dict.fromkeys([*bytes_first, *merged]))
    return (
        pieces if all(piece in vocab for piece in pieces) else "its merges make pieces that are not in its vocabulary"
    )
