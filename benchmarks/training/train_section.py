"""What `bench_train.py speed` measures: a configuration per size, and a row per size and side."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.support.measure import out_of_memory, run_task
from benchmarks.support.report import Column, Row, count, digits
from benchmarks.support.synthetic_dataset import DatasetPlan, write_dataset
from benchmarks.training.train_flops import Flops, peak_flops
from crisp_stream.config.sections import ModelRecipe
from crisp_stream.format.dataset import open_dataset
from crisp_stream.models.gpt import GPT_SIZES

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The pinned configuration of a size."""

    model: ModelRecipe
    batch: int
    """Windows per step over all ranks: Table 4's, for 6.7B a share of it, so that a step does not take minutes."""
    microbatch: int
    """Most windows per forward pass."""
    dataset: DatasetPlan


_WINDOWS = DatasetPlan(leaves=4_096, windows=40_000, window_tokens=1_024, vocab_size=32_768)
CONFIGS = {
    "toy": BenchConfig(
        model=ModelRecipe(n_embd=32, n_layer=2, n_head=2),
        batch=8,
        microbatch=4,
        dataset=DatasetPlan(leaves=64, windows=2_000, window_tokens=64, vocab_size=512),
    ),
    "350M": BenchConfig(model=GPT_SIZES["350M"], batch=96, microbatch=24, dataset=_WINDOWS),
    "1.3B": BenchConfig(model=GPT_SIZES["1.3B"], batch=112, microbatch=14, dataset=_WINDOWS),
    "6.7B": BenchConfig(model=GPT_SIZES["6.7B"], batch=128, microbatch=8, dataset=_WINDOWS),
}

COLUMNS = [
    Column(title="size", key="size"),
    Column(title="side", key="side"),
    Column(title="windows per step / forward pass", key="batch"),
    Column(title="ms per step", key="ms", show=digits(1)),
    Column(title="range of the turns", key="ms_spread"),
    Column(title="tokens/s per device", key="tokens", show=count),
    Column(title="MFU, %", key="mfu", show=digits(1)),
    Column(title="MFU, causal half, %", key="mfu_causal", show=digits(1)),
    Column(title="waiting for data, %", key="waiting", show=digits(2)),
    Column(title="peak memory, GB", key="memory", show=digits(1)),
]


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What the command line says."""

    sizes: list[str]
    steps: int
    turns: int
    ranks: int
    microbatch: int | None
    data: str | None
    """Root of a dataset, local or remote, instead of a random one."""
    fsdp: bool
    checkpointing: bool
    compile: str | None
    """Mode of torch.compile; None: not compiled."""
    precision: str
    workers: int
    peak_tflops: float | None
    work: Path


def speed(options: SpeedOptions) -> tuple[list[Row], list[str]]:
    """Rows and notes of all sizes; a size that does not fit gets a row that says so."""
    rows: list[Row] = []
    notes: list[str] = []
    for size in options.sizes:
        size_rows, size_notes = _size(size, CONFIGS[size], options)
        rows += size_rows
        notes += [note for note in size_notes if note not in notes]
    return rows, notes


def _size(size: str, config: BenchConfig, options: SpeedOptions) -> tuple[list[Row], list[str]]:
    root = options.data or str(bench_dataset(config, options.work / ("toy" if size == "toy" else "windows")))
    manifest = open_dataset(root).manifest
    model = {**asdict(config.model), "n_positions": manifest.window_tokens}
    microbatch = min(options.microbatch or config.microbatch, config.batch // options.ranks)
    batch = config.batch // (microbatch * options.ranks) * microbatch * options.ranks
    shared = {"batch": batch, "microbatch": microbatch, "steps": options.steps, "turns": options.turns}
    ours = _run(
        "training.train_sides:ours",
        {
            **shared,
            "root": root,
            "local": str(options.work / "cache") if "://" in root else None,
            "model": {**model, "activation_checkpointing": options.checkpointing},
            "fsdp": options.fsdp,
            "workers": options.workers,
            "precision": options.precision,
            "compile": options.compile,
            "reshard": size == "6.7B",
        },
        options.ranks,
    )
    plain = {**shared, "model": model, "vocab_size": manifest.tokenizer.vocab_size}
    eager, eager_microbatch = _largest_that_fits({**plain, "window_tokens": manifest.window_tokens}, options.ranks)
    flops = Flops.of(
        ModelRecipe(**model), vocab_size=manifest.tokenizer.vocab_size, window_tokens=manifest.window_tokens
    )
    tokens = batch * manifest.window_tokens / options.ranks
    row = SideRows(size, batch, tokens, flops, options.peak_tflops)
    rows = [
        row.of("crisp-stream, real loader", ours, "loader", microbatch),
        row.of("crisp-stream, tensors on the device", ours, "resident", microbatch),
        row.of("transformers, eager float32", eager, "eager", eager_microbatch),
    ]
    notes = [f"{size}: {flops.parameters:,} parameters, {flops.full:.4g} FLOPs per token, {flops.causal:.4g} causal."]
    if "loader" in ours:
        cost = statistics.median(ours["loader"]) / statistics.median(ours["resident"]) - 1
        notes.append(f"{size}: with the loader a step takes {cost:+.2%} of that on tensors on the device.")
    if "loader" in ours and "eager" in eager:
        worth = statistics.median(eager["eager"]) / statistics.median(ours["loader"])
        notes.append(f"{size}: {worth:.2f} times as fast as transformers without our choices.")
    found = ours if "device" in ours else eager
    if "device" in found:
        peak = row.peak(found["device"])
        known = "no peak known, so no MFU" if peak is None else f"peak {peak / 1e12:.1f} TFLOP/s (dense bfloat16)"
        notes.append(f"{options.ranks} x {found['device']}, {known}.")
    return rows, notes


class SideRows:
    """Makes rows of what the sides of a size measured."""

    def __init__(self, size: str, batch: int, tokens: float, flops: Flops, peak_tflops: float | None) -> None:
        """Args:
        batch: windows of a step over all ranks.
        tokens: of a step, per rank.
        peak_tflops: of the device; None: by its name.
        """
        self._size, self._batch, self._tokens, self._flops, self._peak = size, batch, tokens, flops, peak_tflops

    def peak(self, device: str) -> float | None:
        """FLOP/s of a device at most; None if nobody knows."""
        return peak_flops(device) if self._peak is None else self._peak * 1e12

    def of(self, side: str, found: dict[str, Any], turns: str, microbatch: int) -> Row:
        """Make the row of a side; `turns` is the key of its seconds per step."""
        row: Row = {"size": self._size, "side": side, "batch": f"{self._batch} / {microbatch}"}
        if "unavailable" in found:
            return {**row, "unavailable": found["unavailable"]}
        seconds = found[turns]
        median = statistics.median(seconds)
        rate = self._tokens / median
        row |= {
            "ms": 1e3 * median,
            "ms_spread": f"{1e3 * min(seconds):,.1f} to {1e3 * max(seconds):,.1f}",
            "tokens": rate,
            "memory": found["memory"] / 1e9,
        }
        if turns == "loader":
            row["waiting"] = 100 * statistics.median(found["waited"]) / median
        peak = self.peak(found["device"])
        if peak is not None:
            row |= {
                "mfu": 100 * rate * self._flops.full / peak,
                "mfu_causal": 100 * rate * self._flops.causal / peak,
            }
        return row


def _run(task: str, options: dict[str, Any], ranks: int) -> dict[str, Any]:
    """A task's result; {"unavailable": …} where a rank ran out of memory, whichever it was."""
    try:
        return run_task(task, options, timeout=HOUR, ranks=ranks)
    except RuntimeError as error:
        reason = out_of_memory(str(error))
        if reason is None:
            raise
        return {"unavailable": reason}


def _largest_that_fits(options: dict[str, Any], ranks: int) -> tuple[dict[str, Any], int]:
    """The plain side's result at our microbatch, or at the first of its divisors that fits."""
    microbatch = options["microbatch"]
    while True:
        found = _run("training.train_sides:eager", {**options, "microbatch": microbatch}, ranks)
        if found.get("unavailable") != "out of memory" or microbatch == 1:
            return found, microbatch
        microbatch = next(smaller for smaller in range(microbatch // 2, 0, -1) if microbatch % smaller == 0)


def bench_dataset(config: BenchConfig, root: Path) -> Path:
    """Write the random dataset of a configuration, unless it is there."""
    if not (root / "manifest.json").exists():
        write_dataset(root, config.dataset)
    return root
