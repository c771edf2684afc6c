"""Score every window of a dataset, in parallel, into one score file.

Tasks of some thousand windows write their numbers beside the file to be; those of a run that was stopped are kept, and
the same command goes on. The numbers do not depend on processes or tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError, MissingObjectError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.embeddings import WindowEmbeddings
from crisp_stream.histograms.window_scores import SCORES_SUFFIX, WindowScores, check_score_name, score_name_of
from crisp_stream.inspection.window_reading import DatasetKey, opened, parts_between, read_tokens
from crisp_stream.processes import Log, preload, report_units
from crisp_stream.selection.scoring.columns import column_scorer
from crisp_stream.selection.scoring.scorers import (
    ArrayScorer,
    CentroidScorer,
    FunctionScorer,
    LengthScorer,
    Scorer,
    TextScorer,
    array_of_file,
    require_finite,
)
from crisp_stream.selection.scoring.text_measures import DEFAULT_NGRAM
from crisp_stream.writers.documents.inputs import Layout
from crisp_stream.writers.embedding.embed import matching_encoder
from crisp_stream.writers.engine.engine import open_engine
from crisp_stream.writers.engine.tasks import Kind, Record, Runner, Task, fingerprint
from crisp_stream.writers.engine.workspace import Workspace, remote_or_absolute

TASK_BYTES = 4 << 20
"""Bytes of windows of a task: seconds of one core, which are lost when a run is stopped."""
ENCODER_TASK_WINDOWS = 1024
"""Windows of a task that embeds, as of `crisp-stream embed`."""
BY = "length, symbols, repeats, types, centroid, column:NAME, array:FILE.npy, MODULE:FUNCTION or FILE.py:FUNCTION"
_DELETED_AT_ONCE = 64
_READ_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What is asked of `crisp-stream score`."""

    by: str
    """One of BY."""
    out: str
    """Score file to write, local or on an object store."""
    name: str | None = None
    """Name of the score; what the file's name begins with when None."""
    ngram: int = DEFAULT_NGRAM
    """Words of an n-gram, for `repeats`."""
    embeddings: str | None = None
    """Folder of `crisp-stream embed`, for `centroid`; windows are embedded again when None."""
    encoder: str | None = None
    """Folder or hub name of the dataset's encoder, for `centroid`, where its recorded name does not lead to it."""
    records: tuple[str, ...] = ()
    """Files that the dataset was written from, for `column:NAME`."""
    layout: Layout = "files"
    """Layout of these."""
    missing: float | None = None
    """Number of documents without one in the column; None: they are an error."""

    def __post_init__(self) -> None:
        if not self.out.endswith(SCORES_SUFFIX):
            raise InputError(f"--out: must end in {SCORES_SUFFIX}, by which score files are known, got {self.out}.")
        check_score_name(self.score_name)
        kind, is_named = self.by.partition(":")[0], ":" in self.by
        for option, used in {
            "embeddings": self.by == "centroid",
            "encoder": self.by == "centroid",
            "records": kind == "column" and is_named,
            "missing": kind == "column" and is_named,
        }.items():
            if getattr(self, option) not in (None, ()) and not used:
                raise InputError(f"--{option}: must be left out with --by {self.by}, which does not use it.")
        if self.embeddings is not None and self.encoder is not None:
            raise InputError("--encoder: must be left out beside --embeddings, which were made by it. Drop one.")

    @property
    def score_name(self) -> str:
        """Name of the score."""
        return score_name_of(self.out) if self.name is None else self.name


@dataclass(frozen=True, kw_only=True)
class ScoreTask(Task):
    """Score some consecutive windows."""

    stage: ClassVar[str] = "scores"
    title: ClassVar[str] = "scoring windows"

    dataset: DatasetKey
    """`root` means the same in every process."""
    first: int
    stop: int
    scorer: Scorer

    @property
    def kind(self) -> Kind:
        """That of the scorer."""
        return self.scorer.kind

    def settings(self) -> Any:
        """The windows, and how they are scored."""
        return [self.first, self.stop, self.scorer.facts]

    def make(self) -> Record:
        """Write f32[num_windows]."""
        dataset, decoder = opened(self.dataset)
        scores: list[Any] = []
        first = self.first
        if not self.scorer.reads_text:
            scores = [self.scorer.score(dataset, decoder, first, np.empty((self.stop - first, 0), np.uint8))]
        else:
            for part in parts_between(dataset, self.first, self.stop):
                scores.append(self.scorer.score(dataset, decoder, first, read_tokens(dataset, part)))
                first += part.num_windows
                report_units(part.num_windows)
        rounded = require_finite(np.concatenate(scores), self.first, str(self.scorer.facts["method"]))
        self.workspace.save_array(self.file("npy"), rounded)
        files = {self.file("npy"): self.workspace.store.object_bytes(self.file("npy"))}
        return {"num_units": self.stop - self.first, "files": files}


def score_windows(
    root: str,
    options: ScoreOptions,
    *,
    generation: int | None = None,
    engine: str = "local",
    address: str | None = None,
    processes: int | None = None,
    log: Log = print,
) -> WindowScores:
    """Score every window of a dataset and write the score file. The work of an earlier run of the same is kept.

    Args:
        generation: generation of a dataset that has grown; the newest when None.
        engine: local processes, or ray.
        processes: worker processes; one per core when None. The file does not depend on it.

    Raises:
        InputError: no such score, an encoder with other weights, records of another dataset, a window without a finite
            score. FormatError, CorruptDataError: the dataset is damaged. StorageError.
    """
    dataset = open_dataset(root, generation=generation)
    work = Workspace(f"{remote_or_absolute(options.out)}.work")
    running = open_engine(engine, processes=processes, memory_bytes=None, address=address)
    try:
        runner = Runner(running, work, log=log)
        scorer = _scorer(dataset, root, options, runner, log)
        if (kept := _kept(options, scorer, dataset)) is not None:
            log(f"{options.out} holds these scores of {len(kept.scores):,} windows already")
            _delete(work)
            return kept
        numbers = scorer.scores() if isinstance(scorer, ArrayScorer) else _scored(dataset, scorer, runner)
    finally:
        running.close()
    scores = WindowScores(
        name=options.score_name,
        dataset_fingerprint=dataset.manifest.fingerprint,
        scores=numbers,
        provenance=scorer.facts,
    )
    scores.save(options.out)
    _delete(work)
    return scores


def _scored(dataset: Dataset, scorer: Scorer, runner: Runner) -> NDArray[np.float32]:
    """[num_windows], by tasks."""
    if scorer.kind == "encoder":
        preload("sentence_transformers")
    tasks = _tasks(dataset, scorer, runner.workspace)
    runner.run(tasks, unit="windows", num_units=[task.stop - task.first for task in tasks])
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        return np.concatenate(list(threads.map(lambda task: task.workspace.load_array(task.file("npy")), tasks)))


def _scorer(dataset: Dataset, root: str, options: ScoreOptions, runner: Runner, log: Log) -> Scorer | ArrayScorer:
    kind, colon, name = options.by.partition(":")
    match options.by:
        case "length":
            return LengthScorer()
        case "symbols" | "repeats" | "types":
            return TextScorer(measure=options.by, ngram=options.ngram)
        case "centroid" if options.embeddings is not None:
            WindowEmbeddings.load(options.embeddings, dataset)
            return CentroidScorer(embeddings=str(Path(options.embeddings).resolve()), choice=None)
        case "centroid":
            choice = matching_encoder(dataset.manifest.encoder, options.encoder, root)
            return CentroidScorer(embeddings=None, choice=choice)
    if kind == "column" and name:
        if not options.records:
            raise InputError(
                f"--by {options.by}: a dataset keeps no columns of its documents, so the records that it was written "
                "from must be read again. Name them: --records FILE…"
            )
        return column_scorer(
            dataset,
            name,
            options.records,
            layout=options.layout,
            missing=options.missing,
            runner=runner,
            workspace=runner.workspace,
            log=log,
        )
    if kind == "array" and name:
        return array_of_file(name, dataset)
    if colon and name.isidentifier():
        return FunctionScorer.of(options.by)
    raise InputError(f"--by: must be {BY}, got {options.by!r}. Choose one.")


def _tasks(dataset: Dataset, scorer: Scorer, work: Workspace) -> list[ScoreTask]:
    manifest = dataset.manifest
    key = DatasetKey.of(dataset)._replace(root=remote_or_absolute(dataset.root))
    at_once = max(1, TASK_BYTES // manifest.sample_bytes)
    if isinstance(scorer, CentroidScorer) and scorer.reads_text:
        at_once = min(at_once, ENCODER_TASK_WINDOWS)
    return [
        ScoreTask(
            workspace=work,
            number=number,
            inputs=(manifest.fingerprint,),
            dataset=key,
            first=first,
            stop=min(first + at_once, manifest.num_windows),
            scorer=scorer,
        )
        for number, first in enumerate(range(0, manifest.num_windows, at_once))
    ]


def _kept(options: ScoreOptions, scorer: Scorer | ArrayScorer, dataset: Dataset) -> WindowScores | None:
    """The scores that the file holds already, if they are the ones that are asked for."""
    try:
        scores = WindowScores.load(options.out)
    except (FormatError, MissingObjectError):
        return None
    wanted = (options.score_name, dataset.manifest.fingerprint, fingerprint(scorer.facts))
    return scores if (scores.name, scores.dataset_fingerprint, fingerprint(scores.provenance)) == wanted else None


def _delete(work: Workspace) -> None:
    if work.folder is not None:
        shutil.rmtree(work.folder, ignore_errors=True)
        return
    names: Sequence[str] = [name for name, _ in work.store.list()]
    with ThreadPoolExecutor(_DELETED_AT_ONCE) as threads:
        list(threads.map(work.store.delete, names))
