"""The writers stage by stage, both sides of every ratio in one run: one Markdown row each.

    python benchmarks/writing/bench_write.py SECTION|all [--quick] [--work FOLDER]

tokenise  documents to ids: tiktoken with our merges against `tokenizers`, ids equal
embed     windows to stored vectors against the bare forward pass of the encoder
distilled windows to vectors by a student, against the bare forward pass of MiniLM and an LSI
assign    windows to leaves of a 64^3 tree against the bare products
sort      parts to sorted shards on two processes against numpy in memory and Ray Data's sort
upload    shards made and put at once against bare puts to the same SeaweedFS
ray       one small write by local processes and by Ray on the same machine
memory    a limit on memory, against windows ten times as large

Random windows stand below --work when first needed (2 GB) and are kept. --quick does the same at toy size, keeps its
results in --work, and touches nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.support.measure import medians_of, run_task
from benchmarks.support.report import (
    Column,
    Results,
    Row,
    count,
    digits,
    machine_line,
    mega,
    save,
    section_text,
    update_readme,
)
from benchmarks.support.report import load as load_results
from benchmarks.writing import bench_assign, embed_section, sort_section

HERE = Path(__file__).resolve().parent.parent
WORK = HERE.parent / "build" / "bench"
RESULTS = HERE / "results"
REPEATS = 3
SORT_BYTES = 1 << 30
MEMORY_BYTES = 1 << 28
"""Of tokens sorted under a limit of a tenth of it per process."""
Section = Callable[[Path, bool, int], tuple[list[Row], list[str]]]

ASSIGN_COLUMNS = [
    Column(title="windows per call", key="side"),
    Column(title="windows/s per core", key="rate", show=count),
    Column(title="bare products: windows/s", key="bare", show=count),
    Column(title="ours against it", key="ratio", show=digits(2)),
]
RAY_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="seconds", key="seconds", show=digits(1)),
    Column(title="range of the runs", key="seconds_spread", show=lambda pair: f"{pair[0]:,.1f} to {pair[1]:,.1f}"),
    Column(title="of them, engine start and end", key="start", show=digits(1)),
    Column(title="CPU seconds of all processes", key="cpu", show=digits(1)),
]
MEMORY_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="tokens, MB", key="tokens", show=mega),
    Column(title="data budget of a process, MB", key="budget", show=mega),
    Column(title="peak memory of all processes, MB", key="peak", show=mega),
    Column(title="MB/s", key="rate", show=digits(0)),
]


def tokenise(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """See embed_section."""
    texts = embed_section.read_documents(None, 4_000_000)
    return embed_section.tokenising(texts, repeats, _tokenizer(texts, work))


def distilled(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """See embed_section."""
    texts = embed_section.read_documents(None, 200_000 if quick else 4_000_000)
    return embed_section.distilled(texts, repeats, _tokenizer(texts, work))


def embed(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """See embed_section."""
    from crisp_stream.format.tokenizer import DocumentTokenizer

    texts = embed_section.read_documents(None, 4_000_000)
    tokenizer = DocumentTokenizer(_tokenizer(texts, work), fast=True)
    windows = embed_section.windows_of(texts, 8 if quick else embed_section.WINDOWS, tokenizer)
    return embed_section.embedding(windows, repeats)


def _tokenizer(texts: list[str], work: Path) -> Path:
    from crisp_stream.writers.windows import train_tokenizer

    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(texts, folder)
    return folder


def assign(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """See bench_assign."""
    from threadpoolctl import threadpool_limits

    sizes = [4_096] if quick else [65_536, 262_144, 1_000_000]
    tree, embeddings = bench_assign.synthetic(max(sizes))
    rows: list[Row] = []
    with threadpool_limits(1):
        for size in sizes:
            pairs = [
                (bench_assign.seconds(lambda size=size: tree.assign(embeddings[:size])) / size, bench_assign.floor())
                for _ in range(repeats)
            ]
            assigned, bare = (float(np.median([pair[side] for pair in pairs])) for side in (0, 1))
            rows.append({"side": f"{size:,}", "rate": 1 / assigned, "bare": 1 / bare, "ratio": bare / assigned})
    return rows, ["CPU time, one thread, 384 numbers, a full tree of 64^3."]


def sort(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """See sort_section."""
    return sort_section.sort(work, 1 << 23 if quick else SORT_BYTES, repeats)


def upload(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """See sort_section."""
    from tests.support.seaweed import seaweed

    with tempfile.TemporaryDirectory() as folder, seaweed(Path(folder)) as server:
        os.environ.update(server.environment())
        return sort_section.upload(work, 1 << 25 if quick else 1 << 29, repeats, server.fresh_prefix("bench"))


def ray(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """The same small write by both engines, in turns."""
    source = work / "topics.jsonl"
    texts = sorted(pydoc_data.topics.topics.values())
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * (1 if quick else 8)))
    rows: list[Row] = []
    found: dict[str, list[dict[str, Any]]] = {"local": [], "ray": []}
    for _ in range(repeats):
        for engine, results in found.items():
            results.append(run_task("writing.bench_write:small_write", {"source": str(source), "engine": engine}))
    for engine, results in found.items():
        medians = medians_of(results)
        rows.append({"side": f"{engine}, 2 processes", **medians})
    note = (
        f"{sum(map(len, texts)) * (1 if quick else 8) / 1e6:.1f} M characters, LSI, windows of 64 tokens; bytes equal."
    )
    return rows, [note]


def small_write(source: str, engine: str) -> dict[str, Any]:
    """Inside a process of its own: write, and say how long it took."""
    from benchmarks.support.measure import cpu_of_all
    from crisp_stream.writers import write as run
    from crisp_stream.writers.options import WriteOptions

    times: list[float] = []
    original = run._assembled  # pyright: ignore[reportPrivateUsage]

    def timed(*arguments: Any) -> Any:
        times.append(time.perf_counter())
        made = original(*arguments)
        times.append(time.perf_counter())
        cpu.append(cpu_of_all())
        return made

    cpu: list[float] = []
    run._assembled = timed  # pyright: ignore[reportPrivateUsage]
    with tempfile.TemporaryDirectory() as folder:
        options = WriteOptions(
            inputs=[source],
            out=f"{folder}/out",
            encoder="lsi",
            window_tokens=64,
            vocab_size=4_000,
            arity=8,
            depth=2,
            part_characters=100_000,
            processes=2,
            engine=engine,
        )
        started = time.perf_counter()
        run.write(options, log=lambda line: None)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "start": seconds - (times[1] - times[0]), "cpu": cpu[0]}


def memory(work: Path, quick: bool, repeats: int) -> tuple[list[Row], list[str]]:
    """Runs and shards of ten times what a process may hold, and of all that it wants."""
    num_bytes = 1 << 23 if quick else MEMORY_BYTES
    rows: list[Row] = []
    for name, budget in (("a tenth of the tokens", num_bytes // 10), ("no limit", None)):
        options = {"folder": str(work / "memory"), "num_bytes": num_bytes, "processes": 1, "memory_bytes": budget}
        medians = medians_of([run_task("writing.sort_section:sorted_by_tasks", options) for _ in range(repeats)])
        tokens = medians["parts"] * sort_section.WINDOWS_PER_PART * sort_section.WINDOW_BYTES
        rows.append(
            {
                "side": f"sorting with {name}",
                "tokens": tokens,
                "budget": budget,
                "peak": medians["peak"],
                "rate": tokens / 1e6 / medians["seconds"],
            }
        )
    return rows, ["One process, without a pool; the libraries are in the peak. Memory is proportional."]


SECTIONS: dict[str, tuple[Section, Sequence[Column]]] = {
    "tokenise": (tokenise, embed_section.TOKENISE_COLUMNS),
    "embed": (embed, embed_section.EMBED_COLUMNS),
    "distilled": (distilled, embed_section.DISTILLED_COLUMNS),
    "assign": (assign, ASSIGN_COLUMNS),
    "sort": (sort, sort_section.SORT_COLUMNS),
    "upload": (upload, sort_section.UPLOAD_COLUMNS),
    "ray": (ray, RAY_COLUMNS),
    "memory": (memory, MEMORY_COLUMNS),
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("section", nargs="?", default="all", choices=[*SECTIONS, "all", "report"])
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--work", type=Path, default=WORK, help="random windows (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs per row, of which the median is shown")
    options = parser.parse_args(arguments)
    work = (options.work / ("quick" if options.quick else "write")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = work / "results" if options.quick else RESULTS
    repeats = 1 if options.quick else options.repeats
    for name in SECTIONS if options.section == "all" else [options.section]:
        if name == "report":
            continue
        section, columns = SECTIONS[name]
        rows, notes = section(work, options.quick, repeats)
        flags = (" --quick" if options.quick else "") + (f" --repeats {repeats}" if repeats != REPEATS else "")
        found = Results(
            section=f"write-{name}",
            rows=rows,
            notes=notes,
            machine=machine_line(),
            command=f"python benchmarks/writing/bench_write.py {name}{flags}",
        )
        save(found, results)
        print(f"\n## {name}\n\n{section_text(found, columns)}", flush=True)
    if options.quick:
        shutil.rmtree(work / "sort", ignore_errors=True)
        return
    kept = {name: load_results(f"write-{name}", RESULTS) for name in SECTIONS}
    texts = {f"write-{name}": section_text(one, SECTIONS[name][1]) for name, one in kept.items() if one is not None}
    update_readme(texts)


if __name__ == "__main__":
    main()
