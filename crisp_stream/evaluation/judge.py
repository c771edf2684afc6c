"""Judging models on sets of texts and of questions: all sets by one model, then the next model.

What can be wrong with the sets is found before the first model is loaded. Results are saved as soon as a model is done
with a set, so that an interruption loses one set of one model at most.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.evaluation.models import JudgedModel, check_names, open_model
from crisp_stream.evaluation.multiple_choice import judge_questions
from crisp_stream.evaluation.perplexity import Progress, judge_texts
from crisp_stream.evaluation.seen import seen_examples
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.questions import Question, question_hash, read_questions
from crisp_stream.models.checkpoint import checkpoints_by_batch
from crisp_stream.ranks import join_ranks, together
from crisp_stream.results.results import QuestionResults, TextResults

if TYPE_CHECKING:
    from crisp_stream.evaluation.contamination import Contamination
    from crisp_stream.evaluation.question_sets import QuestionSet
    from crisp_stream.writers.documents.inputs import Layout

Log = Callable[[str], None]
ProgressOf = Callable[[str, int], Progress]
"""Given what is judged and its number of examples, takes how many more are done."""

_ENDINGS = (".zst", ".gz", ".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".arrow")


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """Held-out documents that are judged as one set."""

    inputs: tuple[str, ...]
    """Files, folders or globs, as for `crisp-stream write`."""
    text_column: str = "text"
    limit: int | None = None
    filters: tuple[str, ...] = ()
    layout: Layout = "files"
    questions: bool = False
    """The inputs are multiple-choice questions, each a text of its prompt with the right answer (CRISP, Figure 8b)."""

    @property
    def name(self) -> str:
        """The first input's name without its endings, and how many others there are."""
        name, rest = PurePosixPath(self.inputs[0].rstrip("/")).name, len(self.inputs) - 1
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
        return name + (".text" if self.questions else "") + (f"+{rest}" if rest else "")

    def read(self, dropped: dict[str, int] | None = None) -> Iterator[str]:
        """The documents, in the order of their files; `dropped` receives how many are none, by reason."""
        if self.questions:
            yield from (question.text(question.answer) for question in self.read_questions())
            return
        from crisp_stream.writers.documents.documents import read_documents
        from crisp_stream.writers.documents.drops import DropCounts

        counts = DropCounts()
        yield from read_documents(
            self.inputs,
            text_column=self.text_column,
            limit=self.limit,
            filters=self.filters,
            layout=self.layout,
            counts=counts,
        )
        if dropped is not None:
            dropped.update(counts.as_dict())

    def read_questions(self) -> list[Question]:
        """The questions that the texts are made of."""
        return [question for path in self.inputs for question in read_questions(path)][: self.limit]


@dataclass(frozen=True, kw_only=True)
class _ScannedTexts:
    """A set of texts, read through once."""

    texts: TextSet
    example_ids: NDArray[np.uint64]
    """[num_documents], as results have them."""
    lookup_ids: NDArray[np.uint64]
    """[num_documents], as histograms and contamination have them: of questions `question_hash`."""
    dropped: dict[str, int]
    """Documents that cannot be judged, by reason."""


def each_checkpoint(folders: Sequence[str]) -> list[str]:
    """All checkpoints of runs, in order. Raises InputError: a folder without any."""
    found = []
    for folder in folders:
        checkpoints = list(checkpoints_by_batch(folder).values())
        if not checkpoints:
            raise InputError(f"{folder}: holds no checkpoints of a run (ep…-ba…-rank0.pt). Name a run's save_folder.")
        found += checkpoints
    return found


def judge(
    checkpoints: Sequence[str],
    *,
    names: Sequence[str] = (),
    text_sets: Sequence[TextSet] = (),
    question_sets: Sequence[QuestionSet] = (),
    contamination: Contamination | None = None,
    allow_seen: bool = False,
    batch_size: int = 8,
    out: str | None = None,
    log: Log = lambda line: None,
    progress: ProgressOf = lambda what, total: lambda more: None,
) -> list[TextResults | QuestionResults]:
    """Judge models on sets. Processes of a launcher share the work; all of them call this, and all get the results.

    Args:
        checkpoints: each as for `open_model`.
        names: one per checkpoint; made of run and batch when empty.
        text_sets: sets of held-out documents.
        question_sets: sets of multiple-choice questions.
        contamination: which examples have a part in the training data.
        allow_seen: judge also on examples that a histogram of the model's mixture was counted on.
        batch_size: full contexts per forward pass.
        out: folder or prefix that receives a file of results per model and set.
        log: takes a line: what was dropped, warnings.
        progress: as the type says.

    Returns:
        Model by model, set by set.

    Raises:
        InputError: no checkpoint or set, a bad set, two of one name, or examples that the mixture was made from.
        FormatError, StorageError: as `open_model`.
    """
    _check(checkpoints, names, [each.name for each in (*text_sets, *question_sets)])
    join_ranks()
    scanned = together(lambda: [_scan(texts) for texts in text_sets])
    for line in (*map(_dropped_line, scanned), *(line for each in question_sets for line in each.warnings)):
        if line:
            log(f"warning: {line}")
    sets = [(each.texts.name, each.lookup_ids) for each in scanned]
    sets += [(each.name, each.example_ids) for each in question_sets]
    example_ids = {**dict(sets), **{each.texts.name: each.example_ids for each in scanned}}
    flags = together(lambda: {name: contamination.flags(ids) for name, ids in sets} if contamination else {})
    found: list[TextResults | QuestionResults] = []
    for number, checkpoint in enumerate(checkpoints):
        name = names[number] if names else None
        model = together(lambda checkpoint=checkpoint, name=name: open_model(checkpoint, name=name))
        check_names([model.record.name, *{results.model_name for results in found}])
        _warn(model, sets, contamination, allow_seen=allow_seen, log=log)
        for judged in _judge_model(model, scanned, question_sets, batch_size=batch_size, progress=progress):
            results = _flagged(judged, example_ids, flags)
            found.append(results)
            if out is not None:
                together(lambda results=results: _save(results, out))
        del model
        gc.collect()
    return found


def _check(checkpoints: Sequence[str], names: Sequence[str], set_names: Sequence[str]) -> None:
    if not checkpoints or not set_names:
        raise InputError("judging needs a checkpoint, and texts or questions: one of them is missing.")
    if names and len(names) != len(checkpoints):
        raise InputError(f"names: must be as many as checkpoints, {len(checkpoints)}, got {len(names)}.")
    for what, given in (("checkpoint", checkpoints), ("set", set_names), ("name", names)):
        for each in given:
            if list(given).count(each) > 1:
                raise InputError(f"{what} {each} is given twice. Leave one out, or rename a file.")


def _scan(texts: TextSet) -> _ScannedTexts:
    dropped: dict[str, int] = {}
    example_ids = np.array([example_hash(text) for text in texts.read(dropped)], np.uint64)
    lookup_ids = example_ids
    if texts.questions:
        lookup_ids = np.array([question_hash(question) for question in texts.read_questions()], np.uint64)
    return _ScannedTexts(texts=texts, example_ids=example_ids, lookup_ids=lookup_ids, dropped=dropped)


def _dropped_line(scanned: _ScannedTexts) -> str | None:
    if not scanned.dropped:
        return None
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in scanned.dropped.items())
    return f"{scanned.texts.name}: {sum(scanned.dropped.values()):,} documents were left out: {reasons}."


def _warn(
    model: JudgedModel,
    sets: Sequence[tuple[str, NDArray[np.uint64]]],
    contamination: Contamination | None,
    *,
    allow_seen: bool,
    log: Log,
) -> None:
    """Raises InputError: examples that the model's mixture was made from."""
    if contamination is not None and (line := contamination.dataset_warning(model.record.dataset_fingerprint)):
        log(f"{model.record.name}: {line}")
    for name, example_ids in sets:
        seen = seen_examples(model.record.training, example_ids)
        if (problem := seen.error(name)) is None:
            if line := seen.warning(name):
                log(f"{model.record.name}: {line}")
        elif allow_seen:
            log(f"{model.record.name}: warning: {problem}")
        else:
            raise InputError(f"{model.record.name}: {problem}")


def _judge_model(
    model: JudgedModel,
    scanned: Sequence[_ScannedTexts],
    question_sets: Sequence[QuestionSet],
    *,
    batch_size: int,
    progress: ProgressOf,
) -> Iterator[TextResults | QuestionResults]:
    for each in scanned:
        name = each.texts.name
        told = progress(f"{model.record.name} on {name}", len(each.example_ids))
        results = judge_texts(model, each.texts.read(), set_name=name, batch_size=batch_size, progress=told)
        yield replace(results, notes={**results.notes, "dropped": each.dropped})
    for questions in question_sets:
        told = progress(f"{model.record.name} on {questions.name}", len(questions.questions))
        yield judge_questions(model, questions, batch_size=batch_size, progress=told)


def _flagged(
    results: TextResults | QuestionResults,
    example_ids: dict[str, NDArray[np.uint64]],
    flags: dict[str, NDArray[np.bool_]],
) -> TextResults | QuestionResults:
    """With the flags of its examples; texts without a token to predict have none."""
    if results.set_name not in flags:
        return results
    known = dict(zip(example_ids[results.set_name].tolist(), flags[results.set_name].tolist(), strict=True))
    own = np.array([known[example] for example in results.example_ids.tolist()], np.bool_)
    return replace(results, contaminated=own)


def _save(results: TextResults | QuestionResults, out: str) -> None:
    dist = import_extra("composer.utils.dist", extra="train", purpose="several processes")
    if dist.get_global_rank() == 0:
        results.save(out)
