"""Look for judged text in the text that a model was trained on, by the sketches that its datasets keep.

A text was seen where all its words are those of a document, or nearly: where at least half of its n-grams of 8 words
that can be looked up, and at least 3, stand in the dataset. Of a text that shares nothing but phrases with the dataset
that is not so: of 1,442 abstracts of medicine none was found among 31 million n-grams of other sources, and 3 among
11,763 abstracts of the same years, which are near copies (docs/judge/evaluation.md has more of them).

Where a dataset is too large for all its n-grams to be kept, few or none of a text's can be looked up. Then the texts
of a set are looked at together: the share of all n-grams that stand there, from 5 % on, is about the share of the set
that was seen; below, phrases and quotations explain it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.examples.questions import Question
from crisp_stream.examples.sketch import ExampleSketch, TextSketch
from crisp_stream.models.training_record import datasets_of
from crisp_stream.writers.cleaning.text_hashes import NGRAM_WORDS, hash_texts

LEAST_NGRAMS = 3
"""N-grams of a text that must be found: 10 words in a row, or more."""
NEAR_SHARE = 0.5
"""Share of a text's n-grams that must be found."""
POOLED_SHARE = 0.05
"""Share of the n-grams of many texts from which some of these are taken as seen."""
_NGRAMS_PER_TEXT = 64
"""N-grams that are kept of a judged text, those of the smallest hashes."""
_BATCH_TEXTS = 1024


@dataclass(frozen=True, kw_only=True)
class JudgedTexts:
    """Hashes of the texts that a model is judged on."""

    documents: NDArray[np.uint64]
    """[num_texts], of all words; 0 without any."""
    ngrams: NDArray[np.uint64]
    """[num_kept], of all texts one after another, at most 64 of each."""
    text: NDArray[np.int64]
    """[num_kept], the text of each."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> JudgedTexts:
        """Hash texts, some at a time."""
        return cls._of((text, text) for text in texts)

    @classmethod
    def of_questions(cls, questions: Iterable[Question]) -> JudgedTexts:
        """Hash questions: as documents, with the right answer as they are asked; their n-grams are those of the
        question alone, or with prompt and answer where it has fewer than 10 words."""
        return cls._of((row.text(row.answer), _looked_for(row)) for row in questions)

    @classmethod
    def _of(cls, pairs: Iterable[tuple[str, str]]) -> JudgedTexts:
        """Args:
        pairs: of each text, what may be a whole document, and what n-grams are taken of.
        """
        documents, ngrams, text = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        remaining, number = iter(pairs), 0
        while batch := list(itertools.islice(remaining, _BATCH_TEXTS)):
            hashes = hash_texts([ngram_text for _, ngram_text in batch])
            is_alike = all(whole is ngram_text for whole, ngram_text in batch)
            documents.append(hashes.documents if is_alike else hash_texts([whole for whole, _ in batch]).documents)
            ends = np.cumsum(hashes.ngrams_per_text)
            for start, end in itertools.pairwise([0, *ends.tolist()]):
                ngrams.append(np.unique(hashes.ngrams[start:end])[:_NGRAMS_PER_TEXT])
                text.append(np.full(len(ngrams[-1]), number, np.int64))
                number += 1
        return cls(documents=np.concatenate(documents), ngrams=np.concatenate(ngrams), text=np.concatenate(text))

    def __len__(self) -> int:
        return len(self.documents)


def _looked_for(question: Question) -> str:
    least_words = NGRAM_WORDS + LEAST_NGRAMS - 1
    alone = int(hash_texts([question.question]).ngrams_per_text[0]) + NGRAM_WORDS - 1
    return question.question if alone >= least_words else question.text(question.answer)


@dataclass(frozen=True, kw_only=True)
class FoundTexts:
    """Judged texts that stand in a dataset."""

    copies: NDArray[np.bool_]
    """[num_texts], all words of the text are those of a document."""
    near: NDArray[np.bool_]
    """[num_texts], most n-grams of the text stand in the dataset; copies are not among them."""
    num_seen: int | None
    """Texts that were seen: those that were found, or about as many as the samples say where that are more. None: so
    little of the dataset is kept that nothing of the texts could be looked up."""

    @property
    def found(self) -> NDArray[np.bool_]:
        """[num_texts], whether the text is known to have been seen."""
        return self.copies | self.near

    @property
    def is_estimate(self) -> bool:
        """Whether more were seen, about, than were found."""
        return self.num_seen is not None and self.num_seen > int(self.found.sum())


def find_texts(judged: JudgedTexts, sketch: TextSketch) -> FoundTexts:
    """Look the texts up in the sketch of a dataset."""
    has_words = judged.documents != 0
    decided = _is_kept(judged.documents, sketch.documents) & has_words
    copies = decided & _stands_in(judged.documents, sketch.documents)
    kept = _is_kept(judged.ngrams, sketch.ngrams)
    in_text, hits = judged.text[kept], _stands_in(judged.ngrams[kept], sketch.ngrams)
    looked_up = np.bincount(in_text, minlength=len(judged))
    found = np.bincount(in_text[hits], minlength=len(judged))
    near = (found >= LEAST_NGRAMS) & (found >= NEAR_SHARE * looked_up) & ~copies
    long_enough = np.bincount(judged.text, minlength=len(judged)) >= LEAST_NGRAMS
    undecided = long_enough & (looked_up < LEAST_NGRAMS) & ~copies
    estimates = [
        int((copies | near).sum()) + _pooled(found[undecided], looked_up[undecided]) * int(undecided.sum()),
        int(copies.sum()) / max(int(decided.sum()), 1) * int(has_words.sum()),
    ]
    is_known = sketch.documents.exact or bool(decided.any()) or int(looked_up.sum()) >= LEAST_NGRAMS
    return FoundTexts(copies=copies, near=near, num_seen=round(max(estimates)) if is_known else None)


def _is_kept(hashes: NDArray[np.uint64], sketch: ExampleSketch) -> NDArray[np.bool_]:
    """Whether each would be in the sketch if it were in the set."""
    return np.ones(len(hashes), np.bool_) if sketch.exact else hashes <= sketch.hashes[-1]


def _stands_in(hashes: NDArray[np.uint64], sketch: ExampleSketch) -> NDArray[np.bool_]:
    if not len(sketch.hashes):
        return np.zeros(len(hashes), np.bool_)
    at = np.minimum(np.searchsorted(sketch.hashes, hashes), len(sketch.hashes) - 1)
    return sketch.hashes[at] == hashes


def _pooled(found: NDArray[np.int64], looked_up: NDArray[np.int64]) -> float:
    """The share of texts that were seen, by the n-grams of all of them together."""
    share = float(found.sum()) / max(int(looked_up.sum()), 1)
    return share if found.sum() >= LEAST_NGRAMS and share >= POOLED_SHARE else 0.0


def sketches_of(training: dict[str, Any]) -> Sequence[tuple[str | None, TextSketch | None]]:
    """The datasets that a model and those it began from were trained on, each once: run, and sketch of its text.

    Raises:
        FormatError: the record is damaged.
    """
    found: dict[str | None, tuple[str | None, TextSketch | None]] = {}
    record: dict[str, Any] | None = training
    while record:
        for dataset in datasets_of(record) if (record.get("progress") or {}).get("batches") != 0 else ():
            fingerprint, texts = dataset.get("fingerprint"), dataset.get("texts")
            if texts is not None or found.get(fingerprint, (None, None))[1] is None:
                sketch = None if texts is None else TextSketch.from_json(texts)
                found[fingerprint] = (found.get(fingerprint, (record.get("run_name"),))[0], sketch)
        record = record.get("parent")
    return list(found.values())
