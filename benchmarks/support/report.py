"""Results as JSON files, Markdown tables, and the tables of README.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What one section measured."""

    section: str
    rows: list[Row]
    notes: list[str]
    machine: str
    """Date, commit, machine and versions."""
    command: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a Markdown table."""

    title: str
    key: str
    show: Callable[[Any], str] = str


def count(value: float) -> str:
    """Thousands separated."""
    return f"{value:,.0f}"


def mega(value: float) -> str:
    """Bytes as MB."""
    megabytes = value / 1e6
    return f"{megabytes:,.0f}" if abs(megabytes) >= 10 else f"{megabytes:.1f}"


def digits(places: int) -> Callable[[float], str]:
    """A fixed number of decimal places."""
    return lambda value: f"{value:,.{places}f}"


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A Markdown table. A row with `unavailable` says so in its first empty cell; what a row lacks stays empty."""
    lines = ["| " + " | ".join(column.title for column in columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = ["" if row.get(column.key) is None else column.show(row[column.key]) for column in columns]
        if "unavailable" in row:
            empty = next((at for at, column in enumerate(columns) if row.get(column.key) is None), len(cells) - 1)
            cells[empty] = str(row["unavailable"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine_line() -> str:
    """Date, commit, machine and the versions that matter."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    names = (
        "numpy",
        "torch",
        "mosaicml",
        "mosaicml-streaming",
        "transformers",
        "sentence-transformers",
        "litdata",
        "obstore",
    )
    versions = [f"{name} {version}" for name in names if (version := _version(name))]
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    cores = len(os.sched_getaffinity(0))
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join(
        [
            datetime.date.today().isoformat(),
            f"commit {commit or 'unknown'}",
            f"{cores} cores ({cpu.group(1) if cpu else platform.machine()}), {gigabytes:.0f} GiB",
            f"CPython {platform.python_version()}",
            *versions,
        ]
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def save(results: Results, folder: Path) -> None:
    """Write <section>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{results.section}.json").write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")


def load(section: str, folder: Path) -> Results | None:
    """Read <section>.json; None when that section was not run."""
    path = folder / f"{section}.json"
    return Results(**json.loads(path.read_text())) if path.exists() else None


def section_text(results: Results, columns: Sequence[Column]) -> str:
    """Table, notes, machine and command of one section."""
    notes = "".join(f"\n* {note}" for note in results.notes)
    return f"`{results.command}`: {results.machine}\n\n{table(columns, results.rows)}\n{notes}".rstrip() + "\n"


def update_readme(texts: dict[str, str], readme: Path = HERE / "README.md") -> None:
    """Put each section's text between `<!-- section -->` and `<!-- end section -->` of the README."""
    content = readme.read_text()
    for section, text in texts.items():
        start, end = f"<!-- {section} -->\n", f"<!-- end {section} -->"
        before, found, rest = content.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{readme}: must hold {start.strip()} and {end}, once each")
        content = before + start + text + closed + after
    readme.write_text(content)
