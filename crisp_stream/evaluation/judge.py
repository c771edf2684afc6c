"""Judge models on sets of texts and of questions: all sets by one model, then the next model.

All sets are checked before the first model is loaded. Results are saved as soon as a model is done with a set, so that
an interruption loses one set of one model at most.
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
from crisp_stream.evaluation.perplexity import ExamplesDone, Long, judge_texts
from crisp_stream.evaluation.seen import Seen, seen_examples
from crisp_stream.evaluation.trained_texts import JudgedTexts
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.question_files import open_questions, read_questions
from crisp_stream.examples.question_layouts import QuestionKeys
from crisp_stream.examples.questions import Question, question_hash
from crisp_stream.models.checkpoint import checkpoints_by_batch
from crisp_stream.processes import Log
from crisp_stream.ranks import join_ranks, together
from crisp_stream.results.results import QuestionResults, TextResults

if TYPE_CHECKING:
    from crisp_stream.evaluation.contamination import Contamination
    from crisp_stream.evaluation.question_sets import QuestionSet
    from crisp_stream.records.readers import TxtDocuments
    from crisp_stream.writers.documents.inputs import Layout

StartProgress = Callable[[str, int], ExamplesDone]
"""Takes the name of a model and set and the number of examples; returns what takes how many more of them are done."""

_ENDINGS = (
    *(".zst", ".gz", ".bz2", ".xz"),
    *(".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".arrow"),
)


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """Held-out documents that are judged as one set."""

    inputs: tuple[str, ...]
    """Files, folders or globs, as for `crisp-stream write`."""
    text_column: str = "text"
    """Key or column of the text."""
    limit: int | None = None
    """Most documents read."""
    filters: tuple[str, ...] = ()
    """Only documents where all of them hold."""
    text_template: str | None = None
    txt_documents: TxtDocuments = "file"
    layout: Layout = "files"
    questions: bool = False
    """Whether the inputs are multiple-choice questions, each a text of its prompt with the right answer (CRISP, Figure
    8b)."""
    question_keys: QuestionKeys | None = None
    """Keys of questions in a layout that is not known."""

    @property
    def name(self) -> str:
        """The first input's name without its endings, and the number of further inputs."""
        name, rest = PurePosixPath(self.inputs[0].rstrip("/")).name, len(self.inputs) - 1
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
        return name + (".text" if self.questions else "") + (f"+{rest}" if rest else "")

    def read(self, dropped: dict[str, int] | None = None) -> Iterator[str]:
        """Read the documents in the order of their files; `dropped` receives the number of dropped ones by reason."""
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
            text_template=self.text_template,
            txt_documents=self.txt_documents,
            layout=self.layout,
            counts=counts,
        )
        if dropped is not None:
            dropped.update(counts.as_dict())

    def read_questions(self) -> list[Question]:
        """Read the questions that the texts are made of."""
        questions = [question for path in self.inputs for question in read_questions(path, keys=self.question_keys)]
        return questions[: self.limit]

    def read_as(self) -> list[str]:
        """How the answers of questions were understood, where that had to be told; a sentence each."""
        files = self.inputs if self.questions else ()
        return [note for path in files for note in open_questions(path, keys=self.question_keys).notes]


@dataclass(frozen=True, kw_only=True)
class JudgedSets:
    """Sets that models are judged on."""

    texts: Sequence[TextSet] = ()
    questions: Sequence[QuestionSet] = ()
    contamination: Contamination | None = None
    """Examples that have a part in the training data."""
    allow_seen: bool = False
    """Whether models are judged also on examples that they were trained on, or that a histogram of their mixture was
    counted from."""
    long: Long = "cut"
    """What is done with examples that are longer than the context of a model."""


@dataclass(frozen=True, kw_only=True)
class _ScannedTexts:
    """A set of texts, read through once."""

    texts: TextSet
    example_ids: NDArray[np.uint64]
    """[num_documents], hashes of the examples as results have them."""
    lookup_ids: NDArray[np.uint64]
    """[num_documents], hashes as histograms and contamination have them: for questions `question_hash`."""
    judged: JudgedTexts
    """Hashes of their words."""
    dropped: dict[str, int]
    """Documents that cannot be judged, by reason."""


def each_checkpoint(folders: Sequence[str]) -> list[str]:
    """List all checkpoints of runs, in order. Raises InputError: a folder without any."""
    checkpoints: list[str] = []
    for folder in folders:
        of_run = list(checkpoints_by_batch(folder).values())
        if not of_run:
            raise InputError(f"{folder}: must hold checkpoints (ep…-ba…-rank0.pt), got none. Name a run's save_folder.")
        checkpoints += of_run
    return checkpoints


def judge(
    checkpoints: Sequence[str],
    sets: JudgedSets,
    *,
    names: Sequence[str] = (),
    batch_size: int = 8,
    out: str | None = None,
    log: Log = lambda line: None,
    progress: StartProgress = lambda judged, total: lambda more: None,
) -> list[TextResults | QuestionResults]:
    """Judge models on sets. Processes of a launcher share the work; all of them call this, and all get the results.

    Args:
        checkpoints: each as for `open_model`.
        names: names of the models; made of run and batch when empty.
        out: folder or prefix that receives a file of results per model and set.
        log: takes a line: dropped documents, warnings.

    Returns:
        Results model by model, set by set.

    Raises:
        InputError: no checkpoint or set, a bad set, two of one name, or examples that a model was trained on or its
            mixture made from.
        FormatError, StorageError: as `open_model`.
    """
    _check(checkpoints, names, [judged.name for judged in (*sets.texts, *sets.questions)])
    join_ranks()
    scanned = together(lambda: [_scan(texts) for texts in sets.texts])
    for texts in scanned:
        if texts.dropped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in texts.dropped.items())
            log(f"warning: {texts.texts.name}: {sum(texts.dropped.values()):,} documents were left out: {reasons}.")
    read_as = [note for questions in sets.questions for note in questions.read_as]
    for note in dict.fromkeys([*read_as, *(note for texts in sets.texts for note in texts.read_as())]):
        log(note)
    for warning in (warning for questions in sets.questions for warning in questions.warnings):
        log(f"warning: {warning}")
    lookup_ids = {texts.texts.name: texts.lookup_ids for texts in scanned}
    lookup_ids |= {questions.name: questions.example_ids for questions in sets.questions}
    example_ids = lookup_ids | {texts.texts.name: texts.example_ids for texts in scanned}
    judged_texts = {texts.texts.name: texts.judged for texts in scanned}
    judged_texts |= {questions.name: JudgedTexts.of_questions(questions.questions) for questions in sets.questions}
    flags: dict[str, NDArray[np.bool_]] = {}
    if (contamination := sets.contamination) is not None:
        flags = together(lambda: {name: contamination.flags(ids) for name, ids in lookup_ids.items()})
    results: list[TextResults | QuestionResults] = []
    for number, checkpoint in enumerate(checkpoints):
        name = names[number] if names else None
        model = together(lambda checkpoint=checkpoint, name=name: open_model(checkpoint, name=name))
        check_names([model.record.name, *{earlier.model_name for earlier in results}])
        seen = {name: seen_examples(model.record.training, ids, judged_texts[name]) for name, ids in lookup_ids.items()}
        _warn(model, sets, seen, log)
        for judged in _judge_model(model, scanned, sets, batch_size=batch_size, progress=progress):
            results.append(_flagged(judged, example_ids[judged.set_name], flags, seen[judged.set_name]))
            if out is not None:
                together(lambda latest=results[-1]: _save(latest, out))
        del model
        gc.collect()
    return results


def _check(checkpoints: Sequence[str], names: Sequence[str], set_names: Sequence[str]) -> None:
    if not checkpoints or not set_names:
        raise InputError(
            f"judging needs a checkpoint and a set of texts or questions, got {len(checkpoints)} checkpoints and "
            f"{len(set_names)} sets."
        )
    if names and len(names) != len(checkpoints):
        raise InputError(
            f"names: must be as many as checkpoints, {len(checkpoints)}, got {len(names)}. Name each model, or none."
        )
    for kind, words in (("checkpoint", checkpoints), ("set", set_names), ("name", names)):
        for word in words:
            if list(words).count(word) > 1:
                raise InputError(f"{kind} {word}: must be there once, got it twice. Leave one out, or rename a file.")


def _scan(texts: TextSet) -> _ScannedTexts:
    dropped: dict[str, int] = {}
    hashes: list[int] = []

    def read() -> Iterator[str]:
        for text in texts.read(dropped):
            hashes.append(example_hash(text))
            yield text

    judged = JudgedTexts.of(read())
    example_ids = np.array(hashes, np.uint64)
    lookup_ids = example_ids
    if texts.questions:
        questions = texts.read_questions()
        judged = JudgedTexts.of_questions(questions)
        lookup_ids = np.array([question_hash(question) for question in questions], np.uint64)
    return _ScannedTexts(texts=texts, example_ids=example_ids, lookup_ids=lookup_ids, judged=judged, dropped=dropped)


def _warn(model: JudgedModel, sets: JudgedSets, seen: dict[str, Seen], log: Log) -> None:
    """Warn of doubtful sets. Raises InputError: examples that the model was trained on, or its mixture made from."""
    contamination = sets.contamination
    if contamination is not None and (line := contamination.dataset_warning(*model.record.trained_on)):
        log(f"{model.record.name}: {line}")
    for name, of_set in seen.items():
        if (problem := of_set.error(name)) is not None:
            if not sets.allow_seen:
                raise InputError(f"{model.record.name}: {problem}")
            log(f"{model.record.name}: warning: {problem}")
        for line in of_set.warnings(name):
            log(f"{model.record.name}: {line}")


def _judge_model(
    model: JudgedModel,
    scanned: Sequence[_ScannedTexts],
    sets: JudgedSets,
    *,
    batch_size: int,
    progress: StartProgress,
) -> Iterator[TextResults | QuestionResults]:
    for texts in scanned:
        name = texts.texts.name
        done = progress(f"{model.record.name} on {name}", len(texts.example_ids))
        results = judge_texts(
            model, texts.texts.read(), set_name=name, batch_size=batch_size, long=sets.long, progress=done
        )
        yield replace(results, notes={**results.notes, "dropped": texts.dropped})
    for questions in sets.questions:
        done = progress(f"{model.record.name} on {questions.name}", len(questions.questions))
        yield judge_questions(model, questions, batch_size=batch_size, long=sets.long, progress=done)


def _flagged(
    results: TextResults | QuestionResults,
    example_ids: NDArray[np.uint64],
    contaminated: dict[str, NDArray[np.bool_]],
    seen: Seen,
) -> TextResults | QuestionResults:
    """Add the flags of seen and of contaminated examples; results may lack texts without a token to predict."""

    def of_results(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        of_example = dict(zip(example_ids.tolist(), flags.tolist(), strict=True))
        return np.array([of_example[example] for example in results.example_ids.tolist()], np.bool_)

    flagged = replace(results, seen=of_results(seen.flags), notes={**results.notes, "seen": seen.lines})
    if results.set_name not in contaminated:
        return flagged
    return replace(flagged, contaminated=of_results(contaminated[results.set_name]))


def _save(results: TextResults | QuestionResults, out: str) -> None:
    dist = import_extra("composer.utils.dist", extra="train", purpose="several processes")
    if dist.get_global_rank() == 0:
        results.save(out)
