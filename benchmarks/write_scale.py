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
from benchmarks.writing.scale_model import CONSTANTS, Scale, Sum, stages_of, work_bytes, work_objects
from benchmarks.writing.scale_schedule import Machines, Played, play
from crisp_stream.table import format_bytes

MILLION = 1_000_000
SHORT_SECONDS = 60
"""A stage of less time has no row of its own in a table that is joined."""


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


def simulated(scale: Scale, machines: Machines, *, join: bool = False) -> str:
    """The tables of one simulation."""
    played = play(stages_of(scale), machines)
    rows = joined(played) if join else played
    return f"{stages_table(rows, machines)}\n\n{totals(scale, played, machines)}"


def stages_table(played: list[Played], machines: Machines) -> str:
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
    requests = [requests_of(one, machines) for one in played]
    puts, gets = (sum(pair[at] for pair in requests) for at in (0, 1))
    stages = [one.tasks for one in played]
    held, spent = work_bytes(stages), dollars(played, machines)
    facts = [
        f"{scale.windows:,.0f} windows of {scale.window_tokens:,} tokens: {scale.parts:,} parts, {scale.runs:,} runs, "
        f"{scale.ranges:,} ranges, {scale.shards:,} shards, {scale.leaves:,} leaves",
        f"{machines.machines} machines of {machines.cores} cores and {machines.gpus} GPU{'s' * (machines.gpus != 1)}: "
        f"**{_time(end)}**, "
        f"**${sum(spent.values()):,.0f}** (" + ", ".join(f"{k} ${v:,.0f}" for k, v in spent.items()) + ")",
        f"dataset {format_bytes(round(scale.dataset_bytes))}; work place {format_bytes(round(held))} in "
        f"{_short(work_objects(stages))} objects; {_short(puts)} PUT or LIST, {_short(gets)} GET or HEAD; "
        f"the driver holds {format_bytes(round(max(t.memory for t in stages if t.on == 'driver')))}",
    ]
    return "\n".join(f"* {fact}" for fact in facts)


def dollars(played: list[Played], machines: Machines) -> dict[str, float]:
    """What a write costs, by what it is paid for."""
    hours = max(one.start + one.seconds for one in played) / 3600
    embedding = next((one for one in played if one.tasks.on == "gpus"), None)
    gpu_hours = machines.all_gpus * (embedding.start + embedding.seconds) / 3600 if embedding else 0.0
    requests = [requests_of(one, machines) for one in played]
    held = work_bytes([one.tasks for one in played])
    return {
        "cores, all the time": hours * machines.all_cores * machines.per_core_hour,
        "GPUs, until windows are embedded": gpu_hours * machines.per_gpu_hour,
        "requests": sum(puts * machines.per_put + gets * machines.per_get for puts, gets in requests),
        "work place, for that time": held / 1e9 * machines.per_gb_month * hours / 720,
    }


def constants_table() -> str:
    """All constants and where they are from."""
    lines = ["| constant | value | from |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:.3g} | {source} |" for name, (value, source) in CONSTANTS.items())])


_1T = Scale(windows=1e12 / 1024, depth=3, part_characters=16 * MILLION, run_bytes=512 << 20, dedup=True)
_34T = dataclasses.replace(
    _1T, windows=34e12 / 1024, part_characters=64 * MILLION, shard_bytes=512 << 20, file_characters=4e9, dedup=False
)
_EIGHT = Machines(machines=8, cores=16, gpus=1)
_FORTY = Machines(machines=40, cores=32, gpus=4)
VARIANTS: dict[str, tuple[Scale, Machines]] = {
    "1T": (_1T, _EIGHT),
    "1T without `--dedup`": (dataclasses.replace(_1T, dedup=False), _EIGHT),
    "1T, parts of 2 million characters, runs of 64 MB (defaults)": (
        dataclasses.replace(_1T, part_characters=Scale.part_characters, run_bytes=Scale.run_bytes),
        _EIGHT,
    ),
    "1T, a store on the same network (2 ms)": (_1T, dataclasses.replace(_EIGHT, latency=0.002)),
    "1T, half the machines": (_1T, dataclasses.replace(_EIGHT, machines=4)),
    "34T": (_34T, _FORTY),
    "34T with `--dedup exact`": (dataclasses.replace(_34T, dedup=True), _FORTY),
    "34T, ten times the requests per second": (
        _34T,
        dataclasses.replace(_FORTY, gets_per_second=55_000, puts_per_second=35_000),
    ),
    "34T, that and twice the machines": (
        _34T,
        dataclasses.replace(_FORTY, machines=80, gets_per_second=55_000, puts_per_second=35_000),
    ),
}


def report() -> str:
    """The tables of docs/write/scale.md."""
    lines = ["| | machines | time | cost | longest stages |", "|---|---|---|---|---|"]
    for name, (scale, machines) in VARIANTS.items():
        whole = play(stages_of(scale), machines)
        played = joined(whole)
        longest = sorted(played, key=lambda one: -one.seconds)[:3]
        cells = [
            name,
            f"{machines.machines} of {machines.cores} cores, {machines.gpus} GPU{'s' * (machines.gpus > 1)}",
            f"**{_time(max(one.start + one.seconds for one in played))}**",
            f"${sum(dollars(whole, machines).values()):,.0f}",
            ", ".join(f"{one.tasks.stage} {_time(one.seconds)} ({one.bound})" for one in longest),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    tables = [f"**{name} tokens**\n\n{simulated(*VARIANTS[name], join=True)}" for name in ("1T", "34T")]
    return "\n\n".join([*tables, "\n".join(lines)])


def joined(played: list[Played]) -> list[Played]:
    """One row for the groups of a stage; stages of less than a minute together."""
    rows: dict[str, list[Played]] = {}
    for one in played:
        rows.setdefault(one.tasks.stage, []).append(one)
    short = [stage for stage, own in rows.items() if sum(one.seconds for one in own) < SHORT_SECONDS]
    for stage in short:
        rows.setdefault(f"{len(short)} others", []).extend(rows.pop(stage))
    return [_joined(stage, own) for stage, own in rows.items()]


def _joined(stage: str, played: list[Played]) -> Played:
    tasks = [one.tasks for one in played]
    count = sum(one.count for one in tasks)

    def mean(name: str) -> float:
        return sum(one.count * getattr(one, name) for one in tasks) / count

    return Played(
        tasks=Sum(
            stage=stage,
            count=count,
            cpu=mean("cpu"),
            read=mean("read"),
            written=mean("written"),
            puts=mean("puts"),
            gets=mean("gets"),
            heads=mean("heads"),
            lists=mean("lists"),
            gets_per_process=max(one.gets_per_process for one in tasks),
            memory=max(one.memory for one in tasks),
        ),
        start=min(one.start for one in played),
        seconds=sum(one.seconds for one in played),
        bound=max(played, key=lambda one: one.seconds).bound,
    )


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
