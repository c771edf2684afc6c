"""The options of `crisp-stream write`: default, unit, choices and help of each, once.

The command line of write, append and `tree fit` is declared from these fields (flags.py). It is built for every
command, so this module imports nothing heavy: numpy alone takes 0.4 s.
"""

# ruff: noqa: RUF009 (defaults that call `_option` are fields of dataclasses)

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from crisp_stream.errors import InputError
from crisp_stream.records.readers import TXT_DOCUMENTS, TxtDocuments
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.writers.documents.bad_records import Budget
from crisp_stream.writers.documents.inputs import (
    DEFAULT_TEXT_FIELD,
    LAYOUTS,
    MISSING_RULES,
    DocumentSettings,
    Layout,
    Missing,
)

if TYPE_CHECKING:
    from crisp_stream.format.manifest import Packing, Reads
    from crisp_stream.writers.cleaning.near_duplicates import NearSettings

Kind = Literal["text", "integer", "number", "switch", "megabytes", "size", "list", "repeated"]
"""Form of a value on the command line. megabytes: a number, for bytes. size: such as 8G, for bytes. list: values behind
one flag. repeated: the flag with a value each time."""
MIN_NGRAM, MAX_NGRAM = 2, 64
"""Words of an n-gram of evaluation sets."""
FLAG = "flag"
"""Key of the `Flag` in a field's metadata."""
WORK = "work (no effect on the bytes written)"
"""Title of the options of where the work is done."""
NEUTRAL = (
    *("out", "engine", "address", "processes", "memory_bytes", "run_bytes", "range_bytes", "sort_memory_bytes"),
    *("work", "keep_work", "embeddings", "take_over", "max_bad"),
)
"""Options that decide no byte; all others are part of the request (publishing/request.py)."""
_PACKINGS: tuple[Packing, ...] = ("joined", "document")
_READS: tuple[Reads, ...] = ("first", "all")
_METAVARS: dict[Kind, str] = {"integer": "N", "megabytes": "MB", "size": "SIZE"}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Description of a field on the command line."""

    group: str
    """Title of its group in the help; empty for none."""
    kind: Kind
    help: str
    metavar: str | None
    choices: tuple[str, ...]
    name: str | None
    """Name behind the dashes; None is the field's."""


def _option(
    default: Any,
    help_text: str,
    kind: Kind = "text",
    *,
    group: str,
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    name: str | None = None,
) -> Any:
    metavar = metavar or _METAVARS.get(kind)
    flag = Flag(group=group, kind=kind, help=help_text, metavar=metavar, choices=choices, name=name)
    return field(default=default, metadata={FLAG: flag})


_plain = partial(_option, group="")
_documents = partial(_option, group="documents")
_windows = partial(_option, group="windows")
_clustering = partial(_option, group="clustering")
_shards = partial(_option, group="shards")
_work = partial(_option, group=WORK)


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """Options of a write. All but those of `NEUTRAL` determine the bytes: FORMAT.md, "What decides the bytes".

    Raises:
        InputError: a value out of range.
    """

    inputs: tuple[str, ...] | list[str]
    """Files, folders, prefixes or globs of documents, local or on an object store, or hf://NAME; read in this order."""
    out: str
    """Dataset root to create: local folder or object-store prefix."""

    text_column: str = _plain(DEFAULT_TEXT_FIELD, "key or column of the text", metavar="NAME")
    limit: int | None = _plain(None, "read at most N documents", "integer")
    like: str | None = _plain(None, "use this dataset's tokenizer, tree, encoder and window length", metavar="ROOT")
    tree: str | None = _plain(None, "use those of a folder that `tree fit` made", metavar="DIR")
    embeddings: str | None = _plain(
        None,
        "keep the embeddings of all windows in this folder, as `embed` makes them, without embedding twice",
        metavar="DIR",
    )
    """A folder that all machines see, with Ray."""
    take_over: bool = _plain(
        False,
        "take ROOT from another write or append that has claimed it and was given up",
        "switch",
    )

    sample: float | None = _documents(
        None, "keep this share of the documents, 0 to 1, at random", "number", metavar="SHARE"
    )
    """Documents are chosen by a hash of their place."""
    id_column: str | None = _documents(None, "key, column or dotted path of the documents' own ids", metavar="NAME")
    filters: tuple[str, ...] | list[str] = _documents(
        (),
        "keep documents for which EXPR holds, such as 'quality.score >= 0.5'; may be repeated",
        "repeated",
        metavar="EXPR",
        name="filter",
    )
    text_template: str | None = _documents(
        None,
        r"text of several fields, such as '{title}\n\n{body}'; chat: the turns of messages, conversations, prompt and "
        "response, or instruction and output",
        metavar="TEXT",
    )
    txt_documents: TxtDocuments = _documents(
        "file", "document of a .txt file: all of it, a line, or a block between blank lines", choices=TXT_DOCUMENTS
    )
    layout: Layout = _documents(
        "files", "redpajama-v2: documents/ and quality_signals/, English head and middle", choices=LAYOUTS
    )
    max_bad: str = _documents(
        "0",
        "bad records to leave out, count and list at most, as a number or a share such as 0.1%%",
        metavar="N|P%",
    )
    """Records without JSON, without the text, or with a value that cannot be used."""
    missing: Missing = _documents(
        "error",
        "a record without a field that is named (text, id, of a filter): error: a bad record; drop: left out, counted",
        choices=MISSING_RULES,
    )
    skip_corrupt: bool = _documents(
        False,
        "leave out, list and count files and folders that cannot be read (damaged, no permission, link to nothing)",
        "switch",
    )
    exclude_ids: tuple[str, ...] | list[str] = _documents(
        (),
        "ids of documents to leave out: .parquet with doc_id, or .txt of one id a line",
        "list",
        metavar="FILE",
    )
    dedup: str | None = _documents(None, "exact: equal texts once; near: similar ones too", choices=("exact", "near"))
    near_threshold: float = _documents(0.8, "similarity of near-duplicates, 0.5 to 0.99", "number", metavar="J")
    decontaminate: tuple[str, ...] | list[str] = _documents(
        (), "evaluation files; documents that share an n-gram with them are left out and listed", "list", metavar="FILE"
    )
    ngram: int = _documents(13, "words of such an n-gram, 2 to 64", "integer")
    question_keys: str | None = _documents(
        None,
        "keys of evaluation questions in no known layout: question=KEY,choices=KEY",
        metavar="KEYS",
    )

    window_tokens: int = _windows(1024, "tokens per window", "integer")
    packing: Packing = _windows(
        "joined",
        "joined: documents joined by end-of-text, then cut; document: no window crosses one, tails are padded",
        choices=_PACKINGS,
    )
    part_characters: int = _windows(
        2 << 20,
        "text of a part, the unit of work and restarting; windows are cut inside parts, so it changes the bytes",
        "integer",
    )
    tokenizer: str | None = _windows(None, "folder, tokenizer.json or hub name; trained when absent", metavar="PATH")
    """Trained is a byte-level BPE, on 20 MB of text from all over the corpus."""
    eot_token: str | None = _windows(
        None,
        "end-of-text token of the given tokenizer, such as '</s>'; when absent eos_token of its tokenizer_config.json "
        "or special_tokens_map.json, else <|endoftext|>",
        metavar="TOKEN",
    )
    vocab_size: int = _windows(32_000, "ids of a trained tokenizer", "integer")

    encoder: str | None = _clustering(
        None,
        "folder or hub name, all-MiniLM-L6-v2 when absent; fitted on the corpus: lsi, TF-IDF and SVD; distilled, a "
        "fast student of --teacher; or the folder of a student, as `encoder fit` makes it",
        metavar="NAME",
    )
    teacher: str | None = _clustering(
        None, "folder or hub name of the encoder that is distilled, all-MiniLM-L6-v2 when absent", metavar="NAME"
    )
    teacher_windows: int = _clustering(
        10_000, "windows that the teacher embeds, about, or all; a core does 14 a second", "integer"
    )
    """Of each it reads a stretch of 256 tokens."""
    max_length: int | None = _clustering(
        None, "word pieces read at once; the encoder's own limit when absent", "integer"
    )
    reads: Reads = _clustering(
        "first",
        "first: the first max-length word pieces of a window; all: the mean over all of it, 4 times the work",
        choices=_READS,
    )
    encoder_prompt: str | None = _clustering(
        None,
        "stands before the text of every window and, later, of every example, such as 'query: ' for E5; the encoder's "
        "own when absent, mostly none",
        metavar="TEXT",
    )
    arity: int = _clustering(64, "children per node, 2 to 64", "integer")
    depth: int = _clustering(4, "levels at most; nodes with few windows stay leaves", "integer")
    min_examples_to_split: int | None = _clustering(
        None, "windows below which a node stays a leaf; 16 x arity when absent", "integer", name="min-split"
    )
    fit_windows: int | None = _clustering(
        None, "windows the tree is fitted on at most, about; all when absent", "integer"
    )
    """Chosen by hash where there are more."""
    seed: int = _clustering(0, "seed of the tree and of the order inside a leaf", "integer")

    shard_bytes: int = _shards(64 << 20, "largest shard", "megabytes", name="shard-mb")
    shard_level: int = _shards(
        1,
        "no shard holds windows of two nodes of this level; 2 lets to_streams make a stream per level-2 node",
        "integer",
        metavar="L",
    )

    engine: str = _work("local", "processes here, or a Ray cluster", choices=("local", "ray"))
    address: str | None = _work(
        None, "address of a running Ray cluster, such as auto; started when absent", metavar="ADDRESS"
    )
    processes: int | None = _work(None, "worker processes; one per core when absent", "integer")
    memory_bytes: int | None = _work(
        None, "memory of all processes together, such as 8G; not limited when absent", "size", name="memory"
    )
    run_bytes: int = _work(
        64 << 20,
        "tokens of a sorted run at most; 512 where there are trillions, for fewer requests",
        "megabytes",
        name="run-mb",
    )
    """Sorting holds five times as much memory."""
    work: str | None = _work(
        None, "folder or prefix for intermediate files, up to 3x the dataset; found again", metavar="DIR"
    )
    """None: beside a local root, in the cache folder for a remote one (with Ray, beside the root)."""
    keep_work: bool = _work(False, "keep the intermediate files for another write", "switch")

    group_bytes: int = 16 << 20
    """Input files up to this stored size together are read by one task. Its last part ends there, so it decides the
    bytes."""
    sort_memory_bytes: int = 64 << 20
    """Tokens, or embeddings, that a process reads at once while it writes shards, unless a shard is larger."""
    range_bytes: int = 4 << 30
    """Tokens of a range of sort keys, about, whose shards one task writes; more where there are over 16 TB."""

    def __post_init__(self) -> None:
        from crisp_stream.examples.question_layouts import QuestionKeys
        from crisp_stream.format.manifest import MAX_ARITY, MAX_LEAVES
        from crisp_stream.format.mds import MAX_SHARD_BYTES
        from crisp_stream.writers.embedding.lsi import LSI_NAME
        from crisp_stream.writers.embedding.student import DISTILLED_NAME
        from crisp_stream.writers.embedding.student_fit import LEAST_WINDOWS

        def require(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise InputError(f"{name}: must be {rule}, got {getattr(self, name)!r}.")

        for name, flag in flags().items():
            absent = type(self).__dataclass_fields__[name].default is None
            if flag.choices and not (absent and getattr(self, name) is None):
                rule = " or ".join(flag.choices) + (", or left out" if absent else "")
                require(getattr(self, name) in flag.choices, name, rule)
        require(bool(self.out), "out", "a folder or an object-store prefix")
        require(self.limit is None or self.limit >= 1, "limit", "at least 1 document, or left out")
        require(self.sample is None or 0 < self.sample <= 1, "sample", "above 0 and at most 1, or left out")
        require(MIN_NGRAM <= self.ngram <= MAX_NGRAM, "ngram", f"{MIN_NGRAM} to {MAX_NGRAM} words")
        QuestionKeys.parse(self.question_keys)
        require(2 <= self.window_tokens <= 1 << 20, "window_tokens", "2 to 1,048,576")
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
        require(
            self.fit_windows is None or self.fit_windows >= self.arity, "fit_windows", "at least the arity, or left out"
        )
        require(self.run_bytes >= 1, "run_bytes", "at least 1")
        require(self.sort_memory_bytes >= 1, "sort_memory_bytes", "at least 1")
        require(self.range_bytes >= 1, "range_bytes", "at least 1")
        require(
            self.encoder != LSI_NAME or self.reads == "first", "reads", "left out with --encoder lsi, which reads all"
        )
        require(
            self.encoder != LSI_NAME or self.encoder_prompt is None, "encoder_prompt", "left out with --encoder lsi"
        )
        require(
            self.encoder != DISTILLED_NAME or self.reads == "first",
            "reads",
            "left out with --encoder distilled, whose teacher reads all",
        )
        require(
            self.teacher is None or self.encoder == DISTILLED_NAME, "teacher", "left out without --encoder distilled"
        )
        require(
            self.teacher not in (LSI_NAME, DISTILLED_NAME),
            "teacher",
            "an encoder that exists already, as a folder or hub name",
        )
        require(self.teacher_windows >= 2 * LEAST_WINDOWS, "teacher_windows", f"at least {2 * LEAST_WINDOWS}")
        require(
            self.eot_token is None or (self.eot_token != "" and self.tokenizer is not None),
            "eot_token",
            "a token of the tokenizer that --tokenizer names, or left out",
        )
        self._check_models()
        _ = self.documents, self.bad_budget, self.sketches  # these check themselves

    def _check_models(self) -> None:
        given = self.like or self.tree
        if self.like is not None and self.tree is not None:
            raise InputError(f"tree: must be left out when like gives one, got {self.tree!r}. Drop one of the two.")
        if given is not None and self.tokenizer is not None:
            name = "like" if self.like is not None else "tree"
            raise InputError(
                f"tokenizer: must be left out when {name} gives one, got {self.tokenizer!r}. Drop one of the two."
            )
        if given is not None and is_remote(given) == is_remote(self.out) and _same_place(given, self.out):
            raise InputError(f"out: must be another root than like, got {self.out} for both.")

    @property
    def documents(self) -> DocumentSettings:
        """Settings by which documents are read. Raises InputError for filters that are none."""
        return DocumentSettings(
            text_field=self.text_column,
            text_template=self.text_template,
            txt_documents=self.txt_documents,
            id_field=self.id_column,
            filters=tuple(self.filters),
            layout=self.layout,
            missing=self.missing,
            skip_corrupt=self.skip_corrupt,
        )

    @property
    def bad_budget(self) -> Budget:
        """How many bad records may be left out. Raises InputError for a text that says none."""
        return Budget.parse(self.max_bad)

    @property
    def sketches(self) -> NearSettings | None:
        """Settings of the search for near-duplicates; None where there is none."""
        from crisp_stream.writers.cleaning.near_duplicates import NearSettings

        return NearSettings(threshold=self.near_threshold) if self.dedup == "near" else None


def flags() -> dict[str, Flag]:
    """The fields that are options of the command line, in the order of its help."""
    return {one.name: one.metadata[FLAG] for one in fields(WriteOptions) if FLAG in one.metadata}


def _same_place(one: str, other: str) -> bool:
    if is_remote(one):
        return one.rstrip("/") == other.rstrip("/")
    return local_path(one).resolve() == local_path(other).resolve()
