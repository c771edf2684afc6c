"""The parts of gpu_check.py, each a task of its own process: a list of figures, and notes.

They share a folder: the first that needs the random dataset of a configuration writes it. Composer and
sentence-transformers are imported by the parts that need them, so that the others run without.
"""

from __future__ import annotations

import csv
import pydoc_data.topics
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.support.measure import out_of_memory_is_unavailable
from benchmarks.training.train_flops import Flops
from benchmarks.training.train_section import CONFIGS, BenchConfig, SideRows, bench_dataset
from crisp_stream.config.recipe import Recipe
from crisp_stream.config.sections import (
    CompileRecipe,
    DataRecipe,
    MixtureRecipe,
    ModelRecipe,
    OptimizerRecipe,
    PhaseRecipe,
)
from crisp_stream.evaluation.perplexity import row_losses
from crisp_stream.format.dataset import open_dataset
from crisp_stream.models.gpt import build_gpt, gpt_config
from crisp_stream.selection.doge.doge_run import DogeRun
from crisp_stream.selection.doge.settings import DogeSettings
from crisp_stream.selection.doge.target_text import TargetText

Figures = list[tuple[str, float | str]]
"""Name with unit, and value."""

_RESUMED_AT, _BATCHES = 4, 8


def training(
    *, work: str, size: str, batch: int, steps: int, turns: int, peak_tflops: float | None = None
) -> dict[str, Any]:
    """Training steps of our recipe, with the loader and on tensors that are on the device already."""
    from benchmarks.training.train_sides import ours

    config = CONFIGS[size]
    root, gpu = _root(work, config), torch.cuda.is_available()
    microbatch = min(config.microbatch, batch)
    found = ours(
        root=str(root),
        local=None,
        model=asdict(config.model),
        batch=batch,
        microbatch=microbatch,
        steps=steps,
        turns=turns,
        fsdp=False,
        reshard=False,
        workers=2 if gpu else 0,
        precision=_precision(),
        compile="default" if gpu else None,
    )
    manifest = open_dataset(root).manifest
    flops = Flops.of(config.model, vocab_size=manifest.tokenizer.vocab_size, window_tokens=manifest.window_tokens)
    rows = SideRows(size, batch, batch * manifest.window_tokens, flops, peak_tflops)
    with_loader, resident = rows.of("", found, "loader", microbatch), rows.of("", found, "resident", microbatch)
    unknown = f"no peak is known of {found['device']}: --peak-tflops"
    figures: Figures = [
        ("parameters", flops.parameters),
        ("windows per step", batch),
        ("ms per step", with_loader["ms"]),
        ("tokens/s", with_loader["tokens"]),
        ("MFU, %", with_loader.get("mfu", unknown)),
        ("MFU, causal half, %", with_loader.get("mfu_causal", unknown)),
        ("peak memory, GB", with_loader["memory"]),
        ("waiting for data, %", with_loader["waiting"]),
        ("ms per step on tensors on the device", resident["ms"]),
        ("step with the loader against it, %", 100 * (with_loader["ms"] / resident["ms"] - 1)),
    ]
    return {"figures": figures, "notes": [f"{size}: {microbatch} windows per forward pass, {turns} turns of {steps}."]}


def embedding(*, encoder: str | None, num_windows: int, characters: int, repeats: int) -> dict[str, Any]:
    """Windows per second of an encoder in bfloat16, against the bare forward pass of the same batches.

    Args:
        encoder: name or folder; None is MiniLM.
        characters: of a window.
    """
    from benchmarks.writing import embed_section

    text = "\n\n".join(pydoc_data.topics.topics.values())
    windows = [text[start : start + characters] for start in range(0, len(text) - characters, characters)]
    with out_of_memory_is_unavailable():
        repeated = list(islice(cycle(windows), num_windows))
        rows, notes = embed_section.embedding(repeated, repeats, name=encoder, bf16=True)
    figures: Figures = [(f"windows/s, {row['side']}", row["rate"]) for row in rows]
    figures.append(("pieces to stored vectors against the bare forward pass", rows[1]["ratio"]))
    return {
        "figures": figures,
        "notes": [f"{encoder or 'MiniLM'} by autocast (the writer computes in float32): {notes[0]}."],
    }


def resume(*, work: str, model: dict[str, Any], size: str) -> dict[str, Any]:
    """A run, the same again, and its second half from a checkpoint: are losses and weights equal bit for bit?"""
    from crisp_stream.training.train import train

    folder = Path(work) / f"resume-{time.time_ns()}"
    root = _root(work, CONFIGS[size])
    whole, again, second_half = (str(folder / name) for name in ("whole", "again", "resumed"))

    def run(save_folder: str, **keys: Any) -> None:
        train(
            _recipe(
                root,
                model,
                max_duration=f"{_BATCHES}ba",
                save_folder=save_folder,
                save_interval=f"{_RESUMED_AT}ba",
                compile_config=CompileRecipe() if torch.cuda.is_available() else None,
                **keys,
            )
        )

    with out_of_memory_is_unavailable():
        run(whole)
        run(again)
        run(second_half, load_path=f"{whole}/ep0-ba{_RESUMED_AT}-rank0.pt")
    figures: Figures = []
    for name, other in (("the same run again", again), ("resumed", second_half)):
        losses = max(abs(one - two) for one, two in zip(_losses(whole), _losses(other), strict=True))
        weights = _largest_difference(_weights(whole), _weights(other))
        figures.append((f"{name}: equal bit for bit", "yes" if losses == weights == 0 else "no"))
        figures.append((f"{name}: largest difference of a loss, nats", losses))
        figures.append((f"{name}: largest difference of a weight", weights))
    note = f"Resumed after batch {_RESUMED_AT} of {_BATCHES}. Where a run differs from itself, so may a resumed one."
    return {"figures": figures, "notes": [note]}


def evaluation(*, model: dict[str, Any], vocab_size: int, window_tokens: int, rows: int) -> dict[str, Any]:
    """Losses of rows in bfloat16, as in training, against float32, as `eval` computes them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = ModelRecipe(**model)
    config = gpt_config(recipe, vocab_size=vocab_size, window_tokens=window_tokens, eot_id=0)
    gpt: Any = build_gpt(config, seed=0).eval()
    gpt.to(device)
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, window_tokens)).tolist()
    figures: Figures = []
    losses = {}
    with out_of_memory_is_unavailable():
        for name, bf16 in (("float32", False), ("bfloat16", True)):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                row_losses(gpt, tokens, device=device)
                started = time.perf_counter()
                losses[name] = row_losses(gpt, tokens, device=device) / (window_tokens - 1)
                figures.append((f"tokens/s, {name}", rows * (window_tokens - 1) / (time.perf_counter() - started)))
    difference = float(np.abs(losses["bfloat16"] - losses["float32"]).max())
    figures.append(("bfloat16: largest difference of a row's mean loss, nats", difference))
    return {"figures": figures, "notes": [f"Evaluation: {rows} rows of random tokens, random weights."]}


def doge(*, work: str, model: dict[str, Any], size: str, batch: int, microbatch: int, steps: int) -> dict[str, Any]:
    """Steps of DoGE's proxy model; the first is not timed."""
    root = _root(work, CONFIGS[size])
    dataset = open_dataset(root)
    manifest = dataset.manifest
    target = TargetText(
        tokens=np.random.default_rng(0).integers(0, 256, (4 * batch, manifest.window_tokens)).astype(np.uint16),
        provenance={},
    )
    recipe = _recipe(
        root,
        model,
        max_duration=f"{steps + 1}ba",
        log_interval=1,
        global_train_batch_size=batch,
        device_train_microbatch_size=microbatch,
    )
    stamps: list[float] = []

    def log(line: str) -> None:
        if line.startswith("step "):
            stamps.append(time.perf_counter())

    out = Path(work) / f"doge-{time.time_ns()}" / "doge.parquet"
    out.parent.mkdir()
    with out_of_memory_is_unavailable():
        run = DogeRun(recipe, DogeSettings(), dataset, target, out=out, log=log)
        run.finish()
    seconds = statistics.median(np.diff(stamps).tolist())
    figures: Figures = [
        ("parameters", int(run.cost()["parameters"])),
        ("clusters", len(run.nodes)),
        ("ms per step", 1e3 * seconds),
        ("tokens/s of corpus and specialist text", 2 * batch * manifest.window_tokens / seconds),
    ]
    if torch.cuda.is_available():
        figures.append(("peak memory, GB", torch.cuda.max_memory_allocated() / 1e9))
    return {"figures": figures, "notes": [f"DoGE: {batch} windows of each text per step, not compiled."]}


def _root(work: str, config: BenchConfig) -> Path:
    plan = config.dataset
    return bench_dataset(config, Path(work) / f"windows-{plan.window_tokens}-{plan.vocab_size}")


def _precision() -> Any:
    return "amp_bf16" if torch.cuda.is_available() else "fp32"


def _recipe(root: Path, model: dict[str, Any], **keys: Any) -> Recipe:
    shared: dict[str, Any] = {
        "run_name": "gpu-check",
        "global_train_batch_size": 8,
        "data": DataRecipe(remote=str(root)),
        "mixture": MixtureRecipe(phases=(PhaseRecipe(histogram="base"),)),
        "model": ModelRecipe(**model),
        "optimizer": OptimizerRecipe(lr=1e-4),
        "precision": _precision(),
    }
    return Recipe(**(shared | keys))


def _losses(folder: str) -> list[float]:
    """Of the batches after the checkpoint that is resumed from."""
    with (Path(folder) / "losses.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if int(row["batch"]) > _RESUMED_AT]


def _weights(folder: str) -> Iterable[torch.Tensor]:
    saved = torch.load(f"{folder}/ep0-ba{_BATCHES}-rank0.pt", map_location="cpu", weights_only=False)
    return saved["state"]["model"].values()


def _largest_difference(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> float:
    return max(float((mine - yours).abs().max()) for mine, yours in zip(one, other, strict=True))
