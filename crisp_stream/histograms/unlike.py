"""Signs that a task's examples are unlike the corpus, kept in the provenance of their histogram, and the warnings.

There are two: the cosine of the examples to the centroids of their leaves, and their words that a sample of the corpus
does not have. The first depends on the tree and the encoder, and is weak where the tree is coarse; the second knows
nothing of meaning. Either one warns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from crisp_stream.histograms.history import counted_parts

FAR_COSINE = 0.5
"""Share of the corpus's mean cosine to its leaves' centroids below which examples are called far from it."""
FOREIGN_SHARE = 0.1
"""Share of the letters in foreign examples from which a set is warned of that is not foreign as a whole."""
UNKNOWN_WORDS_KEY = "unknown_words"
"""Key in the provenance of a counted histogram."""
_IF_MEANT = "If it is what you mean, the corpus has nothing like it, and the clusters found say little."


def foreign_limit(corpus_share: float) -> float:
    """Share of letters in unknown words above which text is called foreign: halfway from the corpus's own share to all.

    Args:
        corpus_share: that of a window of the corpus against the others of the sample.
    """
    return (1 + corpus_share) / 2


@dataclass(frozen=True, kw_only=True)
class UnknownWords:
    """Words of a task's examples that a sample of the corpus does not have; shares are of letters, 0 to 1."""

    share: float
    """Share of the examples' letters in such words."""
    foreign_share: float
    """Share of the letters in examples of 200 letters and more whose own share is above the limit."""
    corpus_share: float
    """Share in windows of the sample, each against the others."""
    corpus_windows: int
    """Windows of the sample."""

    def to_json(self) -> dict[str, Any]:
        """Make the entry of a provenance."""
        return {name: value if name == "corpus_windows" else round(value, 4) for name, value in asdict(self).items()}

    @property
    def warning(self) -> str | None:
        """What to say where the examples, or a part of them, are foreign; None otherwise."""
        sample = f"words that a sample of the corpus ({self.corpus_windows:,} windows) does not have"
        if self.share > foreign_limit(self.corpus_share):
            return (
                f"warning: {self.share:.0%} of the examples' letters stand in {sample}; in the corpus itself it is "
                f"{self.corpus_share:.0%}. Another language, or no text? {_IF_MEANT}"
            )
        if self.foreign_share >= FOREIGN_SHARE:
            return (
                f"warning: some of the examples, {self.foreign_share:.0%} of all by their letters, consist mostly of "
                f"{sample}. Another language among them, or no text? Look at them, or leave them out."
            )
        return None


def unknown_words_of(provenance: Mapping[str, Any]) -> UnknownWords | None:
    """Read the words of counted examples from their provenance; None where they were not looked at."""
    entry = provenance.get(UNKNOWN_WORDS_KEY)
    return UnknownWords(**entry) if isinstance(entry, dict) else None


def unlike_warnings(provenance: Mapping[str, Any]) -> Iterator[str]:
    """Say where the examples that a histogram was made of are unlike the corpus, through smoothing and averages."""
    for part, _ in counted_parts(provenance):
        cosine, corpus, words = part.get("cosine"), part.get("corpus_cosine"), unknown_words_of(part)
        foreign = None if words is None else words.warning
        if cosine is not None and corpus is not None and cosine < FAR_COSINE * corpus:
            kind = "Text of another language, or no text?"
            if words is not None and foreign is None:
                kind = f"It is no other language: {1 - words.share:.0%} of its letters stand in words of the corpus."
            yield (
                "warning: the examples are far from the corpus: their mean cosine to the centroids of their leaves is "
                f"{cosine:.2f}, that of the corpus {corpus:.2f}. {kind} {_IF_MEANT}"
            )
        if foreign is not None:
            yield foreign
