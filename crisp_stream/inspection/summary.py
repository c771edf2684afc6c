"""Looking at a dataset or a histogram."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, import_extra
from crisp_stream.examples.sketch import without_hashes
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.provenance import document_spans, has_provenance
from crisp_stream.histograms.arithmetic import compare, effective_clusters, generalist_histogram
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import windows_per_node
from crisp_stream.inspection.terms import node_terms
from crisp_stream.inspection.verify import VerifyReport as VerifyReport
from crisp_stream.inspection.verify import verify_dataset as verify_dataset
from crisp_stream.loading.reader import read_windows

_TERMS_SHOWN = 6
_WINDOWS_FOR_TERMS = 4_000


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
    terms: tuple[str, ...] = ()
    """What sets it apart from other clusters of its level, strongest first."""

    @property
    def weight(self) -> float:
        """Importance weight w(c) = P(c | D^s) / P(c | D^g); nan for a node without windows."""
        return self.share / self.generalist_share if self.generalist_share else float("nan")


def window_text(dataset: Dataset, window_ids: NDArray[np.int64]) -> list[str]:
    """The text of some windows; a blank line stands where one document ends and the next begins."""
    tokenizers = import_extra("tokenizers", extra="write", purpose="showing text")
    tokenizer = tokenizers.Tokenizer.from_file(str(dataset.tokenizer_path() / "tokenizer.json"))
    samples = read_windows(dataset, window_ids)
    texts = (tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in samples["tokens"])
    return [text.replace(dataset.manifest.tokenizer.eot_token, "\n\n").strip() for text in texts]


def top_nodes(
    dataset: Dataset, histogram: Histogram, limit: int = 10, characters: int = 160, *, num_terms: int = 0
) -> list[NodeSummary]:
    """The heaviest clusters of a histogram, with a line of sample text each.

    Args:
        dataset: a dataset of the histogram's tree.
        histogram: whose nodes are ranked.
        limit: how many nodes.
        characters: length of the sample text.
        num_terms: terms that characterise each node (terms.py); reads up to 4,000 windows when not 0.

    Raises:
        FormatError: the histogram was counted with another tree.
    """
    if histogram.tree_fingerprint != dataset.manifest.tree_fingerprint:
        raise FormatError(
            f"the histogram was counted with tree {histogram.tree_fingerprint[:12]}, {dataset.root} has "
            f"{dataset.manifest.tree_fingerprint[:12]}. Count it again with --data {dataset.root}"
        )
    heaviest = np.argsort(-histogram.proportions, kind="stable")[:limit]
    nodes, shares = histogram.nodes[heaviest], histogram.proportions[heaviest]
    windows = windows_per_node(histogram, dataset)[heaviest]
    occupied = windows > 0
    texts = [""] * len(nodes)
    terms: list[tuple[str, ...]] = [()] * len(nodes)
    if num_terms and occupied.any():
        found = node_terms(
            dataset, histogram.level, nodes=nodes[occupied], max_windows=_WINDOWS_FOR_TERMS, terms_per_node=num_terms
        )
        for at, own, text in zip(np.flatnonzero(occupied), found.terms, found.texts, strict=True):
            terms[at], texts[at] = own, text
    else:
        leaves_per_node = histogram.arity ** (histogram.depth - histogram.level)
        first = np.searchsorted(dataset.leaves, (nodes[occupied].astype(np.int64) * leaves_per_node).astype(np.uint32))
        found_texts = window_text(dataset, dataset.first_window_per_leaf[first])
        for at, text in zip(np.flatnonzero(occupied), found_texts, strict=True):
            texts[at] = text
    return [
        NodeSummary(
            node=int(node),
            share=float(share),
            generalist_share=int(count) / dataset.manifest.num_windows,
            num_windows=int(count),
            text=" ".join(text.split())[:characters],
            terms=own,
        )
        for node, share, count, text, own in zip(nodes, shares, windows, texts, terms, strict=True)
    ]


def describe_dataset(dataset: Dataset, *, level: int, limit: int) -> str:
    """A page of text about a dataset: what it holds, and its largest clusters with terms and sample text."""
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
    largest = top_nodes(dataset, generalist_histogram(dataset, level), limit, num_terms=_TERMS_SHOWN)
    out.write(format_nodes(largest, with_weight=False))
    return out.getvalue()


def describe_histogram(histogram: Histogram, dataset: Dataset | None, *, limit: int) -> str:
    """A page of text about a histogram; with the dataset, its heaviest clusters with terms, text and w(c)."""
    out = io.StringIO()
    out.write(f"histogram of level {histogram.level} (arity {histogram.arity}, depth {histogram.depth})\n")
    out.write(
        f"  clusters     {len(histogram.nodes):,} with mass, effectively {effective_clusters(histogram):,.1f} "
        "(exp of the entropy)\n"
    )
    if histogram.counts is not None:
        out.write(f"  counted      {int(histogram.counts.sum()):,} windows\n")
    out.write(f"  tree         {histogram.tree_fingerprint[:16]}\n")
    for key, value in without_hashes(histogram.provenance).items():
        out.write(f"  {key:<12} {value}\n")
    if dataset is not None:
        nodes = top_nodes(dataset, histogram, limit, num_terms=_TERMS_SHOWN)
        if histogram.level:
            distance = compare(histogram, generalist_histogram(dataset, histogram.level)).total_variation
            out.write(f"  off corpus   {distance:.1%} (total variation)\n")
        out.write("\nHeaviest clusters:\n")
        out.write(format_nodes(nodes, with_weight=True))
    else:
        heaviest = np.argsort(-histogram.proportions, kind="stable")[:limit]
        rows = (f"  {histogram.nodes[i]:>9}  {histogram.proportions[i]:>7.2%}\n" for i in heaviest)
        out.write("\nHeaviest clusters (give --data ROOT for their text):\n" + "".join(rows))
    return out.getvalue()


def format_nodes(nodes: list[NodeSummary], *, with_weight: bool) -> str:
    """A table, two lines per node: its figures and terms, and its text."""
    weight = f"{'w(c)':>8}" if with_weight else ""
    lines = [f"  {'cluster':>9} {'share':>8}{weight} {'windows':>9}  terms / text"]
    for node in nodes:
        shown = f"{node.weight:>8.2f}" if with_weight else ""
        start = f"  {node.node:>9} {node.share:>8.2%}{shown} {node.num_windows:>9,}  "
        lines += [start + (" · ".join(node.terms) or "-"), " " * len(start) + node.text]
    return "\n".join(lines) + "\n"


def describe_window(dataset: Dataset, window: int) -> str:
    """A page of text about a window: its text, its path in the tree, where it is stored, its documents.

    Raises:
        InputError: no such window. FormatError, CorruptDataError, StorageError.
    """
    pass

    manifest = dataset.manifest
    [text] = window_text(dataset, np.array([window]))
    leaf = int(dataset.leaf_of_windows(np.array([window]))[0])
    shard = int(np.searchsorted(dataset.first_window_per_shard, window, side="right")) - 1
    row = dataset.shards[shard]
    first_byte = row.first_sample_offset + (window - int(dataset.first_window_per_shard[shard])) * manifest.sample_bytes
    out = io.StringIO()
    out.write(f"window {window:,} of {manifest.num_windows:,} in {dataset.root}\n")
    out.write(f"  cluster    {_path_in_tree(dataset, leaf)}; leaf id {leaf}\n")
    out.write(f"  stored in  {row.path}, bytes {first_byte} to {first_byte + manifest.sample_bytes - 1}\n")
    if has_provenance(dataset):
        [source] = document_spans(dataset, np.array([window]))
        out.write(f"  cut from   part {source.part}, place {source.place}\n")
        for span in source.documents:
            named = "" if span.id is None else f" (id {span.id})"
            last = span.first_token + span.num_tokens - 1
            out.write(f"  from token {span.at:>4}  {span.source}, document {span.row}{named}, ")
            out.write(f"its tokens {span.first_token} to {last}\n")
    else:
        out.write("  documents  not known: this dataset was written without provenance\n")
    return f"{out.getvalue()}\n{text}\n"


def _path_in_tree(dataset: Dataset, leaf: int) -> str:
    """Node ids from level 1 down to the leaf, which may stand above the deepest level."""
    path = []
    for level, nodes in enumerate(dataset.tree.nodes_per_level, 1):
        node = int(dataset.tree.node_of(leaf, level))
        at = int(np.searchsorted(nodes, node))
        if at == len(nodes) or nodes[at] != node:
            break
        path.append(f"{node} (level {level})")
    return " > ".join(path)
