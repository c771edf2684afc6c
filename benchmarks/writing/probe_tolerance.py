"""How far an encoder's probe moves by rounding, and by a wrong part: the smallest cosine of its eight texts.

    python -m benchmarks.writing.probe_tolerance

Prints a Markdown table; the tolerance (`MIN_COSINE` of writers/embedding/probe.py) stands between its two halves.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crisp_stream.writers.embedding import embed
from crisp_stream.writers.embedding.encoder_files import resolve_encoder
from crisp_stream.writers.embedding.probe import MIN_COSINE, PROBE_TEXTS, EncoderFile


def _vectors(folder: str, *, dtype: torch.dtype = torch.float32, autocast: torch.dtype | None = None) -> NDArray[Any]:
    encoder = embed.Encoder(folder, device="cpu")
    model: Any = encoder.model
    model.to(dtype)
    inside = contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    with inside:
        return encoder.embed(PROBE_TEXTS)


def _one_by_one(folder: str) -> NDArray[Any]:
    encoder = embed.Encoder(folder, device="cpu")
    return np.concatenate([encoder.embed([text]) for text in PROBE_TEXTS])


def _quantised(folder: str) -> NDArray[Any]:
    encoder = embed.Encoder(folder, device="cpu")
    model: Any = encoder.model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return encoder.embed(PROBE_TEXTS)


def _rounding(folder: str) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "the same again", _vectors(folder)
    yield "texts one by one", _one_by_one(folder)
    yield "float64", _vectors(folder, dtype=torch.float64)
    yield "float16 products", _vectors(folder, autocast=torch.float16)
    yield "bfloat16 products (coarser than TF32)", _vectors(folder, autocast=torch.bfloat16)
    yield "weights rounded to bfloat16", _quantised(folder)


def _changed(source: str, name: str, path: str, **changes: object) -> tuple[str, NDArray[Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(source, Path(scratch) / "encoder"))
        file = folder / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return name, _vectors(str(folder))


def _wrong(source: str) -> Iterator[tuple[str, NDArray[Any]]]:
    pooling = "1_Pooling/config.json"
    yield _changed(source, "cls pooling", pooling, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    yield _changed(source, "max pooling", pooling, pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False)
    yield _changed(source, "relu for gelu", "config.json", hidden_act="relu")
    yield _changed(source, "tanh's approximation of gelu", "config.json", hidden_act="gelu_new")
    yield _changed(source, "128 word pieces for 256", "sentence_bert_config.json", max_seq_length=128)
    yield "a prompt", embed.Encoder(source, prompt="query: ", device="cpu").embed(PROBE_TEXTS)
    yield "reads all", embed.Encoder(source, reads="all", device="cpu").embed(PROBE_TEXTS)


def main() -> None:
    """Print the table."""
    source = resolve_encoder(None)[0]
    kept = EncoderFile.of(embed.Encoder(source, device="cpu"))
    print("| | smallest cosine |\n|---|---|")
    for name, vectors in _rounding(source):
        print(f"| {name} | {kept.cosines(vectors).min():.6f} |", flush=True)
    print(f"| **needed** | {MIN_COSINE} |")
    for name, vectors in _wrong(source):
        print(f"| {name} | {kept.cosines(vectors).min():.6f} |", flush=True)


if __name__ == "__main__":
    main()
