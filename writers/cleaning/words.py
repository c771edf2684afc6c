"""Words of documents as 64-bit hashes, for near-duplicates and decontamination.

A word is a run of letters, digits and combining marks of the text in NFKC, case folded (lower case, and "ß" is "ss"),
without code points that are not seen, such as soft hyphens (`examples/ignorable.py`); everything else separates. A
Chinese or Japanese character is a word of its own. So "Don't STOP" is don, t, stop; GPT-3 and lm-eval take punctuation
away in the same spirit.

Words are hashed in numpy, without a Python object per word: a polynomial over the characters mod 2^64, by prefix sums,
then a finaliser that mixes the bits. Measured 105 MB/s per core; `re.findall` with one xxh3_64 per word, 28. The price
is that equal hashes can be made on purpose by someone who tries, so a match that removes a document is confirmed by its
words.

`hash_tokens` cuts otherwise: punctuation is kept, as bag-of-n-grams models of text have it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.examples.ignorable import without_ignorable
from crisp_stream.hashing import splitmix64_finalise

PIECE_CHARACTERS = 1 << 20
"""Text whose words are hashed at once, about 30 MB of memory."""
_BLANK, _ASCII_SEPARATOR = re.compile(r"\s"), re.compile("[^0-9A-Za-z]")
_BLOCK_CHARACTERS = 1 << 15
_CHARACTER_BASE = 0x9E3779B97F4A7C15 | 1
_WORD_BASE = 0xD1342543DE82EF95 | 1
_SEPARATOR, _LETTER, _ALONE = 0, 1, 2
_PUNCTUATION = 2
_ALONE_RANGES = (
    (0x3005, 0x3008),
    (0x3040, 0x3100),
    (0x31F0, 0x3200),
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, 0x32400),
)
"""Iteration marks, kana and ideographs: scripts without spaces whose characters are near to words."""

_Codes = NDArray[np.uint8] | NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class HashedWords:
    """The words of a batch of texts, as hashes and as places."""

    hashes: NDArray[np.uint64]
    """[num_words], of the words of all texts one after another."""
    first_word: NDArray[np.int64]
    """[num_texts + 1], text i has the words first_word[i] to first_word[i + 1]."""
    normalised: str
    """All texts as they were cut (in NFKC and case folded, or in lower case), joined by line ends."""
    word_start: NDArray[np.int64]
    """[num_words], character of `normalised` where the word begins."""
    word_end: NDArray[np.int64]
    """[num_words], character behind the word."""

    def words(self, first: int, end: int) -> list[str]:
        """The words `first` to `end` of the batch as strings."""
        spans = zip(self.word_start[first:end].tolist(), self.word_end[first:end].tolist(), strict=True)
        return [self.normalised[start:stop] for start, stop in spans]


@dataclass(frozen=True, kw_only=True)
class WordsPiece:
    """Words of some texts, or of a piece of one."""

    first_text: int
    """Number of the first of the texts."""
    words: HashedWords
    """Of whole texts, or of one text from `num_repeated` words before the piece on."""
    num_repeated: int
    """Words at the beginning that end the piece before, of the same text."""
    is_last: bool
    """The texts end with this piece."""


def hash_words(texts: Sequence[str]) -> HashedWords:
    """Cut a batch of texts into words and hash each; the hash of a word depends on nothing but the word.

    It takes about 15 bytes of memory per character while it runs.
    """
    return _hash_parts([text.lower() if text.isascii() else _folded(text) for text in texts], _word_bounds)


def hashed_pieces(texts: Sequence[str], *, overlap: int = 0) -> Iterator[WordsPiece]:
    """`hash_words` in pieces of about a million characters, so that a large text takes no more memory than a small one.

    Many small texts are one piece, a large text is several: it is cut at white space, or in
    ASCII behind any sign that parts words, and
    each piece of it but the first begins with the last `overlap` words of the piece before.
    """
    first = held_characters = 0
    for at, text in enumerate(texts):
        if at > first and held_characters + len(text) > PIECE_CHARACTERS:
            yield WordsPiece(first_text=first, words=hash_words(texts[first:at]), num_repeated=0, is_last=True)
            first, held_characters = at, 0
        if len(text) <= PIECE_CHARACTERS:
            held_characters += len(text)
            continue
        words: HashedWords | None = None
        for start, end in _cuts(text):
            piece = hash_words([text[start:end]])
            num_repeated = 0 if words is None else min(overlap, len(words.hashes))
            words = piece if words is None else _behind(words, num_repeated, piece)
            yield WordsPiece(first_text=at, words=words, num_repeated=num_repeated, is_last=end == len(text))
        first, held_characters = at + 1, 0
    if first < len(texts):
        yield WordsPiece(first_text=first, words=hash_words(texts[first:]), num_repeated=0, is_last=True)


def _cuts(text: str) -> Iterator[tuple[int, int]]:
    start, separator = 0, _ASCII_SEPARATOR if text.isascii() else _BLANK
    while start < len(text):
        cut = separator.search(text, start + PIECE_CHARACTERS)
        end = len(text) if cut is None else cut.end()
        yield start, end
        start = end


def _behind(before: HashedWords, num_repeated: int, piece: HashedWords) -> HashedWords:
    """A piece of a text with the last words of the piece before it in front."""
    first = len(before.hashes) - num_repeated
    first_character = int(before.word_start[first]) if num_repeated else len(before.normalised)
    moved = len(before.normalised) - first_character + 1
    return HashedWords(
        hashes=np.concatenate([before.hashes[first:], piece.hashes]),
        first_word=np.array([0, num_repeated + len(piece.hashes)], np.int64),
        normalised=f"{before.normalised[first_character:]}\n{piece.normalised}",
        word_start=np.concatenate([before.word_start[first:] - first_character, piece.word_start + moved]),
        word_end=np.concatenate([before.word_end[first:] - first_character, piece.word_end + moved]),
    )


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", without_ignorable(text)).casefold()


def hash_tokens(texts: Sequence[str]) -> HashedWords:
    """Cut texts as NLTK's `wordpunct_tokenize` cuts their lower case, and hash each piece.

    A piece is a run of word characters (letters, digits, "_"), or a run of others that are not white space: "don't
    stop..." is don, ', t, stop, ... . The regular expression is `\\w+|[^\\w\\s]+`.

    Returns:
        As `hash_words`; "words" are the pieces.
    """
    return _hash_parts([text.lower() for text in texts], _token_bounds)


def _hash_parts(
    parts: list[str], bounds: Callable[[_Codes], tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> HashedWords:
    lengths = np.fromiter((len(part) for part in parts), np.int64, len(parts))
    joined = "\n".join(parts)
    codes = (
        np.frombuffer(joined.encode("ascii"), np.uint8)
        if joined.isascii()
        else np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    )
    starts, ends = bounds(codes)
    text_end = np.cumsum(lengths + 1) - 1
    first_word = np.concatenate([np.zeros(1, np.int64), np.searchsorted(starts, text_end)])
    return HashedWords(
        hashes=_hash_spans(codes, starts, ends),
        first_word=first_word,
        normalised=joined,
        word_start=starts,
        word_end=ends,
    )


def symbol_flags(text: str) -> NDArray[np.bool_]:
    """Whether each character of a text, [num_characters], is no letter, mark, digit or white space."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return _symbols()[codes]


def ngram_hashes(word_hashes: NDArray[np.uint64], num_words: int) -> NDArray[np.uint64]:
    """Hash every run of `num_words` consecutive words.

    Args:
        word_hashes: [n].
        num_words: per run, at least 1.

    Returns:
        [max(n - num_words + 1, 0)], uint64; runs that cross the border of two texts are among them.

    Raises:
        InputError: num_words below 1.
    """
    if num_words < 1:
        raise InputError(f"num_words: a run has at least 1 word, got {num_words}. Give a positive number.")
    num_runs = max(len(word_hashes) - num_words + 1, 0)
    rolled: NDArray[np.uint64] | None = None
    covered, length, doubled = 0, 1, word_hashes
    # Runs of 1, 2, 4, … words by doubling; that of num_words is joined from them by its binary digits.
    while covered < num_words:
        if num_words & length:
            piece = doubled[covered : covered + num_runs]
            rolled = piece.copy() if rolled is None else rolled * _power(_WORD_BASE, length) + piece
            covered += length
        if covered < num_words:
            doubled = doubled[:-length] * _power(_WORD_BASE, length) + doubled[length:]
            length *= 2
    if rolled is None or num_runs == 0:
        return np.zeros(0, np.uint64)
    return splitmix64_finalise(rolled + np.uint64(num_words))


def _word_bounds(codes: _Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if codes.dtype == np.uint8:
        letter = _character_classes()[:256][codes].view(np.bool_)  # no ASCII character stands alone
        bounds = np.flatnonzero(np.diff(letter, prepend=False, append=False))
        return bounds[0::2], bounds[1::2]
    before, after = _neighbours(_character_classes(), codes)
    border = (before != after) | (before == _ALONE)
    return np.flatnonzero(border & (after != _SEPARATOR)), np.flatnonzero(border & (before != _SEPARATOR))


def _token_bounds(codes: _Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    before, after = _neighbours(_token_classes(), codes)
    border = before != after
    return np.flatnonzero(border & (after != _SEPARATOR)), np.flatnonzero(border & (before != _SEPARATOR))


def _neighbours(class_of: NDArray[np.uint8], codes: _Codes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The classes before and behind each place between characters, the ends included."""
    classes = np.zeros(len(codes) + 2, np.uint8)
    np.take(class_of, codes, out=classes[1:-1])
    return classes[:-1], classes[1:]


def _hash_spans(codes: _Codes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    hashes = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        # The words that end in a block of characters; a longer word is a block alone.
        begin = int(starts[first])
        end = max(int(np.searchsorted(ends, begin + _BLOCK_CHARACTERS, side="right")), first + 1)
        length = int(ends[end - 1]) - begin
        if length > _BLOCK_CHARACTERS:
            hashes[first] = _polynomial(codes[begin : begin + length])
            first = end
            continue
        powers, inverses = _powers(_BLOCK_CHARACTERS)
        sums = np.zeros(length + 1, np.uint64)
        np.multiply(codes[begin : begin + length], powers[:length], out=sums[1:])
        np.cumsum(sums, out=sums)
        at = starts[first:end] - begin
        hashes[first:end] = (sums[ends[first:end] - begin] - sums[at]) * inverses[at]
        first = end
    return splitmix64_finalise(hashes)


def _polynomial(codes: _Codes) -> np.uint64:
    """The hash of one long word before it is finalised, block by block."""
    powers, _ = _powers(_BLOCK_CHARACTERS)
    total = np.uint64(0)
    for start in range(0, len(codes), _BLOCK_CHARACTERS):
        block = codes[start : start + _BLOCK_CHARACTERS]
        of_block = (block * powers[: len(block)]).sum(dtype=np.uint64)
        total = np.add(total, np.multiply(of_block, _power(_CHARACTER_BASE, start)))
    return total


@lru_cache(maxsize=1)
def _powers(length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    inverse = pow(_CHARACTER_BASE, -1, 1 << 64)
    return _geometric(_CHARACTER_BASE, length), _geometric(inverse, length)


def _geometric(base: int, length: int) -> NDArray[np.uint64]:
    factors = np.full(length, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


def _power(base: int, exponent: int) -> np.uint64:
    return np.uint64(pow(base, exponent, 1 << 64))


@lru_cache(maxsize=1)
def _character_classes() -> NDArray[np.uint8]:
    """[0x110000] of separator, letter, alone. Takes a fifth of a second, once per process."""
    categories = np.array([unicodedata.category(chr(code))[0] for code in range(0x110000)])
    classes = np.isin(categories, ["L", "M", "N"]).astype(np.uint8)
    for start, end in _ALONE_RANGES:
        classes[start:end] *= _ALONE
    return classes


@lru_cache(maxsize=1)
def _token_classes() -> NDArray[np.uint8]:
    """[0x110000] of separator, word character, punctuation, as `\\s` and `\\w` of regular expressions are."""
    characters = "".join(map(chr, range(0x110000)))
    classes = np.full(len(characters), _PUNCTUATION, np.uint8)
    classes[[character.isalnum() for character in characters]] = _LETTER
    classes[[character.isspace() for character in characters]] = _SEPARATOR
    classes[ord("_")] = _LETTER
    return classes


@lru_cache(maxsize=1)
def _symbols() -> NDArray[np.bool_]:
    """[0x110000], what `symbol_flags` tells of each character."""
    return (_character_classes() == _SEPARATOR) & (_token_classes() != _SEPARATOR)
