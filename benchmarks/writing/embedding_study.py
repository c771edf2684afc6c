"""Which representation makes better clusters: a window's first word pieces, the mean over all of it, or LSI?

    python -m benchmarks.writing.embedding_study GENERALIST.jsonl.zst --specialist NAME=FILE … --work FOLDER

Files are JSONL with `text` and `domain`, plain or compressed. Vectors are kept in the work folder, so that measuring
again takes a minute. docs/write/embedding.md says what is measured and what came out.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers.embedding.embed import Encoder
from crisp_stream.writers.embedding.lsi import LsiEncoder
from crisp_stream.writers.embedding.pieces import unit_vectors
from crisp_stream.writers.tree.fit_tree import fit_tree
from crisp_stream.writers.windows import train_tokenizer, window_texts

WINDOW_TOKENS = 1024
LSI_WINDOWS = 20_000
SEEDS = 3
SHAPES = {"64": (64, 1), "16 x 16": (16, 2)}
PRIOR_WINDOWS = 16
"""Generalist windows whose frequencies are added to a specialist's counts."""
UNIGRAMS = 1 << 16
BACKED_OFF = 0.2
"""Share of the unweighted frequencies in a weighted unigram model: few windows carry the weight in a study of some
thousand, and words that they happen to lack must not decide."""
REPRESENTATIONS = ("first", "all", "lsi")


@dataclass(frozen=True)
class Corpus:
    """Windows of one corpus."""

    tokens: NDArray[Any]
    """[num_windows, WINDOW_TOKENS]."""
    texts: list[str]
    domains: list[str]
    """[num_windows]."""


def read_domains(path: Path) -> dict[str, list[str]]:
    """The documents of each domain, in the order of the file."""
    domains: dict[str, list[str]] = {}
    with pa.input_stream(str(path)) as stream:
        for line in io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8"):
            document = json.loads(line)
            domains.setdefault(document["domain"], []).append(document["text"])
    return domains


def cut_windows(
    domains: dict[str, list[str]], num_windows: int, tokenizer: DocumentTokenizer, rng: np.random.Generator
) -> Corpus:
    """Windows from everywhere: domains by their share of characters, documents evenly over the domain.

    A window begins anywhere in its first document and runs on through the next ones of its domain, as in a dataset
    whose documents are joined.
    """
    characters = {domain: sum(map(len, texts)) for domain, texts in domains.items()}
    rows: list[NDArray[Any]] = []
    labels: list[str] = []
    for domain, texts in domains.items():
        wanted = round(num_windows * characters[domain] / sum(characters.values()))
        places = (np.arange(wanted) + rng.random(wanted)) / max(wanted, 1) * len(texts)
        for place in places.astype(np.int64):
            row = _window_from(texts, int(place), tokenizer, rng)
            if row is not None:
                rows.append(row)
                labels.append(domain)
    tokens = np.stack(rows)
    return Corpus(tokens, window_texts(tokens, tokenizer, tokenizer.eot_id), labels)


def _window_from(
    texts: list[str], place: int, tokenizer: DocumentTokenizer, rng: np.random.Generator
) -> NDArray[Any] | None:
    """None at the end of the domain."""
    joined: list[int] = []
    skipped: int | None = None
    for text in texts[place:]:
        joined += [*tokenizer.encode([text])[0].tolist(), tokenizer.eot_id]
        if skipped is None:
            skipped = int(rng.integers(len(joined)))
        if len(joined) >= skipped + WINDOW_TOKENS:
            return np.array(joined[skipped : skipped + WINDOW_TOKENS], tokenizer.token_dtype)
    return None


def embed_both(texts: list[str]) -> dict[str, NDArray[np.float16]]:
    """MiniLM's vectors of the first word pieces and of all, from one pass: the first stretch of all is the first."""
    encoder = Encoder(reads="all")
    pieces = encoder.pieces(texts)
    vectors = encoder.sequence_vectors(pieces)
    per_text = pieces.sequences_per_text
    first = np.cumsum(per_text) - per_text
    return {
        "first": unit_vectors(vectors[first], pieces.lengths[first], np.ones_like(per_text)),
        "all": unit_vectors(vectors, pieces.lengths, per_text),
    }


def prepare(options: argparse.Namespace) -> dict[str, Corpus]:
    """Windows of every corpus and, in the work folder, their vectors in every representation."""
    rng = np.random.default_rng(0)
    domains = read_domains(options.generalist)
    tokenizer_folder = options.work / "tokenizer"
    if not tokenizer_folder.exists():
        everywhere = [text for texts in domains.values() for text in texts[:: max(1, len(texts) // 300)]]
        train_tokenizer(everywhere, tokenizer_folder, vocab_size=32_000)
    tokenizer = DocumentTokenizer(tokenizer_folder, fast=True)
    corpora = {"generalist": cut_windows(domains, options.windows, tokenizer, rng)}
    for name, path in options.specialist:
        texts = [text for of_domain in read_domains(path).values() for text in of_domain]
        corpora[name] = cut_windows({name: texts}, options.specialist_windows, tokenizer, rng)
    lsi_texts = cut_windows(domains, LSI_WINDOWS, tokenizer, rng).texts
    started = time.process_time()
    lsi = LsiEncoder.fit(lsi_texts)
    print(f"LSI fitted on {len(lsi_texts)} windows in {time.process_time() - started:.0f} CPU s", flush=True)
    for name, corpus in corpora.items():
        started = time.process_time()
        np.save(options.work / f"{name}.lsi.npy", lsi.embed(corpus.texts))
        print(f"{name}: LSI {len(corpus.texts) / (time.process_time() - started):,.0f} windows/CPU s", flush=True)
        if not (options.work / f"{name}.all.npy").exists():
            started = time.process_time()
            for reads, vectors in embed_both(corpus.texts).items():
                np.save(options.work / f"{name}.{reads}.npy", vectors)
            print(f"{name}: {len(corpus.texts)} windows, {time.process_time() - started:.0f} CPU s", flush=True)
    return corpora


def purity(held_out: NDArray[Any], fitted: NDArray[Any], held_labels: Any, fitted_labels: Any) -> float:
    """Share of held-out windows whose domain is the most frequent of their cluster's fitted windows."""
    right = 0
    for cluster in np.unique(held_out):
        names, counts = np.unique(fitted_labels[fitted == cluster], return_counts=True)
        if len(names):
            right += int((held_labels[held_out == cluster] == names[counts.argmax()]).sum())
    return right / len(held_out)


def specialist_scores(
    corpus: Corpus, generalist: Corpus, clusters: dict[str, NDArray[Any]], rng: np.random.Generator
) -> tuple[float, float]:
    """(held-out gain of the histogram, held-out gain of a unigram model), both in nats, over two halves.

    The first is per window: ln P(cluster | specialist) - ln P(cluster | generalist). The second is per token: how much
    better words are foretold by generalist windows weighted with P(c | specialist) / P(c | generalist) than unweighted.
    """
    num_clusters = int(clusters["num_clusters"])
    base = np.bincount(clusters["generalist"], minlength=num_clusters) + 0.5
    base = base / base.sum()
    order = rng.permutation(len(corpus.tokens))
    halves = np.array_split(order, 2)
    gains: list[tuple[float, float]] = []
    for counted, held in (halves, halves[::-1]):
        counts = np.bincount(clusters["specialist"][counted], minlength=num_clusters)
        histogram = (counts + PRIOR_WINDOWS * base) / (len(counted) + PRIOR_WINDOWS)
        gain = float(np.log(histogram / base)[clusters["specialist"][held]].mean())
        weights = (histogram / base)[clusters["generalist"]]
        words = np.bincount(corpus.tokens[held].ravel(), minlength=UNIGRAMS)
        plain = 0.99 * unigrams(generalist.tokens, np.ones(len(weights))) + 0.01 / UNIGRAMS
        weighted = (1 - BACKED_OFF) * unigrams(generalist.tokens, weights) + BACKED_OFF * plain
        gains.append((gain, float((words * np.log(weighted / plain)).sum() / words.sum())))
    return float(np.mean([gain for gain, _ in gains])), float(np.mean([gain for _, gain in gains]))


def unigrams(tokens: NDArray[Any], weight_per_window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Token frequencies under weights: [UNIGRAMS], sums to 1."""
    repeated = np.repeat(weight_per_window / weight_per_window.sum(), tokens.shape[1])
    return np.bincount(tokens.ravel(), weights=repeated, minlength=UNIGRAMS) / tokens.shape[1]


def measure(corpora: dict[str, Corpus], work: Path) -> Iterator[dict[str, Any]]:
    """One row per representation and tree: the mean over seeds of everything."""
    from sklearn.metrics import normalized_mutual_info_score

    generalist = corpora["generalist"]
    labels = np.array(generalist.domains)
    for representation in REPRESENTATIONS:
        vectors = {name: np.load(work / f"{name}.{representation}.npy") for name in corpora}
        for shape, (arity, depth) in SHAPES.items():
            scores: list[dict[str, float]] = []
            for seed in range(SEEDS):
                rng = np.random.default_rng([1, seed])
                order = rng.permutation(len(labels))
                held, fitted = order[: len(order) // 3], order[len(order) // 3 :]
                tree = fit_tree(
                    vectors["generalist"][fitted], arity=arity, depth=depth, min_examples_to_split=arity, seed=seed
                )
                clusters = {name: tree.assign(of_corpus).astype(np.int64) for name, of_corpus in vectors.items()}
                of_generalist = clusters["generalist"]
                score = {
                    "purity": purity(of_generalist[held], of_generalist[fitted], labels[held], labels[fitted]),
                    "nmi": float(normalized_mutual_info_score(labels[held], of_generalist[held])),
                }
                for name in list(corpora)[1:]:
                    pair: dict[str, Any] = {"generalist": of_generalist, "specialist": clusters[name]}
                    pair["num_clusters"] = arity**depth
                    gain, words = specialist_scores(corpora[name], generalist, pair, np.random.default_rng([2, seed]))
                    score[f"{name} histogram"], score[f"{name} words"] = gain, words
                for kind in ("histogram", "words"):
                    of_kind = [score[f"{name} {kind}"] for name in list(corpora)[1:]]
                    score[f"mean {kind}"] = float(np.mean(of_kind))
                scores.append(score)
            means = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
            ranges = {key: [min(s[key] for s in scores), max(s[key] for s in scores)] for key in scores[0]}
            yield {"representation": representation, "clusters": shape, **means, "ranges": ranges}


def main() -> None:
    """Measure and print one Markdown row per representation and tree."""
    parser = argparse.ArgumentParser(description="Compare representations by the clusters that they make.")
    parser.add_argument("generalist", type=Path)
    parser.add_argument("--specialist", action="append", default=[], metavar="NAME=PATH", type=_named_path)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the vectors")
    parser.add_argument("--windows", type=int, default=2_700, help="of the generalist corpus (default: %(default)s)")
    parser.add_argument("--specialist-windows", type=int, default=240, help="of each specialist (default: %(default)s)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = list(measure(prepare(options), options.work))
    (options.work / "scores.json").write_text(json.dumps(rows, indent=2) + "\n")
    columns = [key for key in rows[0] if key != "ranges"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns) + " |")


def _named_path(given: str) -> tuple[str, Path]:
    name, _, path = given.partition("=")
    return name, Path(path)


if __name__ == "__main__":
    main()
