"""A trial from its texts to the page: write the dataset, count the task, train base and CRISP, judge both.

Every output says what it was made from, so a later run keeps what fits: the text files are named by their content, the
dataset and the histogram record those names, and each training leaves a key of its recipe, dataset and histogram beside
its checkpoints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream import __version__, digits
from crisp_stream.config.load import load_recipe
from crisp_stream.corpora.files import Corpora
from crisp_stream.errors import FormatError, InputError, require_extra
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import MANIFEST, Manifest
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.tuning import tune, tuned
from crisp_stream.inspection.summary import NodeSummary, top_nodes
from crisp_stream.report.evaluation import Evaluation
from crisp_stream.report.page import page_html, write_page
from crisp_stream.report.runs import TrainingRun, read_run
from crisp_stream.report.verdict import verdict_of
from crisp_stream.results.pairing import AnyResults
from crisp_stream.results.results import load_results, results_path
from crisp_stream.results.tables import PERPLEXITY, RATIO
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.table import Table, format_bytes
from crisp_stream.trial.sizes import TrialSize

if TYPE_CHECKING:
    from crisp_stream.evaluation.models import JudgedModel
    from crisp_stream.writers.options import WriteOptions

Log = Callable[[str], None]

CORPUS = "the corpus"
_KEY_FILE = "trial-key"
"""File beside the checkpoints of a training: fingerprint of everything that it was made from."""
_ANSWERS = "answers"
"""Set of questions whose right answer is to be chosen."""
_TOP_CLUSTERS = 8
_SAMPLE_CHARACTERS = 150
MODELS = ("base", "crisp")


class Steps:
    """Announces the steps and remembers what was kept."""

    def __init__(self, log: Log, total: int) -> None:
        self.log, self._total, self._number = log, total, 0
        self._started = time.monotonic()
        self.kept: list[str] = []

    def begin(self, title: str) -> None:
        """Announce a step, with the time since the start."""
        self._number += 1
        self.log(f"\n[{self._number}/{self._total}] {title}  ({clock(self.seconds)})")

    def keep(self, name: str, where: str) -> None:
        """Say that an output of an earlier run is used."""
        self.kept.append(name)
        self.log(f"{name}: found, kept ({where})")

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self._started


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Outcome of a trial."""

    evaluation: Evaluation
    """Results of `base` and `crisp` on every held-out document."""
    runs: Mapping[str, TrainingRun]
    """The trainings, `base` and `crisp`."""
    clusters: Sequence[NodeSummary]
    """The task's heaviest clusters, heaviest first."""
    page: Path
    """The HTML page."""
    kept: tuple[str, ...]
    """Outputs of earlier runs that were used as they stood: `dataset`, `histogram`, `base`, `crisp`."""
    seconds: float
    """Wall time."""

    def text(self) -> str:
        """The main numbers of the page for a terminal, and the verdict."""
        estimates = {
            (row.judged.name, row.results.model_name): row.estimates
            for row in self.evaluation.rows
            if PERPLEXITY in row.estimates
        }
        figures = []
        for name in dict.fromkeys(name for name, _ in estimates):
            perplexities = (digits.perplexity(estimates[name, model][PERPLEXITY].value) for model in self.runs)
            figures.append((name, *perplexities, digits.ratio(estimates[name, "crisp"][RATIO].value)))
        figures.append(
            ("mixture error", *(digits.mixture_error(run.record["mixture_error"]) for run in self.runs.values()), "")
        )
        figures.append(("bytes read", *(format_bytes(run.totals["bytes_read"]) for run in self.runs.values()), ""))
        clusters = [
            (
                f"{one.node}",
                digits.share(one.share),
                digits.share(one.generalist_share),
                digits.weight(one.weight),
                one.text[:70],
            )
            for one in self.clusters
        ]
        tables = (
            Table(
                head=("held-out perplexity", *self.runs, "crisp : base"),
                rows=figures,
                notes=[f"perplexity: {digits.JUDGED}"],
            ),
            Table(
                head=("cluster", "of the task", "of the corpus", "w", "beginning of one of its windows"),
                rows=clusters,
                words=(-1,),
            ),
        )
        return "\n\n".join([*(table.text() for table in tables), verdict_of(self.evaluation).sentence])


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried, and where."""

    texts: Corpora
    task: str
    """What the task is called: `medical abstracts`."""
    size: TrialSize
    root: str
    """Root of the dataset."""
    folder: Path
    """Local folder of everything else."""
    questions: bool = False
    """Whether the task's files hold multiple-choice questions."""
    part_characters: int = 150_000
    """Text of a part: small enough that two processes share a corpus this small, and that progress is seen."""
    fresh: bool = False
    """Train again even where a finished training is found."""

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    @property
    def judged(self) -> Path:
        """Folder with the results of every example, for `crisp-stream results`."""
        return self.folder / "judged"

    @property
    def histogram(self) -> Path:
        """The task's histogram, tuned."""
        return self.folder / "task.parquet"

    @property
    def counted(self) -> Path:
        """The histogram as it was counted, at the leaves."""
        return self.folder / "counted.parquet"

    def overrides(self, model: str) -> list[str]:
        """Overrides of the recipe of a model."""
        found = [f"data.remote={json.dumps(self.root)}", f"save_folder={json.dumps(str(self.folder / model))}"]
        found += ["autoresume=true", *self.size.recipe_overrides]
        if is_remote(self.root):
            found.append(f"data.local={json.dumps(str(self.folder / 'cache'))}")
        if model == "crisp":
            found.append(f"mixture.phases.0.histogram={json.dumps(str(self.histogram))}")
        return found

    @cached_property
    def write_options(self) -> WriteOptions:
        """Options of the dataset."""
        from crisp_stream.writers.options import WriteOptions

        return WriteOptions(
            inputs=(str(self.texts.generalist),),
            out=self.root,
            window_tokens=self.size.window_tokens,
            vocab_size=self.size.vocab_size,
            max_length=self.size.encoder_pieces,
            part_characters=self.part_characters,
            arity=self.size.arity,
            depth=self.size.depth,
            min_examples_to_split=self.size.min_examples_to_split,
            decontaminate=(str(self.texts.specialist_test), str(self.texts.generalist_test)),
        )


NUM_STEPS = 5
"""Steps of a trial after its texts."""


def run_trial(trial: Trial, steps: Steps) -> TrialResult:
    """Write the dataset, count the task, train base and CRISP, judge them, write the page.

    Raises:
        InputError: the root holds a dataset that is not the trial's.
        StorageError: the storage refused or failed.
        MissingExtraError: a library of the demo extra is not installed.
    """
    # Read when torch loads its OpenMP. Threads that spin while they wait made training beside other jobs 4x slower:
    # 40 batches on 2 busy cores took 251 s and 71 s CPU; with passive waiting 64 s and 21 s CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if trial.questions:
        require_extra("lm_eval", extra="eval", purpose="multiple choice")
    dataset = _write(trial, steps)
    histogram = _count(trial, dataset, steps)
    runs = {name: _train(trial, name, dataset, histogram, steps) for name in MODELS}
    steps.begin("judge both on held-out text")
    evaluation = Evaluation(results=_judge(trial, runs, steps.log), baseline="base")
    html = page_html(dataset, {trial.task: histogram}, list(runs.values()), evaluation=evaluation)
    result = TrialResult(
        evaluation=evaluation,
        runs=runs,
        clusters=top_nodes(dataset, histogram, _TOP_CLUSTERS, _SAMPLE_CHARACTERS),
        page=write_page(trial.page, html),
        kept=tuple(steps.kept),
        seconds=steps.seconds,
    )
    steps.log("\n" + result.text())
    steps.log(f"\npage: {result.page}  (all done in {clock(result.seconds)})")
    steps.log(f"every example of it: crisp-stream results better {trial.judged} --than base")
    return result


def _write(trial: Trial, steps: Steps) -> Dataset:
    from crisp_stream.writers.write import write

    steps.begin("write the corpus as a dataset: tokenizer, windows, embeddings, tree, sorted shards")
    root = trial.root
    if open_store(root).exists(MANIFEST):
        dataset = open_dataset(root)
        if not _is_ours(dataset.manifest, trial):
            raise InputError(
                f"{root} holds a dataset, but not the one that would be written there. Choose another place with --out "
                "(make demo: DATA=…), or delete it."
            )
        steps.keep("dataset", f"{dataset.manifest.num_windows:,} windows in {root}")
        return dataset
    write(trial.write_options, log=steps.log)
    return open_dataset(root)


def _is_ours(manifest: Manifest, trial: Trial) -> bool:
    provenance = manifest.provenance
    recorded = {
        "inputs": provenance.get("inputs"),
        "window_tokens": manifest.window_tokens,
        "vocab_size": manifest.tokenizer.vocab_size,
        "encoder_pieces": manifest.encoder.max_length,
        "arity": manifest.arity,
        "depth": manifest.depth,
        "min_examples_to_split": (provenance.get("tree") or {}).get("min_examples_to_split"),
    }
    sizes = {name: getattr(trial.size, name) for name in recorded if name != "inputs"}
    return recorded == {"inputs": [trial.texts.generalist.name], **sizes}


def _count(trial: Trial, dataset: Dataset, steps: Steps) -> Histogram:
    """The task's histogram: counted at the leaves, then level and smoothing by held-out likelihood."""
    from crisp_stream.counting.count_examples import count_examples

    steps.begin(f"count the clusters of the task: {trial.task}")
    counted = _earlier(trial.counted)
    wanted = (dataset.manifest.tree_fingerprint, [trial.texts.specialist.name])
    if counted is not None and (counted.tree_fingerprint, counted.provenance.get("inputs")) == wanted:
        steps.keep("histogram", f"{len(counted.nodes)} clusters in {trial.counted}")
    else:
        counted = count_examples(
            (str(trial.texts.specialist),),
            data=dataset,
            answers="right" if trial.questions else None,
            log=steps.log,
        )
        counted.save(trial.counted)
    tuning = tune(counted, dataset)
    histogram = tuned(counted, dataset, tuning.chosen)
    if tuning.chosen.level == 0:
        steps.log("warning: no level of the tree tells the task from the corpus, so crisp is trained as base is")
    else:
        steps.log(f"tuned: level {tuning.chosen.level}, {len(histogram.nodes)} clusters with a share")
    histogram.save(trial.histogram)
    return histogram


def _earlier(path: Path) -> Histogram | None:
    """A histogram that was saved before; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        return Histogram.load(path)
    except FormatError:
        return None


def _train(trial: Trial, model: str, dataset: Dataset, histogram: Histogram, steps: Steps) -> TrainingRun:
    """Train, or go on with a training, or find it finished; a training of other things in this place is removed."""
    from crisp_stream.training.train import train

    recipe = load_recipe(["demo", model], trial.overrides(model))
    folder, name, fresh = trial.folder / model, model, trial.fresh
    steps.begin(f"train {name}: {recipe.max_duration}, recipe demo {name}")
    key = _fingerprint(dataclasses.asdict(recipe), dataset.manifest.fingerprint, histogram.fingerprint)
    key_file = folder / _KEY_FILE
    if folder.is_dir() and (fresh or not key_file.is_file() or key_file.read_text() != key):
        steps.log(
            f"{name}: an earlier training with other settings is removed" if not fresh else f"{name}: trained anew"
        )
        shutil.rmtree(folder)
    record = folder / "run.json"
    if record.is_file() and json.loads(record.read_text()).get("interrupted_at") is None:
        steps.keep(name, str(folder))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        key_file.write_text(key)
        report = train(recipe)
        steps.log(report.table())
        if report.interrupted_by is not None:
            raise KeyboardInterrupt
    return read_run(str(folder), dataset)


def _judge(trial: Trial, runs: Mapping[str, TrainingRun], log: Log) -> list[AnyResults]:
    """Judge both models on the held-out sets; the results of every example are kept in `judged`."""
    from crisp_stream.evaluation.models import open_model
    from crisp_stream.evaluation.multiple_choice import judge_questions
    from crisp_stream.evaluation.perplexity import judge_texts
    from crisp_stream.evaluation.question_sets import open_question_set

    sets = {"task": (trial.task, trial.texts.specialist_test), "corpus": (CORPUS, trial.texts.generalist_test)}
    if trial.questions:
        sets[_ANSWERS] = (f"{trial.task}, choice of answers", trial.texts.specialist_test)
    results: list[AnyResults] = []
    for model, run in runs.items():
        opened: JudgedModel | None = None
        for set_name, (title, test) in sets.items():
            key = _fingerprint((trial.folder / model / _KEY_FILE).read_text(), test.name)
            path = results_path(trial.judged, model, set_name)
            judged = load_results(path) if Path(path).is_file() else None
            if judged is None or judged.notes.get("key") != key:
                opened = opened or open_model(run.record["checkpoint"], name=model)
                if set_name == _ANSWERS:
                    judged = judge_questions(opened, replace(open_question_set(str(test)), name=set_name))
                else:
                    texts = _texts(test, questions=trial.questions and set_name == "task")
                    judged = judge_texts(opened, texts, set_name=set_name)
                judged = replace(judged, notes={**judged.notes, "key": key})
                judged.save(trial.judged)
            results.append(replace(judged, set_name=title))
            log(f"{model}: judged on {judged.num_examples} examples of {title}")
    return results


def _texts(path: Path, *, questions: bool) -> list[str]:
    """Documents; of questions the prompts with their right answers."""
    if questions:
        from crisp_stream.examples.question_files import read_questions

        return [question.text(question.answer) for question in read_questions(path)]
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([__version__, *parts], sort_keys=True).encode()).hexdigest()


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
