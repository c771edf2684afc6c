"""Texts to tokens to windows: the tokenizer, and the pure functions that cut.

Encoding goes through tiktoken where that gives the ids of the trained tokenizer, because it is six times as fast
(measured: 1.6M against 0.26M tokens a second and core); tiktoken merges bytes by rank, which equals a GPT-2-style
byte-level BPE. Whether it does is checked on the first documents, id by id; any other tokenizer is used through
`tokenizers`. (The two agreed on every code point of Unicode, between letters, digits and blanks.)
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.dataset import TOKENIZER_FILES, Packing, TokenizerRecord
from crisp_stream.format.mds import TokenDtype

EOT_TOKEN = "<|endoftext|>"
SAMPLE_CHARACTERS = 20 << 20
"""Text from the start of the documents that a tokenizer is trained on, about 20 MB: 10 s of CPU for 32,000."""
MIN_VOCAB_SIZE = 257
LAST_PARTIAL_WINDOW = "last partial window of a part"
ONLY_EOT = "window of end-of-text only"

_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# tiktoken's regular expressions overflow their stack on about a million blanks in a row.
_LONG_BLANKS = re.compile(r"\s{50000}")


def train_tokenizer(texts: Iterable[str], folder: Path, *, vocab_size: int = 32_000, window_tokens: int = 1024) -> None:
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
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def copy_tokenizer(source: str, folder: Path, *, window_tokens: int = 1024) -> None:
    """Bring a given tokenizer into `folder` as tokenizer.json and tokenizer_config.json, tokenizer.json byte for byte.

    Args:
        source: a folder, a path of a tokenizer.json, or a hub name.
        folder: where to.
        window_tokens: model_max_length, where the source has no tokenizer_config.json.

    Raises:
        InputError: no tokenizer.json there, or no end-of-text token in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(source)
    if not path.exists():
        _save_from_hub(source, folder)
    else:
        origin = path / TOKENIZER_FILES[0] if path.is_dir() else path
        if not origin.is_file():
            raise InputError(
                f"{source}: a tokenizer folder must hold {TOKENIZER_FILES[0]}, got none. Save a fast tokenizer there."
            )
        shutil.copyfile(origin, folder / TOKENIZER_FILES[0])
        config = origin.with_name(TOKENIZER_FILES[1])
        if config.is_file():
            shutil.copyfile(config, folder / TOKENIZER_FILES[1])
        else:
            fallback = {
                "eos_token": EOT_TOKEN,
                "model_max_length": window_tokens,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
            (folder / TOKENIZER_FILES[1]).write_text(json.dumps(fallback, indent=2) + "\n", encoding="utf-8")
    DocumentTokenizer(folder).check()


def _save_from_hub(name: str, folder: Path) -> None:
    library: Any = import_extra("transformers", extra="write", purpose="loading a tokenizer by its hub name")
    try:
        saved = library.AutoTokenizer.from_pretrained(name, use_fast=True).save_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"tokenizer {name}: must be a folder, a tokenizer.json or a hub name that can be reached, got: {reason} "
            "Check the path."
        ) from error
    for file in map(Path, saved):
        if file.name not in TOKENIZER_FILES:
            file.unlink(missing_ok=True)
    if not (folder / TOKENIZER_FILES[0]).is_file():
        raise InputError(
            f"tokenizer {name}: must have a fast version (tokenizer.json), got only a slow one. Choose another."
        )


class DocumentTokenizer:
    """Encodes plain text to ids, never to special tokens, and decodes windows for the encoder."""

    def __init__(self, folder: Path, *, fast: bool = False) -> None:
        """Args:
        folder: with tokenizer.json and tokenizer_config.json.
        fast: encode through tiktoken; True only where `equals_tiktoken` said so.
        """
        self.folder = folder
        self.fast = fast

    @cached_property
    def _tokenizer(self) -> Any:
        library: Any = import_extra("tokenizers", extra="write", purpose="tokenising documents")
        try:
            tokenizer = library.Tokenizer.from_file(str(self.folder / TOKENIZER_FILES[0]))
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                f"{self.folder}: tokenizer.json must be readable, got: {error}. Restore the file."
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def eot_token(self) -> str:
        """The end-of-text token: eos_token of tokenizer_config.json, else `<|endoftext|>`. Raises InputError."""
        path = self.folder / TOKENIZER_FILES[1]
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = config.get("eos_token") or EOT_TOKEN
        token = named["content"] if isinstance(named, dict) else str(named)
        if self._tokenizer.token_to_id(token) is None:
            raise InputError(
                f"{self.folder}: the tokenizer must have an end-of-text token, got no entry {token!r}. "
                "Add one and name it as eos_token in tokenizer_config.json."
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
        """What the manifest keeps of the tokenizer."""
        content = (self.folder / TOKENIZER_FILES[0]).read_bytes()
        return TokenizerRecord(
            fingerprint=hashlib.sha256(content).hexdigest(),
            vocab_size=self.vocab_size,
            eot_token=self.eot_token,
            eot_id=self.eot_id,
        )

    def check(self) -> None:
        """Raises InputError when plain text that holds the end-of-text token's letters would become the token."""
        for ids in self._encode_slow([f"a{self.eot_token}b", self.eot_token]):
            if self.eot_id in ids:
                raise InputError(
                    f"{self.folder}: plain text must never become the end-of-text token, but {self.eot_token!r} did. "
                    "Mark it as a special token in tokenizer.json."
                )

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
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def _encode_fast(self, text: str) -> NDArray[Any]:
        encoding, _, id_of_rank = self._tiktoken
        if len(text) >= 50_000 and _LONG_BLANKS.search(text):
            return np.array(self._encode_slow([text])[0], self.token_dtype)
        return id_of_rank[encoding.encode_ordinary(text)]

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
    joined = _with_eot(documents, eot_id, token_dtype)
    num_windows = len(joined) // window_tokens
    windows = joined[: num_windows * window_tokens].reshape(num_windows, window_tokens)
    return _without_empty(windows, eot_id, {LAST_PARTIAL_WINDOW: len(joined) - windows.size}, window_tokens)


def cut_by_document(
    documents: Sequence[NDArray[Any]], *, window_tokens: int, eot_id: int, token_dtype: TokenDtype
) -> Cut:
    """Cut each document, followed by end-of-text, on its own; a last window is filled up with end-of-text.

    Everything behind the first end-of-text of a window is padding. A document whose length is a multiple of
    `window_tokens` loses its end-of-text, which would stand alone in a window.

    Args:
        documents: token ids of each document, without end-of-text.
        window_tokens: tokens of a window, at least 1.
        eot_id: id of end-of-text.
        token_dtype: of the result.
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


def _with_eot(documents: Sequence[NDArray[Any]], eot_id: int, token_dtype: TokenDtype) -> NDArray[Any]:
    lengths = np.array([len(document) + 1 for document in documents], np.int64)
    joined = np.full(int(lengths.sum()), eot_id, token_dtype)
    for start, document in zip(np.cumsum(lengths) - lengths, documents, strict=True):
        joined[start : start + len(document)] = document
    return joined


def _without_empty(windows: NDArray[Any], eot_id: int, dropped: dict[str, int], tokens_per_empty: int) -> Cut:
    empty = (windows == eot_id).all(axis=1)
    counted = {**dropped, ONLY_EOT: int(empty.sum()) * tokens_per_empty}
    places = np.flatnonzero(~empty).astype(np.uint32)
    kept = windows[places] if empty.any() else windows
    return Cut(tokens=kept, places=places, dropped_tokens={reason: count for reason, count in counted.items() if count})


def window_texts(tokens: NDArray[Any], tokenizer: DocumentTokenizer, eot_id: int) -> list[str]:
    """The text of each window, as the encoder shall read it: documents separated by a blank line, no padding.

    Args:
        tokens: [num_windows, window_tokens].
        tokenizer: decodes; halves of characters at a window's edges are left away.
        eot_id: id of end-of-text.
    """
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
