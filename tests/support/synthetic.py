"""Small real datasets made from arrays, for tests that need no text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crisp_stream.examples.sketch import MAX_DOCUMENTS, MAX_NGRAMS, SketchBuilder, TextSketch
from crisp_stream.format import mds
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import MANIFEST, EncoderRecord, Manifest, Packing, TokenizerRecord
from crisp_stream.format.shards import SHARDS, ShardTable
from crisp_stream.format.tables import CLUSTERS, clusters_fingerprint, clusters_parquet
from crisp_stream.format.text_sketch import TEXTS, text_sketch_parquet
from crisp_stream.storage.store import open_store
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.cleaning.text_hashes import hash_texts
from crisp_stream.writers.stages.shards import shard_ends

VOCAB_SIZE = 260
EOT_ID = 256
DIM = 8


def synthetic_tree(arity: int, depth: int, seed: int = 0) -> ClusterTree:
    """A full tree of random unit centroids."""
    rng = np.random.default_rng(seed)
    nodes, centroids = [], []
    for level in range(1, depth + 1):
        nodes.append(np.arange(arity**level, dtype=np.uint32))
        vectors = rng.normal(size=(arity**level, DIM)).astype(np.float32)
        centroids.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return ClusterTree(arity=arity, depth=depth, nodes_per_level=nodes, centroids_per_level=centroids)


def synthetic_tokens(num_windows: int, window_tokens: int, seed: int = 0) -> np.ndarray:
    """[num_windows, window_tokens] uint16: the window id in the first four tokens (base 256), then learnable text."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(97, 123, (num_windows, window_tokens)).astype(np.uint16)
    ids = np.arange(num_windows)
    for place in range(min(4, window_tokens)):
        tokens[:, place] = (ids >> (8 * place)) & 255
    return tokens


def write_tokenizer(folder: Path) -> str:
    """A byte-level tokenizer of 256 bytes, an end-of-text token and three unused ids; returns its fingerprint."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's characters for the bytes
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|a|>", "<|b|>", "<|c|>"])
    folder.mkdir(parents=True, exist_ok=True)
    content = tokenizer.to_str().encode()
    (folder / "tokenizer.json").write_bytes(content)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return hashlib.sha256(content).hexdigest()


def made_up_texts(number: int, *, seed: int) -> list[str]:
    """Texts of 6 sentences of 8 to 16 words, which no two share by chance."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 9))) for _ in range(3000)]
    return [
        ". ".join(" ".join(rng.choice(words, rng.integers(8, 17))).capitalize() for _ in range(6)) + "."
        for _ in range(number)
    ]


def sketch_of_texts(texts: Sequence[str]) -> TextSketch:
    """The sketch of documents."""
    documents, ngrams = SketchBuilder(MAX_DOCUMENTS), SketchBuilder(MAX_NGRAMS)
    hashes = hash_texts(texts)
    documents.add_all(hashes.documents[hashes.documents != 0])
    ngrams.add_all(hashes.ngrams)
    return TextSketch(documents=documents.finish(), ngrams=ngrams.finish())


def write_synthetic_dataset(
    path: Path,
    windows_per_leaf: dict[int, int],
    *,
    window_tokens: int = 32,
    arity: int = 4,
    depth: int = 2,
    seed: int = 0,
    windows_per_shard: int = 64,
    shard_level: int = 1,
    packing: Packing = "joined",
    tokens: np.ndarray | None = None,
    texts: Sequence[str] | None = (),
) -> Dataset:
    """Write a complete dataset of format v2 with `windows_per_leaf[leaf]` windows in each leaf, and open it; its sketch
    is of `texts`; None: there is none."""
    tree = synthetic_tree(arity, depth)
    leaves = np.array(sorted(windows_per_leaf), np.uint32)
    counts = np.array([windows_per_leaf[int(leaf)] for leaf in leaves], np.int64)
    num_windows = int(counts.sum())
    clusters = np.repeat(leaves, counts)
    if tokens is None:
        tokens = synthetic_tokens(num_windows, window_tokens, seed)
    identity = int(hashlib.sha256(tokens.tobytes() + clusters.tobytes()).hexdigest()[:16], 16)
    rows: list[mds.ShardRow] = []
    folders = clusters // arity ** (depth - 1)
    for folder in np.unique(folders):
        target = path / "shards" / f"{folder:02d}"
        target.mkdir(parents=True)
        own = np.flatnonzero(folders == folder)
        own_rows = []
        ends = shard_ends(clusters[own] // arity ** (depth - shard_level), windows_per_shard)
        for number, ids in enumerate(ids for ids in np.split(own, ends) if len(ids)):
            samples = mds.encode_samples(tokens[ids], clusters[ids])
            own_rows.append(mds.write_shard(target / f"shard.{number:05d}.mds", samples, root=path, identity=identity))
        index = mds.index_bytes(
            own_rows, below=f"shards/{folder:02d}", window_tokens=window_tokens, token_dtype="uint16"
        )
        (target / "index.json").write_bytes(index)
        rows += own_rows
    index = mds.index_bytes(rows, below="shards", window_tokens=window_tokens, token_dtype="uint16")
    (path / "shards" / "index.json").write_bytes(index)
    (path / CLUSTERS).write_bytes(clusters_parquet(leaves, counts))
    (path / SHARDS).write_bytes(ShardTable.of(rows).to_parquet())
    tree.save(path / "tree")
    if texts is not None:
        (path / TEXTS).parent.mkdir()
        (path / TEXTS).write_bytes(text_sketch_parquet(sketch_of_texts(texts)))
    manifest = Manifest(
        window_tokens=window_tokens,
        token_dtype="uint16",
        packing=packing,
        num_windows=num_windows,
        num_leaves=len(leaves),
        num_shards=len(rows),
        arity=arity,
        depth=depth,
        sort_seed=seed,
        clusters_fingerprint=clusters_fingerprint(leaves, counts),
        shards_fingerprint=ShardTable.of(rows).fingerprint,
        tree_fingerprint=tree.fingerprint,
        tokenizer=TokenizerRecord(
            fingerprint=write_tokenizer(path / "tokenizer"),
            vocab_size=VOCAB_SIZE,
            eot_token="<|endoftext|>",
            eot_id=EOT_ID,
        ),
        encoder=EncoderRecord(name="synthetic", weights_sha256="0" * 64, max_length=256, pooling="mean", dim=DIM),
    )
    (path / MANIFEST).write_bytes(manifest.to_json())
    return open_dataset(path)


def upload(dataset: Dataset, url: str) -> str:
    """Copy a local dataset to an object-store prefix; returns it."""
    store = open_store(url)
    for file in sorted(Path(dataset.root).rglob("*")):
        if file.is_file():
            store.put_file(file.relative_to(dataset.root).as_posix(), file)
    return url
