"""The model of a write beside real writes: its constants fitted to some, its predictions compared with another."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.writing.counted_write import DRIVER, Cost, Measured, make_encoder, make_texts, measured_write
from benchmarks.writing.scale_model import CONSTANTS, Scale, constant, stages_of
from crisp_stream.table import format_bytes

DOCUMENT_CHARACTERS = 3000
CHARACTERS_PER_TOKEN = 4.3
FITTED_WRITES: Sequence[dict[str, Any]] = (
    {"characters": 4e6, "window_tokens": 8, "part_characters": 300_000, "dim": 32, "min_split": 256},
    {"characters": 16e6, "window_tokens": 64, "part_characters": 2 << 20, "dim": 32, "min_split": 256},
    {"characters": 12e6, "window_tokens": 1024, "part_characters": 2 << 20, "dim": 384},
    {"characters": 4e6, "window_tokens": 64, "part_characters": 300_000, "dim": 384, "min_split": 64},
    {"characters": 8e6, "window_tokens": 16, "part_characters": 1 << 20, "dim": 64},
)
"""Writes that differ in everything that CPU time grows with."""


def made(folder: Path, texts: Sequence[str], **shape: Any) -> tuple[Scale, Measured]:
    """A real write, and its description for the model.

    What the model cannot know beforehand is taken from the write: windows, characters per token, how well the text
    compresses, and how many pieces the encoder reads of a window.
    """
    dim, min_split = shape.pop("dim"), shape.pop("min_split", None)
    inputs = make_texts(
        folder / "in", int(shape.pop("characters")), texts=texts, document_characters=DOCUMENT_CHARACTERS
    )
    measured = measured_write(
        inputs,
        folder / "store",
        encoder=make_encoder(folder / f"encoder-{dim}", dim=dim),
        min_examples_to_split=min_split,
        **shape,
    )
    cut = [record for _, record, _ in measured.records["windows"]]
    sizes: Counter[str] = Counter()
    for stage in ("documents", "windows"):
        for _, record, _ in measured.records[stage]:
            for name, num_bytes in record["files"].items():
                sizes[f"{stage} {name.rpartition('.')[2]}"] += num_bytes
    [(_, tokenizer, _)] = measured.records["tokenizer"]
    windows = sum(record["num_windows"] for record in cut)
    characters = sum(record["num_characters"] for record in cut)
    options = {name: shape[name] for name in Scale.__dataclass_fields__ if name in shape}
    scale = Scale(
        windows=windows,
        characters_per_token=characters / (windows * shape["window_tokens"]),
        document_characters=DOCUMENT_CHARACTERS,
        compression=(sizes["documents arrow"] - 1000 * len(cut)) / characters,
        file_characters=characters / len(measured.records["documents"]),
        dim=dim,
        network=False,
        pieces_per_window=(sizes["windows npz"] - 900 * len(cut)) / windows / 2 - 4,
        tokenizer_bytes=sum(tokenizer["files"].values()),
        min_split=min_split,
        keep_work=True,
        **{key: value for key, value in options.items() if key != "windows"},
    )
    return scale, measured


def predicted(scale: Scale) -> dict[str, Cost]:
    """What the model says of each stage, in one process."""
    costs: dict[str, Cost] = {}
    for tasks in stages_of(scale):
        cost = costs.setdefault(tasks.stage, Cost())
        cost.tasks += tasks.count
        cost.cpu += tasks.count * tasks.cpu
        cost.read += round(tasks.count * tasks.read + tasks.read_per_process)
        cost.written += round(tasks.count * tasks.written)
        cost.memory = max(cost.memory, round(tasks.memory))
        cost.requests.update(
            {
                "GET": round(tasks.count * tasks.gets + tasks.gets_per_process),
                "PUT": round(tasks.count * tasks.puts),
                "HEAD": round(tasks.count * tasks.heads),
                "LIST": round(tasks.count * tasks.lists),
            }
        )
    total = sum(cost.tasks for stage, cost in costs.items() if stage != DRIVER)
    costs[DRIVER].cpu += total * constant("driver/tasks")
    return costs


def compared(scale: Scale, stages: dict[str, Cost]) -> str:
    """A table: predicted / measured of every stage."""
    lines = [
        "| stage | tasks | written | read | PUT | GET | HEAD | LIST | CPU s | memory of the largest |",
        "|---" * 10 + "|",
    ]
    foretold = predicted(scale)
    total = [Cost(), Cost()]
    for stage in [*foretold, *(one for one in stages if one not in foretold)]:
        pair = foretold.get(stage, Cost()), stages.get(stage, Cost())
        for sums, cost in zip(total, pair, strict=True):
            for name in ("tasks", "cpu", "read", "written"):
                setattr(sums, name, getattr(sums, name) + getattr(cost, name))
            sums.requests.update(cost.requests)
        lines.append(_row(stage, *pair))
    lines.append(_row("**all**", *total))
    return "\n".join(lines)


def _row(stage: str, foretold: Cost, found: Cost) -> str:
    kinds = ("PUT", "GET", "HEAD", "LIST")
    cells = [
        f"{foretold.tasks:,} / {found.tasks:,}",
        *(f"{format_bytes(a)} / {format_bytes(b)}" for a, b in _pairs(foretold, found, "written", "read")),
        *(f"{foretold.requests[kind]:,} / {found.requests[kind]:,}" for kind in kinds),
        f"{foretold.cpu:,.1f} / {found.cpu:,.1f}",
        f"{format_bytes(foretold.memory)} / {format_bytes(found.memory)}",
    ]
    return f"| {stage} | " + " | ".join(cells) + " |"


def _pairs(foretold: Cost, found: Cost, *names: str) -> list[tuple[int, int]]:
    return [(getattr(foretold, name), getattr(found, name)) for name in names]


def check(num_windows: int, folder: Path, texts: Sequence[str], window_tokens: int, save: Path | None) -> str:
    """Write about so many windows by the cheapest encoder, and compare; `save` keeps what was measured."""
    scale, measured = made(
        folder,
        texts,
        characters=num_windows * window_tokens * CHARACTERS_PER_TOKEN,
        window_tokens=window_tokens,
        part_characters=1 << 20,
        dim=32,
    )
    kept = {
        "scale": dataclasses.asdict(scale),
        "stages": {stage: vars(cost) for stage, cost in measured.stages.items()},
        "seconds": measured.seconds,
        "peak": measured.peak,
    }
    if save is not None:
        save.write_text(json.dumps(kept, indent=1) + "\n")
    return compared_again(kept)


def compared_again(kept: dict[str, Any]) -> str:
    """The table of what `check` has kept, with the constants of today."""
    scale = Scale(**kept["scale"])
    stages = {stage: Cost(**{**cost, "requests": Counter(cost["requests"])}) for stage, cost in kept["stages"].items()}
    facts = (
        f"{scale.windows:,.0f} windows of {scale.window_tokens} tokens of {scale.characters_per_token:.2f} characters; "
        f"{kept['seconds'] / 60:.0f} minutes in one process, {format_bytes(kept['peak'])} at most"
    )
    return f"{facts}\n\n{compared(scale, stages)}\n\nEach cell: predicted / measured."


def measure(folder: Path, texts: Sequence[str]) -> str:
    """The CPU constants that fit `FITTED_WRITES` best, as lines of `CONSTANTS`; and sizes of small files."""
    rows = []
    for number, shape in enumerate(FITTED_WRITES):
        rows.append(made(folder / str(number), texts, **shape))
        print(compared(rows[-1][0], rows[-1][1].stages), flush=True)
    units: dict[str, list[str]] = {}
    for name in CONSTANTS:
        stage, slash, unit = name.partition("/")
        if slash and stage != "memory":
            units.setdefault(stage, []).append(unit)
    fitted = {
        f"{stage}/{unit}": value
        for stage, names in units.items()
        if all(stage in measured.stages for _, measured in rows)
        for unit, value in zip(names, _fit(stage, names, rows), strict=True)
    }
    return json.dumps({**fitted, **_small_sizes(rows)}, indent=1)


def _fit(stage: str, names: Sequence[str], rows: Sequence[tuple[Scale, Measured]]) -> list[float]:
    """The constants of a stage: least squares of the relative errors, none below 0."""
    from scipy.optimize import nnls

    amounts, found = np.zeros((len(rows), len(names))), np.zeros(len(rows))
    for row, (scale, measured) in enumerate(rows):
        stages = stages_of(scale)
        for tasks in stages:
            for column, unit in enumerate(names):
                if tasks.stage == stage:
                    amounts[row, column] += tasks.count * {"tasks": 1.0, **tasks.units}.get(unit, 0.0)
        if stage == DRIVER:
            amounts[row, names.index("tasks")] = sum(one.count for one in stages if one.stage != DRIVER)
        found[row] = max(measured.stages[stage].cpu, 1e-3)
    scales = np.maximum(amounts.max(axis=0), 1e-30)
    solved, _ = nnls(amounts / scales / found[:, None], np.ones(len(rows)))
    return (solved / scales).tolist()


def _small_sizes(rows: Sequence[tuple[Scale, Measured]]) -> dict[str, float]:
    spans, tables, records = [], [], []
    for scale, measured in rows:
        cut = [record for _, record, _ in measured.records["windows"]]
        spans.append(
            (
                len(cut),
                scale.documents,
                sum(size for one in cut for name, size in one["files"].items() if name.endswith("arrow")),
            )
        )
        tables.append((scale.parts, scale.documents, measured.stages["provenance"].written))
        records.append(np.mean([len(json.dumps(one, sort_keys=True)) for one in cut]))
    found = {"bytes of a record": float(np.mean(records))}
    for name, table in (("spans", spans), ("table of documents", tables)):
        array = np.array(table, np.float64)
        solved, *_ = np.linalg.lstsq(array[:, :2] / array[:, 2:], np.ones(len(array)), rcond=None)
        found |= {f"bytes of {name} per part": float(solved[0]), f"bytes of {name} per document": float(solved[1])}
    return found
