"""README.md of a published dataset: front matter for the hub, what it holds, and how to train from it.

What a dataset cannot know stays out and is for the owner to add: language, intended use, and the licence of its texts
unless it is given. A card that somebody has rewritten is not replaced: it lacks the mark at its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from crisp_stream.format.dataset import Dataset
from crisp_stream.format.terms import stored_terms
from crisp_stream.histograms.arithmetic import generalist_histogram

CARD = "README.md"
CARD_MARK = "<!-- Written by crisp-stream publish. Without this line it is kept as it is when publishing again. -->"
_CLUSTERS_SHOWN = 16
_TERMS_SHOWN = 6
_SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
    10**10: "1B<n<10B",
    10**11: "10B<n<100B",
    10**12: "100B<n<1T",
}
"""The hub's words for numbers of rows, by the number that they end before."""
_PACKING = {
    "joined": "documents joined by end-of-text tokens, then cut",
    "document": "each window within one document, padded by end-of-text tokens",
}


def dataset_card(dataset: Dataset, url: str, *, licence: str | None = None) -> str:
    """Write the card of a dataset that is read at `url` (hf://datasets/…)."""
    name = url.rstrip("/").rpartition("/")[2].partition("@")[0]
    parts = [
        f"# {name}",
        _summary(dataset),
        "## Train from it",
        _use(dataset, url),
        "## What it holds",
        _facts(dataset),
        "## Clusters",
        _clusters(dataset),
        "## Where it comes from",
        _provenance(dataset),
        CARD_MARK,
    ]
    return f"---\n{_front_matter(dataset, name, licence)}---\n\n" + "\n\n".join(parts) + "\n"


def licence_of(card: str) -> str | None:
    """The licence that the front matter of a card names, if any."""
    parts = card.split("---\n", 2)
    try:
        facts = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except yaml.YAMLError:
        return None
    found = facts.get("license") if isinstance(facts, dict) else None
    return found if isinstance(found, str) else None


def size_category(num_windows: int) -> str:
    """The hub's word for a number of rows."""
    return next((name for end, name in _SIZES.items() if num_windows < end), "n>1T")


def _front_matter(dataset: Dataset, name: str, licence: str | None) -> str:
    facts = {
        "pretty_name": name,
        **({} if licence is None else {"license": licence}),
        "task_categories": ["text-generation"],
        "size_categories": [size_category(dataset.manifest.num_windows)],
        "tags": ["crisp-stream", "mds", "pretraining", "importance-sampling", "data-mixture"],
        "viewer": False,  # its Parquet files are tables about the windows, not the text
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _summary(dataset: Dataset) -> str:
    manifest = dataset.manifest
    return (
        f"A text corpus for pretraining: {manifest.num_windows:,} windows of {manifest.window_tokens:,} tokens "
        f"({manifest.num_windows * manifest.window_tokens:,} tokens), tokenized and sorted by what they are about: a "
        f"tree of {manifest.num_leaves:,} clusters, found in embeddings of the windows. So a model can be trained on "
        "the clusters of any task, in any proportions, by reading just these windows. It is a dataset of crisp-stream "
        f"(format version {manifest.format_version}); plain mosaicml-streaming reads the shards, too."
    )


def _use(dataset: Dataset, url: str) -> str:
    streaming = url if "@" not in url else None
    text = (
        "```bash\n"
        "pip install 'crisp-stream[write,train]'\n"
        f"crisp-stream inspect {url}\n"
        f"crisp-stream histogram count TASK.jsonl --data {url} --out task.parquet   # a few hundred examples\n"
        f"crisp-stream train gpt-350m crisp data.remote={url} mixture.phases.0.histogram=task.parquet\n"
        "```\n\n"
        "In a training loop of your own, on the whole corpus in its own proportions:\n\n"
        "```python\n"
        "from crisp_stream import Histogram, Mixture, MixtureDataset, Phase, open_dataset\n\n"
        f'dataset = open_dataset("{url}")\n'
        "mixture = Mixture([Phase(Histogram.base(dataset.manifest))])  # or Histogram.load('task.parquet')\n"
        "stream = MixtureDataset(dataset, mixture, batch_size=8)\n"
        "```\n\n"
        "A commit behind `@` pins the data. `HF_TOKEN` is used where the dataset is private."
    )
    if streaming is not None:
        text += (
            "\n\nBy plain mosaicml-streaming, which knows no clusters: "
            f'`StreamingDataset(remote="{streaming}/shards", local="cache", batch_size=8)`.'
        )
    return text


def _facts(dataset: Dataset) -> str:
    manifest = dataset.manifest
    encoder = manifest.encoder
    length = f", {encoder.max_length} word pieces" if encoder.max_length else ""
    return _table(
        ("", ""),
        [
            ("windows", f"{manifest.num_windows:,} of {manifest.window_tokens:,} tokens, {manifest.token_dtype}"),
            ("packing", f"{manifest.packing}: {_PACKING[manifest.packing]}"),
            ("shards", f"{manifest.num_shards:,}, {int(dataset.shards.shard_bytes.sum()):,} bytes"),
            (
                "tree",
                f"arity {manifest.arity}, depth {manifest.depth}; {manifest.num_leaves:,} leaves with windows; "
                f"`{manifest.tree_fingerprint[:16]}`",
            ),
            (
                "tokenizer",
                f"{manifest.tokenizer.vocab_size:,} ids, end of text `{manifest.tokenizer.eot_token}`; "
                f"`{manifest.tokenizer.fingerprint[:16]}`",
            ),
            (
                "encoder of the clusters",
                f"{_plain(encoder.name)}, {encoder.dim} dimensions{length}; `{encoder.weights_sha256[:16]}`",
            ),
            ("generation", f"{manifest.generation}"),
            ("fingerprint", f"`{manifest.fingerprint}`"),
        ],
    )


def _clusters(dataset: Dataset) -> str:
    histogram = generalist_histogram(dataset, 1)
    stored = stored_terms(dataset)
    level = None if stored is None else stored.levels.get(1)
    terms = {} if level is None else dict(zip(level.nodes.tolist(), level.terms, strict=True))
    heaviest = (-histogram.proportions).argsort(kind="stable")[:_CLUSTERS_SHOWN]
    rows = [
        (
            str(int(histogram.nodes[at])),
            f"{histogram.proportions[at]:.2%}",
            _plain(", ".join(terms.get(int(histogram.nodes[at]), ())[:_TERMS_SHOWN])) or "-",
        )
        for at in heaviest.tolist()
    ]
    shown = "The largest" if len(histogram.nodes) > len(rows) else "All"
    text = f"{shown} clusters of the first level of the tree, and the words that set them apart:\n\n"
    return text + _table(("cluster", "share of windows", "terms"), rows)


def _provenance(dataset: Dataset) -> str:
    record = dataset.manifest.provenance
    rows: list[tuple[str, str]] = []
    inputs = record.get("inputs")
    if isinstance(inputs, list) and inputs:
        names = ", ".join(f"`{_plain(str(one))}`" for one in inputs[:20])
        rows.append(("inputs", names + (f" and {len(inputs) - 20:,} more" if len(inputs) > 20 else "")))
    rows += [(key, f"{record[key]:,}") for key in ("documents", "characters") if isinstance(record.get(key), int)]
    for key, name in (("dropped_documents", "documents left out"), ("dropped_tokens", "tokens left out")):
        dropped = record.get(key)
        if isinstance(dropped, dict) and dropped:
            rows.append((name, "; ".join(f"{_plain(str(reason))}: {count:,}" for reason, count in dropped.items())))
    if not rows:
        return "The dataset does not say."
    return _table(("", ""), rows) + "\n\n`provenance/` says for every window which documents it holds."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _plain(text: str) -> str:
    """Text that means nothing to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
