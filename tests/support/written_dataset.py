"""Real English text, and one dataset written from it with the real encoder, shared by the tests of the writers."""

from __future__ import annotations

import json
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.writers.embedding.encoder_digest import Parts
from crisp_stream.writers.embedding.pieces import Pieces
from crisp_stream.writers.embedding.probe import PROBE_TEXTS
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.write import WriteReport, write

TOPICS: list[str] = [text for _, text in sorted(pydoc_data.topics.topics.items())]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """79 documents of CPython's own documentation (at most 1,200 characters each), two empty ones among them."""
    path = tmp_path_factory.mktemp("text") / "topics.jsonl"
    texts = [text[:1200] for text in TOPICS]
    texts[3:3] = [""]
    texts[30:30] = [" \n\t"]
    path.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    return path


def small_options(text_file: Path, out: Path | str, **changes: object) -> WriteOptions:
    """Options that write the text in seconds: 64-token windows, 32 word pieces, arity 4."""
    chosen: dict[str, object] = {
        "inputs": [str(text_file)],
        "out": str(out),
        "window_tokens": 64,
        "vocab_size": 600,
        "arity": 4,
        "depth": 3,
        "min_examples_to_split": 32,
        "part_characters": 12_000,
        "max_length": 32,
        "shard_bytes": 6_000,
        "processes": 1,
    }
    return WriteOptions(**{**chosen, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def written(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WriteReport]:
    """A dataset written by one process with the real all-MiniLM-L6-v2; its embeddings are kept beside it."""
    root = tmp_path_factory.mktemp("written") / "root"
    return root, write(small_options(text_file, root, embeddings=str(root.parent / "kept")), log=lambda line: None)


class WordEncoder:
    """A fast stand-in for the encoder where a test is about what happens around it: hashed word counts, normalised.

    A word becomes one piece, its hash."""

    dim = 16

    def __init__(self) -> None:
        self.num_calls = 0
        self.fail_at_call: int | None = None
        self.weights_sha256 = "0" * 64
        self.parts: Parts = {"weights": "words"}

    def record(self) -> EncoderRecord:
        return EncoderRecord(name="words", weights_sha256="0" * 64, max_length=32, pooling="mean", dim=self.dim)

    def pieces(self, texts: Sequence[str]) -> Pieces:
        words = [[[sum(word.encode()) % self.dim for word in text.split()]] for text in texts]
        return Pieces.from_sequences(words, self.dim)

    def embed_pieces(self, pieces: Pieces) -> NDArray[np.float16]:
        self.num_calls += 1
        if self.num_calls == self.fail_at_call:
            raise KeyboardInterrupt
        return self._vectors(pieces)

    def _vectors(self, pieces: Pieces) -> NDArray[np.float16]:
        vectors = np.full((len(pieces), self.dim), 1e-3, np.float32)
        ends = np.cumsum(pieces.lengths)
        for row, (start, end) in enumerate(zip(ends - pieces.lengths, ends, strict=True)):
            np.add.at(vectors[row], pieces.ids[start:end].astype(np.int64), 1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Not counted when it is the probe that is embedded."""
        embed = self._vectors if tuple(texts) == PROBE_TEXTS else self.embed_pieces
        return embed(self.pieces(texts))


@pytest.fixture
def word_encoder(monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """Replaces the encoder of this process."""
    encoder = WordEncoder()
    monkeypatch.setattr("crisp_stream.writers.stages.windows.load_encoder", lambda choice, device: encoder)
    monkeypatch.setattr("crisp_stream.writers.stages.windows.worker_device", lambda: "cpu")
    return encoder


def files_below(root: Path) -> dict[str, bytes]:
    """Relative path to content of every file."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
