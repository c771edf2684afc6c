"""The options of `crisp-stream write`: default, unit, choices and help of each, once.

The command line of write, append and `tree fit` is declared from these fields (flags.py). It is built for every
command, so this module imports nothing heavy: numpy alone takes 0.4 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Literal

from crisp_stream.errors import InputError
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.writers.documents.inputs import DEFAULT_TEXT_FIELD, LAYOUTS, DocumentSettings, Layout

if TYPE_CHECKING:
    from crisp_stream.format.manifest import Packing, Reads
    from crisp_stream.writers.cleaning.near_duplicates import NearSettings

Kind = Literal["text", "integer", "number", "switch", "megabytes", "size", "list", "repeated"]
"""Form of a value on the command line. megabytes: a number, for bytes. size: such as 8G, for bytes. list: values behind
one flag. repeated: the flag with a value each time."""
FLAG = "flag"
"""Key of the `Flag` in a field's metadata."""
WORK = "work (no effect on the bytes written)"
"""Title of the options of where the work is done."""
_PACKINGS: tuple[Packing, ...] = ("joined", "document")
_READS: tuple[Reads, ...] = ("first", "all")


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


def _flag(
    help_text: str,
    *,
    group: str,
    kind: Kind = "text",
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    name: str | None = None,
) -> dict[str, Flag]:
    return {FLAG: Flag(group=group, kind=kind, help=help_text, metavar=metavar, choices=choices, name=name)}


_plain = partial(_flag, group="")
_documents = partial(_flag, group="documents")
_windows = partial(_flag, group="windows")
_clustering = partial(_flag, group="clustering")
_shards = partial(_flag, group="shards")
_work = partial(_flag, group=WORK)


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """Options of a write. Everything but engine, address, processes, memory_bytes, work, keep_work,
    embeddings, group_bytes, run_bytes and sort_memory_bytes determines the bytes.

    Raises:
        InputError: a value out of range.
    """

    inputs: tuple[str, ...] | list[str]
    """Files, folders, prefixes or globs of documents, local or on an object store, or hf://NAME; read in this order."""
    out: str
    """Dataset root to create: local folder or object-store prefix."""

    text_column: str = field(default=DEFAULT_TEXT_FIELD, metadata=_plain("key or column of the text", metavar="NAME"))
    limit: int | None = field(default=None, metadata=_plain("read at most N documents", kind="integer", metavar="N"))
    like: str | None = field(
        default=None, metadata=_plain("use this dataset's tokenizer, tree, encoder and window length", metavar="ROOT")
    )
    tree: str | None = field(default=None, metadata=_plain("use those of a folder that `tree fit` made", metavar="DIR"))
    embeddings: str | None = field(
        default=None,
        metadata=_plain(
            "keep the embeddings of all windows in this folder, as `embed` makes them, without embedding twice",
            metavar="DIR",
        ),
    )
    """A folder that all machines see, with Ray."""

    sample: float | None = field(
        default=None,
        metadata=_documents("keep this share of the documents, 0 to 1, at random", kind="number", metavar="SHARE"),
    )
    """Documents are chosen by a hash of their place."""
    id_column: str | None = field(
        default=None, metadata=_documents("key, column or dotted path of the documents' own ids", metavar="NAME")
    )
    filters: tuple[str, ...] | list[str] = field(
        default=(),
        metadata=_documents(
            "keep documents for which EXPR holds, such as 'quality.score >= 0.5'; may be repeated",
            kind="repeated",
            metavar="EXPR",
            name="filter",
        ),
    )
    layout: Layout = field(
        default="files",
        metadata=_documents("redpajama-v2: documents/ and quality_signals/, English head and middle", choices=LAYOUTS),
    )
    skip_corrupt: bool = field(
        default=False,
        metadata=_documents("leave out, name and count files that cannot be read to their end", kind="switch"),
    )
    dedup: str | None = field(
        default=None, metadata=_documents("exact: equal texts once; near: similar ones too", choices=("exact", "near"))
    )
    near_threshold: float = field(
        default=0.8, metadata=_documents("similarity of near-duplicates, 0.5 to 0.99", kind="number", metavar="J")
    )
    decontaminate: tuple[str, ...] | list[str] = field(
        default=(),
        metadata=_documents(
            "evaluation files; documents that share an n-gram with them are left out and listed",
            kind="list",
            metavar="FILE",
        ),
    )
    ngram: int = field(default=13, metadata=_documents("words of such an n-gram", kind="integer", metavar="N"))

    window_tokens: int = field(default=1024, metadata=_windows("tokens per window", kind="integer", metavar="N"))
    packing: Packing = field(
        default="joined",
        metadata=_windows(
            "joined: documents joined by end-of-text, then cut; document: no window crosses one, tails are padded",
            choices=_PACKINGS,
        ),
    )
    part_characters: int = field(
        default=2 << 20,
        metadata=_windows(
            "text of a part, the unit of work and restarting; windows are cut inside parts, so it changes the bytes",
            kind="integer",
            metavar="N",
        ),
    )
    tokenizer: str | None = field(
        default=None, metadata=_windows("folder, tokenizer.json or hub name; trained when absent", metavar="PATH")
    )
    """Trained is a byte-level BPE, on 20 MB of text from all over the corpus."""
    vocab_size: int = field(
        default=32_000, metadata=_windows("ids of a trained tokenizer", kind="integer", metavar="N")
    )

    encoder: str | None = field(
        default=None,
        metadata=_clustering(
            "folder or hub name, all-MiniLM-L6-v2 when absent; lsi: TF-IDF and SVD, fitted on the corpus",
            metavar="NAME",
        ),
    )
    max_length: int | None = field(
        default=None,
        metadata=_clustering(
            "word pieces read at once; the encoder's own limit when absent", kind="integer", metavar="N"
        ),
    )
    reads: Reads = field(
        default="first",
        metadata=_clustering(
            "first: the first max-length word pieces of a window; all: the mean over all of it, 4 times the work",
            choices=_READS,
        ),
    )
    arity: int = field(default=64, metadata=_clustering("children per node, 2 to 64", kind="integer", metavar="N"))
    depth: int = field(
        default=4,
        metadata=_clustering("levels at most; nodes with few windows stay leaves", kind="integer", metavar="N"),
    )
    min_examples_to_split: int | None = field(
        default=None,
        metadata=_clustering(
            "windows below which a node stays a leaf; 16 x arity when absent",
            kind="integer",
            metavar="N",
            name="min-split",
        ),
    )
    fit_windows: int = field(
        default=1_000_000,
        metadata=_clustering("windows the tree is fitted on at most, about", kind="integer", metavar="N"),
    )
    """Chosen by hash where there are more."""
    seed: int = field(
        default=0, metadata=_clustering("of the tree and of the order inside a leaf", kind="integer", metavar="N")
    )

    shard_bytes: int = field(
        default=64 << 20, metadata=_shards("largest shard", kind="megabytes", metavar="MB", name="shard-mb")
    )
    shard_level: int = field(
        default=1,
        metadata=_shards(
            "no shard holds windows of two nodes of this level; 2 lets to_streams make a stream per level-2 node",
            kind="integer",
            metavar="L",
        ),
    )

    engine: str = field(default="local", metadata=_work("processes here, or a Ray cluster", choices=("local", "ray")))
    address: str | None = field(
        default=None, metadata=_work("of a running Ray cluster, such as auto; started when absent", metavar="ADDRESS")
    )
    processes: int | None = field(default=None, metadata=_work("one per core when absent", kind="integer", metavar="N"))
    memory_bytes: int | None = field(
        default=None,
        metadata=_work(
            "of all processes together, such as 8G; not limited when absent", kind="size", metavar="SIZE", name="memory"
        ),
    )
    run_bytes: int = field(
        default=64 << 20,
        metadata=_work(
            "tokens of a sorted run; 512 where there are trillions, for fewer requests",
            kind="megabytes",
            metavar="MB",
            name="run-mb",
        ),
    )
    """Sorting holds five times as much memory."""
    work: str | None = field(
        default=None,
        metadata=_work("folder or prefix for intermediate files, up to 3x the dataset; found again", metavar="DIR"),
    )
    """None: beside a local root, in the cache folder for a remote one (with Ray, beside the root)."""
    keep_work: bool = field(
        default=False, metadata=_work("keep the intermediate files for another write", kind="switch")
    )

    group_bytes: int = 16 << 20
    """Input files up to this size together are read by one task."""
    sort_memory_bytes: int = 64 << 20
    """Tokens sorted at once per process at most; sorting holds about four times as much."""

    def __post_init__(self) -> None:
        from crisp_stream.format.manifest import MAX_ARITY, MAX_LEAVES
        from crisp_stream.format.mds import MAX_SHARD_BYTES
        from crisp_stream.writers.embedding.lsi import LSI_NAME

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
        require(self.ngram >= 1, "ngram", "at least 1 word")
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
        require(self.fit_windows >= self.arity, "fit_windows", "at least the arity")
        require(self.run_bytes >= 1, "run_bytes", "at least 1")
        require(self.sort_memory_bytes >= 1, "sort_memory_bytes", "at least 1")
        require(
            self.encoder != LSI_NAME or self.reads == "first", "reads", "left out with --encoder lsi, which reads all"
        )
        self._check_models()
        _ = self.documents, self.sketches  # these check themselves

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
            id_field=self.id_column,
            filters=tuple(self.filters),
            layout=self.layout,
        )

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
