"""Small datasets whose clusters have a topic each, for tests of what is said about clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.histogram import Histogram
from tests.support.synthetic import EOT_ID, write_synthetic_dataset

TOPICS = {
    0: "the fever and the doctor of a patient",
    1: "the fever with a tumor of the kidney",
    5: "an orchestra and the violin of a concert",
    15: "the compiler and a pointer to the kernel",
}
WINDOWS = {0: 40, 1: 30, 5: 300, 15: 20}
TOKENS = 48


def topic_dataset(
    path: Path, topics: dict[int, str] = TOPICS, windows: dict[int, int] = WINDOWS, tokens: int = TOKENS
) -> Dataset:
    """A dataset whose leaves each repeat a sentence, every window from another word on."""
    rows = []
    for leaf, sentence in topics.items():
        words = sentence.split(" ")
        for window in range(windows[leaf]):
            turn = window % len(words)
            text = " ".join(words[turn:] + words[:turn]).encode()[:tokens]
            letters = np.frombuffer(text, np.uint8).astype(np.uint16)
            rows.append(np.pad(letters, (0, tokens - len(text)), constant_values=EOT_ID))
    return write_synthetic_dataset(path, windows, window_tokens=tokens, tokens=np.array(rows))


def histogram_of(dataset: Dataset, counts: dict[int, int], level: int = 2) -> Histogram:
    """A histogram with these counts per node."""
    numbers = np.array(list(counts.values()))
    return Histogram(
        level=level,
        nodes=np.array(list(counts), np.uint32),
        proportions=numbers / numbers.sum(),
        counts=numbers,
        arity=dataset.manifest.arity,
        depth=dataset.manifest.depth,
        tree_fingerprint=dataset.manifest.tree_fingerprint,
    )
