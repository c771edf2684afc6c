"""Which microbatch fits: the largest per size, card, layout and activation checkpointing, computed without a GPU."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.support.measure import run_task
from benchmarks.support.report import Column, Row, count, digits
from benchmarks.training.training_memory import CARD_BYTES, HEADROOM, Layout, Step, measured_peak
from crisp_stream.models.gpt import GPT_SIZES
from crisp_stream.models.training_cost import gpt_parameters

LAYOUTS: dict[str, list[tuple[str, Layout, int]]] = {
    "350M": [("1 GPU", "one", 1), ("DDP", "ddp", 8), ("FSDP2, 8 ranks", "fsdp", 8)],
    "1.3B": [("1 GPU", "one", 1), ("DDP", "ddp", 8), ("FSDP2, 8 ranks", "fsdp", 8)],
    "6.7B": [("1 GPU", "one", 1), ("FSDP2, 8 ranks", "fsdp", 8), ("FSDP2, 64 ranks", "fsdp", 64)],
}
MICROBATCHES = {"350M": (8, 32), "1.3B": (8, 32), "6.7B": (2, 16)}
"""Windows at which the peak is computed."""

MOST_WINDOWS = 128

GB = 1e9
COLUMNS = [
    Column(title="size", key="size"),
    Column(title="ranks", key="layout"),
    Column(title="activation checkpointing", key="checkpointing"),
    Column(title="GB for no window", key="fixed", show=digits(1)),
    Column(title="GB per window", key="per_window", show=digits(2)),
    *(
        column
        for card in CARD_BYTES
        for column in (
            Column(title=f"{card}: most windows", key=f"windows, {card}", show=count),
            Column(title="power of two", key=f"power, {card}", show=count),
            Column(title="its GB", key=f"used, {card}", show=digits(1)),
        )
    ),
]


def memory(sizes: list[str]) -> tuple[list[Row], list[str]]:
    """A row for each size, layout and use of checkpointing."""
    rows = []
    for size in sizes:
        for name, layout, ranks in LAYOUTS[size]:
            for checkpointing in (False, True):
                peaks = {windows: _peak(size, layout, ranks, checkpointing, windows) for windows in MICROBATCHES[size]}
                named = {"size": size, "layout": name, "checkpointing": "yes" if checkpointing else "no"}
                rows.append(table_row(peaks, named))
    return rows, _notes()


@functools.cache
def _peak(size: str, layout: Layout, ranks: int, checkpointing: bool, windows: int) -> float:
    if layout == "ddp":  # Composer's DDP keeps gradients and the buckets that are sent apart
        shape = {key: getattr(GPT_SIZES[size], key) for key in ("n_layer", "n_embd", "n_positions")}
        return _peak(size, "one", 1, checkpointing, windows) + 4 * gpt_parameters(**shape, vocab_size=32_768)
    model = {**asdict(GPT_SIZES[size]), "activation_checkpointing": checkpointing}
    step = Step(model=model, microbatch=windows, layout=layout, ranks=ranks)
    return run_task("training.training_memory:peak", step.options())["Total"]


def table_row(peaks: dict[int, float], named: dict[str, Any]) -> Row:
    """The peak is the largest of several sums, each linear in the windows: that of many windows is one of them."""
    (few, peak_of_few), (many, peak_of_many) = peaks.items()
    slope = (peak_of_many - peak_of_few) / (many - few)
    windows = np.arange(1, MOST_WINDOWS + 1)
    bytes_of = np.maximum(peak_of_few, peak_of_many + slope * (windows - many))
    row: Row = {**named, "fixed": (peak_of_many - slope * many) / GB, "per_window": slope / GB}
    for card, card_bytes in CARD_BYTES.items():
        fitting = windows[bytes_of <= card_bytes * (1 - HEADROOM)]
        if len(fitting) == 0:
            row[f"windows, {card}"] = 0
            continue
        power = 2 ** int(np.log2(fitting[-1]))
        row |= {f"windows, {card}": int(fitting[-1]), f"power, {card}": power}
        row[f"used, {card}"] = float(bytes_of[power - 1]) / GB
    return row


def _notes() -> list[str]:
    model = {"n_embd": 256, "n_layer": 6, "n_head": 4}
    ratios = []
    for checkpointing in (False, True):
        for bf16 in (False, True):
            step = Step(
                model={**model, "activation_checkpointing": checkpointing},
                microbatch=8,
                vocab_size=4096,
                window_tokens=512,
                bf16=bf16,
            )
            computed = run_task("training.training_memory:peak", step.options())["Total"]
            ratios.append(measured_peak(step) / computed)
    return [
        "Computed, not measured on a GPU: bf16 autocast, 1,024 tokens per window, a vocabulary of 32,768, fused AdamW, "
        "two microbatches per step, no torch.compile. FSDP2 with `reshard_after_forward: true`; false adds 2 bytes per "
        "parameter.",
        f"{HEADROOM:.0%} of the card stay free. A card's GB are 10^9 bytes. {MOST_WINDOWS} windows: at least as many.",
        "A 6-block GPT of width 256 trained on a CPU needed "
        f"{min(ratios):.3f} to {max(ratios):.3f} of what this computes for it (float32 and bf16, checkpointed or not).",
    ]
