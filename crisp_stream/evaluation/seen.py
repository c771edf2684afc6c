"""Check whether a model's data was chosen by the examples that it is judged on.

A test half of a question set says something only while no histogram was counted from it. Histograms know their examples
(`examples.sketch`), and checkpoints know the examples of their phases and of the checkpoints before them, so this is
looked up and not left to file names. It says nothing of what stands in the corpus: that is `contamination`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crisp_stream.examples.sketch import ExampleSketch


@dataclass(frozen=True, kw_only=True)
class CountedIn:
    """A histogram that a model was trained by, and the number of judged examples that it was counted from."""

    histogram: str
    """Name of its file."""
    run: str | None
    """Name of the run: the model's, or one that it began from."""
    num_seen: int | None
    """Judged examples that it was counted from, scaled up from a sample where not `exact`. None: the histogram does not
    say, or none of the examples is in its sample."""
    exact: bool
    """Whether every judged example was compared with all counted ones, and not with a sample of them."""
    complete: bool
    """Whether the histogram was made from known examples alone."""

    @property
    def is_known(self) -> bool:
        """Whether the number of judged examples is known for all its sources."""
        return self.num_seen is not None and self.complete


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Judged examples that a model's training record names."""

    num_examples: int
    """Different judged examples."""
    histograms: list[CountedIn]
    """Histograms of the phases that the model was trained in, then those of its parents. Empty: the record says nothing
    of its phases."""

    @property
    def counted_from(self) -> list[CountedIn]:
        """Histograms that were counted from any of the examples."""
        return [counted for counted in self.histograms if counted.num_seen]

    @property
    def is_known(self) -> bool:
        """Whether every histogram says which examples it was counted from."""
        return bool(self.histograms) and all(counted.is_known for counted in self.histograms)

    def error(self, set_name: str) -> str | None:
        """Explain which histograms were counted from the examples; None where none was."""
        if not self.counted_from:
            return None
        parts = [
            f"{'' if counted.exact else 'about '}{counted.num_seen:,} of {self.num_examples:,} were counted in "
            f"{counted.histogram}" + (f" of run {counted.run}" if counted.run else "")
            for counted in self.counted_from
        ]
        return (
            f"{set_name}: the model must not have been trained by a histogram of the examples that it is judged on, "
            f"but {', '.join(parts)}. Judge it on others (the test half of `crisp-stream split`), or give --allow-seen."
        )

    def warning(self, set_name: str) -> str | None:
        """Warn where the record does not say whether examples were counted; None where it does."""
        if self.is_known:
            return None
        names = [counted.histogram for counted in self.histograms if not counted.is_known]
        of = f"histogram {', '.join(dict.fromkeys(names))} does" if names else "its checkpoint does"
        return (
            f"warning: {set_name}: whether the model was trained by a histogram of these examples is not known: {of} "
            "not say (of an earlier version, of embeddings, or of a small sample)."
        )


def seen_examples(training: dict[str, Any], example_ids: ArrayLike) -> Seen:
    """Look up examples in all histograms that a model was trained by.

    Args:
        training: `training` of a `ModelRecord`, a checkpoint's `training_record`, or training.json.
        example_ids: [num_examples], uint64: `example_hash` of documents, `question_hash` of questions.

    Raises:
        FormatError: the record is damaged.
    """
    judged = np.unique(np.asarray(example_ids, np.uint64))
    histograms: dict[tuple[Any, ...], CountedIn] = {}
    record: dict[str, Any] | None = training
    while record:
        for phase in (record.get("mixture") or {}).get("phases") or []:
            if phase.get("samples") != 0:  # a phase that has not begun changed nothing
                counted = _counted(phase, record.get("run_name"), judged)
                # A run that continues the phases of another has these in its record, too: they are said once.
                key = (counted.histogram, counted.num_seen, counted.exact, counted.complete)
                histograms.setdefault(key, counted)
        record = record.get("parent")
    return Seen(num_examples=len(judged), histograms=list(histograms.values()))


def _counted(phase: dict[str, Any], run: str | None, judged: NDArray[np.uint64]) -> CountedIn:
    name = phase.get("histogram") or "a histogram without a name"
    if phase.get("examples") is None:
        is_base = phase.get("level") == 0  # all mass on the root is the corpus's own distribution
        return CountedIn(histogram=name, run=run, num_seen=0 if is_base else None, exact=is_base, complete=is_base)
    sketch = ExampleSketch.from_json(phase["examples"])
    decided = judged if sketch.exact else judged[judged <= sketch.hashes[-1]]
    hits = int(np.isin(decided, sketch.hashes).sum())
    num_seen = None if not len(decided) else round(hits / len(decided) * len(judged))
    return CountedIn(
        histogram=name,
        run=run,
        num_seen=num_seen if num_seen is None else max(num_seen, hits),
        exact=sketch.exact,
        complete=sketch.complete,
    )
