"""Memory of a write whose input has one large document among small ones, stage by stage, as `--memory` counts it.

    python -m benchmarks.writing.large_documents --work FOLDER [--megabytes 1 50 250] [--memory 1500]
        [--clean exact near decontaminate] [--processes 1] [--like DATASET]

The large document is a line of JSONL: real English words (the documentation of this project)
in varied order, with line ends. Each row is a `crisp-stream write --encoder lsi` in processes of its own; every 0.3 s
the PSS of all of them is added up (RSS in brackets, which counts shared pages once per process). Prints Markdown.
Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.support.measure import ROOT, descendants
from benchmarks.support.report import machine_line

SMALL_DOCUMENTS, SMALL_WORDS = 400, 300
LINE_WORDS = 15
SAMPLE_SECONDS = 0.3
"""Reading the PSS of a large process takes some 10 ms, in which it does not allocate."""
STAGES = {
    "reading documents": "documents",
    "finding duplicates": "duplicates",
    "making the tokenizer": "tokenizer",
    "cutting windows": "windows",
    "making the LSI": "LSI",
    "embedding windows": "embeddings",
    "sorting windows": "runs",
    "sketching text": "texts",
    "writing shards": "shards",
}
"""Titles in the log, and columns of the table; what stands between two of them counts for the later one."""
NEW_MODELS = ["--arity", "8", "--depth", "2", "--vocab-size", "8000"]
CLEANING = {
    "none": [],
    "exact": ["--dedup", "exact"],
    "near": ["--dedup", "near"],
    "decontaminate": ["--decontaminate"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for about ten times the documents; kept")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 50, 250], help="sizes of the document")
    parser.add_argument("--memory", type=int, default=1500, help="limit in MiB")
    parser.add_argument("--clean", nargs="+", choices=CLEANING, default=["exact", "near", "decontaminate"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--like", help="dataset whose tokenizer, LSI and tree are taken; they are made without")
    chosen = parser.parse_args(arguments)
    words = english_words()
    chosen.work.mkdir(parents=True, exist_ok=True)
    print(machine_line() + "\n")
    columns = ["document, MB", "cleaning", "limit, MiB", "peak", *STAGES.values(), "end"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)
    for megabytes in chosen.megabytes:
        source = chosen.work / f"{megabytes:g}.jsonl"
        if not source.is_file():
            make_documents(source, words, int(megabytes * 1e6))
        evaluation = chosen.work / "evaluation.jsonl"
        evaluation.write_text(json.dumps({"text": " ".join(reversed(words))}) + "\n")  # as no document has it
        for clean in chosen.clean:
            models = ["--like", chosen.like] if chosen.like else NEW_MODELS
            options = [*models, *CLEANING[clean], *([str(evaluation)] if clean == "decontaminate" else [])]
            measured = written(source, chosen.work / f"{megabytes:g}-{clean}", chosen.memory, chosen.processes, options)
            row = [f"{megabytes:g}", clean, str(chosen.memory), *measured.cells()]
            print("| " + " | ".join(row) + " |", flush=True)


def english_words() -> list[str]:
    """Words as they stand in the documentation of this project."""
    texts = [path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))]
    return re.findall(r"[A-Za-z,.'-]+", " ".join(texts))


def make_documents(path: Path, words: list[str], large_bytes: int) -> None:
    """Small documents, and in the middle of them one of about `large_bytes`."""
    rng = random.Random(large_bytes)
    with path.open("w") as file:
        for number in range(SMALL_DOCUMENTS):
            file.write(json.dumps({"text": passage(rng, words, SMALL_WORDS)}) + "\n")
            if number == SMALL_DOCUMENTS // 2:
                file.write('{"text": "')
                held = 0
                while held < large_bytes:
                    held += file.write(json.dumps(passage(rng, words, 10_000) + "\n")[1:-1])
                file.write('"}\n')


def passage(rng: random.Random, words: list[str], num_words: int) -> str:
    """Stretches of the words from random places, in lines."""
    found: list[str] = []
    while len(found) < num_words:
        start = rng.randrange(len(words))
        found += words[start : start + rng.randint(20, 200)]
    return "\n".join(" ".join(found[at : at + LINE_WORDS]) for at in range(0, num_words, LINE_WORDS))


@dataclass
class Measured:
    """Peaks of a write, bytes."""

    per_stage: dict[str, int] = field(default_factory=dict)
    pss: int = 0
    rss: int = 0
    since: int = 0
    """Peak since the last stage ended."""
    error: str = ""

    def sample(self, pid: int) -> None:
        """Add up the memory of a process and of all below it."""
        pss = rss = 0
        for one in (pid, *descendants(pid)):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{one}/smaps_rollup").read_text()
                found = {name: int(kb) << 10 for name, kb in re.findall(r"^(Pss|Rss):\s+(\d+) kB", text, re.MULTILINE)}
                pss, rss = pss + found.get("Pss", 0), rss + found.get("Rss", 0)
        self.pss, self.rss, self.since = max(self.pss, pss), max(self.rss, rss), max(self.since, pss)

    def take(self, line: str) -> None:
        """Look whether a line of the log ends a stage."""
        column = STAGES.get(line.partition(":")[0])
        if column is not None and " in " in line and " of " not in line.partition(" in ")[0]:
            self.per_stage[column] = max(self.per_stage.get(column, 0), self.since)
            self.since = 0

    def cells(self) -> list[str]:
        """Cells of the table, MiB."""
        if self.error:
            return [self.error, *[""] * (len(STAGES) + 1)]
        stages = [self.per_stage.get(column, 0) for column in STAGES.values()]
        return [
            f"{self.pss >> 20} ({self.rss >> 20})",
            *(str(value >> 20) if value else "" for value in stages),
            str(self.since >> 20),
        ]


def written(source: Path, out: Path, limit: int, processes: int, options: list[str]) -> Measured:
    """Write, and sample."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "crisp_stream", "write", str(source), "--out", str(out), "--encoder", "lsi"]
    command += ["--memory", f"{limit}M", "--processes", str(processes)]
    process = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    measured, ended = Measured(), threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                measured.sample(process.pid)

    sampler = threading.Thread(target=sample)
    sampler.start()
    assert process.stdout is not None
    last = ""
    began = time.monotonic()
    for line in process.stdout:
        last = line.strip() or last
        print(f"{time.monotonic() - began:.0f} s: {line.rstrip()}", file=sys.stderr, flush=True)
        measured.take(line)
    status = process.wait()
    ended.set()
    sampler.join()
    measured.error = last if status else ""
    shutil.rmtree(out, ignore_errors=True)
    return measured


if __name__ == "__main__":
    main()
