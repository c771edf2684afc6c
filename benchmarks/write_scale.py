"""How long a write of any size takes on given machines, and what it costs: its stages, simulated.

    python -m benchmarks.write_scale --windows 1e9 --machines 8 --cores 32 --gpus 1 [--part-characters 16e6] …
    python -m benchmarks.write_scale --check 1e6 [--texts FILE…] [--work FOLDER]     # a real write beside it
    python -m benchmarks.write_scale --measure [--work FOLDER]                       # the constants, on this machine
    python -m benchmarks.write_scale --constants                                     # the constants in use
    python -m benchmarks.write_scale --report                                        # the tables of docs/write/scale.md

Per stage: tasks, CPU time, bytes and requests of an object store, memory of the largest task; when it starts, how long
it takes and what it waits for. Every stage begins when the one before has ended, but where there are GPUs windows are
cut and embedded at the same time; so the stages are the critical path. Constants stand in writing/scale_model.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.writing.scale_check import check, compared_again, measure
from benchmarks.writing.scale_model import CONSTANTS, Scale, stages_of, work_bytes, work_objects
from benchmarks.writing.scale_schedule import Machines, Played, play
from crisp_stream.table import format_bytes

MILLION = 1_000_000


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=float, metavar="N", help="windows to write")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep what --check measured")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="what --check saved, beside the model of today")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--constants", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--texts", nargs="*", default=[], metavar="FILE", help="JSON lines; made-up words when absent")
    parser.add_argument("--work", type=Path, help="folder for --check and --measure; a temporary one when absent")
    _add_fields(parser, Scale)
    _add_fields(parser, Machines)
    asked = parser.parse_args()
    if asked.constants:
        print(constants_table())
    elif asked.compare:
        print(compared_again(json.loads(asked.compare.read_text())))
    elif asked.check or asked.measure:
        with tempfile.TemporaryDirectory(dir=asked.work) as folder:
            if asked.check:
                tokens = int(asked.window_tokens or 8)
                print(check(int(asked.check), Path(folder), asked.texts, tokens, asked.save))
            else:
                print(measure(Path(folder), asked.texts))
    elif asked.report:
        print(report())
    else:
        if asked.windows is None or asked.machines is None or asked.cores is None:
            parser.error("--windows, --machines and --cores are needed")
        print(simulated(_made(Scale, asked), _made(Machines, asked)))


def _add_fields(parser: argparse.ArgumentParser, kind: Any) -> None:
    group = parser.add_argument_group(kind.__doc__.rstrip("."))
    for one in dataclasses.fields(kind):
        flag = "--" + one.name.replace("_", "-")
        if one.type == "bool":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            group.add_argument(flag, type=float)


def _made(kind: Any, asked: argparse.Namespace) -> Any:
    values = {}
    for one in dataclasses.fields(kind):
        value = getattr(asked, one.name)
        if value is not None:
            values[one.name] = int(value) if one.type in ("int", "int | None") else value
    return kind(**values)


def simulated(scale: Scale, machines: Machines) -> str:
    """The tables of one simulation."""
    stages = stages_of(scale)
    played = play(stages, machines)
    return f"{stages_table(scale, played, machines)}\n\n{totals(scale, played, machines)}"


def stages_table(scale: Scale, played: list[Played], machines: Machines) -> str:
    """A row per group of tasks, in their order."""
    lines = [
        "| stage | tasks | CPU h | read | written | PUT, LIST | GET, HEAD | largest task, memory | starts | takes "
        "| waits for |",
        "|---" * 11 + "|",
    ]
    for one in played:
        tasks = one.tasks
        puts, gets = requests_of(one, machines)
        lines.append(
            f"| {tasks.stage} | {tasks.count:,} | {tasks.count * tasks.cpu / 3600:,.1f} "
            f"| {format_bytes(round(tasks.count * tasks.read))} | {format_bytes(round(tasks.count * tasks.written))} "
            f"| {_short(puts)} | {_short(gets)} | {format_bytes(round(tasks.memory))} "
            f"| {_time(one.start)} | {_time(one.seconds)} | {one.bound} |"
        )
    return "\n".join(lines)


def requests_of(one: Played, machines: Machines) -> tuple[float, float]:
    """(PUT and LIST, GET and HEAD) requests of a stage."""
    tasks = one.tasks
    processes = min(tasks.count, machines.all_cores)
    puts = tasks.count * (tasks.puts + tasks.lists) + 1
    return puts, tasks.count * (tasks.gets + tasks.heads) + processes * tasks.gets_per_process


def totals(scale: Scale, played: list[Played], machines: Machines) -> str:
    """Hours and dollars."""
    end = max(one.start + one.seconds for one in played)
    hours = end / 3600
    requests = [requests_of(one, machines) for one in played]
    puts, gets = (sum(pair[at] for pair in requests) for at in (0, 1))
    embedding = next((one for one in played if one.tasks.on == "gpus"), None)
    gpu_hours = machines.all_gpus * (embedding.start + embedding.seconds) / 3600 if embedding else 0.0
    stages = [one.tasks for one in played]
    held = work_bytes(stages)
    dollars = {
        "cores, all the time": hours * machines.all_cores * machines.per_core_hour,
        "GPUs, until windows are embedded": gpu_hours * machines.per_gpu_hour,
        "requests": puts * machines.per_put + gets * machines.per_get,
        "work place, for that time": held / 1e9 * machines.per_gb_month * hours / 720,
    }
    facts = [
        f"{scale.windows:,.0f} windows of {scale.window_tokens:,} tokens: {scale.parts:,} parts, {scale.runs:,} runs, "
        f"{scale.ranges:,} ranges, {scale.shards:,} shards, {scale.leaves:,} leaves",
        f"{machines.machines} machines of {machines.cores} cores and {machines.gpus} GPUs: **{_time(end)}**, "
        f"**${sum(dollars.values()):,.0f}** (" + ", ".join(f"{k} ${v:,.0f}" for k, v in dollars.items()) + ")",
        f"dataset {format_bytes(round(scale.dataset_bytes))}; work place {format_bytes(round(held))} in "
        f"{_short(work_objects(stages))} objects; {_short(puts)} PUT or LIST, {_short(gets)} GET or HEAD; "
        f"the driver holds {format_bytes(round(max(t.memory for t in stages if t.on == 'driver')))}",
    ]
    return "\n".join(f"* {fact}" for fact in facts)


def constants_table() -> str:
    """All constants and where they are from."""
    lines = ["| constant | value | from |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:.3g} | {source} |" for name, (value, source) in CONSTANTS.items())])


_1T, _34T = 1e12 / 1024, 34e12 / 1024
REPORTED: dict[str, tuple[Scale, Machines]] = {
    "1T tokens": (
        Scale(windows=_1T, depth=3, part_characters=16 * MILLION, run_bytes=512 << 20),
        Machines(machines=8, cores=16, gpus=1),
    ),
    "34T tokens": (
        Scale(
            windows=_34T,
            depth=3,
            part_characters=64 * MILLION,
            run_bytes=512 << 20,
            shard_bytes=512 << 20,
            file_characters=4e9,
        ),
        Machines(machines=40, cores=32, gpus=4),
    ),
}


def report() -> str:
    """The tables of docs/write/scale.md."""
    return "\n\n".join(f"**{name}**\n\n{simulated(*given)}" for name, given in REPORTED.items())


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 10 * size:
            return f"{number / size:,.0f}{unit}"
        if number >= size:
            return f"{number / size:,.1f}{unit}"
    return f"{number:,.0f}"


def _time(seconds: float) -> str:
    if seconds >= 36_000:
        return f"{seconds / 3600:,.0f} h"
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:,.0f} s"


if __name__ == "__main__":
    main()
