"""Looking at a dataset or a histogram, and verifying every byte of a dataset."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from crisp_stream.errors import CrispError, FormatError, import_extra
from crisp_stream.format import Dataset, open_dataset
from crisp_stream.histogram import Histogram
from crisp_stream.mds import checksums, index_bytes, sample_dtype

VERIFY_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class NodeSummary:
    """One cluster of a level, as a person sees it."""

    node: int
    """Node id at the level."""
    share: float
    """Share of the histogram, or of the dataset's windows."""
    generalist_share: float
    """Share of the dataset's windows."""
    num_windows: int
    """Windows of the dataset in the node."""
    text: str
    """Start of one of its windows."""

    @property
    def weight(self) -> float:
        """Importance weight w(c) = P(c | D^s) / P(c | D^g); nan for a node without windows."""
        return self.share / self.generalist_share if self.generalist_share else float("nan")


def window_text(dataset: Dataset, window_ids: NDArray[np.int64]) -> list[str]:
    """The text of some windows; a blank line stands where one document ends and the next begins."""
    tokenizers = import_extra("tokenizers", extra="write", purpose="showing text")
    tokenizer = tokenizers.Tokenizer.from_file(str(dataset.tokenizer_path() / "tokenizer.json"))
    samples = dataset.read_windows(window_ids)
    texts = (tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in samples["tokens"])
    return [text.replace(dataset.manifest.tokenizer.eot_token, "\n\n").strip() for text in texts]


def top_nodes(dataset: Dataset, histogram: Histogram, limit: int = 10, characters: int = 160) -> list[NodeSummary]:
    """The heaviest clusters of a histogram, with a line of sample text each.

    Args:
        dataset: a dataset of the histogram's tree.
        histogram: whose nodes are ranked.
        limit: how many nodes.
        characters: length of the sample text.

    Raises:
        FormatError: the histogram was counted with another tree.
    """
    if histogram.tree_fingerprint != dataset.manifest.tree_fingerprint:
        raise FormatError(
            f"the histogram was counted with tree {histogram.tree_fingerprint[:12]}, {dataset.root} has "
            f"{dataset.manifest.tree_fingerprint[:12]}. Count it again with --data {dataset.root}"
        )
    nodes_of_leaves = dataset.leaves.astype(np.int64) // histogram.arity ** (histogram.depth - histogram.level)
    heaviest = np.argsort(-histogram.proportions, kind="stable")[:limit]
    nodes, shares = histogram.nodes[heaviest].astype(np.int64), histogram.proportions[heaviest]
    present, first_row, row_of = np.unique(nodes_of_leaves, return_index=True, return_inverse=True)
    windows_of_node = dict(zip(present, np.bincount(row_of, weights=dataset.windows_per_leaf).astype(int), strict=True))
    first_of_node = dict(zip(present, dataset.first_window_per_leaf[first_row], strict=True))
    occupied = [int(node) for node in nodes if node in windows_of_node]
    texts = dict(
        zip(occupied, window_text(dataset, np.array([first_of_node[n] for n in occupied], np.int64)), strict=True)
    )
    return [
        NodeSummary(
            node=int(node),
            share=float(share),
            generalist_share=windows_of_node.get(node, 0) / dataset.manifest.num_windows,
            num_windows=int(windows_of_node.get(node, 0)),
            text=" ".join(texts.get(int(node), "").split())[:characters],
        )
        for node, share in zip(nodes, shares, strict=True)
    ]


def size_histogram(dataset: Dataset, level: int) -> Histogram:
    """The generalist histogram P(c | D^g) of a level, from the cluster table."""
    nodes_of_leaves = dataset.leaves.astype(np.int64) // dataset.manifest.arity ** (dataset.manifest.depth - level)
    nodes, row_of = np.unique(nodes_of_leaves, return_inverse=True)
    counts = np.bincount(row_of, weights=dataset.windows_per_leaf).astype(np.int64)
    return Histogram(
        level=level,
        nodes=nodes.astype(np.uint32),
        proportions=counts / counts.sum(),
        arity=dataset.manifest.arity,
        depth=dataset.manifest.depth,
        tree_fingerprint=dataset.manifest.tree_fingerprint,
        counts=counts,
        provenance={"name": "generalist"},
    )


@dataclass(kw_only=True)
class VerifyReport:
    """What verification found."""

    num_windows: int = 0
    """Windows whose checksum and cluster were compared."""
    num_bytes: int = 0
    """Bytes of shards read."""
    problems: list[str] = field(default_factory=list)
    """One line each; empty when the dataset is whole."""


def verify_dataset(root: str, *, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read the whole dataset and compare everything that can be compared (FORMAT.md, "Verification").

    Args:
        root: dataset root.
        progress: called with (shards done, shards).

    Raises:
        FormatError, StorageError: the dataset cannot be opened at all.
    """
    dataset = open_dataset(root)
    report = VerifyReport()
    for check in (lambda: dataset.tree, dataset.tokenizer_path):
        try:
            check()
        except CrispError as error:
            report.problems.append(str(error))
    report.problems += _wrong_indexes(dataset)
    for number, problem in enumerate(_shard_problems(dataset, report), 1):
        if problem:
            report.problems.append(problem)
        if progress is not None:
            progress(number, len(dataset.shards))
    return report


def _shard_problems(dataset: Dataset, report: VerifyReport) -> Iterator[str | None]:
    for shard in range(len(dataset.shards)):
        try:
            yield _shard_problem(dataset, shard, report)
        except CrispError as error:
            yield str(error)


def _shard_problem(dataset: Dataset, shard: int, report: VerifyReport) -> str | None:
    row, manifest = dataset.shards[shard], dataset.manifest
    found_bytes = dataset.store.object_bytes(row.path)
    if found_bytes != row.shard_bytes:
        return f"{row.path}: has {found_bytes} bytes, the shard table says {row.shard_bytes}"
    dtype = sample_dtype(manifest.window_tokens, manifest.token_dtype)
    header = dataset.store.get_range(row.path, 0, row.first_sample_offset)
    hasher = xxhash.xxh3_128(header)
    first = int(dataset.first_window_per_shard[shard])
    problem = None
    windows_per_chunk = max(1, VERIFY_CHUNK_BYTES // dtype.itemsize)
    for start in range(0, row.num_windows, windows_per_chunk):
        count = min(windows_per_chunk, row.num_windows - start)
        content = dataset.store.get_range(
            row.path, row.first_sample_offset + start * dtype.itemsize, count * dtype.itemsize
        )
        hasher.update(content)
        samples = np.frombuffer(content, dtype)
        problem = problem or _sample_problem(dataset, row.path, samples, first + start)
        report.num_windows += count
        report.num_bytes += len(content)
    if problem is None and hasher.hexdigest() != row.shard_hash:
        problem = f"{row.path}: its hash is {hasher.hexdigest()}, the shard table says {row.shard_hash}"
    return problem


def _sample_problem(dataset: Dataset, path: str, samples: NDArray[Any], first: int) -> str | None:
    window_ids = np.arange(first, first + len(samples))
    damaged = checksums(samples) != samples["checksum"]
    if damaged.any():
        return (
            f"{path}: window {window_ids[damaged][0]} does not match its checksum ({int(damaged.sum())} such windows)"
        )
    misplaced = samples["cluster"] != dataset.leaf_of_windows(window_ids)
    if misplaced.any():
        window = int(window_ids[misplaced][0])
        return (
            f"{path}: window {window} is of cluster {samples['cluster'][misplaced][0]}, the cluster table says "
            f"{dataset.leaf_of_windows(np.array([window]))[0]}"
        )
    folder = dataset.leaf_of_windows(window_ids) // dataset.manifest.arity ** (dataset.manifest.depth - 1)
    if not (folder == int(path.split("/")[1])).all():
        return f"{path}: holds windows of the level-1 clusters {sorted(set(folder.tolist()))}"
    return None


def _wrong_indexes(dataset: Dataset) -> list[str]:
    manifest = dataset.manifest
    folders = sorted({row.path.rpartition("/")[0] for row in dataset.shards})
    problems = []
    for below in ["shards", *folders]:
        rows = [row for row in dataset.shards if row.path.startswith(below + "/")]
        expected = index_bytes(
            rows, below=below, window_tokens=manifest.window_tokens, token_dtype=manifest.token_dtype
        )
        try:
            if dataset.store.get(f"{below}/index.json") != expected:
                problems.append(f"{below}/index.json: does not list the shards of the shard table")
        except CrispError as error:
            problems.append(str(error))
    return problems


def describe_dataset(dataset: Dataset, *, level: int, limit: int) -> str:
    """A page of text about a dataset: what it holds, and its largest clusters with sample text."""
    manifest = dataset.manifest
    shard_bytes = sum(row.shard_bytes for row in dataset.shards)
    inner = manifest.arity**manifest.depth
    out = io.StringIO()
    out.write(f"{dataset.root}\n")
    out.write(f"  windows      {manifest.num_windows:,} of {manifest.window_tokens} tokens ({manifest.token_dtype}, ")
    out.write(f"{manifest.packing}), {manifest.num_windows * manifest.window_tokens:,} tokens\n")
    out.write(f"  shards       {manifest.num_shards:,}, {shard_bytes / 1e6:,.1f} MB\n")
    out.write(f"  clusters     {manifest.num_leaves:,} leaves with windows of at most {inner:,} ")
    out.write(f"(arity {manifest.arity}, depth {manifest.depth})\n")
    out.write(f"  tokenizer    {manifest.tokenizer.vocab_size:,} ids, {manifest.tokenizer.fingerprint[:12]}\n")
    out.write(f"  encoder      {manifest.encoder.name}, first {manifest.encoder.max_length} word pieces\n")
    out.write(f"  fingerprint  {manifest.fingerprint[:16]}\n")
    for key, value in manifest.provenance.items():
        out.write(f"  {key:<12} {value}\n")
    out.write(f"\nLargest clusters of level {level}:\n")
    out.write(format_nodes(top_nodes(dataset, size_histogram(dataset, level), limit), with_weight=False))
    return out.getvalue()


def describe_histogram(histogram: Histogram, dataset: Dataset | None, *, limit: int) -> str:
    """A page of text about a histogram; with the dataset, its heaviest clusters with sample text and w(c)."""
    entropy = float(-(histogram.proportions * np.log(histogram.proportions)).sum())
    out = io.StringIO()
    out.write(f"histogram of level {histogram.level} (arity {histogram.arity}, depth {histogram.depth})\n")
    out.write(
        f"  clusters     {len(histogram.nodes):,} with mass, effectively {np.exp(entropy):,.1f} (exp of the entropy)\n"
    )
    if histogram.counts is not None:
        out.write(f"  counted      {int(histogram.counts.sum()):,} windows\n")
    out.write(f"  tree         {histogram.tree_fingerprint[:16]}\n")
    for key, value in histogram.provenance.items():
        out.write(f"  {key:<12} {value}\n")
    if dataset is not None:
        out.write("\nHeaviest clusters:\n")
        out.write(format_nodes(top_nodes(dataset, histogram, limit), with_weight=True))
    else:
        heaviest = np.argsort(-histogram.proportions, kind="stable")[:limit]
        rows = (f"  {histogram.nodes[i]:>9}  {histogram.proportions[i]:>7.2%}\n" for i in heaviest)
        out.write("\nHeaviest clusters (give --data ROOT for their text):\n" + "".join(rows))
    return out.getvalue()


def format_nodes(nodes: list[NodeSummary], *, with_weight: bool) -> str:
    """A table, one line per node."""
    weight = f"{'w(c)':>8}" if with_weight else ""
    lines = [f"  {'cluster':>9} {'share':>8}{weight} {'windows':>9}  text"]
    for node in nodes:
        shown = f"{node.weight:>8.2f}" if with_weight else ""
        lines.append(f"  {node.node:>9} {node.share:>8.2%}{shown} {node.num_windows:>9,}  {node.text}")
    return "\n".join(lines) + "\n"
