"""Word pieces: what an encoder reads of a text, made apart from the encoder's forward pass.

Tokenising wants many cheap cores, the forward pass wants few devices, and loading torch costs 3 s and 700 MB a process.
So word pieces are files between the two: a tokenising task imports `tokenizers` alone (0.05 s). BERT's tokenizers work
word by word, and a window of 1,024 tokens is four times as long as what MiniLM reads of it, so for them only the
beginning of a text is tokenised, cut before a blank: measured 2,100 windows/s per core against 1,250. A part's pieces
are some hundred kilobytes, read whole; memory-mapping would gain nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import Reads

_CHARACTERS_PER_PIECE = 6
"""English has 4.4 characters for each of MiniLM's word pieces; a beginning that proves too short is made again."""


@dataclass(frozen=True)
class Pieces:
    """Word pieces of texts: each text is one sequence, or several that are embedded apart and averaged."""

    ids: NDArray[Any]
    """[sum of lengths] uint16 or uint32: all sequences end to end, the encoder's special tokens included."""
    lengths: NDArray[np.int32]
    """[num_sequences], ids of each sequence, special tokens included."""
    sequences_per_text: NDArray[np.int32]
    """[num_texts], at least 1 each."""

    def __len__(self) -> int:
        return len(self.sequences_per_text)

    @classmethod
    def from_sequences(cls, texts: Iterable[Sequence[Sequence[int]]], vocab_size: int) -> Pieces:
        """Collect the sequences of each text, in the narrowest type that holds every id below `vocab_size`."""
        sequences_per_text: list[int] = []
        sequences: list[Sequence[int]] = []
        for of_text in texts:
            sequences_per_text.append(len(of_text))
            sequences += of_text
        lengths = np.array([len(sequence) for sequence in sequences], np.int32)
        dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        ids = np.fromiter(chain.from_iterable(sequences), dtype, count=int(lengths.sum()))
        return cls(ids, lengths, np.array(sequences_per_text, np.int32))

    @classmethod
    def joined(cls, pieces: Sequence[Pieces]) -> Pieces:
        """The pieces of consecutive texts as one; at least one batch of them."""
        return cls(
            *(
                np.concatenate([getattr(one, name) for one in pieces])
                for name in ("ids", "lengths", "sequences_per_text")
            )
        )

    def save(self, path: Path) -> None:
        """Write one .npz file under its final name, whole or not at all; equal pieces give equal bytes."""
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, ids=self.ids, lengths=self.lengths, sequences_per_text=self.sequences_per_text)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Pieces:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["ids"], arrays["lengths"], arrays["sequences_per_text"])


class TextSplitter(Protocol):
    """Texts to the id sequences that an encoder reads."""

    vocab_size: int

    def sequences(self, texts: Sequence[str]) -> Iterable[list[list[int]]]:
        """One sequence per text, or all stretches of each; special tokens included."""
        ...


class FastSplitter:
    """Through the `tokenizers` library, on one core."""

    def __init__(self, tokenizer: Any, *, max_length: int, reads: Reads, prompt: str = "") -> None:
        """Args:
            tokenizer: a tokenizers.Tokenizer; its truncation and padding are set here.
            max_length: ids of a sequence, special tokens included.
            reads: all gives every stretch of a text, first its first.
            prompt: stands before each text.

        Raises:
            InputError: max_length leaves no place beside the special tokens.
        """
        check_max_length(max_length, tokenizer.num_special_tokens_to_add(False))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._tokenizer, self._max_length, self._reads, self._prompt = tokenizer, max_length, reads, prompt
        self._cuts = reads == "first" and splits_at_blanks(json.loads(tokenizer.to_str()))

    def sequences(self, texts: Sequence[str]) -> Iterable[list[list[int]]]:
        """One sequence per text, or all stretches of each; special tokens included."""
        for text in texts:
            text = self._prompt + text
            end = text.rfind(" ", 0, _CHARACTERS_PER_PIECE * self._max_length) if self._cuts else -1
            if end > 0:
                beginning = self._encode(text[:end]).ids
                if len(beginning) == self._max_length:
                    yield [beginning]
                    continue
            encoding = self._encode(text)
            yield (
                [encoding.ids, *(more.ids for more in encoding.overflowing)] if self._reads == "all" else [encoding.ids]
            )

    def _encode(self, text: str) -> Any:
        # The batch call leaves out the offsets; a batch of one starts no threads.
        return self._tokenizer.encode_batch_fast([text])[0]


class SlowSplitter:
    """Through a tokenizer of `transformers` that has no fast version."""

    def __init__(self, tokenizer: Any, *, max_length: int, reads: Reads, prompt: str = "") -> None:
        """Args as of `FastSplitter`, with a PreTrainedTokenizer. Raises InputError."""
        check_max_length(max_length, tokenizer.num_special_tokens_to_add(False))
        self.vocab_size = len(tokenizer)
        self._tokenizer, self._reads, self._prompt = tokenizer, reads, prompt
        self._stretch = max_length - tokenizer.num_special_tokens_to_add(False)

    def sequences(self, texts: Sequence[str]) -> Iterable[list[list[int]]]:
        """One sequence per text, or all stretches of each; special tokens included."""
        for text in texts:
            ids = self._tokenizer.encode(self._prompt + text, add_special_tokens=False, verbose=False)
            ends = range(0, max(len(ids), 1), self._stretch) if self._reads == "all" else range(1)
            yield [self._tokenizer.build_inputs_with_special_tokens(ids[at : at + self._stretch]) for at in ends]


def check_max_length(max_length: int, num_special_tokens: int) -> None:
    """Raises InputError when there is no place for a single word piece."""
    if max_length <= num_special_tokens:
        raise InputError(
            f"encoder max_length: must be more than the {num_special_tokens} special tokens of the encoder, "
            f"got {max_length}. Leave it out to read as much as the encoder was made for."
        )


def splits_at_blanks(content: dict[str, Any]) -> bool:
    """Say whether by tokenizer.json pieces before a blank are independent of what follows: BERT's normaliser and word
    splitter."""
    return (
        (content.get("normalizer") or {}).get("type") == "BertNormalizer"
        and (content.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and not any(" " in token["content"] for token in content.get("added_tokens") or [])
    )


def says_everything(content: dict[str, Any], config: dict[str, Any]) -> bool:
    """Say whether `transformers` would load tokenizer.json as it is.

    Its BERT classes overrule the normaliser by tokenizer_config.json, `config`.
    """
    normaliser = content.get("normalizer") or {}
    return normaliser.get("type") != "BertNormalizer" or (
        normaliser.get("lowercase", True) == config.get("do_lower_case", True)
        and normaliser.get("strip_accents") == config.get("strip_accents")
        and normaliser.get("handle_chinese_chars", True) == config.get("tokenize_chinese_chars", True)
    )


@dataclass(frozen=True)
class Batch:
    """Sequences that go through the model together."""

    rows: NDArray[np.int64]
    """[batch], which sequences they are."""
    ids: NDArray[np.int32]
    """[batch, longest], padded."""
    lengths: NDArray[np.int32]
    """[batch], ids that are not padding."""


def pad_batches(pieces: Pieces, pieces_per_batch: int, *, pad_id: int, left: bool) -> Iterator[Batch]:
    """Batches of sequences of similar length, the longest first, each at most `pieces_per_batch` ids with padding.

    Only a single longer sequence has more. `left` pads on the left.
    """
    starts = np.cumsum(pieces.lengths, dtype=np.int64) - pieces.lengths
    order = np.argsort(-pieces.lengths, kind="stable")
    at = 0
    while at < len(order):
        longest = int(pieces.lengths[order[at]])
        rows = order[at : at + max(1, pieces_per_batch // longest)]
        lengths = pieces.lengths[rows]
        columns = np.arange(longest) - (longest - lengths[:, None] if left else 0)
        inside = (columns >= 0) & (columns < lengths[:, None])
        ids = np.full(inside.shape, pad_id, np.int32)
        ids[inside] = pieces.ids[(starts[rows, None] + columns)[inside]]
        yield Batch(rows, ids, lengths)
        at += len(rows)


def unit_vectors(
    vectors: NDArray[np.float32], lengths: NDArray[np.int32], sequences_per_text: NDArray[np.int32]
) -> NDArray[np.float16]:
    """Each text's vector: the mean over all its word pieces, which is the mean of its stretches' means weighted by
    their pieces.

    Args:
        vectors: [num_sequences, dim].
        lengths: [num_sequences], word pieces.
        sequences_per_text: [num_texts], at least 1 each.

    Returns:
        [num_texts, dim], L2 norm 1 up to float16 rounding. A text whose vector is 0 gets the first axis, so that every
        vector has a norm and a place in the tree.
    """
    if len(vectors) > len(sequences_per_text):
        starts = np.cumsum(sequences_per_text) - sequences_per_text
        vectors = np.add.reduceat(vectors * lengths[:, None].astype(np.float32), starts, axis=0)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.maximum(norms, 1e-12)
    units[norms[:, 0] == 0, 0] = 1
    return units.astype(np.float16)
