"""The stages from selected documents to a tree, as tasks over files: tokenizer -> windows -> embeddings -> tree.

Each function makes the tasks of its stage from what the stages before it left, and has the runner run those that are
not done.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import TOKENIZER_FILES, EncoderRecord
from crisp_stream.format.mds import TokenDtype
from crisp_stream.format.tokenizer import SLOW_BYTES_PER_CHARACTER
from crisp_stream.processes import Pool, preload
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.embedding.encoder_digest import first_module_file
from crisp_stream.writers.embedding.encoder_files import resolve_encoder, weights_files
from crisp_stream.writers.embedding.fitted import FITTED_FILES, fitted_kind
from crisp_stream.writers.embedding.given_models import Models
from crisp_stream.writers.embedding.lsi import FIT_BYTES, FIT_BYTES_PER_CHARACTER, LSI_NAME
from crisp_stream.writers.embedding.probe import ENCODER_NAME, EncoderFile
from crisp_stream.writers.embedding.student import DISTILLED_NAME, StudentEncoder, is_student, read_facts
from crisp_stream.writers.embedding.student_fit import FIT_BYTES as STUDENT_FIT_BYTES
from crisp_stream.writers.embedding.student_fit import FIT_BYTES_PER_WINDOW as STUDENT_FIT_BYTES_PER_WINDOW
from crisp_stream.writers.engine.engine import LocalEngine, holding, limit_of
from crisp_stream.writers.engine.memory_limit import DRIVER_BYTES
from crisp_stream.writers.engine.task_list import TaskList
from crisp_stream.writers.engine.tasks import Record, Runner, execute, finished
from crisp_stream.writers.given_tokenizer import GivenTokenizer, read_tokenizer
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.batches import read_batch
from crisp_stream.writers.stages.documents import ReadDocuments
from crisp_stream.writers.stages.student import GivenStudentTask, student_in_stages
from crisp_stream.writers.stages.tree import FittedTree, fit_tree_in_stages, require_windows, task_bytes
from crisp_stream.writers.stages.whole_corpus import (
    LSI_TOKENS,
    GivenFilesTask,
    GivenLsiTask,
    GivenTreeTask,
    LsiTask,
    TokenizerTask,
    spread,
)
from crisp_stream.writers.stages.windows import (
    EmbeddingsTask,
    EncoderSettings,
    EncoderTask,
    Part,
    PartCounts,
    Parts,
    PartsSummary,
    WindowSettings,
    WindowsTask,
    forget_encoders,
)
from crisp_stream.writers.tree.settings import TreeSettings
from crisp_stream.writers.windows import SAMPLE_CHARACTERS

_LSI_FIT = "fitting an LSI on this much text"
_STUDENT_FIT = "fitting a student on this many windows"
_TREE_FIT = "fitting a tree on this many windows"
_CHARACTERS_PER_TOKEN = 5
"""Rather more than English has, with a vocabulary of 32,000."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Tokenizer, encoder and tree that are taken from elsewhere."""

    models: Models
    encoder: EncoderChoice
    tree: GivenTreeTask
    fitted: GivenFilesTask | None
    """Of an encoder that a write fitted; without its files, which are 50 MB."""


def given_by(runner: Runner, models: Models, options: WriteOptions) -> Given:
    """Tokenizer, encoder and tree that exist already, for a new dataset.

    Raises:
        InputError: the options name another encoder, or another reading of it.
    """
    choice = matching_encoder(models.encoder, options.encoder, models.root)
    for name, option, recorded in (
        ("max_length", options.max_length, models.encoder.max_length),
        ("reads", None if options.reads == "first" else options.reads, models.encoder.reads),
        ("encoder_prompt", options.encoder_prompt, models.encoder.prompt),
    ):
        if option is not None and option != recorded:
            raise InputError(f"{name}: must be left out or {recorded} to be like {models.root}, got {option!r}.")
    if options.shard_level > models.tree.depth:
        raise InputError(
            f"shard_level: must be 1 to {models.tree.depth}, the depth of {models.root}, got {options.shard_level}."
        )
    workspace = runner.workspace
    digest, files = models.tree.fingerprint, models.tree.to_files()
    tree = GivenTreeTask(workspace=workspace, number=0, inputs=(), digest=digest, files=files)
    fitted, kind = None, fitted_kind(models.encoder)
    if kind is not None:
        digest, made = models.encoder.weights_sha256, GivenLsiTask if kind == LSI_NAME else GivenStudentTask
        fitted = made(workspace=workspace, number=0, inputs=(), digest=digest, files={})
    return Given(models=models, encoder=choice, tree=tree, fitted=fitted)


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokenizer of a write."""

    task: TokenizerTask
    token_dtype: TokenDtype
    settings: WindowSettings


def check_tokenizer(options: WriteOptions, given: Given | None) -> GivenTokenizer | None:
    """Read the tokenizer that is given, before the first document; None where one is trained. Raises InputError."""
    if given is not None:
        return read_tokenizer(str(given.models.tokenizer), window_tokens=given.models.window_tokens)
    if is_student(options.encoder):
        return _tokenizer_of_student(options)
    if options.tokenizer is None:
        return None
    return read_tokenizer(options.tokenizer, eot_token=options.eot_token, window_tokens=options.window_tokens)


def _tokenizer_of_student(options: WriteOptions) -> GivenTokenizer:
    """The tokenizer that a student reads; a given one must be the same. Raises InputError, FormatError."""
    assert options.encoder is not None
    facts = read_facts(Path(options.encoder))
    if options.tokenizer is None:
        return read_tokenizer(options.encoder, eot_token=facts.eot_token, window_tokens=options.window_tokens)
    given = read_tokenizer(options.tokenizer, eot_token=options.eot_token, window_tokens=options.window_tokens)
    fingerprint = hashlib.sha256(given.files[TOKENIZER_FILES[0]]).hexdigest()
    if fingerprint != facts.tokenizer:
        raise InputError(
            f"tokenizer {options.tokenizer}: must be the one that the distilled encoder {options.encoder} reads "
            f"(sha256 {facts.tokenizer[:12]}…), got {fingerprint[:12]}…. Leave --tokenizer out, or distil an encoder "
            "for this one: --encoder distilled."
        )
    return given


def tokenizer_in_stages(
    runner: Runner, options: WriteOptions, read: ReadDocuments, given: Given | None, source: GivenTokenizer | None
) -> Tokenizer:
    """Train the tokenizer, or bring the given one."""
    window_tokens = given.models.window_tokens if given else options.window_tokens
    task = TokenizerTask(
        workspace=runner.workspace,
        number=0,
        inputs=_duplicates_input(read) or tuple(task.fingerprint for task in read.tasks),
        given=source,
        vocab_size=options.vocab_size,
        window_tokens=window_tokens,
        batches=tuple(spread(read.batches, SAMPLE_CHARACTERS)),
    )
    [record] = runner.run([task], unit="")
    for reason in record["reasons"]:
        runner.log(reason)
    if source is None:
        runner.log(f"tokenizer: {record['vocab_size']:,} entries, trained on text from all over the corpus")
    fast, packing = bool(record["fast"]), options.packing
    settings = WindowSettings(tokenizer=task.key, fast_tokenizer=fast, window_tokens=window_tokens, packing=packing)
    return Tokenizer(task=task, token_dtype=record["token_dtype"], settings=settings)


@dataclass(frozen=True, kw_only=True)
class EmbeddedParts:
    """Windows with embeddings."""

    parts: Sequence[Part]
    windows: Sequence[WindowsTask]
    has_repeats: NDArray[np.bool_]
    """[num_parts], whether documents of each were removed as duplicates."""
    summary: PartsSummary
    tokenizer: WindowSettings
    fitted: str | None
    """Folder of the workspace with the files of an encoder that a write fitted and that embedded them."""
    fitted_files: tuple[str, ...]
    """Names of these files."""
    encoder_file: bytes
    """What a dataset keeps of its encoder: the content of encoder/encoder.json."""

    @property
    def window_tokens(self) -> int:
        """Tokens of a window."""
        return self.tokenizer.window_tokens


def parts_in_stages(
    runner: Runner,
    options: WriteOptions,
    read: ReadDocuments,
    tokenizer: Tokenizer,
    encoder: EncoderSettings,
    given: Given | None,
    *,
    first_part: int = 0,
    both_at_once: bool = False,
) -> EmbeddedParts:
    """Cut and embed all documents; `both_at_once` embeds parts while others are still cut, because GPUs would wait.

    Raises:
        InputError: not one window.
    """
    _require_room_to_fit(runner, options, read, encoder, given)
    _require_room(runner, read, tokenizer)
    windows = _windows_tasks(runner, read, tokenizer, encoder, first_part)
    counts = PartCounts(len(windows), first_part=first_part)
    used: dict[str, Any] = {}
    """Record of the encoder, as the first part says it."""

    def take_embedded(number: int, record: Record) -> None:
        if number == first_part:
            used.update(record["encoder"])

    if both_at_once and not encoder.is_fitted:
        embeddings = _embeddings_tasks(windows, tokenizer, encoder)
        runner.run_both(windows, embeddings, counts.add, take_embedded, unit="windows")
        _require_windows(counts, tokenizer, given, options)
    else:
        runner.run_each(windows, counts.add, unit="windows")
        _require_windows(counts, tokenizer, given, options)
        if encoder.is_fitted:
            encoder = _with_fitted(runner, options, read, tokenizer, encoder, given, _parts(windows, counts))
        embeddings = _embeddings_tasks(windows, tokenizer, encoder)
        runner.run_each(embeddings, take_embedded, unit="windows", num_units=counts.windows_per_part.tolist())
    forget_encoders()
    summary = PartsSummary.of(counts, encoder=EncoderRecord(**used), token_dtype=tokenizer.token_dtype)
    return EmbeddedParts(
        parts=_parts(windows, counts, embeddings),
        windows=windows,
        has_repeats=counts.has_repeats,
        summary=summary,
        tokenizer=tokenizer.settings,
        fitted=encoder.fitted,
        fitted_files=FITTED_FILES.get(encoder.name or "", ()),
        encoder_file=_encoder_file(runner, encoder, given),
    )


def fitted_in_stages(
    runner: Runner, options: WriteOptions, read: ReadDocuments, tokenizer: Tokenizer, encoder: EncoderSettings
) -> str:
    """Cut all documents into windows and fit an encoder on them; the folder of the workspace with its files.

    Raises:
        InputError: not one window, or too few to fit.
    """
    _require_room_to_fit(runner, options, read, encoder, None)
    _require_room(runner, read, tokenizer)
    windows = _windows_tasks(runner, read, tokenizer, encoder, 0)
    counts = PartCounts(len(windows), first_part=0)
    runner.run_each(windows, counts.add, unit="windows")
    _require_windows(counts, tokenizer, None, options)
    fitted = _with_fitted(runner, options, read, tokenizer, encoder, None, _parts(windows, counts)).fitted
    assert fitted is not None
    forget_encoders()
    return fitted


def _require_room(runner: Runner, read: ReadDocuments, tokenizer: Tokenizer) -> None:
    """Raises InputError: a document is too large for `tokenizers`, which takes 112 bytes of memory per character."""
    room_bytes = None if runner.engine is None else runner.engine.work_bytes()
    if room_bytes is None or tokenizer.settings.fast_tokenizer or not len(read.batches):
        return
    num_characters, at = read.batches.longest_document()
    needed = num_characters * SLOW_BYTES_PER_CHARACTER
    if needed > room_bytes:
        batch = read_batch(runner.workspace, read.batches[at].name)
        longest = int(np.argmax(list(map(len, batch.texts))))
        least = (DRIVER_BYTES + needed >> 20) + 1
        raise InputError(
            f"memory: document {batch.rows[longest]} of {read.files[batch.files[longest]].name} has "
            f"{num_characters:,} characters and takes {needed >> 20} MB of memory while this tokenizer encodes it, got "
            f"{room_bytes >> 20} MB for the data of a process. Give more (at least {least} MB with --processes 1), cut "
            "the document or take it out, or take a tokenizer that tiktoken equals."
        )


def _windows_tasks(
    runner: Runner, read: ReadDocuments, tokenizer: Tokenizer, encoder: EncoderSettings, first_part: int
) -> TaskList[WindowsTask]:
    duplicates = _duplicates_input(read)

    def make(at: int) -> WindowsTask:
        batch = read.batches[at]
        return WindowsTask(
            workspace=runner.workspace,
            number=first_part + at,
            inputs=(read.tasks[batch.group].fingerprint, tokenizer.task.fingerprint, *duplicates),
            batch=batch.name,
            first_document=batch.first_document,
            removed=batch.removed,
            windows=tokenizer.settings,
            encoder=encoder,
        )

    return TaskList(len(read.batches), make)


def _with_fitted(
    runner: Runner,
    options: WriteOptions,
    read: ReadDocuments,
    tokenizer: Tokenizer,
    encoder: EncoderSettings,
    given: Given | None,
    parts: Parts,
) -> EncoderSettings:
    """Fit an LSI or a student on the windows, or bring the given one; the encoder with it."""
    if given is not None:
        task = given.fitted
        assert task is not None
        fitted = runner.run_here(replace(task, files=given.models.fitted_files()))
    elif is_student(options.encoder):
        task = _given_student(runner, str(options.encoder))
        fitted = runner.run_here(task)
    elif encoder.teacher is not None:
        with holding(runner.engine, _STUDENT_FIT, _student_fit_bytes(options)):
            task, fitted = student_in_stages(
                runner,
                parts,
                tokenizer.settings,
                encoder.teacher,
                num_windows=options.teacher_windows,
                seed=options.seed,
            )
    else:
        task = LsiTask(
            workspace=runner.workspace,
            number=0,
            inputs=tuple(part.fingerprint for part in parts),
            parts=parts,
            windows=tokenizer.settings,
            seed=options.seed,
        )
        if runner.engine is not None:
            task.write_parts()
        with holding(runner.engine, _LSI_FIT, _lsi_fit_bytes(read)):
            [fitted] = runner.run([task], unit="")
    digest = fitted["weights_sha256"]
    return EncoderSettings(name=encoder.name, weights_sha256=digest, fitted=task.key, probe=encoder.probe)


def _given_student(runner: Runner, folder: str) -> GivenStudentTask:
    """A student that stands in a folder. Raises FormatError."""
    student = StudentEncoder.load(Path(folder))
    files = {name: (Path(folder) / name).read_bytes() for name in FITTED_FILES[DISTILLED_NAME]}
    files[ENCODER_NAME] = EncoderFile.of(student).to_json()
    digest = student.weights_sha256
    return GivenStudentTask(workspace=runner.workspace, number=0, inputs=(), digest=digest, files=files)


def _encoder_file(runner: Runner, encoder: EncoderSettings, given: Given | None) -> bytes:
    """The file that a new encoder's task made; of a given one that of its dataset, byte for byte."""
    if given is not None:
        return given.models.encoder_file()
    key = encoder.fitted or EncoderTask(workspace=runner.workspace, number=0, inputs=(), encoder=encoder).key
    return runner.workspace.read(f"{key}/{ENCODER_NAME}")


def check_encoder(runner: Runner, options: WriteOptions, given: Given | None) -> EncoderSettings:
    """Settle the encoder and try it, before the first document is read.

    Where it would take memory that later stages count on, it is tried in a process of its own, which ends.

    Raises:
        InputError: it cannot be found, loaded or used, or needs more memory than is allowed.
    """
    encoder = _encoder_settings(options, given)
    if not encoder.is_fitted:
        _try_encoder(runner, encoder)
    elif encoder.teacher is not None:
        _try_encoder(runner, encoder.teacher)
    return encoder


def _try_encoder(runner: Runner, encoder: EncoderSettings) -> None:
    if not encoder.static:
        _count_encoder(runner, encoder.name)
        preload("sentence_transformers")
    task = EncoderTask(workspace=runner.workspace, number=0, inputs=(), encoder=encoder)
    engine = runner.engine
    if finished(runner.workspace, [task]):
        return
    if engine is None:  # a plan
        task.tried()
    elif isinstance(engine, LocalEngine) and not encoder.static and engine.keeps_encoders_out:
        with contextlib.closing(Pool(1)) as pool:
            list(pool.map_unordered(execute, [task]))
    else:
        runner.run([task], unit="")


def _count_encoder(runner: Runner, name: str | None) -> None:
    engine = runner.engine
    if isinstance(engine, LocalEngine) and engine.limit is not None and not engine.has_gpus:
        source = resolve_encoder(name)[0]
        files = weights_files(source, first_module_file(source, ""))
        engine.limit.count_encoder(sum(file.stat().st_size for file in files))


def _lsi_fit_bytes(read: ReadDocuments) -> int:
    return FIT_BYTES + FIT_BYTES_PER_CHARACTER * min(read.batches.num_characters, LSI_TOKENS * _CHARACTERS_PER_TOKEN)


def _student_fit_bytes(options: WriteOptions) -> int:
    return STUDENT_FIT_BYTES + STUDENT_FIT_BYTES_PER_WINDOW * options.teacher_windows


def _require_room_to_fit(
    runner: Runner, options: WriteOptions, read: ReadDocuments, encoder: EncoderSettings, given: Given | None
) -> None:
    """Raises InputError: the fit of an encoder needs more memory than there is."""
    limit = limit_of(runner.engine)
    if limit is None or given is not None:
        return
    if encoder.name == LSI_NAME:
        limit.require(_LSI_FIT, _lsi_fit_bytes(read))
    elif encoder.teacher is not None:
        limit.require(_STUDENT_FIT, _student_fit_bytes(options))


def _duplicates_input(read: ReadDocuments) -> tuple[str, ...]:
    return (read.duplicates.fingerprint,) if read.duplicates else ()


def _encoder_settings(options: WriteOptions, given: Given | None) -> EncoderSettings:
    if given is not None and given.fitted is not None:
        digest = given.models.encoder.weights_sha256
        return EncoderSettings(name=fitted_kind(given.models.encoder), weights_sha256=digest, probe=given.encoder.probe)
    if given is not None:
        return _neural_settings(given.encoder, given.models.encoder.weights_sha256)
    if is_student(options.encoder):
        _require_absent(options)
        return EncoderSettings(name=DISTILLED_NAME)
    if options.encoder == DISTILLED_NAME:
        teacher = teacher_choice(options)
        return EncoderSettings(name=DISTILLED_NAME, teacher=_neural_settings(teacher, teacher.open().weights_sha256))
    if options.encoder == LSI_NAME:
        return EncoderSettings(name=LSI_NAME)
    choice = EncoderChoice(
        name=options.encoder, max_length=options.max_length, reads=options.reads, prompt=options.encoder_prompt
    )
    return _neural_settings(choice, choice.open().weights_sha256)


def _require_absent(options: WriteOptions) -> None:
    """Raises InputError: options that say how a student reads, which reads all tokens of a window as they are."""
    given = {"max_length": options.max_length, "encoder_prompt": options.encoder_prompt}
    given["reads"] = None if options.reads == "first" else options.reads
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name}: must be left out with a distilled encoder that is given ({options.encoder}), got {value!r}. "
                "It reads the tokens of a window as they are. Leave it out."
            )


def teacher_choice(options: WriteOptions) -> EncoderChoice:
    """The teacher, which reads all of a text. Raises InputError."""
    choice = EncoderChoice(name=options.teacher, max_length=options.max_length, prompt=options.encoder_prompt)
    return choice if choice.is_static else replace(choice, reads="all")


def _neural_settings(choice: EncoderChoice, digest: str) -> EncoderSettings:
    name = choice.name
    if name is not None and Path(name).is_dir():
        name = str(Path(name).resolve())  # workers may stand elsewhere
    return EncoderSettings(
        name=name,
        max_length=choice.max_length,
        reads=choice.reads,
        prompt=choice.prompt,
        static=choice.is_static,
        weights_sha256=digest,
        probe=choice.probe,
    )


def _embeddings_tasks(
    windows: Sequence[WindowsTask], tokenizer: Tokenizer, encoder: EncoderSettings
) -> TaskList[EmbeddingsTask]:
    def make(at: int) -> EmbeddingsTask:
        task = windows[at]
        return EmbeddingsTask(
            workspace=task.workspace,
            number=task.number,
            inputs=(task.fingerprint,),
            windows_key=task.key,
            windows=tokenizer.settings,
            encoder=encoder,
        )

    return TaskList(len(windows), make)


def _parts(
    windows: TaskList[WindowsTask], counts: PartCounts, embeddings: TaskList[EmbeddingsTask] | None = None
) -> Parts:
    """The parts; without `embeddings` they are not embedded yet."""
    rows = np.zeros(len(windows), Parts.ROW)
    rows["number"] = np.arange(len(windows)) + (windows[0].number if len(windows) else 0)
    rows["num_windows"], rows["windows"] = counts.windows_per_part, windows.fingerprints()
    if embeddings is not None:
        rows["embeddings"] = embeddings.fingerprints()
    return Parts(rows)


def _require_windows(counts: PartCounts, tokenizer: Tokenizer, given: Given | None, options: WriteOptions) -> None:
    """Raises InputError: there is not one window, or too few of them to fit a tree on; before they are embedded."""
    num_windows = int(counts.windows_per_part.sum())
    if not num_windows:
        num_documents = counts.sums["num_documents"]
        num_tokens = sum(counts.dropped_tokens.values())
        raise InputError(
            f"inputs: must fill at least one window of {tokenizer.settings.window_tokens} tokens, got "
            f"{num_tokens} tokens in {num_documents} documents. "
            "Give more text, a smaller --window-tokens, or --packing document."
        )
    if given is None:
        require_windows(num_windows, options.arity)


def tree_in_stages(runner: Runner, options: WriteOptions, parts: Sequence[Part]) -> FittedTree:
    """Fit the tree of a write. Fewer processes run where memory is limited, because each holds examples of a node."""
    engine = runner.engine
    settings = tree_settings(options)
    if not isinstance(engine, LocalEngine) or engine.limit is None:
        return fit_tree_in_stages(runner, parts, settings, fit_windows=options.fit_windows)
    num_windows = sum(part.num_windows for part in parts)
    dim = runner.workspace.array(f"{parts[0].embeddings_key}.embeddings.npy").shape[1]
    with engine.each_holding(_TREE_FIT, task_bytes(settings, num_windows, dim)) as work_bytes:
        return fit_tree_in_stages(runner, parts, settings, fit_windows=options.fit_windows, work_bytes=work_bytes)


def tree_settings(options: WriteOptions) -> TreeSettings:
    """Settings of the tree of a write."""
    names = ("arity", "depth", "min_examples_to_split", "seed")
    return TreeSettings(**{name: getattr(options, name) for name in names})
