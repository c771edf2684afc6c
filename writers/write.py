"""`crisp-stream write`: documents in, dataset out, restartable at every task.

The work folder holds what tasks made, named by fingerprints (engine/tasks.py), so the same command goes on where an
interrupted one stopped, a changed one makes anew just what changed, and both publish the same bytes as an
uninterrupted run. It needs up to three times the room of the dataset, and is deleted after success.
"""

from __future__ import annotations

import contextlib
import time

from crisp_stream.errors import InputError, require_extra
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.manifest import Manifest
from crisp_stream.processes import Log
from crisp_stream.storage.store import is_remote
from crisp_stream.writers.embedding.embeddings_folder import complete, embeddings_folder, is_complete, refuse_others
from crisp_stream.writers.embedding.given_models import Models, models_of_dataset, models_of_folder
from crisp_stream.writers.engine.engine import LocalEngine, RayEngine, open_engine
from crisp_stream.writers.engine.tasks import PlanEnds, Runner, fingerprint
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.publish import MADE, publish, published_bytes
from crisp_stream.writers.publishing.work import (
    begin_publishing,
    check_taken,
    published_before,
    staged_root,
    work_folder,
    work_url,
)
from crisp_stream.writers.report import WriteReport
from crisp_stream.writers.stages.dataset import forget_lost
from crisp_stream.writers.stages.kept_embeddings import KeptEmbeddingsTask, RunEmbeddingsTask, keep_in_stages
from crisp_stream.writers.stages.pipeline import assemble_in_stages, embed_in_stages
from crisp_stream.writers.stages.provenance import write_small_files

_EMBEDDINGS_STAGES = (RunEmbeddingsTask.stage, KeptEmbeddingsTask.stage)
QUICK_EXTRAS = ("tokenizers", "tiktoken", "sklearn", "faiss", "threadpoolctl")
"""Looked for before hours of work; sentence_transformers is needed first anyway."""


def write(options: WriteOptions, *, log: Log = print) -> WriteReport:
    """Write a dataset; stages/pipeline.py has the sequence of its stages.

    Raises:
        InputError: bad input or options, nothing to write, or an output root that is taken.
        StorageError: the storage refused or failed.
        MissingExtraError: a library of the write extra is not installed.
    """
    started = time.monotonic()
    for module in QUICK_EXTRAS:
        require_extra(module, extra="write", purpose="writing a dataset")
    models = models_of(options)
    check_taken(options)
    if published_before(options) and not _embeddings_missing(options, models):
        log(f"work: {options.out} was published by an earlier run, which was stopped before it could tidy up")
        manifest = open_dataset(options.out).manifest
        with work_folder(options, log):
            pass  # deletes it
    else:
        with contextlib.closing(engine_of(options)) as engine, work_folder(options, log) as workspace:
            manifest = _make(options, models, Runner(engine, workspace, log=log))
            if options.embeddings is not None:
                _complete_embeddings(options.embeddings, manifest, log)
            publish(staged_root(options, workspace), options.out, manifest.to_json(), log=log)
    report = WriteReport.of(
        options.out,
        manifest,
        manifest.provenance,
        time.monotonic() - started,
        windows=manifest.num_windows,
        dataset_bytes=published_bytes(options.out),
    )
    log(report.table())
    return report


def _embeddings_missing(options: WriteOptions, models: Models | None) -> bool:
    """Say whether embeddings of a published dataset are missing and can still be taken from its work.

    Raises:
        InputError: they can not, because parts of the work are deleted.
    """
    if options.embeddings is None or is_complete(embeddings_folder(options.embeddings, option="embeddings")):
        return False
    runner = Runner(None, Workspace(work_url(options)), log=lambda line: None)
    with contextlib.suppress(PlanEnds):
        _make(options, models, runner)
    if runner.plan[-1][0] not in _EMBEDDINGS_STAGES:
        raise InputError(
            f"{options.out}: the dataset is published, and the work that its embeddings could be taken from is deleted "
            f"in part. Embed its windows with: crisp-stream embed {options.out} --out {options.embeddings}"
        )
    return True


def _complete_embeddings(path: str, manifest: Manifest, log: Log) -> None:
    folder = embeddings_folder(path, option="embeddings")
    refuse_others(folder, {manifest.fingerprint})
    if not is_complete(folder):
        complete(folder, manifest)
    log(f"embeddings of {manifest.num_windows:,} windows: {path}")


def models_of(options: WriteOptions) -> Models | None:
    """Tokenizer, encoder and tree that are given; None where they are made. Raises InputError, FormatError."""
    if options.like is not None:
        return models_of_dataset(open_dataset(options.like))
    return None if options.tree is None else models_of_folder(options.tree)


def plan(options: WriteOptions) -> str:
    """List what `write` would run now, as a table; runs nothing. Raises as `write` does for what it looks at."""
    models = models_of(options)
    check_taken(options)
    runner = Runner(None, Workspace(work_url(options)), log=lambda line: None)
    with contextlib.suppress(PlanEnds):
        _make(options, models, runner)
    lines = [f"{'stage':<14} {'tasks':>7} {'done':>7} {'to run':>7}"]
    lines += [f"{stage:<14} {tasks:>7,} {done:>7,} {tasks - done:>7,}" for stage, tasks, done in runner.plan]
    known = {stage for stage, _, _ in runner.plan}
    later = [stage for stage in _stages_of(options) if stage not in known]
    if later:
        lines.append(f"then {', '.join(later)}: their tasks are known when these are done")
    lines.append(f"intermediate files: {work_url(options)}")
    return "\n".join(lines)


def _stages_of(options: WriteOptions) -> list[str]:
    tree = ["tree"] if options.like or options.tree else ["tree-sample", "tree-root", "tree-branches", "tree"]
    return [
        *(["evaluation"] if options.decontaminate else []),
        *(["excluded"] if options.exclude_ids else []),
        "documents",
        *(["duplicates"] if options.dedup else []),
        "tokenizer",
        "windows",
        *(["lsi"] if options.encoder == "lsi" else []),
        "embeddings",
        *tree,
        "runs",
        "shards",
        "provenance",
        *(_EMBEDDINGS_STAGES if options.embeddings else []),
    ]


def engine_of(options: WriteOptions) -> LocalEngine | RayEngine:
    """Open the engine that runs the tasks of a write. Raises InputError, MissingExtraError."""
    engine = open_engine(
        options.engine, processes=options.processes, memory_bytes=options.memory_bytes, address=options.address
    )
    several = isinstance(engine, RayEngine) and engine.num_nodes > 1
    if several and not is_remote(work_url(options)) and options.work is None:
        engine.close()
        raise InputError(
            "work: must be reached by all machines of the Ray cluster, got a folder of this one. "
            "Name an object-store prefix or a shared folder with --work."
        )
    return engine


def _make(options: WriteOptions, models: Models | None, runner: Runner) -> Manifest:
    """Every stage up to a staged dataset and its manifest."""
    corpus = embed_in_stages(runner, options, models)
    root = staged_root(options, runner.workspace)
    assembly = assemble_in_stages(runner, options, corpus, root)
    tasks = (*assembly.shards, *assembly.tables)
    made = f"{MADE}/{fingerprint([task.fingerprint for task in tasks])}.json"
    if runner.engine is not None:
        begin_publishing(options, runner.workspace, made)
        forget_lost(runner, assembly.shards, assembly.tables, [root, options.out], made)
    shards = assembly.make(runner)
    if options.embeddings is not None:
        memory_bytes = assembly.sort_memory_bytes
        keep_in_stages(
            runner, corpus.embedded, assembly.ordered, assembly.tree, options.embeddings, memory_bytes=memory_bytes
        )
    if runner.engine is None:
        raise PlanEnds
    manifest = runner.workspace.read_if_there(made)
    if manifest is not None:  # its publishing was interrupted
        return Manifest.from_json(manifest)
    written = write_small_files(runner, options, root, assembly, shards, models)
    runner.workspace.write(made, written.to_json())
    return written
