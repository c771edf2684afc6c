"""Looking at a dataset or a histogram."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, import_extra
from crisp_stream.format import Dataset
from crisp_stream.histogram import Histogram
from crisp_stream.verify import VerifyReport as VerifyReport
from crisp_stream.verify import verify_dataset as verify_dataset


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
    if manifest.generation:
        out.write(f"  generation   {manifest.generation}\n")
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
