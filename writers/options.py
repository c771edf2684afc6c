"""What `crisp-stream write` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import MAX_ARITY, MAX_LEAVES, Packing, Reads
from crisp_stream.format.mds import MAX_SHARD_BYTES
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.writers.cleaning.near_duplicates import NearSettings
from crisp_stream.writers.documents.inputs import DocumentSettings, Layout
from crisp_stream.writers.embedding.lsi import LSI_NAME
from crisp_stream.writers.stages.batches import BATCH_CHARACTERS, GROUP_BYTES
from crisp_stream.writers.stages.runs import RUN_BYTES
from crisp_stream.writers.stages.shards import SORT_MEMORY_BYTES

FIT_WINDOWS = 1_000_000
SHARD_BYTES = 64 << 20
DEDUPLICATIONS = ("exact", "near")


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What to write, from what, and how. Everything but engine, address, processes, memory_bytes, work, keep_work,
    embeddings, group_bytes, run_bytes and sort_memory_bytes determines the bytes.

    Raises:
        InputError: a value out of range.
    """

    inputs: tuple[str, ...] | list[str]
    """Files, folders, prefixes or globs of documents, local or on an object store, or hf://NAME; read in this order."""
    out: str
    """The dataset root to create: local folder or object-store prefix."""
    text_column: str = "text"
    """Key, column or dotted path of the text."""
    id_column: str | None = None
    """Key, column or dotted path of the documents' own ids, kept as provenance."""
    filters: tuple[str, ...] | list[str] = ()
    """Documents are kept where all hold: `FIELD OPERATOR VALUE`."""
    layout: Layout = "files"
    """How the input folders are laid out."""
    limit: int | None = None
    """Read at most this many documents."""
    sample: float | None = None
    """Keep about this share of the documents, chosen by a hash of their place; for corpora sorted by source."""
    skip_corrupt: bool = False
    """Leave out input files that cannot be read to their end; otherwise they are errors."""
    dedup: str | None = None
    """exact: equal texts once. near: similar texts once, too."""
    near_threshold: float = 0.8
    """Similarity from which texts are near-duplicates."""
    decontaminate: tuple[str, ...] | list[str] = ()
    """Evaluation files with which no document may share an n-gram."""
    ngram: int = 13
    """Words of such an n-gram."""
    window_tokens: int = 1024
    """Tokens of a window; taken from `like` where that is given."""
    packing: Packing = "joined"
    """joined: documents joined by end-of-text, then cut. document: a window never crosses a document."""
    tokenizer: str | None = None
    """Folder, tokenizer.json or hub name; None trains a byte-level BPE on 20 MB of text from all over the corpus."""
    vocab_size: int = 32_000
    """Entries of a trained tokenizer."""
    encoder: str | None = None
    """Folder or hub name of a sentence encoder; None is all-MiniLM-L6-v2; lsi is TF-IDF and SVD fitted here."""
    max_length: int | None = None
    """Word pieces that the encoder reads at once; None is what it ships with (256)."""
    reads: Reads = "first"
    """first: the encoder reads the first max_length word pieces of a window. all: the mean over all of it."""
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
    tree: str | None = None
    """A folder that `tree fit` made, whose tokenizer, tree, encoder and window_tokens are used instead of new ones."""
    shard_bytes: int = SHARD_BYTES
    """Largest shard, below 2^32."""
    shard_level: int = 1
    """Shards end at the borders of this level's nodes too, for `to_streams` at that level. Windows stay as they are."""
    part_characters: int = BATCH_CHARACTERS
    """Text of a part, the unit of work and restarting."""
    fit_windows: int = FIT_WINDOWS
    """Windows the tree is fitted on at most, about; chosen by hash where there are more."""
    engine: str = "local"
    """local: processes of this machine. ray: a Ray cluster."""
    address: str | None = None
    """Of a running Ray cluster; None starts one on this machine."""
    processes: int | None = None
    """Worker processes; None is one per core."""
    memory_bytes: int | None = None
    """Of all processes together; None does not limit it."""
    work: str | None = None
    """Folder or prefix for intermediate files; None is beside a local root, or in the cache folder for a remote one
    (with Ray, beside the root)."""
    keep_work: bool = False
    """Leave the intermediate files, so that another write with other options finds what it can use."""
    embeddings: str | None = None
    """Folder for the embeddings of all windows, as `embed` makes them, here without embedding again; None keeps none.
    With Ray, one that all machines see."""
    group_bytes: int = GROUP_BYTES
    """Input files up to this size together are read by one task."""
    run_bytes: int = RUN_BYTES
    """Tokens of a sorted run at most; fewer and larger ones mean fewer requests, and five times as much memory."""
    sort_memory_bytes: int = SORT_MEMORY_BYTES
    """Tokens sorted at once per process at most; sorting holds about four times as much."""

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise InputError(f"{name}: must be {rule}, got {getattr(self, name)!r}.")

        require(bool(self.out), "out", "a folder or an object-store prefix")
        require(self.limit is None or self.limit >= 1, "limit", "at least 1 document, or left out")
        require(self.sample is None or 0 < self.sample <= 1, "sample", "above 0 and at most 1, or left out")
        require(self.dedup in (None, *DEDUPLICATIONS), "dedup", "exact or near, or left out")
        require(self.ngram >= 1, "ngram", "at least 1 word")
        require(2 <= self.window_tokens <= 1 << 20, "window_tokens", "2 to 1,048,576")
        require(self.packing in get_args(Packing), "packing", "joined or document")
        require(self.reads in get_args(Reads), "reads", "first or all")
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
        _ = self.documents, self.sketches  # checks of their own

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
        """How documents are read. Raises InputError for filters that are none."""
        return DocumentSettings(
            text_field=self.text_column,
            id_field=self.id_column,
            filters=tuple(self.filters),
            layout=self.layout,
        )

    @property
    def sketches(self) -> NearSettings | None:
        """How near-duplicates are found; None where they are not."""
        return NearSettings(threshold=self.near_threshold) if self.dedup == "near" else None


def _same_place(one: str, other: str) -> bool:
    if is_remote(one):
        return one.rstrip("/") == other.rstrip("/")
    return local_path(one).resolve() == local_path(other).resolve()
