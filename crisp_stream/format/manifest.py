"""manifest.json, the description of a dataset, and the checks of its values (FORMAT.md gives the MUST numbers)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from crisp_stream.errors import FormatError
from crisp_stream.format.mds import TokenDtype, sample_dtype
from crisp_stream.typed import Builder

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MAX_LEAVES = 1 << 24  # 64 ** 4
MAX_WINDOWS = 1 << 48
MAX_SHARDS = 1 << 24
MAX_ARITY = 64
MAX_GENERATION = 999_999
DOCUMENTS = "provenance/documents"
SOURCES = "provenance/sources.parquet"
TABLES = "provenance/tables.parquet"
DROPPED = "provenance/dropped.parquet"
LEDGER = "provenance/ledger.parquet"
_MARK = re.compile(r"[0-9a-f]{8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUILDER = Builder(
    error=FormatError,
    key_noun=f"key of format version {FORMAT_VERSION}",
    place=MANIFEST,
    remedy="The file is damaged; write the dataset again.",
)
_CHECKSUM = "checksum"
_DIGEST = "must be a sha256 hex digest"
Packing = Literal["joined", "document"]
Reads = Literal["first", "all"]


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """Tokenizer that made the windows."""

    fingerprint: str
    """sha256 of tokenizer/tokenizer.json."""
    vocab_size: int
    """Number of ids, special tokens included."""
    eot_token: str
    """The end-of-text token that stands between documents."""
    eot_id: int
    """Id of this token."""


def kept_manifest(generation: int) -> str:
    """Path of the manifest of an older generation: manifest.g0.json, …"""
    return f"manifest.g{generation}.json"


def places_path(shard_path: str) -> str:
    """Path of the places of a shard's windows: shards/07/shard.00000.mds -> provenance/07/shard.00000.npy."""
    return "provenance/" + shard_path.removeprefix("shards/").removesuffix(".mds") + ".npy"


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """Model that embedded the windows; specialist examples must be embedded by the same."""

    name: str
    """Hub name or base name of the folder."""
    weights_sha256: str
    """sha256 over everything that decides the vectors: see FORMAT.md, "Encoders"."""
    max_length: int
    """Word pieces read from the start of a window; the rest of it is not seen. 0: no limit."""
    pooling: str
    """Way in which token vectors become one vector, such as mean."""
    dim: int
    """Width of an embedding."""
    reads: Reads = "first"
    """first: max_length word pieces. all: the mean over the whole window, read in stretches of max_length."""
    prompt: str = ""
    """Stood before the text of every window."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json, the description of a dataset. It is written last: without it the dataset is incomplete."""

    format_version: int = FORMAT_VERSION
    """Version of the layout. Readers refuse all others."""
    window_tokens: int
    """Tokens in every window."""
    token_dtype: TokenDtype
    """uint16, or uint32 for vocabularies over 65,536."""
    packing: Packing
    """joined: documents joined by eot, then cut. document: a window never crosses a document."""
    num_windows: int
    """Windows in the dataset."""
    num_leaves: int
    """Leaves that hold at least one window: rows of clusters.parquet."""
    num_shards: int
    """Rows of shards.parquet."""
    arity: int
    """Children of a tree node, 2 to 64."""
    depth: int
    """Levels of the tree below its root."""
    sort_seed: int
    """Seed of the hash that orders the windows of a leaf."""
    clusters_fingerprint: str
    """sha256 over the columns of clusters.parquet."""
    shards_fingerprint: str
    """sha256 over the columns of shards.parquet, which hold the hashes of the shards."""
    tree_fingerprint: str
    """sha256 over the tree's shape and centroids."""
    tokenizer: TokenizerRecord
    encoder: EncoderRecord
    generation: int = 0
    """Number of times the dataset has grown. Each generation has its tables, see `generation_path`."""
    mark: str = ""
    """8 hex digits in the names of the files that this generation added; empty for generation 0."""
    files_sha256: str = ""
    """sha256 of provenance/files.parquet, which lists every small file; empty where there is none. Not part of the
    fingerprint."""
    provenance: dict[str, Any] = field(default_factory=dict, metadata={"required": True})
    """Sources of the windows and what was dropped; not part of the fingerprint."""

    def __post_init__(self) -> None:
        _check_manifest(self)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything but the provenance and the list of files: two datasets that share it hold the same
        windows in the same order."""
        identity = self._as_json()
        del identity["provenance"]
        identity.pop("files_sha256", None)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def sample_bytes(self) -> int:
        """Size of one sample in a shard."""
        return sample_dtype(self.window_tokens, self.token_dtype).itemsize

    def _as_json(self) -> dict[str, Any]:
        record = dataclasses.asdict(self)
        if self.encoder.reads == "first":  # optional keys are written only where they say something
            del record["encoder"]["reads"]
        if not self.encoder.prompt:
            del record["encoder"]["prompt"]
        if self.generation == 0:
            del record["generation"]
        if not self.mark:
            del record["mark"]
        if not self.files_sha256:
            del record["files_sha256"]
        return record

    def to_json(self) -> bytes:
        """The bytes of manifest.json. Where files are listed, it has a checksum of itself, too."""
        record = self._as_json()
        if self.files_sha256:
            record[_CHECKSUM] = _checksum(record)
        return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Parse and validate manifest.json.

        Raises:
            FormatError: not JSON, another version, keys missing or unknown, values of the wrong type or range, or not
            what its checksum says.
        """
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{MANIFEST}: not valid JSON ({error}). Write the dataset again.") from error
        if not isinstance(record, dict):
            raise FormatError(f"{MANIFEST}: must be a JSON object, got {type(record).__name__}.")
        version = record.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise FormatError(f"{MANIFEST}: format_version must be a positive integer, got {version!r}.")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{MANIFEST}: format_version {version} is newer than this reader ({FORMAT_VERSION}). "
                "Upgrade crisp-stream."
            )
        if version < FORMAT_VERSION:
            raise FormatError(
                f"{MANIFEST}: format_version {version} is of an early version of crisp-stream, whose checksums do not "
                "tell where a window belongs: write the dataset again."
            )
        checksum = record.pop(_CHECKSUM, None)
        if checksum is not None and checksum != _checksum(record):
            raise FormatError(f"{MANIFEST}: does not match its checksum: it was changed or damaged. Restore the file.")
        return _BUILDER.build(cls, record)


def _checksum(record: dict[str, Any]) -> str:
    """sha256 of a manifest without its checksum."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _check_manifest(manifest: Manifest) -> None:
    def require(holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise FormatError(f"{MANIFEST}: {key} {rule}, got {getattr(manifest, key)!r}.")

    require(1 <= manifest.window_tokens <= 1 << 20, "window_tokens", "must be 1 to 1,048,576")
    require(2 <= manifest.arity <= MAX_ARITY, "arity", f"must be 2 to {MAX_ARITY}")
    require(1 <= manifest.depth <= 24, "depth", "must be 1 to 24")
    require(manifest.arity**manifest.depth <= MAX_LEAVES, "depth", f"must keep arity ** depth <= {MAX_LEAVES:,}")
    require(1 <= manifest.num_windows <= MAX_WINDOWS, "num_windows", f"must be 1 to {MAX_WINDOWS:,}")
    require(1 <= manifest.num_leaves <= manifest.arity**manifest.depth, "num_leaves", "must be 1 to arity ** depth")
    require(
        1 <= manifest.num_shards <= min(manifest.num_windows, MAX_SHARDS),
        "num_shards",
        f"must be 1 to num_windows and at most {MAX_SHARDS:,}",
    )
    require(0 <= manifest.generation <= MAX_GENERATION, "generation", f"must be 0 to {MAX_GENERATION:,}")
    if manifest.generation:
        require(_MARK.fullmatch(manifest.mark) is not None, "mark", "must be 8 hex digits for a generation above 0")
    else:
        require(not manifest.mark, "mark", "must be left out for generation 0")
    for key in ("clusters_fingerprint", "shards_fingerprint", "tree_fingerprint"):
        require(_SHA256.fullmatch(getattr(manifest, key)) is not None, key, _DIGEST)
    require(not manifest.files_sha256 or _SHA256.fullmatch(manifest.files_sha256) is not None, "files_sha256", _DIGEST)
    vocab_size, eot_id = manifest.tokenizer.vocab_size, manifest.tokenizer.eot_id
    if not 0 <= eot_id < vocab_size:
        raise FormatError(f"{MANIFEST}: tokenizer.eot_id must be below vocab_size {vocab_size}, got {eot_id}.")
    if manifest.token_dtype == "uint16" and vocab_size > 1 << 16:
        raise FormatError(f"{MANIFEST}: a vocabulary of {vocab_size} ids needs token_dtype uint32, got uint16.")
