"""`crisp-stream encoder fit` and `encoder inspect`: a student without a dataset, and what is known of one."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from crisp_stream.errors import InputError
from crisp_stream.processes import Log
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.table import aligned
from crisp_stream.writers.embedding.fitted import FITTED_FOLDER
from crisp_stream.writers.embedding.probe import ENCODER_NAME
from crisp_stream.writers.embedding.student import (
    DISTILLED_NAME,
    STUDENT_FACTS,
    STUDENT_FILES,
    StudentFacts,
    facts_of,
    read_facts,
)
from crisp_stream.writers.engine.tasks import Runner
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.publish import system_errors
from crisp_stream.writers.publishing.work import work_folder
from crisp_stream.writers.stages.documents import read_documents_in_stages
from crisp_stream.writers.stages.models import check_encoder, check_tokenizer, fitted_in_stages, tokenizer_in_stages
from crisp_stream.writers.write import engine_of


def fit(options: WriteOptions, *, log: Log = print) -> StudentFacts:
    """Fit a student on documents and leave its files in the folder `out`, which `write --encoder` takes.

    Raises:
        InputError: bad input or options, too little text, or a folder that is taken.
        StorageError: the storage refused or failed.
    """
    if options.encoder != DISTILLED_NAME:
        raise InputError(f"encoder: must be {DISTILLED_NAME} to be fitted, got {options.encoder!r}. Leave it out.")
    target = Path(options.out)
    if is_remote(options.out) or target.exists():
        raise InputError(f"out: must be a new local folder, got {options.out}. Choose another --out.")
    with (
        system_errors(options.out),
        contextlib.closing(engine_of(options)) as engine,
        work_folder(options, log) as workspace,
    ):
        runner = Runner(engine, workspace, log=log)
        source = check_tokenizer(options, None)
        encoder = check_encoder(runner, options, None)
        read = read_documents_in_stages(runner, options)
        tokenizer = tokenizer_in_stages(runner, options, read, None, source)
        key = fitted_in_stages(runner, options, read, tokenizer, encoder)
        folder = target.with_name(f".{target.name}.incoming")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in (*STUDENT_FILES, ENCODER_NAME):
            (folder / name).write_bytes(workspace.read(f"{key}/{name}"))
        folder.rename(target)
    facts = read_facts(target)
    log(f"written to {options.out}")
    return facts


def inspect(target: str) -> str:
    """What is known of a student, as text.

    Args:
        target: folder of a student, or root of a dataset that one embedded.

    Raises:
        InputError: there is none. FormatError: its facts cannot be read. StorageError: the storage refused or failed.
    """
    store = open_store(target)
    for name in (STUDENT_FACTS, f"{FITTED_FOLDER}/{STUDENT_FACTS}"):
        if store.exists(name):
            return _text(facts_of(store.get(name), f"{target}/{name}"))
    raise InputError(
        f"{target}: must be a folder of `encoder fit`, or the root of a dataset written with --encoder distilled, got "
        f"none with {STUDENT_FACTS}. Check the path."
    )


def _text(facts: StudentFacts) -> str:
    quality = facts.quality
    return aligned(
        [
            ("teacher", f"{facts.teacher.get('name')} ({str(facts.teacher.get('weights_sha256'))[:12]}…)"),
            ("fitted on", f"{facts.teacher_windows:,} windows, of each {facts.stretch_tokens:,} tokens"),
            ("numbers of a vector", f"{facts.dim:,}"),
            ("tokenizer", f"{facts.vocab_size:,} ids, sha256 {facts.tokenizer[:12]}…"),
            ("held out", f"{quality.windows:,} windows, all of each"),
            ("  cosine to the teacher", f"{quality.cosine:.3f}; 95 % reach {quality.cosine_of_worst:.3f}"),
            ("  correlation of distances", f"{quality.distances:.3f}"),
        ]
    )
