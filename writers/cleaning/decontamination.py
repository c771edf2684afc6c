"""Decontamination: documents that hold a part of an evaluation set are removed whole.

A document is contaminated when any 13 consecutive words of it (words: `words.py`) stand in an evaluation text in the
same order: the rule of GPT-3 (Brown et al. 2020, Appendix C), which lm-eval's decontamination follows. Two differences:
GPT-3 cut 200 characters around the match and kept the rest, and ignored n-grams that many documents hold; here the
document goes, and the list of removed documents names the words, so that a phrase everybody writes can be seen.

An evaluation text shorter than 13 words is looked for as a whole when it has at least 8 (or as many as an n-gram has,
where that is fewer); shorter ones would match by chance, are not looked for, and are counted. Every match by hash is
confirmed word by word: no document is removed for an accident of hashing. (Two n-grams of the evaluation sets with one
hash would hide each other: 10^-7 at a million n-grams.)

Speed: the hashes of all runs of 8 words are looked up in a table of bits that fits the cache, at most 1 in 32 of them
set; what is left is looked up by binary search. Measured 47 MB/s per core against 750,000 n-grams, of which hashing
the words takes nearly half.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.writers.cleaning.words import HashedWords, hash_words, hashed_pieces, ngram_hashes
from crisp_stream.writers.options import MAX_NGRAM, MIN_NGRAM, WriteOptions

INDEX_VERSION = 1
_ENTRY = np.dtype([("hash", "<u8"), ("prefix", "<u8"), ("example", "<u4"), ("first_word", "<u4")])
"""An n-gram: its hash, that of its first min_words words, and where it stands."""
_MIN_WORDS = 8
_BATCH_TEXTS = 4096
_BITS_PER_NGRAM = 32
_MAX_BITS = 1 << 31


@dataclass(frozen=True, kw_only=True)
class ContaminationMatch:
    """Words that a document shares with an evaluation text."""

    source: str
    """Name of the evaluation file."""
    row: int
    """Number of the example in that file."""
    words: str
    """The shared words case folded, with single spaces."""

    def describe(self) -> str:
        """One line for the list of removed documents."""
        return f"row {self.row} of {self.source}: {self.words}"


class _Example(NamedTuple):
    source: str
    row: int
    words: str
    """All its words, with single spaces."""


class _Hit(NamedTuple):
    """An n-gram whose hash stands in a text; sorted by where it begins, of those that begin together the longest."""

    begin: int
    """Word of the batch."""
    rank: int
    """Rank of the n-gram's length, the longest first."""
    ngram: int
    """Row of the index."""
    text: int
    """Text of the batch."""


class EvaluationNgrams:
    """The n-grams of evaluation sets, ready to be looked for in documents."""

    def __init__(
        self,
        entries: NDArray[np.void],
        examples: list[_Example],
        *,
        ngram: int,
        min_words: int,
        unchecked: dict[str, int],
    ) -> None:
        """See `build` and `load`."""
        self.ngram = ngram
        """Words of a match."""
        self.min_words = min_words
        """Words that a shorter evaluation text must have to be looked for as a whole."""
        self.unchecked = unchecked
        """Examples too short to be looked for, by evaluation file."""
        self._entries, self._examples = entries, examples
        self._hashes = np.ascontiguousarray(entries["hash"])
        lengths = {min(example.words.count(" ") + 1, ngram) for example in examples}
        self._lengths = sorted(lengths, reverse=True)
        self._bits, self._shift = self._prefix_bits()

    @property
    def num_ngrams(self) -> int:
        """Different n-grams (and whole short texts) looked for."""
        return len(self._entries)

    @classmethod
    def build(
        cls, texts: Iterable[tuple[str, int, str]], *, ngram: int = WriteOptions.ngram, min_words: int | None = None
    ) -> EvaluationNgrams:
        """Index evaluation texts.

        Args:
            texts: name of the evaluation file, row of the example, text; see `read_evaluation_texts`. An example may
                have several texts.
            ngram: words of a match, 2 to 64.
            min_words: of a shorter text that is looked for as a whole, 1 to ngram; 8 when None, or `ngram` if that is
                fewer.

        Raises:
            InputError: a number out of range, or no text that can be looked for.
        """
        if not MIN_NGRAM <= ngram <= MAX_NGRAM:
            raise InputError(
                f"ngram: must be {MIN_NGRAM} to {MAX_NGRAM} words, got {ngram}. "
                f"The usual number is {WriteOptions.ngram}."
            )
        min_words = min(_MIN_WORDS, ngram) if min_words is None else min_words
        if not 1 <= min_words <= ngram:
            raise InputError(f"min_words: must be 1 to {ngram}, the words of an n-gram, got {min_words}.")
        examples: list[_Example] = []
        entries: list[NDArray[np.void]] = []
        is_checked: dict[tuple[str, int], bool] = {}
        remaining = iter(texts)
        while batch := list(itertools.islice(remaining, _BATCH_TEXTS)):
            hashed = hash_words([text for _, _, text in batch])
            runs, prefixes = ngram_hashes(hashed.hashes, ngram), ngram_hashes(hashed.hashes, min_words)
            bounds = hashed.first_word.tolist()
            for (source, row, _), (first, end) in zip(batch, itertools.pairwise(bounds), strict=True):
                checked = end - first >= min_words
                is_checked[source, row] = checked or is_checked.get((source, row), False)
                if checked:
                    hashes = _ngrams_of_text(hashed, runs, first, end, ngram)
                    entry = np.zeros(len(hashes), _ENTRY)
                    entry["hash"], entry["example"] = hashes, len(examples)
                    entry["prefix"] = prefixes[first : first + len(hashes)]
                    entry["first_word"] = np.arange(len(hashes))
                    entries.append(entry)
                    examples.append(_Example(source, row, " ".join(hashed.words(first, end))))
        if not entries:
            raise InputError(
                f"decontamination: at least one evaluation text of {min_words} words is needed, got none among "
                f"{len(is_checked)} examples. Check the evaluation files."
            )
        joined = np.concatenate(entries)
        # The first of equal n-grams, in the order of the examples.
        first_of_hash = np.unique(joined["hash"], return_index=True)[1]
        unchecked: Counter[str] = Counter()
        for (source, _), checked in is_checked.items():
            unchecked[source] += not checked
        return cls(joined[first_of_hash], examples, ngram=ngram, min_words=min_words, unchecked=unchecked)

    def find_all(self, texts: Sequence[str]) -> list[ContaminationMatch | None]:
        """The first match in each document, by where it begins; of matches that begin together the longest."""
        matches: list[ContaminationMatch | None] = [None] * len(texts)
        overlap = self._lengths[0] - 1
        for piece in hashed_pieces(texts, overlap=overlap):
            # A hit may begin where the longest n-gram ends in the piece; further ones are found with the next piece.
            end = len(piece.words.hashes) - (0 if piece.is_last else overlap)
            for hit in sorted(self._hits(piece.words)):
                text = piece.first_text + hit.text
                if hit.begin < end and matches[text] is None and self._is_confirmed(piece.words, hit):
                    example = self._examples[int(self._entries[hit.ngram]["example"])]
                    words = self.words_of_ngram(hit.ngram)
                    matches[text] = ContaminationMatch(source=example.source, row=example.row, words=words)
        return matches

    def find_ngrams(self, texts: Sequence[str]) -> dict[int, int]:
        """Every n-gram that stands in a document, by its number below `num_ngrams`, and the first document with it."""
        hashed = hash_words(texts)
        first_text: dict[int, int] = {}
        for hit in sorted(self._hits(hashed)):
            if hit.ngram not in first_text and self._is_confirmed(hashed, hit):
                first_text[hit.ngram] = hit.text
        return first_text

    def ngrams_of(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The numbers of the n-grams of texts that the index was built from, in their order; none of a short text."""
        hashed = hash_words(texts)
        runs = ngram_hashes(hashed.hashes, self.ngram)
        none = np.zeros(0, np.uint64)
        per_text = [
            _ngrams_of_text(hashed, runs, first, end, self.ngram) if end - first >= self.min_words else none
            for first, end in itertools.pairwise(hashed.first_word.tolist())
        ]
        numbers = np.searchsorted(self._hashes, np.concatenate([none, *per_text]))
        return np.split(numbers, np.cumsum([len(hashes) for hashes in per_text])[:-1])

    def words_of_ngram(self, ngram: int) -> str:
        """The words of an n-gram by its number, case folded, with single spaces."""
        return " ".join(self._ngram_words(ngram))

    def _hits(self, hashed: HashedWords) -> Iterator[_Hit]:
        """Find the n-grams of the index in a batch of texts, by hash."""
        at = self._candidates(hashed.hashes)
        if not len(at):
            return
        text_of = np.searchsorted(hashed.first_word, at, side="right") - 1
        words_left = hashed.first_word[text_of + 1] - at
        for rank, length in enumerate(self._lengths):
            fits = words_left >= length
            begins = at[fits]
            runs = hashed.hashes[begins[:, None] + np.arange(length)]
            hashes = ngram_hashes(runs.reshape(-1), length)[::length]
            entry = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            equal = np.flatnonzero(self._hashes[entry] == hashes)
            columns = (begins[equal], np.full(len(equal), rank), entry[equal], text_of[fits][equal])
            yield from map(_Hit, *(column.tolist() for column in columns))

    @staticmethod
    def files(stem: str) -> tuple[str, str]:
        """Names of the two files of an index, in the order of `save` and `load`."""
        return f"{stem}.ngrams.npy", f"{stem}.examples.jsonl"

    def save(self, paths: Sequence[Path]) -> None:
        """Write the index to two files (see `files`); the same evaluation texts give the same bytes."""
        entries_path, examples_path = paths
        with entries_path.open("wb") as file:
            np.save(file, self._entries, allow_pickle=False)
        header = {
            "index_version": INDEX_VERSION,
            "ngram": self.ngram,
            "min_words": self.min_words,
            "num_ngrams": self.num_ngrams,
            "num_examples": len(self._examples),
            "unchecked": self.unchecked,
            "entries_sha256": hashlib.sha256(self._entries.tobytes()).hexdigest(),
        }
        with examples_path.open("w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(header) + "\n")
            file.writelines(json.dumps(example) + "\n" for example in self._examples)

    @classmethod
    def load(cls, paths: Sequence[Path]) -> EvaluationNgrams:
        """Read an index that `save` wrote; its n-grams are mapped, so the processes of a machine share them.

        Raises:
            FormatError: files of another version, cut short, or not of one index.
        """
        entries_path, examples_path = paths
        try:
            entries = np.load(entries_path, mmap_mode="r", allow_pickle=False)
            with examples_path.open(encoding="utf-8", newline="\n") as file:
                header: dict[str, Any] = json.loads(file.readline())
                records = [json.loads(line) for line in file]
            version = header["index_version"]
            is_whole = (
                version == INDEX_VERSION
                and entries.dtype == _ENTRY
                and len(records) == header["num_examples"]
                and hashlib.sha256(entries.tobytes()).hexdigest() == header["entries_sha256"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{examples_path}: must be an index of evaluation n-grams, got: {error}. "
                "Remove it, so that it is made again."
            ) from error
        if not is_whole:
            raise FormatError(
                f"{examples_path}: must be a whole index of version {INDEX_VERSION} for {entries_path.name}, "
                f"got version {version}, {len(records)} examples and {len(entries)} n-grams. Remove both, so that they "
                "are made again."
            )
        settings = {name: header[name] for name in ("ngram", "min_words", "unchecked")}
        return cls(entries, [_Example(*record) for record in records], **settings)

    def _prefix_bits(self) -> tuple[NDArray[np.uint8], np.uint64]:
        """A table with a bit for the hash of the first `min_words` words of every n-gram."""
        hashes = self._entries["prefix"]
        num_bits = 1 << min(max(len(hashes) * _BITS_PER_NGRAM, 1 << 12), _MAX_BITS).bit_length()
        shift = np.uint64(64 - (num_bits.bit_length() - 1))
        places = hashes >> shift
        bits = np.zeros(num_bits >> 3, np.uint8)
        np.bitwise_or.at(bits, places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8))
        return bits, shift

    def _candidates(self, word_hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        places = ngram_hashes(word_hashes, self.min_words) >> self._shift
        octets = self._bits[places >> np.uint64(3)]
        return np.flatnonzero((octets >> (places & np.uint64(7)).astype(np.uint8)) & 1)

    def _ngram_words(self, ngram: int) -> list[str]:
        entry = self._entries[ngram]
        words = self._examples[int(entry["example"])].words.split(" ")
        first = int(entry["first_word"])
        return words[first : first + self.ngram]

    def _is_confirmed(self, hashed: HashedWords, hit: _Hit) -> bool:
        return hashed.words(hit.begin, hit.begin + self._lengths[hit.rank]) == self._ngram_words(hit.ngram)


def _ngrams_of_text(
    hashed: HashedWords, runs: NDArray[np.uint64], first: int, end: int, ngram: int
) -> NDArray[np.uint64]:
    """The hashes of the n-grams of the text `first` to `end` of a batch, or of a shorter text as a whole; `runs` are
    those of all runs of `ngram` words of the batch."""
    if end - first >= ngram:
        return runs[first : end - ngram + 1]
    return ngram_hashes(hashed.hashes[first:end], end - first)
