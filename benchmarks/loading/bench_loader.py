"""The loader at scale, beside its peers, all sides in one run: one Markdown row each.

    python benchmarks/loading/bench_loader.py cpu|start|resume|s3|error|changes|shards|sources|all [--quick] [--work W]
    python benchmarks/loading/bench_loader.py report          # plots and README tables again, from benchmarks/results

cpu     CPU time per sample, local files
start   seconds and memory to the first batch, against the number of clusters
resume  the same at position 10^8
s3      time, bytes and requests over S3 with 30 ms of latency added to every request
error   mixture asked for against mixture served, against clusters and samples
changes a new mixture for every batch: CPU, memory and state after more and more changes
shards  opening and CPU time per sample where there are 100,000 shards
sources task text mixed into a corpus, beside the corpus alone

Datasets are written below --work when first needed (4 GB) and kept. --quick does the same at toy size in a few minutes,
keeps its results in --work, and touches nothing else. Peers that are not installed get a row that says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.loading import (
    changes_section,
    error_section,
    local_sections,
    s3_section,
    shards_section,
    sources_section,
)
from benchmarks.loading.inputs import Inputs
from benchmarks.support.report import Column, Results, Row, load, machine_line, save, section_text, update_readme

Section = Callable[[Inputs, int], tuple[list[Row], list[str]]]

SECTIONS: dict[str, tuple[Section, Sequence[Column]]] = {
    "cpu": (local_sections.cpu, local_sections.CPU_COLUMNS),
    "start": (local_sections.start, local_sections.START_COLUMNS),
    "resume": (local_sections.resume, local_sections.RESUME_COLUMNS),
    "s3": (s3_section.s3, s3_section.S3_COLUMNS),
    "error": (error_section.error, error_section.ERROR_COLUMNS),
    "changes": (changes_section.changes, changes_section.CHANGES_COLUMNS),
    "shards": (shards_section.shards, shards_section.SHARDS_COLUMNS),
    "sources": (sources_section.sources, sources_section.SOURCES_COLUMNS),
}
HERE = Path(__file__).resolve().parent.parent
WORK = HERE.parent / "build" / "bench"
RESULTS = HERE / "results"
REPEATS = 5


def run_section(name: str, inputs: Inputs, results: Path, repeats: int) -> None:
    """Measure one section, keep its numbers and print its table."""
    section, columns = SECTIONS[name]
    started = time.perf_counter()
    rows, notes = section(inputs, repeats)
    flags = (" --quick" if inputs.quick else "") + (f" --repeats {repeats}" if repeats != REPEATS else "")
    command = f"python benchmarks/loading/bench_loader.py {name}{flags}"
    found = Results(section=name, rows=rows, notes=notes, machine=machine_line(), command=command)
    save(found, results)
    print(f"\n## {name} ({time.perf_counter() - started:.0f} s)\n\n{section_text(found, columns)}", flush=True)


def report(results: Path, plots: Path, work: Path, *, readme: bool) -> None:
    """Draw the plots and, for the committed results, fill in the README."""
    found = {name: kept for name in SECTIONS if (kept := load(name, results)) is not None}
    try:
        from benchmarks.loading.plots import draw_all
    except ImportError:
        print("no plots: matplotlib is not installed (pip install 'crisp-stream[bench]')")
    else:
        for path in draw_all(found, plots, work):
            print(path)
    if readme:
        update_readme({name: section_text(kept, SECTIONS[name][1]) for name, kept in found.items()})


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("section", nargs="?", default="all", choices=[*SECTIONS, "all", "report"])
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--work", type=Path, default=WORK, help="datasets (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs per row, of which the median is shown")
    options = parser.parse_args(arguments)
    work = options.work / "quick" if options.quick else options.work
    work.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(work.resolve(), quick=options.quick)
    results = work / "results" if options.quick else RESULTS
    for name in SECTIONS if options.section == "all" else [options.section]:
        if name != "report":
            run_section(name, inputs, results, 1 if options.quick else options.repeats)
    report(results, work if options.quick else RESULTS, work, readme=not options.quick)


if __name__ == "__main__":
    main()
