"""`crisp-stream write`: documents in, dataset out, restartable at every stage.

documents -> parts (tokenise, cut, embed) -> tree -> runs (assign, sort) -> shards -> publish, manifest last.

The work folder is named by what determines the result (options, and names, sizes and times of the input files), so
the same command goes on where an interrupted one stopped and publishes the same bytes. At its fullest it needs about
three times the room of the dataset; it is deleted after success.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format import MAX_ARITY, MAX_LEAVES, Dataset, Manifest, Packing, open_dataset
from crisp_stream.mds import MAX_SHARD_BYTES
from crisp_stream.storage import cache_folder, input_bytes, is_remote, local_path
from crisp_stream.writers import stages
from crisp_stream.writers.documents import list_document_files
from crisp_stream.writers.embed import Encoder, matching_encoder
from crisp_stream.writers.parts import PART_CHARACTERS, PartsSummary
from crisp_stream.writers.pool import Log, num_processes
from crisp_stream.writers.publish import check_root, publish
from crisp_stream.writers.shards import SORT_MEMORY_BYTES

FIT_WINDOWS = 1_000_000
SHARD_BYTES = 64 << 20
_QUICK_EXTRAS = ("tokenizers", "tiktoken", "sklearn", "faiss", "threadpoolctl")
"""Looked for before hours of work; sentence_transformers is too slow to import for that, and needed first anyway."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What to write, from what, and how. Everything but processes, work and sort_memory_bytes determines the bytes.

    Raises:
        InputError: a value out of range.
    """

    inputs: tuple[str, ...] | list[str]
    """Files, folders, prefixes or globs of documents, local or on an object store; read in this order."""
    out: str
    """The dataset root to create: local folder or object-store prefix."""
    text_column: str = "text"
    """Key or column of the text in JSONL and Parquet."""
    limit: int | None = None
    """Read at most this many documents."""
    sample: float | None = None
    """Keep about this share of the documents, chosen by a hash of their number; for corpora sorted by source."""
    window_tokens: int = 1024
    """Tokens of a window; taken from `like` where that is given."""
    packing: Packing = "joined"
    """joined: documents joined by end-of-text, then cut. document: a window never crosses a document."""
    tokenizer: str | None = None
    """Folder, tokenizer.json or hub name; None trains a byte-level BPE on the first 20 MB of text."""
    vocab_size: int = 32_000
    """Entries of a trained tokenizer."""
    encoder: str | None = None
    """Folder or hub name of a sentence encoder; None is all-MiniLM-L6-v2."""
    max_length: int | None = None
    """Word pieces that the encoder reads of a window; None is what it ships with (256)."""
    arity: int = 64
    """Children of a tree node."""
    depth: int = 4
    """Levels of the tree at most."""
    min_examples_to_split: int | None = None
    """A node with fewer fitted windows stays a leaf; None is 16 * arity."""
    seed: int = 0
    """Of the tree and of the order inside a leaf."""
    like: str | None = None
    """An existing dataset root whose tokenizer, tree, encoder and window_tokens are used instead of new ones."""
    shard_bytes: int = SHARD_BYTES
    """Largest shard, below 2^32."""
    shard_level: int = 1
    """Shards end at the borders of this level's nodes too, for `to_streams` at that level. Windows stay as they are."""
    part_characters: int = PART_CHARACTERS
    """Text of a part, the unit of work and restarting."""
    fit_windows: int = FIT_WINDOWS
    """Windows the tree is fitted on at most, about; chosen by hash where there are more."""
    processes: int | None = None
    """Worker processes; None is one per core."""
    work: str | None = None
    """Folder for intermediate files; None is beside a local root, or in the cache folder for a remote one."""
    sort_memory_bytes: int = SORT_MEMORY_BYTES
    """Tokens sorted at once per process; sorting holds about four times as much."""

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise InputError(f"{name}: must be {rule}, got {getattr(self, name)!r}.")

        require(bool(self.out), "out", "a folder or an object-store prefix")
        require(self.limit is None or self.limit >= 1, "limit", "at least 1 document, or left out")
        require(self.sample is None or 0 < self.sample <= 1, "sample", "above 0 and at most 1, or left out")
        require(2 <= self.window_tokens <= 1 << 20, "window_tokens", "2 to 1,048,576")
        require(self.packing in get_args(Packing), "packing", "joined or document")
        require(2 <= self.arity <= MAX_ARITY, "arity", f"2 to {MAX_ARITY}")
        require(
            self.depth >= 1 and self.arity**self.depth <= MAX_LEAVES,
            "depth",
            f"at least 1 with arity ** depth <= {MAX_LEAVES:,}",
        )
        require(
            self.min_examples_to_split is None or self.min_examples_to_split >= 1, "min_examples_to_split", "at least 1"
        )
        require(0 <= self.seed < 1 << 63, "seed", "0 to 2^63 - 1")
        require(1 <= self.shard_bytes <= MAX_SHARD_BYTES, "shard_bytes", "1 to 2^32 - 1")
        require(1 <= self.shard_level <= self.depth, "shard_level", f"1 to {self.depth}, the depth of the tree")
        require(self.part_characters >= 1, "part_characters", "at least 1")
        require(self.fit_windows >= self.arity, "fit_windows", "at least the arity")
        require(self.sort_memory_bytes >= 1, "sort_memory_bytes", "at least 1")
        if self.like is not None and self.tokenizer is not None:
            raise InputError(
                f"tokenizer: must be left out when like gives one, got {self.tokenizer!r}. Drop one of the two."
            )
        if self.like is not None and is_remote(self.like) == is_remote(self.out) and _same_place(self.like, self.out):
            raise InputError(f"out: must be another root than like, got {self.out} for both.")


@dataclass(frozen=True, kw_only=True)
class WriteReport:
    """What a write did."""

    root: str
    fingerprint: str
    """Of the dataset."""
    documents: int
    """In windows or dropped parts of windows; dropped documents not counted."""
    windows: int
    tokens: int
    """In windows, padding not counted."""
    dropped_documents: dict[str, int]
    dropped_tokens: dict[str, int]
    dataset_bytes: int
    leaves: int
    """Leaves that hold a window."""
    shards: int
    seconds: float
    """Of this run; stages that an earlier run had finished cost nothing."""

    def table(self) -> str:
        """The report as aligned lines."""
        rows = [
            ("dataset", self.root),
            ("documents in", f"{self.documents + sum(self.dropped_documents.values()):,}"),
            *((f"  dropped: {reason}", f"{count:,}") for reason, count in self.dropped_documents.items()),
            ("windows out", f"{self.windows:,}"),
            ("tokens in windows", f"{self.tokens:,}"),
            *((f"  tokens dropped: {reason}", f"{count:,}") for reason, count in self.dropped_tokens.items()),
            ("leaves with windows", f"{self.leaves:,}"),
            ("shards", f"{self.shards:,}"),
            ("bytes", f"{self.dataset_bytes:,}"),
            ("rate", f"{self.windows / self.seconds:,.1f} windows/s in {self.seconds:,.0f} s"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def write(options: WriteOptions, *, log: Log = print) -> WriteReport:
    """Write a dataset; see the module for the stages.

    Args:
        options: what and how.
        log: receives progress and the final table.

    Raises:
        InputError: bad input or options, nothing to write, or an output root that is taken.
        StorageError: the storage refused or failed.
        MissingExtraError: a library of the write extra is not installed.
    """
    started = time.monotonic()
    for module in _QUICK_EXTRAS:
        import_extra(module, extra="write", purpose="writing a dataset")
    processes = num_processes(options.processes)
    files = list_document_files(options.inputs)
    like = None if options.like is None else open_dataset(options.like)
    identity = _identity(options, files, like)
    with _work_folder(options, identity, log) as work:
        begun = work.manifest.read_bytes() if work.manifest.exists() else None
        check_root(options.out, ours=begun)
        if begun is None:
            _make(options, like, work, processes, log)
        summary = PartsSummary.load(work.parts_summary)
        content = work.manifest.read_bytes()
        dataset_bytes = publish(work.staged, options.out, content, log=log)
    report = _report(options, Manifest.from_json(content), summary, dataset_bytes, time.monotonic() - started)
    log(report.table())
    return report


def _make(options: WriteOptions, like: Dataset | None, work: stages.WorkFolder, processes: int, log: Log) -> None:
    """Every stage up to a staged dataset and its manifest."""
    if like is not None and options.shard_level > like.manifest.depth:
        raise InputError(
            f"shard_level: must be 1 to {like.manifest.depth}, the depth of {options.like}, got {options.shard_level}."
        )
    encoder = options.encoder if like is None else matching_encoder(like.manifest.encoder, options.encoder, like.root)
    max_length = options.max_length if like is None else like.manifest.encoder.max_length or None
    _ = Encoder(encoder, max_length=max_length).weights_sha256  # fetched and checked before any other work
    if max_length is not None and options.max_length not in (None, max_length):
        raise InputError(
            f"max_length: must be left out or {max_length} to be like {options.like}, got {options.max_length}."
        )
    window_tokens = options.window_tokens if like is None else like.manifest.window_tokens
    documents = stages.Documents(
        inputs=tuple(options.inputs), text_column=options.text_column, limit=options.limit, sample=options.sample
    )
    given = options.tokenizer if like is None else str(like.tokenizer_path())
    stages.make_tokenizer(
        work, documents, given=given, vocab_size=options.vocab_size, window_tokens=window_tokens, log=log
    )
    settings = stages.window_settings(
        work,
        documents,
        window_tokens=window_tokens,
        packing=options.packing,
        encoder=encoder,
        max_length=max_length,
        log=log,
    )
    summary = stages.make_parts(work, documents, settings, options.part_characters, processes=processes, log=log)
    if like is None:
        stages.make_tree(
            work,
            summary,
            arity=options.arity,
            depth=options.depth,
            min_examples_to_split=options.min_examples_to_split,
            seed=options.seed,
            fit_windows=options.fit_windows,
            log=log,
        )
    elif not work.tree.exists():
        stages.publish_folder(work.tree, like.tree.save)
    stages.sort_runs(work, summary, settings, seed=options.seed, processes=processes, log=log)
    records = stages.write_shards(
        work,
        shard_bytes=options.shard_bytes,
        shard_level=options.shard_level,
        memory_bytes=options.sort_memory_bytes,
        processes=processes,
        log=log,
    )
    stages.stage_dataset(
        work, records, summary, settings, seed=options.seed, provenance=_provenance(options, summary, like)
    )


def _provenance(options: WriteOptions, summary: PartsSummary, like: Dataset | None) -> dict[str, Any]:
    """Where the windows came from: base names only, and no times, so that equal input gives equal bytes."""
    fitted = {
        "fit_windows": options.fit_windows,
        "min_examples_to_split": options.min_examples_to_split,
        "seed": options.seed,
    }
    return {
        "inputs": [PurePosixPath(source.rstrip("/")).name for source in options.inputs],
        "text_column": options.text_column,
        "limit": options.limit,
        "sample": options.sample,
        "documents": summary.num_documents,
        "characters": summary.num_characters,
        "tokens": summary.num_tokens,
        "dropped_documents": summary.dropped_documents,
        "dropped_tokens": summary.dropped_tokens,
        "tokenizer": "like" if like else "trained" if options.tokenizer is None else "given",
        "tree": {"like": like.manifest.fingerprint} if like else fitted,
    }


def _report(
    options: WriteOptions, manifest: Manifest, summary: PartsSummary, dataset_bytes: int, seconds: float
) -> WriteReport:
    return WriteReport(
        root=options.out,
        fingerprint=manifest.fingerprint,
        documents=summary.num_documents,
        windows=manifest.num_windows,
        tokens=summary.num_tokens,
        dropped_documents=summary.dropped_documents,
        dropped_tokens=summary.dropped_tokens,
        dataset_bytes=dataset_bytes,
        leaves=manifest.num_leaves,
        shards=manifest.num_shards,
        seconds=max(seconds, 1e-9),
    )


def _same_place(one: str, other: str) -> bool:
    if is_remote(one):
        return one.rstrip("/") == other.rstrip("/")
    return local_path(one).resolve() == local_path(other).resolve()


def _identity(options: WriteOptions, files: list[str], like: Dataset | None) -> str:
    """12 hex digits over everything that determines the bytes, and the root they go to."""
    neutral = {"inputs", "out", "processes", "work", "sort_memory_bytes", "like"}
    chosen = {name: value for name, value in vars(options).items() if name not in neutral}
    times = [None if is_remote(file) else local_path(file).stat().st_mtime_ns for file in files]
    given = Path(options.tokenizer or "")
    given = given / "tokenizer.json" if options.tokenizer and given.is_dir() else given
    described = {
        **chosen,
        "files": [(file, input_bytes(file), modified) for file, modified in zip(files, times, strict=True)],
        "like": None if like is None else like.manifest.fingerprint,
        "out": options.out.rstrip("/") if is_remote(options.out) else str(local_path(options.out).resolve()),
        "tokenizer_sha256": hashlib.sha256(given.read_bytes()).hexdigest() if given.is_file() else None,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _work_folder(options: WriteOptions, identity: str, log: Log) -> Iterator[stages.WorkFolder]:
    """The locked work folder of this write; deleted on success, and on a failure that left nothing to go on from."""
    if options.work is not None:
        parent, prefix = Path(options.work), "write-"
    elif is_remote(options.out):
        parent, prefix = cache_folder() / "work", "write-"
    else:
        root = local_path(options.out).resolve()
        parent, prefix = root.parent, f".{root.name}.write-"
    folder = parent / f"{prefix}{identity}"
    for other in sorted(parent.glob(f"{prefix}*")) if not is_remote(options.out) and options.work is None else []:
        if other != folder:
            log(f"work: {other} is left from another unfinished write; delete it if you do not mean to finish that one")
    folder.mkdir(parents=True, exist_ok=True)
    work = stages.WorkFolder(folder)
    with work.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{options.out}: must be written by one process at a time, but the same write is running. "
                "Wait for it to end."
            ) from error
        try:
            yield work
        except BaseException:
            if work.holds_progress():
                log(f"work: kept in {folder}; run the same command again to go on")
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder)
