"""Check whether a model was trained on the examples that it is judged on, or its data chosen by them.

A test half of a question set says something only while no histogram was counted from it, and a text only while no run
was trained on it. Histograms know their examples, datasets their text (`examples/sketch.py`), and checkpoints know the
examples of their phases, the text of their datasets, and the same of the checkpoints before them. So this is looked up
and not left to file names. Large corpora keep a sample of their text: `contamination` looks through all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crisp_stream.evaluation.trained_texts import FoundTexts, JudgedTexts, find_texts, sketches_of
from crisp_stream.examples.sketch import ExampleSketch
from crisp_stream.models.training_record import components_of

REFUSED_SHARE = 0.01
"""Share of a set from which text that was found in a dataset is refused. Below, a few near copies among the texts of
one source are no reason to judge nothing: they are said, and figures are given without them."""
REFUSED_ESTIMATE = 0.5
"""Share of a set from which it is refused by an estimate: of a very large dataset hardly a text is found one by one."""


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
class TrainedOn:
    """A dataset that a model was trained on, and the judged examples that stand there."""

    run: str | None
    """Name of the run: the model's, or one that it began from."""
    texts: FoundTexts | None
    """None: the checkpoint does not say what the text of the dataset was."""

    @property
    def num_seen(self) -> int | None:
        """Judged examples that stand there; None: that cannot be told."""
        return None if self.texts is None else self.texts.num_seen

    @property
    def is_refused(self) -> bool:
        """Whether so many stand there that figures of the set say nothing."""
        if self.texts is None or not self.texts.num_seen:
            return False
        found = self.texts.found
        return bool(found.mean() >= REFUSED_SHARE) or self.texts.num_seen >= REFUSED_ESTIMATE * len(found)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Judged examples that a model's training record names."""

    num_examples: int
    """Different judged examples."""
    histograms: list[CountedIn]
    """Histograms of the phases that the model was trained in, then those of its parents. Empty: the record says nothing
    of its phases."""
    flags: NDArray[np.bool_]
    """[num_judged], the examples that were found, in a histogram or a dataset."""
    datasets: list[TrainedOn] | None = None
    """Datasets that the model was trained on, then those of its parents. None: no texts were looked for. Empty: the
    record says nothing of its dataset."""

    @property
    def counted_from(self) -> list[CountedIn]:
        """Histograms that were counted from any of the examples."""
        return [counted for counted in self.histograms if counted.num_seen]

    @property
    def trained_on(self) -> list[TrainedOn]:
        """Datasets in which any of the examples stands."""
        return [dataset for dataset in self.datasets or [] if dataset.num_seen]

    @property
    def is_known(self) -> bool:
        """Whether every histogram says which examples it was counted from, and every dataset which text it has."""
        has_histograms = bool(self.histograms) and all(counted.is_known for counted in self.histograms)
        if self.datasets is None:
            return has_histograms
        return has_histograms and bool(self.datasets) and all(one.num_seen is not None for one in self.datasets)

    @property
    def lines(self) -> list[str]:
        """How many of the examples were seen, and where; a line per histogram and dataset."""
        counted_from = [
            f"{'' if counted.exact else 'about '}{counted.num_seen:,} of {self.num_examples:,} were counted in "
            f"{counted.histogram}" + (f" of run {counted.run}" if counted.run else "")
            for counted in self.counted_from
        ]
        return counted_from + [_trained_line(dataset) for dataset in self.trained_on]

    def error(self, set_name: str) -> str | None:
        """Refuse examples that a histogram was counted from, or of which too many stand in a dataset; None where there
        are fewer."""
        if not self.counted_from and not any(dataset.is_refused for dataset in self.trained_on):
            return None
        return (
            f"{set_name}: the model must not have been trained on the examples that it is judged on, or by a histogram "
            f"of them, but {', '.join(self.lines)}. Judge it on others (of questions, the test half of `crisp-stream "
            "split`), or give --allow-seen."
        )

    def warnings(self, set_name: str) -> list[str]:
        """Warn where the record does not say, and of what was seen where that is no error; nothing where all is known
        and clean."""
        lines = [f"warning: {set_name}: {line}." for line in self.lines] if self.error(set_name) is None else []
        unknown = [counted.histogram for counted in self.histograms if not counted.is_known]
        if unknown or not self.histograms:
            of = f"histogram {', '.join(dict.fromkeys(unknown))} does" if unknown else "its checkpoint does"
            lines.append(
                f"warning: {set_name}: whether the model was trained by a histogram of these examples is not known: "
                f"{of} not say (of an earlier version, of embeddings, or of a small sample)."
            )
        return lines + self._text_warnings(set_name)

    def _text_warnings(self, set_name: str) -> list[str]:
        if self.datasets is None:
            return []
        without = [dataset for dataset in self.datasets if dataset.texts is None]
        lines = []
        if without or not self.datasets:
            runs = ", ".join(dict.fromkeys(f"run {dataset.run}" for dataset in without if dataset.run))
            lines.append(
                f"warning: {set_name}: whether the model was trained on these examples is not known: its checkpoint "
                f"does not say what text the dataset{f' of {runs}' if runs else ''} had (written without provenance, "
                "or trained by an earlier version)."
            )
        if any(dataset.texts is not None and dataset.num_seen is None for dataset in self.datasets):
            lines.append(
                f"warning: {set_name}: whether the model was trained on these examples cannot be told by the sample of "
                "its corpus that the checkpoint keeps. `crisp-stream contamination` looks through all of it."
            )
        return lines


def _trained_line(dataset: TrainedOn) -> str:
    texts = dataset.texts
    assert texts is not None, "of those that were found"
    num_copies, num_near = int(texts.copies.sum()), int(texts.near.sum())
    how = f"{num_copies:,} whole, {num_near:,} nearly or as a part"
    of = f"{len(texts.copies):,} stand in the text that {f'run {dataset.run}' if dataset.run else 'it'} was trained on"
    if texts.is_estimate:
        return f"about {texts.num_seen:,} of {of} (found in a sample of it: {how})"
    return f"{texts.num_seen:,} of {of} ({how})"


def seen_examples(training: dict[str, Any], example_ids: ArrayLike, texts: JudgedTexts | None = None) -> Seen:
    """Look up examples in all histograms that a model was trained by, and in all datasets that it was trained on.

    A dataset counts as a whole, whatever part of it a mixture drew.

    Args:
        training: `training` of a `ModelRecord`, a checkpoint's `training_record`, or training.json.
        example_ids: [num_judged], uint64: `example_hash` of documents, `question_hash` of questions.
        texts: hashes of the words of the same examples, in the same order; None: histograms alone are looked up.

    Raises:
        FormatError: the record is damaged.
    """
    ids = np.asarray(example_ids, np.uint64)
    judged, flags = np.unique(ids), np.zeros(len(ids), np.bool_)
    histograms: dict[tuple[Any, ...], CountedIn] = {}
    record: dict[str, Any] | None = training
    while record:
        for phase in (record.get("mixture") or {}).get("phases") or []:
            for part in components_of(phase) if phase.get("samples") != 0 else ():  # one that has not begun: nothing
                sketch = None if part.get("examples") is None else ExampleSketch.from_json(part["examples"])
                counted = _counted(part, sketch, record.get("run_name"), judged)
                if sketch is not None:
                    flags |= np.isin(ids, sketch.hashes)
                # A run that continues the phases of another has these in its record, too: they are said once.
                key = (counted.histogram, counted.num_seen, counted.exact, counted.complete)
                histograms.setdefault(key, counted)
        record = record.get("parent")
    datasets = None
    if texts is not None:
        sketches = sketches_of(training)
        datasets = [
            TrainedOn(run=run, texts=None if sketch is None else find_texts(texts, sketch)) for run, sketch in sketches
        ]
        for dataset in datasets:
            if dataset.texts is not None:
                flags |= dataset.texts.found
    return Seen(num_examples=len(judged), histograms=list(histograms.values()), flags=flags, datasets=datasets)


def _counted(
    phase: dict[str, Any], sketch: ExampleSketch | None, run: str | None, judged: NDArray[np.uint64]
) -> CountedIn:
    name = phase.get("histogram") or "a histogram without a name"
    if sketch is None:
        is_base = phase.get("level") == 0  # all mass on the root is the corpus's own distribution
        return CountedIn(histogram=name, run=run, num_seen=0 if is_base else None, exact=is_base, complete=is_base)
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
