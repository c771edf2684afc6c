"""Sets of examples, kept in a bounded number of bytes: those of a histogram, and the text of a dataset.

Kept are the hashes of the examples, and of many the smallest 16,384: a uniform sample, of which one can say for every
other example whose hash is below the largest kept one whether it was among them (KMV, or bottom-k, sketches: Bar-Yossef
et al. 2002, Cohen & Kaplan 2007). Sketches of several sets join into that of their union. So a test set that shares an
example with a task of up to 16,384 is noticed for certain, with a larger one if the sample holds it, at 131 kB per
histogram; a Bloom filter for as many examples would be smaller and neither joins nor thins.

Of the text of a dataset two such sets are kept, its documents and its n-grams (`TextSketch`).
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError

MAX_HASHES = 16_384
"""Hashes that a histogram keeps."""
RECORD_HASHES = 8_192
"""Hashes that a checkpoint keeps of each phase, 87 kB as text."""
MAX_DOCUMENTS = 16_384
"""Hashes of documents that a dataset keeps, and a checkpoint of each dataset that it was trained on."""
MAX_NGRAMS = 65_536
"""Hashes of n-grams of words, likewise: 524 kB, 700 kB as text."""
PROVENANCE_KEY = "example_hashes"
"""Key in a histogram's provenance."""

_HASHES = "hashes"
_BUFFERED = 1 << 18
_WITHOUT_EXAMPLES = ("base", "generalist")
"""Names of histograms that come from the corpus alone."""


@dataclass(frozen=True, kw_only=True)
class ExampleSketch:
    """The examples of a set: all of their hashes, or the smallest."""

    hashes: NDArray[np.uint64]
    """[num_hashes], sorted, each once."""
    num_examples: int
    """Examples that were counted, repeated ones each time."""
    exact: bool
    """Whether all hashes are kept. Otherwise all that are at most the last one."""
    complete: bool = True
    """Whether all sources of the set are known. Otherwise some of them keep no hashes."""

    def thinned(self, max_hashes: int) -> ExampleSketch:
        """Keep at most so many hashes of the set."""
        if len(self.hashes) <= max_hashes:
            return self
        return dataclasses.replace(self, hashes=self.hashes[:max_hashes], exact=False)

    def to_json(self) -> dict[str, Any]:
        """Make plain data: `number` of examples, `exact`, `complete` and `hashes`, little-endian u64 in base64."""
        return {
            "number": self.num_examples,
            "exact": self.exact,
            "complete": self.complete,
            _HASHES: base64.b64encode(np.ascontiguousarray(self.hashes, "<u8").tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, record: Any) -> ExampleSketch:
        """Read what `to_json` gave. Raises FormatError."""
        try:
            hashes = np.frombuffer(base64.b64decode(record[_HASHES], validate=True), "<u8").astype(np.uint64)
            if (hashes[1:] <= hashes[:-1]).any():
                raise ValueError("they are not sorted")
            if not len(hashes) and not record["exact"]:
                raise ValueError("there are none")
            return cls(
                hashes=hashes,
                num_examples=int(record["number"]),
                exact=bool(record["exact"]),
                complete=bool(record["complete"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the hashes of counted examples are damaged ({error!r}). Count them again.") from error


class SketchBuilder:
    """Makes the sketch of examples that come one by one, or many at once."""

    def __init__(self, max_hashes: int | None = None) -> None:
        """`max_hashes` that are kept; MAX_HASHES when None."""
        self._max_hashes = MAX_HASHES if max_hashes is None else max_hashes
        self._held: list[int] = []
        self._kept = np.empty(0, np.uint64)
        self._num_examples = 0

    def add(self, example: int) -> None:
        """Count an example by its hash."""
        self._held.append(example)
        self._num_examples += 1
        if len(self._held) >= _BUFFERED:
            self._merge(np.array(self._held, np.uint64))
            self._held = []

    def add_all(self, hashes: NDArray[np.uint64]) -> None:
        """Count many examples by their hashes."""
        self._num_examples += len(hashes)
        is_full = len(self._kept) > self._max_hashes
        self._merge(hashes[hashes < self._kept[-1]] if is_full else hashes)

    def finish(self) -> ExampleSketch:
        """The sketch of all examples so far."""
        self._merge(np.array(self._held, np.uint64))
        exact = len(self._kept) <= self._max_hashes
        return ExampleSketch(hashes=self._kept[: self._max_hashes], num_examples=self._num_examples, exact=exact)

    def _merge(self, hashes: NDArray[np.uint64]) -> None:
        """Keep one hash more than a sketch does, which tells that it is not exact."""
        sorted_hashes = np.sort(np.concatenate([self._kept, hashes]))  # np.unique takes 10 times as long
        is_first = np.diff(sorted_hashes, prepend=~sorted_hashes[:1]) != 0
        self._kept = sorted_hashes[is_first][: self._max_hashes + 1]


def join_sketches(sketches: Iterable[ExampleSketch | None], *, max_hashes: int | None = None) -> ExampleSketch | None:
    """The sketch of the union of sets, of at most `max_hashes` (MAX_HASHES when None); None where no set is known."""
    every = list(sketches)
    known = [sketch for sketch in every if sketch is not None]
    if not known:
        return None
    hashes = np.unique(np.concatenate([sketch.hashes for sketch in known]))
    sampled = [sketch.hashes[-1] for sketch in known if not sketch.exact]
    if sampled:
        hashes = hashes[hashes <= min(sampled)]
    joined = ExampleSketch(
        hashes=hashes,
        num_examples=sum(sketch.num_examples for sketch in known),
        exact=not sampled,
        complete=len(known) == len(every) and all(sketch.complete for sketch in known),
    )
    return joined.thinned(MAX_HASHES if max_hashes is None else max_hashes)


@dataclass(frozen=True, kw_only=True)
class TextSketch:
    """The text of a set of documents: hashes of whole documents, and of their n-grams of words.

    Writers hash both (`writers/cleaning/text_hashes.py`). Of up to 16,384 documents every one is known. Of up to 65,536
    different n-grams, half a megabyte of text, too; of more, the same share of every document's.
    """

    documents: ExampleSketch
    ngrams: ExampleSketch

    @classmethod
    def joined(cls, sketches: Sequence[TextSketch]) -> TextSketch:
        """The sketch of all documents of some sets, at least one."""
        documents = join_sketches([sketch.documents for sketch in sketches], max_hashes=MAX_DOCUMENTS)
        ngrams = join_sketches([sketch.ngrams for sketch in sketches], max_hashes=MAX_NGRAMS)
        assert documents is not None, "there is a set"
        assert ngrams is not None, "there is a set"
        return cls(documents=documents, ngrams=ngrams)

    def to_json(self) -> dict[str, Any]:
        """Make plain data: both sets as `ExampleSketch.to_json` does."""
        return {"documents": self.documents.to_json(), "ngrams": self.ngrams.to_json()}

    @classmethod
    def from_json(cls, record: Any) -> TextSketch:
        """Read what `to_json` gave. Raises FormatError."""
        try:
            return cls(**{name: ExampleSketch.from_json(record[name]) for name in ("documents", "ngrams")})
        except (FormatError, KeyError, TypeError) as error:
            raise FormatError(
                f"what a checkpoint says of the text that it was trained on is damaged ({error!r}). Take another copy."
            ) from error


def sketch_of(provenance: Any) -> ExampleSketch | None:
    """The examples that a histogram of this provenance was made from, however it was computed from others.

    Returns:
        None where it does not say: an older histogram, one of embeddings, or one made by other code.

    Raises:
        FormatError: damaged hashes.
    """
    if not isinstance(provenance, dict):
        return None
    if PROVENANCE_KEY in provenance:
        return ExampleSketch.from_json(provenance[PROVENANCE_KEY])
    if provenance.get("name") in _WITHOUT_EXAMPLES:
        return ExampleSketch(hashes=np.empty(0, np.uint64), num_examples=0, exact=True)
    for key in ("smooth", "interpolate", "carry"):
        if key in provenance:
            return sketch_of(provenance[key])
    averaged = provenance.get("average")
    return join_sketches(map(sketch_of, averaged)) if isinstance(averaged, Sequence) else None


def without_hashes(record: dict[str, Any]) -> dict[str, Any]:
    """A provenance or a training record to be read by people: sketches at any depth without their hashes."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(item) for key, item in value.items() if key != _HASHES}
        return [shown(item) for item in value] if isinstance(value, list) else value

    return shown(record)
