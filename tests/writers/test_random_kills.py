"""`kill -9` at random moments of writes and appends: a few each time, 200 by hand (tests/support/random_kills.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys

KILLS = 8


def test_whatever_is_killed_the_next_command_gives_the_right_bytes_or_a_reason() -> None:
    command = [sys.executable, "-m", "tests.support.random_kills", "--kills", str(KILLS), "--seed", "7"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"^(\d+) kills in \d+ rounds$", done.stdout, re.MULTILINE)
    assert match is not None, done.stdout
    assert int(match[1]) >= KILLS
    assert "right bytes" in done.stdout
