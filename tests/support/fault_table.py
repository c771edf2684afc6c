"""Write the table of docs/train/faults.md from what really happens: `python -m tests.support.fault_table`."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "train" / "faults.md"
BEGIN, END = "<!-- table: python -m tests.support.fault_table -->", "<!-- end of the table -->"
VARYING = {
    r"s3://crisp-tests/(faults|prefix)-\w+": "s3://bucket/data",
    r"for path (faults|prefix)-\w+/": "for path data/",
    r"/\S*/cache/": "CACHE/",
    r"/var/tmp/\w+/first/": "CACHE/",
    r"127\.0\.0\.1:\d+": "127.0.0.1:PORT",
    r"\(pid \d+\)": "(pid N)",
    r"CACHE/[0-9a-f]{16}/[^\s:]*": "CACHE",
}


def markdown(rows: list[tuple[str, str, str, str]]) -> str:
    """The rows as a Markdown table, without what differs from run to run but the seconds."""
    lines = ["| fault | when | reader | outcome |", "|---|---|---|---|"]
    for row in rows:
        text = " | ".join(cell.replace("|", "/").strip() for cell in row)
        for pattern, constant in VARYING.items():
            text = re.sub(pattern, constant, text)
        lines.append(f"| {text} |")
    return "\n".join(lines)


def main() -> None:
    """Run the tests of faults and put their rows between the two marks of the page."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        environment = {**os.environ, "CRISP_STREAM_FAULT_TABLE": str(rows)}
        command = [sys.executable, "-m", "pytest", "-q", "tests/loading/test_faults.py"]
        subprocess.run(command, env=environment, check=True, cwd=PAGE.parents[2])
        table = markdown(json.loads(rows.read_text()))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}"
    page = PAGE.read_text()
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{machine}; `timeout=3`.\n\n{END}{after}")


if __name__ == "__main__":
    main()
