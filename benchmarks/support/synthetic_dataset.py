"""Datasets of format v2 with any number of leaves, made of random tokens: real shards, real checksums, no text.

    python -m benchmarks.support.synthetic_dataset OUT --leaves 262144 --windows 2000000 --window-tokens 64

Every leaf holds at least one window. Written folder by folder, so memory is that of the cluster table, the tree and one
folder; 16.7M leaves with 20M windows of 16 tokens take half a minute. The first four tokens of a window are its id in
base 256, so that a reader can be checked; every other token is a uniform byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format import mds
from crisp_stream.format.manifest import MANIFEST, MAX_LEAVES, EncoderRecord, Manifest, TokenizerRecord
from crisp_stream.format.shards import SHARDS, ShardTable
from crisp_stream.format.tables import CLUSTERS, clusters_fingerprint, clusters_parquet
from crisp_stream.tree.tree import ClusterTree

Sizes = Literal["lognormal", "zipf", "equal"]

VOCAB_SIZE = 257
"""Of the tokenizer unless a plan says more: bytes and end-of-text."""

EOT_ID = 256
SHARD_BYTES = 64 << 20
_ID_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What to write. The bytes are a pure function of it."""

    leaves: int
    """Leaves that hold windows."""
    windows: int
    """Windows in all, at least one per leaf."""
    window_tokens: int = 64
    """Tokens in a window, at least 4."""
    sizes: Sizes = "lognormal"
    """How the windows beyond one per leaf are shared: lognormal (sigma 2), zipf (rank^-1.1) or equal."""
    arity: int = 64
    """Children of a tree node."""
    depth: int | None = None
    """Levels; the smallest that has room for the leaves when None."""
    dim: int = 4
    """Width of the random centroids."""
    vocab_size: int = VOCAB_SIZE
    """Entries of the tokenizer; those beyond the bytes and end-of-text stand in no window."""
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    """Limit of a shard."""

    def __post_init__(self) -> None:
        if not 1 <= self.leaves <= min(self.windows, MAX_LEAVES):
            raise ValueError(f"leaves must be 1 to min(windows, {MAX_LEAVES:,}), got {self.leaves}")
        if self.window_tokens < _ID_TOKENS:
            raise ValueError(f"window_tokens must be at least {_ID_TOKENS}, got {self.window_tokens}")
        if self.leaves > self.arity**self.levels:
            raise ValueError(f"{self.arity}^{self.levels} leaves are fewer than {self.leaves}. Give a larger depth.")

    @property
    def levels(self) -> int:
        """`depth`, or the smallest that has room for the leaves."""
        return self.depth or next(level for level in range(1, 25) if self.arity**level >= self.leaves)


def windows_per_leaf(plan: DatasetPlan) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Leaf ids, spread over the tree, and how many windows each holds."""
    rng = np.random.default_rng([plan.seed, 1])
    possible = plan.arity**plan.levels
    leaves = (
        np.sort(rng.choice(possible, plan.leaves, replace=False)) if plan.leaves < possible else np.arange(possible)
    )
    if plan.sizes == "equal":
        weights = np.ones(plan.leaves)
    elif plan.sizes == "zipf":
        weights = (1.0 + rng.permutation(plan.leaves)) ** -1.1
    else:
        weights = np.exp(2 * rng.normal(size=plan.leaves))
    shares = np.cumsum(weights)
    edges = np.round(shares * ((plan.windows - plan.leaves) / shares[-1])).astype(np.int64)
    return leaves.astype(np.uint32), 1 + np.diff(edges, prepend=0)


def random_tree(plan: DatasetPlan) -> ClusterTree:
    """A full tree of random unit centroids."""
    rng = np.random.default_rng([plan.seed, 2])
    nodes, centroids = [], []
    for level in range(1, plan.levels + 1):
        vectors = rng.standard_normal((plan.arity**level, plan.dim), np.float32)
        vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        nodes.append(np.arange(plan.arity**level, dtype=np.uint32))
        centroids.append(vectors)
    return ClusterTree(arity=plan.arity, depth=plan.levels, nodes_per_level=nodes, centroids_per_level=centroids)


def random_tokens(ids: NDArray[np.int64], window_tokens: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """[num_windows, window_tokens]: the window id in the first four tokens, base 256, then uniform bytes."""
    tokens = rng.integers(0, 256, (len(ids), window_tokens), np.uint8).astype(np.uint16)
    for place in range(_ID_TOKENS):
        tokens[:, place] = (ids >> (8 * place)) & 255
    return tokens


def write_byte_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> str:
    """A tokenizer.json of 256 one-character tokens, end-of-text, and unused entries; returns its fingerprint."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's characters for the bytes
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    vocab |= {f"unused {entry}": entry for entry in range(VOCAB_SIZE, vocab_size)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    record = {
        "version": "1.0",
        "added_tokens": [{"id": EOT_ID, "content": "<|endoftext|>", **flags}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    content = json.dumps(record).encode()
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(content)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return hashlib.sha256(content).hexdigest()


def _write_folder(
    root: Path, plan: DatasetPlan, folder: int, clusters: NDArray[np.uint32], first_window: int
) -> list[mds.ShardRow]:
    """The shards and the index of one level-1 cluster; `clusters` is [num_windows of the folder], leaf ids."""
    target = root / "shards" / f"{folder:02d}"
    target.mkdir(parents=True)
    rng = np.random.default_rng([plan.seed, 3, folder])
    identity = int(hashlib.sha256(repr(plan).encode()).hexdigest()[:16], 16)
    step = mds.max_windows_per_shard(plan.shard_bytes, plan.window_tokens, "uint16")
    rows = []
    for number, start in enumerate(range(0, len(clusters), step)):
        own = clusters[start : start + step]
        ids = first_window + start + np.arange(len(own))
        samples = mds.encode_samples(random_tokens(ids, plan.window_tokens, rng), own)
        rows.append(mds.write_shard(target / f"shard.{number:05d}.mds", samples, root=root, identity=identity))
    (target / "index.json").write_bytes(_index(rows, f"shards/{folder:02d}", plan))
    return rows


def _index(rows: list[mds.ShardRow], below: str, plan: DatasetPlan) -> bytes:
    return mds.index_bytes(rows, below=below, window_tokens=plan.window_tokens, token_dtype="uint16")


def write_dataset(root: Path, plan: DatasetPlan, *, with_tree: bool = True) -> Manifest:
    """Write a complete dataset into a new folder.

    Args:
        root: a folder that does not hold a dataset.
        plan: what to write.
        with_tree: write the centroids too; without them the dataset opens and reads, but cannot assign embeddings.

    Returns:
        Its manifest.
    """
    leaves, counts = windows_per_leaf(plan)
    folders = leaves.astype(np.int64) // plan.arity ** (plan.levels - 1)
    bounds = np.searchsorted(folders, np.arange(plan.arity + 1))
    rows: list[mds.ShardRow] = []
    first_window = 0
    for folder in range(plan.arity):
        here = slice(int(bounds[folder]), int(bounds[folder + 1]))
        clusters = np.repeat(leaves[here], counts[here])
        if len(clusters):
            rows += _write_folder(root, plan, folder, clusters, first_window)
            first_window += len(clusters)
    (root / "shards" / "index.json").write_bytes(_index(rows, "shards", plan))
    (root / CLUSTERS).write_bytes(clusters_parquet(leaves, counts))
    (root / SHARDS).write_bytes(ShardTable.of(rows).to_parquet())
    tree = random_tree(plan)
    if with_tree:
        tree.save(root / "tree")
    manifest = Manifest(
        window_tokens=plan.window_tokens,
        token_dtype="uint16",
        packing="joined",
        num_windows=plan.windows,
        num_leaves=plan.leaves,
        num_shards=len(rows),
        arity=plan.arity,
        depth=plan.levels,
        sort_seed=plan.seed,
        clusters_fingerprint=clusters_fingerprint(leaves, counts),
        shards_fingerprint=ShardTable.of(rows).fingerprint,
        tree_fingerprint=tree.fingerprint,
        tokenizer=TokenizerRecord(
            fingerprint=write_byte_tokenizer(root / "tokenizer", plan.vocab_size),
            vocab_size=plan.vocab_size,
            eot_token="<|endoftext|>",
            eot_id=EOT_ID,
        ),
        encoder=EncoderRecord(name="random", weights_sha256="0" * 64, max_length=256, pooling="mean", dim=plan.dim),
    )
    (root / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a random dataset of format v2 with any number of leaves.")
    parser.add_argument("out", type=Path, help="a folder that does not exist")
    parser.add_argument("--leaves", type=int, default=262_144, help="non-empty leaves (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=2_000_000, help="windows in all (default: %(default)s)")
    parser.add_argument("--window-tokens", type=int, default=64, help="tokens per window (default: %(default)s)")
    parser.add_argument("--sizes", choices=get_args(Sizes), default="lognormal", help="(default: %(default)s)")
    parser.add_argument("--depth", type=int, help="levels of the tree of arity 64 (default: as few as hold the leaves)")
    parser.add_argument("--shard-mb", type=float, default=SHARD_BYTES / 2**20, help="limit (default: %(default)s MiB)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--without-tree", action="store_true", help="leave the centroids out")
    options = parser.parse_args(arguments)
    if options.out.exists():
        parser.error(f"{options.out} exists. Give another folder.")
    plan = DatasetPlan(
        leaves=options.leaves,
        windows=options.windows,
        window_tokens=options.window_tokens,
        sizes=options.sizes,
        depth=options.depth,
        seed=options.seed,
        shard_bytes=int(options.shard_mb * 2**20),
    )
    started = time.perf_counter()
    manifest = write_dataset(options.out, plan, with_tree=not options.without_tree)
    seconds = time.perf_counter() - started
    print(f"{options.out}: {manifest.num_windows:,} windows, {manifest.num_leaves:,} leaves in {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
