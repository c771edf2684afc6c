"""`crisp-stream write`: documents in, dataset out, restartable at every task.

The work folder holds what tasks made, named by fingerprints (engine/tasks.py), so the same command goes on where an
interrupted one stopped, a changed one makes anew just what changed, and both publish the same bytes as an
uninterrupted run. It needs up to three times the room of the dataset, and is deleted after success.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

from crisp_stream.errors import ConflictError, CrispError, FormatError, InputError, require_extra
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.manifest import MANIFEST, Manifest
from crisp_stream.processes import Log
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.writers.embedding.embeddings_folder import complete, embeddings_folder, is_complete, refuse_others
from crisp_stream.writers.embedding.given_models import Models, models_of_dataset, models_of_folder
from crisp_stream.writers.embedding.student import is_student
from crisp_stream.writers.engine.engine import LocalEngine, RayEngine, open_engine
from crisp_stream.writers.engine.tasks import PlanEnds, Runner
from crisp_stream.writers.engine.versions import ENCODER_STAGES, FITTING_STAGES
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.claim import (
    ClaimLostError,
    Hold,
    check_free,
    is_made_by,
    manifest_of,
    standing_claim,
)
from crisp_stream.writers.publishing.claimed import claimed, require_same
from crisp_stream.writers.publishing.publish import (
    begin,
    delete_temporaries,
    publish,
    published_bytes,
    require_empty,
    system_errors,
)
from crisp_stream.writers.publishing.request import Request
from crisp_stream.writers.publishing.work import (
    delete_other_stages,
    is_left_over,
    mark_publishing,
    staged_root,
    work_folder,
    work_url,
)
from crisp_stream.writers.report import WriteReport
from crisp_stream.writers.sorting.ranges import RANGE_STAGES
from crisp_stream.writers.stages.dataset import forget_all, forget_lost
from crisp_stream.writers.stages.kept_embeddings import KeptEmbeddingsTask, RunEmbeddingsTask, keep_in_stages
from crisp_stream.writers.stages.pipeline import Assembly, assemble_in_stages, embed_in_stages
from crisp_stream.writers.stages.provenance import write_small_files
from crisp_stream.writers.stages.removal.dropped import DroppedTask
from crisp_stream.writers.stages.removal.duplicates import EXACT_STAGES, NEAR_STAGES, OutcomeTask
from crisp_stream.writers.stages.shards import ShardsSummary

_EMBEDDINGS_STAGES = (RunEmbeddingsTask.stage, KeptEmbeddingsTask.stage)
QUICK_EXTRAS = ("tokenizers", "tiktoken", "sklearn", "faiss", "threadpoolctl")
"""Looked for before hours of work; sentence_transformers is needed first anyway."""


def write(options: WriteOptions, *, log: Log = print) -> WriteReport:
    """Write a dataset; stages/pipeline.py has the sequence of its stages.

    The root is claimed first, so two writers never mix. A write that is there already is not done again.

    Raises:
        InputError: bad input or options, nothing to write, or an output root that is taken.
        StorageError: the storage refused or failed.
        MissingExtraError: a library of the write extra is not installed.
    """
    started = time.monotonic()
    for module in QUICK_EXTRAS:
        require_extra(module, extra="write", purpose="writing a dataset")
    with system_errors(options.out):
        models = models_of(options)
        request = Request.of(options, models)
        try:
            manifest, is_new = _written(options, models, request, log)
        except (ClaimLostError, ConflictError):
            found = _published_by_others(options, request)
            if found is None:
                raise
            log(f"published: {options.out}, by another run of the same request")
            manifest, is_new = found, True
    report = WriteReport.of(
        options.out,
        manifest,
        manifest.provenance,
        time.monotonic() - started,
        windows=manifest.num_windows,
        dataset_bytes=published_bytes(options.out),
    )
    if is_new:
        log(report.table())
    return report


def _published_by_others(options: WriteOptions, request: Request) -> Manifest | None:
    with contextlib.suppress(CrispError):
        found = manifest_of(open_store(options.out))
        if found is not None and is_made_by(found[0], request.fingerprint):
            return found[0]
    return None


def _written(options: WriteOptions, models: Models | None, request: Request, log: Log) -> tuple[Manifest, bool]:
    """Make the dataset, or what is missing of it; its newest manifest, and whether the dataset was made now."""
    manifest = _standing(options, request)
    if manifest is None:
        with (
            work_folder(options, log) as workspace,
            claimed(options, request, log, forget=lambda: forget_all(workspace)) as hold,
        ):
            standing = _standing(options, request)
            return standing or _made(options, models, request, workspace, hold, log), standing is None
    grown = f", which has grown since to generation {manifest.generation}" if manifest.generation else ""
    log(f"already done: {options.out} holds the dataset of this request{grown}; nothing was done")
    if _embeddings_missing(options, models, request, manifest):
        with work_folder(options, log) as workspace:
            with contextlib.closing(engine_of(options)) as engine:
                _assembled(options, models, request, Runner(engine, workspace, log=log), None)
            _complete_embeddings(options, manifest, log)
    elif is_left_over(options, request.fingerprint):
        with work_folder(options, log):
            pass  # deletes it
    claim, _ = standing_claim(open_store(options.out))
    if claim is not None and claim.request.fingerprint == request.fingerprint:
        delete_temporaries(open_store(options.out))
        Hold(options.out, request.fingerprint).release()
    return manifest, False


def _standing(options: WriteOptions, request: Request) -> Manifest | None:
    """The newest manifest of the root, if the request made it; None where there is none.

    Raises:
        InputError: the root is taken by another dataset, claimed by another request, or holds other files.
    """
    store = open_store(options.out)
    try:
        found = manifest_of(store)
    except FormatError as error:
        raise InputError(
            f"{store.url}: the output root must not hold a dataset, but it has a {MANIFEST} that cannot be read. "
            "Choose another --out, or delete what is there."
        ) from error
    if options.embeddings is not None:
        here = embeddings_folder(options.embeddings, option="embeddings")
        if found is None or found[0].generation == 0:
            refuse_others(here, {found[0].fingerprint} if found else ())
    if found is not None:
        require_same(store, found[0], request)
        return found[0]
    if standing_claim(store)[0] is None:
        require_empty(store)
    return None


def _made(
    options: WriteOptions,
    models: Models | None,
    request: Request,
    workspace: Workspace,
    hold: Hold,
    log: Log,
) -> Manifest:
    delete_other_stages(options, workspace, request.fingerprint)
    with contextlib.closing(engine_of(options)) as engine:
        runner = Runner(engine, workspace, log=log)
        assembly, shards, staged = _assembled(options, models, request, runner, hold)
        hold.check(now=True)
        written, names = write_small_files(runner, options, staged, assembly, shards, models)
    manifest = replace(written, provenance={**written.provenance, "requests": [request.to_json()]})
    mark_publishing(options, workspace, request.fingerprint)
    publish(staged, options.out, names, manifest, base=None, hold=hold)
    log(f"published: {options.out}")
    if options.embeddings is not None:
        _complete_embeddings(options, manifest, log)
    return manifest


def _embeddings_missing(options: WriteOptions, models: Models | None, request: Request, manifest: Manifest) -> bool:
    """Say whether embeddings of a published dataset are missing and can still be taken from its work.

    Raises:
        InputError: they can not, because the work is deleted, or parts of it.
    """
    if options.embeddings is None or manifest.generation:
        return False
    if is_complete(embeddings_folder(options.embeddings, option="embeddings")):
        return False
    runner = Runner(None, Workspace(work_url(options)), log=lambda line: None)
    with contextlib.suppress(PlanEnds):
        _assembled(options, models, request, runner, None)
    remedy = f"Embed its windows with: crisp-stream embed {options.out} --out {options.embeddings}"
    if not any(done for _, _, done in runner.plan):
        raise InputError(
            f"{options.out}: the dataset is published, and no work of this write is left to take its embeddings from. "
            f"{remedy}"
        )
    if runner.plan[-1][0] not in _EMBEDDINGS_STAGES:
        raise InputError(
            f"{options.out}: the dataset is published, and the work that its embeddings could be taken from is deleted "
            f"in part. {remedy}"
        )
    return True


def _complete_embeddings(options: WriteOptions, manifest: Manifest, log: Log) -> None:
    assert options.embeddings is not None
    folder = embeddings_folder(options.embeddings, option="embeddings")
    refuse_others(folder, {manifest.fingerprint})
    if not is_complete(folder):
        complete(folder, manifest)
    log(f"embeddings of {manifest.num_windows:,} windows: {options.embeddings}")


def models_of(options: WriteOptions) -> Models | None:
    """Tokenizer, encoder and tree that are given; None where they are made. Raises InputError, FormatError."""
    if options.like is not None:
        return models_of_dataset(open_dataset(options.like))
    return None if options.tree is None else models_of_folder(options.tree)


def plan(options: WriteOptions) -> str:
    """List what `write` would run now, as a table; runs nothing. Raises as `write` does for what it looks at."""
    models = models_of(options)
    request = Request.of(options, models)
    done = _standing(options, request)
    if done is not None and not _embeddings_missing(options, models, request, done):
        return f"already done: {options.out} holds the dataset of this request; nothing would run"
    if not options.take_over:
        check_free(open_store(options.out), request)
    runner = Runner(None, Workspace(work_url(options)), log=lambda line: None)
    with contextlib.suppress(PlanEnds):
        _assembled(options, models, request, runner, None)
    lines = [f"{'stage':<14} {'tasks':>7} {'done':>7} {'to run':>7}"]
    lines += [f"{stage:<14} {tasks:>7,} {done:>7,} {tasks - done:>7,}" for stage, tasks, done in runner.plan]
    known, stages = {stage for stage, _, _ in runner.plan}, _stages_of(options)
    later = stages[1 + max((at for at, stage in enumerate(stages) if stage in known), default=-1) :]
    if later:
        lines.append(f"then {', '.join(later)}: their tasks are known when these are done")
    lines.append(f"intermediate files: {work_url(options)}")
    return "\n".join(lines)


def _stages_of(options: WriteOptions) -> list[str]:
    tree = ["tree"] if options.like or options.tree else [*FITTING_STAGES, "tree"]
    return [
        *(["evaluation"] if options.decontaminate else []),
        *(["excluded"] if options.exclude_ids else []),
        "documents",
        *_search_stages(options),
        "tokenizer",
        "windows",
        *_encoder_stages(options),
        "embeddings",
        *tree,
        "runs",
        *RANGE_STAGES,
        "texts",
        "sketch",
        "shards",
        "provenance",
        *([DroppedTask.stage] if options.dedup or options.decontaminate else []),
        *(_EMBEDDINGS_STAGES if options.embeddings else []),
    ]


def _encoder_stages(options: WriteOptions) -> Sequence[str]:
    """Stages that fit an encoder, or bring a student."""
    return ENCODER_STAGES.get(options.encoder or "", ("student",) if is_student(options.encoder) else ())


def _search_stages(options: WriteOptions) -> list[str]:
    if options.dedup is None:
        return []
    return [*EXACT_STAGES, *(NEAR_STAGES if options.dedup == "near" else ()), OutcomeTask.stage]


def engine_of(options: WriteOptions) -> LocalEngine | RayEngine:
    """Open the engine that runs the tasks of a write. Raises InputError, MissingExtraError."""
    if options.address is not None and not is_remote(work_url(options)) and options.work is None:
        raise InputError(
            "work: must be reached by all machines of the Ray cluster, also by those that join it later, got a folder "
            "of this one. Name an object-store prefix or a shared folder with --work."
        )
    return open_engine(
        options.engine, processes=options.processes, memory_bytes=options.memory_bytes, address=options.address
    )


def _assembled(
    options: WriteOptions, models: Models | None, request: Request, runner: Runner, hold: Hold | None
) -> tuple[Assembly, ShardsSummary, str]:
    """Every stage up to shards and tables of documents, and the embeddings if they are kept.

    Returns:
        The assembly, its shards, and where these are.
    """
    corpus = embed_in_stages(runner, options, models)
    request.require_read(corpus.read.files)
    staged = staged_root(options, runner.workspace, request.fingerprint)
    in_root = hold if is_remote(options.out) else None
    assembly = assemble_in_stages(runner, options, corpus, staged, hold=in_root)
    if runner.engine is not None:
        if in_root is not None:
            begin(options.out, in_root, None)
        forget_lost(runner, assembly.shards, assembly.tables, [staged, options.out])
    shards = assembly.make(runner)
    if options.embeddings is not None:
        memory_bytes = assembly.sort_memory_bytes
        keep_in_stages(
            runner, corpus.embedded, assembly.ordered, assembly.ranges, options.embeddings, memory_bytes=memory_bytes
        )
    if runner.engine is None:
        raise PlanEnds
    return assembly, shards, staged
