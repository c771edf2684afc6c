"""Which examples of a set are alike, so that they are held out together.

Alike are examples of the same words, and near-duplicates: those that share 60 % of their word pairs, by estimate. A
copy of what is held out among what is learnt from makes every held-out score too good, and the choices that are made by
it wrong: with each of 100 examples three times, tuning reported 1.37 nats and its histogram was worth -0.13; with
copies held out together, 0.44 and 0.52. The rule is wider than that for duplicate documents: it also joins questions
about one passage, and forms with other numbers filled in. Groups grow by likeness, so two of a group may be less alike.

Of embeddings without text only equal ones are alike. Price: 240 bytes and about 0.1 ms per example of 1 kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import import_extra
from crisp_stream.examples.questions import Question, question_hash

LIKENESS = 0.6
"""Share of word pairs in common, estimated, from which two examples are near-duplicates."""

_WORDS_PER_GRAM = 2
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class AlikeExamples:
    """The examples of a set, each with the first one that it is like."""

    first: NDArray[np.int64]
    """[num_examples], number of the first example of the group of each; its own where none before is alike."""
    exact: int
    """Examples that have the words of an earlier one."""
    near: int
    """Further examples that are near-duplicates of an earlier one."""

    @property
    def num_groups(self) -> int:
        """Examples that are left where alike ones count as one."""
        return len(self.first) - self.exact - self.near

    def to_json(self) -> dict[str, int]:
        """Make the entry of a provenance."""
        return {"exact": self.exact, "near": self.near, "groups": self.num_groups}

    def groups(self) -> list[list[int]]:
        """Every example once; members and groups in the order of the set, a group where its first member is."""
        members: dict[int, list[int]] = {}
        for number, first in enumerate(self.first.tolist()):
            members.setdefault(first, []).append(number)
        return list(members.values())


class AlikeBuilder:
    """Finds alike examples among those that come one by one."""

    def __init__(self) -> None:
        from crisp_stream.writers.cleaning.near_duplicates import NearSettings

        self._settings = NearSettings(threshold=LIKENESS, words_per_gram=_WORDS_PER_GRAM)
        self._held: list[str] = []
        self._held_characters = 0
        self._seen: dict[bytes | int, int] = {}
        self._same: list[tuple[int, int]] = []
        self._sketches: list[Any] = []
        self._sketched = 0

    def add_question(self, question: Question) -> None:
        """Take a question as the next example: by its words and those of its choices, in any order."""
        number = self._sketched + len(self._held)
        self._same.append((number, self._seen.setdefault(question_hash(question), number)))
        self.add("\n".join([question.question, *sorted(question.choices, key=str.casefold)]))

    def add(self, text: str) -> None:
        """Take the next example."""
        self._held.append(text)
        self._held_characters += len(text)
        if self._held_characters >= _BATCH_CHARACTERS:
            self._sketch()

    def finish(self) -> AlikeExamples:
        """Group all examples so far. Raises MissingExtraError: datasketch or scipy is not installed."""
        self._sketch()
        same = np.array(self._same, np.int64).reshape(-1, 2)
        if not self._sketches:
            return AlikeExamples(first=np.empty(0, np.int64), exact=0, near=0)
        exact = _first_of_groups(same, self._sketched)
        first = _first_of_groups(np.concatenate([same, self._near()]), self._sketched)
        num_exact, num_alike = (int(np.count_nonzero(one != np.arange(len(one)))) for one in (exact, first))
        return AlikeExamples(first=first, exact=num_exact, near=num_alike - num_exact)

    def _sketch(self) -> None:
        from crisp_stream.writers.cleaning.near_duplicates import sketch_texts
        from crisp_stream.writers.cleaning.words import hash_words

        if not self._held:
            return
        hashed = hash_words(self._held)
        for at, (first, end) in enumerate(pairwise(hashed.first_word.tolist())):
            # A text of signs alone has no words: it is like those of the same signs.
            words = hashed.hashes[first:end].tobytes() or self._held[at].encode("utf-8", "surrogatepass")
            number = self._sketched + at
            self._same.append((number, self._seen.setdefault(words, number)))
        self._sketches.append(sketch_texts(self._held, self._settings))
        self._sketched += len(self._held)
        self._held, self._held_characters = [], 0

    def _near(self) -> NDArray[np.int64]:
        from crisp_stream.writers.cleaning.near_duplicates import Sketches, find_near_duplicates

        found = find_near_duplicates(Sketches.joined(self._sketches), self._settings)
        return np.stack([found["place"], found["first"]], axis=1).astype(np.int64)


def _first_of_groups(pairs: NDArray[np.int64], num_examples: int) -> NDArray[np.int64]:
    """The first example of the connected component of each."""
    sparse = import_extra("scipy.sparse", extra="write", purpose="finding near-duplicates")
    graph = import_extra("scipy.sparse.csgraph", extra="write", purpose="finding near-duplicates")
    shape = (num_examples, num_examples)
    joined = sparse.coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape)
    labels = graph.connected_components(joined, directed=False)[1]
    return np.unique(labels, return_index=True)[1][labels].astype(np.int64)
