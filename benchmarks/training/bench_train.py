"""How fast a training step is, and what fits into a GPU's memory.

    python benchmarks/training/bench_train.py speed                  # all sizes that fit; on a CPU: the toy
    python benchmarks/training/bench_train.py speed --sizes 1.3B --ranks 8 --fsdp --data s3://bucket/dataset
    python benchmarks/training/bench_train.py memory                 # computed: no GPU needed, a quarter of an hour

speed   tokens/s, MFU, memory, time waited for data: our recipe with the real loader, the same step on tensors that are
        on the device already, and `transformers` without any of our choices
memory  the largest microbatch per size, card and ranks

Results go to benchmarks/results and docs/train/speed.md; --quick and toy keep them in --work. What does not fit into
memory gets a row that says so. --ranks starts that many processes of Composer's launcher on this machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.support.report import Results, machine_line, save, section_text, update_readme
from benchmarks.training import memory_section, train_section

HERE = Path(__file__).resolve().parent.parent
WORK = HERE.parent / "build" / "bench"
DOCUMENT = HERE.parent / "docs" / "train" / "speed.md"
GPU_SIZES = ["350M", "1.3B", "6.7B"]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    gpu = torch.cuda.is_available()
    sizes = options.sizes or (GPU_SIZES if gpu or options.section == "memory" else ["toy"])
    started = time.perf_counter()
    if options.section == "memory":
        columns = memory_section.COLUMNS
        rows, notes = memory_section.memory(sizes)
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        columns = train_section.COLUMNS
        rows, notes = train_section.speed(
            train_section.SpeedOptions(
                sizes=sizes,
                steps=options.steps,
                turns=options.turns,
                ranks=options.ranks,
                microbatch=options.microbatch,
                data=options.data,
                fsdp=options.fsdp,
                checkpointing=options.checkpointing,
                compile=options.compile if gpu and options.compile != "none" else None,
                precision="amp_bf16" if gpu else "fp32",
                workers=options.workers,
                peak_tflops=options.peak_tflops,
                work=options.work.resolve(),
            )
        )
    command = " ".join(["python benchmarks/training/bench_train.py", *given])
    found = Results(section=f"train-{options.section}", rows=rows, notes=notes, machine=machine_line(), command=command)
    keep = sizes == GPU_SIZES
    save(found, HERE / "results" if keep else options.work)
    text = section_text(found, columns)
    print(f"\n## {options.section} ({time.perf_counter() - started:.0f} s)\n\n{text}", flush=True)
    if keep:
        update_readme({found.section: text}, DOCUMENT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("section", nargs="?", default="speed", choices=["speed", "memory"])
    parser.add_argument("--sizes", nargs="+", choices=list(train_section.CONFIGS), help="(default: all; CPU: toy)")
    parser.add_argument("--microbatch", type=int, help="windows per forward pass (default: the size's)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of every side (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="processes, one per GPU (default: %(default)s)")
    parser.add_argument("--fsdp", action="store_true", help="shard the model over the ranks")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument(
        "--compile", default="default", choices=["default", "max-autotune", "none"], help="on a GPU (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the loader, per rank (default: %(default)s)")
    parser.add_argument("--data", help="root of a dataset, local or remote (default: random windows, made in --work)")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a device that is not listed")
    parser.add_argument("--work", type=Path, default=WORK, help="datasets and caches (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
