"""What a GPU does with this code, in at most 8 minutes: one command, one table.

    python benchmarks/gpu_check.py --out gpu-check.json          # on a machine with a GPU
    python benchmarks/gpu_check.py --toy                         # toy sizes, in this process; on a CPU always so

It uses the torch (2.7 or newer) and transformers (4.53 or newer) that the machine has. What else is needed, and how to
install it without touching these: docs/train/speed.md. Each part runs in a process of its own. One that cannot run, for
want of a package, of memory or of time, gets a row that says why.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.support.measure import UnavailableError, run_task, task_named
from benchmarks.support.report import Column, Results, Row, machine_line, section_text

MOST_SECONDS = 8 * 60.0
_LAST_SECONDS = 10.0
"""For what stands between the parts."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A task of gpu_parts.py."""

    name: str
    task: str
    options: dict[str, Any]
    seconds: float = 60.0
    """Time that it may take."""


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


COLUMNS = [
    Column(title="part", key="part"),
    Column(title="figure", key="figure"),
    Column(title="value", key="value", show=_shown),
]


def parts(work: str, *, toy: bool, peak_tflops: float | None = None, encoder: str | None = None) -> list[Part]:
    """What is measured, the most important first."""
    in_work = {"work": work}
    trained = {**in_work, "peak_tflops": peak_tflops}
    if toy:
        model = {"n_embd": 32, "n_layer": 2, "n_head": 2}
        trainings = [("toy", {"size": "toy", "batch": 8, "steps": 2, "turns": 1}, 60.0)]
        resumed: dict[str, Any] = {"model": model, "size": "toy"}
        judged = {"model": model, "vocab_size": 512, "window_tokens": 64, "rows": 4}
        weighed = {**resumed, "batch": 8, "microbatch": 4, "steps": 2}
        embedded = {"num_windows": 2, "characters": 200, "repeats": 1}
    else:
        small = {"n_embd": 1024, "n_head": 16}
        trainings = [
            ("350M", {"size": "350M", "batch": 96, "steps": 10, "turns": 2}, 150.0),
            ("1.3B", {"size": "1.3B", "batch": 56, "steps": 6, "turns": 2}, 150.0),
        ]
        resumed = {"model": {**small, "n_layer": 2}, "size": "350M"}
        judged = {"model": {**small, "n_layer": 24}, "vocab_size": 32_768, "window_tokens": 1_024, "rows": 16}
        weighed = {
            "model": {"n_embd": 768, "n_layer": 12, "n_head": 12},
            "size": "350M",
            "batch": 64,
            "microbatch": 8,
            "steps": 4,
        }
        embedded = {"num_windows": 1_024, "characters": 4_300, "repeats": 3}
    at = "training.gpu_parts:"
    return [
        *(
            Part(name=f"training {size}", task=f"{at}training", options={**trained, **options}, seconds=seconds)
            for size, options, seconds in trainings
        ),
        Part(name="embedding", task=f"{at}embedding", options={"encoder": encoder, **embedded}, seconds=90.0),
        Part(name="resume", task=f"{at}resume", options={**in_work, **resumed}, seconds=90.0),
        Part(name="evaluation", task=f"{at}evaluation", options=judged),
        Part(name="DoGE step", task=f"{at}doge", options={**in_work, **weighed}),
    ]


def run_part(part: Part, *, alone: bool, seconds: float) -> dict[str, Any]:
    """The figures of a part, or {"unavailable": why}. `alone`: in a process of its own, of at most so many seconds."""
    if seconds <= 0:
        return {"unavailable": f"left out: {MOST_SECONDS / 60:.0f} minutes are over"}
    try:
        if alone:
            return run_task(part.task, part.options, timeout=min(part.seconds, seconds))
        return task_named(part.task)(**part.options)
    except UnavailableError as reason:
        return {"unavailable": str(reason)}
    except Exception as error:  # whatever breaks on this machine is a row, and its traceback is printed
        traceback.print_exc()
        last_line = str(error).strip().rpartition("\n")[2]
        return {"unavailable": last_line if alone else f"{type(error).__name__}: {last_line}"}


def check(chosen: list[Part], *, alone: bool) -> tuple[list[Row], list[str]]:
    """A row for every figure of every part, and notes."""
    until = time.monotonic() + MOST_SECONDS - _LAST_SECONDS
    rows: list[Row] = []
    notes: list[str] = []
    for part in chosen:
        started = time.monotonic()
        found = run_part(part, alone=alone, seconds=until - started)
        if "unavailable" in found:
            rows.append({"part": part.name, "unavailable": f"cannot run: {found['unavailable']}"})
        rows += [{"part": part.name, "figure": name, "value": value} for name, value in found.get("figures", [])]
        notes += found.get("notes", [])
        print(f"{part.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return rows, notes


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write, too")
    parser.add_argument("--toy", action="store_true", help="toy sizes in this process; always so without a GPU")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a device that is not listed")
    parser.add_argument("--encoder", metavar="NAME", help="encoder to embed with, or its folder (default: MiniLM)")
    options = parser.parse_args(given)
    gpu = torch.cuda.is_available()
    toy = options.toy or not gpu
    device = torch.cuda.get_device_name() if gpu else f"no GPU ({platform.machine()})"
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        chosen = parts(work, toy=toy, peak_tflops=options.peak_tflops, encoder=options.encoder)
        rows, notes = check(chosen, alone=not toy)
    found = Results(
        section="gpu-check",
        rows=rows,
        notes=["Toy sizes: the figures say that the parts run, and nothing else." if toy else "bf16.", *notes],
        machine=f"{device}, {machine_line()}",
        command=" ".join(["python benchmarks/gpu_check.py", *given]),
    )
    print(section_text(found, COLUMNS), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
