"""How many words of a task's examples the corpus does not have: a sign of another language that needs no tree.

On a coarse tree the cosine to the leaves' centroids hardly tells a foreign language from odd English. Words do. A
sample of the corpus's windows is cut into words, and the letters of the examples are counted that stand in words which
the sample lacks. The same is counted of the sample itself, each window against all others, so a small corpus or one of
many languages is its own measure. `benchmarks/histograms/foreign_study.py` compares the sign with two of the tokenizer,
characters per token and the share of single letters: these call text in capitals foreign.

Numbers are no words: only letters are counted. Price: up to 4,096 windows are read, 256 tokens of each, 4 s at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.histograms.unlike import UnknownWords, foreign_limit
from crisp_stream.loading.reader import WindowReader
from crisp_stream.loading.runs import RunPlan
from crisp_stream.writers.cleaning.words import HashedWords, hash_words

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

MOST_WINDOWS = 4096
"""Windows of the corpus that are read."""
LEAST_LETTERS = 200
"""Letters of an example from which it is called foreign by itself; fewer words may all be rare by chance."""
_STRETCH = 8
_WINDOW_TOKENS = 256
_BATCH_CHARACTERS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class CorpusWords:
    """Words of a sample of a corpus."""

    hashes: NDArray[np.uint64]
    """[num_words], sorted."""
    unknown: float
    """Share of the sample's letters in words of one window alone: what the rest of the sample does not have."""
    windows: int
    """Windows of the sample."""

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> CorpusWords:
        """Take the texts of windows, one each."""
        words = hash_words(texts)
        letters, owner = _letters(words), np.repeat(np.arange(len(texts)), np.diff(words.first_word))
        hashes, word = np.unique(words.hashes, return_inverse=True)
        first, last = np.full(len(hashes), len(texts)), np.zeros(len(hashes), np.int64)
        np.minimum.at(first, word, owner)
        np.maximum.at(last, word, owner)
        alone = int(letters[(first == last)[word]].sum())
        return cls(hashes=hashes, unknown=alone / max(int(letters.sum()), 1), windows=len(texts))

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> CorpusWords:
        """Sample the windows of a dataset, in stretches at evenly spaced places.

        Raises:
            CorruptDataError, StorageError: they cannot be read.
        """
        num_windows = dataset.manifest.num_windows
        places = -(-min(MOST_WINDOWS, num_windows) // _STRETCH)
        begin = np.arange(places) * num_windows // places
        windows = np.unique((begin[:, None] + np.arange(_STRETCH)).clip(0, num_windows - 1))
        tokenizer, eot_id = DocumentTokenizer(dataset.tokenizer_path()), dataset.manifest.tokenizer.eot_id
        plan = RunPlan(dataset)
        plan.run_windows = min(plan.run_windows, _STRETCH)
        with WindowReader(dataset, runs=plan) as reader:
            tokens = reader.read(windows)["tokens"][:, :_WINDOW_TOKENS]
        return cls.of_texts(tokenizer.decode([row[row != eot_id] for row in tokens]))

    def lacks(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether the sample has no such word, [num_words]."""
        if not len(self.hashes):
            return np.ones(len(hashes), np.bool_)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return self.hashes[at] != hashes


class UnknownWordsCounter:
    """Counts the letters of examples that pass, and those in words that a corpus does not have."""

    def __init__(self, corpus: CorpusWords) -> None:
        self._corpus = corpus
        self._held: list[tuple[int, str]] = []
        self._held_characters = 0
        self._letters: dict[int, int] = {}
        self._unknown: dict[int, int] = {}

    def watched(self, examples: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of examples as they come, and count them; texts of one number are one example."""
        for number, text in examples:
            self._held.append((number, text))
            self._held_characters += len(text)
            if self._held_characters >= _BATCH_CHARACTERS:
                self._count()
            yield number, text

    def finish(self) -> UnknownWords | None:
        """Sum up the examples so far; None where they have no letters."""
        self._count()
        letters = np.array(list(self._letters.values()), np.int64)
        unknown = np.array(list(self._unknown.values()), np.int64)
        if not letters.sum():
            return None
        is_foreign = (letters >= LEAST_LETTERS) & (unknown > foreign_limit(self._corpus.unknown) * letters)
        return UnknownWords(
            share=float(unknown.sum() / letters.sum()),
            foreign_share=float(letters.sum(where=is_foreign) / letters.sum()),
            corpus_share=self._corpus.unknown,
            corpus_windows=self._corpus.windows,
        )

    def _count(self) -> None:
        words = hash_words([text for _, text in self._held])
        letters = _letters(words)
        sums = [
            np.bincount(
                np.repeat(np.arange(len(self._held)), np.diff(words.first_word)), weights, minlength=len(self._held)
            )
            for weights in (letters, letters * self._corpus.lacks(words.hashes))
        ]
        for (number, _), all_letters, unknown in zip(self._held, *np.array(sums).astype(int).tolist(), strict=True):
            self._letters[number] = self._letters.get(number, 0) + all_letters
            self._unknown[number] = self._unknown.get(number, 0) + unknown
        self._held, self._held_characters = [], 0


def _letters(words: HashedWords) -> NDArray[np.int64]:
    """Letters of each word, [num_words]: its characters without the digits 0 to 9."""
    codes = np.frombuffer(words.normalised.encode("utf-32-le", "surrogatepass"), np.uint32)
    digits = np.concatenate([[0], np.cumsum((codes >= ord("0")) & (codes <= ord("9")))])
    return words.word_end - words.word_start - (digits[words.word_end] - digits[words.word_start])
