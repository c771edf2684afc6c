"""Sections of the write benchmark: encoding documents, and embedding windows against the encoder's own forward pass.

    python -m benchmarks.writing.embed_section [--input FILE.jsonl.zst]

Both sides of a ratio run in turn in one process, on one thread, and the median of the turns counts; CPU seconds on a
CPU, synchronised wall seconds on a GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import pydoc_data.topics
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.support.report import Column, Row, count, digits, machine_line, table
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers.embedding.embed import Encoder
from crisp_stream.writers.embedding.lsi import LsiEncoder
from crisp_stream.writers.embedding.student import token_pieces
from crisp_stream.writers.embedding.student_fit import fit_student
from crisp_stream.writers.windows import cut_joined, train_tokenizer, window_texts

WINDOW_TOKENS = 1024
WINDOWS = 64
_FORWARD_WINDOWS = 16
EMBED_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="windows/s", key="rate", show=digits(1)),
    Column(title="range of the runs", key="rate_spread", show=lambda pair: f"{pair[0]:,.1f} to {pair[1]:,.1f}"),
    Column(title="ours against it", key="ratio", show=digits(3)),
]
DISTILLED_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="windows/s per core", key="rate", show=digits(1)),
    Column(title="range of the runs", key="rate_spread", show=lambda pair: f"{pair[0]:,.1f} to {pair[1]:,.1f}"),
    Column(title="times the forward pass", key="ratio", show=digits(0)),
]
TOKENISE_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="tokens/s per core", key="rate", show=count),
    Column(title="range of the runs", key="rate_spread", show=lambda pair: f"{pair[0]:,.0f} to {pair[1]:,.0f}"),
]


def embedding(
    texts: list[str], repeats: int, device: str | None = None, *, name: str | None = None, bf16: bool = False
) -> tuple[list[Row], list[str]]:
    """Windows per second of each side, over the same windows.

    Args:
        texts: of the windows.
        repeats: turns; a first one that is not counted goes before.
        device: such as "cpu"; None takes CUDA when there is one.
        name: of the encoder, or its folder; None is MiniLM.
        bf16: let all sides multiply in bfloat16.
    """
    import torch

    encoder = Encoder(name, device=device)
    library: Any = encoder.model
    with torch.autocast(library.device.type, torch.bfloat16, enabled=bf16):
        return _embedding(encoder, library, texts, repeats)


def _embedding(encoder: Encoder, library: Any, texts: list[str], repeats: int) -> tuple[list[Row], list[str]]:
    import torch

    pieces = encoder.pieces(texts)
    ours = encoder.embed_pieces(pieces)
    library_vectors = library.encode(texts[:8], normalize_embeddings=True, show_progress_bar=False)
    agreement = float((ours[:8].astype(np.float32) * library_vectors).sum(axis=1).min())
    features = padded_features(encoder, library.device)

    def forward() -> None:
        with torch.inference_mode():
            for batch in features(pieces):
                library(batch)

    def stored() -> None:
        encoder.embed_pieces(pieces)

    sides: dict[str, Callable[[], Any]] = {
        "pieces to stored vectors": stored,
        "bare forward pass of the same padded batches": forward,
        "SentenceTransformer.encode, batches of 32": lambda: library.encode(
            texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False
        ),
        "texts to stored vectors": lambda: encoder.embed(texts),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleaved(sides, repeats, device=library.device)
    finally:
        torch.set_num_threads(threads)
    rows = rows_of(seconds, len(texts))
    first = seconds["pieces to stored vectors"]
    for row in rows[1:]:
        other = seconds[row["side"]]
        row["ratio"] = statistics.median(slow / fast for fast, slow in zip(first, other, strict=True))
    note = (
        f"{len(texts)} windows of {np.mean([len(text) for text in texts]):,.0f} characters, "
        f"{pieces.lengths.mean():.0f} word pieces read of each, {library.device.type}; lowest cosine to "
        f"SentenceTransformer.encode {agreement:.5f}"
    )
    return rows, [note]


def padded_features(encoder: Encoder, device: Any) -> Callable[[Any], Iterable[dict[str, Any]]]:
    """Batches as the model takes them, made beforehand; each turn gets dictionaries of its own, as modules add keys."""
    import torch

    made: list[dict[str, Any]] = []

    def of(pieces: Any) -> Iterable[dict[str, Any]]:
        if not made:
            for batch in encoder.batches(pieces):
                ids = torch.from_numpy(batch.ids.astype(np.int64)).to(device)
                lengths = torch.from_numpy(batch.lengths).to(device)
                mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
                made.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)})
        return [dict(features) for features in made]

    return of


def tokenising(texts: list[str], repeats: int, tokenizer_folder: Path) -> tuple[list[Row], list[str]]:
    """Tokens per second and core of both ways to encode documents, whose ids must be equal.

    Args:
        texts: documents.
        repeats: turns.
        tokenizer_folder: of a tokenizer that tiktoken can stand in for.

    Raises:
        ValueError: the ids differ.
    """
    fast, slow = DocumentTokenizer(tokenizer_folder, fast=True), DocumentTokenizer(tokenizer_folder, fast=False)
    ids = fast.encode(texts)
    if not all(np.array_equal(one, other) for one, other in zip(ids, slow.encode(texts), strict=True)):
        raise ValueError(f"{tokenizer_folder}: the ids of tiktoken and tokenizers differ")
    num_tokens = sum(map(len, ids))
    tokens = cut_joined(ids, window_tokens=WINDOW_TOKENS, eot_id=fast.eot_id, token_dtype=fast.token_dtype).tokens
    encoder = Encoder()
    of_windows = window_texts(tokens, fast, fast.eot_id)
    lsi = LsiEncoder.fit(of_windows)
    sides: dict[str, Callable[[], Any]] = {
        "documents to ids, tiktoken": lambda: fast.encode(texts),
        "documents to ids, tokenizers": lambda: [slow.encode([text]) for text in texts],
        "windows back to texts": lambda: window_texts(tokens, fast, fast.eot_id),
        "texts to word pieces, first 256": lambda: encoder.pieces(of_windows),
        "texts to LSI vectors": lambda: lsi.embed(of_windows),
    }
    seconds = interleaved(sides, repeats, device=None)
    rows = rows_of(seconds, num_tokens)
    characters = sum(map(len, texts))
    note = (
        f"{len(texts):,} documents, {characters / 1e6:.1f} M characters, {num_tokens:,} tokens, all ids equal; "
        f"a window is {WINDOW_TOKENS:,} tokens"
    )
    return rows, [note]


def distilled(texts: list[str], repeats: int, tokenizer_folder: Path) -> tuple[list[Row], list[str]]:
    """Windows per second and core of a student beside MiniLM's bare forward pass and an LSI.

    The student's vectors are random: its speed depends on how many there are, not on what they are.

    Args:
        texts: documents.
        repeats: turns.
        tokenizer_folder: of a tokenizer that tiktoken can stand in for.
    """
    import torch

    tokenizer = DocumentTokenizer(tokenizer_folder, fast=True)
    tokens = cut_joined(
        tokenizer.encode(texts), window_tokens=WINDOW_TOKENS, eot_id=tokenizer.eot_id, token_dtype=tokenizer.token_dtype
    ).tokens
    of_windows = window_texts(tokens, tokenizer, tokenizer.eot_id)
    encoder = Encoder(device="cpu")
    features, some = padded_features(encoder, torch.device("cpu")), encoder.pieces(of_windows[:_FORWARD_WINDOWS])
    lsi, rng = LsiEncoder.fit(of_windows), np.random.default_rng(0)
    ids = token_pieces(tokens, tokenizer.eot_id)

    def forward() -> None:
        with torch.inference_mode():
            for batch in features(some):
                encoder.model(batch)

    with tempfile.TemporaryDirectory() as scratch:
        student = fit_student(
            ids,
            rng.normal(size=(len(tokens), 384)).astype(np.float16),
            rng.normal(size=(tokenizer.vocab_size, 384)).astype(np.float16),
            tokenizer=tokenizer_folder,
            teacher=encoder.record(),
            stretch_tokens=WINDOW_TOKENS,
            out=Path(scratch),
        )
        sides: dict[str, Callable[[], Any]] = {
            "student, ids of windows to stored vectors": lambda: student.embed_pieces(
                token_pieces(tokens, tokenizer.eot_id)
            ),
            "LSI, texts of windows to stored vectors": lambda: lsi.embed(of_windows),
            "all-MiniLM-L6-v2, first 256 word pieces, bare forward pass": forward,
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            seconds = interleaved(sides, repeats, device=None)
        finally:
            torch.set_num_threads(threads)
    *light, bare = sides
    rows = [*rows_of({side: seconds[side] for side in light}, len(tokens)), *rows_of({bare: seconds[bare]}, len(some))]
    for row in rows[:-1]:
        row["ratio"] = row["rate"] / rows[-1]["rate"]
    note = (
        f"{len(tokens):,} windows of {WINDOW_TOKENS:,} tokens, {len(some)} for the forward pass; a student of "
        f"{len(student.vectors):,} vectors of 384 numbers, {len(student.pairs):,} of them of pairs"
    )
    return rows, [note]


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int, *, device: Any) -> dict[str, list[float]]:
    """Seconds of each side in each turn; the sides take turns, after one round that is not counted."""
    on_cuda = device is not None and device.type == "cuda"
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side, call in sides.items():
            started = _clock(on_cuda)
            call()
            if turn:
                seconds[side].append(_clock(on_cuda) - started)
    return seconds


def _clock(on_cuda: bool) -> float:
    if not on_cuda:
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def rows_of(seconds: dict[str, list[float]], units: int) -> list[Row]:
    """Median rate and range of each side."""
    return [
        {
            "side": side,
            "rate": units / statistics.median(of_side),
            "rate_spread": (units / max(of_side), units / min(of_side)),
        }
        for side, of_side in seconds.items()
    ]


def read_documents(path: Path | None, characters: int) -> list[str]:
    """Documents of a JSONL file, taken evenly from all of it; CPython's own documentation when None."""
    if path is None:
        texts = list(pydoc_data.topics.topics.values())
    else:
        with pa.input_stream(str(path)) as stream:
            lines = io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8")
            texts = [json.loads(line)["text"] for line in lines]
    step = max(1, sum(map(len, texts)) // characters)
    return texts[::step]


def windows_of(texts: list[str], num_windows: int, tokenizer: DocumentTokenizer) -> list[str]:
    """Texts of windows cut from the documents, evenly taken; from the start again when there are too few."""
    ids = tokenizer.encode(texts)
    cut = cut_joined(ids, window_tokens=WINDOW_TOKENS, eot_id=tokenizer.eot_id, token_dtype=tokenizer.token_dtype)
    found = window_texts(cut.tokens, tokenizer, tokenizer.eot_id)
    return list(islice(cycle(found[:: max(1, len(found) // num_windows)]), num_windows))


def main() -> None:
    """Measure both sections and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="JSONL of documents (default: CPython's documentation)")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="to embed (default: %(default)s)")
    parser.add_argument("--characters", type=int, default=4_000_000, help="to encode (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns, of which the median counts")
    parser.add_argument("--device", help="such as cpu (default: CUDA when there is one)")
    options = parser.parse_args()
    texts = read_documents(options.input, options.characters)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tokenizer"
        train_tokenizer(texts, folder)
        print(machine_line())
        rows, notes = tokenising(texts, options.repeats, folder)
        print(f"\n{table(TOKENISE_COLUMNS, rows)}\n\n* {notes[0]}\n", flush=True)
        windows = windows_of(texts, options.windows, DocumentTokenizer(folder, fast=True))
    rows, notes = embedding(windows, options.repeats, options.device)
    print(f"{table(EMBED_COLUMNS, rows)}\n\n* {notes[0]}")


if __name__ == "__main__":
    main()
