"""`crisp-stream tree fit` and `tree inspect`: a tree without a dataset, and how good one is."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import MANIFEST
from crisp_stream.processes import Log
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.table import aligned
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.embedding.fitted import FITTED_FOLDER
from crisp_stream.writers.embedding.given_models import FITTED, fitted_json, models_of_folder
from crisp_stream.writers.embedding.probe import ENCODER_FILE
from crisp_stream.writers.engine.tasks import Runner
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.publish import system_errors
from crisp_stream.writers.publishing.work import work_folder
from crisp_stream.writers.report import not_read
from crisp_stream.writers.stages.models import EmbeddedParts, tree_in_stages
from crisp_stream.writers.stages.pipeline import embed_in_stages
from crisp_stream.writers.stages.runs import tree_of
from crisp_stream.writers.stages.tree import FittedTree
from crisp_stream.writers.stages.windows import TOKENIZER_NAMES
from crisp_stream.writers.tree.quality import QualitySums
from crisp_stream.writers.tree.report import TreeReport, inspect_tree
from crisp_stream.writers.write import engine_of

EMBEDDINGS = "embeddings.npy"


def fit(options: WriteOptions, *, log: Log = print) -> TreeReport:
    """Fit a tree on documents and leave it in the folder `out`, with tokenizer, encoder files, the sample and a report.

    Raises:
        InputError: bad input or options, or a folder that is taken.
        StorageError: the storage refused or failed.
    """
    if is_remote(options.out) or Path(options.out).exists():
        raise InputError(f"out: must be a new local folder, got {options.out}. Choose another --out.")
    with (
        system_errors(options.out),
        contextlib.closing(engine_of(options)) as engine,
        work_folder(options, log) as workspace,
    ):
        runner = Runner(engine, workspace, log=log)
        corpus = embed_in_stages(runner, options, None)
        embedded, ledger = corpus.embedded, corpus.read.ledger
        fitted = tree_in_stages(runner, options, embedded.parts)
        report = _publish(runner, options, embedded, fitted)
    if ledger:
        log(aligned(not_read(ledger.paths, ledger.records)))
    log(report.text().rstrip())
    log(
        f"measured on {fitted.num_sampled:,} of the {fitted.num_windows:,} windows that the tree was fitted on; "
        f"written to {options.out}"
    )
    return report


def _publish(runner: Runner, options: WriteOptions, embedded: EmbeddedParts, fitted: FittedTree) -> TreeReport:
    tree = tree_of(runner.workspace, fitted.key)
    target = Path(options.out)
    folder = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tree.save(folder / "tree")
    names = {f"{embedded.tokenizer.tokenizer}/{name}": f"tokenizer/{name}" for name in TOKENIZER_NAMES}
    if embedded.fitted is not None:
        names |= {f"{embedded.fitted}/{name}": f"{FITTED_FOLDER}/{name}" for name in embedded.fitted_files}
    names[fitted.sample] = EMBEDDINGS
    for name, place in names.items():
        (folder / place).parent.mkdir(exist_ok=True)
        with runner.workspace.opened(name) as path:
            if path.exists():
                shutil.copyfile(path, folder / place)
    (folder / ENCODER_FILE).parent.mkdir(exist_ok=True)
    (folder / ENCODER_FILE).write_bytes(embedded.encoder_file)
    report = inspect_tree(tree, embeddings=np.load(folder / EMBEDDINGS, mmap_mode="r"), fit_seconds=fitted.fit_seconds)
    (folder / "report.txt").write_text(report.text())
    (folder / "report.json").write_text(json.dumps(report.to_json(), indent=2) + "\n")
    report.plot(folder / "report.svg")
    known: dict[str, Any] = {
        "windows": embedded.summary.num_windows,
        "fitted_windows": fitted.num_windows,
        "levels": [plan.to_json() for plan in fitted.levels],
        "seed": options.seed,
        "min_examples_to_split": options.min_examples_to_split,
        "fit_seconds": fitted.fit_seconds,
        "devices": fitted.devices,
    }
    content = fitted_json(embedded.window_tokens, embedded.summary.encoder, tree, known)
    (folder / FITTED).write_bytes(content)
    folder.rename(target)
    return report


def inspect(
    target: str,
    *,
    against: str | None = None,
    embeddings: str | None = None,
    plot: str | None = None,
    out: str | None = None,
) -> str:
    """Report on the tree of a folder or a dataset, as text.

    Args:
        target: folder of `fit`, folder of a tree alone, or dataset root.
        against: another one, compared on the embeddings.
        embeddings: .npy [num_windows, dim] of norm 1; those of the folder when None.
        plot: .png or .svg file to draw.
        out: JSON file to write.

    Raises:
        InputError: no tree there, or embeddings that are missing or of another width.
        FormatError: a tree or dataset that is damaged.
    """
    tree, dataset = _tree_at(target)
    given = Path(embeddings) if embeddings is not None else Path(target) / EMBEDDINGS
    if embeddings is not None and not given.is_file():
        raise InputError(f"embeddings: must be a .npy file, got {embeddings}. Check the path.")
    vectors = None
    if not is_remote(str(given)) and given.is_file():
        try:
            vectors = np.load(given, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"embeddings: must be a .npy file, got {given}: {error}.") from error
    other = None if against is None else _tree_at(against)[0]
    if vectors is not None:
        fitted = Path(target) / FITTED
        seconds = json.loads(fitted.read_text())["fit_seconds"] if fitted.is_file() and embeddings is None else None
        report = inspect_tree(tree, embeddings=vectors, against=other, fit_seconds=seconds)
    elif dataset is not None:
        counts = np.asarray(dataset.leaves), np.asarray(dataset.windows_per_leaf)
        report = inspect_tree(tree, leaf_counts=counts, sums=_recorded_sums(dataset), against=other)
    else:
        report = inspect_tree(tree, against=other)
    if plot is not None:
        report.plot(Path(plot))
    if out is not None:
        Path(out).write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return report.text().rstrip()


def _tree_at(target: str) -> tuple[ClusterTree, Dataset | None]:
    store = open_store(target)
    if store.exists(MANIFEST):
        dataset = open_dataset(target)
        return dataset.tree, dataset
    if store.exists(FITTED):
        return models_of_folder(target).tree, None
    if store.exists("tree.json"):
        return ClusterTree.load(target), None
    raise InputError(f"{target}: must be a folder of `tree fit`, of a tree, or a dataset root, got none of them.")


def _recorded_sums(dataset: Dataset) -> QualitySums | None:
    """Sums that the writer kept in the manifest; None for a dataset that grew or was written without."""
    levels = dataset.manifest.provenance.get("levels")
    if not isinstance(levels, list) or dataset.manifest.provenance.get("appended"):
        return None
    try:
        return QualitySums(
            num_windows=dataset.manifest.num_windows,
            squared_distances=tuple(level["squared_distance"] * dataset.manifest.num_windows for level in levels),
            cosines=tuple(level["cosine"] * dataset.manifest.num_windows for level in levels),
        )
    except (KeyError, TypeError):
        return None
