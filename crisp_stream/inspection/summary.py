"""A dataset, a histogram or a window described as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.errors import import_extra
from crisp_stream.examples.sketch import without_hashes
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.format.provenance import WindowSource, document_spans, has_provenance
from crisp_stream.histograms.arithmetic import chance_of, effective_clusters, generalist_histogram, total_variation
from crisp_stream.histograms.component import check_tree, windows_per_node
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.unlike import UNKNOWN_WORDS_KEY, unknown_words_of, unlike_warnings
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.inspection.node_scores import node_scores, quantile_table, score_digits
from crisp_stream.inspection.plain import facts_text
from crisp_stream.inspection.terms import node_terms, purity_note, terms_are_known
from crisp_stream.loading.reader import read_windows
from crisp_stream.table import NONE, Table, aligned
from crisp_stream.writers.tree.terms import from_a_word

_TERMS_SHOWN = 6
_NO_TERMS = "(Terms need scikit-learn, which is not installed. Run: pip install 'crisp-stream[write]')"


@dataclass(frozen=True, kw_only=True)
class NodeSummary:
    """One cluster of a level, with text to know it by."""

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
    """Words that set it apart from other clusters of its level, strongest first."""

    @property
    def weight(self) -> float:
        """Importance weight w(c) = P(c | D^s) / P(c | D^g); nan for a node without windows."""
        return self.share / self.generalist_share if self.generalist_share else float("nan")


def window_text(dataset: Dataset, window_ids: NDArray[np.int64]) -> list[str]:
    """Decode some windows; a blank line stands where one document ends and the next begins."""
    return [text.strip() for text in _decoded(dataset, window_ids)]


def _decoded(dataset: Dataset, window_ids: NDArray[np.int64]) -> list[str]:
    tokenizers = import_extra("tokenizers", extra="inspect", purpose="showing text")
    tokenizer = tokenizers.Tokenizer.from_file(str(dataset.tokenizer_path() / "tokenizer.json"))
    samples = read_windows(dataset, window_ids)
    texts = (tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in samples["tokens"])
    return [text.replace(dataset.manifest.tokenizer.eot_token, "\n\n") for text in texts]


def top_nodes(dataset: Dataset, histogram: Histogram, limit: int = 10, characters: int = 160) -> list[NodeSummary]:
    """Find the heaviest clusters of a histogram, with terms (terms.py) and `characters` of sample text each.

    Without scikit-learn the clusters of a dataset that has not stored terms have none.

    Raises:
        InputError: the histogram was counted with another tree.
    """
    check_tree(histogram, dataset, what="histogram")
    heaviest = np.argsort(-histogram.proportions, kind="stable")[:limit]
    nodes, shares = histogram.nodes[heaviest], histogram.proportions[heaviest]
    windows = windows_per_node(histogram, dataset)[heaviest]
    terms_per_node = _TERMS_SHOWN if terms_are_known(dataset, histogram.level) else 0
    described = node_terms(dataset, histogram.level, nodes=nodes, terms_per_node=terms_per_node)
    return [
        NodeSummary(
            node=int(node),
            share=float(share),
            generalist_share=int(count) / dataset.manifest.num_windows,
            num_windows=int(count),
            text=" ".join(text.split())[:characters],
            terms=terms,
        )
        for node, share, count, text, terms in zip(
            nodes, shares, windows, described.texts, described.terms, strict=True
        )
    ]


def dataset_facts(dataset: Dataset) -> dict[str, str]:
    """Sizes, tree, tokenizer and encoder of a dataset, by name."""
    manifest = dataset.manifest
    shard_bytes = int(dataset.shards.shard_bytes.sum())
    tokens = manifest.num_windows * manifest.window_tokens
    return {
        "windows": f"{manifest.num_windows:,} of {manifest.window_tokens} tokens ({manifest.token_dtype}, "
        f"{manifest.packing}), {tokens:,} tokens",
        "shards": f"{manifest.num_shards:,}, {shard_bytes / 1e6:,.1f} MB",
        "clusters": f"{manifest.num_leaves:,} leaves with windows of at most {manifest.arity**manifest.depth:,} "
        f"(arity {manifest.arity}, depth {manifest.depth})",
        "tokenizer": f"{manifest.tokenizer.vocab_size:,} ids, {manifest.tokenizer.fingerprint[:12]}",
        "encoder": f"{manifest.encoder.name}, {_what_it_reads(manifest.encoder)}",
        "fingerprint": manifest.fingerprint[:16],
        **({"generation": f"{manifest.generation}"} if manifest.generation else {}),
    }


def _what_it_reads(encoder: EncoderRecord) -> str:
    if not encoder.max_length:
        return "all of a window"
    if encoder.reads == "all":
        return f"all of a window, {encoder.max_length} word pieces at once"
    return f"first {encoder.max_length} word pieces of a window"


def describe_dataset(
    dataset: Dataset, *, level: int, limit: int, scores: Mapping[str, WindowScores] | None = None
) -> str:
    """Write a page of text about a dataset: what it holds, and its largest clusters with terms and sample text; of
    scores their quantiles, and the mean of each of these clusters."""
    facts = [*dataset_facts(dataset).items(), *dataset.manifest.provenance.items()]
    largest = top_nodes(dataset, generalist_histogram(dataset, level), limit)
    shown = _clusters_text(largest, dataset, level, with_weight=False, scores=scores or {})
    clusters = f"Largest clusters of level {level}:\n{shown}"
    return f"{dataset.root}\n{_facts_text(facts)}\n{_scores_text(scores or {})}\n{clusters}\n"


def _scores_text(scores: Mapping[str, WindowScores]) -> str:
    if not scores:
        return ""
    table = quantile_table({name: one.scores for name, one in scores.items()})
    return f"\nScores of all windows:\n{_indented(table.text())}\n"


def describe_histogram(histogram: Histogram, dataset: Dataset | None, *, limit: int) -> str:
    """Write a page of text about a histogram; with the dataset, its heaviest clusters with terms, text and w(c).

    Beside figures that depend on the number of windows stand those of as many random windows of the corpus.
    """
    chance = None if dataset is None else chance_of(histogram, dataset)
    effective = f"effectively {digits.effective(effective_clusters(histogram))} (exp of the entropy)"
    if chance is not None:
        effective += f"; {digits.effective(chance.effective_clusters)} of as many random windows of the corpus"
    facts: list[tuple[str, object]] = [
        ("clusters", f"{len(histogram.nodes):,} with mass, {effective}"),
        *([] if histogram.counts is None else [("counted", f"{int(histogram.counts.sum()):,} windows")]),
        ("tree", histogram.tree_fingerprint[:16]),
        *(one for one in without_hashes(histogram.provenance).items() if one[0] != UNKNOWN_WORDS_KEY),
    ]
    words = unknown_words_of(histogram.provenance)
    if words is not None:
        own = f"{digits.part(words.corpus_share)} in the corpus itself"
        facts.append(("unknown words", f"{digits.part(words.share)} of the letters; {own}"))
    if dataset is not None:
        check_tree(histogram, dataset, what="histogram")
    if dataset is not None and histogram.level:
        distance = total_variation(histogram, generalist_histogram(dataset, histogram.level))
        random = "" if chance is None else f"; {digits.part(chance.off_corpus)} of as many random windows"
        facts.append(("off corpus", f"{digits.part(distance)} (total variation){random}"))
    if chance is not None:
        facts.append(
            (
                "by chance",
                f"w(c) up to {digits.largest_weight(chance.largest_weight)} in the ten heaviest of random windows",
            )
        )
    warnings = [*unlike_warnings(histogram.provenance)]
    if chance is not None and chance.warning is not None:
        warnings.append(chance.warning)
    title = f"histogram of level {histogram.level} (arity {histogram.arity}, depth {histogram.depth})"
    warned = "".join(f"{warning}\n" for warning in warnings)
    return f"{title}\n{_facts_text(facts)}\n{warned}\n{_heaviest_text(histogram, dataset, limit)}\n"


def _heaviest_text(histogram: Histogram, dataset: Dataset | None, limit: int) -> str:
    if dataset is not None:
        nodes = top_nodes(dataset, histogram, limit)
        return f"Heaviest clusters:\n{_clusters_text(nodes, dataset, histogram.level, with_weight=True)}"
    heaviest = np.argsort(-histogram.proportions, kind="stable")[:limit]
    rows = [(str(histogram.nodes[at]), digits.share(float(histogram.proportions[at]))) for at in heaviest]
    return f"Heaviest clusters (give --data ROOT for their text):\n{_indented(aligned(rows, words=()))}"


def _clusters_text(
    nodes: Sequence[NodeSummary],
    dataset: Dataset,
    level: int,
    *,
    with_weight: bool,
    scores: Mapping[str, WindowScores] | None = None,
) -> str:
    """Show two lines per node: its figures, mean scores and terms, and its text; a note where clusters are not of
    topics."""
    scored = {name: node_scores(one, dataset, level) for name, one in (scores or {}).items()}
    head = ("cluster", "share", *(("w(c)",) if with_weight else ()), "windows", *scored, "terms / text")
    rows = []
    for node in nodes:
        weight = (digits.weight(node.weight),) if with_weight else ()
        terms = " · ".join(node.terms) or NONE
        means = (score_digits(one.mean_of(node.node)) for one in scored.values())
        rows.append((str(node.node), digits.share(node.share), *weight, f"{node.num_windows:,}", *means, terms))
        rows.append(("",) * (len(head) - 1) + (node.text,))
    notes = [] if terms_are_known(dataset, level) else [_NO_TERMS]
    notes += filter(None, [purity_note(dataset, level)])
    return _indented("\n".join([Table(head=head, rows=rows, words=(-1,)).text(), *notes]))


def _facts_text(facts: Sequence[tuple[str, object]]) -> str:
    return _indented(facts_text(facts))


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")


def describe_window(dataset: Dataset, window: int, *, scores: Mapping[str, WindowScores] | None = None) -> str:
    """Write a page of text about a window: its text, its path in the tree, where it is stored, its documents, scores.

    Raises:
        InputError: no such window. FormatError, CorruptDataError, StorageError.
    """
    manifest = dataset.manifest
    [decoded] = _decoded(dataset, np.array([window]))
    [source] = document_spans(dataset, np.array([window])) if has_provenance(dataset) else [None]
    whole = decoded.strip("\ufffd").strip()
    text = whole if source is not None and _begins_a_document(source) else from_a_word(decoded).strip()
    leaf = int(dataset.leaf_of_windows(np.array([window]))[0])
    shard = int(np.searchsorted(dataset.first_window_per_shard, window, side="right")) - 1
    row = dataset.shards[shard]
    first_byte = row.first_sample_offset + (window - int(dataset.first_window_per_shard[shard])) * manifest.sample_bytes
    facts: list[tuple[str, object]] = [
        ("cluster", f"{_path_in_tree(dataset, leaf)}; leaf id {leaf}"),
        ("stored in", f"{row.path}, bytes {first_byte} to {first_byte + manifest.sample_bytes - 1}"),
        *_documents_of(source),
    ]
    for name, one in (scores or {}).items():
        own = one.scores[window]
        above = digits.part(float((one.scores < own).mean()))
        facts.append((name, f"{score_digits(float(own))}, above {above} of all windows"))
    if len(text) < len(whole):
        left_out = whole.removesuffix(text).strip()
        facts.append(("before the text", f"{left_out} (perhaps the end of a word that the window before has)"))
    return f"window {window:,} of {manifest.num_windows:,} in {dataset.root}\n{_facts_text(facts)}\n\n{text}\n"


def _begins_a_document(source: WindowSource) -> bool:
    return bool(source.documents) and (source.documents[0].at, source.documents[0].first_token) == (0, 0)


def _documents_of(source: WindowSource | None) -> list[tuple[str, str]]:
    """Name the documents of a window, and which of their tokens stand from which token of the window on."""
    if source is None:
        return [("documents", "not known: this dataset was written without provenance")]
    facts = [("cut from", f"part {source.part}, place {source.place}")]
    for span in source.documents:
        named = "" if span.id is None else f" (id {span.id})"
        last = span.first_token + span.num_tokens - 1
        tokens = f"its tokens {span.first_token} to {last}"
        facts.append((f"from token {span.at:>4}", f"{span.source}, document {span.row}{named}, {tokens}"))
    return facts


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
