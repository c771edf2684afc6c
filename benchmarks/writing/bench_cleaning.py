"""Speed of what `write` does to find duplicates and contaminated documents: CPU time on one core, as a Markdown table.

    python benchmarks/writing/bench_cleaning.py [DOCUMENTS] [--evaluation FILE …] [--limit 30000] [--repeats 5]

DOCUMENTS is a JSONL file with a text per line; without it, the standard library's source files stand in for documents
and every hundredth of them for an evaluation set. Medians over the repeats, with the lowest and highest. The search
among all documents is measured by duplicates_scale.py.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from datasketch import MinHash

from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.duplicates import text_digests
from crisp_stream.writers.cleaning.evaluation_texts import read_evaluation_texts
from crisp_stream.writers.cleaning.near_duplicates import NearSettings, Sketches, find_near_duplicates, sketch_texts
from crisp_stream.writers.cleaning.words import hash_words, ngram_hashes
from crisp_stream.writers.options import WriteOptions

Batches = list[list[str]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of finding duplicates and contaminated documents.")
    parser.add_argument("documents", nargs="?", help="a JSONL file with a text per line; the standard library if none")
    parser.add_argument("--evaluation", nargs="*", default=[], help="evaluation files")
    parser.add_argument("--limit", type=int, default=30_000, help="documents read")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    texts = list(islice(_texts(options.documents), options.limit))
    evaluation: Sequence[tuple[str, int, str]]
    if options.evaluation:
        evaluation = list(chain.from_iterable(map(read_evaluation_texts, options.evaluation)))
    else:
        evaluation = [("every hundredth", row, text) for row, text in enumerate(texts[::100])]
    batches = list(_batches(texts))
    print(
        f"{len(texts):,} documents, {sum(map(len, texts)) / 1e6:.1f}M characters, {len(evaluation):,} evaluation texts"
    )
    print("\n| what | documents/s | MB/s | lowest to highest MB/s |\n|---|---|---|---|")
    for name, measured in _measured(batches, evaluation).items():
        _print_row(name, texts, measured, options.repeats)
    _grouping(batches)


def _texts(documents: str | None) -> Iterator[str]:
    if documents is not None:
        for _, _, text in read_evaluation_texts(documents):
            yield text
        return
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= WriteOptions.part_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _measured(batches: Batches, evaluation: Sequence[tuple[str, int, str]]) -> dict[str, Callable[[], object]]:
    settings = NearSettings(threshold=WriteOptions.near_threshold)
    index = EvaluationNgrams.build(evaluation)

    def datasketch_bulk() -> None:
        for batch in batches:
            hashed = hash_words(batch)
            grams = (ngram_hashes(hashed.hashes, settings.words_per_gram) >> np.uint64(32)).tolist()
            spans = zip(hashed.first_word[:-1].tolist(), hashed.first_word[1:].tolist(), strict=True)
            MinHash.bulk((grams[first : max(end - 4, first)] for first, end in spans), num_perm=128, hashfunc=int)

    return {
        "digests (exact)": lambda: [text_digests(batch) for batch in batches],
        "hashes of words": lambda: [hash_words(batch) for batch in batches],
        "sketches (near)": lambda: [sketch_texts(batch, settings) for batch in batches],
        "the same minima by `MinHash.bulk`": datasketch_bulk,
        f"contamination, {index.num_ngrams:,} n-grams": lambda: [index.find_all(batch) for batch in batches],
    }


def _print_row(name: str, texts: list[str], measured: Callable[[], object], repeats: int) -> None:
    megabytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6
    seconds = [_cpu_seconds(measured) for _ in range(repeats)]
    median = statistics.median(seconds)
    rates = f"{megabytes / max(seconds):.1f} to {megabytes / min(seconds):.1f}"
    print(f"| {name} | {len(texts) / median:,.0f} | {megabytes / median:.1f} | {rates} |", flush=True)


def _cpu_seconds(measured: Callable[[], object]) -> float:
    begin = time.process_time()
    measured()
    return time.process_time() - begin


def _grouping(batches: Batches) -> None:
    settings = NearSettings(threshold=WriteOptions.near_threshold)
    sketches = Sketches.joined([sketch_texts(batch, settings) for batch in batches])
    begin = time.process_time()
    found = find_near_duplicates(sketches, settings)
    seconds = time.process_time() - begin
    print(f"\nNear, the documents above, in memory: {len(found):,} removed, {seconds:.1f} s CPU")


if __name__ == "__main__":
    main()
